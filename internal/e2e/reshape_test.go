package e2e

import (
	"context"
	bigendian "encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/router"
)

// probe is a load whose every answer counts: writers that put to keys spread over [0, keys), each at its own steady pace.
type probe struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	took   []probed
	errors atomic.Int64
	first  atomic.Pointer[error]
}

type probed struct {
	begin time.Time
	took  time.Duration
}

// startProbe starts writers that put one key each pause. Latency counts from when a write should have begun, so that a pause is seen by
// all the writes that it held up.
func startProbe(t *testing.T, kv client.KV, writers int, pause time.Duration, key func(*rand.Rand) []byte, value int) *probe {
	ctx, cancel := context.WithCancel(t.Context())
	p := &probe{cancel: cancel}
	for i := range writers {
		p.wg.Go(func() {
			p.write(ctx, kv, time.Duration(i)*pause/time.Duration(writers), pause, key, rand.New(rand.NewPCG(1, uint64(i))), value)
		})
	}
	return p
}

func (p *probe) write(ctx context.Context, kv client.KV, delay, pause time.Duration, key func(*rand.Rand) []byte, rng *rand.Rand, size int) {
	value := make([]byte, size)
	next := time.Now().Add(delay)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		_, err := kv.Put(wctx, key(rng), value)
		cancel()
		now := time.Now()
		if err != nil {
			p.errors.Add(1)
			p.first.CompareAndSwap(nil, &err)
		}
		p.mu.Lock()
		p.took = append(p.took, probed{next, now.Sub(next)})
		p.mu.Unlock()
		for next = next.Add(pause); next.Add(pause).Before(now); next = next.Add(pause) {
		}
		timer.Reset(time.Until(next))
	}
}

// stop ends the writers, and fails the test if one of their writes failed.
func (p *probe) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	p.wg.Wait()
	if n := p.errors.Load(); n > 0 {
		t.Errorf("%d writes failed, the first: %v", n, *p.first.Load())
	}
}

