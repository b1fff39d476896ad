package engine

// install is a snapshot that is being installed.
type install struct {
	token  uint64
	from   Peer
	stream uint64
}

// handleSnapshotReceived decides about a snapshot that has arrived whole: install it, unless it is of a former leader, or no news.
func (e *Engine) handleSnapshotReceived(m *SnapshotReceived) {
	a := answer{to: m.From, kind: RespondSnapshot, stream: m.Stream}
	if !e.acceptLeader(m.Vote, m.From) {
		e.emit(RejectSnapshot).Token = m.Token
		e.deliver(&a)
		return
	}
	e.heardLeader(0)
	a.after = e.io.voteSeq
	if e.memb.Membership != nil && m.Meta.Last.Index <= e.applied.Index {
		e.emit(RejectSnapshot).Token = m.Token
		a.flag, a.match = flagOK, e.applied // we have it all, durably
		e.answerAfter(a)
		return
	}
	if e.snap != nil {
		e.emit(RejectSnapshot).Token = m.Token
		e.answerAfter(a)
		return
	}
	e.snap = &install{token: m.Token, from: m.From, stream: m.Stream}
	meta := m.Meta
	c := e.emit(InstallSnapshot)
	c.Token, c.Snapshot = m.Token, &meta
}

// handleSnapshotInstalled: the state is the snapshot's now, durably (rule Log7: first the state, then the log). The log is kept if
// it holds the snapshot's last entry, else it is void from one end to the other (FAULTS 2.10).
func (e *Engine) handleSnapshotInstalled(m *SnapshotInstalled) {
	if e.snap == nil || e.snap.token != m.Token {
		return
	}
	s := e.snap
	e.snap = nil
	last := m.Meta.Last
	if !m.Superseded && last.Index > e.applied.Index {
		e.takeSnapshot(m.Meta)
	}
	if e.Leader() == s.from {
		a := answer{after: e.io.voteSeq, to: s.from, kind: RespondSnapshot, stream: s.stream}
		if e.memb.Membership != nil && e.applied.Index >= last.Index {
			a.flag, a.match = flagOK, last
		}
		e.answerAfter(a)
	}
}

func (e *Engine) takeSnapshot(meta SnapshotMeta) {
	last := meta.Last
	if t, ok := e.log.term(last.Index); ok && t == last.Term {
		e.log.purge(last)
		e.io.flushed = max(e.io.flushed, last.Index)
		if e.memb.LogID.Index <= last.Index {
			e.memb, e.prev = meta.Membership, nil // the snapshot's, not the log's (openraft #1808)
		} else {
			e.prev = some(meta.Membership)
		}
	} else {
		if e.log.lastIndex() > e.log.purged.Index {
			c := e.emit(TruncateLog)
			c.First = e.log.purged.Index + 1
			e.log.runs = nil
			e.log.purge(last)
			e.io.reset(last.Index)
			c.IO = e.submit()
		} else {
			e.log.purge(last)
			e.io.reset(last.Index)
		}
		e.memb, e.prev = meta.Membership, nil
		e.dropHeld() // what they attest is gone
	}
	e.emit(PurgeLog).LogID = last
	if last.Index > e.committed.Index {
		e.committed = last
	}
	e.verified = max(e.verified, last.Index)
	e.applyTo = 0 // what was being applied is overtaken; apply skips forward
	e.setApplied(last)
	if e.lead == nil && e.race == nil {
		e.role = e.restingRole()
	}
}
