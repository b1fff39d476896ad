package shard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// replica drives a Machine as a lane does: cold values by read jobs, checkpoints into a store.
type replica struct {
	t     testing.TB
	env   *Env
	db    *state.DB
	m     *Machine
	frozn *state.Change
	cold  int // entries that needed a read
}

func bornDescriptor() *Descriptor {
	d := testDescriptor()
	d.Version, d.ConfVersion = 1, 1
	return &d
}

func newReplica(t testing.TB, d *Descriptor, id engine.ReplicaID) *replica {
	t.Helper()
	r := &replica{t: t, env: &Env{}, db: state.NewMem(state.Options{})}
	tablet, err := r.db.AllocTablet()
	r.must(err)
	rec, err := NewReplicaRecord(d, id, tablet)
	r.must(err)
	r.must(r.db.Write([]state.Change{{Record: rec, NewTablet: true}}, 0))
	r.open()
	return r
}

func (r *replica) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// open makes the machine from the store, as a restart does.
func (r *replica) open() {
	r.t.Helper()
	recs, err := r.db.Records()
	r.must(err)
	if r.m, err = Open(r.env, &recs[0]); err != nil {
		r.t.Fatal(err)
	}
	r.frozn = nil
}

func (r *replica) freeze() {
	if c, ok := r.m.Freeze(); ok {
		r.frozn = &c
	}
}

func (r *replica) checkpoint() {
	if r.frozn == nil {
		r.freeze()
	}
	r.must(r.db.Write([]state.Change{*r.frozn}, 0))
	r.m.Release()
	r.frozn = nil
}

func (r *replica) apply(payload []byte) Answer {
	r.t.Helper()
	id := engine.LogID{Term: 1, Index: r.m.Applied().Index + 1}
	ans, err := r.applyAt(id, payload)
	r.must(err)
	return ans
}

func (r *replica) applyAt(id engine.LogID, payload []byte) (ans Answer, err error) {
	r.t.Helper()
	if err = r.m.Apply(id, payload, nil, &ans); !errors.Is(err, ErrCold) {
		var fresh Machine
		if fresh.setDesc(r.m.desc); fresh.within != r.m.within {
			r.t.Fatalf("%v, but keys within %x are taken for its own", r.m.desc, r.m.within)
		}
		return ans, err
	}
	r.cold++
	before := r.m.Record()
	var need Need
	if !r.m.Collect(payload, &need) || need.Empty() {
		r.t.Fatal("cold, and nothing is needed")
	}
	var job state.ReadJob
	r.m.FillNeed(&need, &job)
	r.db.RunJob(&job)
	r.must(job.Err)
	if !reflect.DeepEqual(before, r.m.Record()) {
		r.t.Fatal("a cold apply has changed something")
	}
	return ans, r.m.Apply(id, payload, &job, &ans)
}

// scan reads a whole range, page by page.
func (r *replica) scan(q Scan) (out []Entry) {
	r.t.Helper()
	for range 10_000 {
		r.must(r.m.CheckScan(&q))
		var job state.ReadJob
		r.m.FillScan(&q, &job)
		r.db.RunJob(&job)
		if !r.m.Valid(&job) {
			r.t.Fatalf("job is not valid: %v", job.Err)
		}
		b, _ := r.m.FinishScan(&q, &job, 0, nil)
		var p Page
		r.must(DecodePage(b, &p))
		out = append(out, p.Entries...)
		if p.Done || len(p.CompleteTo) == 0 {
			return out
		}
		if q.Reverse {
			q.End = p.CompleteTo
		} else {
			q.Start = p.CompleteTo
		}
		if q.Reverse && bytes.Equal(q.End, r.m.Desc().Start) || !q.Reverse && bytes.Equal(q.Start, r.m.Desc().End) {
			return out
		}
	}
	r.t.Fatal("scan does not end")
	return nil
}

func (r *replica) content() string {
	return fmt.Sprintf("%v", r.scan(Scan{Start: []byte("b"), End: []byte("m"), Limit: 7}))
}

var testStamp = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMilli()

func entryOf(stamp int64, w Write) []byte {
	w.Shard = 7
	return AppendWriteEntry(nil, stamp, AppendWrite(nil, &w))
}

