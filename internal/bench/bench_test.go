package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cluster(t *testing.T, shards int) (*clienttest.Cluster, []client.Shard) {
	t.Helper()
	c := clienttest.New()
	if _, err := c.Init(t.Context(), shards, 3); err != nil {
		t.Fatal(err)
	}
	s, err := c.Shards(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return c, s
}

func settings(w string) Settings {
	return Settings{Workload: w, Inflight: 4, ValueSize: 16, Keys: 100, DurationS: 1, ScanLimit: 10, Load: true, Seed: 1}
}

// TestWorkloads runs each workload for a virtual second against requests of 10 ms.
func TestWorkloads(t *testing.T) {
	for _, name := range Names() {
		synctest.Test(t, func(t *testing.T) {
			c, shards := cluster(t, 7)
			r, err := New(c, shards, settings(name))
			if err != nil {
				t.Fatal(err)
			}
			if r.NeedsLoad() {
				var done atomic.Int64
				if err := r.Load(t.Context(), &done); err != nil || done.Load() != 100 {
					t.Fatal(err, done.Load())
				}
			}
			c.Hold = func(string) { time.Sleep(10 * time.Millisecond) }
			res := r.Run(t.Context())
			if res.Errors != 0 || res.NotFound > 3 || res.NotSent != 0 {
				t.Errorf("%s: %+v", name, res)
			}
			// a read-modify-write is two requests,
			// and the end of the run may fall together with that of the last requests
			if res.Ops > 404 || name != "ycsb-f" && res.Ops < 400 {
				t.Errorf("%s: %d requests in a second, 4 in flight of 10 ms: want 400", name, res.Ops)
			}
			if res.P50us < 9990 || res.P50us > 20100 {
				t.Errorf("%s: p50 %d", name, res.P50us)
			}
			sum := int64(0)
			for _, n := range res.ByOp {
				sum += n
			}
			if sum != res.Ops {
				t.Errorf("%s: by op %v of %d", name, res.ByOp, res.Ops)
			}
		})
	}
}

// TestNoCoordinatedOmission stalls a cluster for half of the time. The closed loop hardly notices; the open loop charges every
// request that should have run.
func TestNoCoordinatedOmission(t *testing.T) {
	run := func(rate float64, async bool) (res Result) {
		synctest.Test(t, func(t *testing.T) {
			c, shards := cluster(t, 3)
			s := settings("write")
			s.Rate, s.DurationS, s.Inflight = rate, 10, 100
			r, err := New(withAsync(c, async), shards, s)
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			c.Hold = func(string) {
				if at := time.Since(begin); at > time.Second && at < 6*time.Second {
					time.Sleep(6*time.Second - at)
				}
				time.Sleep(time.Millisecond)
			}
			res = r.Run(t.Context())
		})
		return res
	}
	for _, async := range []bool{false, true} {
		closed, open := run(0, async), run(1000, async)
		if closed.P50us > 2000 {
			t.Errorf("closed loop: p50 %d µs", closed.P50us)
		}
		if open.P90us < 3_500_000 || open.Maxus < 4_500_000 {
			t.Errorf("open loop: p90 %d µs, max %d µs: the stall was omitted", open.P90us, open.Maxus)
		}
		if open.Ops+open.NotSent != 10_000 {
			t.Errorf("open loop: %d + %d requests of 10000", open.Ops, open.NotSent)
		}
	}
}

func TestOverloadedOpenLoopCountsWhatWasNotSent(t *testing.T) {
	for _, async := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c, shards := cluster(t, 3)
			s := settings("write")
			s.Rate, s.Inflight = 1000, 1
			r, err := New(withAsync(c, async), shards, s)
			if err != nil {
				t.Fatal(err)
			}
			c.Hold = func(string) { time.Sleep(100 * time.Millisecond) }
			if res := r.Run(t.Context()); res.Ops < 10 || res.Ops > 11 || res.Ops+res.NotSent != 1000 {
				t.Errorf("%d sent, %d not", res.Ops, res.NotSent)
			}
		})
	}
}

func TestErrorsAreCounted(t *testing.T) {
	c, shards := cluster(t, 3)
	s := settings("write")
	s.DurationS = 0.02
	r, err := New(c, shards, s)
	if err != nil {
		t.Fatal(err)
	}
	c.Fail = func(string, []byte) error { return client.ErrUnavailable }
	res := r.Run(t.Context())
	if res.Ops != 0 || res.Errors == 0 || !strings.Contains(res.FirstError, "unavailable") {
		t.Errorf("%+v", res)
	}
}

func TestRunEndsWithContext(t *testing.T) {
	for _, async := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c, shards := cluster(t, 3)
			s := settings("write")
			s.DurationS, s.Rate = 3600, 0.1
			r, err := New(withAsync(c, async), shards, s)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if res := r.Run(ctx); res.Duration > 2 {
				t.Errorf("ran for %v s", res.Duration)
			}
		})
	}
}

