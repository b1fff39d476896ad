package raftlog_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// frameAt is where a frame lies, and which shard is in it.
type frameAt struct {
	file     string
	off, end int64
	seq      uint64
	shard    engine.ShardID
}

// oneFrame appends an entry of its own shard and flushes it.
func oneFrame(t testing.TB, l *raftlog.Log, shard engine.ShardID, payload []byte) {
	t.Helper()
	a := l.Lane(0)
	k := raftlog.Key{Shard: shard, Replica: 1}
	a.Init(k, engine.Vote{Term: 1}, engine.LogID{Term: 1, Index: 1})
	a.Append(k, raftlog.Run{Term: 1, First: 2, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, payload)})
	a.Submit()
	done, err := l.Flush()
	if err != nil {
		t.Fatal(err)
	}
	a.Flushed(done[0])
}

// frames lists the frames of the log by Dump. Their ends are where the next one begins.
func frames(t testing.TB, fs vfs.FS) []frameAt {
	t.Helper()
	var out []frameAt
	err := raftlog.Dump(fs, "log", func(r *raftlog.Record) error {
		if n := len(out); n == 0 || out[n-1].seq != r.Sequence {
			if n > 0 && out[n-1].file == r.File {
				out[n-1].end = r.Offset
			}
			out = append(out, frameAt{file: r.File, off: r.Offset, seq: r.Sequence, shard: r.Key.Shard})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range out {
		if out[i].end == 0 {
			out[i].end = out[i].off + 32
		}
	}
	return out
}

// scripted makes a log with shards 1, 2, … one frame each, and closes it (with a seal) or lets the process die.
func scripted(t testing.TB, shards int, seal bool) *vfs.Mem {
	t.Helper()
	mem := vfs.NewMem()
	l, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	for i := range shards {
		oneFrame(t, l, engine.ShardID(i+1), []byte("payload of the entry"))
	}
	if seal {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return mem
}

func reopen(mem *vfs.Mem, hint uint64) (*raftlog.Recovery, error) {
	_, verr := raftlog.Verify(mem, "log", hint)
	_, rec, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes, SyncedHint: hint})
	if (verr == nil) != (err == nil) {
		return nil, fmt.Errorf("Verify says %v, Open says %v", verr, err)
	}
	return rec, err
}

func flip(t testing.TB, mem *vfs.Mem, file string, off int64) {
	t.Helper()
	if err := mem.Corrupt(filepath.Join("log", file), func(b []byte) { b[off] ^= 0x10 }); err != nil {
		t.Fatal(err)
	}
}

// clone returns an independent copy of the disk with all of it durable.
func clone(mem *vfs.Mem) *vfs.Mem {
	return mem.Crash(rand.New(rand.NewPCG(0, 0)), vfs.CrashPolicy{KeepWrite: 2, KeepDir: 2})
}

func expectRefusal(t *testing.T, err error, file string, off int64, shard engine.ShardID) {
	t.Helper()
	var c *raftlog.CorruptError
	if !errors.Is(err, raftlog.ErrCorrupt) || !errors.As(err, &c) {
		t.Fatalf("not refused: %v", err)
	}
	if c.File != file || c.Offset != off || shard != 0 && !slices.Contains(c.Shards, shard) {
		t.Fatalf("refused for %s at %d shards %v instead of %s at %d shard %d: %v", c.File, c.Offset, c.Shards, file, off, shard, err)
	}
}

// TestFlipEveryByte flips every byte of every frame of a small log. With a seal behind, all of them must be refused by name of
// file, offset and, if the records can be read, shard; without one, the last frame may be cut, and only it.
func TestFlipEveryByte(t *testing.T) {
	for _, mode := range []string{"sealed", "hinted", "bare"} {
		mem := scripted(t, 4, mode == "sealed")
		list := frames(t, mem)
		hint := uint64(0)
		if mode == "hinted" {
			hint = 4
		}
		last := list[3]
		last.end = last.off + (list[2].end - list[2].off)
		list = append(list[:3], last)
		for i, f := range list {
			for off := f.off; off < f.end; off++ {
				disk := clone(mem)
				inert := false
				if err := disk.Corrupt(filepath.Join("log", f.file), func(b []byte) {
					length := int64(b[f.off+4]) | int64(b[f.off+5])<<8
					inert = off >= f.off+32+length // padding
					b[off] ^= 0x10
				}); err != nil {
					t.Fatal(err)
				}
				rec, err := reopen(disk, hint)
				switch {
				case inert:
					if err != nil || len(rec.Replicas) != 4 {
						t.Fatalf("%s: flip of padding at %d: %v", mode, off, err)
					}
				case i == 3 && mode == "bare":
					if err != nil || len(rec.Replicas) != 3 || rec.LastSequence != 3 {
						t.Fatalf("flip at %d of the unsealed last frame: %v", off, err)
					}
				default:
					shard := f.shard
					if off < f.off+36 { // lengths and the key itself
						shard = 0
					}
					expectRefusal(t, err, f.file, f.off, shard)
				}
			}
		}
	}
}

func TestFlipSeal(t *testing.T) {
	mem := scripted(t, 3, true)
	list := frames(t, mem)
	seal := list[len(list)-1]
	for off := seal.off; off < seal.off+32; off++ {
		disk := clone(mem)
		flip(t, disk, seal.file, off)
		rec, err := reopen(disk, 0)
		if err != nil || len(rec.Replicas) != 3 {
			t.Fatalf("flip of the seal at %d: %v", off, err)
		}
		if _, err := reopen(disk, seal.seq); err == nil {
			// The log went on behind the cut, with new frames only; the hint now names a frame that is gone.
			t.Fatalf("a seal that is known to have been synced is missing, and nobody minds")
		}
	}
}

// longer makes a log of several segments, by several lives.
func longer(t testing.TB) *vfs.Mem {
	t.Helper()
	mem := vfs.NewMem()
	for life := range 4 {
		l, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes})
		if err != nil {
			t.Fatal(err)
		}
		oneFrame(t, l, engine.ShardID(10*life+1), []byte("one"))
		oneFrame(t, l, engine.ShardID(10*life+2), []byte("two"))
	}
	return mem
}

