package engine

import (
	"flag"
	"testing"
)

var seeds = flag.Int("seeds", 60, "how many seeds each cluster test runs")
var seedOne = flag.Uint64("seed", 0, "run only this seed")

// simCheck holds Raft's invariants, checked after every event.
type simCheck struct {
	s       *sim
	leaders map[uint64][2]uint64 // term → node, life: election safety, and rule Engine1
	written map[LogID]uint64     // log matching: an id names one entry
	chosen  map[uint64]simEntry  // committed never changes
	bodies  map[*AppendRequest][]simEntry
	top     uint64 // the highest chosen
	acked   uint64 // the highest index that a leader has applied, and so may have acknowledged
	life    map[*simNode]uint64
	seen    map[*simNode]simCursors
	commits int
	sleeps  int
	reads   int
	leases  int
	changes int
}

type simCursors struct{ flushed, committed, applied uint64 }

func (c *simCheck) init(s *sim) {
	c.s = s
	c.leaders, c.written, c.chosen = map[uint64][2]uint64{}, map[LogID]uint64{}, map[uint64]simEntry{}
	c.bodies, c.life, c.seen = map[*AppendRequest][]simEntry{}, map[*simNode]uint64{}, map[*simNode]simCursors{}
}

func (c *simCheck) appended(n *simNode, i uint64, e simEntry) {
	id := LogID{e.Term, i}
	if d, ok := c.written[id]; ok && d != e.Data {
		c.s.fatalf("%v: two entries share %v", n.self, id)
	}
	c.written[id] = e.Data
}

func (c *simCheck) applied(n *simNode, i uint64, e simEntry) {
	if old, ok := c.chosen[i]; ok && (old.Term != e.Term || old.Data != e.Data) {
		c.s.fatalf("%v applies %+v at %d, committed there was %+v", n.self, e, i, old)
	}
	if n.eng.IsLeader() && i > c.acked {
		c.acked = i
	}
}

// after runs after every event of n.
func (c *simCheck) after(n *simNode, was bool) {
	if n.eng == nil {
		return
	}
	s := n.eng.Status()
	if c.life[n] != n.life {
		c.life[n], c.seen[n] = n.life, simCursors{}
	}
	seen := c.seen[n]
	if s.Committed.Index < seen.committed || s.Applied.Index < seen.applied {
		c.s.fatalf("%v: a cursor went back: %+v, was %+v", n.self, s, seen)
	}
	if s.Flushed.Index > s.Last.Index || s.Committed.Index > s.Last.Index || s.Applied.Index > s.Committed.Index {
		c.s.fatalf("%v: cursors out of order: %+v", n.self, s)
	}
	c.seen[n] = simCursors{s.Flushed.Index, s.Committed.Index, s.Applied.Index}
	if s.Role == RoleLeader {
		c.leader(n, s, was, seen.committed)
	}
	if n.eng.IsLeader() && n.eng.LeaseValid(c.s.now) {
		c.leases++
		for _, o := range c.s.nodes {
			if o.eng != nil && o.applied.Index > n.applied.Index { // rule Engine4
				c.s.fatalf("%v may read by lease at %v, %v has applied %v", n.self, n.applied, o.self, o.applied)
			}
		}
		if n.applied.Index < c.acked {
			c.s.fatalf("%v may read by lease at %v, acknowledged is %d", n.self, n.applied, c.acked)
		}
	}
	if s.Quiesced && n.eng.IsLeader() {
		c.sleeps++
	}
	if s.Last.Index != n.log.last() {
		c.s.fatalf("%v: engine's last %v, log's %d", n.self, s.Last, n.log.last())
	}
	if n.eng.Deadline() != 0 && s.Quiesced {
		c.s.fatalf("%v sleeps with a deadline", n.self)
	}
}

func (c *simCheck) leader(n *simNode, s Status, was bool, before uint64) {
	me := [2]uint64{uint64(n.self.Node), n.life}
	if old, ok := c.leaders[s.Vote.Term]; ok && old != me {
		c.s.fatalf("two leaders of term %d: %v and %v", s.Vote.Term, old, me)
	}
	c.leaders[s.Vote.Term] = me
	if !was {
		for i, e := range c.chosen { // leader completeness
			if i > n.log.purged.Index && n.log.term(i) != e.Term {
				c.s.fatalf("leader %v of %d lacks committed %d of term %d", n.self, s.Vote.Term, i, e.Term)
			}
		}
	}
	for i := max(before, n.log.purged.Index, c.top) + 1; i <= s.Committed.Index; i++ {
		c.commit(n, i)
	}
}

