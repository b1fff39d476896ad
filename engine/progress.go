package engine

// follower is a leader's view of one other replica.
//
//	probe ──answer matches──► pipeline ──rejection, loss──► probe
//	  └──── needs what is purged ────► snapshot ──installed──► probe
type follower struct {
	peer    Peer
	learner bool
	state   ProgressState
	// asleep: it has accepted the Quiesce; its promise may be extended by the link of this incarnation and epoch.
	asleep bool
	// waiting: in probe, one message is out; in snapshot, one has failed and the next heartbeat tries again.
	waiting bool
	// match is the last index known to be the same and durable there; next the first that was not sent. next > match.
	match, next uint64
	// stream names one attempt at sending in order; answers to an earlier one tell what the follower holds, and nothing else. seq counts its
	// messages, acked those that were answered: all before an answered one are.
	stream, seq, acked uint64
	sentAt             Instant // in probe: when it went out; in pipeline: the last time that it moved
	snapIndex          uint64  // a snapshot on its way holds at least this
	emptySince         Instant // it says that it holds nothing, and waits for its parent's split (rule Split4)

	activeAt    Instant // its last answer
	leaseUntil  Instant
	round       uint64 // the last heartbeat round that it answered
	incarnation uint64
	epoch       uint64
}

func (f *follower) inflight() int { return int(f.seq - f.acked) }

// rebuildStreams makes the progress table fit the membership in force: who stays keeps its stream, who comes is probed.
func (e *Engine) rebuildStreams() {
	l, m := e.lead, e.memb.Membership
	if l.plain = nil; len(m.Voters) == 1 && m.IsVoter(e.self) {
		l.plain = m
	}
	old := l.followers
	peers := m.appendPeers(make([]Peer, 0, 8))
	others := len(peers)
	if m.Contains(e.self) {
		others--
	}
	l.followers = make([]follower, 0, others)
	for _, p := range peers {
		if p == e.self {
			continue
		}
		f := follower{peer: p, activeAt: e.now, next: e.log.lastIndex() + 1}
		known := false
		for i := range old {
			if old[i].peer == p {
				f, known = old[i], true
			}
		}
		f.learner = !m.IsVoter(p)
		l.followers = append(l.followers, f)
		if !known {
			e.newStream(&l.followers[len(l.followers)-1], ProgressProbe)
		}
	}
	e.emit(RebuildReplicationStreams).Membership = m
}

func (e *Engine) newStream(f *follower, s ProgressState) {
	e.lead.stream++
	f.stream, f.state, f.seq, f.acked, f.waiting = e.lead.stream, s, 0, 0, false
	f.emptySince = 0
	e.lead.heartbeatAt = min(e.lead.heartbeatAt, e.now+Instant(e.cfg.HeartbeatInterval)) // whoever rested looks after it
}

// probe starts anew, at next or lower.
func (e *Engine) probe(f *follower, next uint64) {
	e.newStream(f, ProgressProbe)
	f.next = max(f.match+1, min(next, e.log.lastIndex()+1))
}

// replicate sends to everyone what may be sent.
func (e *Engine) replicate() {
	all := true
	for i := range e.lead.followers {
		f := &e.lead.followers[i]
		next := f.next
		e.send(f)
		all = all && f.next > next
	}
	if all {
		e.lead.owing = false
	}
}

// send sends what the state of f allows: one message while probing, a window in the pipeline, a snapshot to whom the log cannot help.
func (e *Engine) send(f *follower) {
	if f.state != ProgressSnapshot && f.next <= e.log.purged.Index {
		e.sendSnapshot(f)
		return
	}
	switch f.state {
	case ProgressProbe:
		if !f.waiting {
			e.sendEntries(f)
			f.waiting = true
		}
	case ProgressPipeline:
		for f.next <= e.log.lastIndex() && f.inflight() < e.cfg.InflightMax {
			if f.inflight() == 0 {
				f.sentAt = e.now
			}
			e.sendEntries(f)
		}
	}
}