// model is the naive state machine.
type model struct {
	items   map[string]state.Item
	counter uint64
	time    int64
}

func (mo *model) live(key []byte) (state.Item, bool) {
	it, ok := mo.items[string(key)]
	if !ok || it.Expire != 0 && it.Expire <= mo.time {
		return state.Item{}, false
	}
	return it, true
}

func (mo *model) apply(stamp int64, w *Write) (res Result) {
	mo.time = max(mo.time, stamp)
	for i, c := range w.Conditions {
		it, ok := mo.live(c.Key)
		var holds bool
		switch c.Kind {
		case ConditionExists:
			holds = ok
		case ConditionAbsent:
			holds = !ok
		case ConditionVersion:
			holds = it.Version == c.Version
		case ConditionValue:
			holds = ok && string(it.Value) == string(c.Value)
		}
		if !holds {
			return Result{Outcome: OutcomeConditionFailed, Failed: i, Version: it.Version}
		}
	}
	for i, o := range w.Ops {
		if o.Kind != OpAdd {
			continue
		}
		it, ok := mo.live(o.Key)
		n, err := strconv.ParseInt(string(it.Value), 10, 64)
		if ok && err != nil {
			return Result{Outcome: OutcomeNotInteger, Failed: i}
		}
		res.Values = append(res.Values, n+o.Delta)
	}
	mo.counter++
	res.Version = mo.counter
	add := 0
	for _, o := range w.Ops {
		switch o.Kind {
		case OpPut:
			e := o.Expire
			if e < 0 {
				e = mo.time - e
			}
			mo.items[string(o.Key)] = state.Item{Version: mo.counter, Expire: e, Value: bytes.Clone(o.Value)}
		case OpDelete:
			delete(mo.items, string(o.Key))
		case OpAdd:
			old, ok := mo.live(o.Key)
			if !ok {
				old.Expire = 0
			}
			mo.items[string(o.Key)] = state.Item{Version: mo.counter, Expire: old.Expire, Value: strconv.AppendInt(nil, res.Values[add], 10)}
			add++
		case OpDeleteRange:
			var keys []string
			for k := range mo.items {
				if k >= string(o.Key) && k < string(o.End) {
					keys = append(keys, k)
				}
			}
			slices.Sort(keys)
			if n := int(o.Limit); len(keys) >= n {
				res.More, res.Next = true, []byte(keys[n-1]+"\x00")
				keys = keys[:n]
			}
			for _, k := range keys {
				delete(mo.items, k)
			}
			res.Values = []int64{int64(len(keys))}
		}
	}
	return res
}

func (mo *model) content() string {
	es := []Entry(nil)
	for k, it := range mo.items {
		if _, ok := mo.live([]byte(k)); ok {
			es = append(es, Entry{Key: []byte(k), Value: it.Value, Version: it.Version, Expire: it.Expire})
		}
	}
	slices.SortFunc(es, func(a, b Entry) int { return bytes.Compare(a.Key, b.Key) })
	return fmt.Sprintf("%v", es)
}

type gen struct {
	*rand.Rand
	stamp    int64
	sessions [3]SessionID
	seq      [3]uint64
}

func (g *gen) key() []byte { return fmt.Appendf(nil, "%c%02d", 'b'+g.IntN(10), g.IntN(6)) }

func (g *gen) write() Write {
	var w Write
	if g.IntN(2) == 0 {
		i := g.IntN(len(g.sessions))
		g.seq[i]++
		w.Session, w.Seq = g.sessions[i], g.seq[i]
		w.Lowest = max(1, w.Seq-min(w.Seq-1, uint64(g.IntN(20))))
	}
	if g.IntN(12) == 0 {
		a, b := g.key(), g.key()
		if bytes.Compare(a, b) > 0 {
			a, b = b, a
		}
		w.Ops = []Op{{Kind: OpDeleteRange, Key: a, End: append(b, 0), Limit: uint64(1 + g.IntN(8))}}
		return w
	}
	for range g.IntN(3) * g.IntN(2) {
		c := Condition{Kind: ConditionKind(1 + g.IntN(4)), Key: g.key()}
		switch c.Kind {
		case ConditionVersion:
			c.Version = uint64(g.IntN(50))
		case ConditionValue:
			c.Value = g.value()
		}
		w.Conditions = append(w.Conditions, c)
	}
	used := map[string]bool{}
	for range 1 + g.IntN(3) {
		o := Op{Kind: []OpKind{OpPut, OpPut, OpDelete, OpAdd}[g.IntN(4)], Key: g.key()}
		if used[string(o.Key)] {
			continue
		}
		used[string(o.Key)] = true
		switch o.Kind {
		case OpPut:
			o.Value = g.value()
			o.Expire = []int64{0, 0, 0, -int64(1 + g.IntN(200)), g.stamp + int64(g.IntN(200))}[g.IntN(5)]
		case OpAdd:
			o.Delta = int64(g.IntN(100) - 50)
		}
		w.Ops = append(w.Ops, o)
	}
	return w
}

