//go:build linux

package vfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kiloraft/kiloraft/internal/sysfail"
)

// inPageCache counts the pages of the file that the system keeps in memory.
func inPageCache(t *testing.T, f *os.File, size int) int {
	t.Helper()
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	pages := make([]byte, size/os.Getpagesize())
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(size), uintptr(unsafe.Pointer(&pages[0]))); e != 0 {
		t.Fatal(e)
	}
	n := 0
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}

// open opens name with flag, or makes it.
func open(t *testing.T, name string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flag|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// writesPast tells whether the file system of dir writes past the page cache, and whether it refuses memory that does not begin where a block may. Some
// take such writes and keep the pages, as tmpfs and those that have checksums do.
func writesPast(t *testing.T, dir string) (past, refuses bool) {
	t.Helper()
	f := open(t, filepath.Join(dir, "probe"), os.O_RDWR)
	defer func() { _ = f.Close() }()
	p, err := os.OpenFile(f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return false, false
	}
	defer func() { _ = p.Close() }()
	piece := pieces.Get().(*[]byte)
	defer pieces.Put(piece)
	if _, err := p.WriteAt((*piece)[:BlockSize], 0); err != nil {
		return false, errors.Is(err, unix.EINVAL)
	}
	_, err = p.WriteAt((*piece)[1:][:BlockSize], 0)
	return inPageCache(t, f, BlockSize) == 0, errors.Is(err, unix.EINVAL)
}

// TestAppendPastPageCache: what Allocate and Append write stays in memory only where the file system wants it, and is the same there.
func TestAppendPastPageCache(t *testing.T) {
	const size = 1 << 20
	p := bytes.Repeat([]byte("kilo"), 50_000)
	for _, kind := range []string{"as it is", "refused", "blocks of another kind"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			past, refuses := writesPast(t, dir)
			file, err := OS().Create(filepath.Join(dir, "f"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = file.Close() }()
			f := file.(*osFile)
			switch kind {
			case "refused":
				past = false
				piece := pieces.Get().(*[]byte)
				var werr error
				if err := sysfail.Do(unix.EINVAL, func() { werr = f.writeBlocks((*piece)[:BlockSize], 0) }, sysfail.OpenWrite); errors.Is(err, sysfail.ErrUnsupported) {
					t.Skip(err)
				} else if err != nil || werr != nil || f.past != nil || !f.cached {
					t.Fatal(err, werr, f.past, f.cached)
				}
				pieces.Put(piece)
			case "blocks of another kind": // so for the system: memory that does not begin where a block may
				if !refuses {
					t.Skip("this file system takes any memory")
				}
				direct, err := openPast(f.File)
				if err != nil {
					t.Fatal(err)
				}
				f.past, past = direct, false
				if err := f.writeBlocks(make([]byte, BlockSize+1)[1:], 0); err != nil {
					t.Fatal(err)
				}
				if err := direct.Close(); f.past != nil || !f.cached || !errors.Is(err, os.ErrClosed) {
					t.Errorf("%v, %v: it is not left for good: %v", f.past, f.cached, err)
				}
			}
			if err := f.Allocate(size); err != nil {
				t.Fatal(err)
			}
			for off := range int64(3) {
				if n, err := f.Append(p, 100+off*int64(len(p))); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := f.Datasync(); err != nil {
				t.Fatal(err)
			}
			if n := inPageCache(t, f.File, size); past && n != 0 {
				t.Errorf("%d pages are in memory", n)
			} else if !past && kind == "as it is" {
				t.Log("this file system does not write past the page cache")
			}
			want := make([]byte, size)
			copy(want[100:], bytes.Repeat(p, 3))
			if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("what was appended is not there: %v", err)
			}
		})
	}
}

// TestAppendFails: a write that fails is not tried another way, for nothing is known any more about what is on the disk; that the file system wants
// other blocks is the one exception.
func TestAppendFails(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	for what, f := range map[string]*osFile{
		"past the page cache":    {File: open(t, name, os.O_RDWR), past: open(t, name, os.O_RDONLY)},
		"through the page cache": {File: open(t, name, os.O_RDONLY), cached: true},
	} {
		cached := f.cached
		if n, err := f.Append(make([]byte, 2*pieceBytes), 0); n != 0 || !errors.Is(err, unix.EBADF) || f.cached != cached {
			t.Errorf("%s: %d were appended, %v", what, n, err)
		}
		if err := f.Allocate(2 * pieceBytes); !errors.Is(err, unix.EBADF) {
			t.Errorf("%s: allocated, %v", what, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestAppendReadsNothing: the log's writer does not wait for a read of what it has written itself.
func TestAppendReadsNothing(t *testing.T) {
	f := &osFile{File: open(t, filepath.Join(t.TempDir(), "f"), os.O_WRONLY)}
	off := int64(0)
	for _, n := range []int{10, 5000, pieceBytes, 3 * BlockSize, 70, 2*pieceBytes + 7, 1} {
		if _, err := f.Append(make([]byte, n), off); err != nil {
			t.Fatalf("%d at %d: %v", n, off, err)
		}
		off += int64(n)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCloseClosesAll: a file keeps no descriptor.
func TestCloseClosesAll(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f := &osFile{File: open(t, name, os.O_RDWR), past: open(t, name, os.O_RDWR)}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for what, file := range map[string]*os.File{"file": f.File, "past": f.past} {
		if err := file.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: was not closed: %v", what, err)
		}
	}
}
