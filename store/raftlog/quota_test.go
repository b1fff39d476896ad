package raftlog_test

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// TestNoSpaceByQuota: a quota, or a limit of the size of files, is a full disk as well: it may be raised, and the log waits for that (FAULTS D8).
func TestNoSpaceByQuota(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EFBIG} {
		l, _, fail := faulty(t, vfs.OpAllocate, false)
		*fail = errno
		submitVote(l, segmentBytes/2)
		done, err := l.Flush()
		if err != nil {
			t.Fatal(err)
		}
		l.Lane(0).Flushed(done[0])
		if err := l.Maintain(); !errors.Is(err, raftlog.ErrNoSpace) || !errors.Is(err, errno) {
			t.Errorf("%v: no warning in time: %v", errno, err)
		}
		submitVote(l, segmentBytes/2)
		if done, err := l.Flush(); !errors.Is(err, raftlog.ErrNoSpace) || len(done) > 0 {
			t.Errorf("%v: flush without space: %v", errno, err)
		}
		*fail = nil
		if done, err := l.Flush(); err != nil || len(done) != 1 || l.Metrics().OutOfSpace.Load() {
			t.Errorf("%v: flush with space: %v", errno, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
