package raftlog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/store/vfs"
)

// Log is the raft log of a node. Lane methods belong to the lanes; Flush, Maintain, Seal and Close to one writer.
type Log struct {
	fs  vfs.FS
	dir string
	opt Options

	// mu guards the hand-over between lanes and writer, and the table of lanes. It is never held during I/O.
	mu      sync.Mutex
	queue   []pendingBatch
	buffers [][]byte // to be used again
	// bufferBytes is their capacity.
	bufferBytes int
	lanes       map[int]*Lane
	recovered   map[Key]*replica // not adopted yet

	unadopted atomic.Int64
	pending   chan struct{}
	metrics   Metrics

	// segments are the live ones, oldest first, without gap; the last is active. Replaced as a whole, read by anyone.
	segments atomic.Pointer[[]*segment]
	active   atomic.Uint64
	// oldest is the oldest segment that is needed, by the newest durable frame.
	oldest atomic.Uint64
	synced atomic.Uint64
	// base are the segments that recovery read: batch i+1 of every lane stands for what lies in base[i].
	base []place

	// left is what is free in the active segment, and spareBytes the largest spare, as the writer has left them. claimed is what of
	// it is spoken for: by what waits in the queue, and by rewrites in open batches.
	left, spareBytes, claimed atomic.Int64
	// wanted is a spare that a rewrite waits for, 0: none.
	wanted atomic.Int64

	// wmu guards the writer's state: everything below.
	wmu    sync.Mutex
	err    error // the log is poisoned or closed
	seq    uint64
	tail   int64 // where the next frame goes in the active segment
	sealed bool  // the last frame is a seal
	// needSegment: there was no space for a new segment at start, and the one that was found must not be written.
	needSegment bool
	frame       []byte
	taken       []pendingBatch
	done        []Completion
	spares      []spare
	trimmed     time.Time // when it was last looked for spares to remove
	kept        atomic.Bool
	spareNumber atomic.Uint64
	preparing   chan prepared
}

// pendingBatch is a lane's batch on its way to the disk.
type pendingBatch struct {
	lane    int
	number  uint64
	buf     []byte // frameHeaderSize bytes of room, then records
	entries int
}

func (b *pendingBatch) records() []byte { return b.buf[frameHeaderSize:] }

const (
	// buffersBytesMax bounds the buffers that wait to be used again.
	buffersBytesMax = 64 << 20
	// flushBytesMax is where a frame stops taking further batches.
	flushBytesMax = 16 << 20
	// rewriteBytesMaxDefault leaves room for whatever else may be in the batch.
	rewriteBytesMaxDefault = frameBytesMax / 4
)

func (l *Log) buffer() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.buffers); n > 0 {
		b := l.buffers[n-1]
		l.buffers = l.buffers[:n-1]
		l.bufferBytes -= cap(b)
		return b[:frameHeaderSize]
	}
	return make([]byte, frameHeaderSize, 4096)
}

func (l *Log) submit(b pendingBatch) {
	l.mu.Lock()
	l.queue = append(l.queue, b)
	l.mu.Unlock()
	l.signal()
}

func (l *Log) signal() {
	select {
	case l.pending <- struct{}{}:
	default:
	}
}

// Lane returns the lane of this number, which is made by the first call; all methods of it must be called by its owner only.
func (l *Log) Lane(id int) *Lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.lanes[id]; a != nil {
		return a
	}
	a := &Lane{id: id, log: l, replicas: map[Key]*replica{}, cache: newCache(l.opt.CacheBytes)}
	a.places = append(a.places, l.base...)
	a.placesFirst = 1
	a.flushed = uint64(len(l.base))
	a.next = a.flushed + 1
	a.lastSegment = uint32(l.active.Load())
	a.floor.Store(l.oldest.Load())
	l.lanes[id] = a
	return a
}

func (l *Log) adopt(k Key) *replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.recovered[k]
	if r != nil {
		delete(l.recovered, k)
		l.unadopted.Add(-1)
	}
	return r
}

// Pending receives a token when something was submitted.
func (l *Log) Pending() <-chan struct{} { return l.pending }

// Synced is the highest sequence known to be durable; checkpoints store it (rule Log3).
func (l *Log) Synced() uint64 { return l.synced.Load() }

// Segments returns the numbers of the oldest and of the active segment.
func (l *Log) Segments() (oldest, active uint64) { return l.oldest.Load(), l.active.Load() }