func (g *gen) value() []byte {
	if g.IntN(2) == 0 {
		return strconv.AppendInt(nil, int64(g.IntN(5)), 10)
	}
	return bytes.Repeat([]byte{byte('a' + g.IntN(3))}, g.IntN(40))
}

// Random mini-transactions against the naive model, on two replicas that are checkpointed and restarted at different times.
func TestMachineAgainstModel(t *testing.T) {
	for round := range 12 {
		seed := uint64(round)
		if round >= 8 {
			seed = rand.Uint64()
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { modelRound(t, seed) })
	}
}

func modelRound(t *testing.T, seed uint64) {
	g := &gen{Rand: rand.New(rand.NewPCG(seed, 1)), stamp: testStamp}
	for i := range g.sessions {
		g.sessions[i] = NewSessionID(testStamp+int64(i), g.Uint64())
	}
	mo := &model{items: map[string]state.Item{}}
	a, b := newReplica(t, bornDescriptor(), 1), newReplica(t, bornDescriptor(), 2)
	var log [][]byte
	for step := range 600 {
		g.stamp += int64(g.IntN(30) - 5)
		w := g.write()
		p := entryOf(g.stamp, w)
		if g.IntN(20) == 0 {
			w, p = Write{}, AppendTimeEntry(nil, g.stamp)
		}
		log = append(log, p)
		ra, rb := a.apply(p), b.apply(p)
		if len(w.Ops) > 0 {
			want := mo.apply(g.stamp, &w)
			if fmt.Sprint(ra.Result) != fmt.Sprint(want) || ra.Refused != nil || fmt.Sprint(ra) != fmt.Sprint(rb) {
				t.Fatalf("step %d: %+v\n got %+v\n and %+v\nwant %+v", step, w, ra, rb, want)
			}
		}
		mo.time = max(mo.time, g.stamp)
		for i, r := range []*replica{a, b} {
			switch g.IntN(30 + 20*i) {
			case 0:
				r.freeze()
			case 1, 2:
				r.checkpoint()
			case 3: // crash: the log is replayed from what the store holds
				live, records := r.content(), r.m.Record()
				r.open()
				for i := r.m.Applied().Index + 1; i <= records.Applied.Index; i++ {
					_, err := r.applyAt(engine.LogID{Term: 1, Index: i}, log[i-2])
					r.must(err)
				}
				if got := r.content(); got != live || !bytes.Equal(r.m.Record().Meta, records.Meta) {
					t.Fatalf("step %d: replayed to\n%s\nwant\n%s", step, got, live)
				}
			}
		}
		if g.IntN(10) == 0 {
			if got, want := a.content(), mo.content(); got != want {
				t.Fatalf("step %d:\n got %s\nwant %s", step, got, want)
			}
		}
	}
	if a.cold == 0 || b.cold == 0 {
		t.Error("no entry was cold")
	}
	sameState(t, a, b)
	reversed := a.scan(Scan{Start: []byte("b"), End: []byte("m"), Limit: 5, Reverse: true})
	slices.Reverse(reversed)
	if got := fmt.Sprintf("%v", reversed); got != mo.content() {
		t.Errorf("reverse scan:\n got %s\nwant %s", got, mo.content())
	}
}

