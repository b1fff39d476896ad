package scheduler

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// awakeBytesMax bounds the heartbeats of awake shards that wait for a peer's next node heartbeat; what is over it goes
// with the raft frames.
const awakeBytesMax = 256 << 10

// liveness decides which nodes are alive (rules Live1, Live6) and keeps the links that extend leases while shards sleep
// (rule Engine2). It belongs to no lane: heartbeats reach it directly, and lanes are told of its decisions by mailbox, and
// of the links through a snapshot that they pick up at the start of each turn.
type liveness struct {
	s *Scheduler

	mu    sync.Mutex
	peers map[engine.NodeID]*peerLink
	order []engine.NodeID // sorted, so that everything happens in the same order each time
	seq   uint64          // of published snapshots
	frame []byte

	// traffic counts what shards had to say to other nodes as of the last tick, busyAt is when that grew last. While nothing does, nodes
	// send each other heartbeats at quietInterval only. slowUntil is until when the echoes of such ones count, which come later.
	traffic           uint64
	busyAt, slowUntil engine.Instant
	// wake has a token when the next tick, at tickAt, is further away than usual (waiting), and should be sooner: a shard has something for a
	// node heartbeat, or a peer's has come (joins).
	wake           chan struct{}
	waiting, joins bool
	tickAt         engine.Instant

	links atomic.Pointer[linksSnapshot]
	// compared: our wall clock was compared with a peer's in this life.
	compared bool
}

// linksSnapshot is immutable once published.
type linksSnapshot struct {
	seq   uint64
	nodes map[engine.NodeID]engine.Link
}

// peerLink is what is known of one other node. Guarded by liveness.mu.
type peerLink struct {
	node        engine.NodeID
	incarnation uint64
	connected   bool
	endedAt     engine.Instant // when the last session ended, while there is none
	heard       bool           // a heartbeat of this incarnation has come
	theirSentAt engine.Instant // of their newest heartbeat, on their clock
	attested    bool           // it attested progress
	echoedAt    engine.Instant // SentAt of our newest heartbeat that they have echoed while attesting progress
	link        engine.Link
	// promiseSeq: a promise of the current PromiseEpoch is sent only when every lane has seen the snapshot of this number.
	// Else a turn in progress could store a grant under the old epoch that the leader believes extended by the new one.
	promiseSeq uint64
	// syncTime and diskBad are what they say of their disk (see diskwatch.go).
	syncTime engine.Duration
	diskBad  bool
	// wall is their clock less our monotonic one, in ms, when their newest heartbeat came.
	wall       int64
	awake      []byte
	awakeCount int
	// sentAt is when the last heartbeat was sent to it, promised that it carried a promise.
	sentAt   engine.Instant
	promised bool
}

func newLiveness(s *Scheduler) *liveness {
	v := &liveness{s: s, peers: map[engine.NodeID]*peerLink{}, wake: make(chan struct{}, 1)}
	v.links.Store(&linksSnapshot{nodes: map[engine.NodeID]engine.Link{}})
	return v
}

// publish makes the links visible to the lanes. The caller holds mu.
func (v *liveness) publish() {
	v.seq++
	nodes := make(map[engine.NodeID]engine.Link, len(v.peers))
	for id, p := range v.peers {
		nodes[id] = p.link
	}
	v.links.Store(&linksSnapshot{seq: v.seq, nodes: nodes})
}

func (v *liveness) peer(node engine.NodeID) *peerLink {
	p := v.peers[node]
	if p == nil {
		p = &peerLink{node: node}
		v.peers[node] = p
		i, _ := slices.BinarySearch(v.order, node)
		v.order = slices.Insert(v.order, i, node)
	}
	return p
}

// setIncarnation starts a new link if the node is another process than before. The caller holds mu.
func (v *liveness) setIncarnation(p *peerLink, incarnation uint64) {
	if p.incarnation == incarnation {
		return
	}
	if p.link.Up {
		v.down(p)
	}
	p.incarnation = incarnation
	p.heard, p.attested, p.theirSentAt, p.echoedAt = false, false, 0, 0
	p.link = engine.Link{
		Incarnation:  incarnation,
		GrantEpoch:   p.link.GrantEpoch + 1,
		PromiseEpoch: p.link.PromiseEpoch + 1,
	}
	v.publish()
	p.promiseSeq = v.seq
	v.s.wakeLanes()
}

