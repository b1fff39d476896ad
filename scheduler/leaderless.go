package scheduler

import (
	"github.com/kiloraft/kiloraft/engine"
)

// A request for a shard that has no leader just now waits here for one, for a moment: an election, a hand-over and the birth of a shard
// take a few syncs, and a client that is sent away with "try again in 50 ms" sees a pause of that length, or of twice that. It has had no
// effect meanwhile, so it may be answered in any way at any time.

// leaderWaitersMax bounds the requests of a lane that wait for leaders. The bytes of writes are bounded by InflightBytesMax, those of all by what
// the transport lets a connection have in flight.
const leaderWaitersMax = 64 << 10

// leaderWait is how long a request waits for a leader to be known before its client is sent away: to another replica, which may know one.
func (l *Lane) leaderWait() engine.Instant { return engine.Instant(l.s.cfg.ElectionTimeoutMin / 4) }

// leaderless are the requests of a lane that wait for leaders.
type leaderless struct {
	// queue says, for each request that began to wait, for which replica and until when, in this order. It may wait no more.
	queue []leaderlessAt
	// of has them by replica; until of one's never falls.
	of map[*replica][]awaiting
	// led are the replicas of which a leader is known by now.
	led   []*replica
	count int
}

type leaderlessAt struct {
	r     *replica
	until engine.Instant
}

// awaiting is a request that waits for a leader of its replica.
type awaiting struct {
	req   *Request
	until engine.Instant
}

// refer answers a request that this replica cannot serve, because it does not lead: at once with err if that names the leader, else when
// there is one.
func (l *Lane) refer(r *replica, req *Request, err error) {
	if !l.awaitLeader(r, req) {
		l.answer(req, err)
	}
}

// awaitLeader lets req wait for a leader of r. False if one is known, or nothing more may wait.
func (l *Lane) awaitLeader(r *replica, req *Request) bool {
	p, until := r.eng.Leader(), l.now+l.leaderWait()
	switch {
	case p.Node != 0 && p != r.self() && l.s.live.reachable(p.Node), l.leaderless.count >= leaderWaitersMax, r.removed:
		return false
	case req.Deadline != 0 && req.Deadline < until:
		return false // its client would never hear why
	case req.awaited:
		return false // once is enough: others may know more
	}
	req.awaited = true
	l.leaderless.queue = append(l.leaderless.queue, leaderlessAt{r, until})
	if l.leaderless.of == nil {
		l.leaderless.of = map[*replica][]awaiting{}
	}
	l.leaderless.of[r] = append(l.leaderless.of[r], awaiting{req, until})
	l.leaderless.count++
	return true
}

// leaderKnown is called when another leader of r is known than before, and when its node can be reached again.
func (l *Lane) leaderKnown(r *replica) {
	if len(l.leaderless.of[r]) > 0 {
		l.leaderless.led = append(l.leaderless.led, r)
	}
}

// serveAwaiting takes up what has waited for leaders that are known now, and sends away what has waited for too long.
func (l *Lane) serveAwaiting() {
	w := &l.leaderless
	for i := 0; i < len(w.led); i++ {
		r := w.led[i]
		w.led[i] = nil
		l.takeAwaiting(r, maxInstant, l.request)
	}
	w.led = w.led[:0]
	n := 0
	for ; n < len(w.queue) && w.queue[n].until <= l.now; n++ {
		r := w.queue[n].r
		l.takeAwaiting(r, l.now, func(req *Request) { l.answer(req, l.notLeader(r)) })
	}
	if n > 0 {
		left := copy(w.queue, w.queue[n:])
		clear(w.queue[left:])
		w.queue = w.queue[:left]
	}
}

const maxInstant = engine.Instant(1<<63 - 1)

// takeAwaiting calls f with the requests that wait for a leader of r until upTo at most, and wait no more.
func (l *Lane) takeAwaiting(r *replica, upTo engine.Instant, f func(*Request)) {
	list, n := l.leaderless.of[r], 0
	for n < len(list) && list[n].until <= upTo {
		n++
	}
	switch {
	case n == 0:
		return
	case n == len(list):
		delete(l.leaderless.of, r)
	default:
		l.leaderless.of[r] = list[n:]
	}
	l.leaderless.count -= n
	for _, a := range list[:n] {
		f(a.req)
	}
}

// awaitingAt is when serveAwaiting is wanted; 0: not.
func (l *Lane) awaitingAt() engine.Instant {
	switch w := &l.leaderless; {
	case len(w.led) > 0:
		return l.now
	case len(w.queue) > 0:
		return w.queue[0].until
	}
	return 0
}
