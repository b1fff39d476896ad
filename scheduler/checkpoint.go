package scheduler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

// ckptState is the checkpoint of one replica. A cut freezes its overlay; while somebody holds the cut (a snapshot that
// streams, rule State3; a checksum) it is not written; when the last holder lets go it is written and released.
//
//	clean ─ applied ─► dirty ─ cut ─► held ─ last holder gone ─► queued ─ committed ─► clean or dirty
type ckptState struct {
	queued     bool
	handed     uint8 // of the holders: merges, which write the cut themselves
	holders    int32
	dirtySince engine.Instant
	cut        *cutState      // nil: none stands. Apart, for most replicas have none
	gen        uint64         // of the cut: a holder of an abandoned one lets go of nothing
	failed     int32          // snapshots in a row that did not arrive (rule State3)
	abandoned  int32          // of them those that were abandoned for what was written meanwhile
	after      *[]func(*Lane) // are called on the lane when the cut was written; nil: none
}

// cutState is what a cut consists of.
type cutState struct {
	change  state.Change
	base    state.Record // as the store has it while the cut stands
	at      engine.Instant
	streams []context.CancelFunc // end the snapshots that hold it, if it stands for too long (rule State3)
}

// then has f called after those that are to be called already.
func (c *ckptState) then(f func(*Lane)) {
	if c.after == nil {
		c.after = new([]func(*Lane))
	}
	*c.after = append(*c.after, f)
}

// takeAfter returns what is to be called, and forgets it.
func (c *ckptState) takeAfter() (after []func(*Lane)) {
	if c.after != nil {
		after = *c.after
	}
	c.after = nil
	return after
}

// streaming tells whether snapshots hold the cut.
func (c *ckptState) streaming() bool { return c.cut != nil && len(c.cut.streams) > 0 }

// ckptItem is a cut on its way to the store.
type ckptItem struct {
	r      *replica
	change state.Change
	// A split checkpoint or a merge: its changes are written instead, all in this transaction.
	birth   *birth
	merge   *absorb
	refused bool // for lack of space
}

// checkpointer writes cuts in bounded transactions, each holding whole shards (DESIGN 5).
type checkpointer struct {
	s    *Scheduler
	wake chan struct{}

	mu     sync.Mutex
	urgent []ckptItem // cuts, splits and merges that somebody waits for: before the others, and without a rest
	queue  []ckptItem
	step1  sync.Mutex // one step at a time

	// full: there was no space for some item, which waits. small: the next step tries the smallest, for which there may be some.
	full  atomic.Bool
	small bool
	// hinted: the store holds some sequence of the raft log, so that a log that is lost is noticed (rule Log3).
	hinted atomic.Bool
}

func newCheckpointer(s *Scheduler) *checkpointer {
	return &checkpointer{s: s, wake: make(chan struct{}, 1)}
}

// look asks the lanes for what should be written.
func (c *checkpointer) look() {
	oldest, active := c.s.log.Segments()
	segments := active - oldest
	// On a full disk the next segment comes from freeing the oldest (rule State6).
	pinned := segments >= uint64(c.s.cfg.LogSegmentsMax) || segments > 0 && c.s.log.Metrics().OutOfSpace.Load()
	over := segments > segmentsHold*uint64(c.s.cfg.LogSegmentsMax)
	for _, l := range c.s.lanes {
		l.box.putCall(func(l *Lane) {
			l.logOver = over
			l.ckptLook(pinned)
		})
	}
}

// LookForCheckpoints asks the lanes for what should be written: for a runtime without goroutines.
func (s *Scheduler) LookForCheckpoints() { s.ckpt.look() }

// WriteCheckpoint writes one transaction of what was cut, and tells whether there was any.
func (s *Scheduler) WriteCheckpoint() bool { return s.ckpt.step() }

// put queues it; urgent: somebody waits for it.
func (c *checkpointer) put(it ckptItem, urgent bool) {
	c.mu.Lock()
	if urgent {
		c.urgent = append(c.urgent, it)
	} else {
		c.queue = append(c.queue, it)
	}
	c.mu.Unlock()
	c.ring()
}

// expedite makes the queued cut of r an urgent one.
func (c *checkpointer) expedite(r *replica) {
	c.mu.Lock()
	i := slices.IndexFunc(c.queue, func(it ckptItem) bool { return it.r == r })
	if i >= 0 {
		c.urgent = append(c.urgent, c.queue[i])
		c.queue = slices.Delete(c.queue, i, i+1)
	}
	c.mu.Unlock()
	if i >= 0 {
		c.ring()
	}
}