// sameState checks that two replicas of a shard have identical records and contents.
func sameState(t *testing.T, a, b *replica) {
	t.Helper()
	ra, rb := a.m.Record(), b.m.Record()
	if !bytes.Equal(ra.Meta, rb.Meta) || ra.Applied != rb.Applied {
		t.Errorf("records differ:\n%x\n%x", ra.Meta, rb.Meta)
	}
	var sums []state.Content
	for _, r := range []*replica{a, b} {
		r.checkpoint()
		r.checkpoint()
		c, err := r.db.Checksum(r.m.Record())
		r.must(err)
		sums = append(sums, c)
	}
	if sums[0] != sums[1] {
		t.Errorf("checksums differ: %+v, %+v", sums[0], sums[1])
	}
}

func TestNewReplicaRecord(t *testing.T) {
	d := bornDescriptor()
	rec, err := NewReplicaRecord(d, 2, 5)
	if err != nil || rec.Applied != (engine.LogID{Term: 1, Index: 1}) || rec.Key != (store.Key{Shard: 7, Replica: 2}) ||
		len(rec.Extents) != 1 || rec.Extents[0].Tablet != 5 || len(rec.Membership.Membership.Voters[0]) != 3 {
		t.Fatalf("%+v, %v", rec, err)
	}
	if got, err := DescriptorOf(&rec); err != nil || !reflect.DeepEqual(got, d) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := NewReplicaRecord(d, 9, 5); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	d.ConfVersion = 2
	if _, err := NewReplicaRecord(d, 2, 5); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	for i := range rec.Meta {
		cut := rec
		cut.Meta = rec.Meta[:i]
		if _, err := Open(nil, &cut); !errors.Is(err, ErrBadRecord) {
			t.Fatalf("meta cut at %d: %v", i, err)
		}
	}
	dead := TombstoneRecord(rec.Key, rec.Applied)
	if _, err := Open(nil, &dead); !errors.Is(err, ErrBadRecord) {
		t.Error(err)
	}
}

func TestMembershipEntries(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	ms := &engine.Membership{Voters: [][]engine.Peer{{{Node: 11, Replica: 1}}}, Learners: []engine.Peer{{Node: 12, Replica: 2}}}
	r.must(r.m.ApplyBlank(engine.LogID{Term: 1, Index: 2}))
	before := r.m.Desc()
	r.must(r.m.ApplyMembership(engine.LogID{Term: 1, Index: 3}, ms))
	d := r.m.Desc()
	if d.ConfVersion != 2 || len(d.Replicas) != 2 || d.Replicas[1].Role != RoleLearner || before.ConfVersion != 1 || d.Version != 1 {
		t.Fatalf("%v, before %v", d, before)
	}
	r.checkpoint()
	r.open()
	if !reflect.DeepEqual(r.m.Desc(), d) || r.m.Membership().LogID.Index != 3 {
		t.Fatalf("after a restart %v", r.m.Desc())
	}
}

// A replica that skips what it does not understand is silently different from then on.
func TestUnknownCommandStops(t *testing.T) {
	bad := entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: []byte("c")}}})
	bad[len(bad)-7] = 99 // the kind of the operation
	for name, p := range map[string][]byte{"empty": nil, "reserved": {byte(CommandSplit), 1}, "short": {byte(CommandWrite)}, "operation": bad,
		"time with a body": append(AppendTimeEntry(nil, 1), 1), "later version": appendEntryHeader(nil, 99, testStamp),
		"split in an ordinary entry": AppendSplitEntry(nil, testStamp, splitOf(bornDescriptor(), "e"))} {
		r := newReplica(t, bornDescriptor(), 1)
		_, err := r.applyAt(engine.LogID{Term: 1, Index: 2}, p)
		if !errors.Is(err, ErrUnknownCommand) || r.m.Applied().Index != 1 || r.m.Stopped() == nil {
			t.Errorf("%s: %v, applied %v", name, err, r.m.Applied())
		}
		if _, err := r.applyAt(engine.LogID{Term: 1, Index: 2}, AppendTimeEntry(nil, 1)); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("%s: goes on: %v", name, err)
		}
		if err := r.m.CheckRead(&Read{}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: serves: %v", name, err)
		}
	}
}

