package scheduler

import (
	"github.com/kiloraft/kiloraft/engine"
)

const (
	// hintDelay is how long hints for the log wait for something that must be synced.
	hintDelay = engine.Duration(1e9)
	// holdMax is how long writes are gathered at most while the own batch before them is being synced.
	holdMax = engine.Duration(20e6)
	// holdBytesMax is how many bytes of them are gathered.
	holdBytesMax = 4 << 20
	// roundMin and roundTurns bound how long writes of a shard wait for those before them to be applied: a time, and so many turns.
	roundMin   = engine.Duration(5e6)
	roundTurns = 16
	// dropDelay is how long the report of a dropped frame waits: the engine answers it with a probe at once, and the
	// outbox is not likely to have room that soon.
	dropDelay = engine.Duration(20e6)
	// sweepReplicas is how many replicas one sweep looks at in a turn (rule Live3: paced).
	sweepReplicas = 1024
	// sweepEvents is how many of them it may wake in a turn.
	sweepEvents = 256
)

// Turn does everything that there is to do now, once, and returns when the next turn is wanted if no mail comes before;
// zero means never.
func (l *Lane) Turn() engine.Instant {
	l.box.take(&l.mail)
	l.fetchedBytes = 0
	l.now = l.s.clock.Now() // after the mailbox was taken (rule Engine2)
	l.wall = l.s.clock.Wall()
	if l.s.clockAhead.Load() || l.s.clockUnknown.Load() || l.wall-int64(l.now)/1e6-l.s.wallJudged.Load() > int64(l.s.cfg.ClockAheadMax/1e6) {
		l.wall = 0 // stamps nothing: the shards' times stand still (rule State8)
	}
	l.box.busy.Store(int64(l.now))
	if snap := l.s.live.links.Load(); snap.seq != l.linksSeq.Load() {
		l.links.Nodes = snap.nodes
		l.linksSeq.Store(snap.seq)
	}

	for i := range l.mail.flushed {
		l.logFlushed(&l.mail.flushed[i])
	}
	for i := range l.mail.frames {
		l.receive(&l.mail.frames[i])
	}
	for _, f := range l.mail.calls {
		f(l)
	}
	l.runDelayed()
	l.tick()
	l.sweep()
	l.reportDropped()
	l.ahead.begin(l, aheadOfRequests)
	for _, r := range l.mail.requests {
		l.ahead.next(len(l.mail.requests), func(i int) *replica { return *l.nearAt(l.mail.requests[i].Shard) })
		l.request(r)
	}
	l.count.requests = uint64(len(l.mail.requests))
	l.serveAwaiting()
	l.mail.clear()
	l.proposeAll()
	l.readAll()
	l.bearUnborn()
	l.sendCommits()
	l.submitLog()
	l.sendAll()
	l.answerAll()

	l.ended = l.s.clock.Now()
	took := l.ended - l.now
	l.publish(int64(took))
	l.turnTime += (took - l.turnTime) / 8
	if l.s.cfg.SlowAfter > 0 && took >= engine.Instant(l.s.cfg.SlowAfter) {
		l.slowTurn(engine.Duration(took))
	}
	l.box.busy.Store(0)
	return l.wanted()
}

// wanted tells when the next turn is due.
func (l *Lane) wanted() engine.Instant {
	next := l.timers.next()
	if len(l.sweeps) > 0 || len(l.reads) > 0 {
		next = l.now
	}
	if len(l.writes) > 0 { // gathered, or added after the proposals of this turn
		next = earlier(next, max(l.holdUntil(), l.roundUntil, l.now))
	}
	next = earlier(next, l.hintAt)
	next = earlier(next, l.awaitingAt())
	if len(l.commits) > 0 {
		next = earlier(next, l.commitAt)
	}
	if len(l.dropped) > 0 {
		next = earlier(next, l.droppedAt)
	}
	for i := range l.delayed {
		next = earlier(next, l.delayed[i].at)
	}
	return next
}

