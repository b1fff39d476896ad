package node_test

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
)

// virtualClock is the clock of a bubble.
type virtualClock struct{ base time.Time }

func (c virtualClock) Now() engine.Instant { return engine.Instant(time.Since(c.base)) + 1 }
func (c virtualClock) Wall() int64         { return time.Now().UnixMilli() }

// virtualNet is a network in memory, for nodes in a bubble. Nothing in it waits with a mutex held, so that the time of the bubble goes on.
type virtualNet struct {
	latency time.Duration

	mu    sync.Mutex
	at    map[string]*virtualListener // by address
	fault map[[2]string]string        // from one address to another: "cut" or "lost"
	conns map[*virtualConn]bool       // those that dialled
	sent  int                         // writes
}

func newVirtualNet(latency time.Duration) *virtualNet {
	return &virtualNet{latency: latency, at: map[string]*virtualListener{}, fault: map[[2]string]string{}, conns: map[*virtualConn]bool{}}
}

// plug makes a node use the network, under the address that it has, and the clock of the bubble.
func (n *virtualNet) plug(cfg *node.Config) {
	addr := cfg.Listener.Addr()
	_ = cfg.Listener.Close() // it has kept the address free; nobody accepts from a socket in a bubble
	l := &virtualListener{net: n, addr: addr, in: make(chan *virtualConn), done: make(chan struct{})}
	n.mu.Lock()
	n.at[addr.String()] = l
	n.mu.Unlock()
	cfg.Listener, cfg.HTTP = l, ""
	node.SetClock(cfg, virtualClock{time.Now()})
	node.SetDial(cfg, func(ctx context.Context, to string) (net.Conn, error) { return n.dial(ctx, addr, to) })
}

func (n *virtualNet) dial(ctx context.Context, from net.Addr, to string) (net.Conn, error) {
	n.mu.Lock()
	l, how := n.at[to], n.fault[[2]string{from.String(), to}]
	n.mu.Unlock()
	if l == nil || how == "cut" {
		return nil, syscall.ECONNREFUSED
	}
	there, back := newPipe(), newPipe()
	a := &virtualConn{net: n, rx: back, tx: there, local: from, remote: l.addr}
	b := &virtualConn{net: n, rx: there, tx: back, local: l.addr, remote: from}
	select {
	case l.in <- b:
	case <-l.done:
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	n.conns[a] = true
	n.mu.Unlock()
	return a, nil
}

// hurt sets what happens to bytes between two nodes, both ways. "cut" ends the connections that there are; "lost" swallows what is sent.
func (n *virtualNet) hurt(a, b, how string) {
	n.mu.Lock()
	n.fault[[2]string{a, b}], n.fault[[2]string{b, a}] = how, how
	n.mu.Unlock()
	if how == "cut" {
		n.reset()
	}
}

// heal ends all faults, and the connections, which may have holes.
func (n *virtualNet) heal() {
	n.mu.Lock()
	clear(n.fault)
	n.mu.Unlock()
	n.reset()
}

func (n *virtualNet) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		c.rx.end(syscall.ECONNRESET)
		c.tx.end(syscall.ECONNRESET)
		delete(n.conns, c)
	}
}

// writes returns how many there were since the last call.
func (n *virtualNet) writes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.sent
	n.sent = 0
	return k
}

type virtualListener struct {
	net  *virtualNet
	addr net.Addr
	in   chan *virtualConn
	done chan struct{}
	once sync.Once
}

func (l *virtualListener) Addr() net.Addr { return l.addr }

func (l *virtualListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.in:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *virtualListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// pipe is one direction of a connection.
type pipe struct {
	mu       sync.Mutex
	chunks   []chunk
	size     int
	err      error         // of reads behind the chunks, and of writes
	changed  chan struct{} // closed and replaced by whoever changes something
	read     time.Time     // deadlines
	write    time.Time
	bytesMax int
}

type chunk struct {
	due time.Time
	b   []byte
}

func newPipe() *pipe { return &pipe{changed: make(chan struct{}), bytesMax: 1 << 20} }

// change must be called with mu held.
func (p *pipe) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// end makes reads and writes fail; what was written before an EOF is still read.
func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != io.EOF {
		p.chunks, p.size, p.err = nil, 0, err
	} else if p.err == nil {
		p.err = err
	}
	p.change()
}

// await waits until something changes or a moment comes; zero moments are never.
func await(changed <-chan struct{}, moments ...time.Time) {
	var first time.Time
	for _, m := range moments {
		if !m.IsZero() && (first.IsZero() || m.Before(first)) {
			first = m
		}
	}
	if first.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(first))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

func past(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func (p *pipe) take(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var due time.Time
		switch {
		case past(p.read):
			return 0, os.ErrDeadlineExceeded
		case len(p.chunks) > 0 && past(p.chunks[0].due):
			k := copy(b, p.chunks[0].b)
			p.chunks[0].b = p.chunks[0].b[k:]
			if len(p.chunks[0].b) == 0 {
				p.chunks = p.chunks[1:]
			}
			p.size -= k
			p.change()
			return k, nil
		case len(p.chunks) > 0:
			due = p.chunks[0].due
		case p.err != nil:
			return 0, p.err
		}
		changed, deadline := p.changed, p.read
		p.mu.Unlock()
		await(changed, due, deadline)
		p.mu.Lock()
	}
}

func (p *pipe) put(b []byte, latency time.Duration) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.err != nil:
			return 0, syscall.EPIPE
		case past(p.write):
			return 0, os.ErrDeadlineExceeded
		case p.size < p.bytesMax:
			p.chunks = append(p.chunks, chunk{time.Now().Add(latency), append([]byte(nil), b...)})
			p.size += len(b)
			p.change()
			return len(b), nil
		}
		changed, deadline := p.changed, p.write
		p.mu.Unlock()
		await(changed, deadline)
		p.mu.Lock()
	}
}

func (p *pipe) deadline(at *time.Time, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*at = t
	p.change()
}

// virtualConn is one end of a connection.
type virtualConn struct {
	net           *virtualNet
	rx, tx        *pipe
	local, remote net.Addr
}

func (c *virtualConn) Read(b []byte) (int, error) { return c.rx.take(b) }

func (c *virtualConn) Write(b []byte) (int, error) {
	c.net.mu.Lock()
	c.net.sent++
	how := c.net.fault[[2]string{c.local.String(), c.remote.String()}]
	c.net.mu.Unlock()
	if how == "lost" {
		return len(b), nil
	}
	return c.tx.put(b, c.net.latency)
}

func (c *virtualConn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	c.tx.end(io.EOF)
	c.rx.end(net.ErrClosed)
	return nil
}

func (c *virtualConn) LocalAddr() net.Addr  { return c.local }
func (c *virtualConn) RemoteAddr() net.Addr { return c.remote }
func (c *virtualConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}
func (c *virtualConn) SetReadDeadline(t time.Time) error  { c.rx.deadline(&c.rx.read, t); return nil }
func (c *virtualConn) SetWriteDeadline(t time.Time) error { c.tx.deadline(&c.tx.write, t); return nil }
