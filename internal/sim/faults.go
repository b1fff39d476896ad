package sim

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler/simrt"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// disk is what is wrong with a node's disk.
type disk struct {
	crashIn   int  // operations that change something, until the power is cut; zero: never
	failIn    int  // until one fails with EIO
	full      bool // for the log
	fullState bool
	flipped   bool // a bit, behind the back of the node
	// The same for the commits of the state: until the power is cut before one, and until one fails.
	crashCommit, failCommit int
}

func (s *sim) disk(id engine.NodeID) *disk {
	d := s.disks[id]
	if d == nil {
		d = &disk{}
		s.disks[id] = d
	}
	return d
}

// onDisk is asked before every operation on a disk.
func (s *sim) onDisk(n *simrt.Node, op *vfs.Op) error {
	d := s.disk(n.ID)
	if !op.Kind.Changes() {
		return nil
	}
	if d.crashIn > 0 {
		if d.crashIn--; d.crashIn == 0 {
			if n.Up {
				s.happened("crash at a disk operation")
			} else {
				s.happened("crash during recovery")
			}
			s.tracef("node %d: power cut before %v %s", n.ID, op.Kind, op.Name)
			s.c.Crash(n.ID)
			s.restartLater(n)
			return simrt.ErrCrashed
		}
	}
	if d.failIn > 0 {
		if d.failIn--; d.failIn == 0 {
			s.tracef("node %d: EIO at %v %s", n.ID, op.Kind, op.Name)
			s.happened("EIO")
			s.dies(n, op)
			if op.Kind == vfs.OpWrite && op.Size > 1 {
				op.Size = s.rng.IntN(op.Size)
			}
			return syscall.EIO
		}
	}
	if d.full && (op.Kind == vfs.OpAllocate || op.Kind == vfs.OpCreate) {
		s.happened("disk full")
		return syscall.ENOSPC
	}
	return nil
}

// dies notes that a node must not outlive a failed write or sync of its log (fail-stop).
func (s *sim) dies(n *simrt.Node, op *vfs.Op) {
	if n.Up && (op.Kind == vfs.OpDatasync || op.Kind == vfs.OpWrite) && strings.HasSuffix(op.Name, ".seg") {
		s.mustDie.n, s.mustDie.life = n, n.Life()
	}
}

// onCommit is asked before every commit of a state.
func (s *sim) onCommit(n *simrt.Node) error {
	d := s.disk(n.ID)
	if d.crashCommit > 0 {
		if d.crashCommit--; d.crashCommit == 0 {
			s.happened("crash before a commit of the state")
			s.tracef("node %d: power cut before a commit", n.ID)
			return simrt.ErrCrashed
		}
	}
	if d.failCommit > 0 {
		if d.failCommit--; d.failCommit == 0 {
			s.happened("EIO in the state")
			s.tracef("node %d: EIO at a commit", n.ID)
			if n.Up {
				s.mustDie.n, s.mustDie.life = n, n.Life()
			}
			return syscall.EIO
		}
	}
	return nil
}

// onStep is told of the labelled steps of operations, and may crash the node there.
func (s *sim) onStep(node engine.NodeID, id engine.ShardID, step string) {
	s.happened(step)
	s.tracef("node %d shard %d: %s", node, id, step)
	switch step {
	case "split: applied":
		s.check.splitApplied(node, id)
	case "split: settled":
		s.check.splitSettled(node, id)
	}
	if s.aim != nil && s.aim.step != nil && !s.settling {
		s.aim.step(s, node, step)
	}
	if step == s.stepAt && s.doomed == 0 {
		s.stepAt, s.doomed = "", node
		s.happened("crash at a step of an operation")
	}
}

