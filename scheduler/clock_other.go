//go:build !linux

package scheduler

import "golang.org/x/sys/unix"

// bootClock goes on while the machine is suspended: on darwin CLOCK_MONOTONIC does.
const bootClock = unix.CLOCK_MONOTONIC