func (v *liveness) connected(node engine.NodeID, incarnation uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.peer(node)
	v.setIncarnation(p, incarnation)
	p.connected = true
	if !v.compared {
		v.s.clockUnknown.Store(true)
	}
	v.send(p, v.s.clock.Now())
}

func (v *liveness) disconnected(node engine.NodeID, incarnation uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.peer(node)
	if p.incarnation == incarnation {
		p.connected, p.endedAt = false, v.s.clock.Now()
		p.awake, p.awakeCount = p.awake[:0], 0
	}
}

// current tells whether incarnation is the one of node that we are connected with.
func (v *liveness) current(node engine.NodeID, incarnation uint64) bool {
	link, ok := v.links.Load().nodes[node]
	return ok && link.Incarnation == incarnation
}

// receive takes a node heartbeat. It returns the heartbeats of awake shards in it.
func (v *liveness) receive(from engine.NodeID, incarnation uint64, body []byte) ([]byte, error) {
	var h nodeHeartbeat
	if err := h.decode(body); err != nil {
		return nil, err
	}
	if h.Incarnation != incarnation {
		return nil, errIncarnation
	}
	cfg := &v.s.cfg
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.s.clock.Now()
	p := v.peer(from)
	if p.incarnation != incarnation {
		return nil, nil // of a process that is gone, or not announced yet
	}
	stallMax := cfg.ElectionTimeoutMin
	p.wall = h.Wall - int64(now)/1e6
	p.syncTime, p.diskBad = h.SyncTime, h.DiskBad
	p.attested = h.LaneAge <= stallMax && h.WriterAge <= stallMax
	quiet := h.SentAt-p.theirSentAt > engine.Instant(v.quietInterval())/2 // it has nothing to say either
	if h.SentAt > p.theirSentAt {
		p.theirSentAt = h.SentAt
	}
	first := !p.heard
	p.heard = true
	bumped := false
	if p.attested {
		// Our own promise counts from now, which is later than their SentAt in real time: so the grantor keeps it at least as
		// long as the other side relies on it.
		if now > p.link.PromisedUntil && p.link.PromisedUntil != 0 || first {
			p.link.PromiseEpoch++
			bumped = true
		}
		p.link.PromisedUntil = now + engine.Instant(cfg.ElectionTimeoutMin)
	}
	echo := h.EchoSentAt
	if h.EchoIncarnation != v.s.cfg.Incarnation || echo > now {
		echo = 0
	}
	if echo != 0 && h.Promise > 0 {
		if now > p.link.GrantedUntil {
			p.link.GrantEpoch++
		}
		until := echo + engine.Instant(h.Promise) - engine.Instant(cfg.ClockDriftMax)
		p.link.GrantedUntil = max(p.link.GrantedUntil, until)
	}
	if echo != 0 && p.attested {
		p.echoedAt = max(p.echoedAt, echo)
		if !p.link.Up && now-p.echoedAt <= v.downAfter(now) {
			p.link.Up = true
			v.s.metrics.PeersUp.Add(1)
			v.s.logger.Info("peer is up", "node", uint64(p.node), "incarnation", p.incarnation)
			v.publish()
			v.s.peerUp(p.node, p.incarnation)
			v.compareClocks() // it may be down again by the next tick: a clock that is fast enough finds nobody alive then
		}
	}
	v.publish()
	if bumped {
		p.promiseSeq = v.seq
		v.s.wakeLanes()
	}
	if first && p.connected {
		v.send(p, now) // the first echo at once: the sooner a node is up, the sooner its shards serve
	}
	if quiet && v.waiting && v.tickAt-now < engine.Instant(v.quietInterval())/2 {
		v.joins = true
		v.hasten()
	}
	return h.Awake, nil
}

