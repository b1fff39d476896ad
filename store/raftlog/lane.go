package raftlog

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/kiloraft/kiloraft/engine"
)

// Lane is a scheduler lane's part of the log: the index of its replicas, its cache, and the batch that is being filled. All
// methods must be called by the lane's owner only; none but Submit takes a lock, and none waits for the disk.
//
// A position in the log is (batch, offset in the batch). Where the batch lies is learnt from its Completion, and kept per
// batch, not per run, until its segment is freed.
type Lane struct {
	id  int
	log *Log

	replicas map[Key]*replica
	recent   *replica   // that was looked up last, or that Near has named: calls about one replica come together
	list     []*replica // the same, to walk over
	cache    cache

	buf     []byte // the open batch: frameHeaderSize bytes of room, then records; nil if nothing was added
	entries int    // in the open batch
	due     bool   // there is more than hints in the open batch
	claimed int64  // of Log.claimed: by rewrites in the open batch
	next    uint64 // number of the open batch
	flushed uint64 // newest durable batch

	// places[i] is where batch placesFirst+i lies.
	places      []place
	placesHead  int
	placesFirst uint64
	lastSegment uint32 // of the newest durable batch: later ones lie there or behind

	// floor is the oldest segment that this lane needs, for the writer. A floor is published only once everything that was
	// in the index when it was computed is durable (pending*).
	floor        atomic.Uint64
	pendingFloor uint64 // 0: none
	pendingBatch uint64
}

// Adopt takes over a replica that Open has found. Each must be adopted by exactly one lane (and then dropped, if it is not
// wanted) before segments can be freed.
func (a *Lane) Adopt(k Key) {
	if r := a.log.adopt(k); r != nil {
		a.insert(r)
	}
}

func (a *Lane) insert(r *replica) {
	if a.replicas[r.key] != nil {
		panic(fmt.Sprintf("raftlog: replica %v exists", r.key))
	}
	r.slot = int32(len(a.list))
	a.list = append(a.list, r)
	a.replicas[r.key] = r
}

// lookup returns the replica, nil if there is none.
func (a *Lane) lookup(k Key) *replica {
	if a.recent != nil && a.recent.key == k { // a dropped one has no key
		return a.recent
	}
	r := a.replicas[k]
	if r != nil {
		a.recent = r
	}
	return r
}

// Index remembers where the lane has the index of one replica: see Near. Its zero value knows nothing.
type Index struct{ r *replica }

// Near says that the next calls are likely to be about k, and where it is found: with many replicas each look into the map is a wait for memory.
// ix is of k alone. It changes nothing else: what is not there any more is not found by it either.
func (a *Lane) Near(ix *Index, k Key) {
	if ix.r == nil {
		ix.r = a.replicas[k]
	}
	a.recent = ix.r
}

func (a *Lane) get(k Key) *replica {
	r := a.lookup(k)
	if r == nil {
		r = &replica{key: k}
		a.insert(r)
	}
	return r
}

// open makes the open batch ready to take a record.
func (a *Lane) open() {
	a.openHint()
	a.due = true
}

// openHint is open for a record that may wait for others.
func (a *Lane) openHint() {
	if a.buf == nil {
		a.buf = a.log.buffer()
	}
}

// HintsOnly tells whether all that was added since the last Submit are hints (SaveCommitted), for which alone no sync need be
// paid: they can ride with the next batch.
func (a *Lane) HintsOnly() bool { return a.buf != nil && !a.due }

func (a *Lane) offset() uint32 { return uint32(len(a.buf) - frameHeaderSize) }

// Append appends entries. They must follow the last one without gap. run.Body is kept in the cache and must never be modified.
func (a *Lane) Append(k Key, run Run) {
	r := a.get(k)
	if last := r.last(); run.First != last.Index+1 || run.Count <= 0 || len(run.Body) < 2*run.Count {
		panic(fmt.Sprintf("raftlog: append of %d entries (%d bytes) at %d to replica %v, which ends at %d", run.Count, len(run.Body), run.First, k, last.Index))
	}
	a.open()
	kind := byte(recAppend)
	if run.Special {
		kind = recAppendSpecial
	}
	a.buf = appendRun(appendKey(a.buf, kind, k), k, run)
	a.push(r, run)
	a.entries += run.Count
}

// push indexes a run whose body was just added to the open batch.
func (a *Lane) push(r *replica, run Run) {
	ref := runRef{
		term: run.Term, first: run.First, count: uint32(run.Count),
		batch: a.next, off: a.offset() - uint32(len(run.Body)), size: uint32(len(run.Body)),
		cached: a.cache.put(run.Body, a.next, a.flushed),
	}
	if run.Special {
		ref.flags = flagSpecial
	}
	r.push(ref)
}

