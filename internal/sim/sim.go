package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/scheduler/simrt"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// Options of a run. Everything else follows from the seed.
type Options struct {
	// Trace keeps what happened, for reading.
	Trace bool
	// Span is how long faults and clients go on: default as the seed has it.
	Span time.Duration
	// Pace, if set, is used instead of what the seed has: see knobs.
	Pace string
	// Aim, if set, is one of aims.
	Aim string
	// Calm makes a run without faults.
	Calm bool
}

// Result is what a run was.
type Result struct {
	Seed  uint64
	Pace  string
	Err   error
	Knobs string
	Trace []string
	// Hash is of all events: equal for equal seeds.
	Hash uint64
	// Sometimes counts the rare things that happened.
	Sometimes map[string]int
	Simulated time.Duration
	Events    uint64
	Ops       int
	Unknown   int
}

// firstChild is below the names of all children of splits, and above those of the shards that are there from the start.
const firstChild engine.ShardID = 10_000

// sim is one run.
type sim struct {
	opt   Options
	seed  uint64
	rng   *rand.Rand
	knobs knobs
	aim   *aim
	c     *simrt.Cluster
	check *checker
	dir   *directory
	// groups are ranges of keys, named by the shard that each of them was at first.
	groups    []engine.ShardID
	nextID    engine.ReplicaID
	nextShard engine.ShardID

	durable map[engine.NodeID]durable

	clients  []*client
	history  history
	stopping bool // clients start nothing new
	settling bool // faults are over

	disks    map[engine.NodeID]*disk
	stepAt   string        // of a split or merge, at which the next node that comes there crashes
	doomed   engine.NodeID // it crashes when the event is over
	draining engine.NodeID
	// mustDie is the life of a node whose disk has failed: it must end with the event.
	mustDie struct {
		n    *simrt.Node
		life uint64
	}
	// settled: replicas up to id were added while there were faults; what has become of that is known at.
	settled struct {
		id engine.ReplicaID
		at engine.Instant
	}
	sometimes map[string]int
	trace     []string
	err       error
	lost      map[engine.NodeID]bool // their disks are gone for good
	badClock  engine.NodeID          // its wall clock may be off by an hour
	events    uint64
}

// knobs are what a seed chooses.
type knobs struct {
	pace                          string // busy, or quiet, or wide: many shards
	span                          time.Duration
	nodes, lanes, shards, clients int
	fifo                          bool
	electionTimeout               time.Duration
	faultEvery                    time.Duration
	moves                         bool
	moveEvery                     time.Duration
	wildClocks                    bool // monotonic clocks jump by more than leases allow for: reads promise nothing then
	loseDisk                      bool
	lose                          string // all, or a bit, which is as much once it is noticed; empty: as it comes
	think                         time.Duration
	answersLost                   float64
	valueMax                      int
	crash                         vfs.CrashPolicy
	config                        scheduler.Config
	segmentBytes, cacheBytes      int64
}

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func between(r *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(r.Int64N(int64(b-a)+1))
}

func drawKnobs(r *rand.Rand, pace string) knobs {
	t := pick(r, 200*time.Millisecond, 500*time.Millisecond, time.Second)
	k := knobs{
		pace: "busy", span: 20 * time.Second,
		nodes: pick(r, 3, 3, 4, 5), lanes: 1 + r.IntN(2), shards: 3 + r.IntN(22), clients: 4 + r.IntN(10),
		fifo: r.IntN(2) == 0, electionTimeout: t, faultEvery: pick(r, t/2, 3*t/2, 4*t),
		moves: r.IntN(3) > 0, moveEvery: pick(r, 200*time.Millisecond, 600*time.Millisecond),
		think: pick(r, 2*time.Millisecond, 10*time.Millisecond, 30*time.Millisecond), answersLost: pick(r, 0, 0.01, 0.1),
		wildClocks: r.IntN(8) == 0, loseDisk: r.IntN(3) == 0, valueMax: pick(r, 10, 100, 3000),
		crash:        vfs.CrashPolicy{KeepWrite: pick(r, 0, 0.3, 0.9), TearWrite: pick(r, 0, 0.5, 1), KeepDir: pick(r, 0, 0.5, 1)},
		segmentBytes: pick[int64](r, 64<<10, 256<<10, 1<<20), cacheBytes: pick[int64](r, 4<<10, 64<<10, 1<<20),
	}
	switch p := r.IntN(10); {
	case pace == "busy":
	case p < 3 || pace == "quiet": // hours in which little happens, and what happens meets sleepers
		k.pace, k.span = "quiet", time.Hour
		k.electionTimeout = time.Second
		k.shards, k.clients = 3+r.IntN(6), 3
		k.think, k.faultEvery, k.moveEvery = 40*time.Second, pick(r, time.Minute, 4*time.Minute), 5*time.Minute
	case p == 3 || pace == "wide":
		k.pace, k.span = "wide", 10*time.Second
		k.electionTimeout = time.Second
		k.shards, k.clients = 100+r.IntN(150), 10
	}
	k.loseDisk = k.loseDisk && k.moves // else nobody would bring the replicas back
	t = k.electionTimeout
	k.config = scheduler.Config{
		ElectionTimeoutMin:  engine.Duration(t),
		HeartbeatInterval:   engine.Duration(t / 10),
		QuiesceAfter:        engine.Duration(pick(r, -1, t/2, 2*t)),
		CheckpointAge:       engine.Duration(pick(r, 200*time.Millisecond, time.Second, 10*time.Second)),
		CheckpointShard:     pick(r, 1<<10, 16<<20),
		ShardLogEntriesKeep: pick[uint64](r, 1, 8, 1024),
		ShardLogBytesMax:    pick[int64](r, 1<<10, 16<<10, 1<<20),
		LogSegmentsMax:      pick(r, 2, 4),
		InflightMessages:    pick(r, 1, 4, 64),
		EntriesPerMessage:   pick(r, 1, 8, 1024),
		SnapshotsMax:        1 + r.IntN(3),
		SnapshotBytesPerSec: -1,
		CheckpointTxBytes:   pick(r, 1, 4<<10, 2<<20),
	}
	if k.pace == "quiet" {
		k.config.QuiesceAfter = engine.Duration(t)
	}
	return k
}

