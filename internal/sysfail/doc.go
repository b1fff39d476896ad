// Package sysfail makes system calls fail, for tests of what happens when the operating system says no: a sync that fails tells that it is made at
// all, and what is made of it. It does so with a seccomp filter, on Linux only, without privileges, and for one thread only.
//
// It is used by tests, and imports the standard library and golang.org/x/sys only.
package sysfail

import "errors"

// Call is a kind of system call.
type Call int

// The calls that can be made to fail.
const (
	Fsync     Call = iota + 1 // os.File.Sync
	Fdatasync                 // the sync of the raft log, and of bbolt
	Fallocate                 // the reservation of space
	OpenWrite                 // an open for writing
)

// ErrUnsupported means that this system does not let a process do that to itself: a test skips.
var ErrUnsupported = errors.New("this system does not let system calls fail on purpose")
