package scheduler

import (
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// A node whose disk is slow or full, while others' are not, is alive and useless: each of its shards waits for it. It hands its
// leaderships to nodes with better disks and takes none, until its disk has been good for a while:
//
//	good ── syncs slow for an election timeout, or no space; and a peer's at least four times as fast ──► bad
//	bad ── none of that for diskHold, which doubles if the disk was bad shortly before ──► good
//
// Nodes that share one slow disk find nobody better, and keep what they have. A sync that does not end at all is watchWriter's.

const (
	// diskBetter is how many times as fast the disk of a peer must be to be handed leaderships.
	diskBetter = 4
	// diskHolds is how many election timeouts a bad disk must be good before it counts as good, diskHoldsMax at most.
	diskHolds, diskHoldsMax = 10, 300
	// diskFullTime is what a full disk takes for a sync, so to speak.
	diskFullTime = engine.Duration(time.Hour)
)

// diskWatch knows how the disk of the raft log does.
type diskWatch struct {
	mu sync.Mutex
	// syncTime is what a sync has taken of late.
	syncTime engine.Duration
	// All syncs from slowSince to slowUntil were slow; 0: the last one was not.
	slowSince, slowUntil engine.Instant
	bad                  bool
	goodAt               engine.Instant // when it is good again, if nothing more happens
	wasBad               engine.Instant // when it was last bad
	hold                 engine.Instant
	evacuateAt           engine.Instant
}

// slowSync is what a slow sync takes at least.
func (s *Scheduler) slowSync() engine.Duration { return s.cfg.ElectionTimeoutMin / 4 }

// synced notes a sync of the raft log. It is called by the log writer.
func (w *diskWatch) synced(began, ended engine.Instant, slow, timeout engine.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	took := engine.Duration(ended - began)
	w.syncTime = (w.syncTime + took) / 2
	switch {
	case took < slow:
		w.slowSince, w.slowUntil = 0, 0
		return
	case w.slowSince == 0 || began-w.slowUntil > engine.Instant(timeout): // a slow sync now and then is none of our business
		w.slowSince = began
	}
	w.slowUntil = ended
}

// now returns what a sync takes, and whether the disk is too slow at the moment. busy is when the sync in progress began, 0: none.
func (w *diskWatch) now(now, busy engine.Instant, slow, timeout engine.Duration) (took engine.Duration, tooSlow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	since, until := w.slowSince, w.slowUntil
	took = w.syncTime
	if busy != 0 && engine.Duration(now-busy) >= slow {
		if since == 0 || busy-until > engine.Instant(timeout) {
			since = busy
		}
		until = now
		took = max(took, engine.Duration(now-busy))
	}
	return took, since != 0 && until-since >= engine.Instant(timeout) && now-until <= engine.Instant(timeout)
}

// judge decides, and tells whether leaderships are to be handed over now.
func (w *diskWatch) judge(now engine.Instant, trouble bool, timeout engine.Duration) (turned, evacuate bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, unit := w.bad, engine.Instant(timeout)
	switch {
	case trouble && !w.bad:
		w.hold = min(2*w.hold, diskHoldsMax*unit)
		if w.hold == 0 || now-w.wasBad > 2*diskHoldsMax*unit {
			w.hold = diskHolds * unit
		}
		w.bad, w.evacuateAt = true, now
	case w.bad && !trouble && now >= w.goodAt:
		w.bad = false
	}
	if trouble {
		w.goodAt, w.wasBad = now+w.hold, now
	}
	if w.bad && now >= w.evacuateAt {
		w.evacuateAt, evacuate = now+unit/2, true
	}
	return w.bad != before, evacuate
}

// state returns what peers are told.
func (w *diskWatch) state() (took engine.Duration, bad bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.syncTime, w.bad
}

// watchDisk judges the disk of this node against the others', and hands leaderships over while it is bad.
func (s *Scheduler) watchDisk(now engine.Instant) {
	took, trouble := s.disk.now(now, engine.Instant(s.writer.busy.Load()), s.slowSync(), s.cfg.ElectionTimeoutMin)
	if s.DiskFull() {
		took, trouble = diskFullTime, true
	}
	better, worse := s.live.disks(took / diskBetter)
	turned, evacuate := s.disk.judge(now, trouble && better > 0, s.cfg.ElectionTimeoutMin)
	if turned {
		_, bad := s.disk.state()
		s.logger.Warn("the disk of the raft log is slow or full, while others' are not: leaderships are handed to them", "bad", bad, "sync", time.Duration(took))
	}
	if !evacuate {
		return
	}
	for _, l := range s.lanes {
		l.box.putCall(func(l *Lane) { l.evacuate(worse) })
	}
}

// disks counts the living peers whose disks are good and take limit at most for a sync, and names all others.
func (v *liveness) disks(limit engine.Duration) (better int, worse []engine.NodeID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, id := range v.order {
		if p := v.peers[id]; p.link.Up && !p.diskBad && p.syncTime <= limit {
			better++
		} else {
			worse = append(worse, id)
		}
	}
	return better, worse
}

// diskBad tells whether node has said that its disk is bad.
func (v *liveness) diskBad(node engine.NodeID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := v.peers[node]
	return p != nil && p.diskBad
}