// commit checks that what a leader commits is durable on a quorum of the membership in force in its log.
func (c *simCheck) commit(n *simNode, i uint64) {
	e := n.log.at(i)
	if e == nil {
		return
	}
	if old, ok := c.chosen[i]; ok && (old.Term != e.Term || old.Data != e.Data) {
		c.s.fatalf("%v commits %+v at %d, committed there was %+v", n.self, *e, i, old)
	}
	c.chosen[i] = *e
	c.top = max(c.top, i)
	c.commits++
	last := n.eng.committed.Index
	if !hasQuorum(n.eng.memb.Membership, func(p Peer) bool {
		o := c.s.node(p.Node)
		return o.disk.term(last) == n.log.term(last) || o.ckpt.Index >= last
	}) {
		c.s.fatalf("%v commits %d, which is not durable on a quorum", n.self, i)
	}
}

func (c *simCheck) readReady(n *simNode, token uint64) {
	for _, t := range c.s.sortedTokens(n.reads) {
		if t > token {
			return
		}
		if n.applied.Index < n.reads[t] {
			c.s.fatalf("%v reads at %v, acknowledged when it came was %d", n.self, n.applied, n.reads[t])
		}
		c.reads++
		delete(n.reads, t)
	}
}

// --- what happens to the cluster ---

// client does one random thing.
func (s *sim) client(changes bool) {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if l := s.leader(); l != nil && s.chance(0.8) {
		n = l
	}
	if n.eng == nil {
		return
	}
	s.token++
	switch r := s.rng.IntN(100); {
	case r < 50:
		kind := EntryNormal
		if s.chance(0.1) {
			kind = EntryBarrier
		}
		n.feed(&Write{Token: s.token, Count: 1 + s.rng.IntN(6), Bytes: s.rng.IntN(100), Kind: kind})
	case r < 75:
		n.reads[s.token] = s.check.acked
		n.feed(&ReadIndex{Token: s.token})
	case r < 80:
		n.feed(&TransferLeader{Token: s.token, To: s.nodes[s.rng.IntN(len(s.nodes))].self})
	case r < 81:
		n.feed(&Resign{})
	case r < 83:
		n.feed(&Wake{})
	case r < 84:
		n.feed(&Campaign{})
	case r < 92:
		for _, n := range s.nodes {
			n.checkpoint()
		}
	default:
		if changes {
			s.change(n)
		}
	}
}

func (n *simNode) checkpoint() {
	if n.eng == nil || n.memb.Membership == nil || n.s.chance(0.5) {
		return
	}
	n.ckpt, n.ckptMemb = n.applied, n.memb
	below := uint64(0)
	if n.s.chance(0.3) {
		below = n.applied.Index
	}
	n.feed(&Checkpointed{LogID: n.ckpt, PurgeBelow: below})
}

// change asks for a random membership next to the one in force.
func (s *sim) change(n *simNode) {
	m := n.eng.memb.Membership
	if m == nil {
		return
	}
	var target Membership
	target.Voters = [][]Peer{nil}
	for _, x := range s.nodes {
		p := x.self
		role := 0 // nothing
		switch {
		case m.IsVoter(p):
			role = 2
		case m.Contains(p):
			role = 1
		}
		if s.chance(0.3) {
			role = s.rng.IntN(3)
		}
		switch role {
		case 1:
			target.Learners = append(target.Learners, p)
		case 2:
			target.Voters[0] = append(target.Voters[0], p)
		}
	}
	before := n.eng.memb
	n.feed(&ChangeMembership{Token: s.token, Target: target})
	if n.eng != nil && n.eng.memb != before {
		s.check.changes++
	}
}

func (s *sim) mishap() {
	switch s.rng.IntN(6) {
	case 0, 1:
		n := s.nodes[s.rng.IntN(len(s.nodes))]
		n.crash()
		s.after(Duration(s.rng.IntN(3*simT)), func() {
			if n.eng == nil {
				n.boot()
			}
		})
	case 2:
		a, b := s.rng.IntN(len(s.nodes)), s.rng.IntN(len(s.nodes))
		k := [2]NodeID{s.nodes[a].self.Node, s.nodes[b].self.Node} // one way
		s.cut[k] = true
		s.after(Duration(s.rng.IntN(4*simT)), func() { delete(s.cut, k) })
	case 3:
		a := s.nodes[s.rng.IntN(len(s.nodes))].self.Node
		s.isolate(a, true)
		s.after(Duration(s.rng.IntN(4*simT)), func() { s.isolate(a, false) })
	case 4:
		s.faults = simFaults{drop: s.rng.Float64() * 0.2, dup: s.rng.Float64() * 0.2, slow: s.rng.Float64() * 0.1}
	case 5:
		s.faults = simFaults{}
	}
}

