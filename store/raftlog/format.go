package raftlog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// The byte layout is described in doc.go. All fixed-size integers are little-endian.
const (
	segmentMagic      = "KILOLOG1"
	segmentHeaderSize = 68
	// segmentStart is where the frames begin: the header has a page of its own.
	segmentStart = 4096

	frameMagic      = 0x6d6c6b9e
	frameHeaderSize = 32
	frameAlign      = 8
	// frameBytesMax bounds a frame, and with it the size of a segment.
	frameBytesMax = 1 << 30

	flagSeal = 1

	// runCRCSize is the checksum in front of each body.
	runCRCSize = 4
)

// The kinds of records. They are on disk: never renumber them.
const (
	recAppend        = 1
	recAppendSpecial = 2
	recVote          = 3
	recCommitted     = 4
	recTruncate      = 5
	recPurge         = 6
	recPurgeAll      = 7 // a purge that drops all entries, also those behind its index
	recInit          = 8
	recDrop          = 9
	recRewrite       = 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// alignBlock makes the size of a segment one that vfs.File.Append does not make larger.
func alignBlock(size int64) int64 { return (size + vfs.BlockSize - 1) &^ (vfs.BlockSize - 1) }

func alignFrame(off int64) int64 { return (off + frameAlign - 1) &^ (frameAlign - 1) }

// segmentHeader begins each life of a segment file. It fits into one sector, so it is there as a whole or not.
type segmentHeader struct {
	number   uint64
	salt     uint64
	firstSeq uint64 // of the first frame; the previous segment ends with firstSeq-1
	prev     uint64 // the segment before, 0 if this is the first ever
	prevEnd  uint64 // where the frames of prev end; what lies behind is ignored for ever (rule Log3)
	oldest   uint64 // the oldest segment that was needed when this life began
	size     uint64
}

func (h *segmentHeader) append(b []byte) []byte {
	start := len(b)
	b = append(b, segmentMagic...)
	for _, v := range []uint64{h.number, h.salt, h.firstSeq, h.prev, h.prevEnd, h.oldest, h.size} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func readSegmentHeader(b []byte) (segmentHeader, error) {
	if len(b) < segmentHeaderSize || string(b[:8]) != segmentMagic {
		return segmentHeader{}, fmt.Errorf("%w: no segment header", ErrMalformed)
	}
	if crc32.Checksum(b[:64], castagnoli) != binary.LittleEndian.Uint32(b[64:]) {
		return segmentHeader{}, fmt.Errorf("%w: segment header fails its checksum", ErrMalformed)
	}
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8+8*i:]) }
	h := segmentHeader{number: u(0), salt: u(1), firstSeq: u(2), prev: u(3), prevEnd: u(4), oldest: u(5), size: u(6)}
	if h.size < segmentStart || h.size > frameBytesMax+2*segmentStart || h.number == 0 || h.number > 1<<32-1 || h.firstSeq == 0 {
		return segmentHeader{}, fmt.Errorf("%w: segment header out of bounds", ErrMalformed)
	}
	return h, nil
}

// frameHeader stands before the records of a frame.
type frameHeader struct {
	length uint32 // of the records
	seq    uint64
	oldest uint64 // the oldest segment that is needed once this frame is durable (rule Log5)
	flags  uint32
}

// frameSeed ties a frame to its place in this life of its segment (rule Log2): neither a frame of an earlier life nor a copy of
// a frame within a value passes the check.
func frameSeed(salt, segment uint64, off int64) uint32 {
	return mix(mix(mix(0, salt), segment), uint64(off)).fold()
}

// seed mixes integers into the seed of a checksum, without a buffer that the checksum's assembly would move to the heap. It is part
// of the format.
type seed uint64

func mix(s seed, v uint64) seed {
	s = (s ^ seed(v)) * 0xff51afd7ed558ccd
	return s ^ s>>32
}

func (s seed) fold() uint32 {
	s *= 0xc4ceb9fe1a85ec53
	return uint32(s >> 32)
}

// put writes the header in front of the records in frame.
func (h *frameHeader) put(frame []byte, seed uint32) {
	binary.LittleEndian.PutUint32(frame[0:], frameMagic)
	binary.LittleEndian.PutUint32(frame[4:], h.length)
	binary.LittleEndian.PutUint64(frame[8:], h.seq)
	binary.LittleEndian.PutUint64(frame[16:], h.oldest)
	binary.LittleEndian.PutUint32(frame[24:], h.flags)
	crc := crc32.Update(seed, castagnoli, frame[:28])
	crc = crc32.Update(crc, castagnoli, frame[frameHeaderSize:frameHeaderSize+int(h.length)])
	binary.LittleEndian.PutUint32(frame[28:], crc)
}

// peekFrame reads a header without believing it; ok tells that it could be one that fits into b.
func peekFrame(b []byte) (h frameHeader, ok bool) {
	if len(b) < frameHeaderSize || binary.LittleEndian.Uint32(b) != frameMagic {
		return h, false
	}
	h = frameHeader{
		length: binary.LittleEndian.Uint32(b[4:]),
		seq:    binary.LittleEndian.Uint64(b[8:]),
		oldest: binary.LittleEndian.Uint64(b[16:]),
		flags:  binary.LittleEndian.Uint32(b[24:]),
	}
	return h, uint64(h.length) <= uint64(len(b)-frameHeaderSize)
}

