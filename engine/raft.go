package engine

import "math/bits"

// Engine is one replica's Raft. It is not safe for concurrent use: its lane owns it.
type Engine struct {
	cfg  *Config // shared
	self Peer
	seed uint64
	now  Instant   // of the event being handled; never goes back
	out  []Command // only during Handle
	rng  uint64

	role     Role
	started  bool // the first event has set the timers (rule Live5)
	quiesced bool // asleep: Deadline is zero
	unbound  bool // no promise of an earlier life keeps it from voting: see leaseStart
	knows    bool // the leader, which is the peer of vote then
	refusals uint8

	// vote is what was accepted; it is durable once voteSeq <= flushedSeq().
	vote Vote

	log termRuns
	// memb is the newest membership in the log and in force; prev is the one that comes back if memb is truncated. At most one
	// membership of a log is not committed, so one step back is enough.
	memb MembershipAt
	prev *MembershipAt // nil: none

	// applied <= committed <= last. applyTo is the end of the Apply that is outstanding, zero if none is.
	committed, applied LogID
	applyTo            uint64
	savedCommitted     uint64
	// announced is the greatest commit index that a leader told us; verified the last index known to be the same as in the log of
	// the leader of vote. committed never passes either (traps 8 and 9).
	announced, verified uint64

	// ios: see io.go.
	io         ioQueue
	grant      grant
	electionAt Instant

	race *race       // while (pre-)candidate
	lead *leadership // while leader
	snap *install    // while a snapshot is being installed
}

// New makes the engine of one replica; cfg has its defaults. It always starts as a follower, whatever the vote says (rule Engine1). It wants a
// Tick at once: the first event starts its timers and the replay of what is committed and not applied (rule Engine8).
//
// seed makes its random choices; the same seed and events give the same commands. All replicas of a shard get the same one (a hash of the
// shard): it also orders who campaigns first after the loss of a leader (rule Live5).
func New(cfg *Config, self Peer, seed uint64, rec Recovered) *Engine {
	e := &Engine{cfg: cfg, self: self, seed: seed, vote: rec.Vote, memb: rec.Membership, prev: some(rec.Previous), applied: rec.Applied,
		grant: grant{until: rec.GrantUntil}}
	e.rng = mix(seed ^ mix(uint64(self.Node)) ^ mix(uint64(self.Replica)<<1) ^ mix(rec.Incarnation<<2))
	e.log.purged = rec.Purged
	for _, r := range rec.Runs {
		e.log.append(r.Term, r.First, r.Last)
	}
	e.io.work = &idle
	e.recoverCursors(rec)
	if rec.Vote.Term <= 1 && rec.Vote.Peer == (Peer{}) && len(rec.Runs) == 0 && rec.Purged.Index <= 1 {
		e.unbound = true // it never gave a vote or held an entry, so it promised nothing (rule Engine2)
	}
	if m := e.memb.Membership; m != nil && m.onlyVoter(self) && rec.Vote.Peer == self {
		// It promised nothing to anybody else. The last voter of a shrunken shard may have, to a leader that was to leave.
		e.unbound = true
	}
	if rec.Newborn {
		e.electionAt = newbornAt
	}
	e.role = e.restingRole()
	return e
}

func (e *Engine) recoverCursors(rec Recovered) {
	if rec.Applied.Index > e.log.lastIndex() { // the state is newer than the whole log: it goes on behind it
		e.log.runs = nil
		e.log.purged = rec.Applied
	}
	e.committed = e.applied
	if i := min(rec.Committed.Index, e.log.lastIndex()); i > e.committed.Index {
		e.committed = e.log.id(i)
	}
	e.savedCommitted = e.committed.Index
	e.announced, e.verified = e.committed.Index, e.committed.Index
	e.io.flushed = e.log.lastIndex()
	for _, b := range rec.Barriers {
		e.addBarrier(b)
	}
	if e.prev != nil {
		e.addBarrier(e.prev.LogID.Index)
	}
	if e.memb.Membership != nil {
		e.addBarrier(e.memb.LogID.Index)
	}
}

// leaseStart is until when it keeps what it may have promised in an earlier life (rule Engine2).
func (e *Engine) leaseStart() Instant {
	if e.unbound {
		return 0
	}
	return e.cfg.LeaseStart
}

// restingRole is what a replica is that neither leads nor campaigns.
func (e *Engine) restingRole() Role {
	switch m := e.memb.Membership; {
	case m == nil:
		return RoleUninitialised
	case m.IsVoter(e.self), e.leaving():
		return RoleFollower
	}
	return RoleLearner
}

// leaving tells whether this replica was a voter until an entry that is not committed yet. It may still be needed: it may hold
// the only log that is recent enough to win, and to commit that very entry (Raft thesis 4.2.2). Its own vote does not count then.
func (e *Engine) leaving() bool {
	return e.memb.LogID.Index > e.committed.Index && e.prev != nil && e.prev.Membership.IsVoter(e.self)
}

// Handle feeds one event and appends to out what is to be done about it, in order.
func (e *Engine) Handle(now Instant, ev Event, out []Command) []Command {
	e.now = max(e.now, now)
	e.out = out
	if !e.started {
		e.start()
	}
	e.dispatch(ev)
	e.advance()
	out, e.out = e.out, nil
	return out
}

