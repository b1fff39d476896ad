package simrt

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// Options of a Cluster. The zero value is a calm network and disk.
type Options struct {
	Nodes int // default 3
	Lanes int
	Seed  uint64
	Drop  float64 // chance that a raft frame is lost
	Dup   float64 // that it comes twice
	// SegmentBytes is the size of the raft log's segments: default 1 MiB.
	SegmentBytes int64
	// Crash is what a power cut does to what was not synced.
	Crash  vfs.CrashPolicy
	Config func(*scheduler.Config)
	Logger *slog.Logger
}

// Cluster is a set of simulated nodes.
type Cluster struct {
	Opt   Options
	Rand  *rand.Rand
	Nodes []*Node

	now    engine.Instant
	seq    uint64
	events eventHeap
	cut    map[[2]engine.NodeID]bool // from, to
	// Failed is the first fatal error of a node.
	Failed error
}

// Node is one simulated process and its disk, which survives it.
type Node struct {
	c     *Cluster
	ID    engine.NodeID
	Sched *scheduler.Scheduler
	Up    bool

	disk        *vfs.Mem
	db          *state.DB
	log         *raftlog.Log
	life        uint64 // events of an earlier life are void
	incarnation uint64
	flushing    bool
	turnAt      []engine.Instant // per lane: when a turn is scheduled; 0: none
	writing     bool
	idle        uint64
}

type event struct {
	at  engine.Instant
	seq uint64
	do  func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *eventHeap) Push(x any) { *h = append(*h, x.(event)) }

// Pop implements heap.Interface.
func (h *eventHeap) Pop() any {
	old := *h
	n := len(old) - 1
	x := old[n]
	old[n] = event{}
	*h = old[:n]
	return x
}

const (
	turnDelay  = 20 * time.Microsecond
	flushDelay = 300 * time.Microsecond
	taskDelay  = 500 * time.Microsecond
	netDelay   = 100 * time.Microsecond
)

