package sim

import (
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/scheduler/simrt"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
)

// checker holds what has been seen of all replicas, and compares it with what is seen next.
type checker struct {
	s    *sim
	hash uint64

	leaders map[termOf]office
	// top is the highest term of each shard that had a leader.
	top map[engine.ShardID]uint64
	// chosen are the hashes of the applied entries of each shard, by index.
	chosen   map[engine.ShardID]map[uint64]entry
	replicas map[place]*seen
	gone     map[place]bool // replicas that left a tombstone
	engines  map[place]living
	keys     map[engine.NodeID]map[engine.ShardID][]store.Key // of engines
	lists    map[engine.NodeID][]store.Key                    // the same, in order of their coming
	// committed are the terms of the entries that are known to be committed, by index; top is the last one.
	committed    map[engine.ShardID]map[uint64]uint64
	committedTop map[engine.ShardID]engine.LogID
	// What is under way on a node, for the counts of rare things: snapshots being sent, splits whose checkpoint is not written.
	sending, splitting map[place]int
}

// living is the engine of a replica in a life of its node.
type living struct {
	eng  *engine.Engine
	life uint64
}

type termOf struct {
	shard engine.ShardID
	term  uint64
}

// office is who leads: a life of a replica (rule Engine1).
type office struct {
	place place
	life  uint64
}

type place struct {
	node engine.NodeID
	key  store.Key
}

type entry struct {
	term uint64
	hash uint64
	// outcome is a hash of what the state machine answered, and of what it is since.
	outcome uint64
	time    int64 // of the shard
}

// seen is what is remembered of a replica over its lives.
type seen struct {
	life uint64
	// of this life
	committed, applied engine.LogID
	vote               engine.Vote
	memb               engine.MembershipAt
	// Promises made to others: they must survive.
	told  engine.Vote
	acked engine.LogID
	// linked is the newest snapshot: it replaces the log, whatever was committed in that.
	linked uint64
}

func newChecker(s *sim) *checker {
	return &checker{s: s, leaders: map[termOf]office{}, top: map[engine.ShardID]uint64{}, chosen: map[engine.ShardID]map[uint64]entry{},
		replicas: map[place]*seen{}, gone: map[place]bool{}, engines: map[place]living{}, keys: map[engine.NodeID]map[engine.ShardID][]store.Key{},
		lists: map[engine.NodeID][]store.Key{}, committed: map[engine.ShardID]map[uint64]uint64{}, committedTop: map[engine.ShardID]engine.LogID{},
		sending: map[place]int{}, splitting: map[place]int{}}
}

// probe is the checker's eye on one life of a node.
type probe struct {
	*checker
	n    *simrt.Node
	life uint64
}

func (p *probe) place(k store.Key) place { return place{p.n.ID, k} }

func (p *probe) mix(v ...uint64) {
	for _, x := range v {
		p.hash = (p.hash ^ x) * 0x100000001b3
		p.hash ^= p.hash >> 29
	}
}

// Applied implements scheduler.Probe.
func (p *probe) Applied(k store.Key, id engine.LogID, kind engine.EntryKind, payload []byte, mc *shard.Machine, ans *shard.Answer) {
	if !p.alive() {
		return
	}
	h := xxhash.Sum64(payload) ^ uint64(kind)<<56
	p.mix(uint64(p.n.ID), uint64(k.Shard), id.Index, h)
	m := p.chosen[k.Shard]
	if m == nil {
		m = map[uint64]entry{}
		p.chosen[k.Shard] = m
	}
	e := entry{id.Term, h, outcomeHash(mc, ans), mc.Time()}
	if before, ok := m[id.Index-1]; ok && before.time > e.time {
		p.s.fail("node %d, shard %d: its time goes back from %d to %d at %v", p.n.ID, k.Shard, before.time, e.time, id)
	}
	if kind == engine.EntryNormal {
		// Rule State8: what expires by a stamp must be due by the clocks of the others.
		if _, stamp, _, err := shard.SplitEntry(payload); err != nil || stamp > 1_700_000_000_000+int64(p.s.c0())/1e6+6000 {
			p.s.fail("node %d, shard %d: entry %v is stamped %d ms ahead of time (%v)", p.n.ID, k.Shard, id, stamp-1_700_000_000_000-int64(p.s.c0())/1e6, err)
		}
	}
	if old, ok := m[id.Index]; ok && old != e {
		p.s.fail("node %d, shard %d: applies %v with hash %x and outcome %x, at this index %d/%x was applied before with outcome %x", p.n.ID, k.Shard, id, h,
			e.outcome, old.term, old.hash, old.outcome)
	}
	if t, ok := p.committed[k.Shard][id.Index]; ok && t != id.Term {
		p.s.fail("node %d, shard %d: applies %v, committed was term %d", p.n.ID, k.Shard, id, t)
	}
	m[id.Index] = e
	if p.s.opt.Trace {
		p.s.tracef("node %d shard %d applied %d/%d", p.n.ID, k.Shard, id.Term, id.Index)
	}
}

