package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/internal/door"
)

// clock gives nanoseconds since a Transport began, on the monotonic clock, never zero.
type clock struct{ base time.Time }

func (c clock) now() int64 { return int64(time.Since(c.base)) + 1 }

// conn is the connection below a session. It counts, notes when something last came in, and puts the header and the body of a
// yamux frame, which yamux writes one after the other, into one write.
type conn struct {
	net.Conn          // the TLS connection, if there is one
	raw      net.Conn // closed to end everything at once, without waiting for TLS or yamux (yamux issue 149)
	clock    clock
	in, out  atomic.Uint64
	lastRead atomic.Int64

	// muxed is set before yamux begins. yamux has one goroutine that writes, so the rest needs no lock.
	muxed bool
	held  int // bytes of a yamux header at the start of buf, not yet written
	buf   []byte

	// failed, if set, is called when a read or a write has failed, before yamux is told.
	failed func()

	// arrived, if set, is told how many bytes of streams have come in, which frames finds. One goroutine of yamux reads.
	arrived func(n int)
	frames  muxReader
}

// muxReader follows the frames of yamux in a stream of bytes.
type muxReader struct {
	head [yamuxHeader]byte
	have int    // bytes of head
	left uint32 // of the body of a data frame
}

// bodies returns how many of the bytes that come next belong to streams.
func (m *muxReader) bodies(p []byte) (n int) {
	for len(p) > 0 {
		if m.left > 0 {
			k := min(len(p), int(m.left))
			n, p, m.left = n+k, p[k:], m.left-uint32(k)
			continue
		}
		k := copy(m.head[m.have:], p)
		p = p[k:]
		if m.have += k; m.have == yamuxHeader {
			if m.have = 0; m.head[1] == 0 { // data; the length of others is no length
				m.left = binary.BigEndian.Uint32(m.head[8:])
			}
		}
	}
	return n
}

const (
	yamuxHeader = 12
	// joinMax is the size up to which header and body are copied together; a larger body is worth a write of its own.
	joinMax = 64 << 10
)

func newConn(raw net.Conn, c clock) *conn {
	tune(raw)
	n := &conn{Conn: raw, raw: raw, clock: c}
	n.lastRead.Store(c.now())
	return n
}

// secure does the TLS handshake. A server is told by an empty name.
func (c *conn) secure(ctx context.Context, t TLS, server bool, addr string) error {
	if t == nil {
		return nil
	}
	var tc *tls.Conn
	if server {
		cfg := t.Server().Clone()
		cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS13)
		tc = tls.Server(c.raw, cfg)
	} else {
		cfg := t.Client().Clone()
		cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS13)
		if cfg.ServerName == "" {
			cfg.ServerName = addr
			if host, _, err := net.SplitHostPort(addr); err == nil {
				cfg.ServerName = host
			}
		}
		tc = tls.Client(c.raw, cfg)
	}
	if err := tc.HandshakeContext(ctx); err != nil {
		return err
	}
	c.Conn = tc
	return nil
}

func (c *conn) tlsState() *tls.ConnectionState {
	if tc, ok := c.Conn.(*tls.Conn); ok {
		st := tc.ConnectionState()
		return &st
	}
	return nil
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.in.Add(uint64(n))
		c.lastRead.Store(c.clock.now())
		if c.arrived != nil {
			c.arrived(c.frames.bodies(p[:n]))
		}
	}
	c.check(err)
	return n, err
}

func (c *conn) check(err error) {
	if err != nil && c.failed != nil {
		c.failed()
	}
}

func (c *conn) Write(p []byte) (int, error) {
	switch {
	case !c.muxed:
		return c.send(p)
	case c.held > 0:
		return c.join(p)
	case len(p) == yamuxHeader && p[1] == 0 && p[8]|p[9]|p[10]|p[11] != 0:
		// A data header with a length: its body is the next write.
		c.buf = append(c.buf[:0], p...)
		c.held = yamuxHeader
		return len(p), nil
	}
	return c.send(p)
}

func (c *conn) join(p []byte) (int, error) {
	head := c.buf[:c.held]
	c.held = 0
	if len(p) > joinMax {
		bufs := net.Buffers{head, p}
		n, err := bufs.WriteTo(c.Conn) // one system call on a TCP connection
		c.out.Add(uint64(n))
		c.check(err)
		return max(0, int(n)-yamuxHeader), err
	}
	c.buf = append(head, p...)
	n, err := c.send(c.buf)
	return max(0, n-yamuxHeader), err
}

func (c *conn) send(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(uint64(n))
	c.check(err)
	return n, err
}

// Close closes the raw connection: nothing that is still to be written is waited for.
func (c *conn) Close() error { return c.raw.Close() }

// tune bounds what waits unsent in the socket, where no heartbeat can overtake it (rule Live6), and lets the system notice
// clients that vanished.
func tune(nc net.Conn) {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4})
	door.BoundUnsent(tc, unsentMax)
}

// rtt returns how long a round trip takes, 0 if that is not known.
func rtt(nc net.Conn) (d time.Duration) {
	if tc, ok := nc.(*net.TCPConn); ok {
		if rc, err := tc.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) { d = smoothedRTT(fd) })
		}
	}
	return d
}

// unsentMax is how many bytes the socket may hold that were not sent yet.
const unsentMax = 256 << 10
