package vfs_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/kiloraft/kiloraft/store/vfs"
)

// TestAppend: what was appended is there, what was before it in its block still is, and what lies behind it in its block is zeros, on both file systems,
// whatever was written in between and however it was opened.
func TestAppend(t *testing.T) {
	const size = 4 << 20
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	noise := make([]byte, size)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for name, fs := range map[string]vfs.FS{"os": vfs.OS(), "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a")
			must(t, fs.MkdirAll(dir))
			path := filepath.Join(dir, "x")
			f := create(t, fs, path, "")
			must(t, f.Allocate(size))
			if _, err := f.WriteAt(noise, 0); err != nil { // of a life before
				t.Fatal(err)
			}
			want := bytes.Clone(noise)
			off := int64(0) // where the last one ends
			for step := 0; ; step++ {
				n := r.IntN(3 * vfs.BlockSize)
				if r.IntN(8) == 0 {
					n = r.IntN(1 << 20)
				}
				at := off + int64(r.IntN(9))
				switch r.IntN(8) {
				case 0:
					at = (at + 2*vfs.BlockSize) &^ (vfs.BlockSize - 1)
				case 1: // into a block that Append does not know
					at += vfs.BlockSize
				}
				p := noise[r.IntN(size-n):][:n]
				end := (at + int64(n) + vfs.BlockSize - 1) &^ (vfs.BlockSize - 1)
				if end > size {
					break
				}
				off = at
				switch r.IntN(8) {
				case 0: // behind the back of Append, in the block that it knows
					if start := off - off%vfs.BlockSize; start < off {
						_, err := f.WriteAt([]byte{7}, start)
						must(t, err)
						want[start] = 7
					}
				case 1:
					must(t, f.Close())
					var err error
					f, err = fs.Open(path)
					must(t, err)
				}
				if m, err := f.Append(p, off); m != n || err != nil {
					t.Fatalf("seed %d, step %d: append %d at %d: %d, %v", seed, step, n, off, m, err)
				}
				clear(want[off+int64(copy(want[off:], p)) : end])
				off += int64(n)
			}
			must(t, f.Datasync())
			got := []byte(content(t, fs, path))
			for i := range got {
				if got[i] != want[i] && i < int(off) {
					t.Fatalf("seed %d: byte %d of %d is %d, not %d", seed, i, off, got[i], want[i])
				}
			}
			if !bytes.Equal(got[off:], want[off:]) {
				t.Errorf("seed %d: behind %d is not what it was, with zeros to the end of the block", seed, off)
			}
			must(t, f.Close())
			if _, err := f.Append([]byte("x"), 0); err == nil {
				t.Error("appended to a closed file")
			}
		})
	}
}

// TestAppendKnowsItsBlock: what was done to the file since the Append before is seen by the next one in the same block.
func TestAppendKnowsItsBlock(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"os": vfs.OS(), "mem": vfs.NewMem()} {
		for _, c := range []struct {
			name string
			do   func(f vfs.File) error
			want string
		}{
			{"nothing", func(vfs.File) error { return nil }, "abcdXY"},
			{"write", func(f vfs.File) error { _, err := f.WriteAt([]byte("7"), 1); return err }, "a7cdXY"},
			{"truncate", func(f vfs.File) error { return errors.Join(f.Truncate(2), f.Truncate(vfs.BlockSize)) }, "ab\x00\x00XY"},
			{"allocate", func(f vfs.File) error { return f.Allocate(vfs.BlockSize) }, "\x00\x00\x00\x00XY"},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "a")
				must(t, fs.MkdirAll(dir))
				f := create(t, fs, filepath.Join(dir, "x"), "")
				for _, step := range []func() error{
					func() error { _, err := f.Append([]byte("abcdef"), 0); return err },
					func() error { return c.do(f) },
					func() error { _, err := f.Append([]byte("XY"), 4); return err },
				} {
					must(t, step())
				}
				if got := content(t, fs, filepath.Join(dir, "x")); got != c.want+string(make([]byte, vfs.BlockSize-len(c.want))) {
					t.Errorf("%d bytes that begin with %q, want %q", len(got), got[:8], c.want)
				}
				if n, err := f.Append([]byte("x"), 2*vfs.BlockSize+1); n != 0 || err == nil {
					t.Errorf("appended %d behind what is not there", n)
				}
				must(t, f.Close())
			})
		}
	}
}