// outcomeHash is of what applying an entry has answered, and of what the shard is since.
func outcomeHash(m *shard.Machine, ans *shard.Answer) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	mix := func(v ...uint64) {
		for _, x := range v {
			h = (h ^ x) * 0x100000001b3
			h ^= h >> 29
		}
	}
	flag := func(b bool) {
		if b {
			mix(1)
		} else {
			mix(2)
		}
	}
	d := m.Desc()
	mix(d.Version, d.ConfVersion, m.Writes(), uint64(m.Time()), uint64(m.Merge().Role), uint64(ans.Outcome), ans.Version, uint64(ans.Failed))
	flag(ans.Replayed)
	flag(ans.Refused != nil)
	for _, v := range ans.Values {
		mix(uint64(v))
	}
	sessions, rows := m.Sessions()
	mix(uint64(sessions), uint64(rows))
	return h
}

// Removed implements scheduler.Probe.
func (p *probe) Removed(k store.Key) {
	if p.alive() {
		p.gone[p.place(k)] = true
		p.s.happened("tombstone")
	}
}

// Linked implements scheduler.Probe.
func (p *probe) Linked(k store.Key, id engine.LogID) {
	if !p.alive() {
		return
	}
	p.s.happened("snapshot installed")
	p.s.tracef("node %d shard %d linked a snapshot at %v", p.n.ID, k.Shard, id)
	p.seen(k).linked = id.Index
	if id.Index <= 1 {
		return
	}
	if e, ok := p.chosen[k.Shard][id.Index]; !ok || e.term != id.Term {
		p.s.fail("node %d, shard %d: a snapshot at %v, where %d was applied (%v)", p.n.ID, k.Shard, id, e.term, ok)
	}
}

// alive tells whether the process that is watched lives: what a dead one still does in its last event is seen by nobody.
func (p *probe) alive() bool { return p.n.Life() == p.life }

// Command implements scheduler.Probe.
func (p *probe) Command(k store.Key, eng *engine.Engine, c *engine.Command) {
	if !p.alive() {
		return
	}
	if p.s.opt.Trace {
		p.traceCommand(k, c)
	}
	s := p.seen(k)
	switch c.Kind {
	case engine.Replicate, engine.ReplicateCommitted, engine.BroadcastHeartbeat:
		if at := eng.Status().Applied; at.Index < c.LogID.Index { // rule Engine4
			p.s.fail("node %d, shard %d: announces %v, has applied %v", p.n.ID, k.Shard, c.LogID, at)
		}
	case engine.Respond:
		switch c.Response {
		case engine.RespondVote:
			if c.VoteResponse.Granted && !c.VoteResponse.Pre {
				p.tell(k, s, c.VoteResponse.Vote)
			}
		case engine.RespondAppend:
			// A refusal promises nothing: it may tell of a vote that is not durable yet.
			if c.AppendResponse.Success || c.AppendResponse.Promise > 0 {
				p.tell(k, s, c.AppendResponse.Vote)
			}
			if m := c.AppendResponse.Match; c.AppendResponse.Success && s.acked.Less(m) {
				s.acked = m
			}
		case engine.RespondHeartbeat:
			if c.HeartbeatResponse.Promise > 0 {
				p.tell(k, s, c.HeartbeatResponse.Vote)
			}
		}
	case engine.SendVote:
		p.tell(k, s, c.Vote)
	case engine.TruncateLog:
		p.s.happened("log truncated")
		if c.First <= s.committed.Index && s.linked <= s.committed.Index {
			p.s.fail("node %d, shard %d: truncates from %d, committed %v", p.n.ID, k.Shard, c.First, s.committed)
		}
	case engine.ReplicateSnapshot:
		p.sending[p.place(k)]++
		if p.splitting[p.place(k)] > 0 {
			p.s.happened("snapshot during split")
		}
	case engine.RejectSnapshot:
		p.s.happened("snapshot rejected")
	case engine.SendTimeoutNow:
		p.s.happened("leadership transferred")
	case engine.FailPendingReads:
		p.s.happened("office lost")
	case engine.ReadReady:
		p.s.happened("read by index")
		if eng.IsLeader() && !eng.LeaseValid(p.n.Clock()) {
			p.s.happened("lease expired while reading")
		}
	}
}

