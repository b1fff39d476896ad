package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/kiloraft/kiloraft/internal/client"
)

// Settings of a run. They are part of the result.
type Settings struct {
	Workload     string  `json:"workload"`
	Inflight     int     `json:"inflight"`
	ValueSize    int     `json:"value_size"`
	Keys         uint64  `json:"keys"`
	Shards       int     `json:"shards"` // 0: all
	ShardsUsed   int     `json:"shards_used"`
	Distribution string  `json:"distribution"` // "": the workload's own
	Rate         float64 `json:"rate"`         // 0: closed loop
	DurationS    float64 `json:"duration_s"`
	ScanLimit    int     `json:"scan_limit"`
	Seed         uint64  `json:"seed"`

	Load    bool          `json:"load"` // write all keys first
	Timeout time.Duration `json:"-"`    // of one request
}

// Result of a run. Latencies are of requests that succeeded.
type Result struct {
	Ops      int64   `json:"ops"`
	OpsPerS  float64 `json:"ops_per_s"`
	Errors   int64   `json:"errors"`
	P50us    int64   `json:"p50_us"`
	P90us    int64   `json:"p90_us"`
	P99us    int64   `json:"p99_us"`
	P999us   int64   `json:"p999_us"`
	Maxus    int64   `json:"max_us"`
	Duration float64 `json:"duration_s"`
	// NotSent counts requests of an open loop that were due before the end, but no worker was ever free for them.
	NotSent    int64            `json:"not_sent"`
	NotFound   int64            `json:"not_found"`
	ByOp       map[string]int64 `json:"by_op"`
	FirstError string           `json:"first_error,omitempty"`
	Settings   Settings         `json:"settings"`
}

const histogramStripes = 16

// latencyMax bounds what the histogram tells apart; longer ones count as this.
const latencyMax = 10 * time.Minute

type stripe struct {
	mu   sync.Mutex
	hist *hdrhistogram.Histogram // guarded by mu
}

// Runner holds the state of one run.
type Runner struct {
	kv      client.KV
	set     Settings
	load    workload
	keys    *keySpace
	choose  chooser
	value   []byte
	count   atomic.Uint64 // keys that exist; inserts end out of order, so the newest few may not yet
	issued  atomic.Uint64 // keys that exist or are being inserted
	stripes [histogramStripes]stripe

	ops, failed, notSent, notFound atomic.Int64
	byOp                           [opKinds]atomic.Int64
	firstError                     atomic.Pointer[string]
}

// New checks the settings and prepares a run over the shards given.
func New(kv client.KV, shards []client.Shard, s Settings) (*Runner, error) {
	w, err := findWorkload(s.Workload)
	if err != nil {
		return nil, err
	}
	if s.Inflight < 1 || s.Keys < 1 || s.ValueSize < 0 || s.Rate < 0 || s.DurationS <= 0 || s.ScanLimit < 1 {
		return nil, errors.New("inflight, keys, duration and scan-limit must be positive, value-size and rate not negative")
	}
	r := &Runner{kv: kv, load: w, set: s, value: make([]byte, s.ValueSize)}
	if r.keys, err = newKeySpace(shards, s.Shards); err != nil {
		return nil, err
	}
	r.set.ShardsUsed = len(r.keys.starts)
	if r.set.Distribution == "" {
		r.set.Distribution = w.keys
	}
	switch r.set.Distribution {
	case "uniform":
		r.choose = uniform{}
	case "zipfian", "latest":
		r.choose = newZipfian(s.Keys, r.set.Distribution == "latest")
	default:
		return nil, fmt.Errorf("distribution %q: want uniform, zipfian or latest", s.Distribution)
	}
	rng := rand.New(rand.NewPCG(s.Seed, 1))
	for i := range r.value {
		r.value[i] = byte(rng.Uint32())
	}
	for i := range r.stripes {
		r.stripes[i].hist = hdrhistogram.New(1, latencyMax.Microseconds(), 3)
	}
	r.count.Store(s.Keys)
	r.issued.Store(s.Keys)
	return r, nil
}

// NeedsLoad tells whether Load must run before Run.
func (r *Runner) NeedsLoad() bool { return r.set.Load && r.load.needsData() }

