package engine

// Sleep (rules Live2 to Live5). A leader that has been idle offers Quiesce to every live follower; who has exactly its log,
// all committed, accepts and sleeps at once; when all live followers have accepted, and they make a quorum, the leader sleeps too.
// An offer that is not accepted by all before the next heartbeat is void, and the heartbeats wake whoever had accepted.
//
//	leader:    awake ──idle──► offer ──all live accepted──► asleep ──any message, request, PeerDown/Up──► awake
//	follower:  awake ──exact Quiesce──────────────────────► asleep ──any message, leader down, Wake─────► awake

// linkUp tells whether the node of p is alive.
func (e *Engine) linkUp(p Peer) bool { return e.cfg.Links != nil && e.cfg.Links.Nodes[p.Node].Up }

// offerSleep sends Quiesce instead of a heartbeat, if there is nothing to do. It says whether it did.
func (e *Engine) offerSleep() bool {
	l := e.lead
	idle := e.cfg.QuiesceAfter > 0 && e.cfg.Links != nil && l.quiesceAt == 0 && e.now-l.busyAt >= Instant(e.cfg.QuiesceAfter)
	last := e.log.last()
	if !idle || e.applied != last || e.io.flushed != last.Index || len(e.io.pending()) != 0 || l.reads.waiting != 0 || l.reads.round != 0 ||
		l.transferUntil != 0 || e.memb.Membership.Joint() || e.applied.Index < l.blank {
		return false
	}
	for i := range l.followers {
		f := &l.followers[i]
		if f.asleep = false; !e.linkUp(f.peer) {
			continue
		}
		if f.match != last.Index || f.state != ProgressPipeline {
			return false
		}
	}
	if !e.quorumOf(func(f *follower) bool { return e.linkUp(f.peer) }) {
		return false
	}
	l.quiesceAt, l.owing = e.now, true
	l.heartbeatAt = e.now + Instant(e.cfg.HeartbeatInterval)
	for i := range l.followers {
		f := &l.followers[i]
		k, ok := e.cfg.Links.Nodes[f.peer.Node]
		if !ok || !k.Up {
			continue
		}
		f.incarnation, f.epoch = k.Incarnation, k.GrantEpoch
		c := e.emit(SendHeartbeat)
		c.To = f.peer
		c.Heartbeat = &Heartbeat{From: e.self, Vote: e.vote, Commit: last, SentAt: e.now, Quiesce: true, Last: last}
	}
	return true
}

// quorumOf tells whether we and the followers for which yes holds are a quorum.
func (e *Engine) quorumOf(yes func(*follower) bool) bool {
	return hasQuorum(e.memb.Membership, func(p Peer) bool {
		if p == e.self {
			return true
		}
		f := e.lead.find(p)
		return f != nil && yes(f)
	})
}

// acceptedSleep notes that f sleeps. An acceptance of an offer that was overtaken by any other message is void: f may be awake.
func (e *Engine) acceptedSleep(f *follower, m *HeartbeatResponse) {
	l := e.lead
	if e.quiesced || l.quiesceAt == 0 || m.SentAt != l.quiesceAt || m.Last != e.log.last() {
		return
	}
	k := e.cfg.Links.Nodes[f.peer.Node]
	// The link must not have broken since the offer, else the promise may be of another epoch than ours.
	f.asleep = k.Up && k.Incarnation == f.incarnation && k.GrantEpoch == f.epoch
	for i := range l.followers {
		if g := &l.followers[i]; !g.asleep && e.linkUp(g.peer) {
			return
		}
	}
	if !e.quorumOf(func(f *follower) bool { return f.asleep }) {
		return
	}
	e.quiesced = true
	l.quiesceAt = 0
	e.slim()
}

