//go:build !linux

package vfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// reserve is not to be had in the same form; Allocate goes on without it.
func reserve(*os.File, int64) error { return unix.EOPNOTSUPP }

// datasync is a full sync: on darwin Go's Sync asks the drive to empty its cache (F_FULLFSYNC), as fsync alone does not.
func datasync(f *os.File) error { return f.Sync() }

// openPast is not to be had in the same form; writes go through the page cache.
func openPast(*os.File) (*os.File, error) { return nil, unix.EOPNOTSUPP }