// sendEntries sends one message with what comes next, perhaps nothing. In the pipeline next moves on at once.
func (e *Engine) sendEntries(f *follower) {
	last := min(e.log.lastIndex(), f.next+uint64(e.cfg.EntriesPerMessage)-1)
	e.emitReplicate(f, last)
	if f.state == ProgressPipeline {
		f.next = last + 1
	} else {
		f.sentAt = e.now
	}
}

func (e *Engine) emitReplicate(f *follower, last uint64) {
	f.seq++
	e.lead.quiesceAt = 0
	c := e.emit(Replicate)
	c.To, c.Vote, c.Prev, c.First, c.Last = f.peer, e.vote, e.log.id(f.next-1), f.next, last
	c.LogID, c.Stream, c.Seq, c.SentAt = e.applied, f.stream, f.seq, e.now
}

func (e *Engine) sendSnapshot(f *follower) {
	e.newStream(f, ProgressSnapshot)
	f.snapIndex = e.applied.Index
	e.lead.quiesceAt = 0
	c := e.emit(ReplicateSnapshot)
	c.To, c.Vote, c.Stream = f.peer, e.vote, f.stream
}

// retry runs at every heartbeat: what got no answer is tried again, without entries, until somebody is there.
func (e *Engine) retry(f *follower) {
	switch f.state {
	case ProgressPipeline:
		if f.inflight() > 0 && e.now-f.sentAt >= Instant(e.cfg.ElectionTimeoutMin)/2 {
			e.probe(f, f.match+1)
			e.send(f)
		}
	case ProgressProbe:
		if !f.waiting {
			e.send(f)
		} else if e.now-f.sentAt >= Instant(e.cfg.HeartbeatInterval) {
			if f.next <= e.log.purged.Index {
				e.sendSnapshot(f)
				return
			}
			f.sentAt = e.now
			e.emitReplicate(f, f.next-1)
		}
	case ProgressSnapshot:
		if f.waiting { // the last one failed
			since := f.emptySince
			e.probe(f, f.next)
			f.emptySince = since
			e.send(f)
		}
	}
}

// heard notes an answer under our vote: activity, and the lease that counts from the sending of what it answers.
func (e *Engine) heard(f *follower, sentAt Instant, promise Duration) {
	f.activeAt = e.now
	if promise > 0 && sentAt > 0 {
		f.leaseUntil = max(f.leaseUntil, sentAt+Instant(promise-e.cfg.ClockDriftMax))
	}
}

// answering finds the follower behind a response; nil if the response does not concern this term of office.
func (e *Engine) answering(from Peer, v Vote) *follower {
	if e.lead == nil {
		return nil
	}
	if v.Term > e.vote.Term {
		e.adopt(v)
		return nil
	}
	if v != e.vote {
		return nil
	}
	return e.lead.find(from)
}

func (e *Engine) handleAppendResponse(m *AppendResponse) {
	f := e.answering(m.From, m.Vote)
	if f == nil {
		return
	}
	e.heard(f, m.SentAt, m.Promise)
	if m.Stream > f.stream || m.Stream == f.stream && m.Seq > f.seq || m.Match.Index > e.log.lastIndex() {
		return // stale
	}
	switch {
	case m.Stream < f.stream:
		e.matchedEarlier(f, m)
	case m.Uninitialised:
		e.uninitialised(f, m.Waiting)
	case m.Success:
		e.advanceFollower(f, m)
	default:
		e.rejected(f, m)
	}
}

func (e *Engine) advanceFollower(f *follower, m *AppendResponse) {
	f.acked = max(f.acked, m.Seq)
	f.sentAt = e.now
	f.emptySince = 0
	if m.Match.Index > f.match {
		f.match = m.Match.Index
		e.lead.busyAt = e.now
	}
	f.next = max(f.next, f.match+1)
	if f.state == ProgressProbe {
		f.state, f.waiting, f.next = ProgressPipeline, false, f.match+1
		f.acked = f.seq
	}
	e.maybeCommit()
	e.send(f)
	e.maybeTimeoutNow(f)
}

