package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctxb = context.Background()

func TestTypedClient(t *testing.T) {
	f := newFake(t, "g", "p")
	c := f.client(Config{})
	v1, err := c.Put(ctxb, []byte("a"), []byte("1"))
	if err != nil || v1 != 1 {
		t.Fatal(v1, err)
	}
	if e, err := c.Get(ctxb, []byte("a")); err != nil || string(e.Value) != "1" || e.Version != 1 {
		t.Fatal(e, err)
	}
	if _, err := c.Get(ctxb, []byte("b")); !errors.Is(err, shard.ErrNotFound) {
		t.Fatal(err)
	}
	if n, err := c.Add(ctxb, []byte("h"), 7); err != nil || n != 7 {
		t.Fatal(n, err)
	}
	if _, err := c.CompareAndSwap(ctxb, []byte("a"), Absent(nil), []byte("2")); !errors.Is(err, shard.ErrConditionFailed) {
		t.Fatal(err)
	}
	if _, err := c.CompareAndSwap(ctxb, []byte("a"), ValueIs(nil, []byte("1")), []byte("2")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctxb, []byte("t"), nil, WithTTL(time.Minute)); err != nil || f.items["t"].Expire != -60_000 {
		t.Fatal(f.items["t"], err)
	}
	if _, err := c.Delete(ctxb, []byte("a")); err != nil {
		t.Fatal(err)
	}
	es, err := c.MultiGet(ctxb, [][]byte{[]byte("t"), []byte("a"), []byte("h")})
	if err != nil || !es[0].Exists() || es[1].Exists() || string(es[2].Value) != "7" {
		t.Fatal(es, err)
	}
	if res, err := c.Batch(ctxb, new(Batch).Put([]byte("b"), []byte("x")).Add([]byte("c"), 2).If(Absent([]byte("b")))); err != nil || res.Values[0] != 2 {
		t.Fatal(res, err)
	}
	if _, err := c.Batch(ctxb, new(Batch).Put([]byte("b"), nil).Put([]byte("z"), nil)); !errors.Is(err, shard.ErrCrossShard) {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, make([]byte, shard.KeyBytesMax+1)} {
		if _, err := c.Put(ctxb, bad, nil); err == nil {
			t.Error("accepted")
		}
		if _, err := c.Get(ctxb, bad); err == nil {
			t.Error("accepted")
		}
	}
	if _, err := c.WriteIn(ctxb, shard.MetaShardID, &shard.Write{Ops: []shard.Op{{Kind: shard.OpPut, Key: []byte("zz"), Value: []byte("m")}}}); err != nil {
		t.Fatal(err)
	}
	if f.last.Shard != shard.MetaShardID {
		t.Error("not in the meta shard")
	}
	if e, err := c.GetIn(ctxb, shard.MetaShardID, []byte("zz")); err != nil || string(e.Value) != "m" {
		t.Error(e, err)
	}
}

// Answers that are lost are no reason to apply twice.
func TestLostAnswersApplyOnce(t *testing.T) {
	f := newFake(t, "g")
	c := f.client(Config{})
	for i, fault := range []error{errLost, shard.ErrAmbiguous, shard.ErrInternal} {
		f.after = times(3, api.MethodWrite, fault)
		if n, err := c.Add(ctxb, []byte("k"), 1); err != nil || n != int64(i+1) {
			t.Fatalf("%v: %d, %v", fault, n, err)
		}
	}
	f.after = times(1, api.MethodWrite, errLost)
	if _, err := c.Add(ctxb, []byte("k"), 1, WithoutSession()); !errors.Is(err, shard.ErrAmbiguous) {
		t.Error(err)
	}
	if string(f.items["k"].Value) != "4" {
		t.Error(f.items["k"])
	}
}

// The answer was lost, then the key moved to another shard: the retry must go there under the same name.
func TestLostAnswerThenSplit(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	f.after = func(engine.NodeID, api.Method) error {
		f.mu.Lock()
		first := f.calls[api.MethodWrite] == 1
		f.mu.Unlock()
		if !first {
			return nil
		}
		f.split("h", 77)
		return errLost
	}
	if n, err := c.Add(ctxb, []byte("k"), 1); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if f.last.Shard != 77 {
		t.Errorf("the retry went to shard %d", f.last.Shard)
	}
}