// tell notes that others were told of a vote.
func (p *probe) tell(k store.Key, s *seen, v engine.Vote) {
	v.Committed = false
	if l := p.s.durable[p.n.ID][k]; v.Term > 0 && (l == nil || !keeps(l.vote, v)) {
		p.s.fail("node %d, shard %d: tells others of vote %+v, durable is %+v", p.n.ID, k.Shard, v, l)
	}
	if v.Term > s.told.Term || v.Term == s.told.Term && s.told.Peer == (engine.Peer{}) {
		s.told = v
	}
}

func (p *probe) seen(k store.Key) *seen {
	s := p.replicas[p.place(k)]
	if s == nil {
		s = &seen{life: p.life}
		p.replicas[p.place(k)] = s
	}
	return s
}

// Fed implements scheduler.Probe.
func (p *probe) Fed(k store.Key, eng *engine.Engine, ev engine.Event) {
	if !p.alive() {
		return
	}
	st := eng.Status()
	s := p.seen(k)
	p.mix(uint64(p.s.c0()), uint64(p.n.ID), uint64(k.Shard), st.Vote.Term, st.Last.Index, st.Committed.Index)
	if p.s.opt.Trace {
		p.s.tracef("node %d shard %d.%d %s <- %T %+v", p.n.ID, k.Shard, k.Replica, summary(&st), ev, ev)
	}
	if p.gone[p.place(k)] {
		p.s.fail("node %d: replica %d of shard %d came back after it was removed", p.n.ID, k.Replica, k.Shard)
	}
	if e := p.engines[p.place(k)]; e.eng != eng || e.life != p.life {
		if e.eng == nil {
			m := p.keys[p.n.ID]
			if m == nil {
				m = map[engine.ShardID][]store.Key{}
				p.keys[p.n.ID] = m
			}
			m[k.Shard] = append(m[k.Shard], k)
			p.lists[p.n.ID] = append(p.lists[p.n.ID], k)
		}
		p.engines[p.place(k)] = living{eng, p.life}
	}
	if s.life != p.life {
		p.recovered(k, s, &st)
	}
	switch {
	case !keeps(st.Vote, s.vote):
		p.s.fail("node %d, shard %d: vote %+v after %+v", p.n.ID, k.Shard, st.Vote, s.vote)
	case st.Committed.Index < s.committed.Index || st.Applied.Index < s.applied.Index:
		p.s.fail("node %d, shard %d: committed %v applied %v after %v and %v", p.n.ID, k.Shard, st.Committed, st.Applied, s.committed, s.applied)
	case st.Applied.Index > st.Committed.Index || st.Committed.Index > st.Last.Index || st.Applied.Index > st.Flushed.Index:
		p.s.fail("node %d, shard %d: cursors out of order: %+v", p.n.ID, k.Shard, st)
	}
	if st.Committed != s.committed {
		p.commits(k, eng, &st)
	}
	if was := s.memb.Membership; was != nil && len(was.Voters) > 1 && st.Membership.LogID.Index < s.memb.LogID.Index {
		p.s.happened("joint change rolled back")
	}
	s.vote, s.committed, s.applied, s.memb = st.Vote, st.Committed, st.Applied, st.Membership
	switch ev.(type) {
	case *engine.SnapshotFailed, *engine.SnapshotResponse:
		p.sending[p.place(k)] = max(0, p.sending[p.place(k)]-1)
	}
	if eng.IsLeader() {
		p.leads(k, &st)
		if st.Vote.Term < p.top[k.Shard] && eng.LeaseValid(p.n.Clock()) && !p.s.knobs.wildClocks {
			p.s.fail("node %d, shard %d: has a lease in term %d, there is a leader of %d", p.n.ID, k.Shard, st.Vote.Term, p.top[k.Shard])
		}
	}
	if st.Quiesced {
		p.s.sometimes["asleep"]++
	}
}