// The same holds of splits and merges.
func TestUnknownBarrierStops(t *testing.T) {
	split := AppendSplitEntry(nil, testStamp, splitOf(bornDescriptor(), "e"))
	step := AppendMergeEntry(nil, CommandFreeze, testStamp, &MergeStep{Version: 1, ConfVersion: 1, Other: 50})
	id := engine.LogID{Term: 1, Index: 2}
	asSplit := func(m *Machine, p []byte) error { _, err := m.ApplySplit(id, p, new(Answer)); return err }
	asMerge := func(m *Machine, p []byte) error { _, err := m.ApplyMergeStep(id, p, new(Answer)); return err }
	for name, c := range map[string]struct {
		apply func(*Machine, []byte) error
		p     []byte
	}{
		"split with more":  {asSplit, append(bytes.Clone(split), 1)},
		"cut split":        {asSplit, split[:len(split)-1]},
		"no split":         {asSplit, step},
		"merge with more":  {asMerge, append(bytes.Clone(step), 1)},
		"cut merge":        {asMerge, step[:len(step)-1]},
		"later merge step": {asMerge, appendEntryHeader(nil, 99, testStamp)},
	} {
		r := newReplica(t, bornDescriptor(), 1)
		if err := c.apply(r.m, c.p); !errors.Is(err, ErrUnknownCommand) || r.m.Applied().Index != 1 || r.m.Stopped() == nil {
			t.Errorf("%s: %v, applied %v", name, err, r.m.Applied())
		}
		for i, err := range []error{asSplit(r.m, split), asMerge(r.m, step)} {
			if !errors.Is(err, ErrUnknownCommand) {
				t.Errorf("%s: goes on with %d: %v", name, i, err)
			}
		}
	}
}

// A page says how far it is complete: where the shard ends, if the scan goes on behind it. What is there is another shard's to say.
func TestPageEndsWithTheShard(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1) // [b, m)
	r.write(Write{Ops: []Op{{Kind: OpPut, Key: []byte("c")}}})
	for _, c := range []struct {
		q    Scan
		done bool
		to   string
	}{
		{Scan{Start: []byte("b"), End: []byte("m")}, true, ""},
		{Scan{Start: []byte("b"), End: []byte("d")}, true, ""},
		{Scan{Start: []byte("b"), End: []byte("z")}, false, "m"},
		{Scan{Start: []byte("b")}, false, "m"},
		{Scan{Reverse: true, Start: []byte("b"), End: []byte("m")}, true, ""},
		{Scan{Reverse: true, Start: []byte("a"), End: []byte("m")}, false, "b"},
		{Scan{Reverse: true, End: []byte("d")}, false, "b"},
	} {
		r.must(r.m.CheckScan(&c.q))
		var job state.ReadJob
		r.m.FillScan(&c.q, &job)
		r.db.RunJob(&job)
		b, _ := r.m.FinishScan(&c.q, &job, 0, nil)
		var p Page
		r.must(DecodePage(b, &p))
		if p.Done != c.done || string(p.CompleteTo) != c.to || len(p.Entries) != 1 {
			t.Errorf("%+v: done %v, complete up to %q, %d entries", c.q, p.Done, p.CompleteTo, len(p.Entries))
		}
	}
}

func TestApplyInOrder(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	for _, id := range []engine.LogID{{Term: 1, Index: 1}, {Term: 1, Index: 3}, {Term: 0, Index: 2}} {
		if _, err := r.applyAt(id, AppendTimeEntry(nil, 1)); !errors.Is(err, ErrOutOfOrder) {
			t.Errorf("%v: %v", id, err)
		}
	}
}

