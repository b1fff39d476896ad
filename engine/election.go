package engine

// race is a campaign.
//
//	follower ──timeout──► pre-candidate ──quorum──► candidate ──own vote durable──► SendVote ──quorum──► leader
//	    ▲                      │                        │
//	    └──── higher vote, or a leader ─────────────────┘
type race struct {
	granted    []Peer
	transferOf Vote // of the leader that ordered it
	sent       bool // SendVote has gone out
}

// newbornAt is what New leaves in electionAt for Recovered.Newborn; start replaces it.
const newbornAt Instant = -1

// start sets the timers of a new life (rule Live5): after the start lease one pre-vote, at once if the stored vote says that
// this replica led, else after a jitter.
func (e *Engine) start() {
	e.started = true
	newborn := e.electionAt == newbornAt
	e.electionAt = max(e.now, e.leaseStart())
	led := e.vote.Committed && e.vote.Peer == e.self
	if m := e.memb.Membership; led || m != nil && m.onlyVoter(e.self) {
		return
	}
	if newborn {
		// The designated first leader of the shard campaigns at once, and may still be in the making.
		e.electionAt += e.electionTimeout()
		return
	}
	e.electionAt += Instant(e.random(e.cfg.ElectionTimeoutMin))
}

func (e *Engine) handleTick() {
	switch {
	case e.quiesced:
	case e.lead != nil:
		e.tickLeader()
	case e.now >= e.electionAt:
		e.tickElection()
	}
}

func (e *Engine) tickElection() {
	if e.role == RoleUninitialised || e.role == RoleLearner {
		return
	}
	if e.bound() {
		// Only the link of a sleeper's leader can hold a promise for so long: doubt it, for this shard (rule Live4).
		e.doubtLeader()
		e.electionAt = e.now + e.electionTimeout()
		return
	}
	e.campaign()
}

// campaign asks for pre-votes. The sole voter needs none.
func (e *Engine) campaign() {
	e.knows = false
	e.race = &race{granted: []Peer{e.self}}
	e.role = RolePreCandidate
	e.electionAt = e.now + e.electionTimeout()
	if e.raceWon() {
		e.elect(Vote{})
		return
	}
	c := e.emit(SendPreVote)
	c.Vote, c.LogID = Vote{Term: e.vote.Term + 1, Peer: e.self}, e.log.last()
}

// elect takes the vote for the next term. Nobody is asked before it is durable, and with it everything that LastLog claims.
func (e *Engine) elect(transferOf Vote) {
	e.follow(Vote{Term: e.vote.Term + 1, Peer: e.self})
	e.role = RoleCandidate
	e.race = &race{transferOf: transferOf}
}

// requestVotes runs when the own vote is durable: it counts from now on.
func (e *Engine) requestVotes() {
	e.race.sent = true
	e.race.granted = append(e.race.granted, e.self)
	if e.raceWon() {
		e.becomeLeader()
		return
	}
	c := e.emit(SendVote)
	c.Vote, c.LogID, c.TransferOf = e.vote, e.log.last(), e.race.transferOf
}

func (e *Engine) raceWon() bool {
	return hasQuorum(e.memb.Membership, func(p Peer) bool { return containsPeer(e.race.granted, p) })
}

func (e *Engine) handleVoteResponse(m *VoteResponse) {
	if e.race == nil {
		return
	}
	if m.Vote.Term > e.vote.Term {
		// Adopted also from a pre-vote: else cohorts with a lower term never catch up (openraft #1796).
		e.adopt(m.Vote)
		e.electionAt = e.now + Instant(e.random(e.cfg.ElectionTimeoutMin))
		if m.LiveLeader {
			e.backOff()
		}
		return
	}
	if m.Pre {
		e.handlePreVoteResponse(m)
		return
	}
	if e.role != RoleCandidate || !m.Granted || m.Request != e.vote || containsPeer(e.race.granted, m.From) {
		return
	}
	e.race.granted = append(e.race.granted, m.From)
	if e.race.sent && e.raceWon() {
		e.becomeLeader()
	}
}