// The answer to a batch was lost, then the shard was split between its keys. That its first key has moved says nothing of the first attempt: the
// batch must go to the key's new owner as it is, which answers from its table, and not be cut anew.
func TestLostAnswerThenCut(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	if _, err := c.Get(ctxb, []byte("a")); !errors.Is(err, shard.ErrNotFound) { // it knows the leader
		t.Fatal(err)
	}
	f.after = func(_ engine.NodeID, m api.Method) error {
		if m != api.MethodWrite || f.count(m) > 1 {
			return nil
		}
		f.split("h", 77)
		return errLost
	}
	f.before = func(_ engine.NodeID, m api.Method) error {
		if m != api.MethodWrite || f.count(m) != 2 {
			return nil
		}
		return &shard.MovedError{Descriptors: []shard.Descriptor{*f.descs[1], *f.descs[2]}}
	}
	if _, err := c.Batch(ctxb, new(Batch).Put([]byte("z"), nil).Put([]byte("a"), nil)); err != nil {
		t.Fatal(err)
	}
	if f.last.Shard != 77 || f.count(api.MethodWrite) < 3 || f.counter != 1 {
		t.Errorf("%d attempts, %d were carried out, the last one by shard %d", f.count(api.MethodWrite), f.counter, f.last.Shard)
	}
}