func TestMovedKeys(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	put := func(k string) Write { return Write{Ops: []Op{{Kind: OpPut, Key: []byte(k)}}} }
	out := put("z")
	ans := r.apply(entryOf(testStamp, out))
	var moved *MovedError
	if !errors.As(ans.Refused, &moved) || len(moved.Descriptors) != 1 || moved.NotApplied || r.m.Writes() != 0 {
		t.Fatalf("%+v", ans)
	}
	if err := r.m.CheckWrite(&out); !errors.Is(err, ErrShardMoved) {
		t.Error(err)
	}
	// Who does not own the first key knows nothing of earlier attempts: it vouches for nothing, and remembers nothing (rule Cluster1).
	out.Session, out.Seq, out.Lowest = NewSessionID(testStamp, 1), 1, 1
	ans = r.apply(entryOf(testStamp, out))
	if _, rows := r.m.Sessions(); !errors.As(ans.Refused, &moved) || moved.NotApplied || rows != 0 {
		t.Errorf("a first key that is elsewhere: %+v, %d rows", ans, rows)
	}
	// Of a batch whose other keys are elsewhere nothing is applied.
	half := Write{Ops: []Op{{Kind: OpPut, Key: []byte("c")}, {Kind: OpPut, Key: []byte("z")}}}
	if ans := r.apply(entryOf(testStamp, half)); !errors.Is(ans.Refused, ErrShardMoved) || r.m.Writes() != 0 {
		t.Errorf("a batch of which half is elsewhere: %+v, %d writes", ans, r.m.Writes())
	}
	if err := r.m.CheckWrite(&half); !errors.Is(err, ErrShardMoved) {
		t.Error(err)
	}
	for end, fits := range map[string]bool{"m": true, "d": true, "n": false, "": false} { // what was read before a split came in between
		if got := r.m.Fits(&state.ReadJob{Start: []byte("b"), End: []byte(end)}); got != fits {
			t.Errorf("a scan up to %q fits: %v", end, got)
		}
	}
	newer := put("c")
	newer.Version = 2
	if err := r.m.CheckWrite(&newer); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if err := r.m.CheckRead(&Read{Keys: [][]byte{[]byte("c"), []byte("a")}}); !errors.Is(err, ErrShardMoved) {
		t.Error(err)
	}
	for q, ok := range map[*Scan]bool{{Start: []byte("a")}: false, {Start: []byte("b")}: true, {Start: []byte("m")}: false,
		{Reverse: true}: false, {Reverse: true, End: []byte("m")}: true, {Reverse: true, End: []byte("b")}: false,
		{Reverse: true, End: []byte("n")}: false, {Reverse: true, End: []byte("b0")}: true} {
		if err := r.m.CheckScan(q); (err == nil) != ok {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

func TestReadsAndTime(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: []byte("c"), Value: []byte("v"), Expire: -100}, {Kind: OpDelete, Key: []byte("d")}}}))
	it, hit := r.m.Get([]byte("c"))
	if hit != state.Found || string(it.Value) != "v" || it.Expire != testStamp+100 {
		t.Fatalf("%+v %v", it, hit)
	}
	if _, hit := r.m.Get([]byte("d")); hit != state.Deleted {
		t.Error(hit)
	}
	if _, hit := r.m.Get([]byte("e")); hit != state.Miss {
		t.Error(hit)
	}
	if r.m.Due(it.Expire, testStamp+99) || !r.m.Due(it.Expire, testStamp+100) || r.m.Due(0, 1<<60) {
		t.Error("due")
	}
	q := Scan{Start: []byte("b"), End: []byte("m"), Limit: 10}
	var job state.ReadJob
	r.m.FillScan(&q, &job)
	r.db.RunJob(&job)
	if _, due := r.m.FinishScan(&q, &job, testStamp+100, nil); !due {
		t.Error("a scan shows what is due")
	}
	r.apply(AppendTimeEntry(nil, testStamp+100))
	if _, hit := r.m.Get([]byte("c")); hit != state.Deleted || r.m.Visible(&it) || r.m.Due(it.Expire, 1<<60) {
		t.Error("not expired")
	}
	r.apply(AppendTimeEntry(nil, testStamp)) // an older stamp does not turn time back
	if r.m.Time() != testStamp+100 || r.content() != "[]" {
		t.Errorf("time %d, content %s", r.m.Time(), r.content())
	}
}

