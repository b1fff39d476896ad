package engine

import "math"

// leadership is what only a leader keeps.
type leadership struct {
	followers []follower
	// plain is a membership with one set of voters: this leader, and the followers that are not learners. Nil: the one that it has is another.
	plain    *Membership
	ordered  bool // this transfer's TimeoutNow went out
	leaseOff bool // TimeoutNow went out in this term; a late one bypasses leases, so there are none any more (rule Engine3)
	// owing: a follower may be asleep and must not be. The next heartbeat goes whatever leases say, unless all are sent entries before.
	owing  bool
	stream uint64 // the newest stream id given out; never reused within the term
	// blank is the index of the first entry of the term: nothing is read, and no membership changed, before it is applied or
	// committed.
	blank       uint64
	heartbeatAt Instant
	round       uint64 // of the newest BroadcastHeartbeat
	reads       reads
	bytes       *uncommitted // nil while asleep

	transferTo    Peer    // zero: no transfer
	transferUntil Instant // when it is given up

	settled *Membership // a committed membership, not joint, with this leader as a voter: it asks for nothing

	busyAt    Instant // the last time that there was something to do
	quiesceAt Instant // when the outstanding Quiesce was sent; zero: none
}

func (l *leadership) deadline() Instant {
	if len(l.followers) == 0 {
		return l.transferUntil
	}
	if l.transferUntil != 0 {
		return min(l.heartbeatAt, l.transferUntil)
	}
	return l.heartbeatAt
}

func (l *leadership) find(p Peer) *follower {
	for i := range l.followers {
		if l.followers[i].peer == p {
			return &l.followers[i]
		}
	}
	return nil
}

// becomeLeader takes office in a term that this life has won (rule Engine1), with a blank entry (Raft 5.4.2).
func (e *Engine) becomeLeader() {
	v := e.vote
	v.Committed = true
	e.race = nil
	e.saveVote(v)
	e.role, e.knows = RoleLeader, true
	e.lead = &leadership{blank: e.log.lastIndex() + 1, busyAt: e.now, heartbeatAt: e.now + Instant(e.cfg.HeartbeatInterval)}
	e.rebuildStreams()
	e.appendOwn(EntryBlank, 1, 0, nil)
	e.replicate()
}

// appendOwn appends count entries of the own term.
func (e *Engine) appendOwn(kind EntryKind, count int, token uint64, m *Membership) {
	first := e.log.lastIndex() + 1
	last := first + uint64(count) - 1
	e.log.append(e.vote.Term, first, last)
	if kind == EntryBarrier {
		for i := first; i <= last; i++ {
			e.addBarrier(i)
		}
	}
	c := e.emit(AppendInputEntries)
	c.Token, c.Entry, c.First, c.Last, c.Membership, c.IO = token, kind, first, last, m, e.submit()
	e.lead.busyAt, e.lead.quiesceAt = e.now, 0
}

func (e *Engine) handleWrite(m *Write) {
	if e.lead == nil {
		e.refuse(m.Token, ReasonNotLeader)
		e.provoke()
		return
	}
	switch l := e.lead; {
	case m.Count <= 0 || m.Kind != EntryNormal && m.Kind != EntryBarrier:
		e.refuse(m.Token, ReasonInvalid)
	case l.transferTo != Peer{}:
		e.refuse(m.Token, ReasonTransferring)
	case l.bytes != nil && !l.bytes.fits(m.Bytes, e.cfg.UncommittedBytesMax):
		e.refuse(m.Token, ReasonOverloaded)
	default:
		if e.quiesced { // the entries wake the followers; the heartbeat is for those that are not sent any
			e.wake()
			l.heartbeatAt = e.now + Instant(e.cfg.HeartbeatInterval)
		}
		e.appendOwn(m.Kind, m.Count, m.Token, nil)
		if l.bytes == nil {
			l.bytes = &uncommitted{}
		}
		l.bytes.add(e.log.lastIndex(), m.Bytes)
		e.replicate()
	}
}

