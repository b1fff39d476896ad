package state

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kiloraft/kiloraft/internal/sysfail"
)

// failing calls f while calls fail with EIO.
func failing(t *testing.T, f func(), calls ...sysfail.Call) {
	t.Helper()
	sysfail.Test(t, syscall.EIO, f, calls...)
}

// TestCommitIsSynced: a write that was not synced, or whose file could not grow, has failed, and is the last one (rule State6, FAULTS D1, D7).
func TestCommitIsSynced(t *testing.T) {
	for _, c := range []struct {
		what   string
		values int
		fails  sysfail.Call
	}{
		{"the commit is not synced", 10, sysfail.Fdatasync},
		{"the new size of the file is not synced", 10_000, sysfail.Fsync},
		{"the file does not grow", 10_000, sysfail.Fallocate},
	} {
		db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{GrowBytes: 8 << 20})
		r := wholeRecord(1, 2, 1)
		check(t, db.Write([]Change{{Record: r, NewTablet: true}}, 0))
		r.Applied.Index++
		var err error
		failing(t, func() {
			err = db.Write([]Change{{Record: r, Overlay: numbered(0, c.values, 1000)}}, 0)
		}, c.fails)
		if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", c.what, err)
		}
		if err := db.NodePut("a", nil); !errors.Is(err, ErrFailed) {
			t.Errorf("%s, and the next write: %v", c.what, err)
		}
	}
}

// TestNoSpaceOfTheSystem: that there is no room for the file to grow, by the disk, a quota, or a limit of the size of files, refuses the write, and no more: it may be tried
// again (rule State6, FAULTS D8).
func TestNoSpaceOfTheSystem(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{GrowBytes: 8 << 20})
		r := wholeRecord(1, 2, 1)
		check(t, db.Write([]Change{{Record: r, NewTablet: true}}, 0))
		r.Applied.Index++
		write := func() error { return db.Write([]Change{{Record: r, Overlay: numbered(0, 10_000, 1000)}}, 0) }
		var err error
		sysfail.Test(t, errno, func() { err = write() }, sysfail.Fallocate)
		if !errors.Is(err, ErrNoSpace) || !errors.Is(err, errno) || errors.Is(err, ErrFailed) {
			t.Errorf("%v: %v", errno, err)
		}
		if err := db.NodePut("a", nil); err != nil {
			t.Errorf("%v, and a small write that needs no room: %v", errno, err)
		}
		if err := write(); err != nil {
			t.Errorf("%v, and the same write when there is room: %v", errno, err)
		}
	}
}

// TestOpenSyncsTheDirectory: the file may have been made by a process that was killed before its name was durable (FAULTS D5).
func TestOpenSyncsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	check(t, openTest(t, path, Options{}).Close())
	var err error
	failing(t, func() { _, err = Open(path, Options{}) }, sysfail.Fsync)
	var pe *fs.PathError
	if !errors.As(err, &pe) || pe.Path != dir {
		t.Errorf("the directory can not be synced, and Open says %v", err)
	}
}
