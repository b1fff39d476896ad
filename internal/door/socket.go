package door

import "net"

const (
	// SocketInMax is what the kernel may hold of what a client has sent and the node has not read. Linux doubles it for what it needs itself.
	SocketInMax = 256 << 10
	// SocketUnsentMax is what the kernel may hold of what the node has written and the client's side has no room for.
	SocketUnsentMax = 256 << 10
)

// BoundSocket bounds what the kernel holds for a client. By itself it lets each socket have megabytes, and all of them together what makes it
// drop what others send, those of other processes included.
func BoundSocket(nc net.Conn) {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tc.SetReadBuffer(SocketInMax)
	BoundUnsent(tc, SocketUnsentMax)
}

// BoundUnsent bounds what waits unsent in a socket, where nothing can overtake it. It is without effect but on Linux.
func BoundUnsent(tc *net.TCPConn, n int) {
	if rc, err := tc.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { limitUnsent(fd, n) })
	}
}
