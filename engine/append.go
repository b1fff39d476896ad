package engine

import "fmt"

// handleAppend is a follower's side of replication.
func (e *Engine) handleAppend(m *AppendRequest) {
	a := answer{to: m.From, kind: RespondAppend, stream: m.Stream, seq: m.Seq, sentAt: m.SentAt}
	if !e.acceptLeader(m.Vote, m.From) {
		e.deliver(&a) // it learns our vote
		return
	}
	e.heardLeader(m.SentAt)
	a.promise = e.cfg.ElectionTimeoutMin
	a.after = e.io.voteSeq
	if e.memb.Membership == nil { // entries alone never fill an empty replica (rule Split3)
		a.flag = flagUninitialised
		e.answerAfter(a)
		return
	}
	end, ok := runsEnd(m)
	if !ok {
		return // malformed: no honest leader sends it
	}
	if hint, ok := e.matches(m.Prev); !ok {
		a.hint = hint
		e.answerAfter(a)
		return
	}
	e.appendInput(m)
	e.verified = max(e.verified, end)
	e.announced = max(e.announced, m.Commit.Index)
	e.commitAnnounced()
	a.flag = flagOK
	a.match = e.log.id(max(end, e.log.purged.Index))
	if end > e.io.flushed {
		// Not only what this message wrote: if it repeats entries it wrote nothing, and must still wait for the write that did.
		a.after = e.io.seq
	}
	e.answerAfter(a)
}

// runsEnd tells the last index that the request is about, and whether its runs follow Prev without gap.
func runsEnd(m *AppendRequest) (end uint64, ok bool) {
	end = m.Prev.Index
	term := m.Prev.Term
	for _, r := range m.Runs {
		if r.First != end+1 || r.Last < r.First || r.Term < term {
			return 0, false
		}
		end, term = r.Last, r.Term
	}
	return end, term <= m.Vote.Term
}

// matches tells whether the log holds prev; if not, hint is its last id that could be in the leader's log.
func (e *Engine) matches(prev LogID) (hint LogID, ok bool) {
	if prev.Index <= e.committed.Index {
		return LogID{}, true // committed entries are the same in every leader's log
	}
	last := e.log.last()
	if prev.Index > last.Index {
		return last, false
	}
	if t, _ := e.log.term(prev.Index); t != prev.Term {
		return e.log.lastNotAbove(prev.Index-1, prev.Term), false
	}
	return LogID{}, true
}

// appendInput takes over the entries that are not there yet. It truncates from the first one that differs, never merely because the
// request ends before the log does (trap: a late, shorter append).
func (e *Engine) appendInput(m *AppendRequest) {
	first, before := uint64(0), e.memb.LogID
	for _, r := range m.Runs {
		if first == 0 {
			if first = e.log.differs(r); first == 0 {
				continue
			}
			if first <= e.log.lastIndex() {
				e.truncate(first)
			}
		}
		e.log.append(r.Term, max(first, r.First), r.Last)
	}
	if first == 0 {
		return
	}
	for _, at := range m.Memberships {
		if at.LogID.Index >= first {
			e.setMembership(at)
		}
	}
	for _, b := range m.Barriers {
		if b >= first {
			e.addBarrier(b)
		}
	}
	c := e.emit(AppendInputEntries)
	c.Inbound, c.First, c.Last, c.IO = true, first, e.log.lastIndex(), e.submit()
	if e.memb.LogID != before {
		e.role = e.restingRole()
	}
}

// truncate forgets all entries from first on, and the membership among them.
func (e *Engine) truncate(first uint64) {
	if first <= e.committed.Index {
		panic(fmt.Sprintf("engine: %v told to truncate %d, committed is %v", e.self, first, e.committed))
	}
	e.log.truncate(first)
	e.io.truncate(first)
	if e.memb.LogID.Index >= first {
		e.memb, e.prev = e.previous(), nil
	}
	e.dropBarriers(func(b uint64) bool { return b < first })
	e.verified = min(e.verified, first-1)
	c := e.emit(TruncateLog)
	c.First, c.IO = first, e.submit()
}

// commitAnnounced commits what was both announced by a leader and verified to be in its log.
func (e *Engine) commitAnnounced() {
	if i := min(e.announced, e.verified); i > e.committed.Index {
		e.committed = e.log.id(i)
	}
}

// maybeApply asks for the next entries that are committed and durable here (a checkpoint must never hold what the log may lose).
func (e *Engine) maybeApply() {
	to := min(e.committed.Index, e.io.flushed)
	if e.applyTo != 0 || e.snap != nil || to <= e.applied.Index {
		return
	}
	e.applyTo = to
	c := e.emit(Apply)
	c.First, c.Last = e.applied.Index+1, to
}

func (e *Engine) handleApplied(m *Applied) {
	if m.LogID.Index <= e.applied.Index {
		return // it was overtaken by a snapshot
	}
	if m.LogID.Index > e.committed.Index {
		panic(fmt.Sprintf("engine: applied %v, committed %v", m.LogID, e.committed))
	}
	e.setApplied(m.LogID)
	if e.lead != nil {
		e.announce()
	}
}

func (e *Engine) setApplied(id LogID) {
	e.applied = id
	if e.applyTo <= id.Index {
		e.applyTo = 0
	}
	e.dropBarriers(func(b uint64) bool { return b > id.Index })
}

// handleCommitted takes it from elsewhere that an entry is committed.
func (e *Engine) handleCommitted(m *Committed) {
	if t, ok := e.log.term(m.LogID.Index); ok && t == m.LogID.Term && m.LogID.Index > e.committed.Index {
		e.committed = m.LogID
		e.verified = max(e.verified, m.LogID.Index)
		e.announced = max(e.announced, m.LogID.Index)
	}
}
