package sim

import (
	"fmt"
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
	// Span is how long faults and clients go on: default 20 s.
	Span time.Duration
	// Calm makes a run without faults.
	Calm bool
}

// Result is what a run was.
type Result struct {
	Seed  uint64
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

// sim is one run.
type sim struct {
	opt    Options
	seed   uint64
	rng    *rand.Rand
	knobs  knobs
	c      *simrt.Cluster
	check  *checker
	shards []engine.ShardID
	nextID engine.ReplicaID

	clients  []*client
	history  history
	stopping bool // clients start nothing new
	settling bool // faults are over

	disks     map[engine.NodeID]*disk
	sometimes map[string]int
	trace     []string
	err       error
	lost      engine.NodeID // its disk is gone for good
	badClock  engine.NodeID // its wall clock may be off by an hour
	events    uint64
}

// knobs are what a seed chooses.
type knobs struct {
	nodes, lanes, shards, clients int
	fifo                          bool
	electionTimeout               time.Duration
	faultEvery                    time.Duration
	moves                         bool
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

func drawKnobs(r *rand.Rand) knobs {
	t := pick(r, 200*time.Millisecond, 500*time.Millisecond, time.Second)
	k := knobs{
		nodes: pick(r, 3, 3, 4, 5), lanes: 1 + r.IntN(2), shards: 3 + r.IntN(22), clients: 4 + r.IntN(10),
		fifo: r.IntN(2) == 0, electionTimeout: t, faultEvery: pick(r, 150*time.Millisecond, 400*time.Millisecond, time.Second),
		moves: r.IntN(3) > 0, think: pick(r, 2*time.Millisecond, 10*time.Millisecond, 30*time.Millisecond), answersLost: pick(r, 0, 0.01, 0.1),
		valueMax:     pick(r, 10, 100, 3000),
		crash:        vfs.CrashPolicy{KeepWrite: pick(r, 0, 0.3, 0.9), TearWrite: pick(r, 0, 0.5, 1), KeepDir: pick(r, 0, 0.5, 1)},
		segmentBytes: pick[int64](r, 64<<10, 256<<10, 1<<20), cacheBytes: pick[int64](r, 4<<10, 64<<10, 1<<20),
	}
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
	return k
}

// Run makes the run of a seed.
func Run(seed uint64, opt Options) *Result {
	if opt.Span == 0 {
		opt.Span = 20 * time.Second
	}
	s := &sim{opt: opt, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x6b696c6f)), sometimes: map[string]int{}, disks: map[engine.NodeID]*disk{}}
	s.knobs = drawKnobs(s.rng)
	s.check = newChecker(s)
	s.run()
	r := &Result{Seed: seed, Err: s.err, Trace: s.trace, Hash: s.check.hash, Sometimes: s.sometimes, Events: s.events,
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
	end := s.c.Now() + engine.Instant(s.opt.Span)
	if !s.opt.Calm {
		s.c.After(between(s.rng, 0, s.knobs.faultEvery), s.faults)
	}
	if s.knobs.moves {
		s.c.After(between(s.rng, 0, time.Second), s.moves)
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
		},
		OnFatal: s.onFatal, Disk: s.onDisk, Probe: func(n *simrt.Node) scheduler.Probe { return &probe{s.check, n, n.Life()} },
	})
	if err != nil {
		s.fail("start: %w", err)
	}
	s.c = c
	c.Net.FIFO = k.fifo
	for i := range k.shards {
		id := engine.ShardID(2 + i)
		s.shards = append(s.shards, id)
		s.create(id)
	}
	if err := c.Until(30*time.Second, func() bool { return s.leaderless() == 0 }); err != nil {
		s.fail("shard %d has no first leader: %w", s.leaderless(), err)
	}
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
	for _, id := range s.shards {
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