// New makes a cluster of started nodes that are connected with each other.
func New(opt Options) (*Cluster, error) {
	if opt.Nodes == 0 {
		opt.Nodes = 3
	}
	if opt.SegmentBytes == 0 {
		opt.SegmentBytes = 1 << 20
	}
	if opt.Lanes == 0 {
		opt.Lanes = 1
	}
	c := &Cluster{Opt: opt, Rand: rand.New(rand.NewPCG(opt.Seed, 1)), now: 1e9, cut: map[[2]engine.NodeID]bool{}}
	for i := range opt.Nodes {
		n := &Node{c: c, ID: engine.NodeID(i + 1), disk: vfs.NewMem(), db: state.NewMem(state.Options{})}
		c.Nodes = append(c.Nodes, n)
	}
	for _, n := range c.Nodes {
		if err := c.Start(n.ID); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Now is the simulated time.
func (c *Cluster) Now() engine.Instant { return c.now }

// Node returns a node by its id.
func (c *Cluster) Node(id engine.NodeID) *Node { return c.Nodes[id-1] }

type clock struct{ c *Cluster }

func (k clock) Now() engine.Instant { return k.c.now }
func (k clock) Wall() int64         { return 1_700_000_000_000 + int64(k.c.now)/1e6 }

func (c *Cluster) after(d time.Duration, do func()) {
	c.seq++
	heap.Push(&c.events, event{c.now + engine.Instant(d), c.seq, do})
}

func (c *Cluster) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(c.Rand.Int64N(int64(d)))
}

// after does something later, unless the node's life has ended by then.
func (n *Node) after(d time.Duration, do func()) {
	life := n.life
	n.c.after(d, func() {
		if n.Up && n.life == life {
			do()
		}
	})
}

// Start starts a node on its disk.
func (c *Cluster) Start(id engine.NodeID) error {
	n := c.Node(id)
	n.life++
	n.incarnation = n.life*1000 + uint64(id)
	synced, err := n.db.SyncedSeq()
	if err != nil {
		return err
	}
	salt := rand.New(rand.NewPCG(c.Opt.Seed, n.incarnation))
	log, rec, err := raftlog.Open(n.disk, "log", raftlog.Options{SegmentBytes: c.Opt.SegmentBytes, CacheBytes: 1 << 20, SyncedHint: synced,
		Salt: salt.Uint64, Logger: c.Opt.Logger})
	if err != nil {
		return fmt.Errorf("node %d: %w", id, err)
	}
	cfg := scheduler.Config{Node: id, Incarnation: n.incarnation, Lanes: c.Opt.Lanes, Seed: c.Opt.Seed, Logger: c.Opt.Logger,
		Fatal: func(err error) {
			if c.Failed == nil {
				c.Failed = fmt.Errorf("node %d: %w", id, err)
			}
		}}
	if c.Opt.Config != nil {
		c.Opt.Config(&cfg)
	}
	life := n.life
	n.Sched, err = scheduler.New(cfg, scheduler.Deps{Log: log, Recovery: rec, State: n.db, Network: network{n}, Clock: clock{c},
		Spawn: func(task func()) { n.after(c.jitter(taskDelay), task) },
		ReadJob: func(job *state.ReadJob) {
			n.after(c.jitter(taskDelay), func() { n.db.RunJob(job); job.Done(job) })
		}})
	if err != nil {
		return fmt.Errorf("node %d: %w", id, err)
	}
	n.log, n.Up, n.flushing, n.writing = log, true, false, false
	n.turnAt = make([]engine.Instant, c.Opt.Lanes)
	for i := range n.turnAt {
		n.turnIn(i, turnDelay)
	}
	n.after(c.jitter(100*time.Millisecond), n.heartbeat)
	n.after(time.Second, n.checkpoint)
	for _, o := range c.Nodes {
		if o != n && o.Up {
			c.connect(n, o, life)
		}
	}
	return nil
}

func (c *Cluster) connect(a, b *Node, _ uint64) {
	ai, bi := a.incarnation, b.incarnation
	a.after(c.jitter(netDelay), func() {
		if b.Up && b.incarnation == bi {
			a.Sched.PeerConnected(b.ID, bi)
		}
	})
	b.after(c.jitter(netDelay), func() {
		if a.Up && a.incarnation == ai {
			b.Sched.PeerConnected(a.ID, ai)
		}
	})
}

// Crash kills a node as a power cut would: what was not synced may be gone.
func (c *Cluster) Crash(id engine.NodeID) {
	n := c.Node(id)
	n.Up = false
	n.life++
	n.disk = n.disk.Crash(rand.New(rand.NewPCG(c.Opt.Seed, n.life)), c.Opt.Crash)
	n.db = n.db.Clone(state.Options{})
	inc := n.incarnation
	for _, o := range c.Nodes {
		if o != n && o.Up {
			o.after(c.jitter(netDelay), func() { o.Sched.PeerDisconnected(id, inc) })
		}
	}
}

// Cut cuts (or heals) the link from one node to another, in this direction only.
func (c *Cluster) Cut(from, to engine.NodeID, cut bool) { c.cut[[2]engine.NodeID{from, to}] = cut }

// Isolate cuts a node off from all others, or heals that.
func (c *Cluster) Isolate(id engine.NodeID, cut bool) {
	for _, o := range c.Nodes {
		if o.ID != id {
			c.Cut(id, o.ID, cut)
			c.Cut(o.ID, id, cut)
		}
	}
}

func (n *Node) heartbeat() {
	n.Sched.Heartbeats()
	n.pump()
	n.after(100*time.Millisecond, n.heartbeat)
}

func (n *Node) checkpoint() {
	n.Sched.LookForCheckpoints()
	n.pump()
	n.after(time.Second, n.checkpoint)
	n.write()
}

// write writes cuts as long as there are any.
func (n *Node) write() {
	if n.writing {
		return
	}
	n.writing = true
	n.after(2*time.Millisecond, func() {
		n.writing = false
		if n.Sched.WriteCheckpoint() {
			n.write()
		}
		n.pump()
	})
}

// turnIn schedules a turn of a lane, if none is scheduled as soon.
func (n *Node) turnIn(lane int, d time.Duration) {
	at := n.c.now + engine.Instant(d)
	if n.turnAt[lane] != 0 && n.turnAt[lane] <= at {
		return
	}
	n.turnAt[lane] = at
	n.after(d, func() {
		if n.turnAt[lane] != at {
			return // a sooner one came in between
		}
		n.turnAt[lane] = 0
		if next := n.Sched.Lanes()[lane].Turn(); next != 0 {
			n.turnIn(lane, time.Duration(max(next-n.c.now, engine.Instant(turnDelay))))
		}
		n.pump()
	})
}

// pump schedules what the last event has made necessary on this node.
func (n *Node) pump() {
	for i, l := range n.Sched.Lanes() {
		if l.HasMail() {
			n.turnIn(i, n.c.jitter(turnDelay))
		}
	}
	if !n.flushing {
		select {
		case <-n.log.Pending():
			n.flushing = true
			n.after(n.c.jitter(flushDelay), func() {
				n.flushing = false
				if n.Sched.FlushLog() && !n.Sched.LogFull() {
					n.Sched.MaintainLog()
					n.idle++
					idle := n.idle
					n.after(time.Second, func() {
						if n.idle == idle {
							n.Sched.SealLog()
							n.Sched.MaintainLog()
						}
					})
				}
				n.pump()
			})
		default:
		}
	}
	n.write1()
}

// write1 starts writing when cuts were made outside of the regular look.
func (n *Node) write1() {
	if n.Sched.CheckpointsWaiting() {
		n.write()
	}
}

// Step runs the next event. False: there is none.
func (c *Cluster) Step() bool {
	if len(c.events) == 0 {
		return false
	}
	e := heap.Pop(&c.events).(event)
	c.now = max(c.now, e.at)
	e.do()
	for _, n := range c.Nodes {
		if n.Up {
			n.pump()
		}
	}
	return true
}

// Run lets d of simulated time pass.
func (c *Cluster) Run(d time.Duration) {
	end := c.now + engine.Instant(d)
	for len(c.events) > 0 && c.events[0].at <= end {
		c.Step()
	}
	c.now = end
}

// ErrTimeout is what Until returns when its condition does not come true.
var ErrTimeout = errors.New("simulated time is up")

// Until runs until cond holds, looking after each event, at most for d.
func (c *Cluster) Until(d time.Duration, cond func() bool) error {
	end := c.now + engine.Instant(d)
	for !cond() {
		if c.Failed != nil {
			return c.Failed
		}
		if len(c.events) == 0 || c.events[0].at > end {
			return ErrTimeout
		}
		c.Step()
	}
	return c.Failed
}

// CreateShards makes shards first to last, each with a replica on every node, without keys in common. The first leaders are spread.
func (c *Cluster) CreateShards(first, last engine.ShardID) error {
	for id := first; id <= last; id++ {
		desc := Descriptor(c, id)
		for i, n := range c.Nodes {
			if !n.Up {
				continue
			}
			campaign := uint64(id)%uint64(len(c.Nodes)) == uint64(i)
			if err := n.create(desc, engine.ReplicaID(i+1), campaign); err != nil {
				return err
			}
		}
	}
	return nil
}

// Descriptor is that of a shard made by CreateShards: its keys start with "s", five digits of its id, "/".
func Descriptor(c *Cluster, id engine.ShardID) *shard.Descriptor {
	d := &shard.Descriptor{Shard: id, Start: fmt.Appendf(nil, "s%05d/", id), End: fmt.Appendf(nil, "s%05d0", id), Version: 1, ConfVersion: 1}
	for i := range c.Nodes {
		d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(i + 1), Node: engine.NodeID(i + 1), Role: shard.RoleVoter})
	}
	return d
}

