package node

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/scheduler"
)

// A node remembers an hour of figures about itself, one sample every historyStep.
const (
	historyStep = 10 * time.Second
	historyMax  = 360
)

// Sample is what a node was and did in the time since the sample before it. Rates are per second, times in seconds.
type Sample struct {
	At          int64   `json:"at"` // Unix seconds
	Reads       float64 `json:"reads"`
	Writes      float64 `json:"writes"`
	Refused     float64 `json:"refused"`
	CommitP50   float64 `json:"commit_p50"`
	CommitP99   float64 `json:"commit_p99"`
	Syncs       float64 `json:"syncs"`
	SyncP99     float64 `json:"sync_p99"`
	LogBytes    float64 `json:"log_bytes"`
	NetIn       float64 `json:"net_in"`
	NetOut      float64 `json:"net_out"`
	CPU         float64 `json:"cpu"`          // cores
	LanesBusy   float64 `json:"lanes_busy"`   // 0 to 1
	MemoryBytes uint64  `json:"memory_bytes"` // that the Go runtime holds; the mapped state file is not in it
	HeapBytes   uint64  `json:"heap_bytes"`
	Goroutines  int     `json:"goroutines"`
	DiskFree    uint64  `json:"disk_free_bytes"`
	DiskSize    uint64  `json:"disk_size_bytes"`
	StateBytes  int64   `json:"state_bytes"`
	Replicas    int     `json:"replicas"`
	Leaders     int     `json:"leaders"`
	Leaderless  int     `json:"leaderless"`
	Queue       int     `json:"queue"` // requests that wait for a lane
	ApplyLag    uint64  `json:"apply_lag_entries"`
}

// reading are the counters that samples are differences of.
type reading struct {
	at                                          time.Time
	reads, writes, refused, syncs               uint64
	logBytes, netIn, netOut, busy               uint64
	cpu                                         time.Duration
	commit, sync                                scheduler.Reading
	replicas, lanes, queue, leaders, leaderless int
	applyLag, memory, heap, diskFree, diskSize  uint64
	goroutines                                  int
	stateBytes                                  int64
}

// history remembers samples.
type history struct {
	mu      sync.Mutex
	samples []Sample // oldest first, at most historyMax
	last    *reading // nil: none yet
}

// recall returns what is remembered; never nil, so that JSON shows an empty list.
func (h *history) recall() []Sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Sample{}, h.samples...)
}

// sample notes r. The first one only says where to count from.
func (h *history) sample(r *reading) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.last
	h.last = r
	if old == nil || !r.at.After(old.at) {
		return
	}
	if len(h.samples) == historyMax {
		h.samples = slices.Delete(h.samples, 0, 1)
	}
	h.samples = append(h.samples, r.since(old))
}

// since compares r with an earlier reading.
func (r *reading) since(old *reading) Sample {
	span := r.at.Sub(old.at).Seconds()
	rate := func(now, then uint64) float64 { return float64(now-min(then, now)) / span }
	commit, syncs := r.commit.Sub(&old.commit), r.sync.Sub(&old.sync)
	return Sample{
		At: r.at.Unix(), Reads: rate(r.reads, old.reads), Writes: rate(r.writes, old.writes), Refused: rate(r.refused, old.refused),
		CommitP50: commit.Quantile(0.5) / 1e9, CommitP99: commit.Quantile(0.99) / 1e9,
		Syncs: rate(r.syncs, old.syncs), SyncP99: syncs.Quantile(0.99) / 1e9, LogBytes: rate(r.logBytes, old.logBytes),
		NetIn: rate(r.netIn, old.netIn), NetOut: rate(r.netOut, old.netOut),
		CPU: (r.cpu - old.cpu).Seconds() / span, LanesBusy: rate(r.busy, old.busy) / 1e9 / float64(max(r.lanes, 1)),
		MemoryBytes: r.memory, HeapBytes: r.heap, Goroutines: r.goroutines, DiskFree: r.diskFree, DiskSize: r.diskSize, StateBytes: r.stateBytes,
		Replicas: r.replicas, Leaders: r.leaders, Leaderless: r.leaderless, Queue: r.queue, ApplyLag: r.applyLag,
	}
}

// read takes a reading of this node.
func (n *Node) read(ctx context.Context, at time.Time) *reading {
	t, l := n.tr.Metrics(), n.rlog.Metrics()
	r := &reading{at: at, syncs: l.Syncs.Load(), logBytes: l.Bytes.Load(), netIn: t.BytesIn.Load(), netOut: t.BytesOut.Load(), cpu: cpuTime(),
		goroutines: runtime.NumGoroutine(), stateBytes: n.state.Stats().UsedBytes}
	r.diskFree, r.diskSize = diskSpace(n.cfg.DataDir)
	mem := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(mem)
	r.memory, r.heap = mem[0].Value.Uint64()-mem[1].Value.Uint64(), mem[2].Value.Uint64()
	c := n.core.Load()
	if c == nil {
		return r
	}
	m := c.sched.Metrics()
	r.reads, r.writes = m.ReadsLease.Load()+m.ReadsIndex.Load(), m.Proposals.Load()
	for i := range m.Refusals {
		r.refused += m.Refusals[i].Load()
	}
	r.commit, r.sync = m.CommitLatency.Read(), m.SyncLatency.Read()
	_, r.busy = m.TurnTime.Count()
	r.replicas, r.lanes, r.queue = c.sched.Replicas(), c.sched.LaneCount(), c.sched.Queued()
	if s, err := c.sched.Survey(ctx); err == nil {
		r.leaders, r.leaderless, r.applyLag = s.Leaders, s.Leaderless, s.LagEntries
	}
	return r
}

// observeLoop takes samples until the node stops.
func (n *Node) observeLoop() {
	n.observe(n.began)
	var mem memory
	for {
		now := time.Now()
		next := now.Truncate(historyStep).Add(historyStep) // so that the samples of all nodes are of the same moments
		if sleep(n.ctx, next.Sub(now)) != nil {
			return
		}
		n.observe(next)
		if c := n.core.Load(); c != nil && mem.giveBack(c.sched.Metrics().Events.Load(), heapBytes()) {
			_ = c.sched.Shrink(n.ctx) // it fails only when the node stops
			n.tr.Shrink()
			debug.FreeOSMemory()
		}
	}
}

// observe takes the samples that are due at a moment.
func (n *Node) observe(at time.Time) {
	ctx, cancel := context.WithTimeout(n.ctx, historyStep/2)
	defer cancel()
	n.history.sample(n.read(ctx, at))
	if at.Unix()%int64(heatSlot/time.Second) == 0 {
		n.observeHeat(ctx, at)
	}
}

func (n *Node) observeHeat(ctx context.Context, at time.Time) {
	c := n.core.Load()
	if c == nil {
		return
	}
	if loads, err := c.sched.Loads(ctx); err == nil {
		n.heat.sample(at, loads)
	}
}
