package door

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBoundSocket: what the kernel holds for a client that does not read, and of one that is not read, is bounded, though it would hold more.
func TestBoundSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	BoundSocket(server)
	if got := option(t, server, unix.SOL_SOCKET, unix.SO_RCVBUF); got < SocketInMax || got > 2*SocketInMax {
		t.Errorf("the kernel may hold %d bytes that were not read", got)
	}
	if got := option(t, server, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT); got != SocketUnsentMax {
		t.Errorf("the kernel may hold %d bytes that were not sent", got)
	}
	// The client's side has as much room as it has by default; what it has not taken is here.
	fill(t, server)
	if got, most := option(t, server, unix.SOL_SOCKET, unix.SO_RCVBUF), 2*SocketInMax; got > most {
		t.Errorf("the buffer has grown to %d", got)
	}
	unsent := 0
	control(t, server, func(fd int) { unsent, err = unix.IoctlGetInt(fd, unix.SIOCOUTQNSD) })
	if err != nil || unsent > 2*SocketUnsentMax {
		t.Errorf("the kernel holds %d bytes unsent, %v", unsent, err)
	}
}

// fill writes until there is no room, for now: a write that has waited this long would wait for ever, as nobody reads.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	b := make([]byte, 1<<20)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		if _, err := c.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func option(t *testing.T, c net.Conn, level, name int) (n int) {
	t.Helper()
	var err error
	control(t, c, func(fd int) { n, err = unix.GetsockoptInt(fd, level, name) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func control(t *testing.T, c net.Conn, f func(fd int)) {
	t.Helper()
	rc, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(fd uintptr) { f(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}
