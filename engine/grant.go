package engine

// grant is the promise given to the leader of the current vote (rule Engine2): while it stands this replica neither campaigns nor
// grants a vote or pre-vote, except for a transfer that names that very leader's vote. It dies with the vote.
type grant struct {
	until Instant
	// asleep: it was given with a Quiesce, sent by the leader at sentAt, and node heartbeats extend it while their link
	// stays unbroken, that is while incarnation and epoch of the link are still these.
	asleep      bool
	sentAt      Instant
	incarnation uint64
	epoch       uint64
}

// grantUntil tells until when the promise stands. Zero: it does not.
func (e *Engine) grantUntil() Instant {
	until := e.grant.until
	if e.grant.asleep && e.cfg.Links != nil {
		l, ok := e.cfg.Links.Nodes[e.vote.Peer.Node]
		if ok && l.Incarnation == e.grant.incarnation && l.PromiseEpoch == e.grant.epoch {
			until = max(until, l.PromisedUntil)
		}
	}
	return until
}

// bound tells whether a promise forbids to campaign, and to grant votes: the start lease of a life of which nothing is
// remembered, or a grant that stands.
func (e *Engine) bound() bool { return e.now < e.leaseStart() || e.now < e.grantUntil() }

// heardLeader notes a message that the leader of vote sent at sentAt by its own clock. It renews grant and election timer, and
// ends sleep. That the leader sent it after our promise to sleep is what ends the extension by node heartbeats.
func (e *Engine) heardLeader(sentAt Instant) {
	e.quiesced = false
	e.refusals = 0
	if e.grant.asleep && sentAt > e.grant.sentAt {
		e.grant.asleep = false
	}
	e.grant.until = max(e.grant.until, e.now+Instant(e.cfg.ElectionTimeoutMin))
	e.electionAt = e.now + e.electionTimeout()
}

// electionTimeout is T to 2T.
func (e *Engine) electionTimeout() Instant {
	return Instant(e.cfg.ElectionTimeoutMin + e.random(e.cfg.ElectionTimeoutMin))
}
