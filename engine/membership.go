package engine

// setMembership puts at in force: a membership counts from its append on, committed or not.
func (e *Engine) setMembership(at MembershipAt) {
	e.prev, e.memb = some(e.memb), at
	e.addBarrier(at.LogID.Index)
}

// previous is the membership that comes back if that in force is truncated; none is zero.
func (e *Engine) previous() MembershipAt {
	if e.prev == nil {
		return MembershipAt{}
	}
	return *e.prev
}

// some returns at, or nil if that is none.
func some(at MembershipAt) *MembershipAt {
	if at.Membership == nil {
		return nil
	}
	return &at
}

// appendMembership appends m as an entry of the own term.
func (e *Engine) appendMembership(m *Membership, token uint64) {
	e.appendOwn(EntryMembership, 1, token, m)
	e.setMembership(MembershipAt{LogID: e.log.last(), Membership: m})
	e.rebuildStreams()
	e.replicate()
}

func (e *Engine) handleChangeMembership(m *ChangeMembership) {
	if e.lead == nil {
		e.refuse(m.Token, ReasonNotLeader)
		e.provoke()
		return
	}
	if reason := e.objection(&m.Target); reason != 0 {
		e.refuse(m.Token, reason)
		return
	}
	e.wake()
	old, voters := e.memb.Membership, m.Target.Voters[0]
	next := &Membership{Voters: [][]Peer{voters}, Learners: m.Target.Learners}
	if !sameSet(old.Voters[0], voters) {
		next.Voters = [][]Peer{old.Voters[0], voters}
	}
	e.appendMembership(next, m.Token)
}

// objection tells why the membership cannot be changed to target now; zero if it can. One change at a time, none before an entry of
// the own term is committed (the single-server bug of 2015, and its cousins).
func (e *Engine) objection(target *Membership) Reason {
	l := e.lead
	switch {
	case l.transferTo != Peer{}:
		return ReasonTransferring
	case e.committed.Index < l.blank || e.memb.LogID.Index > e.committed.Index || e.memb.Membership.Joint():
		return ReasonBusy
	case len(target.Voters) != 1 || len(target.Voters[0]) == 0 || !distinct(target):
		return ReasonInvalid
	}
	for _, p := range target.Voters[0] {
		if !e.memb.Membership.IsVoter(p) && !e.caughtUp(p) {
			return ReasonInvalid
		}
	}
	return 0
}

// caughtUp tells whether p is a learner that is no more than a full pipeline behind what is committed.
func (e *Engine) caughtUp(p Peer) bool {
	f := e.lead.find(p)
	window := uint64(e.cfg.InflightMax) * uint64(e.cfg.EntriesPerMessage)
	return f != nil && f.state == ProgressPipeline && f.match+window >= e.committed.Index
}

// advanceMembership finishes what a commit has made possible: the second half of a joint change, also one that this leader found, and
// the departure of a leader that is not a voter any more.
func (e *Engine) advanceMembership() {
	m := e.memb.Membership
	if m == e.lead.settled || e.memb.LogID.Index > e.committed.Index || e.committed.Index < e.lead.blank {
		return
	}
	if m.Joint() {
		e.appendMembership(&Membership{Voters: m.Voters[1:2:2], Learners: m.Learners}, 0)
		e.advance()
		return
	}
	if m.IsVoter(e.self) {
		e.lead.settled = m
		return
	}
	if e.applied.Index >= e.memb.LogID.Index {
		e.handleResign()
	}
}

// NamedVoter tells whether the membership in force, or the one before it, names this replica as a voter: somebody may have counted on what it has
// acknowledged, whether it has applied that membership or not.
func (e *Engine) NamedVoter() bool {
	return e.memb.Membership != nil && e.memb.Membership.IsVoter(e.self) || e.prev != nil && e.prev.Membership.IsVoter(e.self)
}

func sameSet(a, b []Peer) bool {
	if len(a) != len(b) {
		return false
	}
	for _, p := range a {
		if !containsPeer(b, p) {
			return false
		}
	}
	return true
}

// distinct tells whether no peer is named twice and none is zero.
func distinct(m *Membership) bool {
	n := len(m.Learners)
	for _, set := range m.Voters {
		n += len(set)
	}
	peers := m.appendPeers(make([]Peer, 0, n))
	return len(peers) == n && !containsPeer(peers, Peer{})
}