// down declares p dead. The caller holds mu.
func (v *liveness) down(p *peerLink) {
	p.link.Up = false
	v.s.metrics.PeersUp.Add(-1)
	v.s.logger.Info("peer is down", "node", uint64(p.node), "incarnation", p.incarnation)
	v.publish()
	v.s.peerDown(p.node)
}

// downAfter is how long after the sending of the last echoed heartbeat a node counts as dead. The survivors' promises to it count from
// when its last message came, up to an interval later: a campaign that began before they have ended would be refused, and lose
// an election timeout.
func (v *liveness) downAfter(now engine.Instant) engine.Instant {
	interval := v.s.cfg.HeartbeatInterval
	if now < v.slowUntil {
		interval = v.quietInterval()
	}
	return engine.Instant(v.s.cfg.ElectionTimeoutMin + 2*interval)
}

// quietInterval is how often nodes send each other heartbeats while no shard has anything to say: an echo is at most two of them
// old, so the leases of sleepers stand, with a third of an election timeout to spare. Who hears such a heartbeat when half of it is over sends its
// own then, so that nodes at rest wake together: what they cost is waking up, not what they do then.
func (v *liveness) quietInterval() engine.Duration {
	return max(v.s.cfg.HeartbeatInterval, 3*v.s.cfg.ElectionTimeoutMin/10)
}

// quiet tells whether no shard of this node has had anything to say to another node for an election timeout. The caller holds mu.
func (v *liveness) quiet(now engine.Instant) bool {
	m := &v.s.metrics
	traffic := m.Frames.Load() + m.FramesReceived.Load() + m.HeartbeatMessages.Load()
	if traffic != v.traffic {
		v.traffic, v.busyAt = traffic, now
	}
	return now-v.busyAt > engine.Instant(v.s.cfg.ElectionTimeoutMin)
}

// mayWait tells whether p can do without a heartbeat now although the interval is over: the next one is soon enough for all that it
// would say. The caller holds mu, and nothing has been said for long.
func (v *liveness) mayWait(p *peerLink, now engine.Instant) bool {
	if !p.link.Up || !p.attested || !p.promised || p.awakeCount > 0 {
		return false
	}
	if lane, writer := v.s.ages(now); max(lane, writer) > v.s.cfg.HeartbeatInterval {
		return false
	}
	next := now + engine.Instant(v.s.cfg.HeartbeatInterval)/2 // ticks are not exact
	if v.joins {
		next = now + engine.Instant(v.quietInterval())/2
	}
	return next-p.sentAt < engine.Instant(v.quietInterval())
}

// gone tells whether the session with p ended so long ago that no promise to it can still stand, with some room for a survivor that
// came to its last messages late.
func (v *liveness) gone(p *peerLink, now engine.Instant) bool {
	return !p.connected && now-p.endedAt > engine.Instant(v.s.cfg.ElectionTimeoutMin+v.s.cfg.HeartbeatInterval)
}

// tick sends a heartbeat to every connected peer that needs one, and declares dead who has not echoed one for too long. It returns when
// the next tick is due.
func (v *liveness) tick() engine.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.s.clock.Now()
	quiet := v.quiet(now)
	if quiet {
		v.slowUntil = now + engine.Instant(v.s.cfg.ElectionTimeoutMin+2*v.quietInterval())
	}
	for _, id := range v.order {
		p := v.peers[id]
		if p.link.Up && (now-p.echoedAt > v.downAfter(now) || v.gone(p, now)) {
			v.down(p)
		}
		if p.connected && !(quiet && v.mayWait(p, now)) {
			v.send(p, now)
		}
	}
	v.joins = false
	v.compareClocks()
	wait := v.untilTick(now, v.quiet(now)) // what was just sent for shards counts
	v.waiting, v.tickAt = wait > v.s.cfg.HeartbeatInterval, now+engine.Instant(wait)
	return wait
}

// untilTick is how long a tick now has nothing to do for. The caller holds mu.
func (v *liveness) untilTick(now engine.Instant, quiet bool) engine.Duration {
	interval, wait := v.s.cfg.HeartbeatInterval, v.quietInterval()
	for _, p := range v.peers {
		switch {
		case !p.connected && !p.link.Up: // whoever connects is sent one at once
		case !quiet || !p.connected || !v.mayWait(p, now):
			return interval
		default:
			wait = min(wait, engine.Duration(p.sentAt-now)+v.quietInterval())
		}
	}
	if !quiet {
		return interval
	}
	return max(wait, interval)
}

