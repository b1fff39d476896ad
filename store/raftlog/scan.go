package raftlog

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// CorruptError says where the log holds what it cannot hold after any crash. It is an ErrCorrupt.
type CorruptError struct {
	File     string
	Offset   int64
	Sequence uint64           // the sequence that was expected there, if known
	Shards   []engine.ShardID // that the place names, as far as it can be read
	Reason   string
}

// Error implements error.
func (e *CorruptError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %s at offset %d", ErrCorrupt, e.File, e.Offset)
	if e.Sequence != 0 {
		fmt.Fprintf(&b, " (sequence %d)", e.Sequence)
	}
	fmt.Fprintf(&b, ": %s", e.Reason)
	switch {
	case len(e.Shards) > 0:
		fmt.Fprintf(&b, "; shards %v", e.Shards)
	default:
		b.WriteString("; shards unknown")
	}
	return b.String()
}

// Unwrap makes it an ErrCorrupt.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// scanned is what a scan has learnt of a log; it changes nothing.
type scanned struct {
	segs    []*segment
	lastSeq uint64
	tail    int64  // where the frames of the newest segment end
	last    []byte // its last frame, if it has one, which is at lastAt
	lastAt  int64
	sealed  bool
	oldest  uint64
	buf     []byte
}

// visitor is called for every valid frame; records lie at off+frameHeaderSize in seg. The bytes are reused.
type visitor func(seg *segment, off int64, h frameHeader, records []byte) error

// openSegments opens the segments in dir and checks that their headers make a chain.
func openSegments(fs vfs.FS, dir string, names []string) (*scanned, error) {
	sc := &scanned{oldest: 1}
	if err := sc.open(fs, dir, names); err != nil {
		sc.close()
		return nil, err
	}
	return sc, nil
}

func (sc *scanned) open(fs vfs.FS, dir string, names []string) error {
	for _, name := range names {
		number, ok := parseName(name, segmentSuffix)
		if !ok {
			continue
		}
		seg, err := openSegment(fs, filepath.Join(dir, name), number)
		if err != nil {
			return err
		}
		sc.segs = append(sc.segs, seg)
	}
	slices.SortFunc(sc.segs, func(a, b *segment) int { return int(int64(a.number) - int64(b.number)) })
	for i, seg := range sc.segs {
		sc.oldest = max(sc.oldest, seg.oldest)
		if i == 0 {
			continue
		}
		before := sc.segs[i-1]
		if seg.number != before.number+1 || seg.prev != before.number || seg.prevEnd > before.size || seg.firstSeq < before.firstSeq {
			return &CorruptError{File: seg.name(), Sequence: seg.firstSeq,
				Reason: fmt.Sprintf("it follows segment %d, but the one before it here is %d: a segment is missing", seg.prev, before.number)}
		}
	}
	return nil
}