// steps are where the nodes crash, by what was ordered.
var steps = map[string][]string{
	"split": {"split: propose", "split: applied", "split: synced", "split: child made", "split: born", "split: checkpoint", "split: checkpoint written",
		"split: settled"},
	"merge": {"merge: propose", "merge: prepared", "merge: frozen", "merge: frozen everywhere", "merge: decide", "merge: applying", "merge: right cut",
		"merge: checkpoint", "merge: checkpoint written", "merge: right buried", "merge: done", "merge: abort", "merge: aborted", "merge: unfrozen", "merge: ended"},
	"move": {"membership: propose", "membership: joint", "membership: joint left", "membership: learners", "snapshot: cut", "snapshot: link",
		"snapshot: linked", "remove: tombstone", "remove: tombstone written", "remove: log dropped"},
}

// crashAt has the next node crash that comes to some step of what is being ordered, sometimes.
func (s *sim) crashAt(what string) {
	if s.rng.IntN(5) == 0 && !s.settling {
		s.stepAt = pick(s.rng, steps[what]...)
	}
}

// onFatal is told of a process that ended itself.
func (s *sim) onFatal(n *simrt.Node, err error) {
	s.tracef("node %d: fatal: %v", n.ID, err)
	if !errors.Is(err, syscall.EIO) && !errors.Is(err, simrt.ErrCrashed) {
		s.err = fmt.Errorf("node %d ended itself: %w", n.ID, err)
		return
	}
	s.happened("fail-stop")
	s.c.After(0, func() { s.restartLater(n) })
}

func (s *sim) crash(n *simrt.Node) {
	if n.Up {
		s.tracef("node %d: crash", n.ID)
		s.c.Crash(n.ID)
	}
}

// restartLater starts a node that is down, after a while, unless it is lost.
func (s *sim) restartLater(n *simrt.Node) {
	d := between(s.rng, time.Millisecond, 3*s.knobs.electionTimeout)
	if s.rng.IntN(6) == 0 {
		d *= 8
	}
	s.c.After(d, func() { s.restart(n) })
}

func (s *sim) restart(n *simrt.Node) {
	if n.Up || s.lost[n.ID] {
		return
	}
	d := s.disk(n.ID)
	*d = disk{flipped: d.flipped}
	if !s.settling && s.rng.IntN(4) == 0 {
		d.crashIn = 1 + s.rng.IntN(12)
	}
	if !s.settling && s.rng.IntN(12) == 0 {
		d.crashCommit = 1
	}
	err := s.c.Start(n.ID)
	if !n.Up && errors.Is(err, state.ErrFailed) {
		s.happened("crash during recovery")
		s.c.Crash(n.ID)
		s.restartLater(n)
	}
	if d.crashIn > 0 && s.rng.IntN(2) == 0 {
		d.crashIn = 0
	}
	s.tracef("node %d: started: %v", n.ID, err)
	switch {
	case errors.Is(err, raftlog.ErrCorrupt) && d.flipped:
		s.happened("corruption refused")
		s.loseDisk(n)
		return
	case errors.Is(err, simrt.ErrCrashed), err != nil && strings.Contains(err.Error(), simrt.ErrCrashed.Error()):
	case err != nil:
		s.fail("node %d does not start: %w", n.ID, err)
	}
	s.happened("restart")
}

// loseDisk takes a node away for good, with all that it holds. Another one comes in its place, under a new name.
func (s *sim) loseDisk(n *simrt.Node) {
	s.crash(n)
	n.Wipe()
	s.lost[n.ID] = true
	delete(s.durable, n.ID)
	fresh := s.c.AddNode()
	s.tracef("node %d: its disk is lost, node %d takes its place", n.ID, fresh.ID)
	s.happened("disk lost")
	s.restartLater(fresh)
}

// redundant tells whether every shard can afford to lose a disk: its leader has three voters in force, and no change under way.
func (s *sim) redundant() bool {
	for _, id := range s.dir.ids {
		l := s.leader(id)
		if l == nil {
			return false
		}
		for _, k := range s.check.keys[l.ID][id] {
			e := s.check.engines[place{l.ID, k}]
			if e.life != l.Life() || !e.eng.IsLeader() {
				continue
			}
			st := e.eng.Status()
			m := st.Membership.Membership
			if m == nil || len(m.Voters) != 1 || len(m.Voters[0]) < 3 || st.Membership.LogID.Index > st.Applied.Index {
				return false
			}
			for _, p := range m.Voters[0] {
				if s.lost[p.Node] {
					return false
				}
			}
		}
	}
	return true
}