func (n *Node) create(desc *shard.Descriptor, id engine.ReplicaID, campaign bool) error {
	var out error
	done := false
	n.Sched.CreateReplicaAsync(scheduler.NewReplica{Descriptor: desc, Replica: id, Options: scheduler.CreateOptions{Campaign: campaign}},
		func(err error) { out, done = err, true })
	if err := n.c.Until(time.Second, func() bool { return done }); err != nil {
		return err
	}
	return out
}

// Submit hands a request to a node.
func (n *Node) Submit(req *scheduler.Request) {
	n.Sched.Submit(req)
	n.pump()
}

// Statuses returns the statuses of the node's replicas, by shard.
func (n *Node) Statuses() []scheduler.ReplicaStatus {
	var out []scheduler.ReplicaStatus
	for _, l := range n.Sched.Lanes() {
		out = append(out, l.Statuses()...)
	}
	slices.SortFunc(out, func(a, b scheduler.ReplicaStatus) int { return int(a.Shard) - int(b.Shard) })
	return out
}

// Leader returns the node that leads a shard and knows that its lease is good, or nil.
func (c *Cluster) Leader(id engine.ShardID) *Node {
	for _, n := range c.Nodes {
		if n.Up && n.Sched.Leads(id) {
			return n
		}
	}
	return nil
}