func TestBatchThatIsSplit(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	if _, err := c.Get(ctxb, []byte("a")); !errors.Is(err, shard.ErrNotFound) {
		t.Fatal(err)
	}
	f.split("h", 77)
	b := new(Batch).Put([]byte("a"), nil).Put([]byte("z"), nil)
	if _, err := c.Batch(ctxb, b); !errors.Is(err, shard.ErrCrossShard) || len(f.items) != 0 {
		t.Fatal(err, f.items)
	}
	f.merge("h")
	if err := c.Refresh(ctxb, []byte("z")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Batch(ctxb, b); err != nil || len(f.items) != 2 {
		t.Fatal(err, f.items)
	}
}

// A ring of replicas that each name another one must not become a storm.
func TestRedirectsAreBounded(t *testing.T) {
	f := newFake(t)
	var pauses atomic.Int64
	c := f.client(Config{After: func(d time.Duration, fn func()) { pauses.Add(1); time.AfterFunc(d, fn) }})
	n := 0
	f.before = func(node engine.NodeID, m api.Method) error {
		if m == api.MethodWrite {
			if n++; n <= 60 {
				return &shard.NotLeaderError{Leader: 1 + node%3, Addr: "node"}
			}
		}
		return nil
	}
	if _, err := c.Put(ctxb, []byte("k"), nil); err != nil {
		t.Fatal(err)
	}
	if p := pauses.Load(); p < 60/(redirectsMax+2) {
		t.Errorf("60 redirects with %d pauses", p)
	}
	pauses.Store(0) // and who names itself is not asked again at once
	n = 0
	f.before = func(node engine.NodeID, m api.Method) error {
		if n++; m == api.MethodWrite && n <= 10 {
			return &shard.NotLeaderError{Leader: node, Addr: "node"}
		}
		return nil
	}
	if _, err := c.Put(ctxb, []byte("k"), nil); err != nil {
		t.Fatal(err)
	}
	if p := pauses.Load(); p < 10 {
		t.Errorf("10 redirects to the same node with %d pauses", p)
	}
}

// A shard that sends elsewhere what nobody knows of a newer owner is not asked again at once: the map is filled anew, and there is a pause.
// One that names the new owner is believed at once.
func TestMovedWithoutNewsPauses(t *testing.T) {
	f := newFake(t)
	var pauses atomic.Int64
	c := f.client(Config{After: func(d time.Duration, fn func()) { pauses.Add(1); time.AfterFunc(d, fn) }})
	if err := c.LoadMap(ctxb); err != nil {
		t.Fatal(err)
	}
	old := *f.descs[1]
	f.before = times(10, api.MethodWrite, &shard.MovedError{Descriptors: []shard.Descriptor{old}})
	maps := f.count(api.MethodMap)
	if _, err := c.Put(ctxb, []byte("k"), nil); err != nil {
		t.Fatal(err)
	}
	if p, m := pauses.Load(), f.count(api.MethodMap)-maps; p < 10 || m < 10 {
		t.Errorf("10 answers without news: %d pauses, %d looks at the map", p, m)
	}
	pauses.Store(0)
	maps = f.count(api.MethodMap)
	f.split("h", 77)
	left, right := *f.descs[1], *f.descs[2]
	f.leaders[77] = f.leaders[left.Shard]
	f.before = times(1, api.MethodWrite, &shard.MovedError{Descriptors: []shard.Descriptor{left, right}})
	if _, err := c.Put(ctxb, []byte("k"), nil); err != nil || f.last.Shard != 77 {
		t.Fatal(err, f.last)
	}
	if p, m := pauses.Load(), f.count(api.MethodMap)-maps; p != 0 || m != 0 {
		t.Errorf("an answer with news: %d pauses, %d looks at the map", p, m)
	}
}

func TestEveryRefusalIsRetried(t *testing.T) {
	for _, err := range []error{errNotSent, errLost, shard.ErrOverloaded, shard.ErrShardNotFound, shard.ErrNotInitialized, &shard.NotLeaderError{},
		&shard.UnavailableError{RetryAfter: time.Microsecond}, &shard.MovedError{}} {
		f := newFake(t, "g")
		c := f.client(Config{})
		f.before = times(5, api.MethodWrite, err)
		if _, e := c.Put(ctxb, []byte("k"), []byte("v")); e != nil {
			t.Errorf("write, %v: %v", err, e)
		}
		f.before = times(5, api.MethodRead, err)
		if _, e := c.Get(ctxb, []byte("k")); e != nil {
			t.Errorf("read, %v: %v", err, e)
		}
		f.before = times(2, api.MethodMap, errNotSent)
		if e := f.client(Config{}).LoadMap(ctxb); e != nil && !errors.Is(e, shard.ErrUnavailable) {
			t.Errorf("map: %v", e)
		}
	}
}

// Who asks for it is told at once that a node has too much to do; but not while an earlier attempt may have been applied.
func TestFailOverloaded(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	ctx := FailOverloaded(ctxb)
	f.before = times(1, api.MethodWrite, shard.ErrOverloaded)
	if _, err := c.Put(ctx, []byte("k"), nil); !errors.Is(err, shard.ErrOverloaded) {
		t.Errorf("write: %v", err)
	}
	f.before = times(1, api.MethodRead, shard.ErrOverloaded)
	if _, err := c.Get(ctx, []byte("k")); !errors.Is(err, shard.ErrOverloaded) {
		t.Errorf("read: %v", err)
	}
	attempts := 0
	f.before = func(_ engine.NodeID, m api.Method) error {
		if m != api.MethodWrite {
			return nil
		}
		attempts++
		switch attempts {
		case 1:
			return errLost
		case 2, 3:
			return shard.ErrOverloaded
		}
		return nil
	}
	if _, err := c.Put(ctx, []byte("k"), nil); err != nil || attempts < 4 {
		t.Errorf("an answer was lost, then two refusals: %d attempts, %v", attempts, err)
	}
}

func TestContextEnds(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	f.before = times(math.MaxInt, api.MethodWrite, errNotSent)
	ctx, cancel := context.WithTimeout(ctxb, 5*time.Millisecond)
	defer cancel()
	_, err := c.Put(ctx, []byte("k"), nil)
	if !errors.Is(err, shard.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, shard.ErrAmbiguous) {
		t.Errorf("nothing was sent: %v", err)
	}
	f.before = times(1, api.MethodWrite, errLost)
	f.after = times(math.MaxInt, api.MethodWrite, errNotSent)
	ctx, cancel = context.WithTimeout(ctxb, 5*time.Millisecond)
	defer cancel()
	if _, err := c.Put(ctx, []byte("k"), nil); !errors.Is(err, shard.ErrAmbiguous) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an answer was lost: %v", err)
	}
}

func TestCancelledWhileSent(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	if err := c.LoadMap(ctxb); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctxb)
	f.hold = make(chan struct{})
	f.after = func(engine.NodeID, api.Method) error { cancel(); return nil }
	if _, err := c.Put(ctx, []byte("k"), nil); !errors.Is(err, shard.ErrAmbiguous) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(f.hold)
}

// A node that hangs holds up nobody who has named others too.
func TestServerThatHangs(t *testing.T) {
	f := newFake(t)
	f.put("k")
	c := New(hangs{f}, []string{"stopped", "stopped too", "seed"}, Config{After: func(_ time.Duration, fn func()) { time.AfterFunc(0, fn) }})
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctxb, 10*time.Second)
	defer cancel()
	if _, err := c.Get(ctx, []byte("k")); err != nil {
		t.Error(err)
	}
}