// TestKeysCoverShards checks that key i lies in shard i mod n, for shards of all widths.
func TestKeysCoverShards(t *testing.T) {
	for _, n := range []int{1, 2, 3, 48, 1000, 10000} {
		_, shards := cluster(t, n)
		ks, err := newKeySpace(shards, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(ks.starts) != n {
			t.Fatalf("%d shards used of %d", len(ks.starts), n)
		}
		for i := range uint64(2 * n) {
			k, s := ks.append(nil, i), shards[i%uint64(n)]
			if bytes.Compare(k, s.Start) < 0 || len(s.End) > 0 && bytes.Compare(k, s.End) >= 0 {
				t.Fatalf("key %d %q is outside [%q, %q)", i, k, s.Start, s.End)
			}
		}
	}
	if _, ok := client.KeyIn(client.Shard{Start: []byte("a"), End: []byte("a\x00")}, "x"); ok {
		t.Error("a shard of one key has room")
	}
}

func TestZipfian(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	z := newZipfian(1000, false)
	hits := make([]int, 1000)
	for range 200_000 {
		hits[z.rank(rng)]++
	}
	// by the law: 1/zeta = 13.4 % for the first, half of that about for the second
	if f := float64(hits[0]) / 200_000; f < 0.12 || f > 0.15 {
		t.Errorf("the most popular key has %.3f", f)
	}
	if hits[1] < hits[0]/3 || hits[1] > hits[0]*2/3 || hits[999] > hits[0]/20 {
		t.Errorf("hits %v … %v", hits[:4], hits[996:])
	}
	latest := newZipfian(1000, true)
	newest := 0
	for range 10_000 {
		k := latest.next(rng, 1500)
		if k >= 1500 {
			t.Fatalf("key %d of 1500", k)
		}
		if k >= 1400 {
			newest++
		}
	}
	if newest < 5000 {
		t.Errorf("%d of 10000 among the newest hundred", newest)
	}
	for range 1000 {
		if k := newZipfian(1, false).next(rng, 1); k != 0 {
			t.Fatal(k)
		}
	}
}

func TestRefuses(t *testing.T) {
	c, shards := cluster(t, 3)
	for _, change := range []func(*Settings){
		func(s *Settings) { s.Workload = "ycsb-g" }, func(s *Settings) { s.Inflight = 0 }, func(s *Settings) { s.Keys = 0 },
		func(s *Settings) { s.Distribution = "normal" }, func(s *Settings) { s.DurationS = 0 }, func(s *Settings) { s.Rate = -1 },
	} {
		s := settings("write")
		change(&s)
		if _, err := New(c, shards, s); err == nil {
			t.Errorf("%+v accepted", s)
		}
	}
}

// TestJSON holds the names that scripts rely on.
func TestJSON(t *testing.T) {
	b, err := json.Marshal(Result{})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"ops", "ops_per_s", "errors", "p50_us", "p90_us", "p99_us", "p999_us", "max_us", "duration_s", "settings"} {
		if _, ok := m[k]; !ok {
			t.Errorf("no %s in %s", k, b)
		}
	}
}

// asyncCluster answers single-key requests from other goroutines.
type asyncCluster struct {
	*clienttest.Cluster
	calls atomic.Int64
}

func (c *asyncCluster) GoGet(ctx context.Context, key []byte, done func(error)) {
	c.calls.Add(1)
	go func() { _, err := c.Get(ctx, key); done(err) }()
}

func (c *asyncCluster) GoPut(ctx context.Context, key, value []byte, done func(error)) {
	c.calls.Add(1)
	go func() { _, err := c.Put(ctx, key, value); done(err) }()
}

func withAsync(c *clienttest.Cluster, async bool) client.KV {
	if async {
		return &asyncCluster{Cluster: c}
	}
	return c
}

// TestAsync runs the closed loop without a goroutine per request.
func TestAsync(t *testing.T) {
	for _, name := range []string{"mixed", "ycsb-d"} {
		synctest.Test(t, func(t *testing.T) {
			inner, shards := cluster(t, 7)
			c := &asyncCluster{Cluster: inner}
			r, err := New(c, shards, settings(name))
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Load(t.Context(), new(atomic.Int64)); err != nil {
				t.Fatal(err)
			}
			inner.Hold = func(string) { time.Sleep(10 * time.Millisecond) }
			res := r.Run(t.Context())
			if res.Errors != 0 || res.NotFound > 3 || res.Ops+res.NotFound != c.calls.Load() || res.Ops < 396 || res.Ops > 404 {
				t.Errorf("%s: %d calls, %+v", name, c.calls.Load(), res)
			}
		})
	}
}