// commits checks that what is committed stays what it is, and that a leader commits only what is durable on a quorum.
func (p *probe) commits(k store.Key, eng *engine.Engine, st *engine.Status) {
	at := st.Committed
	m := p.committed[k.Shard]
	if m == nil {
		m = map[uint64]uint64{}
		p.committed[k.Shard] = m
	}
	if t, ok := m[at.Index]; ok && t != at.Term {
		p.s.fail("node %d, shard %d: has committed %v, at this index term %d was committed before", p.n.ID, k.Shard, at, t)
	}
	m[at.Index] = at.Term
	if p.committedTop[k.Shard].Index < at.Index {
		p.committedTop[k.Shard] = at
		if ms := st.Membership.Membership; eng.IsLeader() && ms != nil && !p.s.durableOnQuorum(k.Shard, ms, at) {
			p.s.fail("node %d leads shard %d and has committed %v, which is not durable on a quorum of %+v", p.n.ID, k.Shard, at, ms.Voters)
		}
	}
}

// keeps tells whether v may follow old: of a later term, or the same choice, or the winner of the term.
func keeps(v, old engine.Vote) bool {
	switch {
	case v.Term != old.Term:
		return v.Term > old.Term
	case old.Committed:
		return v == old
	}
	return v.Committed || v.Peer == old.Peer || old.Peer == engine.Peer{}
}

// recovered checks that a replica still knows what it had promised before it crashed.
func (p *probe) recovered(k store.Key, s *seen, st *engine.Status) {
	if !keeps(st.Vote, s.told) {
		p.s.fail("node %d, shard %d: recovered with vote %+v, it had told others %+v", p.n.ID, k.Shard, st.Vote, s.told)
	}
	// The first entry of a child is its birth, which is durable as the parent's split until the child has written something itself.
	born := st.Role == engine.RoleUninitialised && s.acked.Index == 1 && k.Shard > firstChild
	if st.Last.Less(s.acked) && !born {
		p.s.fail("node %d, shard %d: recovered with a log up to %v, it had acknowledged %v", p.n.ID, k.Shard, st.Last, s.acked)
	}
	p.s.happened("replica recovered")
	if st.Last.Index > st.Applied.Index {
		p.s.happened("replica recovered with entries to replay")
	}
	*s = seen{life: p.life, told: s.told, acked: s.acked}
}

// leads checks a leader.
func (p *probe) leads(k store.Key, st *engine.Status) {
	me := office{p.place(k), p.life}
	t := termOf{k.Shard, st.Vote.Term}
	old, ok := p.leaders[t]
	if ok && old != me {
		p.s.fail("shard %d: two leaders of term %d: %+v and %+v", k.Shard, st.Vote.Term, old, me)
	}
	if ok {
		return
	}
	p.leaders[t] = me
	p.top[k.Shard] = max(p.top[k.Shard], st.Vote.Term)
	for _, n := range p.s.c.Nodes { // rules Engine2, Engine3: whoever was leader before serves no read by lease any more
		if p.s.knobs.wildClocks {
			break
		}
		for _, o := range p.keys[n.ID][k.Shard] {
			if e := p.engines[place{n.ID, o}]; n.Up && e.life == n.Life() && n.ID != p.n.ID && e.eng.IsLeader() && e.eng.LeaseValid(n.Clock()) &&
				e.eng.Status().Vote.Term < st.Vote.Term {
				p.s.fail("node %d leads shard %d in term %d while node %d has a lease in term %d", p.n.ID, k.Shard, st.Vote.Term, n.ID, e.eng.Status().Vote.Term)
			}
		}
	}
	p.s.happened("leader elected")
	p.s.tracef("node %d leads shard %d in term %d", p.n.ID, k.Shard, st.Vote.Term)
	if newest := p.committedTop[k.Shard]; newest.Term < st.Vote.Term && st.Last.Less(newest) {
		p.s.fail("node %d leads shard %d in term %d with a log up to %v, committed is %v", p.n.ID, k.Shard, st.Vote.Term, st.Last, newest)
	}
}