// poison ends the log: after a failed write or sync nothing is known about what is on the disk (DESIGN 4, fail-stop).
func (l *Log) poison(what string, err error) error {
	if l.err == nil {
		l.err = fmt.Errorf("%w: %s: %w", ErrPoisoned, what, err)
	}
	return l.err
}

// Flush writes everything submitted, as one frame with one write and one sync (if it is more than flushBytesMax or fits into no
// segment together, only the first part of it; Pending has a token then). It returns one completion for each lane that had a
// batch in it. The slice is reused by the next call. ErrNoSpace: nothing has happened, call again; any other error is final.
func (l *Log) Flush() ([]Completion, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	size := l.take()
	if len(l.taken) == 0 {
		return nil, nil
	}
	if size > frameBytesMax {
		return nil, l.poison("write frame", fmt.Errorf("a batch of %d bytes is over %d", size, frameBytesMax))
	}
	if err := l.room(size); err != nil {
		return nil, err
	}
	off := l.tail
	if err := l.writeFrame(l.compose(size), 0); err != nil {
		return nil, err
	}
	l.complete(off)
	return l.done, nil
}

// take looks at the batches that go into the next frame, and returns the bytes of the frame. They stay in the queue until they are durable.
func (l *Log) take() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taken = l.taken[:0]
	limit := min(flushBytesMax, l.opt.SegmentBytes-segmentStart)
	size := int64(frameHeaderSize)
	for i := range l.queue {
		n := int64(len(l.queue[i].records()))
		if len(l.taken) > 0 && size+n > limit {
			break
		}
		size += n
		l.taken = append(l.taken, l.queue[i])
	}
	return size
}

// room makes sure that a frame of size bytes fits into the active segment.
func (l *Log) room(size int64) error {
	seg := l.last()
	if seg != nil && !l.needSegment && l.tail+size <= int64(seg.size) {
		return nil
	}
	if err := l.startSegment(size); err != nil {
		return l.allocationFailed(err)
	}
	l.metrics.OutOfSpace.Store(false)
	return nil
}

// compose returns the frame of what was taken. A single batch has room for the header and is written from where it is.
func (l *Log) compose(size int64) []byte {
	if len(l.taken) == 1 {
		return l.taken[0].buf
	}
	if int64(cap(l.frame)) < size {
		l.frame = make([]byte, 0, size+size/4)
	}
	l.frame = l.frame[:frameHeaderSize]
	for i := range l.taken {
		l.frame = append(l.frame, l.taken[i].records()...)
	}
	return l.frame
}

// writeFrame writes and syncs a frame. It returns after the sync, so only one write is ever in flight (rule Log2).
func (l *Log) writeFrame(frame []byte, flags uint32) error {
	seg := l.last()
	oldest := l.floor()
	h := frameHeader{length: uint32(len(frame) - frameHeaderSize), seq: l.seq + 1, oldest: oldest, flags: flags}
	h.put(frame, frameSeed(seg.salt, seg.number, l.tail))
	start := l.opt.Now()
	if _, err := seg.file.Append(frame, l.tail); err != nil {
		return l.poison("write "+seg.path, err)
	}
	if err := seg.file.Datasync(); err != nil {
		return l.poison("sync "+seg.path, err)
	}
	l.metrics.observeSync(l.opt.Now().Sub(start), len(frame))
	l.seq++
	l.tail = alignFrame(l.tail + int64(len(frame)))
	l.left.Store(int64(seg.size) - l.tail)
	l.sealed = flags&flagSeal != 0
	l.synced.Store(l.seq)
	l.oldest.Store(oldest)
	return nil
}

// floor is the oldest segment that any lane needs.
func (l *Log) floor() uint64 {
	oldest := l.oldest.Load()
	if l.unadopted.Load() > 0 {
		return oldest
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lanes) == 0 {
		return oldest
	}
	low := l.active.Load()
	for _, a := range l.lanes {
		low = min(low, a.floor.Load())
	}
	return max(low, oldest)
}