func earlier(a, b engine.Instant) engine.Instant {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// tick feeds the engines whose deadline has come.
func (l *Lane) tick() {
	for n := 0; n < sweepReplicas; n++ {
		r := l.timers.due(l.now)
		if r == nil {
			return
		}
		l.feed(r, tickEvent)
	}
}

// submitLog hands the turn's I/O to the log writer as one batch.
func (l *Lane) submitLog() {
	if len(l.ios) == 0 { // records without a completion may be waiting (committed, purge)
		switch {
		case !l.log.HintsOnly() || len(l.syncNew) > 0 || l.hintAt != 0 && l.now >= l.hintAt:
			l.hintAt = 0
			l.noteSubmitted(l.log.Submit())
		case l.hintAt == 0:
			l.hintAt = l.now + engine.Instant(hintDelay)
		}
		return
	}
	l.hintAt = 0
	number := l.log.Submit()
	l.noteSubmitted(number)
	if l.proposed {
		l.proposed = false
		l.ownBatch, l.ownSince = number, l.now
	}
	l.batches.push(number, l.now, l.ios)
	for i := range l.ios {
		l.ios[i].r.ioAt = 0
	}
	clear(l.ios)
	l.ios = l.ios[:0]
	l.s.metrics.LogBatches.Add(1)
}

// io notes that the batch in the making holds I/O of r that is complete as id. Of several in one batch the last one counts:
// it says that everything up to it is durable.
func (l *Lane) io(r *replica, id engine.IOID) {
	if r.ioAt == 0 {
		l.ios = append(l.ios, ioRef{r: r})
		r.ioAt = int32(len(l.ios))
	}
	l.ios[r.ioAt-1].io = id
}

// answerAll answers the clients, after everything of the turn was handed out.
func (l *Lane) answerAll() {
	for i := 0; i < len(l.answers); i++ { // a callback may not add answers, but let us not depend on it
		req := l.answers[i]
		l.answers[i] = nil
		l.observe(req)
		l.s.finish(req)
	}
	l.answers = l.answers[:0]
}

// observe counts a request that is about to be answered.
func (l *Lane) observe(req *Request) {
	if req.Err != nil {
		l.s.metrics.Refusals[refusalOf(req.Err)].Add(1)
	} else if req.Kind == KindWrite {
		l.commitLatency.observe(int64(l.now - req.paced()))
	}
	if l.s.cfg.SlowAfter > 0 && req.began != 0 && l.now-req.since() >= engine.Instant(l.s.cfg.SlowAfter) {
		l.slow(req)
	}
}

// answer ends req with err, at the end of the turn.
func (l *Lane) answer(req *Request, err error) {
	req.Err = err
	l.answers = append(l.answers, req)
}

// reportDropped tells engines which of their messages did not leave (rule Live6).
func (l *Lane) reportDropped() {
	if len(l.dropped) == 0 {
		return
	}
	if l.droppedAt == 0 {
		l.droppedAt = l.now + engine.Instant(dropDelay)
	}
	if l.now < l.droppedAt {
		return
	}
	l.droppedAt = 0
	dropped := l.dropped
	l.dropped = nil // what follows may drop again
	for _, d := range dropped {
		if !d.r.removed && d.r.eng.StreamLive(d.to, d.stream) {
			l.ev.failed = engine.ReplicateFailed{To: d.to, Stream: d.stream}
			l.feed(d.r, &l.ev.failed)
		}
	}
	if len(l.dropped) == 0 {
		clear(dropped)
		l.dropped = dropped[:0]
	}
}

// sweep is a walk over all replicas of the lane, some in each turn (rules Live3, Live5: paced).
type sweep struct {
	next int
	do   func(l *Lane, r *replica) bool // tells whether r was fed an event
}

func (l *Lane) startSweep(do func(l *Lane, r *replica) bool) {
	l.sweeps = append(l.sweeps, sweep{do: do})
}

// sweep goes on with the oldest sweep: one after the other, so that a PeerUp never overtakes a PeerDown.
func (l *Lane) sweep() {
	if len(l.sweeps) == 0 {
		return
	}
	s := &l.sweeps[0]
	events := 0
	for looked := 0; s.next < len(l.list) && looked < sweepReplicas && events < sweepEvents; looked++ {
		r := l.list[s.next]
		s.next++
		if s.do(l, r) {
			events++
		}
	}
	if s.next >= len(l.list) {
		n := copy(l.sweeps, l.sweeps[1:])
		l.sweeps[n] = sweep{}
		l.sweeps = l.sweeps[:n]
	}
}

// peerUp tells all replicas that have a member on node that it is alive.
func (l *Lane) peerUp(node engine.NodeID, incarnation uint64) {
	l.startSweep(func(l *Lane, r *replica) bool {
		if !r.hasNode(node) {
			return false
		}
		l.ev.peerUp = engine.PeerUp{Node: node, Incarnation: incarnation}
		l.feed(r, &l.ev.peerUp)
		if r.eng.Leader().Node == node {
			l.leaderKnown(r) // it was known, but could not be reached
		}
		return true
	})
}

// peerDown tells them that it is not.
func (l *Lane) peerDown(node engine.NodeID) {
	l.startSweep(func(l *Lane, r *replica) bool {
		if !r.hasNode(node) {
			return false
		}
		l.ev.peerDown = engine.PeerDown{Node: node}
		l.feed(r, &l.ev.peerDown)
		return true
	})
}

// resignAll makes all leaders give up office, as when the disk stalls.
func (l *Lane) resignAll() {
	if len(l.sweeps) > 8 {
		return // one of them is on its way
	}
	l.startSweep(func(l *Lane, r *replica) bool {
		if !r.eng.IsLeader() {
			return false
		}
		l.feed(r, resignEvent)
		return true
	})
}