// hangs never answers for some addresses.
type hangs struct{ *fake }

func (h hangs) Send(node engine.NodeID, addr string, method api.Method, flags uint8, deadline time.Time, body []byte, done func([]byte, error)) {
	if !strings.HasPrefix(addr, "stopped") {
		h.fake.Send(node, addr, method, flags, deadline, body, done)
	}
}

func TestNotInitialized(t *testing.T) {
	f := newFake(t)
	f.noInit = true
	c := f.client(Config{})
	if _, err := c.Put(ctxb, []byte("k"), nil); !errors.Is(err, shard.ErrNotInitialized) {
		t.Error(err)
	}
	if _, err := c.DeleteRange(ctxb, nil, nil); !errors.Is(err, shard.ErrNotInitialized) {
		t.Error(err)
	}
}

func TestClosed(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	f.before = func(_ engine.NodeID, m api.Method) error {
		if m == api.MethodWrite {
			_ = c.Close()
			return errNotSent
		}
		return nil
	}
	if _, err := c.Put(ctxb, []byte("k"), nil); !errors.Is(err, ErrClosed) || errors.Is(err, shard.ErrAmbiguous) {
		t.Error(err)
	}
}

// A first attempt is resent under a new session; a retry is ambiguous (rule Cluster2).
func TestSessionExpired(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{})
	if _, err := c.Add(ctxb, []byte("k"), 1); err != nil {
		t.Fatal(err)
	}
	first := f.last.Session
	f.expired[first] = true
	if n, err := c.Add(ctxb, []byte("k"), 1); err != nil || n != 2 || f.last.Session == first || f.last.Seq != 1 {
		t.Fatal(n, err, f.last)
	}
	second := f.last.Session
	f.before = func(_ engine.NodeID, m api.Method) error {
		if m == api.MethodWrite && !f.expired[second] {
			f.expired[second] = true
			return errLost
		}
		return nil
	}
	if _, err := c.Add(ctxb, []byte("k"), 1); !errors.Is(err, shard.ErrAmbiguous) || !errors.Is(err, shard.ErrSessionExpired) {
		t.Error(err)
	}
	if n, err := c.Add(ctxb, []byte("k"), 1); err != nil || n != 3 || f.last.Session == second {
		t.Error(n, err)
	}
}

// A client whose clock is wrong learns the shards' time from the refusal.
func TestWrongClock(t *testing.T) {
	f := newFake(t)
	c := f.client(Config{Now: func() time.Time { return time.Now().Add(-5 * time.Hour) }})
	c.Map().SetLeader(10, 1)
	if err := c.LoadMap(ctxb); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if n, err := c.Add(ctxb, []byte("k"), 1); err != nil || n != int64(i+1) {
			t.Fatal(n, err)
		}
	}
	if n := f.count(api.MethodWrite); n != 4 {
		t.Errorf("%d attempts for 3 writes", n)
	}
}

func TestSessionsRenewAndWindow(t *testing.T) {
	now := time.Now()
	s := newSessions(func() time.Time { return now })
	first, seq := s.begin()
	if seq != 1 || first.id.Issued() != now.UnixMilli() {
		t.Fatal(seq, first.id)
	}
	for i := range 200 {
		_, q := s.begin()
		if i%2 == 0 {
			s.end(first, q)
		}
	}
	if l := s.lowest(first); l != 1 {
		t.Errorf("lowest %d", l)
	}
	s.end(first, 1)
	if l := s.lowest(first); l != 3 {
		t.Errorf("lowest %d", l)
	}
	now = now.Add(shard.SessionHorizon / 2)
	second, seq := s.begin()
	if second == first || seq != 1 {
		t.Error("not renewed")
	}
	for range shard.SessionWindow - 1 { // the first stays unanswered
		_, q := s.begin()
		s.end(second, q)
	}
	if third, _ := s.begin(); third == second {
		t.Error("window exceeded")
	}
	s.end(second, 1)
	if l := s.lowest(second); l != shard.SessionWindow+1 {
		t.Errorf("lowest %d", l)
	}
}

