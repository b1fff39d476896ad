package simrt

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/store/vfs"
)

var (
	allPoints = flag.Bool("crash.all", false, "cut the power at every point of each script, not at some")
	crashSeed = flag.Uint64("crash.seed", 0, "added to the seeds of the scripts")
	soakSeed  = flag.Uint64("soak.seed", 0, "reshape ten times under faults, from this seed on")
)

// TestReshapeSoak is TestReshapeChaos with other seeds, for make soak.
func TestReshapeSoak(t *testing.T) {
	if *soakSeed == 0 {
		t.Skip("only with -soak.seed")
	}
	for i := range uint64(10) {
		t.Run(fmt.Sprint("seed", *soakSeed+i), func(t *testing.T) { reshapeChaos(t, *soakSeed*10+i, 60) })
	}
}

// crashPointsMax is how many points of a script are tried without -crash.all.
const crashPointsMax = 8

// crashScript is a piece of work during which the power of one node is cut, at each change of its disk and each commit of its state.
type crashScript struct {
	name    string
	opt     Options
	shards  int // at the end
	clients int
	// before makes what the work needs. work names the node and does it; the node may be down when it returns.
	before func(x *reshape)
	work   func(x *reshape, arm func(engine.NodeID))
}

// pointCounter counts the changes of a node's disk and state, and cuts its power before one of them.
type pointCounter struct {
	node   engine.NodeID // zero: none yet
	at     int           // zero: only count
	points int
	kinds  map[string]int
	rare   []int // the points that are neither a write nor a sync of the log
}

// hit tells whether the power is to be cut now.
func (p *pointCounter) hit(n *Node, kind string) bool {
	if n.ID != p.node || !n.Up {
		return false
	}
	p.points++
	p.kinds[kind]++
	if kind != vfs.OpWrite.String() && kind != vfs.OpDatasync.String() {
		p.rare = append(p.rare, p.points)
	}
	return p.points == p.at
}

func (s *crashScript) run(t *testing.T, at int) *pointCounter {
	p := &pointCounter{at: at, kinds: map[string]int{}}
	opt := s.opt
	opt.FailStop, opt.Seed = true, opt.Seed+*crashSeed*10
	opt.Disk = func(n *Node, op *vfs.Op) error {
		if op.Kind.Changes() && p.hit(n, op.Kind.String()) {
			n.c.Crash(n.ID)
			return ErrCrashed
		}
		return nil
	}
	opt.StateFault = func(n *Node) error {
		if p.hit(n, "commit") {
			return ErrCrashed
		}
		return nil
	}
	x := newReshape(t, opt, s.clients)
	s.before(x)
	s.work(x, func(id engine.NodeID) { p.node = id })
	p.node = 0
	if at != 0 && p.points < at {
		t.Fatalf("only %d points were met", p.points)
	}
	x.check(s.shards)
	return p
}

// TestCrashPoints cuts the power of a node at the points of each script: all that was acknowledged must be there afterwards, and all
// replicas the same.
func TestCrashPoints(t *testing.T) {
	small := func(c *scheduler.Config) {
		smallLogs(c)
		c.LogSegmentsMax = 2
	}
	scripts := []crashScript{
		{name: "split checkpoint", opt: Options{Seed: 3000, Lanes: 2, Crash: roughDisk, Config: smallLogs}, shards: 4, clients: 4, before: func(x *reshape) {
			x.run(200 * time.Millisecond)
		}, work: func(x *reshape, arm func(engine.NodeID)) {
			arm(x.c.Leader(parentShard).ID)
			x.mustSplit(parentShard, x.spec(x.desc(parentShard), cutKeys(4)...))
			x.run(300 * time.Millisecond)
		}},
		{name: "merge", opt: Options{Seed: 3001, Crash: roughDisk, Config: smallLogs}, shards: 1, clients: 4, before: func(x *reshape) {
			x.splitFirst(2)
		}, work: func(x *reshape, arm func(engine.NodeID)) {
			arm(x.c.Leader(parentShard).ID%3 + 1)
			if n := x.c.Leader(parentShard); n != nil {
				l, r := x.desc(parentShard), x.desc(x.next-1)
				n.Sched.Merge(scheduler.MergeSpec{Left: l.Shard, Right: r.Shard, LeftVersion: l.Version, LeftConfVersion: l.ConfVersion,
					RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(error) {})
				n.pump()
			}
			x.run(300 * time.Millisecond)
			x.heal()
			x.leaders(parentShard)
			if x.desc(x.next-1) != nil {
				x.merge(parentShard, x.next-1)
			}
		}},
		{name: "snapshot ingest", opt: Options{Seed: 3002, Crash: roughDisk, Config: smallLogs}, shards: 2, clients: 2, before: func(x *reshape) {
			x.splitFirst(2)
			x.c.Isolate(3, true)
			x.run(3 * time.Second)
		}, work: func(x *reshape, arm func(engine.NodeID)) {
			arm(3)
			linked := x.c.Node(3).Sched.Metrics().SnapshotsReceived.Load()
			x.c.Isolate(3, false)
			for end := x.c.now + engine.Instant(3*time.Second); x.c.now < end && x.c.Node(3).Up; {
				x.run(50 * time.Millisecond)
			}
			if n := x.c.Node(3); n.Up && n.Sched.Metrics().SnapshotsReceived.Load() == linked {
				x.t.Fatal("no snapshot was needed")
			}
		}},
		{name: "segment recycling", opt: Options{Seed: 3003, Crash: roughDisk, Config: small, SegmentBytes: 64 << 10}, shards: 1, clients: 20, before: func(x *reshape) {
			x.run(time.Second)
		}, work: func(x *reshape, arm func(engine.NodeID)) {
			arm(2)
			oldest, _ := x.c.Node(2).Segments()
			for end := x.c.now + engine.Instant(20*time.Second); x.c.now < end && x.c.Node(2).Up; x.run(50 * time.Millisecond) {
				if now, _ := x.c.Node(2).Segments(); now > oldest {
					return
				}
			}
			if x.c.Node(2).Up {
				x.t.Fatal("no segment was recycled")
			}
		}},
	}
	for i := range scripts {
		s := &scripts[i]
		t.Run(s.name, func(t *testing.T) {
			whole := s.run(t, 0)
			stride := 1
			if !*allPoints {
				stride = max(1, (whole.points+crashPointsMax-1)/crashPointsMax)
			}
			points := whole.rare
			for at := 1; at <= whole.points; at += stride {
				points = append(points, at)
			}
			slices.Sort(points)
			points = slices.Compact(points)
			for _, at := range points {
				if !t.Failed() {
					t.Run(fmt.Sprint("point", at), func(t *testing.T) { s.run(t, at) })
				}
			}
			t.Logf("%d of %d points: %v", len(points), whole.points, whole.kinds)
		})
	}
}
