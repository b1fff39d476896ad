package engine

// handleTransferLeader hands over to a voter: writes are refused until it has caught up, then TimeoutNow goes out. It is given
// up after an election timeout.
func (e *Engine) handleTransferLeader(m *TransferLeader) {
	if e.lead == nil {
		e.refuse(m.Token, ReasonNotLeader)
		e.provoke()
		return
	}
	l := e.lead
	f := l.find(m.To)
	switch {
	case l.transferTo != Peer{}:
		e.refuse(m.Token, ReasonBusy)
	case f == nil || f.learner || e.applied.Index < l.blank:
		e.refuse(m.Token, ReasonInvalid)
	default:
		e.wake()
		l.transferTo, l.transferUntil = m.To, e.now+Instant(e.cfg.ElectionTimeoutMin)
		l.busyAt, l.quiesceAt = e.now, 0
		e.send(f)
		e.maybeTimeoutNow(f)
	}
}

func (e *Engine) maybeTimeoutNow(f *follower) {
	l := e.lead
	if l == nil || l.ordered || f.peer != l.transferTo || f.match != e.log.lastIndex() {
		return
	}
	l.leaseOff = true // from here on, for the rest of the term (rule Engine3)
	l.ordered = true
	l.quiesceAt = 0
	c := e.emit(SendTimeoutNow)
	c.To, c.Vote = f.peer, e.vote
}