func summary(st *engine.Status) string {
	q := ""
	if st.Quiesced {
		q = " asleep"
	}
	return fmt.Sprintf("[r%d t%d v%d last %d/%d com %d app %d fl %d%s]", st.Role, st.Vote.Term, st.Vote.Peer.Node, st.Last.Term, st.Last.Index,
		st.Committed.Index, st.Applied.Index, st.Flushed.Index, q)
}

func (p *probe) traceCommand(k store.Key, c *engine.Command) {
	switch c.Kind {
	case engine.Respond:
		var r any
		switch c.Response {
		case engine.RespondVote:
			r = *c.VoteResponse
		case engine.RespondAppend:
			r = c.AppendResponse
		case engine.RespondHeartbeat:
			r = c.HeartbeatResponse
		case engine.RespondSnapshot:
			r = *c.SnapshotResponse
		}
		p.s.tracef("node %d shard %d   -> %d: %T%+v", p.n.ID, k.Shard, c.To.Node, r, r)
	case engine.SendHeartbeat:
		p.s.tracef("node %d shard %d   -> %d: %+v", p.n.ID, k.Shard, c.To.Node, *c.Heartbeat)
	default:
		p.s.tracef("node %d shard %d   -> command %d to %d vote %d/%d io %+v prev %v id %v [%d %d] token %d stream %d seq %d", p.n.ID, k.Shard, c.Kind,
			c.To.Node, c.Vote.Term, c.Vote.Peer.Node, c.IO.Last, c.Prev, c.LogID, c.First, c.Last, c.Token, c.Stream, c.Seq)
	}
}

// leader returns the node that leads a shard, in the highest term if there are several, or nil.
func (s *sim) leader(id engine.ShardID) *simrt.Node {
	var best *simrt.Node
	term := uint64(0)
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, k := range s.check.keys[n.ID][id] {
			e := s.check.engines[place{n.ID, k}]
			if e.life == n.Life() && e.eng.IsLeader() && e.eng.Status().Vote.Term > term && !s.check.gone[place{n.ID, k}] {
				best, term = n, e.eng.Status().Vote.Term
			}
		}
	}
	return best
}

// splitApplied notes that a split of a shard has begun on a node, and what it meets there.
func (c *checker) splitApplied(node engine.NodeID, id engine.ShardID) {
	for _, k := range c.lists[node] {
		if k.Shard != id {
			continue
		}
		at := place{node, k}
		c.splitting[at] = 1
		if c.sending[at] > 0 {
			c.s.happened("snapshot during split")
		}
	}
}

// bornAgain is told of the children of a split that a node has just applied: some may be there already, by a snapshot (FAULTS R2).
func (c *checker) bornAgain(node engine.NodeID, children []scheduler.DescriptorEvent) {
	for i := range children {
		at := place{node, store.Key{Shard: children[i].Shard, Replica: children[i].Replica}}
		switch s := c.replicas[at]; {
		case c.gone[at]:
			c.s.happened("split meets a tombstone of its child")
		case s != nil && s.linked > 0:
			c.s.happened("split on a lagging replica after a snapshot")
		case s != nil && s.told.Term > 0:
			c.s.happened("split meets a child that has voted")
		}
	}
}

func (c *checker) splitSettled(node engine.NodeID, id engine.ShardID) {
	for _, k := range c.lists[node] {
		if k.Shard == id {
			delete(c.splitting, place{node, k})
		}
	}
}

// present lists the replicas of a node that is up, in order of their coming.
func (c *checker) present(n *simrt.Node) []store.Key {
	var out []store.Key
	for _, k := range c.lists[n.ID] {
		if at := (place{n.ID, k}); c.engines[at].life == n.Life() && !c.gone[at] {
			out = append(out, k)
		}
	}
	return out
}

// c0 is the time, also while the cluster is being made.
func (s *sim) c0() engine.Instant {
	if s.c == nil {
		return 0
	}
	return s.c.Now()
}
