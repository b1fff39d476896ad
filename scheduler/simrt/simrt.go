package simrt

import (
	"errors"
	"fmt"
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
	// CacheBytes is what the raft log keeps in memory: default 1 MiB.
	CacheBytes int64
	// Crash is what a power cut does to what was not synced.
	Crash  vfs.CrashPolicy
	Config func(*scheduler.Config)
	Logger *slog.Logger

	// FailStop makes a fatal error of a node crash that node, as it would in earnest. Otherwise it is in Cluster.Failed.
	FailStop bool
	// OnFatal is told of fatal errors with FailStop.
	OnFatal func(*Node, error)
	// Disk is asked before every operation on a node's disk and may fail it. It may call Crash.
	Disk func(*Node, *vfs.Op) error
	// FS wraps the disk of a node, below Disk: it sees what is really written.
	FS func(*Node, vfs.FS) vfs.FS
	// Recovered is told what the raft log of a node held at its start.
	Recovered func(*Node, *raftlog.Recovery)
	// StateFault is asked before every commit of a node's state: an error fails it, and with it the node. It may call Crash.
	StateFault func(*Node) error
	// StateFull tells whether a node's state has no space for more.
	StateFull func(*Node) bool
	// Probe watches the lanes of a node.
	Probe func(*Node) scheduler.Probe
	// Skew gives each life of a node a monotonic clock of its own.
	Skew bool
}