// Load writes all keys; done is updated for a progress bar.
func (r *Runner) Load(ctx context.Context, done *atomic.Int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Uint64
	var wg sync.WaitGroup
	for range min(max(r.set.Inflight, 256), 1024) {
		wg.Go(func() {
			var key []byte
			for i := next.Add(1) - 1; i < r.set.Keys && ctx.Err() == nil; i = next.Add(1) - 1 {
				key = r.keys.append(key[:0], i)
				if _, err := r.kv.Put(ctx, key, r.value); err != nil {
					cancel(fmt.Errorf("loading the keys: %w", err))
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Run measures. It ends after the duration, or early with ctx.
func (r *Runner) Run(ctx context.Context) Result {
	start := time.Now()
	end := start.Add(time.Duration(r.set.DurationS * float64(time.Second)))
	runCtx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if kv := r.async(); kv != nil {
		r.runAsync(ctx, runCtx, kv, start, end)
		return r.result(time.Since(start))
	}
	var ticket atomic.Int64
	var wg sync.WaitGroup
	for i := range r.set.Inflight {
		wg.Go(func() { r.worker(ctx, runCtx, start, end, i, &ticket) })
	}
	wg.Wait()
	return r.result(time.Since(start))
}

// worker sends requests one after the other. What is in flight at the end is finished, not cut off: a cancelled write has an
// unknown outcome, and dropping the slow ones would flatter the result.
func (r *Runner) worker(ctx, runCtx context.Context, start, end time.Time, id int, ticket *atomic.Int64) {
	w := &worker{Runner: r, rng: rand.New(rand.NewPCG(r.set.Seed, uint64(id)+2)), id: id}
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	w.ctx.Context = own
	if r.set.Rate == 0 {
		for now := time.Now(); now.Before(end) && runCtx.Err() == nil; now = time.Now() {
			w.one(now)
		}
		return
	}
	gap := float64(time.Second) / r.set.Rate
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due := start.Add(time.Duration(float64(ticket.Add(1)-1) * gap))
		if !due.Before(end) {
			return
		}
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		if runCtx.Err() != nil { // too late to send it, but it was due
			r.notSent.Add(1)
			continue
		}
		w.one(due)
	}
}

type worker struct {
	*Runner
	rng *rand.Rand
	id  int
	key []byte
	ctx workerContext
}

// workerContext is the context of a worker's requests, one after the other. A context.WithTimeout for each would register with
// the common parent: with thousands of workers its lock becomes what is measured.
type workerContext struct {
	context.Context // the worker's own
	deadline        time.Time
}

// Deadline implements context.Context.
func (c *workerContext) Deadline() (time.Time, bool) {
	if c.deadline.IsZero() {
		return c.Context.Deadline()
	}
	return c.deadline, true
}

// Err implements context.Context. A client looks at it before each attempt; attempts end by the deadline.
func (c *workerContext) Err() error {
	if err := c.Context.Err(); err != nil {
		return err
	}
	if !c.deadline.IsZero() && !time.Now().Before(c.deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// one runs a request whose latency counts from since.
func (w *worker) one(since time.Time) {
	if w.set.Timeout > 0 {
		w.ctx.deadline = time.Now().Add(w.set.Timeout)
	}
	ctx := &w.ctx
	kind := w.load.pick(w.rng.IntN(100))
	err := w.send(ctx, kind)
	w.record(kind, time.Since(since), err)
}

func (w *worker) send(ctx context.Context, kind opKind) error {
	n := w.choose.next(w.rng, w.count.Load())
	if kind == opInsert {
		n = w.issued.Add(1) - 1
	}
	w.key = w.keys.append(w.key[:0], n)
	switch kind {
	case opRead:
		_, err := w.kv.Get(ctx, w.key)
		return err
	case opScan:
		for _, err := range w.kv.Scan(ctx, client.Range{Start: w.key, Limit: w.set.ScanLimit}) {
			if err != nil {
				return err
			}
		}
		return nil
	case opReadModifyWrite:
		if _, err := w.kv.Get(ctx, w.key); err != nil && !errors.Is(err, client.ErrNotFound) {
			return err
		}
	}
	_, err := w.kv.Put(ctx, w.key, w.value)
	return err
}

func (r *Runner) result(took time.Duration) Result {
	all := hdrhistogram.New(1, latencyMax.Microseconds(), 3)
	for i := range r.stripes {
		all.Merge(r.stripes[i].hist)
	}
	res := Result{Ops: r.ops.Load(), Errors: r.failed.Load(), NotSent: r.notSent.Load(), NotFound: r.notFound.Load(),
		P50us: all.ValueAtQuantile(50), P90us: all.ValueAtQuantile(90), P99us: all.ValueAtQuantile(99), P999us: all.ValueAtQuantile(99.9),
		Maxus: all.Max(), Duration: took.Seconds(), ByOp: map[string]int64{}, Settings: r.set}
	res.OpsPerS = float64(res.Ops) / took.Seconds()
	for k := range r.byOp {
		if n := r.byOp[k].Load(); n > 0 {
			res.ByOp[opNames[k]] = n
		}
	}
	if e := r.firstError.Load(); e != nil {
		res.FirstError = *e
	}
	return res
}
