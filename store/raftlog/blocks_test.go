package raftlog_test

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// blockFS sees how a log writes its files.
type blockFS struct {
	vfs.FS
	t        *testing.T
	appended int
}

type blockFile struct {
	vfs.File
	fs *blockFS
}

func (b *blockFS) Create(name string) (vfs.File, error) {
	f, err := b.FS.Create(name)
	return blockFile{f, b}, err
}

func (f blockFile) WriteAt(p []byte, off int64) (int, error) {
	if off != 0 || len(p) > vfs.SectorSize {
		f.fs.t.Errorf("%d bytes at %d are not appended", len(p), off)
	}
	return f.File.WriteAt(p, off)
}

func (f blockFile) Append(p []byte, off int64) (int, error) {
	f.fs.appended++
	before, _ := f.Size()
	n, err := f.File.Append(p, off)
	if after, _ := f.Size(); after != before {
		f.fs.t.Errorf("%d bytes appended at %d make a file of %d bytes one of %d", len(p), off, before, after)
	}
	return n, err
}

func (f blockFile) Allocate(size int64) error {
	if size%vfs.BlockSize != 0 {
		f.fs.t.Errorf("%d bytes are allocated", size)
	}
	return f.File.Allocate(size)
}

// TestWritesBlocks: frames are appended, so that they can go past the page cache, and segments of whatever size was asked for, or is needed, are whole
// blocks, so that nothing that is appended makes a file longer, which would be a change of metadata in a sync.
func TestWritesBlocks(t *testing.T) {
	fs := &blockFS{FS: vfs.NewMem(), t: t}
	l, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes - 1001})
	if err != nil {
		t.Fatal(err)
	}
	k := raftlog.Key{Shard: 5, Replica: 1}
	appendEntries(t, l, k, 9, segmentBytes/4)
	appendEntries(t, l, raftlog.Key{Shard: 6, Replica: 1}, 1, segmentBytes+1) // needs a segment of its own
	if err := l.Lane(0).Rewrite(k, nil); !errors.Is(err, raftlog.ErrNoSpace) {
		t.Fatalf("it is rewritten before there is room for it: %v", err)
	}
	if err := l.Maintain(); err != nil { // which makes it
		t.Fatal(err)
	}
	if err := l.Lane(0).Rewrite(k, nil); err != nil {
		t.Fatal(err)
	}
	flushLane(t, l, l.Lane(0))
	for size := range 300 { // to the end of some segments
		submitVote(l, size)
		flushLane(t, l, l.Lane(0))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if want := 9 + 1 + 1 + 300 + 1; fs.appended != want {
		t.Errorf("%d frames were appended, not %d", fs.appended, want)
	}
}
