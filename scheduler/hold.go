package scheduler

import (
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// What a replica applies waits in memory for the store. A leader holds its clients back while that is too much (overlaysFull), but a
// follower whose store is slower than its leader's cannot: it applies no further until checkpoints have made room, and while it does so it
// takes no more entries than its log has room for. The leader sees lost messages then: it goes on without this follower, purges behind
// the bound of its own log, and brings it back by entries or by a snapshot.

const (
	// overlaysMax is how many times CheckpointBytes the overlays of the node may hold: over it the store is slower than the clients, who
	// must wait, for nothing else bounds the memory.
	overlaysMax = 3
	// overlaysHold is how many times CheckpointBytes they may hold before nothing more is applied: more than that at which clients are
	// refused, so that what was accepted is applied.
	overlaysHold = 4
	// segmentsHold is how many times LogSegmentsMax the log may have before held replicas take no more entries.
	segmentsHold = 2
)

// overlayBytes is what the overlays of the node hold, about.
func (s *Scheduler) overlayBytes() int64 {
	sum := int64(0)
	for _, l := range s.lanes {
		sum += l.overlayBytes.Load()
	}
	return sum
}

// overlaysFull tells whether the overlays hold so much that clients must wait.
func (s *Scheduler) overlaysFull() bool { return s.overlayBytes() > overlaysMax*s.cfg.CheckpointBytes }

// holdApply tells whether r may apply nothing now, and lists it. Both sides of a merge go on, for they wait for each other.
func (l *Lane) holdApply(r *replica) bool {
	if r.machine.Merge().Role != shard.MergeNone || l.s.overlayBytes() <= overlaysHold*l.s.cfg.CheckpointBytes {
		return false
	}
	if !r.held {
		r.held = true
		l.held = append(l.held, r)
		l.s.metrics.AppliesHeld.Add(1)
	}
	return true
}

// releaseHeld lets the replicas go on that were held, while there is room.
func (l *Lane) releaseHeld() {
	if len(l.held) == 0 || l.s.overlayBytes() > overlaysHold*l.s.cfg.CheckpointBytes {
		return
	}
	held := l.held
	l.held = nil
	for _, r := range held {
		r.held = false
		l.resume(r, r.apply.gen, nil)
	}
}

// grown notes that the overlays hold n more than before.
func (l *Lane) grown(n int) {
	if n != 0 {
		l.overlayBytes.Add(int64(n))
	}
}

func overlaysOf(r *replica) int {
	if r.machine == nil {
		return 0
	}
	return r.machine.LiveBytes() + r.machine.FrozenBytes()
}

// stoppedLogMax is how much log a stopped replica may have: as much as can be rewritten, lest it pin the node's whole log (rule Log6).
const stoppedLogMax = 2 << 20

// takesNoEntries tells whether an append request to r, whose runs are in inRuns, must be dropped, as if the network had lost it: r applies
// nothing now, or ever, and its log, which is purged only behind what was applied, is as big as it may be; or the log of the node has no
// space beyond its last segment, whose rest is for what frees the first (rule State6), and for what leaders write although they refuse
// their clients: without a change of its members a shard could not leave the node.
func (l *Lane) takesNoEntries(r *replica, req *engine.AppendRequest) bool {
	switch {
	case len(req.Runs) == 0:
		return false
	case l.s.log.Metrics().OutOfSpace.Load() && !slices.ContainsFunc(l.inRuns, func(run wire.Run) bool { return run.Special }):
		return true
	case !r.held && !r.stopped:
		return false
	}
	limit := l.s.cfg.ShardLogBytesMax
	if r.stopped {
		limit = min(limit, stoppedLogMax)
	}
	return l.logOver || l.log.Stats(r.key).Bytes > limit
}