// Scans over shards that split and merge under way see every key once.
func TestScanOverChangingShards(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 12 {
		f := newFake(t, "f", "m")
		var want []string
		for i := range 60 {
			k := fmt.Sprintf("%c%d", 'a'+i%20, i/20)
			if i < 20 {
				k = k[:1] // where shards are split
			}
			want = append(want, k)
		}
		f.put(want...)
		c := f.client(Config{})
		n := 0
		change := func(_ engine.NodeID, m api.Method) error {
			if m != api.MethodScan {
				return nil
			}
			n++
			key := fmt.Sprintf("%c", 'b'+rnd.IntN(20))
			if rnd.IntN(3) == 0 {
				f.mu.Lock()
				if i := rnd.IntN(len(f.descs)-1) + 1; true {
					key = string(f.descs[i].Start)
				}
				f.mu.Unlock()
				f.merge(key)
			} else {
				f.split(key, engine.ShardID(100+n))
			}
			if rnd.IntN(4) == 0 {
				return errLost
			}
			return nil
		}
		f.before, f.after = change, change
		for _, reverse := range []bool{false, true} {
			opts := []ReadOption{WithPageSize(1 + rnd.IntN(4))}
			if reverse {
				opts = append(opts, Reverse())
			}
			var got []string
			for e, err := range c.Scan(ctxb, nil, nil, opts...) {
				if err != nil {
					t.Fatalf("seed %d round %d: %v", seed, round, err)
				}
				got = append(got, string(e.Key))
			}
			if len(got) != len(want) {
				t.Fatalf("seed %d round %d reverse %v: %d keys of %d", seed, round, reverse, len(got), len(want))
			}
			for i := 1; i < len(got); i++ {
				if got[i-1] >= got[i] != reverse {
					t.Fatalf("seed %d round %d: %q before %q", seed, round, got[i-1], got[i])
				}
			}
		}
	}
}

func TestScanOptions(t *testing.T) {
	f := newFake(t, "c", "f")
	f.put("a", "b", "c", "d", "e", "f", "g")
	c := f.client(Config{})
	keys := func(start, end string, opts ...ReadOption) string {
		var out []string
		for e, err := range c.Scan(ctxb, []byte(start), []byte(end), opts...) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(e.Key))
		}
		return strings.Join(out, "")
	}
	for _, tc := range []struct {
		got, want string
	}{
		{keys("", ""), "abcdefg"}, {keys("b", "f"), "bcde"}, {keys("b", "f", Reverse()), "edcb"}, {keys("", "", WithLimit(4)), "abcd"},
		{keys("", "", WithLimit(4), Reverse()), "gfed"}, {keys("x", ""), ""}, {keys("d", "d"), ""}, {keys("c", "f", Reverse(), WithPageSize(1)), "edc"},
		{keys("", "", WithStale(time.Second)), "abcdefg"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q want %q", tc.got, tc.want)
		}
	}
	if n, err := c.DeleteRange(ctxb, []byte("b"), []byte("g")); err != nil || n != 5 || keys("", "") != "ag" {
		t.Error(n, err, keys("", ""))
	}
}

// A page may end at a longest key: the next one starts just behind it, one byte longer than a key may be.
func TestRangesOverLongestKeys(t *testing.T) {
	f := newFake(t, "k")
	c := f.client(Config{})
	var want []string
	for i := range 5 {
		k := strings.Repeat("k", shard.KeyBytesMax-1) + string(rune('a'+i))
		want = append(want, k)
		f.put(k)
	}
	f.pageMax = 2
	for _, opts := range [][]ReadOption{{WithPageSize(1)}, {WithPageSize(1), Reverse()}} {
		var got []string
		for e, err := range c.Scan(ctxb, nil, nil, opts...) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(e.Key))
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%d keys, want %d", len(got), len(want))
		}
	}
	if n, err := c.DeleteRange(ctxb, nil, append([]byte(want[3]), 0)); err != nil || n != 4 {
		t.Error(n, err)
	}
	// What no key can reach is refused at once, not asked for until the time is up.
	long := bytes.Repeat([]byte("x"), shard.KeyBytesMax+2)
	for _, opts := range [][]ReadOption{nil, {Reverse()}} {
		for _, err := range c.Scan(ctxb, long, append(long, 0), opts...) {
			if !errors.Is(err, shard.ErrTooLarge) {
				t.Error(err)
			}
		}
	}
	if _, err := c.DeleteRange(ctxb, long, nil); !errors.Is(err, shard.ErrTooLarge) {
		t.Error(err)
	}
}

