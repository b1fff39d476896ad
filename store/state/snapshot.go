package state

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/s2"
)

// A snapshot is a stream of bytes cut into chunks anywhere: the length of the record and the record (AppendRecord), then the
// items in key order, then, in a chunk of its own kind, what they add up to.
//
//	chunk: kind 1 | sequence 4 | raw length 4 | CRC32C 4 over all else | s2 block
//	item:  uvarint key length + 1 | key | uvarint version | varint expiry | uvarint value length | value
//	end:   items 8 | bytes 8 | checksum 8
//
// Numbers are little-endian.
const (
	chunkData = 1
	chunkEnd  = 2

	chunkHeader   = 13
	chunkRawBytes = 128 << 10 // of a chunk, before compression
	endBytes      = 24
)

// What a receiver accepts, to keep a broken stream from asking for memory.
const (
	streamRecordMax = 64 << 20
	streamValueMax  = 64 << 20
)

// ChunkBytesMax bounds the length of a chunk.
const ChunkBytesMax = chunkHeader + chunkRawBytes + chunkRawBytes/6 + 64

// Snapshot reads a replica's content as a stream of chunks: the state at the record's applied entry plus what the frozen
// overlays hold. Each Next that needs data takes one short transaction. It is used by one goroutine at a time.
//
// While it is open the replica is not checkpointed (rule State3); if it is, Next fails with ErrMoved. A Snapshot holds
// nothing that must be closed; the frozen overlays are the caller's to release.
type Snapshot struct {
	walk *walker
	sum  *summer
	raw  []byte // of the stream, not sent yet, from at on
	at   int
	more bool // the walk goes on
	sent bool // the end was sent
	seq  uint32
	pack []byte
}

// OpenSnapshot starts reading a snapshot of the replica: rec as in the store, and its frozen overlays, newest first. The
// receiver is told cut: the record as it would be if the overlays had been checkpointed, so its Applied is that of the cut.
func (db *DB) OpenSnapshot(rec, cut Record, frozen ...*Overlay) *Snapshot {
	return SnapshotOf(db, rec, cut, frozen...)
}

// SnapshotOf is OpenSnapshot over any Store.
func SnapshotOf(s Store, rec, cut Record, frozen ...*Overlay) *Snapshot {
	sn := &Snapshot{walk: newWalker(s, &rec, frozen), sum: newSummer(), more: true}
	r := AppendRecord(nil, &cut)
	sn.raw = append(binary.AppendUvarint(nil, uint64(len(r))), r...)
	return sn
}

// Next appends the next chunk to buf. It returns io.EOF behind the last one, and ErrMoved if the replica was checkpointed,
// changed or removed: then the snapshot is abandoned.
func (s *Snapshot) Next(buf []byte) ([]byte, error) {
	if s.sent {
		return buf, io.EOF
	}
	for len(s.raw)-s.at < chunkRawBytes && s.more {
		if err := s.fill(); err != nil {
			return buf, err
		}
	}
	rest := s.raw[s.at:]
	if len(rest) == 0 {
		s.sent = true
		return s.chunk(buf, chunkEnd, appendEnd(nil, s.sum.sum())), nil
	}
	n := min(len(rest), chunkRawBytes)
	s.at += n
	return s.chunk(buf, chunkData, rest[:n]), nil
}

// Content returns what was read so far; after the last chunk, all of it.
func (s *Snapshot) Content() Content { return s.sum.sum() }

func (s *Snapshot) fill() error {
	s.raw = append(s.raw[:0], s.raw[s.at:]...)
	s.at = 0
	items, more, err := s.walk.step()
	if err != nil {
		return err
	}
	s.more = more
	for i := range items {
		s.sum.add(items[i].Key, items[i].Item)
		s.raw = appendStreamItem(s.raw, items[i])
	}
	return nil
}

// NextItems appends the next items to buf (AppendKV), those of one transaction; io.EOF behind the last one. It is another way to read the
// content than Next: a snapshot is read in one of them. It fails as Next does.
func (s *Snapshot) NextItems(buf []byte) ([]byte, error) {
	if !s.more {
		return buf, io.EOF
	}
	items, more, err := s.walk.step()
	if err != nil {
		return buf, err
	}
	s.more = more
	for i := range items {
		s.sum.add(items[i].Key, items[i].Item)
		buf = appendStreamItem(buf, items[i])
	}
	return buf, nil
}