// maybeCommit counts: the leader itself by what is durable here, followers by what they said is durable there. Only entries of the own
// term are committed so; earlier ones follow (Raft 5.4.2).
func (e *Engine) maybeCommit() {
	l := e.lead
	if l == nil || e.log.lastIndex() == e.committed.Index {
		return
	}
	i := e.quorumMatch()
	if i <= e.committed.Index || i < l.blank {
		return
	}
	e.committed = e.log.id(i)
	if l.bytes != nil {
		l.bytes.release(i)
	}
}

// quorumMatch is the index up to which a quorum holds the log durably.
func (e *Engine) quorumMatch() uint64 {
	l := e.lead
	if l.plain != nil && e.memb.Membership == l.plain { // its voters are known without a look at the membership, which is in none of the CPU's caches when there are many shards
		var buf [16]uint64
		values := append(buf[:0], e.io.flushed)
		for i := range l.followers {
			if f := &l.followers[i]; !f.learner {
				values = append(values, f.match)
			}
		}
		return majorityValue(values)
	}
	return quorumValue(e.memb.Membership, func(p Peer) uint64 {
		if p == e.self {
			return e.io.flushed
		}
		if f := l.find(p); f != nil {
			return f.match
		}
		return 0
	})
}

// announce tells followers what may be applied: never more than the leader itself has applied (rule Engine4).
func (e *Engine) announce() {
	l := e.lead
	if len(l.followers) == 0 {
		return
	}
	l.quiesceAt = 0
	c := e.emit(ReplicateCommitted)
	c.Vote, c.LogID, c.SentAt = e.vote, e.applied, e.now
}

// broadcast starts a round of heartbeats: it renews leases, and a quorum of answers confirms every read that waits for the round.
func (e *Engine) broadcast() {
	l := e.lead
	l.round++
	l.quiesceAt, l.owing = 0, false
	l.heartbeatAt = e.now + Instant(e.cfg.HeartbeatInterval)
	if len(l.followers) == 0 {
		return
	}
	c := e.emit(BroadcastHeartbeat)
	c.Vote, c.LogID, c.Round, c.SentAt = e.vote, e.applied, l.round, e.now
}

// tickLeader is the heartbeat: check-quorum, leases, retries, and the offer to sleep.
func (e *Engine) tickLeader() {
	l := e.lead
	if l.transferUntil != 0 && e.now >= l.transferUntil {
		l.transferTo, l.transferUntil, l.ordered = Peer{}, 0, false
	}
	if e.now < l.heartbeatAt || len(l.followers) == 0 {
		return
	}
	if !e.quorumActive() {
		// Whoever cannot reach a quorum must not go on refreshing promises (openraft #2080).
		e.handleResign()
		return
	}
	if e.offerSleep() {
		return
	}
	if e.renewed() {
		l.heartbeatAt = e.restUntil()
	} else {
		e.broadcast()
	}
	for i := range l.followers {
		e.retry(&l.followers[i])
	}
}

// renewed tells whether a heartbeat would say nothing new: the leases of all followers are good for half an election timeout, and
// nobody waits for a round. So a busy shard sends none, and an idle one two in an election timeout.
func (e *Engine) renewed() bool {
	l := e.lead
	if l.owing || l.reads.waiting != 0 || l.reads.round != 0 {
		return false
	}
	half := e.now + Instant(e.cfg.ElectionTimeoutMin)/2
	for i := range l.followers {
		if l.followers[i].leaseUntil <= half {
			return false
		}
	}
	return true
}

// restUntil is when there is something to do next if nothing happens before: sleep, a lease that is half over, a message that counts
// as lost. Who is not in the pipeline is looked at after an interval.
func (e *Engine) restUntil() Instant {
	l := e.lead
	soon, half := e.now+Instant(e.cfg.HeartbeatInterval), Instant(e.cfg.ElectionTimeoutMin)/2
	until := soon + half
	if e.cfg.QuiesceAfter > 0 {
		until = l.busyAt + Instant(e.cfg.QuiesceAfter)
	}
	if until <= e.now { // it cannot sleep just now
		until = soon
	}
	for i := range l.followers {
		f := &l.followers[i]
		if f.state != ProgressPipeline {
			return soon
		}
		until = min(until, f.leaseUntil-half)
		if f.inflight() > 0 {
			until = min(until, f.sentAt+half)
		}
	}
	return until
}