// matchedEarlier takes from an answer to an earlier stream what stays true: what the follower holds under our vote it keeps. Without it a
// follower that needs longer for a message than the next one takes to be dropped would be sent the same for ever.
func (e *Engine) matchedEarlier(f *follower, m *AppendResponse) {
	if !m.Success || m.Uninitialised || m.Match.Index <= f.match {
		return
	}
	f.match = m.Match.Index
	f.next = max(f.next, f.match+1)
	e.lead.busyAt = e.now
	if f.state == ProgressPipeline {
		f.sentAt = e.now
	}
	e.maybeCommit()
	e.maybeTimeoutNow(f)
}

// rejected goes back to where the two logs may agree: a step per term, not per entry.
func (e *Engine) rejected(f *follower, m *AppendResponse) {
	if f.state == ProgressProbe && m.Seq != f.seq || f.state == ProgressSnapshot {
		return
	}
	hint := m.Hint
	if t, ok := e.log.term(hint.Index); !ok || t != hint.Term {
		if hint.Index > e.log.purged.Index {
			hint = e.log.lastNotAbove(hint.Index, hint.Term)
		}
	}
	before, probing := f.next, f.state == ProgressProbe
	e.probe(f, hint.Index+1)
	if hint.Index < e.log.purged.Index {
		f.next = hint.Index + 1 // only a snapshot helps, whatever it once held
	}
	if probing && f.next >= before {
		f.waiting, f.sentAt = true, e.now // it did not help: not before the next heartbeat
		return
	}
	e.send(f)
}

// uninitialised: the follower holds nothing, and entries alone cannot fill it. Its parent's split may, soon (rule Split4).
func (e *Engine) uninitialised(f *follower, waiting bool) {
	if f.state == ProgressSnapshot {
		return
	}
	if f.emptySince == 0 {
		f.emptySince = e.now
	}
	if waiting && e.now-f.emptySince < 10*Instant(e.cfg.ElectionTimeoutMin) {
		since := f.emptySince
		e.probe(f, f.next)
		f.emptySince, f.waiting, f.sentAt = since, true, e.now
		return
	}
	e.sendSnapshot(f)
}

func (e *Engine) handleReplicateFailed(m *ReplicateFailed) {
	if e.lead == nil {
		return
	}
	f := e.lead.find(m.To)
	if f == nil || f.stream != m.Stream || f.state == ProgressSnapshot {
		return
	}
	next := f.next
	if f.state == ProgressPipeline {
		next = f.match + 1
	}
	e.probe(f, next)
	f.waiting, f.sentAt = true, e.now // the outbox is full: wait for the next heartbeat
}

func (e *Engine) handleSnapshotResponse(m *SnapshotResponse) {
	f := e.answering(m.From, m.Vote)
	if f == nil {
		return
	}
	e.heard(f, 0, 0)
	if f.state != ProgressSnapshot || f.stream != m.Stream || m.Match.Index > e.log.lastIndex() {
		return
	}
	if !m.Accepted {
		f.waiting = true
		return
	}
	f.match = max(f.match, m.Match.Index)
	e.probe(f, f.match+1)
	e.maybeCommit()
	e.send(f)
}

func (e *Engine) handleSnapshotFailed(m *SnapshotFailed) {
	if e.lead == nil {
		return
	}
	if f := e.lead.find(m.To); f != nil && f.state == ProgressSnapshot && f.stream == m.Stream {
		f.waiting = true
	}
}

// Progress appends a leader's view of its followers to buf.
func (e *Engine) Progress(buf []Progress) []Progress {
	if e.lead == nil {
		return buf
	}
	for i := range e.lead.followers {
		f := &e.lead.followers[i]
		match := LogID{Index: f.match}
		match.Term, _ = e.log.term(f.match)
		buf = append(buf, Progress{
			Peer: f.peer, Match: match, Next: f.next, State: f.state, Inflight: f.inflight(), Learner: f.learner,
		})
	}
	return buf
}

// StreamLive tells whether what was read for a Replicate or ReplicateSnapshot to this peer may still be sent.
func (e *Engine) StreamLive(to Peer, stream uint64) bool {
	if e.lead == nil {
		return false
	}
	f := e.lead.find(to)
	return f != nil && f.stream == stream
}