// readFrame reads and checks the frame at the start of b.
func readFrame(b []byte, seed uint32) (h frameHeader, records []byte, ok bool) {
	h, ok = peekFrame(b)
	if !ok {
		return h, nil, false
	}
	records = b[frameHeaderSize : frameHeaderSize+int(h.length)]
	crc := crc32.Update(seed, castagnoli, b[:28])
	crc = crc32.Update(crc, castagnoli, records)
	return h, records, crc == binary.LittleEndian.Uint32(b[28:])
}

// runCRC is the checksum of one body, which lets a cold read check it without its frame. It is tied to the replica and the
// place in its log, so a misdirected read is noticed.
func runCRC(k Key, term, first uint64, body []byte) uint32 {
	s := mix(mix(mix(mix(1, uint64(k.Shard)), uint64(k.Replica)), term), first)
	return crc32.Update(s.fold(), castagnoli, body)
}

func appendKey(b []byte, kind byte, k Key) []byte {
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(k.Shard))
	return binary.AppendUvarint(b, uint64(k.Replica))
}

func appendLogID(b []byte, id engine.LogID) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, id.Term), id.Index)
}

func appendVote(b []byte, v engine.Vote) []byte {
	b = binary.AppendUvarint(b, v.Term)
	b = binary.AppendUvarint(b, uint64(v.Peer.Node))
	b = binary.AppendUvarint(b, uint64(v.Peer.Replica))
	if v.Committed {
		return append(b, 1)
	}
	return append(b, 0)
}

// appendRun appends a run without its kind and key; the body comes last.
func appendRun(b []byte, k Key, run Run) []byte {
	b = binary.AppendUvarint(b, run.Term)
	b = binary.AppendUvarint(b, run.First)
	b = binary.AppendUvarint(b, uint64(run.Count))
	b = binary.AppendUvarint(b, uint64(len(run.Body)))
	b = binary.LittleEndian.AppendUint32(b, runCRC(k, run.Term, run.First, run.Body))
	return append(b, run.Body...)
}

// record is a decoded record.
type record struct {
	kind      byte
	key       Key
	vote      engine.Vote
	id        engine.LogID // committed, purge, init
	committed engine.LogID // rewrite; id is then the purged one
	first     uint64       // truncate
	runs      []runPos     // append: one; rewrite: all. Reused by the next record
}

// runPos is a run and where its body lies, counted from the start of the records of its frame.
type runPos struct {
	term, first uint64
	count       uint32
	special     bool
	off, size   uint32
}

// recordReader decodes the records of a frame. Everything is checked: the checksum of the frame has been, but the decoder is
// also used to name the shards in a broken one.
type recordReader struct {
	b   []byte
	off int
	err error
}

func (r *recordReader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s at byte %d of %d", ErrMalformed, what, r.off, len(r.b))
		r.off = len(r.b)
	}
}

func (r *recordReader) uint() uint64 {
	v, n := binary.Uvarint(r.b[r.off:])
	if n <= 0 {
		r.fail("bad varint")
		return 0
	}
	r.off += n
	return v
}

func (r *recordReader) byte() byte {
	if r.off >= len(r.b) {
		r.fail("unexpected end")
		return 0
	}
	r.off++
	return r.b[r.off-1]
}

func (r *recordReader) logID() engine.LogID {
	term := r.uint()
	return engine.LogID{Term: term, Index: r.uint()}
}

func (r *recordReader) vote() engine.Vote {
	term, node, replica := r.uint(), r.uint(), r.uint()
	committed := r.byte()
	if committed > 1 {
		r.fail("bad vote")
	}
	return engine.Vote{
		Term:      term,
		Peer:      engine.Peer{Node: engine.NodeID(node), Replica: engine.ReplicaID(replica)},
		Committed: committed == 1,
	}
}

func (r *recordReader) run(special bool) runPos {
	p := runPos{term: r.uint(), first: r.uint(), special: special}
	count, size := r.uint(), r.uint()
	if r.err != nil || r.off+runCRCSize > len(r.b) || size > uint64(len(r.b)-r.off-runCRCSize) {
		r.fail("run past the end")
		return p
	}
	// An entry takes at least two bytes.
	if p.first == 0 || count == 0 || count > size/2 || p.first > 1<<63 {
		r.fail("impossible run")
		return p
	}
	p.count, p.size, p.off = uint32(count), uint32(size), uint32(r.off+runCRCSize)
	r.off += runCRCSize + int(size)
	return p
}

// next decodes one record into rec and tells whether there was one; at the end and after an error there is none.
func (r *recordReader) next(rec *record) bool {
	if r.err != nil || r.off >= len(r.b) {
		return false
	}
	*rec = record{kind: r.byte(), runs: rec.runs[:0]}
	shard := r.uint()
	rec.key = Key{Shard: engine.ShardID(shard), Replica: engine.ReplicaID(r.uint())}
	switch rec.kind {
	case recAppend, recAppendSpecial:
		rec.runs = append(rec.runs, r.run(rec.kind == recAppendSpecial))
	case recVote:
		rec.vote = r.vote()
	case recCommitted, recPurge, recPurgeAll:
		rec.id = r.logID()
	case recTruncate:
		rec.first = r.uint()
	case recInit:
		rec.vote, rec.id = r.vote(), r.logID()
	case recDrop:
	case recRewrite:
		r.rewrite(rec)
	default:
		r.fail(fmt.Sprintf("unknown record kind %d", rec.kind))
	}
	return r.err == nil
}

func (r *recordReader) rewrite(rec *record) {
	rec.vote, rec.committed, rec.id = r.vote(), r.logID(), r.logID()
	for n := r.uint(); n > 0 && r.err == nil; n-- {
		special := r.byte()
		if special > 1 {
			r.fail("bad run")
			return
		}
		rec.runs = append(rec.runs, r.run(special == 1))
	}
}