// A value read before a checkpoint was committed must not be used after it (rule State1).
func TestPrefetchedBeforeCheckpointIsRefused(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	add := entryOf(testStamp, Write{Ops: []Op{{Kind: OpAdd, Key: []byte("c"), Delta: 1}}})
	r.apply(add)
	r.checkpoint()
	var need Need
	var job state.ReadJob
	r.m.Collect(add, &need)
	r.m.FillNeed(&need, &job)
	r.db.RunJob(&job)
	r.apply(add) // another one, meanwhile
	r.checkpoint()
	var ans Answer
	if err := r.m.Apply(engine.LogID{Term: 1, Index: r.m.Applied().Index + 1}, add, &job, &ans); !errors.Is(err, ErrCold) {
		t.Fatalf("applied with a stale value: %+v, %v", ans, err)
	}
	if ans := r.apply(add); ans.Values[0] != 3 {
		t.Errorf("%+v", ans)
	}
}

func TestCollectOverSeveralEntries(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	add := func(k string) []byte {
		return entryOf(testStamp, Write{Ops: []Op{{Kind: OpAdd, Key: []byte(k), Delta: 1}}})
	}
	var need Need
	batch := [][]byte{add("e"), add("c"), add("e"), AppendTimeEntry(nil, 1)}
	for _, p := range batch {
		if !r.m.Collect(p, &need) {
			t.Fatal("does not fit")
		}
	}
	if r.m.Collect(entryOf(testStamp, Write{Ops: []Op{{Kind: OpDeleteRange, Key: []byte("c")}}}), &need) {
		t.Error("a delete-range shares a job")
	}
	var job state.ReadJob
	r.m.FillNeed(&need, &job)
	r.db.RunJob(&job)
	if fmt.Sprintf("%q", job.Keys) != `["c" "e"]` {
		t.Errorf("%q", job.Keys)
	}
	for i, p := range batch {
		var ans Answer
		r.must(r.m.Apply(engine.LogID{Term: 1, Index: uint64(i + 2)}, p, &job, &ans))
		if i == 2 && ans.Values[0] != 2 {
			t.Errorf("the second add of e: %+v", ans)
		}
	}
}

// Deleting a range in bounded entries must find all keys even if most of them are already hidden by tombstones.
func TestDeleteRangeLoop(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	for i := range 100 {
		r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: fmt.Appendf(nil, "c%02d", i)}}}))
	}
	r.checkpoint()
	if keys, _ := r.m.Estimate(); keys != 100 {
		t.Errorf("estimate %d", keys)
	}
	start, total := []byte("c"), int64(0)
	for {
		ans := r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpDeleteRange, Key: []byte("c"), End: []byte("d"), Limit: 7}}}))
		total += ans.Values[0]
		if !ans.More {
			break
		}
		start = ans.Next
	}
	if total != 100 || r.content() != "[]" || len(start) != 4 {
		t.Errorf("%d deleted, left %s", total, r.content())
	}
	if keys, _ := r.m.Estimate(); keys != 0 {
		t.Errorf("estimate %d", keys)
	}
}

func TestAddEdges(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: []byte("c"), Value: []byte("9223372036854775806"), Expire: 1 << 60},
		{Kind: OpPut, Key: []byte("d"), Value: []byte("12x")}}}))
	add := func(k string, n int64) Answer {
		return r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpAdd, Key: []byte(k), Delta: n}}}))
	}
	if ans := add("c", 2); ans.Outcome != OutcomeNotInteger || !errors.Is(ans.Err(), ErrNotInteger) {
		t.Errorf("overflow: %+v", ans)
	}
	if ans := add("d", 1); ans.Outcome != OutcomeNotInteger {
		t.Errorf("no integer: %+v", ans)
	}
	if ans := add("c", 1); ans.Outcome != OutcomeApplied || ans.Values[0] != 9223372036854775807 {
		t.Errorf("%+v", ans)
	}
	if it, _ := r.m.Get([]byte("c")); it.Expire != 1<<60 {
		t.Errorf("expiry %d", it.Expire)
	}
	if w := r.m.Writes(); w != 2 {
		t.Errorf("%d writes counted", w)
	}
}

// A delete-range ends whatever its keys hold: the page that is prefetched has all keys up to its limit, not all that fit into some bytes.
func TestDeleteRangeOfLargeValues(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	for i := range 6 {
		r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: fmt.Appendf(nil, "c%d", i), Value: make([]byte, 1<<20)}}}))
	}
	r.checkpoint()
	if ans := r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpDeleteRange, Key: []byte("c"), End: []byte("d")}}})); ans.Values[0] != 6 || ans.More {
		t.Fatalf("%+v", ans)
	}
	if c := r.content(); c != "[]" {
		t.Fatal(c)
	}
}