func TestDeleteRangeOverChangingShards(t *testing.T) {
	f := newFake(t, "c", "f")
	for i := range 50 {
		f.put(fmt.Sprintf("%c%d", 'a'+i%10, i))
	}
	c := f.client(Config{})
	n := engine.ShardID(100)
	f.before = func(_ engine.NodeID, m api.Method) error {
		if m == api.MethodWrite {
			n++
			f.split(fmt.Sprintf("%c", 'a'+int(n)%10), n)
		}
		return nil
	}
	if n, err := c.DeleteRange(ctxb, nil, nil); err != nil || n != 50 || len(f.items) != 0 {
		t.Error(n, err, f.items)
	}
}

func TestMultiGetAcrossSplits(t *testing.T) {
	f := newFake(t)
	var keys [][]byte
	for i := range 30 {
		keys = append(keys, fmt.Appendf(nil, "%c%d", 'a'+i%10, i))
		f.put(string(keys[i]))
	}
	c := f.client(Config{})
	n := engine.ShardID(100)
	f.before = func(_ engine.NodeID, m api.Method) error {
		if m == api.MethodRead && n < 110 {
			n++
			f.split(fmt.Sprintf("%c", 'a'+int(n)%10), n)
		}
		return nil
	}
	es, err := c.MultiGet(ctxb, keys)
	if err != nil {
		t.Fatal(err)
	}
	for i := range keys {
		if !bytes.Equal(es[i].Key, keys[i]) || string(es[i].Value) != "v"+string(keys[i]) {
			t.Errorf("%q: %+v", keys[i], es[i])
		}
	}
}

// Stale reads go to any replica; when all of them are too stale, to the leader.
func TestStaleReads(t *testing.T) {
	f := newFake(t)
	f.put("k")
	c := f.client(Config{})
	nodes := map[engine.NodeID]bool{}
	f.before = func(n engine.NodeID, m api.Method) error {
		if m == api.MethodRead {
			nodes[n] = true
		}
		return nil
	}
	for range 100 {
		if _, err := c.Get(ctxb, []byte("k"), WithStale(time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if len(nodes) != 3 {
		t.Errorf("asked %v", nodes)
	}
	f.before = times(3, api.MethodRead, shard.ErrStale)
	if _, err := c.Get(ctxb, []byte("k"), WithStale(time.Second)); err != nil {
		t.Error(err)
	}
}

// Many writes at once, with every fault there is: each acknowledged add is in the sum once, and no other.
func TestChaosExactlyOnce(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	var mu sync.Mutex
	dice := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rnd.IntN(n)
	}
	f := newFake(t, "g", "p")
	faults := []error{errLost, errNotSent, shard.ErrOverloaded, &shard.NotLeaderError{Leader: 2}, &shard.UnavailableError{}, shard.ErrAmbiguous}
	f.before = func(_ engine.NodeID, m api.Method) error {
		switch r := dice(20); {
		case r < len(faults):
			return faults[r]
		case r == 10:
			f.split(fmt.Sprintf("%c%d", 'a'+dice(26), dice(10)), engine.ShardID(1000+f.count(api.MethodWrite)))
		case r == 11:
			f.mu.Lock()
			key := string(f.descs[1+dice(len(f.descs)-1)].Start)
			f.mu.Unlock()
			f.merge(key)
		case r == 12:
			f.mu.Lock()
			d := f.descs[dice(len(f.descs))]
			f.leaders[d.Shard] = engine.NodeID(1 + dice(3))
			f.mu.Unlock()
		}
		return nil
	}
	f.after = func(_ engine.NodeID, m api.Method) error {
		if m == api.MethodWrite && dice(5) == 0 {
			return errLost
		}
		return nil
	}
	c := f.client(Config{})
	var wg sync.WaitGroup
	var acked atomic.Int64
	for i := range 3000 {
		wg.Add(1)
		w := &shard.Write{Ops: []shard.Op{{Kind: shard.OpAdd, Key: fmt.Appendf(nil, "%c%d", 'a'+i%26, i%10), Delta: 1}}}
		c.GoWrite(ctxb, w, func(res *shard.Result, err error) {
			defer wg.Done()
			if err != nil {
				t.Errorf("seed %d: %v", seed, err)
				return
			}
			acked.Add(1)
		})
	}
	wg.Wait()
	sum := 0
	for _, e := range f.items {
		n := 0
		_, _ = fmt.Sscan(string(e.Value), &n)
		sum += n
	}
	if int64(sum) != acked.Load() || sum != 3000 {
		t.Errorf("seed %d: sum %d, acknowledged %d", seed, sum, acked.Load())
	}
}