// Truncate forgets the entries from first on.
func (a *Lane) Truncate(k Key, first uint64) {
	r := a.lookup(k)
	if r == nil || first > r.last().Index {
		return
	}
	a.open()
	a.buf = binary.AppendUvarint(appendKey(a.buf, recTruncate, k), first)
	r.truncate(first, &a.cache)
}

// SaveVote saves a vote.
func (a *Lane) SaveVote(k Key, v engine.Vote) {
	r := a.get(k)
	a.open()
	a.buf = appendVote(appendKey(a.buf, recVote, k), v)
	r.vote, r.voteAt = v, a.next
}

// SaveCommitted saves the hint how far the log is known to be committed. It rides along with the next batch.
func (a *Lane) SaveCommitted(k Key, id engine.LogID) {
	r := a.get(k)
	a.openHint()
	a.buf = appendLogID(appendKey(a.buf, recCommitted, k), id)
	r.committed, r.committedAt = id, a.next
}

// Purge forgets the entries up to id. If id is beyond the last entry, or the entry there has another term, it drops all entries
// (a snapshot took their place). An id at or below the purged one changes nothing.
func (a *Lane) Purge(k Key, id engine.LogID) {
	r := a.get(k)
	if id.Index <= r.purged.Index {
		return
	}
	a.open()
	if r.dropsAll(id) {
		a.buf = appendLogID(appendKey(a.buf, recPurgeAll, k), id)
		r.reset(&a.cache)
	} else {
		a.buf = appendLogID(appendKey(a.buf, recPurge, k), id)
		r.purge(id.Index, &a.cache)
	}
	r.purged, r.purgedAt = id, a.next
}

// Refresh writes what is known of a replica besides its entries again, so that it does not pin an old segment (rule Log5).
func (a *Lane) Refresh(k Key) {
	r := a.lookup(k)
	if r == nil {
		return
	}
	a.open()
	a.buf = appendVote(appendKey(a.buf, recVote, k), r.vote)
	a.buf = appendLogID(appendKey(a.buf, recCommitted, k), r.committed)
	a.buf = appendLogID(appendKey(a.buf, recPurge, k), r.purged)
	r.voteAt, r.committedAt, r.purgedAt = a.next, a.next, a.next
}

// Init makes a replica, or replaces all that is known of it: it has no entries, and purged is also its committed. Shards are born
// with purged = {1,1} (rule Split3); give the vote of an uninitialised replica that exists already, it is replaced too.
func (a *Lane) Init(k Key, vote engine.Vote, purged engine.LogID) {
	r := a.get(k)
	a.open()
	a.buf = appendLogID(appendVote(appendKey(a.buf, recInit, k), vote), purged)
	r.reset(&a.cache)
	r.vote, r.committed, r.purged = vote, purged, purged
	r.voteAt, r.committedAt, r.purgedAt = a.next, a.next, a.next
}

// Drop forgets a replica.
func (a *Lane) Drop(k Key) {
	r := a.lookup(k)
	if r == nil {
		return
	}
	a.open()
	a.buf = appendKey(a.buf, recDrop, k)
	r.reset(&a.cache)
	delete(a.replicas, k)
	r.key = Key{} // who still refers to it does not find it (see Near)
	a.recent = nil
	end := len(a.list) - 1
	a.list[r.slot] = a.list[end]
	a.list[r.slot].slot = r.slot
	a.list[end] = nil
	a.list = a.list[:end]
}

// Submit hands everything added since the last Submit to the writer and returns its batch number; 0 if there was nothing.
// The numbers of a lane grow by 1.
func (a *Lane) Submit() (batch uint64) {
	if a.buf == nil {
		return 0
	}
	batch = a.next
	a.log.claimed.Add(int64(a.offset()) - a.claimed)
	a.log.submit(pendingBatch{lane: a.id, number: batch, buf: a.buf, entries: a.entries})
	a.buf, a.entries, a.due, a.claimed = nil, 0, false, 0
	a.next++
	return batch
}

// Shrink lets go of the memory that a lane keeps to be quick, for one that has come to rest: who asks for entries finds them in their segments.
func (a *Lane) Shrink() { a.cache.shrink(a.flushed) }