func TestCorruptSegments(t *testing.T) {
	mem := longer(t)
	t.Run("header", func(t *testing.T) {
		for _, file := range []string{"0000000001.seg", "0000000002.seg", "0000000004.seg"} {
			for off := range int64(68) {
				disk := clone(mem)
				flip(t, disk, file, off)
				_, err := reopen(disk, 0)
				expectRefusal(t, err, file, 0, 0)
			}
		}
	})
	t.Run("last frame of an older segment", func(t *testing.T) {
		f := frames(t, mem)[1]
		disk := clone(mem)
		flip(t, disk, f.file, f.off+40)
		_, err := reopen(disk, 0)
		expectRefusal(t, err, f.file, f.off, 0)
	})
	t.Run("zeroed page", func(t *testing.T) {
		f := frames(t, mem)[2]
		disk := clone(mem)
		if err := disk.Corrupt(filepath.Join("log", f.file), func(b []byte) { clear(b[4096:8192]) }); err != nil {
			t.Fatal(err)
		}
		_, err := reopen(disk, 0)
		expectRefusal(t, err, f.file, 4096, 0)
	})
	for _, c := range []struct{ remove, blamed string }{
		{"0000000001.seg", "0000000001.seg"},
		{"0000000002.seg", "0000000003.seg"},
		{"0000000003.seg", "0000000004.seg"},
	} {
		t.Run("missing "+c.remove, func(t *testing.T) {
			disk := clone(mem)
			if err := disk.Remove("log/" + c.remove); err != nil {
				t.Fatal(err)
			}
			_, err := reopen(disk, 0)
			expectRefusal(t, err, c.blamed, 0, 0)
		})
	}
	t.Run("missing newest", func(t *testing.T) {
		disk := clone(mem)
		if err := disk.Remove("log/0000000004.seg"); err != nil {
			t.Fatal(err)
		}
		if _, err := reopen(disk, 8); !errors.Is(err, raftlog.ErrCorrupt) {
			t.Fatalf("not refused: %v", err)
		}
	})
	t.Run("all gone", func(t *testing.T) {
		disk := vfs.NewMem()
		if err := disk.MkdirAll("log"); err != nil {
			t.Fatal(err)
		}
		if _, err := reopen(disk, 1); !errors.Is(err, raftlog.ErrCorrupt) {
			t.Fatalf("not refused: %v", err)
		}
	})
}