// quorumActive tells whether a quorum has answered within the election timeout (check-quorum).
func (e *Engine) quorumActive() bool {
	since := e.now - Instant(e.cfg.ElectionTimeoutMin)
	return hasQuorum(e.memb.Membership, func(p Peer) bool {
		f := e.lead.find(p)
		return p == e.self || f != nil && f.activeAt > since
	})
}

// leaseUntil tells until when a quorum has promised to elect nobody else; zero without a lease. It is strict: at that instant it is over.
func (e *Engine) leaseUntil() Instant {
	l := e.lead
	if l.leaseOff {
		return 0
	}
	until := quorumValue(e.memb.Membership, func(p Peer) uint64 {
		if p == e.self {
			return math.MaxInt64
		}
		if f := l.find(p); f != nil {
			return uint64(max(e.leaseOf(f), 0))
		}
		return 0
	})
	return Instant(min(until, math.MaxInt64))
}

// leaseOf is the promise of one follower: counted from when we sent what it answered, less drift; while asleep, extended by the
// node heartbeats on an unbroken link (rule Engine2).
func (e *Engine) leaseOf(f *follower) Instant {
	until := f.leaseUntil
	if e.quiesced && f.asleep { // awake, only messages of this shard count: f may have been woken since it accepted an offer
		if k, ok := e.cfg.Links.Nodes[f.peer.Node]; ok && k.Incarnation == f.incarnation && k.GrantEpoch == f.epoch {
			until = max(until, k.GrantedUntil)
		}
	}
	return until
}

// LeaseValid tells whether this replica is a leader that may serve reads of its applied state now.
func (e *Engine) LeaseValid(now Instant) bool {
	return e.lead != nil && now < e.leaseUntil() && e.readable()
}

// handleResign gives up office and says so (rule Live4), and lets others go first.
func (e *Engine) handleResign() {
	if e.lead == nil {
		return
	}
	e.stepDown()
	e.electionAt += Instant(e.cfg.ElectionTimeoutMin)
}

// stepDown leaves office, if held, and tells the followers, so that their promises end.
func (e *Engine) stepDown() {
	if e.lead == nil {
		return
	}
	followers := e.lead.followers
	e.leaveOffice()
	for i := range followers {
		c := e.emit(SendHeartbeat)
		c.To = followers[i].peer
		c.Heartbeat = &Heartbeat{From: e.self, Vote: e.vote, SentAt: e.now, Resigned: true}
	}
}

// uncommitted counts the bytes of batches that are not committed, in O(1) memory: when its slots are used up, the newest slot takes in
// what comes, and is released as a whole.
type uncommitted struct {
	sum   int
	n     int
	slots [byteSlotsMax]byteSlot // the first n, oldest first
}

type byteSlot struct {
	last  uint64
	bytes int
}

const byteSlotsMax = 8

func (u *uncommitted) fits(bytes, most int) bool {
	return most <= 0 || u.sum == 0 || u.sum+bytes <= most
}

func (u *uncommitted) add(last uint64, bytes int) {
	u.sum += bytes
	if u.n == byteSlotsMax {
		u.slots[u.n-1].last = last
		u.slots[u.n-1].bytes += bytes
		return
	}
	u.slots[u.n] = byteSlot{last, bytes}
	u.n++
}

func (u *uncommitted) release(index uint64) {
	n := 0
	for n < u.n && u.slots[n].last <= index {
		u.sum -= u.slots[n].bytes
		n++
	}
	if n > 0 {
		u.n = copy(u.slots[:], u.slots[n:u.n])
	}
}
