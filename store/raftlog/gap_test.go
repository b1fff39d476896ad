package raftlog

import (
	"errors"
	"strings"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// forge gives the frames of a segment other sequences, and its header another first one, all with valid checksums.
func forge(t *testing.T, mem *vfs.Mem, name string, firstSeq func(uint64) uint64, seq func(uint64) uint64) {
	t.Helper()
	err := mem.Corrupt(name, func(b []byte) {
		h, err := readSegmentHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		h.firstSeq = firstSeq(h.firstSeq)
		h.append(b[:0])
		for off := int64(segmentStart); ; {
			f, ok := peekFrame(b[off:])
			if !ok {
				return
			}
			f.seq = seq(f.seq)
			f.put(b[off:], frameSeed(h.salt, h.number, off))
			off = alignFrame(off + frameHeaderSize + int64(f.length))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSequenceGap: frames whose checksums are right but whose sequences leave one out are no log (rule Log5), within a segment and between two.
func TestSequenceGap(t *testing.T) {
	fresh := func(empty bool) *vfs.Mem {
		mem := vfs.NewMem()
		for range 2 { // each life begins a segment
			l, _, err := Open(mem, "log", Options{SegmentBytes: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			a := l.Lane(0)
			for range 3 {
				a.SaveVote(Key{Shard: 7, Replica: 1}, engine.Vote{Term: l.seq + 1})
				a.Submit()
				if _, err := l.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if empty {
			if _, _, err := Open(mem, "log", Options{SegmentBytes: 1 << 20}); err != nil {
				t.Fatal(err)
			}
		}
		return mem
	}
	same := func(v uint64) uint64 { return v }
	next := func(v uint64) uint64 { return v + 1 }
	behind := func(n uint64) func(uint64) uint64 {
		return func(v uint64) uint64 {
			if v > n {
				return v + 1
			}
			return v
		}
	}
	for _, c := range []struct {
		name            string
		file            string
		firstSeq, frame func(uint64) uint64
		empty           bool // there is a third segment, without a frame
		refused         bool
	}{
		{"no gap", "log/0000000002.seg", same, same, false, false},
		{"no gap, and a segment without a frame", "log/0000000003.seg", same, same, true, false},
		{"within the newest segment", "log/0000000002.seg", same, behind(5), false, true},
		{"within the oldest segment", "log/0000000001.seg", same, behind(1), false, true},
		{"before the frames of a segment", "log/0000000002.seg", same, next, false, true},
		{"between two segments", "log/0000000002.seg", next, next, false, true},
		{"before a segment without a frame", "log/0000000003.seg", next, next, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := fresh(c.empty)
			forge(t, mem, c.file, c.firstSeq, c.frame)
			_, verr := Verify(mem, "log", 0)
			_, rec, err := Open(mem, "log", Options{SegmentBytes: 1 << 20})
			if !c.refused {
				if err != nil || verr != nil || rec.LastSequence != 6 || rec.Replicas[Key{Shard: 7, Replica: 1}].Vote.Term != 6 {
					t.Fatalf("recovered %+v, %v, %v", rec, err, verr)
				}
				return
			}
			for _, err := range []error{err, verr} {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "sequence") {
					t.Errorf("not refused: %v", err)
				}
			}
		})
	}
}

// TestEachLifeHasItsSalt: a segment that had no frame yet is used again by the next start, and gets a salt of its own: what a torn write of the life before
// has left in it counts for nothing (rule Log2).
func TestEachLifeHasItsSalt(t *testing.T) {
	mem, seen := vfs.NewMem(), map[uint64]bool{}
	for range 3 {
		l, _, err := Open(mem, "log", Options{SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		var onDisk segmentHeader
		if err := mem.Corrupt("log/0000000001.seg", func(b []byte) { onDisk, err = readSegmentHeader(b) }); err != nil {
			t.Fatal(err)
		}
		salt := l.last().salt
		if err != nil || onDisk.salt != salt || seen[salt] || l.last().number != 1 {
			t.Errorf("segment %d has salt %x, on the disk %x, %v", l.last().number, salt, onDisk.salt, err)
		}
		seen[salt] = true
	}
}