// Run makes the run of a seed.
func Run(seed uint64, opt Options) *Result {
	s := &sim{opt: opt, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6b696c6f)), sometimes: map[string]int{}, disks: map[engine.NodeID]*disk{},
		durable: map[engine.NodeID]durable{}, lost: map[engine.NodeID]bool{}, nextShard: firstChild}
	s.knobs = drawKnobs(s.rng, opt.Pace)
	if s.aim = aimOf(opt.Aim); s.aim != nil {
		s.knobs = drawKnobs(rand.New(rand.NewPCG(seed, 0x61696d)), "busy")
		s.aim.apply(&s.knobs)
	}
	if opt.Span != 0 {
		s.knobs.span = opt.Span
	}
	s.check = newChecker(s)
	s.dir = newDirectory(s)
	scheduler.FaultHook = s.onStep
	defer func() { scheduler.FaultHook = nil }()
	s.run()
	r := &Result{Seed: seed, Pace: s.knobs.pace, Err: s.err, Trace: s.trace, Hash: s.check.hash, Sometimes: s.sometimes, Events: s.events,
		Ops: len(s.history.ops), Unknown: s.history.unknown}
	r.Knobs = fmt.Sprintf("%+v", s.knobs)
	if s.c != nil {
		r.Simulated = time.Duration(s.c.Now()) - time.Second
	}
	return r
}

func (s *sim) run() {
	defer func() {
		if p := recover(); p != nil {
			if f, ok := p.(failure); ok {
				s.err = f.err
				return
			}
			panic(p)
		}
	}()
	s.start()
	for i := range s.knobs.clients {
		s.clients = append(s.clients, newClient(s, i))
	}
	end := s.c.Now() + engine.Instant(s.knobs.span)
	if !s.opt.Calm {
		s.c.After(between(s.rng, 0, s.knobs.faultEvery), s.faults)
	}
	if s.knobs.moves {
		s.c.After(between(s.rng, 0, s.knobs.moveEvery), s.moves)
	}
	s.until(end, func() bool { return false })
	s.settle()
	s.history.verify(s)
}

func (s *sim) start() {
	k := &s.knobs
	c, err := simrt.New(simrt.Options{
		Nodes: k.nodes, Lanes: k.lanes, Seed: s.seed, SegmentBytes: k.segmentBytes, CacheBytes: k.cacheBytes, Crash: k.crash, Skew: true,
		FailStop: true, Config: func(c *scheduler.Config) {
			node, inc, logger, fatal, lanes := c.Node, c.Incarnation, c.Logger, c.Fatal, c.Lanes
			*c = k.config
			c.Node, c.Incarnation, c.Logger, c.Fatal, c.Lanes = node, inc, logger, fatal, lanes
			c.OnDescriptors = func(events []scheduler.DescriptorEvent) { s.dir.learn(node, events) }
			c.OnDescriptor = func(ev scheduler.DescriptorEvent) { s.dir.learn(node, []scheduler.DescriptorEvent{ev}) }
		},
		Logger: slog.New(logCounter{s: s}), FS: s.watch, Recovered: s.onRecovered, StateFault: s.onCommit,
		StateFull: func(n *simrt.Node) bool { return s.disk(n.ID).fullState },
		OnFatal:   s.onFatal, Disk: s.onDisk, Probe: func(n *simrt.Node) scheduler.Probe { return &probe{s.check, n, n.Life()} },
	})
	if err != nil {
		s.fail("start: %w", err)
	}
	s.c = c
	c.Net.FIFO = k.fifo
	for i := range k.shards {
		id := engine.ShardID(2 + i)
		s.groups = append(s.groups, id)
		s.create(id)
	}
	if err := c.Until(30*time.Second, func() bool { return s.leaderless() == 0 }); err != nil {
		s.fail("shard %d has no first leader: %w", s.leaderless(), err)
	}
	for _, id := range s.groups {
		s.fill(id)
	}
}