// flip changes a bit of the log of a node that is down; not of the very last frame, which would look like a torn one (see Limits of raftlog).
func (s *sim) flip(n *simrt.Node) {
	names, err := n.Disk().List("log")
	if err != nil || len(names) == 0 {
		return
	}
	last := raftlog.Record{}
	if err := raftlog.Dump(n.Disk(), "log", func(r *raftlog.Record) error { last = *r; return nil }); err != nil {
		return // it is damaged already
	}
	file := names[s.rng.IntN(len(names))]
	name := "log/" + file
	if err := n.Disk().Corrupt(name, func(b []byte) {
		used := len(bytes.TrimRight(b, "\x00"))
		if file == path.Base(last.File) {
			used = int(last.Offset)
		}
		if used > 0 {
			at := s.rng.IntN(used)
			b[at] ^= 1 << s.rng.IntN(8)
			s.tracef("node %d: a bit of %s is flipped at %d of %d", n.ID, name, at, used)
		}
	}); err != nil {
		s.fail("%w", err)
	}
	s.disk(n.ID).flipped = true
	s.happened("bit flipped")
}

func (s *sim) randomNode() *simrt.Node { return s.c.Nodes[s.rng.IntN(len(s.c.Nodes))] }

func (s *sim) alive() int {
	n := 0
	for _, x := range s.c.Nodes {
		if x.Up {
			n++
		}
	}
	return n
}

// faults does something bad, or ends something bad, and comes again.
func (s *sim) faults() {
	if s.settling {
		return
	}
	s.c.After(between(s.rng, s.knobs.faultEvery/4, 2*s.knobs.faultEvery), s.faults)
	t := s.knobs.electionTimeout
	n, o := s.randomNode(), s.randomNode()
	if s.knobs.loseDisk && n.Up && len(s.lost) == 0 && (s.knobs.lose != "" || s.rng.IntN(4) == 0) && s.redundant() {
		if s.knobs.loseDisk = false; s.knobs.lose == "all" || s.knobs.lose == "" && s.rng.IntN(2) == 0 {
			s.loseDisk(n)
		} else {
			s.crash(n)
			s.flip(n)
			s.restartLater(n)
		}
		return
	}
	kind := s.rng.IntN(22)
	if s.aim != nil && len(s.aim.faults) > 0 && s.rng.IntN(2) == 0 {
		kind = pick(s.rng, s.aim.faults...)
	}
	switch kind {
	case 0, 1:
		if n.Up && (s.alive() > len(s.c.Nodes)/2+1 || s.rng.IntN(4) == 0) {
			s.crash(n)
			s.restartLater(n)
		}
	case 2:
		if s.rng.IntN(3) == 0 {
			s.happened("all crash")
			for _, n := range s.c.Nodes {
				s.crash(n)
				s.restartLater(n)
			}
		}
	case 21:
		s.forget(n, o)
	case 20:
		if n.Up && s.rng.IntN(2) == 0 {
			s.disk(n.ID).crashCommit = 1 + s.rng.IntN(8)
		} else if n.Up && s.rng.IntN(3) == 0 {
			s.disk(n.ID).failCommit = 1 + s.rng.IntN(8)
		}
	case 3:
		s.disk(n.ID).crashIn = 1 + s.rng.IntN(30)
	case 4:
		if s.rng.IntN(3) == 0 {
			s.disk(n.ID).failIn = 1 + s.rng.IntN(10)
		}
	case 5:
		d := s.disk(n.ID)
		which := s.rng.IntN(3)
		d.full, d.fullState = which != 0, which != 1
		s.c.After(between(s.rng, t, 10*t), func() { d.full, d.fullState = false, false })
	case 6:
		if n.Up {
			d := between(s.rng, t/10, 3*t)
			s.tracef("node %d: pause %v", n.ID, d)
			s.happened("pause")
			n.Pause(d)
		}
	case 7:
		s.tracef("node %d: slow disk", n.ID)
		s.happened("disk stalls")
		n.SyncTime = between(s.rng, time.Millisecond, 3*t)
		s.c.After(between(s.rng, t, 5*t), func() { n.SyncTime = 0 })
	case 8:
		// Within the drift that leases allow for: a hundredth between any two.
		rate := 1 + (s.rng.Float64()-0.5)*0.009
		if s.knobs.wildClocks {
			rate = pick(s.rng, 0.2, 0.7, 1, 3, 20)
			s.happened("clock beyond the lease bound")
		}
		wall := int64(0)
		if s.rng.IntN(2) == 0 && (s.badClock == 0 || s.badClock == n.ID) { // one at a time: two of three would be the median
			wall = s.rng.Int64N(2*3_600_000) - 3_600_000
			s.badClock = n.ID
			s.happened("wall clock jumps")
		} else if s.badClock == n.ID {
			s.badClock = 0
		}
		s.tracef("node %d: clock at rate %f, wall off by %d ms", n.ID, rate, wall)
		n.SetClock(rate, wall)
	case 9, 10:
		s.isolate(n.ID, between(s.rng, t/4, 6*t))
	case 11, 12:
		if n != o {
			s.tracef("cut %d to %d", n.ID, o.ID)
			s.happened("one-way cut")
			s.c.Cut(n.ID, o.ID, true)
			if s.rng.IntN(2) == 0 {
				s.c.Cut(o.ID, n.ID, true)
			}
			s.c.After(between(s.rng, t/4, 6*t), func() { s.c.Cut(n.ID, o.ID, false); s.c.Cut(o.ID, n.ID, false) })
		}
	case 13:
		if n != o && n.Up && o.Up {
			s.tracef("session %d-%d breaks", n.ID, o.ID)
			s.c.Reconnect(n.ID, o.ID, between(s.rng, 0, t))
		}
	case 14, 15:
		s.badNetwork()
	case 16, 17:
		s.goodNetwork()
	default:
		s.transfer(s.dir.newest[s.dir.ids[s.rng.IntN(len(s.dir.ids))]])
	}
}