// Cluster is a set of simulated nodes.
type Cluster struct {
	Opt   Options
	Rand  *rand.Rand
	Nodes []*Node

	// Net may be changed at any time.
	Net NetFaults

	now     engine.Instant
	seq     uint64
	events  events
	cut     map[[2]engine.NodeID]bool // from, to
	arrival map[[3]uint64]engine.Instant
	busy    map[[2]engine.NodeID]engine.Instant // until when a link of little bandwidth is taken
	sent    map[[2]engine.NodeID]int            // bytes
	session map[[2]engine.NodeID]uint64         // by the lower and the higher id
	running *task
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
	writes      uint64 // how often it was begun
	idle        uint64

	heartbeatEvery time.Duration
	stateNumber    uint64 // of db

	clock    localClock
	paused   engine.Instant // nothing runs before
	tasks    []*task
	SyncTime time.Duration // how long the next syncs take; zero: the usual
	// NoCheckpoints: the state takes none now, as if it were slower than all writes.
	NoCheckpoints bool
	// Lives counts how often the node was started.
	Lives uint64
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
	if opt.CacheBytes == 0 {
		opt.CacheBytes = 1 << 20
	}
	if opt.Lanes == 0 {
		opt.Lanes = 1
	}
	c := &Cluster{Opt: opt, Rand: rand.New(rand.NewPCG(opt.Seed, 1)), now: 1e9, cut: map[[2]engine.NodeID]bool{},
		arrival: map[[3]uint64]engine.Instant{}, session: map[[2]engine.NodeID]uint64{},
		busy: map[[2]engine.NodeID]engine.Instant{}, sent: map[[2]engine.NodeID]int{}}
	c.Net.Drop, c.Net.Dup = opt.Drop, opt.Dup
	for range opt.Nodes {
		c.AddNode()
	}
	for _, n := range c.Nodes {
		if err := c.Start(n.ID); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// AddNode makes a node with an empty disk, which is not started.
func (c *Cluster) AddNode() *Node {
	n := &Node{c: c, ID: engine.NodeID(len(c.Nodes) + 1), disk: vfs.NewMem()}
	n.db = state.NewMem(n.stateOptions())
	c.Nodes = append(c.Nodes, n)
	return n
}

// stateOptions are those of the state of this life of the node.
func (n *Node) stateOptions() state.Options {
	var o state.Options
	n.stateNumber++
	number := n.stateNumber
	o.Failed = func(err error) { // as package node has it
		if n.Up && n.stateNumber == number {
			n.fatal(n.life, err)
		}
	}
	if f := n.c.Opt.StateFault; f != nil {
		o.Fault = func() error {
			if n.stateNumber != number {
				return ErrCrashed // a task of an earlier life
			}
			return f(n)
		}
	}
	if f := n.c.Opt.StateFull; f != nil {
		o.FreeBytes = func() (int64, error) {
			if f(n) {
				return 0, nil
			}
			return 1 << 40, nil
		}
	}
	return o
}

// Disk is the node's disk, for those who look at it or damage it.
func (n *Node) Disk() *vfs.Mem { return n.disk }

// State is the node's state.
func (n *Node) State() *state.DB { return n.db }

// Now is the simulated time.
func (c *Cluster) Now() engine.Instant { return c.now }

// Node returns a node by its id.
func (c *Cluster) Node(id engine.NodeID) *Node { return c.Nodes[id-1] }

func (c *Cluster) after(d time.Duration, do func()) { c.afterOn(nil, d, do) }

// afterOn does something later that concerns node n alone; nil: anybody.
func (c *Cluster) afterOn(n *Node, d time.Duration, do func()) {
	c.seq++
	c.events.push(event{c.now + engine.Instant(d), c.seq, n, do})
}

func (c *Cluster) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(c.Rand.Int64N(int64(d)))
}

// After does something later.
func (c *Cluster) After(d time.Duration, do func()) { c.after(d, do) }

// Life numbers the lives and deaths of the node: what belongs to another is over.
func (n *Node) Life() uint64 { return n.life }

// Create makes a replica of a new shard.
func (n *Node) Create(desc *shard.Descriptor, id engine.ReplicaID, campaign bool) error {
	return n.create(desc, id, campaign)
}

// after does something later, unless the node's life has ended by then.
func (n *Node) after(d time.Duration, do func()) {
	life := n.life
	n.c.afterOn(n, d, func() {
		if n.Up && n.life == life {
			if n.paused > n.c.now {
				n.after(time.Duration(n.paused-n.c.now), do)
				return
			}
			do()
		}
	})
}

// Start starts a node on its disk.
func (c *Cluster) Start(id engine.NodeID) error {
	n := c.Node(id)
	n.life++
	n.Lives++
	n.incarnation = (c.Opt.Seed+1)*1_000_000 + n.life*1000 + uint64(id)
	n.startClock()
	life := n.life
	synced, err := n.db.SyncedSeq()
	if err != nil {
		return err
	}
	salt := rand.New(rand.NewPCG(c.Opt.Seed, n.incarnation))
	log, rec, err := raftlog.Open(n.fs(), "log", raftlog.Options{SegmentBytes: c.Opt.SegmentBytes, CacheBytes: c.Opt.CacheBytes, SyncedHint: synced,
		Salt: salt.Uint64, Logger: c.Opt.Logger})
	if n.life != life {
		return ErrCrashed
	}
	if err != nil {
		return fmt.Errorf("node %d: %w", id, err)
	}
	if c.Opt.Recovered != nil {
		c.Opt.Recovered(n, rec)
	}
	cfg := scheduler.Config{Node: id, Incarnation: n.incarnation, Lanes: c.Opt.Lanes, Logger: c.Opt.Logger,
		BulkBytes: [...]int{0, 1, 300, 3000}[c.Opt.Seed%4], // with 0, the default, hardly any message is big enough here to be overtaken
		Fatal:     func(err error) { n.fatal(life, err) }}
	if c.Opt.Config != nil {
		c.Opt.Config(&cfg)
	}
	if n.heartbeatEvery = time.Duration(cfg.HeartbeatInterval); n.heartbeatEvery == 0 {
		n.heartbeatEvery = 100 * time.Millisecond
	}
	deps := scheduler.Deps{Log: log, Recovery: rec, State: n.db, Network: network{n, life}, Clock: n.clock,
		Spawn: func(f func()) { n.spawn(c.jitter(taskDelay), f) },
		ReadJob: func(job *state.ReadJob) {
			n.after(c.jitter(taskDelay), func() {
				n.db.RunJob(job)
				n.after(c.jitter(taskDelay), func() { job.Done(job) })
			})
		}}
	if c.Opt.Probe != nil {
		deps.Probe = c.Opt.Probe(n)
	}
	n.Sched, err = scheduler.New(cfg, deps)
	if n.life != life {
		return ErrCrashed
	}
	if err != nil {
		return fmt.Errorf("node %d: %w", id, err)
	}
	n.log, n.Up, n.flushing, n.writing, n.paused = log, true, false, false, 0
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
	defer n.stopTasks()
	n.disk = n.disk.Crash(rand.New(rand.NewPCG(c.Opt.Seed, n.life)), c.Opt.Crash)
	n.db = n.db.Clone(n.stateOptions())
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
	n.after(n.heartbeatEvery, n.heartbeat)
}

func (n *Node) checkpoint() {
	n.Sched.LookForCheckpoints()
	n.Sched.CollectGarbage()
	n.pump()
	n.after(time.Second, n.checkpoint)
	n.write()
}

// write writes cuts as long as there are any. Now and then it is there before anybody else has done anything.
func (n *Node) write() {
	if n.writing {
		return
	}
	n.writing = true
	n.writes++
	delay := 2 * time.Millisecond
	if n.writes%3 == 0 {
		delay = time.Microsecond
	}
	n.after(delay, func() {
		n.writing = false
		if n.NoCheckpoints {
			return
		}
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
		life := n.life
		next := n.Sched.Lanes()[lane].Turn()
		if n.life != life {
			return
		}
		if next != 0 {
			n.turnIn(lane, time.Duration(max(next-n.clock.Now(), engine.Instant(turnDelay))))
		}
		n.pump()
	})
}

// pump schedules what the last event has made necessary on this node.
func (n *Node) pump() {
	if !n.Up || n.paused > n.c.now {
		return
	}
	for i, l := range n.Sched.Lanes() {
		if l.HasMail() {
			n.turnIn(i, n.c.jitter(turnDelay))
		}
	}
	if !n.flushing {
		select {
		case <-n.log.Pending():
			n.flushing = true
			n.spawn(0, n.flush)
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
	e := c.events.pop()
	c.now = max(c.now, e.at)
	e.do()
	if e.n != nil {
		e.n.pump()
		return true
	}
	for _, n := range c.Nodes {
		n.pump()
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