func (e *Engine) handlePreVoteResponse(m *VoteResponse) {
	if e.role != RolePreCandidate || m.Request != (Vote{Term: e.vote.Term + 1, Peer: e.self}) {
		return
	}
	switch {
	case m.LiveLeader:
		e.backOff()
	case m.Granted && !containsPeer(e.race.granted, m.From):
		e.race.granted = append(e.race.granted, m.From)
		if e.raceWon() && !e.bound() {
			e.elect(Vote{})
		}
	}
}

// backOff: there is a live leader, which will wake us, or one whose promises have not all ended. Ask again, ever later: from a quarter of
// the election timeout, for the promises of a dead leader end at slightly different times, up to two (rules Live4, Live5).
func (e *Engine) backOff() {
	wait := e.cfg.ElectionTimeoutMin / 4 << e.refusals
	e.refusals = min(e.refusals+1, 3)
	e.electionAt = e.now + Instant(wait+e.random(wait/2))
}

// takeTurn: a candidate was refused because it lacks what is in our log, so it cannot win without us, and we need not wait until it
// has tried for a whole timeout.
func (e *Engine) takeTurn() {
	if e.role == RoleFollower && e.race == nil && !e.bound() {
		e.electionAt = min(e.electionAt, e.now+Instant(e.random(e.cfg.ElectionTimeoutMin/8)))
	}
}

// splitVote: m is of another candidate of our term, so both may have no quorum, as when two of three are left. They need not both wait for a whole
// timeout: the one with the longer log, or else the first in the order of campaignInOrder, asks again once the answers to both must have come.
func (e *Engine) splitVote(m *VoteRequest) {
	last := e.log.last()
	if e.role != RoleCandidate || m.Vote.Term != e.vote.Term || last.Less(m.LastLog) || last == m.LastLog && e.turn(m.From) < e.turn(e.self) {
		return
	}
	wait := e.cfg.ElectionTimeoutMin / 8
	e.electionAt = min(e.electionAt, e.now+Instant(wait+e.random(wait)))
}

// handleCampaign starts an election now, if no promise forbids it.
func (e *Engine) handleCampaign() {
	if e.role != RoleFollower && e.role != RolePreCandidate || e.bound() {
		return
	}
	e.quiesced = false
	e.campaign()
}

// handleLead takes office in the term that the replica was born in, if nothing has happened to it since. It need not wait until its vote is
// durable: no later life is sent Lead, and none campaigns in that term.
func (e *Engine) handleLead() {
	if e.role != RoleFollower || e.race != nil || e.vote != (Vote{Term: e.applied.Term}) || e.log.last() != e.applied || e.bound() {
		return
	}
	e.vote.Peer = e.self
	e.becomeLeader()
}

// handleTimeoutNow campaigns at once, without a pre-vote: the leader has ordered it, and the request names its vote, which breaks
// exactly the promises that were given to it (rule Engine2).
func (e *Engine) handleTimeoutNow(m *TimeoutNow) {
	if m.Vote != e.vote || m.From != e.Leader() || e.role != RoleFollower || e.now < e.leaseStart() {
		return
	}
	e.quiesced = false
	e.elect(m.Vote)
}

// campaignInOrder sets the election timer after the loss of a leader: the survivors take turns, in an order by hash, first at
// once, the next an election timeout later (rule Live5).
func (e *Engine) campaignInOrder(lost Peer) {
	m := e.memb.Membership
	if m == nil {
		return
	}
	mine, rank := e.turn(e.self), 0
	for _, set := range m.Voters[len(m.Voters)-1:] {
		for _, p := range set {
			if p != lost && p != e.self && e.turn(p) < mine {
				rank++
			}
		}
	}
	e.electionAt = max(e.now+Instant(rank)*Instant(e.cfg.ElectionTimeoutMin), e.grantUntil(), e.leaseStart())
}

func (e *Engine) turn(p Peer) uint64 { return mix(e.seed ^ mix(uint64(p.Node))) }