// send sends one heartbeat to p. The caller holds mu.
func (v *liveness) send(p *peerLink, now engine.Instant) {
	h := nodeHeartbeat{Incarnation: v.s.cfg.Incarnation, SentAt: now, Wall: v.s.clock.Wall(), Awake: p.awake}
	h.LaneAge, h.WriterAge = v.s.ages(now)
	h.SyncTime, h.DiskBad = v.s.disk.state()
	p.sentAt, p.promised = now, false
	if p.heard {
		h.EchoIncarnation, h.EchoSentAt = p.incarnation, p.theirSentAt
		if p.attested && v.s.lanesHaveSeen(p.promiseSeq) {
			h.Promise, p.promised = v.s.cfg.ElectionTimeoutMin, true
		}
	}
	v.frame = h.append(v.frame[:0])
	v.s.net.SendHeartbeat(p.node, v.frame)
	v.s.metrics.HeartbeatsSent.Add(1)
	v.s.metrics.HeartbeatMessages.Add(uint64(p.awakeCount))
	p.awake, p.awakeCount = p.awake[:0], 0
}

// ride queues heartbeats of awake shards for the next node heartbeat. It returns false if they do not fit.
func (v *liveness) ride(node engine.NodeID, msgs []byte, count int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.peers[node]
	if p == nil || !p.connected {
		return true // nobody to send to: as good as lost
	}
	if len(p.awake)+len(msgs) > awakeBytesMax {
		return false
	}
	p.awake = append(p.awake, msgs...)
	p.awakeCount += count
	if v.waiting {
		v.hasten()
	}
	return true
}

// hasten has the next tick come now. The caller holds mu.
func (v *liveness) hasten() {
	v.waiting = false
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// up tells whether node is alive.
func (v *liveness) up(node engine.NodeID) bool { return v.links.Load().nodes[node].Up }

// reachable tells whether node is alive and there is a session with it.
func (v *liveness) reachable(node engine.NodeID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.peers[node]
	return p != nil && p.connected && p.link.Up
}

// ClockSkew returns our wall clock less the median of the living peers', 0 if there are none. A peer's is as of its newest heartbeat, so it
// is off by the time that this was on the wire.
func (s *Scheduler) ClockSkew() time.Duration {
	v := s.live
	v.mu.Lock()
	defer v.mu.Unlock()
	theirs, ok := v.medianWall()
	if !ok {
		return 0
	}
	return time.Duration(s.wallOffset()-theirs) * time.Millisecond
}

// medianWall returns the median of the living peers' clocks less our monotonic one, in ms. The caller holds mu.
func (v *liveness) medianWall() (int64, bool) {
	var theirs []int64
	for _, id := range v.order {
		if p := v.peers[id]; p.link.Up {
			theirs = append(theirs, p.wall)
		}
	}
	if len(theirs) == 0 {
		return 0, false
	}
	slices.Sort(theirs)
	return theirs[len(theirs)/2], true
}

// compareClocks finds out whether our clock is ahead of the median of the living peers' by too much. Then this node stamps nothing
// and leads nothing, for keys would expire too early, for good (rule State8).
func (v *liveness) compareClocks() {
	theirs, ok := v.medianWall()
	if !ok {
		return // nobody to compare with: it stays as it was judged last
	}
	ours := v.s.wallOffset()
	ahead := ours-theirs > int64(v.s.cfg.ClockAheadMax/1e6)
	v.compared = true
	v.s.clockUnknown.Store(false)
	if !ahead {
		v.s.wallJudged.Store(ours)
	}
	if ahead && !v.s.clockAhead.Load() {
		v.s.logger.Error("the clock of this node is ahead of the others': it gives up its leaderships until that is over")
	}
	v.s.clockAhead.Store(ahead)
	if ahead {
		v.s.resignAll()
	}
}