// between describes the writes that should have begun in a span of time.
func (p *probe) between(from, to time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []time.Duration
	for _, w := range p.took {
		if !w.begin.Before(from) && w.begin.Before(to) {
			list = append(list, w.took)
		}
	}
	if len(list) == 0 {
		return "no writes"
	}
	slices.Sort(list)
	at := func(q float64) time.Duration {
		return list[min(int(q*float64(len(list))), len(list)-1)].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("%d writes, p50 %v, p99 %v, longest %v", len(list), at(0.5), at(0.99), at(1))
}

// slow lists the slowest writes by when they began after from.
func (p *probe) slow(from time.Time, n int) (out string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := slices.Clone(p.took)
	slices.SortFunc(list, func(a, b probed) int { return int(b.took - a.took) })
	for _, w := range list[:min(n, len(list))] {
		out += fmt.Sprintf(" %v@%v", w.took.Round(time.Millisecond), w.begin.Sub(from).Round(time.Millisecond))
	}
	return out
}

// size is a number from the environment, for other sizes by hand.
func size(t *testing.T, name string, short, long int) int {
	if s := os.Getenv(name); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if full {
		return long
	}
	return short
}

// spreadKey is key i of n, spread evenly over the first bytes of the key space.
func spreadKey(i, n uint64) []byte {
	return bigendian.BigEndian.AppendUint64(nil, i*(^uint64(0)/n))
}

// fill puts n keys of valueBytes each.
func (c *cluster) fill(n, valueBytes int) {
	c.t.Helper()
	begin := time.Now()
	var next, failed atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			rng := rand.NewChaCha8([32]byte{1})
			value := make([]byte, valueBytes)
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				_, _ = rng.Read(value[:valueBytes/2])
				ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
				_, err := c.kv.Put(ctx, spreadKey(uint64(i*7919)%uint64(n), uint64(n)), value)
				cancel()
				if err != nil {
					failed.Add(1)
					first.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		c.t.Fatalf("filling: %v", *first.Load())
	}
	c.t.Logf("filled %d keys of %d bytes in %v", n, valueBytes, time.Since(begin).Round(time.Millisecond))
}

// openSessions has so many clients write to keys spread over the key space: each leaves a session in the table that a split divides.
func (c *cluster) openSessions(n, keys int) {
	c.t.Helper()
	begin := time.Now()
	pool := router.NewPool(router.Config{}.Transport)
	defer pool.Close()
	for i := range n {
		ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
		_, err := router.New(pool, c.Servers, router.Config{}).Put(ctx, spreadKey(uint64(i*keys/n), uint64(keys)), []byte("of a session"))
		cancel()
		if err != nil {
			c.t.Fatal(err)
		}
	}
	c.t.Logf("%d client sessions in %v", n, time.Since(begin).Round(time.Millisecond))
}

// tiled checks that the shards tile the key space exactly, each with a leader.
func (c *cluster) tiled(shards int) error {
	list, err := c.kv.Shards(c.t.Context(), 0)
	if err != nil {
		return err
	}
	if len(list) != shards {
		return fmt.Errorf("%d shards, want %d", len(list), shards)
	}
	var end []byte
	for i, s := range list {
		switch {
		case string(s.Start) != string(end):
			return fmt.Errorf("shard %d begins at %q, the one before ends at %q", s.ID, s.Start, end)
		case s.Leader == 0:
			return fmt.Errorf("shard %d has no leader", s.ID)
		case (len(s.End) == 0) != (i == len(list)-1):
			return fmt.Errorf("shard %d ends at %q", s.ID, s.End)
		}
		end = s.End
	}
	return nil
}

// TestSplitThousand splits one shard with data into 1,000 while it is written.
func TestSplitThousand(t *testing.T) {
	megabytes := size(t, "KILORAFT_E2E_MB", 16, 1024)
	parts := size(t, "KILORAFT_E2E_PARTS", 1000, 1000)
	c := start(t, 3, "--auto-split-size", "0", "--auto-split-load", "0")
	c.init(1)
	value := 4 << 10
	keys := megabytes << 20 / value
	c.fill(keys, value)
	c.openSessions(size(t, "KILORAFT_E2E_SESSIONS", 10, 1000), keys)
	id := c.shards()[0].ID
	p := startProbe(t, c.kv, 8, 20*time.Millisecond, func(r *rand.Rand) []byte { return spreadKey(r.Uint64N(uint64(keys)), uint64(keys)) }, 100)
	time.Sleep(time.Duration(size(t, "KILORAFT_E2E_SETTLE_S", 1, 10)) * time.Second) // what was loaded goes into the store
	begin := time.Now()
	t.Logf("before: %s", p.between(begin.Add(-time.Second), begin))
	c.want(0, "shard", "split", strconv.FormatUint(id, 10), "--parts", strconv.Itoa(parts))
	end := time.Now()
	time.Sleep(2 * time.Second)
	p.stop(t)
	t.Logf("%d MB into %d parts: %v", megabytes, parts, end.Sub(begin).Round(time.Millisecond))
	t.Logf("meanwhile: %s", p.between(begin.Add(-50*time.Millisecond), end))
	t.Logf("2 s after: %s", p.between(end, end.Add(2*time.Second)))
	t.Logf("from 2 s before to 2 s after: %s", p.between(begin.Add(-2*time.Second), end.Add(2*time.Second)))
	t.Logf("slowest, from the start of the split:%s", p.slow(begin, 12))
	eventually(t, 30*time.Second, func() error { return c.tiled(parts) })
	n := 0
	for _, err := range c.kv.Scan(t.Context(), client.Range{KeysOnly: true}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != keys {
		t.Errorf("%d keys after the split, %d before", n, keys)
	}
	var errs error
	for i := 0; i < keys; i += keys / 100 {
		if _, err := c.kv.Get(t.Context(), spreadKey(uint64(i), uint64(keys))); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	if errs != nil {
		t.Error(errs)
	}
}