// complete takes what is durable from the queue and makes the completions.
func (l *Log) complete(off int64) {
	seg := uint32(l.last().number)
	l.done = l.done[:0]
	pos := off + frameHeaderSize
	for i := range l.taken {
		b := &l.taken[i]
		l.addCompletion(b, place{seg: seg, off: uint32(pos)})
		pos += int64(len(b.records()))
		l.metrics.Entries.Add(uint64(b.entries))
	}
	l.metrics.Batches.Add(uint64(len(l.taken)))
	l.mu.Lock()
	defer l.mu.Unlock()
	n := copy(l.queue, l.queue[len(l.taken):])
	clear(l.queue[n:])
	l.queue = l.queue[:n]
	l.claimed.Add(off + frameHeaderSize - pos)
	for i := range l.taken {
		if b := l.taken[i].buf; l.bufferBytes+cap(b) <= buffersBytesMax {
			l.buffers = append(l.buffers, b)
			l.bufferBytes += cap(b)
		}
	}
	clear(l.taken)
	if n > 0 {
		l.signal()
	}
}

func (l *Log) addCompletion(b *pendingBatch, p place) {
	for i := range l.done {
		if c := &l.done[i]; c.Lane == b.lane {
			c.Batch = b.number
			c.places = append(c.places, p)
			return
		}
	}
	l.done = append(l.done, Completion{Lane: b.lane, Batch: b.number, first: b.number, places: []place{p}})
}

// Maintain does what is better done between flushes: it frees segments that are needed no more, and prepares the next one. The
// writer calls it after it has posted the completions of a Flush. ErrNoSpace is a warning in time: the log goes on until the
// active segment is full.
func (l *Log) Maintain() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.metrics.OutOfSpace.Load() && l.floor() > l.oldest.Load() {
		// There may be no other frame to say what is needed no more, for writes are refused: a seal does.
		l.sealed = false
		if err := l.seal(); err != nil {
			return err
		}
	}
	if err := l.freeSegments(); err != nil {
		return err
	}
	if err := l.trimSpares(); err != nil {
		return err
	}
	return l.prepareNext()
}

// Kept tells that there are freed segments for which Maintain must be called again, each second or so, even if nothing is written.
func (l *Log) Kept() bool { return l.kept.Load() }

// Seal writes a seal, if the last frame is not one (rule Log3): when the log was idle for a second, and at shutdown. A seal is a
// frame without records; that it is there proves that all before it was synced.
func (l *Log) Seal() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.err != nil {
		return l.err
	}
	return l.seal()
}

func (l *Log) seal() error {
	if l.sealed || l.needSegment || l.tail == segmentStart {
		return nil // the header of an empty segment seals the one before
	}
	if err := l.room(frameHeaderSize); errors.Is(err, ErrNoSpace) {
		return nil // without a seal only the end of the log is less sure
	} else if err != nil {
		return err
	}
	if l.tail == segmentStart {
		return nil
	}
	return l.writeFrame(make([]byte, frameHeaderSize), flagSeal)
}

// Close seals and closes the log. What was submitted and not flushed is lost.
func (l *Log) Close() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if errors.Is(l.err, ErrClosed) {
		return nil
	}
	var errs []error
	if l.err == nil {
		errs = append(errs, l.seal())
	}
	if l.preparing != nil {
		if r := <-l.preparing; r.err == nil {
			errs = append(errs, r.spare.file.Close())
		}
		l.preparing = nil
	}
	for _, seg := range *l.segments.Load() {
		errs = append(errs, seg.file.Close())
	}
	for _, s := range l.spares {
		errs = append(errs, s.file.Close())
	}
	l.err = ErrClosed
	return errors.Join(errs...)
}

// Metrics are counters that may be read at any time.
type Metrics struct {
	Syncs         atomic.Uint64
	SyncNanos     atomic.Uint64 // spent in write and sync
	SyncNanosMax  atomic.Uint64
	Bytes         atomic.Uint64
	Batches       atomic.Uint64 // of lanes: Batches/Syncs is how well they merge
	Entries       atomic.Uint64
	SegmentsFreed atomic.Uint64
	// OutOfSpace: the last allocation of a segment failed for lack of space; writes of clients should be refused.
	OutOfSpace atomic.Bool
}

func (m *Metrics) observeSync(d time.Duration, bytes int) {
	m.Syncs.Add(1)
	m.SyncNanos.Add(uint64(d))
	m.Bytes.Add(uint64(bytes))
	if uint64(d) > m.SyncNanosMax.Load() {
		m.SyncNanosMax.Store(uint64(d))
	}
}

// Metrics returns the counters of the log.
func (l *Log) Metrics() *Metrics { return &l.metrics }