// fallAsleep is a follower's side: only on exact equality, and with nothing unfinished (rule Live2).
func (e *Engine) fallAsleep(m *Heartbeat) bool {
	if e.cfg.Links == nil || e.log.last() != m.Last || e.committed != m.Last || e.verified != m.Last.Index ||
		e.io.flushed != m.Last.Index || len(e.io.pending()) != 0 || e.snap != nil {
		return false
	}
	k, ok := e.cfg.Links.Nodes[m.From.Node]
	if !ok || !k.Up {
		return false
	}
	if !e.grant.asleep || m.SentAt > e.grant.sentAt {
		e.grant.sentAt = m.SentAt // an older offer that comes late takes back nothing that a newer one was promised
	}
	e.grant.asleep = true
	e.grant.incarnation, e.grant.epoch = k.Incarnation, k.PromiseEpoch
	e.quiesced = true
	e.slim()
	return true
}

// slim gives back what only an awake engine needs: an idle one is small (DESIGN 3).
func (e *Engine) slim() {
	if len(e.io.pending()) == 0 && len(e.io.held) == 0 && len(e.io.barriers) == 0 {
		e.io.work = &idle
	}
	if e.lead != nil {
		e.lead.bytes = nil
	}
	if cap(e.log.runs) > len(e.log.runs) {
		e.log.runs = append(make([]TermRun, 0, len(e.log.runs)), e.log.runs...)
	}
}

// wake starts the ordinary timers. A leader heartbeats at once, which wakes its followers.
func (e *Engine) wake() {
	if !e.quiesced {
		return
	}
	e.quiesced = false
	if e.lead == nil {
		e.electionAt = e.now + e.electionTimeout()
		return
	}
	e.lead.busyAt, e.lead.heartbeatAt, e.lead.owing = e.now, e.now, true
	for i := range e.lead.followers {
		f := &e.lead.followers[i]
		f.asleep, f.activeAt = false, e.now
	}
}

// provoke: somebody asks for this shard while it sleeps (rule Live4).
func (e *Engine) provoke() {
	if !e.quiesced {
		return
	}
	e.wake()
	if e.lead == nil {
		e.doubtLeader()
	}
}

// doubtLeader asks the leader, for this shard, whether it still is one.
func (e *Engine) doubtLeader() {
	p := e.vote.Peer // not leader: the promise may stand although the leader's node was taken for dead
	if !e.vote.Committed || p == e.self {
		return
	}
	c := e.emit(SendHeartbeat)
	c.To = p
	c.Heartbeat = &Heartbeat{From: e.self, Vote: e.vote, SentAt: e.now, Probe: true}
}

func (e *Engine) handleWake() { e.provoke() }

// handlePeerDown: the loss of the leader's node starts the turns of the survivors (rule Live5); the loss of a follower's may cost a
// sleeping leader its quorum (rule Live3).
func (e *Engine) handlePeerDown(m *PeerDown) {
	e.refusals = 0
	if e.lead == nil {
		if e.knows && e.vote.Peer.Node == m.Node {
			lost := e.vote.Peer
			e.quiesced = false
			e.knows = false
			if e.race == nil {
				e.campaignInOrder(lost)
			}
		}
		return
	}
	for i := range e.lead.followers {
		if f := &e.lead.followers[i]; f.peer.Node == m.Node {
			f.asleep = false
		}
	}
	if e.quiesced && !e.quorumOf(func(f *follower) bool { return f.asleep }) {
		e.wake()
	}
}

// handlePeerUp: a node came, or came back as another incarnation. A follower that leaned on the former one looks for a leader; a leader
// wakes the shard for a follower that does not sleep with it.
func (e *Engine) handlePeerUp(m *PeerUp) {
	e.refusals = 0
	if e.lead == nil {
		if e.quiesced && e.Leader().Node == m.Node && e.grant.incarnation != m.Incarnation {
			lost := e.vote.Peer
			e.quiesced = false
			e.knows = false
			e.campaignInOrder(lost)
		}
		return
	}
	for i := range e.lead.followers {
		f := &e.lead.followers[i]
		if f.peer.Node != m.Node {
			continue
		}
		if e.quiesced && (!f.asleep || f.incarnation != m.Incarnation) {
			e.wake()
		}
		if f.state == ProgressProbe && !e.quiesced {
			f.waiting = false
			e.send(f)
		}
	}
}
