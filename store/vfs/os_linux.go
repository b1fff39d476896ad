package vfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func reserve(f *os.File, size int64) error { return unix.Fallocate(int(f.Fd()), 0, 0, size) }

func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// openPast opens f once more, whatever its name is now, for writes past the page cache. Some file systems, as tmpfs of older kernels, refuse it.
func openPast(f *os.File) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_DIRECT, 0)
}
