package raftlog

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

const (
	segmentSuffix = ".seg"
	spareSuffix   = ".spare"
)

// How many segments that were freed are kept. A log that fills segments faster than it frees them, many at a time, would else have most
// removed, and write zeros into new ones a moment later: as much again as it writes itself. What is kept was a segment before, so the log takes
// no more of the disk than it has taken at its longest.
const (
	// sparesMin are kept for ever.
	sparesMin = 2
	// spareAge is how long a further one waits to be used again.
	spareAge = 30 * time.Second
	// spareShare: further ones take at most this part of what is free on the disk.
	spareShare = 8
	// trimEvery is how often it is looked for ones to remove.
	trimEvery = time.Second
)

// segment is one life of a segment file.
type segment struct {
	segmentHeader
	file vfs.File
	path string
	// freed is set before the file is used again or closed: what is read from it after that is not believed.
	freed atomic.Bool
}

func (s *segment) name() string { return filepath.Base(s.path) }

func fileName(number uint64, suffix string) string { return fmt.Sprintf("%010d%s", number, suffix) }

func parseName(name, suffix string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return n, err == nil && n > 0 && fileName(n, suffix) == name
}

// spare is an allocated segment file without a life.
type spare struct {
	file vfs.File
	path string
	size int64
	// since is when it was made, or freed. The last one is the first to be used.
	since time.Time
}

// isNoSpace tells whether an allocation failed because there is no room, which may change.
func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// makeSpare allocates a file.
func (l *Log) makeSpare(size int64) (spare, error) {
	s := spare{path: filepath.Join(l.dir, fileName(l.spareNumber.Add(1), spareSuffix)), size: size, since: l.opt.Now()}
	f, err := l.fs.Create(s.path)
	if err == nil {
		s.file = f
		if err = f.Allocate(size); err == nil {
			err = f.Datasync()
		}
	}
	if err == nil {
		return s, nil
	}
	if s.file != nil {
		err = errors.Join(err, s.file.Close(), l.fs.Remove(s.path))
	}
	if isNoSpace(err) {
		return spare{}, fmt.Errorf("%w for a segment of %d bytes in %s: %w", ErrNoSpace, size, l.dir, err)
	}
	return spare{}, fmt.Errorf("allocate raft log segment: %w", err)
}

// takeSpare returns an allocated file of at least size bytes: the smallest of those that are ready.
func (l *Log) takeSpare(size int64) (spare, error) {
	if l.preparing != nil {
		r := <-l.preparing
		l.preparing = nil
		if r.err == nil {
			l.addSpare(r.spare)
		}
	}
	i := slices.IndexFunc(l.spares, func(s spare) bool { return s.size >= size })
	if i < 0 {
		return l.makeSpare(size)
	}
	s := l.spares[i]
	l.spares = slices.Delete(l.spares, i, i+1)
	l.noteSpares()
	return s, nil
}

// addSpare keeps the spares in the order of their sizes.
func (l *Log) addSpare(s spare) {
	i, _ := slices.BinarySearchFunc(l.spares, s.size, func(s spare, size int64) int { return cmp.Compare(s.size, size) })
	l.spares = slices.Insert(l.spares, i, s)
	l.noteSpares()
}

func (l *Log) noteSpares() {
	largest := int64(0)
	if n := len(l.spares); n > 0 {
		largest = l.spares[n-1].size
	}
	l.spareBytes.Store(largest)
}

