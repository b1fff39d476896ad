package sysfail

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var numbers = map[Call]uint32{Fsync: unix.SYS_FSYNC, Fdatasync: unix.SYS_FDATASYNC, Fallocate: unix.SYS_FALLOCATE, OpenWrite: unix.SYS_OPENAT}

// Do calls f on a goroutine of its own, whose calls of these kinds fail with errno, and waits for it. Those of goroutines that f starts do not. An
// ErrUnsupported means that f was not called.
func Do(errno syscall.Errno, f func(), calls ...Call) error {
	filter := program(errno, calls)
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which can not lose its filter, ends with the goroutine.
		runtime.LockOSThread()
		var err error
		defer func() { done <- err }() // also if f ends the goroutine
		if err = install(filter); err == nil {
			f()
		}
	}()
	return <-done
}

// program is the filter. Of an open the flags decide.
func program(errno syscall.Errno, calls []Call) []unix.SockFilter {
	const offNumber, offFlags = 0, 32
	var plain []uint32
	opens := 0
	for _, c := range calls {
		if c == OpenWrite {
			opens = 3
			continue
		}
		plain = append(plain, numbers[c])
	}
	allow := 1 + len(plain) + opens // the instruction that lets a call pass; the next one has it fail
	p := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offNumber}}
	for _, n := range plain {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: n, Jt: uint8(allow - len(p))})
	}
	if opens > 0 {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: numbers[OpenWrite], Jf: 2},
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offFlags},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT, Jt: 1})
	}
	return append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
}

// install gives the calling thread the filter.
func install(filter []unix.SockFilter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("%w: prctl: %w", ErrUnsupported, err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return fmt.Errorf("%w: seccomp: %w", ErrUnsupported, e)
	}
	return nil
}
