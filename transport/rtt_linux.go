package transport

import (
	"time"

	"golang.org/x/sys/unix"
)

// smoothedRTT asks the kernel for what TCP has measured.
func smoothedRTT(fd uintptr) time.Duration {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return time.Duration(info.Rtt) * time.Microsecond
}
