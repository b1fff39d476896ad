package engine

// supersedes tells whether v may replace w: a later term, the winner of the term, or a first choice in it.
func (v Vote) supersedes(w Vote) bool {
	switch {
	case v.Term != w.Term:
		return v.Term > w.Term
	case v.Committed:
		return !w.Committed
	}
	return w.Peer == Peer{} && !w.Committed && v.Peer != Peer{}
}

// follow makes this replica a follower under v, which supersedes the vote that it holds. Office is given up before anything
// else (trap: losing leadership fails pending reads first).
func (e *Engine) follow(v Vote) {
	e.leaveOffice()
	e.grant = grant{}
	e.knows = false
	e.saveVote(v)
	e.verified = e.committed.Index // all that is committed is in every later leader's log
}

// leaveOffice ends leading and campaigning, keeping the vote.
func (e *Engine) leaveOffice() {
	if e.lead != nil {
		e.emit(FailPendingReads).Token = e.lead.reads.last
		e.emit(CloseReplicationStreams)
		e.lead = nil
		e.knows = false
	}
	e.race = nil
	e.quiesced = false
	e.role = e.restingRole()
	e.electionAt = e.now + e.electionTimeout()
}

// adopt takes over a higher vote that was found in a response. Only its uncommitted form: we have not seen that leader's log, and a
// committed vote would say that we follow it (openraft #1220). It says whether it did.
func (e *Engine) adopt(v Vote) bool {
	if v.Term <= e.vote.Term {
		return false
	}
	v.Committed = false
	e.stepDown()
	e.follow(v)
	return true
}

// acceptLeader follows v, the committed vote of a leader that sent us something; false if ours forbids it.
func (e *Engine) acceptLeader(v Vote, from Peer) bool {
	if !v.Committed || v.Peer != from || from == e.self {
		return false
	}
	if v != e.vote {
		if !v.supersedes(e.vote) {
			return false
		}
		e.follow(v)
	} else if e.lead != nil {
		return false
	}
	if e.race != nil {
		e.leaveOffice()
	}
	e.knows = true
	return true
}

// handleVoteRequest answers a candidate. Membership is not asked: the candidate may know a newer one (FAULTS 2.6).
func (e *Engine) handleVoteRequest(m *VoteRequest) {
	if m.From == e.self || m.Vote.Peer != m.From {
		return
	}
	if e.vote.Committed && m.From == e.vote.Peer && m.Vote.Term > e.vote.Term {
		// Who led this term asks for a later one: it leads no more, and releases our promise.
		e.wake()
		e.grant, e.knows = grant{}, false
	}
	e.provoke()
	if m.Pre {
		e.handlePreVote(m)
		return
	}
	if m.Vote.Term < e.vote.Term {
		e.rejectVote(m, false)
		return
	}
	if e.protects(m.TransferOf) {
		e.rejectVote(m, true)
		return
	}
	if m.LastLog.Less(e.log.last()) {
		if m.Vote.Term > e.vote.Term {
			e.follow(Vote{Term: m.Vote.Term}) // the term moves, the vote is given to nobody
		}
		e.rejectVote(m, false)
		e.splitVote(m)
		return
	}
	v := Vote{Term: m.Vote.Term, Peer: m.From}
	if v.supersedes(e.vote) {
		e.follow(v)
	}
	if e.vote != v {
		e.rejectVote(m, false)
		e.splitVote(m)
		return
	}
	e.electionAt = e.now + e.electionTimeout()
	e.answerAfter(answer{after: e.io.voteSeq, to: m.From, kind: RespondVote, flag: flagOK})
}

// handlePreVote says what a vote would be, and changes nothing but perhaps our own turn.
func (e *Engine) handlePreVote(m *VoteRequest) {
	if e.protects(Vote{}) {
		e.rejectVote(m, true)
		return
	}
	v := Vote{Term: m.Vote.Term, Peer: m.From}
	behind := m.LastLog.Less(e.log.last())
	if (v != e.vote && !v.supersedes(e.vote)) || behind {
		e.rejectVote(m, false)
		if behind {
			e.takeTurn()
		}
		return
	}
	c := e.emit(Respond)
	c.To, c.Response = m.From, RespondVote
	c.VoteResponse = &VoteResponse{From: e.self, Pre: true, Granted: true, Request: m.Vote, Vote: e.vote}
}

// protects tells whether a leader that we know must not be disturbed: ourselves in office, or one that holds our promise; or the
// start lease. A transfer that names this leader's vote passes.
func (e *Engine) protects(transferOf Vote) bool {
	if e.now < e.leaseStart() {
		return true
	}
	if transferOf.Committed && transferOf == e.vote {
		return false
	}
	return e.lead != nil || e.now < e.grantUntil()
}

func (e *Engine) rejectVote(m *VoteRequest, protected bool) {
	c := e.emit(Respond)
	c.To, c.Response = m.From, RespondVote
	c.VoteResponse = &VoteResponse{
		From: e.self, Pre: m.Pre, Request: m.Vote, Vote: e.vote,
		LiveLeader: protected && (e.lead != nil || e.now < e.grantUntil()),
	}
}
