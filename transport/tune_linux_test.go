package transport

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What waits unsent in a socket is bounded on both ends, for no heartbeat overtakes it there (rule Live6, FAULTS N11).
func TestUnsentIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	newConn(c, clock{time.Now()})
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	if cerr := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if got != unsentMax {
		t.Errorf("%d bytes may wait, want %d", got, unsentMax)
	}
}