// Flushed takes a completion of this lane.
func (a *Lane) Flushed(c Completion) {
	if c.Lane != a.id || c.first != a.flushed+1 || c.Batch >= a.next {
		panic(fmt.Sprintf("raftlog: lane %d at batch %d gets completion of lane %d, batches %d to %d", a.id, a.flushed, c.Lane, c.first, c.Batch))
	}
	a.pushPlaces(c.places)
	a.flushed = c.Batch
	a.cache.evict(a.flushed)
	if a.pendingFloor != 0 && a.flushed >= a.pendingBatch {
		a.publishFloor()
	}
	if seg := c.places[len(c.places)-1].seg; seg != a.lastSegment {
		a.lastSegment = seg
		a.updateFloor()
	}
}

func (a *Lane) pushPlaces(places []place) {
	if len(a.places)+len(places) > cap(a.places) && a.placesHead > len(a.places)/2 {
		n := copy(a.places, a.places[a.placesHead:])
		a.places, a.placesHead = a.places[:n], 0
	}
	a.places = append(a.places, places...)
}

// place tells where a flushed batch lies.
func (a *Lane) place(batch uint64) place { return a.places[a.placesHead+int(batch-a.placesFirst)] }

// updateFloor computes which segments the lane still needs. It looks at every replica, so it is done when a segment was
// filled, and when Pinned asks.
func (a *Lane) updateFloor() {
	if a.pendingFloor != 0 || a.log.unadopted.Load() > 0 {
		return
	}
	newest := a.next - 1
	if a.buf != nil {
		newest = a.next
	}
	floor := a.lastSegment
	if newest == a.flushed {
		// Nothing is under way: what comes next goes into the active segment or behind it.
		floor = uint32(a.log.active.Load())
	}
	for _, r := range a.list {
		if low := r.minBatch(); low != 0 && low <= a.flushed {
			floor = min(floor, a.place(low).seg)
		}
	}
	a.pendingFloor, a.pendingBatch = uint64(floor), newest
	if newest == a.flushed {
		a.publishFloor()
	}
}

func (a *Lane) publishFloor() {
	floor := a.pendingFloor
	a.pendingFloor = 0
	for a.placesHead < len(a.places)-1 && uint64(a.places[a.placesHead].seg) < floor {
		a.placesHead++
		a.placesFirst++
	}
	a.floor.Store(floor)
}

// claim takes room in the log for a rewrite of size bytes. A batch that finds none holds up all that come behind it, on all lanes, and what
// would make room is among them. So a big rewrite, and any while there is no space, must fit into what is allocated already, and leave some
// of it to the rest. If it does not, and may later, a segment for it is asked for.
func (a *Lane) claim(size int64) bool {
	l := a.log
	rest := l.opt.SegmentBytes / 16
	need, full := l.claimed.Add(size)+rest, l.metrics.OutOfSpace.Load()
	switch {
	case !full && size <= l.opt.SegmentBytes/4, need <= l.left.Load():
	case !full && segmentStart+need <= l.spareBytes.Load():
	default:
		l.claimed.Add(-size)
		if !full {
			l.wanted.Store(segmentStart + need + rest)
			l.signal() // the writer makes it in Maintain
		}
		return false
	}
	a.claimed += size
	return true
}

func (a *Lane) unclaim(size int64) {
	a.log.claimed.Add(-size)
	a.claimed -= size
}

// Pinned appends to buf up to limit replicas that keep the oldest segment from being freed (rule Log5): the runtime
// checkpoints and purges them, or calls Rewrite. Until every lane was asked (and what they rewrote is flushed), segments may stay.
func (a *Lane) Pinned(buf []Key, limit int) []Key {
	a.updateFloor()
	oldest := a.log.oldest.Load()
	for _, r := range a.list {
		if limit <= 0 {
			break
		}
		if low := r.minBatch(); low != 0 && low <= a.flushed && uint64(a.place(low).seg) <= oldest {
			buf = append(buf, r.key)
			limit--
		}
	}
	return buf
}

// Stats tells what the log holds of k.
func (a *Lane) Stats(k Key) Stats {
	r := a.lookup(k)
	if r == nil {
		return Stats{First: 1}
	}
	return Stats{First: r.purged.Index + 1, Last: r.last(), Bytes: r.bytes}
}

// Terms returns the entries of k by term.
func (a *Lane) Terms(k Key) []engine.TermRun {
	r := a.lookup(k)
	if r == nil {
		return nil
	}
	return r.termRuns()
}

// Purged returns the last log id that is not in the log any more.
func (a *Lane) Purged(k Key) engine.LogID {
	r := a.lookup(k)
	if r == nil {
		return engine.LogID{}
	}
	return r.purged
}