// A condition brings no more of a value into memory than it is compared with.
func TestConditionsReadLittle(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	big := bytes.Repeat([]byte("7"), 1<<20)
	r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: []byte("c"), Value: big}, {Kind: OpPut, Key: []byte("d"), Value: []byte("42")}}}))
	r.checkpoint()
	w := entryOf(testStamp, Write{
		Conditions: []Condition{{Kind: ConditionExists, Key: []byte("c")}, {Kind: ConditionValue, Key: []byte("d"), Value: []byte("42")}},
		Ops:        []Op{{Kind: OpAdd, Key: []byte("d"), Delta: 1}},
	})
	var need Need
	var job state.ReadJob
	r.m.Collect(w, &need)
	r.m.FillNeed(&need, &job)
	r.db.RunJob(&job)
	for _, p := range job.Points {
		if len(p.Value) > 100 {
			t.Errorf("%d bytes of a value", len(p.Value))
		}
	}
	if ans := r.apply(w); ans.Outcome != OutcomeApplied || ans.Values[0] != 43 {
		t.Fatalf("%+v", ans)
	}
	for _, w := range []Write{
		{Conditions: []Condition{{Kind: ConditionValue, Key: []byte("c"), Value: big[:100]}}, Ops: []Op{{Kind: OpDelete, Key: []byte("c")}}},
		{Ops: []Op{{Kind: OpAdd, Key: []byte("c"), Delta: 1}}},
	} {
		if ans := r.apply(entryOf(testStamp, w)); ans.Outcome == OutcomeApplied {
			t.Fatalf("%+v", ans)
		}
	}
	whole := Write{Conditions: []Condition{{Kind: ConditionValue, Key: []byte("c"), Value: big}}, Ops: []Op{{Kind: OpDelete, Key: []byte("c")}}}
	if ans := r.apply(entryOf(testStamp, whole)); ans.Outcome != OutcomeApplied {
		t.Fatalf("%+v", ans)
	}
}

// What was prefetched for one entry may be too little of a value for another: comparing with it would say no here, and yes on a replica
// that has the key in memory. And a key that is compared with a long value makes no other key's value come (rule State1).
func TestPrefetchedValueIsCut(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	long := bytes.Repeat([]byte("x"), 1000)
	for _, k := range []string{"c", "d"} {
		r.apply(entryOf(testStamp, Write{Ops: []Op{{Kind: OpPut, Key: []byte(k), Value: long}}}))
	}
	r.checkpoint()
	del := []Op{{Kind: OpDelete, Key: []byte("e")}}
	exists := entryOf(testStamp, Write{Conditions: []Condition{{Kind: ConditionExists, Key: []byte("c")}}, Ops: del})
	equals := func(k string) []byte {
		return entryOf(testStamp, Write{Conditions: []Condition{{Kind: ConditionValue, Key: []byte(k), Value: long}}, Ops: del})
	}
	var need Need
	var job state.ReadJob
	r.m.Collect(exists, &need)
	r.m.Collect(equals("d"), &need)
	r.m.FillNeed(&need, &job)
	r.db.RunJob(&job)
	if c, d := len(job.Points[0].Value), len(job.Points[1].Value); c > 100 || d != len(long) {
		t.Errorf("%d and %d bytes were read", c, d)
	}
	var ans Answer
	id := engine.LogID{Term: 1, Index: r.m.Applied().Index + 1}
	r.must(r.m.Apply(id, exists, &job, &ans))
	id.Index++
	if err := r.m.Apply(id, equals("c"), &job, &ans); !errors.Is(err, ErrCold) {
		t.Fatalf("decided by a part of the value: %+v, %v", ans, err)
	}
	if ans := r.apply(equals("c")); ans.Outcome != OutcomeApplied {
		t.Errorf("%+v", ans)
	}
}

// TestMachineSize: a node has thousands of idle machines. 320 is a size that the allocator has; the next is 352.
func TestMachineSize(t *testing.T) {
	if size := unsafe.Sizeof(Machine{}); size > 320 {
		t.Errorf("a machine takes %d bytes", size)
	}
}