// TestBitRotUnderColdRead: a body that rots after the start is noticed by its own checksum.
func TestBitRotUnderColdRead(t *testing.T) {
	mem := vfs.NewMem()
	l, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes, CacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	oneFrame(t, l, 1, []byte("payload that rots"))
	c, err := l.Lane(0).Locate(raftlog.Key{Shard: 1, Replica: 1}, 2, 2, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	if err := mem.Corrupt("log/0000000001.seg", func(b []byte) { b[bytes.Index(b, []byte("that"))] ^= 1 }); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(); !errors.Is(err, raftlog.ErrCorrupt) {
		t.Fatalf("rot was not noticed: %v", err)
	}
}

// TestValueHoldsFrames: a value holds a frame that would be the next valid one, were it elsewhere. Behind a torn frame it must not
// be taken for proof that the torn one was synced (rule Log2).
func TestValueHoldsFrames(t *testing.T) {
	mem := vfs.NewMem()
	l, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	oneFrame(t, l, 1, []byte("one"))
	before := clone(mem)
	oneFrame(t, l, 2, []byte("two"))
	oneFrame(t, l, 3, []byte("three"))
	var stolen []byte
	list := frames(t, mem)
	if err := mem.Corrupt("log/0000000001.seg", func(b []byte) { stolen = append(stolen, b[list[1].off:list[2].end]...) }); err != nil {
		t.Fatal(err)
	}
	// Back in time: the same segment gets a torn frame 2 whose value holds the frames 2 and 3 at all alignments.
	if err := before.Corrupt("log/0000000001.seg", func(b []byte) {
		for i := range 8 {
			copy(b[int(list[1].off)+40+i*512+i:], stolen)
		}
	}); err != nil {
		t.Fatal(err)
	}
	rec, err := reopen(before, 0)
	if err != nil || len(rec.Replicas) != 1 {
		t.Fatalf("recovered %v, %v", rec, err)
	}
	// At its true place the same frame is proof.
	if err := before.Corrupt("log/0000000001.seg", func(b []byte) { copy(b[list[1].off:], stolen) }); err != nil {
		t.Fatal(err)
	}
	if rec, err = reopen(before, 0); err != nil || len(rec.Replicas) != 1 {
		t.Fatalf("what lies behind a cut counts again: %v, %v", rec, err)
	}
}

// TestStaleFrames: the newest segment is a recycled one, full of valid frames of its earlier life behind the end.
func TestStaleFrames(t *testing.T) {
	mem := vfs.NewMem()
	l, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	a := l.Lane(0)
	shard := engine.ShardID(1)
	for l.Metrics().SegmentsFreed.Load() < 4 {
		oneFrame(t, l, shard, make([]byte, 300))
		a.Drop(raftlog.Key{Shard: shard, Replica: 1})
		if err := l.Maintain(); err != nil {
			t.Fatal(err)
		}
		shard++
	}
	want := l.Synced()
	_, active := l.Segments()
	stale := 0
	if err := mem.Corrupt(filepath.Join("log", fmt.Sprintf("%010d.seg", active)), func(b []byte) {
		stale = bytes.Count(b, []byte{0x9e, 0x6b, 0x6c, 0x6d})
	}); err != nil {
		t.Fatal(err)
	}
	if stale < 20 {
		t.Fatalf("the segment holds %d frames: nothing stale in it", stale)
	}
	rec, err := reopen(mem, want)
	if err != nil || rec.LastSequence != want {
		t.Fatalf("recovered up to %+v, %v, want %d", rec, err, want)
	}
}

// TestPhantomAndMisdirectedWrites: a frame that was synced and is not there (the disk lied, FAULTS D15), and one that lies where another one
// belongs (D14), are corruption, not an end of the log.
func TestPhantomAndMisdirectedWrites(t *testing.T) {
	phantomAndMisdirected(t, true, 0)  // only the frames behind tell
	phantomAndMisdirected(t, false, 4) // of the last frame only the hint tells
}

func phantomAndMisdirected(t *testing.T, sealed bool, hint uint64) {
	mem := scripted(t, 4, sealed)
	list := frames(t, mem)
	size := list[1].end - list[1].off
	for i, f := range list[:4] {
		spoil := func(what string, change func(b []byte)) {
			t.Helper()
			disk := clone(mem)
			if err := disk.Corrupt(filepath.Join("log", f.file), change); err != nil {
				t.Fatal(err)
			}
			if _, err := reopen(disk, hint); !errors.Is(err, raftlog.ErrCorrupt) {
				t.Errorf("sealed %v, hint %d: frame %d %s: %v", sealed, hint, i+1, what, err)
			}
		}
		spoil("never landed", func(b []byte) { clear(b[f.off : f.off+size]) })
		for j, o := range list[:4] {
			if i != j {
				spoil(fmt.Sprintf("is frame %d", j+1), func(b []byte) { copy(b[f.off:f.off+size], bytes.Clone(b[o.off:o.off+size])) })
			}
		}
	}
}