func (c *checkpointer) ring() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// hurried tells whether somebody waits.
func (c *checkpointer) hurried() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.urgent) > 0
}

// take removes what fits into one transaction: what is urgent, if anything is.
func (c *checkpointer) take() (items []ckptItem, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.small && len(c.urgent)+len(c.queue) > 0 {
		it := c.smallest()
		return []ckptItem{it}, it.bytes()
	}
	from := &c.queue
	if len(c.urgent) > 0 {
		from = &c.urgent
	}
	for len(*from) > 0 && (len(items) == 0 || size < c.s.cfg.CheckpointTxBytes) {
		it := (*from)[0]
		(*from)[0] = ckptItem{}
		*from = (*from)[1:]
		items = append(items, it)
		size += it.bytes()
	}
	return items, size
}

// smallest removes the smallest item; there is one.
func (c *checkpointer) smallest() (it ckptItem) {
	var from *[]ckptItem
	at, size := 0, 0
	for _, list := range []*[]ckptItem{&c.urgent, &c.queue} {
		for i := range *list {
			if n := (*list)[i].bytes(); from == nil || n < size {
				from, at, size = list, i, n
			}
		}
	}
	it = (*from)[at]
	*from = slices.Delete(*from, at, at+1)
	return it
}

// refuse puts items back for which there was no space, and tells whether to try the smallest. After one of those that fits it is the turn of
// the first again: none waits for longer than there is no space for it.
func (c *checkpointer) refuse(items []ckptItem, err error) (again bool) {
	if !c.full.Swap(true) {
		c.s.logger.Error("no space for a checkpoint: writes are refused", "err", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range items {
		items[i].refused = true
	}
	c.queue = append(items, c.queue...)
	c.small = !c.small
	return c.small
}

// wrote notes that there was space, for some.
func (c *checkpointer) wrote() {
	if !c.full.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.small = false
	c.full.Store(slices.ContainsFunc(c.queue, func(it ckptItem) bool { return it.refused }))
}

// changes is what is written for it.
func (it *ckptItem) changes() []state.Change {
	switch {
	case it.birth != nil:
		return it.birth.changes
	case it.merge != nil:
		return it.merge.plan.Changes
	}
	return []state.Change{it.change}
}

// bytes is about how much that is.
func (it *ckptItem) bytes() (size int) {
	for _, c := range it.changes() {
		if size += len(c.Record.Meta) + 256; c.Overlay != nil {
			size += c.Overlay.DataBytes()
		}
	}
	return size
}

const (
	// restMax is how many times as long as a transaction took the checkpointer rests after it while there is room: its writes and the
	// syncs of the log share a device.
	restMax = 3
	// restTime is the longest rest. A transaction that takes more than a third of that is most likely of one big shard, which would only grow
	// meanwhile, and what waits for its next one with it.
	restTime = 500 * time.Millisecond
	// restUntil is how many times its bound the log, or what the overlays hold, may reach before there is no rest any more.
	restUntil = 1.75
)

// rest is how long to wait after a transaction that took so long.
func (c *checkpointer) rest(took time.Duration) time.Duration {
	cfg := &c.s.cfg
	if c.full.Load() || c.s.log.Metrics().OutOfSpace.Load() {
		return cfg.CheckpointPause
	}
	oldest, active := c.s.log.Segments()
	filled := max(float64(active-oldest)/float64(cfg.LogSegmentsMax), float64(c.s.overlayBytes())/float64(cfg.CheckpointBytes))
	return max(cfg.CheckpointPause, restAfter(took, filled))
}

// restAfter is the whole rest up to the bound, and shrinks to none at restUntil.
func restAfter(took time.Duration, filled float64) time.Duration {
	room := min(max(restUntil-filled, 0)/(restUntil-1), 1)
	return min(time.Duration(restMax*room*float64(took)), restTime)
}

// step writes one transaction, and tells whether there was anything to write.
func (c *checkpointer) step() bool {
	c.step1.Lock()
	defer c.step1.Unlock()
	items, size := c.take()
	if len(items) == 0 {
		c.hint()
		return false
	}
	changes := make([]state.Change, 0, len(items))
	for i := range items {
		it := &items[i]
		switch {
		case it.birth != nil:
			c.s.step(it.r.key.Shard, "split: checkpoint")
		case it.merge != nil:
			c.s.step(it.r.key.Shard, "merge: checkpoint")
		}
		changes = append(changes, it.changes()...)
	}
	err := c.s.state.Write(changes, c.s.log.Synced())
	switch {
	case errors.Is(err, state.ErrNoSpace):
		return c.refuse(items, err)
	case errors.Is(err, state.ErrClosed):
		return false
	case err != nil:
		c.s.fatal(fmt.Errorf("checkpoint of %d shards: %w", len(items), err))
		return false
	}
	c.wrote()
	c.hinted.Store(true)
	m := &c.s.metrics
	m.CheckpointTx.Add(1)
	m.Checkpoints.Add(uint64(len(items)))
	m.CheckpointBytes.Add(uint64(size))
	for _, l := range c.s.lanes {
		var mine []ckptItem
		for _, it := range items {
			if it.r.lane == l && it.birth == nil && it.merge == nil {
				mine = append(mine, it)
			}
		}
		if len(mine) > 0 {
			l.box.putCall(func(l *Lane) { l.ckptDone(mine) })
		}
	}
	for _, it := range items {
		switch {
		case it.birth != nil:
			c.s.birthWritten(it.birth)
		case it.merge != nil:
			c.s.mergeWritten(it.merge)
		}
	}
	return true
}

// hint stores how far the log was synced, soon after its first sync; from then on the checkpoints do (rule Log3).
func (c *checkpointer) hint() {
	seq := c.s.log.Synced()
	if seq == 0 || c.hinted.Load() {
		return
	}
	switch err := c.s.state.Write(nil, seq); {
	case err == nil:
		c.hinted.Store(true)
	case errors.Is(err, state.ErrNoSpace), errors.Is(err, state.ErrClosed):
	default:
		c.s.fatal(fmt.Errorf("storing the synced sequence of the raft log: %w", err))
	}
}

// noteDirty lists r for the checkpointer.
func (l *Lane) noteDirty(r *replica) {
	if !r.stirred {
		r.stirred = true
		l.stirred = append(l.stirred, r)
	}
	if !r.dirtyListed {
		r.dirtyListed = true
		r.ckpt.dirtySince = l.now
		l.dirtyList = append(l.dirtyList, r)
	}
}

// ckptLook chooses what is written: shards that are too big, too old or keep too much log; and while the lane's overlays are over
// their share of the budget, the largest ones.
func (l *Lane) ckptLook(pinned bool) {
	cfg := &l.s.cfg
	budget := cfg.CheckpointBytes / int64(len(l.s.lanes))
	if l.lookedAt == 0 || l.now-l.lookedAt >= engine.Instant(cfg.CheckpointAge/lookAllPerAge) || l.overlayBytes.Load() > budget {
		l.ckptLookAll(budget)
	}
	l.stirred = slices.DeleteFunc(l.stirred, func(r *replica) bool {
		r.stirred = r.dirty() && l.ckptLookAt(r)
		return !r.stirred
	})
	l.releaseHeld()
	if pinned {
		l.unpin()
	}
}

// lookAllPerAge is how often within CheckpointAge all dirty replicas are looked at. Else only those are to which something was applied since:
// what stands still becomes older, but neither bigger nor longer.
const lookAllPerAge = 16

// ckptLookAll looks at all dirty replicas, and counts what they hold.
func (l *Lane) ckptLookAll(budget int64) {
	l.lookedAt = l.now
	total, frozen := int64(0), int64(0)
	n := 0
	for _, r := range l.dirtyList {
		if !r.dirty() {
			r.dirtyListed = false
			continue
		}
		l.dirtyList[n] = r
		n++
		total += int64(r.machine.LiveBytes())
		frozen += int64(r.machine.FrozenBytes())
		l.ckptLookAt(r)
	}
	clear(l.dirtyList[n:])
	l.dirtyList = l.dirtyList[:n]
	l.overlayBytes.Store(total + frozen)
	if total > budget {
		l.ckptLargest(total - budget*3/4)
	}
}

// dirty tells whether something was applied that no checkpoint holds.
func (r *replica) dirty() bool { return !r.removed && r.machine != nil && r.machine.Dirty() }

// ckptLookAt checkpoints a dirty replica if that is due, and tells whether to look again although nothing is applied meanwhile: what was due
// may have been in the way of something, and who holds a cut may have to be hurried.
func (l *Lane) ckptLookAt(r *replica) bool {
	cfg := &l.s.cfg
	switch {
	case r.ckpt.cut != nil:
		if r.machine.LiveBytes() > snapshotOverlayMax*cfg.CheckpointShard {
			l.hurrySnapshots(r)
		}
	case r.barrier: // a split or merge that is proposed would wait for the cut, and the clients with it; it is applied soon
	case r.machine.LiveBytes() > cfg.CheckpointShard || l.now-r.ckpt.dirtySince > engine.Instant(cfg.CheckpointAge) ||
		l.log.Stats(r.key).Bytes > cfg.ShardLogBytesMax/2:
		l.checkpoint(r)
	default:
		return false
	}
	return true
}

// ckptLargest cuts the largest overlays until about so many bytes are on their way.
func (l *Lane) ckptLargest(want int64) {
	list := slices.Clone(l.dirtyList)
	slices.SortStableFunc(list, func(a, b *replica) int { return cmp.Compare(b.machine.LiveBytes(), a.machine.LiveBytes()) })
	for _, r := range list {
		if want <= 0 {
			return
		}
		if r.ckpt.cut == nil && !r.barrier {
			want -= int64(r.machine.LiveBytes())
			l.checkpoint(r)
		}
	}
}

// unpinMax is how many replicas one look frees from the oldest segment.
const unpinMax = 256

// rewriteBytesMax is the log of a replica over which it is checkpointed and purged instead of rewritten.
const rewriteBytesMax = 64 << 10

// rewriteLookMax is how much of the logs that are bigger, and cannot be purged, one look rewrites, and one more: they are one batch.
const rewriteLookMax = 16 << 20

// unpin frees the oldest segment (rules Log5, Log6): what is dirty is checkpointed and purged, the rest rewritten. What cannot be rewritten
// keeps the segment, but nothing else in it.
func (l *Lane) unpin() {
	l.pinned = l.log.Pinned(l.pinned[:0], unpinMax)
	room := int64(rewriteLookMax)
	for _, k := range l.pinned {
		r := l.byShard[k.Shard]
		if r == nil || r.key != k {
			l.unpinVote(k)
			continue
		}
		if r.ckpt.cut != nil && !r.ckpt.queued {
			l.hurrySnapshots(r)
		}
		left := l.log.Stats(k)
		big := left.Bytes > rewriteBytesMax
		if r.ckpt.cut != nil && big {
			r.purgeAll = true // it is purged soon: hundreds of big rewrites in one turn would be more than a frame can hold
			continue
		}
		if r.machine != nil && !r.machine.Dirty() && r.ckpt.cut == nil && (r.stopped || left.First > r.machine.Applied().Index) {
			// What it has not applied no checkpoint frees: its shard has no quorum, or it waits for something, or is stopped.
			if big && room <= 0 {
				continue
			}
			if l.rewrite(r, nil) && big {
				room -= left.Bytes
			}
			continue
		}
		if r.machine != nil && (r.machine.Dirty() || big) && r.ckpt.cut == nil {
			r.purgeAll = true
			l.checkpoint(r)
			continue
		}
		l.rewrite(r, nil)
	}
}

// rewrite copies what the log holds of r to its end, and tells whether that is done, or will be when its bodies are read.
func (l *Lane) rewrite(r *replica, cold []raftlog.Run) bool {
	if r.rewriting {
		return false
	}
	err := l.log.Rewrite(r.key, cold)
	switch {
	case err == nil:
		r.pins = 0
		return true
	case errors.Is(err, raftlog.ErrCold) && cold == nil:
		read, err := l.log.LocateAll(r.key)
		if err != nil {
			return false
		}
		r.rewriting = true
		l.s.spawn(func() {
			runs, err := read.Read()
			l.box.putCall(func(l *Lane) {
				r.rewriting = false
				if err == nil && !r.removed && runs != nil {
					l.rewrite(r, runs)
				} else {
					l.coldFailed(r, err)
				}
			})
		})
		return true
	case errors.Is(err, raftlog.ErrTooBig), errors.Is(err, raftlog.ErrNoSpace):
		if r.pins == pinsMax {
			return false
		}
		if r.pins++; r.pins == pinsMax {
			l.s.logger.Error("a replica keeps old segments of the raft log, which grows until it can be purged or rewritten",
				"shard", uint64(r.key.Shard), "replica", uint64(r.key.Replica), "stopped", r.stopped, "err", err)
		}
	}
	return false
}

// pinsMax is how often in a row a rewrite of a replica is refused before that is logged, once: a big one has to wait for its room.
const pinsMax = 5

// checkpoint cuts r and writes it.
func (l *Lane) checkpoint(r *replica) {
	if l.hold(r) {
		l.letGo(r, r.ckpt.gen)
	}
}

// snapshotOverlayMax is how many times the size at which a shard is checkpointed its overlay may reach while snapshots hold the cut.
const snapshotOverlayMax = 4

// abandonSnapshots ends the snapshots that keep r from being checkpointed; the next attempt runs unthrottled (rule State3).
func (l *Lane) abandonSnapshots(r *replica) {
	c := r.ckpt.cut
	if c == nil {
		return
	}
	for _, cancel := range c.streams {
		cancel()
	}
	c.streams = nil
}

const (
	// abandonMax is how many snapshots of a shard are abandoned because of its writes; the next one is not, and the writes wait.
	abandonMax = 2
	// throttleMax is for how long, from its cut on.
	throttleMax = engine.Duration(60e9)
)

// hurrySnapshots abandons the snapshots of a shard that is written faster than they are sent; but not for ever, or they would never
// arrive: the third one has its time, and the shard's writes wait for it (rule State3).
func (l *Lane) hurrySnapshots(r *replica) {
	c := &r.ckpt
	if !c.streaming() {
		return
	}
	if c.abandoned >= abandonMax {
		if l.now-c.cut.at < engine.Instant(throttleMax) {
			return
		}
		c.abandoned = -1
	}
	c.abandoned++
	l.abandonSnapshots(r)
}

// throttled tells whether the writes of r wait for a snapshot.
func (l *Lane) throttled(r *replica) bool {
	c := &r.ckpt
	return c.abandoned >= abandonMax && c.streaming() && r.machine.LiveBytes() > snapshotOverlayMax*l.s.cfg.CheckpointShard
}

// hold cuts r, or joins the cut that stands. False: r is settling in a way that whenSettled waits for. All of that ends without other nodes:
// a barrier entry that is proposed does not keep cuts away, for its commit may need a snapshot, and its apply ends whatever cut it meets.
func (l *Lane) hold(r *replica) bool {
	c := &r.ckpt
	if c.queued || r.linking || r.birth != nil || r.merge != nil && r.merge.writing {
		return false
	}
	if c.cut == nil {
		base := state.Record{Key: r.key, Applied: r.machine.Persisted(), Extents: r.machine.Extents()}
		change, ok := r.machine.Freeze()
		if !ok {
			return false
		}
		c.cut = &cutState{change: change, base: base, at: l.now}
	}
	c.holders++
	return true
}

// letGo ends a hold. The cut of the last holder is written: what was frozen cannot be forgotten before that.
func (l *Lane) letGo(r *replica, gen uint64) {
	c := &r.ckpt
	if gen != c.gen {
		return
	}
	if c.holders--; c.holders > 0 || r.removed || c.queued {
		return
	}
	c.queued = true
	l.s.ckpt.put(ckptItem{r: r, change: c.cut.change}, c.after != nil)
}

// ckptDone takes cuts that were committed.
func (l *Lane) ckptDone(items []ckptItem) {
	for _, it := range items {
		r := it.r
		if r.removed {
			continue
		}
		at := it.change.Record.Applied
		before := overlaysOf(r)
		r.machine.Release()
		l.grown(overlaysOf(r) - before)
		r.ckpt.cut, r.ckpt.queued, r.ckpt.holders = nil, false, 0
		r.ckpt.gen++
		r.ckpt.dirtySince = l.now
		unpin := r.purgeAll
		l.ev.ckpt = engine.Checkpointed{LogID: at, PurgeBelow: l.purgeBelow(r, at)}
		l.feed(r, &l.ev.ckpt)
		if unpin && !r.removed {
			// A replica that is always being written is dirty at every look, and never rewritten: its vote must not stay behind
			// (rule Log5).
			l.log.Refresh(r.key)
		}
		l.runAfter(r)
	}
	l.releaseHeld()
}

// purgeBelow tells up to where the log is purged even if a live follower still needs it: not at all while it is small.
func (l *Lane) purgeBelow(r *replica, at engine.LogID) uint64 {
	keep := l.s.cfg.ShardLogEntriesKeep
	switch {
	case r.purgeAll:
		r.purgeAll = false
		return at.Index + 1
	case l.log.Stats(r.key).Bytes > l.s.cfg.ShardLogBytesMax && at.Index > keep:
		return at.Index - keep
	}
	return 0
}

// CheckpointsWaiting tells whether cuts wait to be written.
func (s *Scheduler) CheckpointsWaiting() bool {
	s.ckpt.mu.Lock()
	defer s.ckpt.mu.Unlock()
	return len(s.ckpt.urgent)+len(s.ckpt.queue) > 0
}
