package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ingestBytes is about what one transaction of an ingest writes.
const ingestBytes = 1 << 20

// Ingest fills a fresh tablet from the chunks of a snapshot, in bounded transactions. Nothing names the tablet until a Write
// links it (rule Log7: the link is the commit); one that is not linked when the process ends is removed at the next start. It
// is used by one goroutine at a time.
type Ingest struct {
	db     *DB
	tablet TabletID
	sum    *summer
	next   uint32 // sequence of the next chunk

	raw    []byte // decompressed, not parsed yet
	unpack []byte
	items  []KV // parsed, not written yet; they alias raw
	parsed int  // bytes of raw that items came from

	record    Record
	hasRecord bool
	last      []byte // greatest key so far
	any       bool
	info      *unlinked
	ended     bool // the end marker came and agreed
	err       error
}

// NewIngest makes the tablet.
func (db *DB) NewIngest(tablet TabletID) (*Ingest, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.load(); err != nil { // else the tablet would be taken for one that a crash left
		return nil, err
	}
	err := db.update(need{keys: 2}, func(tx kvTx) error {
		if _, ok := tx.tablet(tablet); ok || tablet == 0 {
			return fmt.Errorf("%w: tablet %d exists", ErrExtents, tablet)
		}
		_, err := tx.createTablet(tablet)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("new ingest: %w", err)
	}
	in := &Ingest{db: db, tablet: tablet, sum: newSummer(), info: &unlinked{}}
	db.unlinked[tablet] = in.info
	return in, nil
}

// Tablet returns the id of the tablet that is filled.
func (in *Ingest) Tablet() TabletID { return in.tablet }

// NextSeq returns how many chunks were taken: a sender that starts over may skip them if its stream is the same, and if it
// does not skip them they are ignored.
func (in *Ingest) NextSeq() uint32 { return in.next }

// Record returns the snapshot's record, without extents, once enough chunks were taken.
func (in *Ingest) Record() (Record, bool) { return in.record, in.hasRecord }

// Chunk takes the next chunk; one that was taken before is ignored. An error is final: Abort follows.
func (in *Ingest) Chunk(b []byte) error {
	if in.err == nil {
		in.err = in.chunk(b)
	}
	if in.err != nil {
		return fmt.Errorf("ingest into tablet %d: %w", in.tablet, in.err)
	}
	return nil
}

func (in *Ingest) chunk(b []byte) error {
	kind, seq, raw, err := openChunk(in.unpack, b)
	if err != nil {
		return err
	}
	in.unpack = raw
	if seq < in.next {
		return nil
	}
	if seq > in.next || in.ended {
		return fmt.Errorf("%w: sequence %d, expected %d", ErrBadChunk, seq, in.next)
	}
	in.next++
	switch kind {
	case chunkData:
		in.raw = append(in.raw, raw...)
		if err := in.parse(); err != nil {
			return err
		}
		if in.parsed >= ingestBytes {
			return in.flush()
		}
		return nil
	case chunkEnd:
		return in.finish(raw)
	}
	return fmt.Errorf("%w: kind %d", ErrBadChunk, kind)
}

// errShort says that the rest of an item has not come yet.
var errShort = errors.New("short")

// parse takes whole items out of raw.
func (in *Ingest) parse() error {
	for {
		var n int
		var err error
		if in.hasRecord {
			n, err = in.parseItem(in.raw[in.parsed:])
		} else {
			n, err = in.parseRecord(in.raw[in.parsed:])
		}
		if errors.Is(err, errShort) {
			return nil
		}
		if err != nil {
			return err
		}
		in.parsed += n
	}
}

func uvarint(b []byte, limit uint64) (v uint64, n int, err error) {
	v, n = binary.Uvarint(b)
	switch {
	case n == 0:
		return 0, 0, errShort
	case n < 0 || v > limit:
		return 0, 0, fmt.Errorf("%w: number out of bounds", ErrBadChunk)
	}
	return v, n, nil
}

func (in *Ingest) parseRecord(b []byte) (int, error) {
	size, n, err := uvarint(b, streamRecordMax)
	if err != nil {
		return 0, err
	}
	if uint64(len(b)-n) < size {
		return 0, errShort
	}
	end := n + int(size)
	if in.record, err = ReadRecord(b[n:end]); err != nil {
		return 0, fmt.Errorf("%w: record: %w", ErrBadChunk, err)
	}
	in.hasRecord = true
	return end, nil
}

func (in *Ingest) parseItem(b []byte) (int, error) {
	keyLen, at, err := uvarint(b, KeyBytesMax+1)
	if err != nil {
		return 0, err
	}
	if keyLen < 2 {
		return 0, fmt.Errorf("%w: empty key", ErrBadChunk)
	}
	keyLen--
	if uint64(len(b)-at) < keyLen {
		return 0, errShort
	}
	var kv KV
	kv.Key = b[at : at+int(keyLen)]
	at += int(keyLen)
	version, n, err := uvarint(b[at:], 1<<64-1)
	if err != nil {
		return 0, err
	}
	at += n
	expire, n := binary.Varint(b[at:])
	if n == 0 {
		return 0, errShort
	}
	if n < 0 {
		return 0, fmt.Errorf("%w: expiry", ErrBadChunk)
	}
	at += n
	size, n, err := uvarint(b[at:], streamValueMax)
	if err != nil {
		return 0, err
	}
	at += n
	if uint64(len(b)-at) < size {
		return 0, errShort
	}
	kv.Version, kv.Expire, kv.Value = version, expire, b[at:at+int(size)]
	return at + int(size), in.add(kv)
}

func (in *Ingest) add(kv KV) error {
	if in.any && bytes.Compare(kv.Key, in.last) <= 0 {
		return fmt.Errorf("%w: key %q after %q", ErrBadChunk, kv.Key, in.last)
	}
	in.last = append(in.last[:0], kv.Key...)
	if !in.any {
		in.info.first = bytes.Clone(kv.Key)
	}
	in.any = true
	in.sum.add(kv.Key, kv.Item)
	in.items = append(in.items, kv)
	return nil
}

// flush writes what was parsed in one transaction.
func (in *Ingest) flush() error {
	if len(in.items) > 0 {
		n := need{keys: len(in.items), bytes: in.parsed + len(in.items)*itemOverhead, dense: true}
		in.db.mu.Lock()
		err := in.db.update(n, in.write)
		in.db.mu.Unlock()
		if err != nil {
			return err
		}
		clear(in.items)
		in.items = in.items[:0]
	}
	in.raw = append(in.raw[:0], in.raw[in.parsed:]...)
	in.parsed = 0
	return nil
}

func (in *Ingest) write(tx kvTx) error {
	b, ok := tx.tablet(in.tablet)
	if !ok {
		return fmt.Errorf("%w: tablet %d is gone", ErrExtents, in.tablet)
	}
	if bb, ok := b.(boltBucket); ok {
		bb.FillPercent = 0.9 // keys come in order
	}
	for i := range in.items {
		kv := &in.items[i]
		v := in.db.items.append(in.db.buf.take(itemOverhead+len(kv.Value)), in.tablet, kv.Key, kv.Item)
		if err := b.Put(kv.Key, v); err != nil {
			return err
		}
	}
	return nil
}

func (in *Ingest) finish(raw []byte) error {
	if !in.hasRecord || in.parsed != len(in.raw) {
		return fmt.Errorf("%w: the stream ends within an item", ErrBadChunk)
	}
	if want := appendEnd(nil, in.sum.sum()); len(raw) != endBytes || !bytes.Equal(raw, want) {
		return fmt.Errorf("%w: content does not match the checksum of the stream", ErrBadChunk)
	}
	if err := in.flush(); err != nil {
		return err
	}
	in.ended = true
	return nil
}

// Finish checks that the whole stream was taken. The tablet may then be linked: a Write of a record whose extents name it.
func (in *Ingest) Finish() (Content, error) {
	if in.err != nil {
		return Content{}, fmt.Errorf("ingest into tablet %d: %w", in.tablet, in.err)
	}
	if !in.ended {
		return Content{}, fmt.Errorf("ingest into tablet %d: %w: no end", in.tablet, ErrBadChunk)
	}
	in.db.mu.Lock()
	defer in.db.mu.Unlock()
	in.info.finished, in.info.any = true, in.any
	in.info.last = bytes.Clone(in.last)
	return in.sum.sum(), nil
}

// Abort removes the tablet, unless it was linked; if there is no space for that, CollectGarbage does it later. It may be called at
// any time, again too.
func (in *Ingest) Abort() error {
	if in.err == nil {
		in.err = errors.New("aborted")
	}
	in.db.mu.Lock()
	defer in.db.mu.Unlock()
	if in.db.unlinked[in.tablet] != in.info {
		return nil
	}
	delete(in.db.unlinked, in.tablet)
	in.db.dead = append(in.db.dead, in.tablet)
	if err := in.db.removeDead(); err != nil && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("abort ingest into tablet %d: %w", in.tablet, err)
	}
	return nil
}
