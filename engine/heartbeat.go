package engine

// handleHeartbeat: a heartbeat proper comes from a leader; a probe and a resignation are about who leads.
func (e *Engine) handleHeartbeat(m *Heartbeat) {
	switch {
	case m.Probe:
		e.handleProbe(m)
		return
	case m.Resigned:
		e.handleResigned(m)
		return
	}
	a := answer{to: m.From, kind: RespondHeartbeat, seq: m.Round, sentAt: m.SentAt}
	if !e.acceptLeader(m.Vote, m.From) {
		a.match = e.log.last()
		e.deliver(&a) // it learns our vote
		return
	}
	e.heardLeader(m.SentAt)
	e.announced = max(e.announced, m.Commit.Index)
	e.commitAnnounced()
	a.promise = e.cfg.ElectionTimeoutMin
	a.match = e.log.last()
	if m.Commit.Index > e.verified || e.memb.Membership == nil {
		a.flag |= flagBehind
	}
	if m.Quiesce && e.fallAsleep(m) {
		a.flag |= flagQuiesced
	}
	if m.Round == 0 && !m.Quiesce && a.flag == 0 {
		return // only an announcement
	}
	a.after = e.io.voteSeq
	e.answerAfter(a)
}

func (e *Engine) handleHeartbeatResponse(m *HeartbeatResponse) {
	f := e.answering(m.From, m.Vote)
	if f == nil {
		return
	}
	e.heard(f, m.SentAt, m.Promise)
	f.round = max(f.round, m.Round)
	switch {
	case m.Quiesced:
		e.acceptedSleep(f, m)
	case m.Behind && f.state == ProgressProbe && f.emptySince != 0 && m.Last.Index > 0: // its parent's split has filled it (rule Split4)
		f.emptySince, f.waiting = 0, false
		e.send(f)
	case m.Behind && f.state == ProgressPipeline && f.inflight() == 0:
		e.probe(f, f.match+1)
		e.send(f)
	}
}

// handleProbe answers a follower's doubt about this shard (rule Live4): a leader proves itself, anybody else says that it is none.
func (e *Engine) handleProbe(m *Heartbeat) {
	c := e.emit(SendHeartbeat)
	c.To = m.From
	if e.lead == nil {
		c.Heartbeat = &Heartbeat{From: e.self, Vote: m.Vote, SentAt: e.now, Resigned: true}
		return
	}
	c.Heartbeat = &Heartbeat{From: e.self, Vote: e.vote, Commit: e.applied, SentAt: e.now}
	e.lead.quiesceAt = 0
	e.wake()
}

// handleResigned: our leader leads no more. The promise to it ends, and the survivors take turns.
func (e *Engine) handleResigned(m *Heartbeat) {
	if e.lead != nil || m.Vote != e.vote || m.From != e.vote.Peer {
		return
	}
	e.quiesced = false
	e.knows = false
	e.grant = grant{}
	if e.race == nil {
		e.campaignInOrder(m.From)
	}
}