// AppendKV appends an item as the streams of snapshots and the files of backups have it:
// uvarint key length + 1, key, uvarint version, varint expiry, uvarint value length, value.
func AppendKV(b []byte, kv KV) []byte { return appendStreamItem(b, kv) }

// ReadKV reads what AppendKV wrote from the front of b, and returns how long it was. Key and value alias b.
func ReadKV(b []byte) (kv KV, n int, err error) {
	bad := func(what string) (KV, int, error) { return KV{}, 0, fmt.Errorf("malformed item: %s", what) }
	size, k := binary.Uvarint(b)
	if k <= 0 || size == 0 || size-1 > uint64(len(b)-k) {
		return bad("key")
	}
	n = k
	kv.Key = b[n : n+int(size-1)]
	n += int(size - 1)
	if kv.Version, k = binary.Uvarint(b[n:]); k <= 0 {
		return bad("version")
	}
	n += k
	if kv.Expire, k = binary.Varint(b[n:]); k <= 0 {
		return bad("expiry")
	}
	n += k
	if size, k = binary.Uvarint(b[n:]); k <= 0 || size > uint64(len(b)-n-k) {
		return bad("value")
	}
	n += k
	kv.Value = b[n : n+int(size)]
	return kv, n + int(size), nil
}

// Summer adds up the Content of items that are given in order, as Store.Checksum does. The zero value is not ready: NewSummer.
type Summer struct{ s *summer }

// NewSummer returns a Summer of nothing.
func NewSummer() Summer { return Summer{newSummer()} }

// Add adds an item.
func (s Summer) Add(kv KV) { s.s.add(kv.Key, kv.Item) }

// Content returns what was added.
func (s Summer) Content() Content { return s.s.sum() }

func appendStreamItem(b []byte, kv KV) []byte {
	b = binary.AppendUvarint(b, uint64(len(kv.Key))+1)
	b = append(b, kv.Key...)
	b = binary.AppendUvarint(b, kv.Version)
	b = binary.AppendVarint(b, kv.Expire)
	b = binary.AppendUvarint(b, uint64(len(kv.Value)))
	return append(b, kv.Value...)
}

func appendEnd(b []byte, c Content) []byte {
	b = binary.LittleEndian.AppendUint64(b, c.Items)
	b = binary.LittleEndian.AppendUint64(b, c.Bytes)
	return binary.LittleEndian.AppendUint64(b, c.Checksum)
}

func (s *Snapshot) chunk(buf []byte, kind byte, raw []byte) []byte {
	if n := s2.MaxEncodedLen(len(raw)); cap(s.pack) < n {
		s.pack = make([]byte, n)
	}
	packed := s2.Encode(s.pack[:cap(s.pack)], raw)
	at := len(buf)
	buf = append(buf, kind)
	buf = binary.LittleEndian.AppendUint32(buf, s.seq)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(raw)))
	buf = append(buf, 0, 0, 0, 0)
	buf = append(buf, packed...)
	binary.LittleEndian.PutUint32(buf[at+9:], chunkSum(buf[at:]))
	s.seq++
	return buf
}

func chunkSum(b []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, b[:9]), castagnoli, b[chunkHeader:])
}

// openChunk checks a chunk and returns what is in it, in memory of its own or in dst.
func openChunk(dst, b []byte) (kind byte, seq uint32, raw []byte, err error) {
	if len(b) < chunkHeader || len(b) > ChunkBytesMax {
		return 0, 0, nil, fmt.Errorf("%w: length %d", ErrBadChunk, len(b))
	}
	if binary.LittleEndian.Uint32(b[9:]) != chunkSum(b) {
		return 0, 0, nil, fmt.Errorf("%w: checksum mismatch", ErrBadChunk)
	}
	n := binary.LittleEndian.Uint32(b[5:])
	if m, err := s2.DecodedLen(b[chunkHeader:]); err != nil || uint32(m) != n || n > chunkRawBytes {
		return 0, 0, nil, fmt.Errorf("%w: raw length %d", ErrBadChunk, n)
	}
	raw, err = s2.Decode(dst[:cap(dst)], b[chunkHeader:])
	if err != nil {
		return 0, 0, nil, fmt.Errorf("%w: %w", ErrBadChunk, err)
	}
	return b[0], binary.LittleEndian.Uint32(b[1:]), raw, nil
}
