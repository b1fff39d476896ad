//go:build linux

package vfs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
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

// TestAppendPastPageCache: what Allocate and Append write stays in memory only where the file system wants it, and is the same there.
func TestAppendPastPageCache(t *testing.T) {
	const size = 1 << 20
	p := bytes.Repeat([]byte("kilo"), 50_000)
	for _, kind := range []string{"as it is", "refused", "blocks of another kind"} {
		t.Run(kind, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "f")
			file, err := OS().Create(name)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = file.Close() }()
			f := file.(*osFile)
			switch kind {
			case "refused":
				f.cached = true
			case "blocks of another kind": // so for the system: memory that does not begin where a block may
				if err := f.writeBlocks(make([]byte, BlockSize+1)[1:], 0); err != nil {
					t.Fatal(err)
				}
				if !f.cached {
					t.Skip("this file system takes any memory")
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
			if f.past != nil {
				if n := inPageCache(t, f.File, size); n != 0 {
					t.Errorf("%d pages are in memory", n)
				}
			} else if kind == "as it is" {
				t.Log("this file system has no writes past the page cache")
			}
			want := make([]byte, size)
			copy(want[100:], bytes.Repeat(p, 3))
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("what was appended is not there: %v", err)
			}
		})
	}
}
