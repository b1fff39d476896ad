package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
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
	if !ok || r.load.has(opScan) || r.load.has(opReadModifyWrite) {
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

// send sends the slot's next request, whose time counts from since.
func (s *slot) send(since time.Time) {
	w := s.w
	s.since = since
	if w.set.Timeout > 0 {
		s.ctx.deadline = time.Now().Add(w.set.Timeout)
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

// runAsync runs few generators, each with its part of the requests in flight.
func (r *Runner) runAsync(ctx, runCtx context.Context, kv asyncKV, start, end time.Time) {
	var ticket atomic.Int64
	generators := min(2*runtime.GOMAXPROCS(0), r.set.Inflight)
	var wg sync.WaitGroup
	for g := range generators {
		slots := r.set.Inflight / generators
		if g < r.set.Inflight%generators {
			slots++
		}
		wg.Go(func() {
			w := &worker{Runner: r, rng: rand.New(rand.NewPCG(r.set.Seed, uint64(g)+2)), id: g}
			idle := make(chan *slot, slots)
			// Requests end by their deadline and not with ctx: nothing is registered with it per request.
			detached := context.WithoutCancel(ctx)
			free := make([]*slot, slots)
			for i := range free {
				free[i] = &slot{w: w, kv: kv, idle: idle, ctx: workerContext{Context: detached}}
				free[i].done = free[i].finished
			}
			if r.set.Rate == 0 {
				w.generate(runCtx, free, idle, end)
			} else {
				w.generateDue(ctx, runCtx, free, idle, start, end, &ticket)
			}
		})
	}
	wg.Wait()
}

// generate is the closed loop: a request that ends is followed by another one. What is in flight at the end is finished.
func (w *worker) generate(runCtx context.Context, free []*slot, idle chan *slot, end time.Time) {
	for _, s := range free {
		s.send(time.Now())
	}
	for busy := len(free); busy > 0; {
		s := <-idle
		w.record(s.kind, s.took, s.err)
		if now := time.Now(); now.Before(end) && runCtx.Err() == nil {
			s.send(now)
			continue
		}
		busy--
	}
}

// generateDue is the open loop: requests are due at fixed times, which the generators take in turn. One that finds no free slot until the end is
// not sent.
func (w *worker) generateDue(ctx, runCtx context.Context, free []*slot, idle chan *slot, start, end time.Time, ticket *atomic.Int64) {
	slots := len(free)
	gap := float64(time.Second) / w.set.Rate
	timer := time.NewTimer(0)
	defer timer.Stop()
	take := func(s *slot) {
		w.record(s.kind, s.took, s.err)
		free = append(free, s)
	}
	for ctx.Err() == nil {
		due := start.Add(time.Duration(float64(ticket.Add(1)-1) * gap))
		if !due.Before(end) {
			break
		}
		early := time.Until(due)
		if early > 0 {
			timer.Reset(early)
		}
		for waiting := early > 0; waiting; { // a timer of the past costs, and the race detector of Go 1.26 may crash on it in a bubble of synctest
			select {
			case s := <-idle:
				take(s)
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				waiting = false
			}
		}
		for len(free) == 0 && runCtx.Err() == nil {
			select {
			case s := <-idle:
				take(s)
			case <-runCtx.Done():
			}
		}
		if runCtx.Err() != nil { // too late to send it, but it was due
			w.notSent.Add(1)
			continue
		}
		s := free[len(free)-1]
		free = free[:len(free)-1]
		s.send(due)
	}
	for len(free) < slots {
		take(<-idle)
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
		if w.firstError.Load() == nil {
			text := err.Error()
			w.firstError.CompareAndSwap(nil, &text)
		}
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