func (s *sim) isolate(a NodeID, cut bool) {
	for _, n := range s.nodes {
		for _, k := range [][2]NodeID{{a, n.self.Node}, {n.self.Node, a}} {
			if cut {
				s.cut[k] = true
			} else {
				delete(s.cut, k)
			}
		}
	}
}

// settle ends all faults and requires that the cluster serves again.
func (s *sim) settle() {
	s.faults = simFaults{}
	clear(s.cut)
	for _, n := range s.nodes {
		if n.eng == nil {
			n.boot()
		}
	}
	s.runUntil(s.now + 12*simT)
	for try := 0; ; try++ {
		l := s.leader()
		if l == nil {
			if try > 10 {
				s.fatalf("no leader after the faults ended")
			}
			for _, n := range s.nodes {
				n.feed(&Wake{})
			}
			s.runUntil(s.now + 3*simT)
			continue
		}
		s.token++
		before := l.log.last()
		l.feed(&Write{Token: s.token, Count: 3, Bytes: 10})
		s.token++
		l.reads[s.token] = s.check.acked
		l.feed(&ReadIndex{Token: s.token})
		s.runUntil(s.now + 3*simT)
		if s.caughtUp(l, before+1) {
			return
		}
		if try > 10 {
			s.fatalf("%v does not get its write to everybody", l.self)
		}
	}
}

func (s *sim) caughtUp(l *simNode, index uint64) bool {
	if !l.eng.IsLeader() || l.applied.Index < index || len(l.reads) != 0 || l.eng.memb.Membership.Joint() {
		return false
	}
	for _, p := range l.eng.memb.Membership.appendPeers(nil) {
		if s.node(p.Node).applied != l.applied {
			return false
		}
	}
	return true
}

type simPlan struct {
	nodes, voters int
	quiesce       Duration
	changes       bool
	steps         int
	mishaps       float64
	pause         int
}

func runPlan(t *testing.T, p simPlan) {
	var total simCheck
	first, n := uint64(1), uint64(*seeds)
	if *seedOne != 0 {
		first, n = *seedOne, 1
	}
	for seed := first; seed < first+n; seed++ {
		s := newSim(t, seed, p.nodes, p.voters, p.quiesce)
		for i := 0; i < p.steps; i++ {
			s.runUntil(s.now + Instant(s.rng.IntN(p.pause)))
			s.client(p.changes)
			if s.chance(p.mishaps) {
				s.mishap()
			}
		}
		s.settle()
		c := &s.check
		total.commits += c.commits
		total.sleeps += c.sleeps
		total.reads += c.reads
		total.leases += c.leases
		total.changes += c.changes
		total.top += uint64(len(c.leaders))
	}
	t.Logf("%d seeds: %d commits, %d terms, %d reads, %d leased, %d asleep, %d changes", n, total.commits, total.top, total.reads,
		total.leases, total.sleeps, total.changes)
	if total.commits == 0 || total.reads == 0 || total.leases == 0 || p.quiesce > 0 && total.sleeps == 0 || p.changes && total.changes == 0 {
		t.Errorf("the plan does not exercise what it is for")
	}
}

func TestClusterCalm(t *testing.T) {
	runPlan(t, simPlan{nodes: 3, voters: 3, steps: 60, pause: simT / 10})
}

func TestClusterSingle(t *testing.T) {
	runPlan(t, simPlan{nodes: 1, voters: 1, steps: 60, pause: simT / 10, mishaps: 0.02})
}

func TestClusterFaults(t *testing.T) {
	runPlan(t, simPlan{nodes: 3, voters: 3, steps: 250, pause: simT / 5, mishaps: 0.08})
}

func TestClusterMembership(t *testing.T) {
	runPlan(t, simPlan{nodes: 5, voters: 3, changes: true, steps: 250, pause: simT / 5, mishaps: 0.08})
}

func TestClusterSleep(t *testing.T) {
	runPlan(t, simPlan{nodes: 4, voters: 3, changes: true, quiesce: simT / 4, steps: 150, pause: 2 * simT, mishaps: 0.1})
}