// fixedKeys are in each group from the start, and never change: every scan must find each of them once.
const fixedKeys = 10

func (s *sim) fill(id engine.ShardID) {
	w := shard.Write{Shard: id, Version: 1}
	for i := range fixedKeys {
		k := key(id, fmt.Sprint("fix/", i))
		w.Ops = append(w.Ops, shard.Op{Kind: shard.OpPut, Key: k, Value: k})
	}
	for done := false; !done; {
		answered := false
		req := &scheduler.Request{Kind: scheduler.KindWrite, Shard: id, Body: shard.AppendWrite(nil, &w),
			Done: func(r *scheduler.Request) { done, answered = r.Err == nil, true }}
		if l := s.leader(id); l != nil {
			l.Submit(req)
		} else {
			answered = true
		}
		if err := s.c.Until(30*time.Second, func() bool { return answered }); err != nil {
			s.fail("filling shard %d: %w", id, err)
		}
		s.c.Run(time.Millisecond)
	}
}

// logCounter counts the messages of the nodes: what they find worth telling is rare.
type logCounter struct {
	slog.Handler
	s *sim
}

// Enabled implements slog.Handler.
func (logCounter) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h logCounter) Handle(_ context.Context, r slog.Record) error {
	h.s.happened("log: " + r.Message)
	if h.s.opt.Trace {
		line := r.Message
		r.Attrs(func(a slog.Attr) bool {
			line += " " + a.String()
			return true
		})
		h.s.tracef("log: %s", line)
	}
	return nil
}

// create makes a shard with three replicas.
func (s *sim) create(id engine.ShardID) {
	d := &shard.Descriptor{Shard: id, Start: fmt.Appendf(nil, "s%05d/", id), End: fmt.Appendf(nil, "s%05d0", id), Version: 1, ConfVersion: 1}
	for i := range 3 {
		s.nextID++
		node := engine.NodeID((int(id)+i)%s.knobs.nodes + 1)
		d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: s.nextID, Node: node, Role: shard.RoleVoter})
	}
	for i, r := range d.Replicas {
		if err := s.c.Node(r.Node).Create(d, r.Replica, i == 0); err != nil {
			s.fail("creating shard %d: %w", id, err)
		}
	}
}

// leaderless returns a shard without a leader that may serve, zero if there is none.
func (s *sim) leaderless() engine.ShardID {
	for _, id := range s.dir.ids {
		if s.leader(id) == nil {
			return id
		}
	}
	return 0
}

// until runs events until a time, or until cond holds: it tells which.
func (s *sim) until(end engine.Instant, cond func() bool) bool {
	for !cond() {
		if s.c.Failed != nil {
			s.fail("%w", s.c.Failed)
		}
		if s.err != nil {
			panic(failure{s.err})
		}
		if s.c.Now() >= end || !s.c.Step() {
			return false
		}
		s.events++
		if n := s.mustDie.n; n != nil {
			if s.mustDie.n = nil; n.Up && n.Life() == s.mustDie.life {
				s.fail("node %d goes on although a write of its disk has failed", n.ID)
			}
		}
		if s.doomed != 0 {
			n := s.c.Node(s.doomed)
			s.doomed = 0
			if n.Up {
				s.crash(n)
				s.restartLater(n)
			}
		}
	}
	return true
}

// failure ends a run.
type failure struct{ err error }

// fail ends the run: something that must hold does not.
func (s *sim) fail(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if s.err == nil {
		s.err = err
	}
	s.tracef("FAILED: %v", err)
	panic(failure{s.err})
}

func (s *sim) tracef(format string, args ...any) {
	if !s.opt.Trace {
		return
	}
	now := engine.Instant(0)
	if s.c != nil {
		now = s.c.Now() - 1e9
	}
	s.trace = append(s.trace, fmt.Sprintf("%12.6f ", float64(now)/1e9)+fmt.Sprintf(format, args...))
	if len(s.trace) > 400_000 {
		s.trace = append(s.trace[:0], s.trace[200_000:]...)
	}
}

// happened counts something rare.
func (s *sim) happened(what string) { s.sometimes[what]++ }