// startSegment begins a new segment for a frame of up to need bytes. The header names the end of the segment before, so that
// what lies behind it is never looked at again, and is durable, as is the name, before the first frame (rules Log2, Log3).
func (l *Log) startSegment(need int64) error {
	size := max(l.opt.SegmentBytes, alignBlock(segmentStart+need))
	s, err := l.takeSpare(size)
	if err != nil {
		return err
	}
	seg := &segment{file: s.file}
	seg.segmentHeader = segmentHeader{number: 1, salt: l.opt.Salt(), firstSeq: l.seq + 1, oldest: 1, size: uint64(s.size)}
	if last := l.last(); last != nil {
		seg.number = last.number + 1
		seg.prev, seg.prevEnd = last.number, uint64(l.tail)
		seg.oldest = l.oldest.Load()
	}
	seg.path = filepath.Join(l.dir, fileName(seg.number, segmentSuffix))
	if err := l.writeHeader(seg); err != nil {
		return fmt.Errorf("write header of %s: %w", s.path, err)
	}
	if err := l.fs.Rename(s.path, seg.path); err != nil {
		return fmt.Errorf("name %s: %w", seg.path, err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("sync directory %s: %w", l.dir, err)
	}
	l.addSegment(seg)
	return nil
}

func (l *Log) writeHeader(seg *segment) error {
	page := make([]byte, vfs.SectorSize)
	seg.append(page[:0])
	if _, err := seg.file.WriteAt(page, 0); err != nil {
		return err
	}
	return seg.file.Datasync()
}

// addSegment makes seg the active one.
func (l *Log) addSegment(seg *segment) {
	segs := append([]*segment(nil), *l.segments.Load()...)
	segs = append(segs, seg)
	l.segments.Store(&segs)
	l.active.Store(seg.number)
	l.tail = segmentStart
	l.left.Store(int64(seg.size) - l.tail)
	l.sealed = false
	l.needSegment = false
}

// last is the newest segment, nil in an empty log.
func (l *Log) last() *segment {
	segs := *l.segments.Load()
	if len(segs) == 0 {
		return nil
	}
	return segs[len(segs)-1]
}

// segment returns the live segment of this number, or nil.
func (l *Log) segment(number uint64) *segment {
	segs := *l.segments.Load()
	if len(segs) == 0 || number < segs[0].number || number-segs[0].number >= uint64(len(segs)) {
		return nil
	}
	return segs[number-segs[0].number]
}

// freeSegments frees what a durable frame has said to be needed no more, oldest first (rule Log5).
func (l *Log) freeSegments() error {
	segs := *l.segments.Load()
	n := 0
	for n < len(segs)-1 && segs[n].number < l.oldest.Load() {
		n++
	}
	if n == 0 {
		return nil
	}
	for _, seg := range segs[:n] {
		if err := l.freeSegment(seg); err != nil {
			return err
		}
	}
	l.metrics.SegmentsFreed.Add(uint64(n))
	return nil
}

// freeSegment frees the oldest segment. Its name is gone for good before the next one is freed (a crash must not leave a gap), and
// before a header of a new life overwrites the old one.
func (l *Log) freeSegment(seg *segment) error {
	rest := append([]*segment(nil), (*l.segments.Load())[1:]...)
	l.segments.Store(&rest)
	seg.freed.Store(true)
	s := spare{file: seg.file, size: int64(seg.size), since: l.opt.Now()}
	keep := s.size == l.opt.SegmentBytes && (len(l.spares) < sparesMin || l.roomFor(len(l.spares)+1))
	var err error
	if keep {
		s.path = filepath.Join(l.dir, fileName(l.spareNumber.Add(1), spareSuffix))
		err = l.fs.Rename(seg.path, s.path)
	} else {
		err = errors.Join(seg.file.Close(), l.fs.Remove(seg.path))
	}
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		return l.poison("free segment", err)
	}
	if keep {
		l.addSpare(s)
	}
	return nil
}

// roomFor tells whether there is room on the disk for n spares: not where it is not known how much is free.
func (l *Log) roomFor(n int) bool {
	return l.opt.FreeBytes != nil && int64(n)*l.opt.SegmentBytes <= l.opt.FreeBytes()/spareShare
}

// trimSpares removes the spares for which there is no room any more, and one that has waited for too long. Larger ones wait for a rewrite.
func (l *Log) trimSpares() error {
	n := len(l.spares)
	for n > 0 && l.spares[n-1].size > l.opt.SegmentBytes {
		n--
	}
	l.kept.Store(n > sparesMin)
	now := l.opt.Now()
	if n <= sparesMin || now.Sub(l.trimmed) < trimEvery {
		return nil
	}
	l.trimmed = now
	for aged := false; n > sparesMin; n-- {
		s := l.spares[n-1]
		if l.roomFor(n) {
			if aged || now.Sub(s.since) < spareAge {
				break
			}
			aged = true
		}
		l.spares = slices.Delete(l.spares, n-1, n)
		l.noteSpares()
		if err := errors.Join(s.file.Close(), l.fs.Remove(s.path)); err != nil {
			return l.poison("remove spare segment", err)
		}
	}
	l.kept.Store(n > sparesMin)
	return nil
}

type prepared struct {
	spare spare
	size  int64
	err   error
}

// prepareNext allocates ahead of need: the next segment when half of the active one is used, and the larger one that a rewrite waits for.
func (l *Log) prepareNext() error {
	if l.preparing != nil {
		select {
		case r := <-l.preparing:
			l.preparing = nil
			return l.prepared(r)
		default:
			return nil
		}
	}
	seg, size := l.last(), int64(0)
	switch wanted := l.wanted.Swap(0); {
	case len(l.spares) == 0 && seg != nil && (l.needSegment || l.tail >= int64(seg.size)/2):
		size = l.opt.SegmentBytes
	case wanted > l.spareBytes.Load():
		size = max(l.opt.SegmentBytes, alignBlock(wanted))
	}
	switch {
	case size == 0 && len(l.spares) > 0:
		l.metrics.OutOfSpace.Store(false)
		return nil
	case size == 0:
		return nil
	case !l.opt.Background:
		s, err := l.makeSpare(size)
		return l.prepared(prepared{s, size, err})
	}
	result := make(chan prepared, 1)
	l.preparing = result
	go func() { // owned by l: Close and startSegment wait for it
		s, err := l.makeSpare(size)
		result <- prepared{s, size, err}
	}()
	return nil
}

// prepared takes what prepareNext has allocated. That there is no space for a segment larger than others concerns the rewrite alone.
func (l *Log) prepared(r prepared) error {
	switch {
	case r.err == nil:
		l.addSpare(r.spare)
		l.metrics.OutOfSpace.Store(false)
		return nil
	case r.size > l.opt.SegmentBytes && errors.Is(r.err, ErrNoSpace):
		return r.err
	}
	return l.allocationFailed(r.err)
}

// allocationFailed keeps the log going without space, so that it can be seen and refused in time; anything else is the end.
func (l *Log) allocationFailed(err error) error {
	if errors.Is(err, ErrNoSpace) {
		l.metrics.OutOfSpace.Store(true)
		return err
	}
	return l.poison("begin segment", err)
}
