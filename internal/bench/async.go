package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

// asyncKV is a client.KV whose single-key requests need no goroutine while they wait. done is called once, on any goroutine. Key and
// value must not be changed until then.
type asyncKV interface {
	GoGet(ctx context.Context, key []byte, done func(error))
	GoPut(ctx context.Context, key, value []byte, done func(error))
}

// async tells whether the run can do without a goroutine per request in flight. With thousands of goroutines, waking them and
// scanning their stacks is a good part of what such a generator costs.
func (r *Runner) async() asyncKV {
	kv, ok := r.kv.(asyncKV)
	if !ok || r.set.Rate != 0 || r.load.has(opScan) || r.load.has(opReadModifyWrite) {
		return nil
	}
	return kv
}

// slot is one request in flight at a time.
type slot struct {
	w     *worker
	kv    asyncKV
	ctx   workerContext
	key   []byte
	kind  opKind
	since time.Time
	took  time.Duration
	err   error
	done  func(error)
	idle  chan *slot // of its generator; has room for all slots
}

func (s *slot) finished(err error) {
	s.took, s.err = time.Since(s.since), err
	s.idle <- s
}

func (s *slot) send() {
	w := s.w
	s.since = time.Now()
	if w.set.Timeout > 0 {
		s.ctx.deadline = s.since.Add(w.set.Timeout)
	}
	s.kind = w.load.pick(w.rng.IntN(100))
	n := w.choose.next(w.rng, w.count.Load())
	if s.kind == opInsert {
		n = w.issued.Add(1) - 1
	}
	s.key = w.keys.append(s.key[:0], n)
	if s.kind == opRead {
		s.kv.GoGet(&s.ctx, s.key, s.done)
		return
	}
	s.kv.GoPut(&s.ctx, s.key, w.value, s.done)
}

// runAsync is the closed loop over few generators, each with its part of the requests in flight.
func (r *Runner) runAsync(ctx, runCtx context.Context, kv asyncKV, end time.Time) {
	generators := min(2*runtime.GOMAXPROCS(0), r.set.Inflight)
	var wg sync.WaitGroup
	for g := range generators {
		slots := r.set.Inflight / generators
		if g < r.set.Inflight%generators {
			slots++
		}
		wg.Go(func() {
			w := &worker{Runner: r, rng: rand.New(rand.NewPCG(r.set.Seed, uint64(g)+2)), id: g}
			w.generate(ctx, runCtx, kv, slots, end)
		})
	}
	wg.Wait()
}

func (w *worker) generate(ctx, runCtx context.Context, kv asyncKV, slots int, end time.Time) {
	idle := make(chan *slot, slots)
	// Requests end by their deadline and not with ctx: nothing is registered with it per request.
	detached := context.WithoutCancel(ctx)
	for range slots {
		s := &slot{w: w, kv: kv, idle: idle, ctx: workerContext{Context: detached}}
		s.done = s.finished
		s.send()
	}
	for slots > 0 {
		s := <-idle
		w.record(s.kind, s.took, s.err)
		if time.Now().Before(end) && runCtx.Err() == nil {
			s.send()
			continue
		}
		slots--
	}
}

// record counts a request that has ended.
func (w *worker) record(kind opKind, took time.Duration, err error) {
	if errors.Is(err, client.ErrNotFound) {
		w.notFound.Add(1)
		err = nil
	}
	if err != nil {
		w.failed.Add(1)
		text := err.Error()
		w.firstError.CompareAndSwap(nil, &text)
		return
	}
	if kind == opInsert {
		w.count.Add(1)
	}
	w.ops.Add(1)
	w.byOp[kind].Add(1)
	s := &w.stripes[w.id%histogramStripes]
	s.mu.Lock()
	_ = s.hist.RecordValue(max(1, min(took, latencyMax).Microseconds())) // in range by construction
	s.mu.Unlock()
}