type network struct{ n *Node }

// SendRaft implements scheduler.Network.
func (w network) SendRaft(to engine.NodeID, _ int, msgs []byte) bool {
	c := w.n.c
	copies := 1
	if c.Rand.Float64() < c.Opt.Drop {
		copies = 0
	} else if c.Rand.Float64() < c.Opt.Dup {
		copies = 2
	}
	for range copies {
		w.send(to, msgs, c.jitter(netDelay), func(s *scheduler.Scheduler, body []byte) {
			s.RaftFrame(w.n.ID, w.n.incarnation, body)
		})
	}
	return true
}

// SendHeartbeat implements scheduler.Network.
func (w network) SendHeartbeat(to engine.NodeID, body []byte) bool {
	w.send(to, body, w.n.c.jitter(netDelay), func(s *scheduler.Scheduler, body []byte) {
		if err := s.Heartbeat(w.n.ID, w.n.incarnation, body); err != nil && w.n.c.Failed == nil {
			w.n.c.Failed = err
		}
	})
	return true
}

func (w network) send(to engine.NodeID, b []byte, d time.Duration, deliver func(*scheduler.Scheduler, []byte)) {
	c := w.n.c
	dst := c.Node(to)
	if !dst.Up || c.cut[[2]engine.NodeID{w.n.ID, to}] {
		return
	}
	body := slices.Clone(b)
	inc := w.n.incarnation
	dst.after(d, func() {
		if w.n.incarnation == inc {
			deliver(dst.Sched, body)
			dst.pump()
		}
	})
}

// OpenSnapshot implements scheduler.Network. Chunks arrive all at once when the snapshot is finished.
func (w network) OpenSnapshot(_ context.Context, to engine.NodeID, header []byte) (scheduler.SnapshotWriter, error) {
	if !w.n.c.Node(to).Up || w.n.c.cut[[2]engine.NodeID{w.n.ID, to}] {
		return nil, errors.New("no connection")
	}
	return &snapWriter{w: w, to: to, header: slices.Clone(header)}, nil
}

type snapWriter struct {
	w      network
	to     engine.NodeID
	header []byte
	chunks [][]byte
}

func (s *snapWriter) Write(_ context.Context, chunk []byte) error {
	s.chunks = append(s.chunks, slices.Clone(chunk))
	return nil
}

func (s *snapWriter) Finish(context.Context) error {
	from, inc := s.w.n.ID, s.w.n.incarnation
	s.w.send(s.to, nil, s.w.n.c.jitter(10*netDelay), func(sched *scheduler.Scheduler, _ []byte) {
		sched.Snapshot(from, inc, s.header, &snapReader{chunks: s.chunks})
	})
	return nil
}

func (s *snapWriter) Abort(string) {}

type snapReader struct{ chunks [][]byte }

func (r *snapReader) Next(context.Context) ([]byte, error) {
	if len(r.chunks) == 0 {
		return nil, io.EOF
	}
	b := r.chunks[0]
	r.chunks = r.chunks[1:]
	return b, nil
}

func (r *snapReader) Finish(error) error { return nil }

// Transfer asks the node, which must lead the shard, to hand it over.
func (n *Node) Transfer(id engine.ShardID, to engine.NodeID) error {
	var out error
	done := false
	n.Sched.TransferAsync(id, to, func(err error) { out, done = err, true })
	n.pump()
	if err := n.c.Until(time.Second, func() bool { return done }); err != nil {
		return err
	}
	return out
}

// Segments tells the numbers of the oldest and the newest segment of the node's raft log.
func (n *Node) Segments() (oldest, active uint64) { return n.log.Segments() }
