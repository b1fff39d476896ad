//go:build !linux

package state

import (
	"errors"
	"math"
	"os"
	"syscall"
)

// allocate makes the file size bytes long. Blocks are not reserved on this platform.
func allocate(f *os.File, _, size int64) error { return f.Truncate(size) }

func freeBytes(*os.File) (int64, error) { return math.MaxInt64 / 2, nil }

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