func openSegment(fs vfs.FS, path string, number uint64) (*segment, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	seg := &segment{file: f, path: path}
	b := make([]byte, vfs.SectorSize)
	_, err = f.ReadAt(b, 0)
	if err == nil || errors.Is(err, io.EOF) {
		seg.segmentHeader, err = readSegmentHeader(b)
		if err != nil {
			// A file gets its name only after its header was synced, so no crash can explain this.
			err = &CorruptError{File: seg.name(), Reason: err.Error()}
		} else if seg.number != number {
			err = &CorruptError{File: seg.name(), Reason: fmt.Sprintf("its header says segment %d", seg.number)}
		}
	}
	if err == nil {
		var size int64
		if size, err = f.Size(); err == nil && size < int64(seg.size) {
			err = &CorruptError{File: seg.name(), Offset: size, Reason: fmt.Sprintf("it ends there, but has %d bytes by its header", seg.size)}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return seg, nil
}

func (sc *scanned) close() {
	for _, seg := range sc.segs {
		_ = seg.file.Close() // nothing was written
	}
}

// scan reads all segments and calls visit for each frame. syncedHint: see Options.
func (sc *scanned) scan(syncedHint uint64, visit visitor) error {
	if len(sc.segs) == 0 {
		if syncedHint > 0 {
			return &CorruptError{Sequence: syncedHint, Reason: "there are no segments, but frames up to this sequence have been synced"}
		}
		return nil
	}
	sc.lastSeq = sc.segs[0].firstSeq - 1
	for i, seg := range sc.segs {
		if err := sc.read(seg); err != nil {
			return err
		}
		var err error
		if i < len(sc.segs)-1 {
			err = sc.scanFull(seg, sc.segs[i+1], visit)
		} else {
			err = sc.scanNewest(seg, syncedHint, visit)
		}
		if err != nil {
			return err
		}
	}
	if first := sc.segs[0]; first.number > sc.oldest {
		return &CorruptError{File: fileName(sc.oldest, segmentSuffix), Reason: fmt.Sprintf("the segment is missing: the oldest that is needed is %d, the oldest that is there is %d", sc.oldest, first.number)}
	}
	return nil
}

func (sc *scanned) read(seg *segment) error {
	if cap(sc.buf) < int(seg.size) {
		sc.buf = make([]byte, seg.size)
	}
	sc.buf = sc.buf[:seg.size]
	if n, err := seg.file.ReadAt(sc.buf, 0); n < len(sc.buf) {
		return fmt.Errorf("read %s: %w", seg.path, err)
	}
	return nil
}

// frame visits the frame at off, which must be the next; ok is false if there is no valid one.
func (sc *scanned) frame(seg *segment, off, end int64, visit visitor) (next int64, ok bool, err error) {
	if off > end {
		return off, false, nil
	}
	h, records, ok := readFrame(sc.buf[off:end], frameSeed(seg.salt, seg.number, off))
	if !ok {
		return off, false, nil
	}
	if h.seq != sc.lastSeq+1 {
		return off, false, sc.corrupt(seg, off, fmt.Sprintf("gap in sequence numbers: the frame there has %d", h.seq))
	}
	if err := visit(seg, off, h, records); err != nil {
		if errors.Is(err, ErrMalformed) || errors.Is(err, errReplay) {
			return off, false, sc.corrupt(seg, off, err.Error())
		}
		return off, false, err
	}
	sc.lastSeq = h.seq
	sc.oldest = max(sc.oldest, h.oldest)
	sc.sealed = h.flags&flagSeal != 0
	return alignFrame(off + frameHeaderSize + int64(h.length)), true, nil
}

// scanFull reads a segment that has a successor, whose header says exactly where it ends: any other frame is corruption.
func (sc *scanned) scanFull(seg, successor *segment, visit visitor) error {
	end := int64(successor.prevEnd)
	off := int64(segmentStart)
	for off < end {
		next, ok, err := sc.frame(seg, off, end, visit)
		if err != nil {
			return err
		}
		if !ok {
			return sc.corrupt(seg, off, "no valid frame, but the next segment says that there is one")
		}
		off = next
	}
	if off != end || sc.lastSeq+1 != successor.firstSeq {
		return sc.corrupt(seg, off, fmt.Sprintf("the segment ends with sequence %d, but the next one says %d", sc.lastSeq, successor.firstSeq-1))
	}
	return nil
}

// scanNewest reads the newest segment up to its last valid frame and judges what follows (rule Log3): one frame may be torn there,
// if it cannot have been synced.
func (sc *scanned) scanNewest(seg *segment, syncedHint uint64, visit visitor) error {
	off := int64(segmentStart)
	for {
		next, ok, err := sc.frame(seg, off, int64(seg.size), visit)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		sc.last, sc.lastAt = sc.buf[off:min(next, int64(seg.size))], off
		off = next
	}
	sc.tail = min(off, int64(seg.size))
	if sc.lastSeq < syncedHint {
		return sc.corrupt(seg, off, fmt.Sprintf("no valid frame, but frames up to sequence %d have been synced", syncedHint))
	}
	if at, seq, found := sc.later(seg, off); found {
		// One write is in flight at a time (rule Log2), so the frame behind proves that this one was synced.
		return sc.corrupt(seg, off, fmt.Sprintf("no valid frame, but a later one (sequence %d) is valid at offset %d", seq, at))
	}
	return nil
}

// later looks for a valid frame of this life behind off.
func (sc *scanned) later(seg *segment, off int64) (at int64, seq uint64, found bool) {
	for at = off + frameAlign; at+frameHeaderSize <= int64(seg.size); at += frameAlign {
		h, ok := peekFrame(sc.buf[at:])
		// Frames of earlier lives have lower sequences: most are told apart without their checksum.
		if !ok || h.seq <= sc.lastSeq || h.seq > sc.lastSeq+uint64(at-off) {
			continue
		}
		if _, _, ok := readFrame(sc.buf[at:], frameSeed(seg.salt, seg.number, at)); ok {
			return at, h.seq, true
		}
	}
	return 0, 0, false
}

func (sc *scanned) corrupt(seg *segment, off int64, reason string) error {
	return &CorruptError{File: seg.name(), Offset: off, Sequence: sc.lastSeq + 1, Shards: sc.shardsAt(off), Reason: reason}
}

// shardsAt names the shards in the broken frame at off, as far as its records can be read.
func (sc *scanned) shardsAt(off int64) []engine.ShardID {
	if off+frameHeaderSize >= int64(len(sc.buf)) {
		return nil
	}
	b := sc.buf[off+frameHeaderSize:]
	if h, ok := peekFrame(sc.buf[off:]); ok && h.seq == sc.lastSeq+1 {
		b = b[:h.length]
	}
	var shards []engine.ShardID
	var rec record
	for r := (recordReader{b: b}); len(shards) < 100; {
		// The record that cannot be read counts too, if it begins like one.
		ok := r.next(&rec)
		if rec.kind >= recAppend && rec.kind <= recRewrite && rec.key != (Key{}) && !slices.Contains(shards, rec.key.Shard) {
			shards = append(shards, rec.key.Shard)
		}
		if !ok {
			break
		}
	}
	return shards
}