func (e *Engine) dispatch(ev Event) {
	switch ev := ev.(type) {
	case *Write:
		e.handleWrite(ev)
	case *Flushed:
		e.handleFlushed(ev)
	case *AppendRequest:
		e.handleAppend(ev)
	case *AppendResponse:
		e.handleAppendResponse(ev)
	case *Applied:
		e.handleApplied(ev)
	case *Heartbeat:
		e.handleHeartbeat(ev)
	case *HeartbeatResponse:
		e.handleHeartbeatResponse(ev)
	case *ReadIndex:
		e.handleReadIndex(ev)
	case *Tick:
		e.handleTick()
	case *VoteRequest:
		e.handleVoteRequest(ev)
	case *VoteResponse:
		e.handleVoteResponse(ev)
	case *Checkpointed:
		e.handleCheckpointed(ev)
	case *Committed:
		e.handleCommitted(ev)
	case *PeerUp:
		e.handlePeerUp(ev)
	case *PeerDown:
		e.handlePeerDown(ev)
	case *Wake:
		e.handleWake()
	case *Campaign:
		e.handleCampaign()
	case *Lead:
		e.handleLead()
	case *Resign:
		e.handleResign()
	case *ChangeMembership:
		e.handleChangeMembership(ev)
	case *TransferLeader:
		e.handleTransferLeader(ev)
	case *TimeoutNow:
		e.handleTimeoutNow(ev)
	case *SnapshotReceived:
		e.handleSnapshotReceived(ev)
	case *SnapshotInstalled:
		e.handleSnapshotInstalled(ev)
	case *SnapshotResponse:
		e.handleSnapshotResponse(ev)
	case *SnapshotFailed:
		e.handleSnapshotFailed(ev)
	case *ReplicateFailed:
		e.handleReplicateFailed(ev)
	}
}

// advance draws the conclusions that any event may have made possible: commit, then what hangs on commit and applied.
func (e *Engine) advance() {
	e.maybeCommit()
	if e.committed.Index > e.savedCommitted {
		// The role hangs on the membership in force, and on whether that is committed.
		moved := e.savedCommitted <= e.memb.LogID.Index
		e.savedCommitted = e.committed.Index
		e.emit(SaveCommitted).LogID = e.committed
		if moved && e.lead == nil && e.race == nil {
			e.role = e.restingRole()
		}
	}
	e.maybeApply()
	if e.lead != nil {
		e.advanceMembership()
	}
	if e.lead != nil {
		e.advanceReads()
	}
}

// emit appends a command of this kind. The pointer is good until the next emit.
func (e *Engine) emit(kind CommandKind) *Command {
	n := len(e.out)
	if n < cap(e.out) {
		e.out = e.out[:n+1]
		e.out[n] = Command{}
	} else {
		e.out = append(e.out, Command{})
	}
	c := &e.out[n]
	c.Kind = kind
	return c
}

func (e *Engine) refuse(token uint64, reason Reason) {
	c := e.emit(Refuse)
	c.Token, c.Reason, c.To = token, reason, e.Leader()
}

// Deadline tells when a Tick is wanted next. Zero: never, as long as nothing else happens.
func (e *Engine) Deadline() Instant {
	switch {
	case !e.started:
		return 1
	case e.quiesced:
		return 0
	case e.lead != nil:
		return e.lead.deadline()
	case e.role != RoleUninitialised && e.role != RoleLearner:
		return e.electionAt
	}
	return 0
}

// Status returns a copy of what the engine is now.
func (e *Engine) Status() Status {
	s := Status{
		Role: e.role, Vote: e.vote, Leader: e.Leader(), Last: e.log.last(), Flushed: e.log.id(e.io.flushed),
		Committed: e.committed, Applied: e.applied, Purged: e.log.purged, Membership: e.memb, Quiesced: e.quiesced,
		Deadline: e.Deadline(),
	}
	if e.lead != nil {
		s.LeaseUntil = e.leaseUntil()
	}
	return s
}

// MembershipID is the log id of the membership in force.
func (e *Engine) MembershipID() LogID { return e.memb.LogID }

// Quiesced tells whether the replica sleeps.
func (e *Engine) Quiesced() bool { return e.quiesced }

// Committed returns the newest entry that is known to be committed.
func (e *Engine) Committed() LogID { return e.committed }

// Leader names the leader, if it is known; zero if not.
func (e *Engine) Leader() Peer {
	if !e.knows {
		return Peer{}
	}
	return e.vote.Peer
}

// IsLeader tells whether this replica leads.
func (e *Engine) IsLeader() bool { return e.lead != nil }

// random returns a number below n.
func (e *Engine) random(n Duration) Duration {
	if n <= 0 {
		return 0
	}
	e.rng += 0x9e3779b97f4a7c15
	hi, _ := bits.Mul64(mix(e.rng), uint64(n))
	return Duration(hi)
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func (e *Engine) addBarrier(index uint64) {
	if index > e.applied.Index {
		w := e.io.own()
		w.barriers = append(w.barriers, index)
	}
}

// dropBarriers keeps those for which keep holds.
func (e *Engine) dropBarriers(keep func(uint64) bool) {
	w := e.io.work
	if len(w.barriers) == 0 {
		return
	}
	n := 0
	for _, b := range w.barriers {
		if keep(b) {
			w.barriers[n] = b
			n++
		}
	}
	w.barriers = w.barriers[:n]
}