func (s *sim) badNetwork() {
	t := s.knobs.electionTimeout
	f := &s.c.Net
	f.Drop, f.Dup = s.rng.Float64()*pick(s.rng, 0, 0.05, 0.3), s.rng.Float64()*pick(s.rng, 0, 0.1, 0.3)
	f.Slow, f.SlowMax = s.rng.Float64()*pick(s.rng, 0, 0.05, 0.3), between(s.rng, time.Millisecond, pick(s.rng, t/2, 4*t, 20*t))
	f.DropHeartbeat = s.rng.Float64() * pick(s.rng, 0, 0, 0.5)
	f.BreakSnapshot = s.rng.Float64() * 0.3
	f.Refuse = s.rng.Float64() * pick(s.rng, 0, 0, 0.2)
	s.tracef("network %+v", *f)
}

func (s *sim) goodNetwork() { s.c.Net = simrt.NetFaults{FIFO: s.knobs.fifo} }

// forget cuts two nodes off from each other until one of them may campaign, and restarts a third, which has forgotten what it promised to
// the other (rule Engine2).
func (s *sim) forget(a, c *simrt.Node) {
	b := s.randomNode()
	if a == b || b == c || a == c || !b.Up {
		return
	}
	s.happened("a voter forgets its promises")
	t := s.knobs.electionTimeout
	s.c.Cut(a.ID, c.ID, true)
	s.c.Cut(c.ID, a.ID, true)
	s.c.After(between(s.rng, t, 4*t), func() {
		if s.settling {
			return
		}
		s.crash(b)
		s.c.After(time.Millisecond, func() { s.restart(b) })
	})
	s.c.After(6*t, func() { s.c.Cut(a.ID, c.ID, false); s.c.Cut(c.ID, a.ID, false) })
}
