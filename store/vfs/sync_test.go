package vfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiloraft/kiloraft/internal/sysfail"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// TestSyncsReachTheSystem: what promises to make something durable asks the operating system to, and passes on what that says (FAULTS D1, D5).
func TestSyncsReachTheSystem(t *testing.T) {
	fs, dir := vfs.OS(), t.TempDir()
	f := create(t, fs, filepath.Join(dir, "f"), "x")
	big := create(t, fs, filepath.Join(dir, "big"), "")
	for what, do := range map[string]func() error{"a sync": f.Datasync, "an allocation": func() error { return big.Allocate(5 << 20) }} {
		var err error
		if sysfail.Test(t, unix.EIO, func() { err = do() }, sysfail.Fdatasync); !errors.Is(err, unix.EIO) {
			t.Errorf("%s on a disk that fails: %v", what, err)
		}
	}
	for _, name := range []string{".", "new", "new/below", "a/b/c"} {
		var err error
		if sysfail.Test(t, unix.EIO, func() { err = fs.MkdirAll(filepath.Join(dir, name)) }, sysfail.Fsync); !errors.Is(err, unix.EIO) {
			t.Errorf("directory %s on a disk that fails: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "a", "b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made in one that is not durable: %v", err)
	}
	var err error
	if sysfail.Test(t, unix.EIO, func() { err = fs.SyncDir(dir) }, sysfail.Fsync); !errors.Is(err, unix.EIO) {
		t.Errorf("sync of a directory on a disk that fails: %v", err)
	}
	must(t, fs.MkdirAll(filepath.Join(dir, "a", "b", "c")))
	must(t, f.Close())
	must(t, big.Close())
}

// TestAllocateReserves: a full disk is found before anything was written.
func TestAllocateReserves(t *testing.T) {
	f := create(t, vfs.OS(), filepath.Join(t.TempDir(), "f"), "")
	var err error
	sysfail.Test(t, unix.ENOSPC, func() { err = f.Allocate(1 << 20) }, sysfail.Fallocate)
	if n, serr := f.Size(); !errors.Is(err, unix.ENOSPC) || n != 0 || serr != nil {
		t.Errorf("%v, and the file has %d bytes, %v", err, n, serr)
	}
	must(t, f.Close())
}

// TestAllocateWithoutReservation: a file system, or a system, that can not reserve gets its zeros all the same.
func TestAllocateWithoutReservation(t *testing.T) {
	const size = 1 << 20
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.ENOSYS} {
		fs, path := vfs.OS(), filepath.Join(t.TempDir(), "f")
		f := create(t, fs, path, "x")
		var err error
		if sysfail.Test(t, errno, func() { err = f.Allocate(size) }, sysfail.Fallocate); err != nil {
			t.Error(err)
		} else if content(t, fs, path) != string(make([]byte, size)) {
			t.Errorf("%v: the file is not %d zeros", errno, size)
		}
		must(t, f.Close())
	}
}
