package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memNet is a network in memory: listeners by name, connections with buffers, which can be cut and paused.
type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	conns     []*memConn
	lag       func() time.Duration // if set, how late each of the first reads of a connection is
}

func newNet() *memNet { return &memNet{listeners: map[string]*memListener{}} }

type memListener struct {
	net  *memNet
	addr string
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

func (n *memNet) listen(addr string) *memListener {
	l := &memListener{net: n, addr: addr, ch: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	n.listeners[addr] = l
	n.mu.Unlock()
	return l
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *memListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memListener) Addr() net.Addr { return memAddr(l.addr) }

func (n *memNet) dial(ctx context.Context, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("nobody listens on %s", addr)
	}
	a, b := newPair(addr)
	n.mu.Lock()
	if n.lag != nil {
		for range 6 {
			a.lags, b.lags = append(a.lags, n.lag()), append(b.lags, n.lag())
		}
	}
	n.conns = append(n.conns, a, b)
	n.mu.Unlock()
	select {
	case l.ch <- b:
		return a, nil
	case <-l.done:
		return nil, errors.New("refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *memNet) each(f func(*memConn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		f(c)
	}
}

// pipe is one direction: bytes in flight, bounded like a socket buffer.
type pipe struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	closed bool
	paused bool // nothing is delivered: a cable that was pulled
	rd, wd time.Time
	flip   bool // the next write is damaged
	limit  int  // if not zero, so many bytes are delivered, and then it is paused
}

const pipeBytes = 256 << 10

func newPipe() *pipe {
	p := &pipe{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) set(f func()) {
	p.mu.Lock()
	f()
	p.cond.Broadcast()
	p.mu.Unlock()
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case past(p.rd):
			return 0, os.ErrDeadlineExceeded
		case len(p.buf) > 0 && !p.paused:
			n := copy(b, p.buf)
			if p.limit > 0 {
				n = min(n, p.limit)
				p.limit -= n
				p.paused = p.limit == 0
			}
			p.buf = p.buf[n:]
			p.cond.Broadcast()
			return n, nil
		case p.closed && !p.paused:
			return 0, io.EOF
		}
		p.cond.Wait()
	}
}

func (p *pipe) write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		switch {
		case p.closed:
			return n, io.ErrClosedPipe
		case past(p.wd):
			return n, os.ErrDeadlineExceeded
		case len(p.buf) >= pipeBytes:
			p.cond.Wait()
			continue
		}
		k := min(len(b), pipeBytes-len(p.buf))
		p.buf = append(p.buf, b[:k]...)
		if p.flip && k > 20 {
			p.buf[len(p.buf)-1] ^= 1
			p.flip = false
		}
		b, n = b[k:], n+k
		p.cond.Broadcast()
	}
	return n, nil
}

type memConn struct {
	in, out *pipe
	addr    memAddr
	gone    atomic.Bool
	lags    []time.Duration // of the next reads; only the reader touches it
}

func newPair(addr string) (*memConn, *memConn) {
	x, y := newPipe(), newPipe()
	return &memConn{in: x, out: y, addr: memAddr(addr)}, &memConn{in: y, out: x, addr: memAddr(addr)}
}

func (c *memConn) Read(b []byte) (int, error) {
	if c.gone.Load() {
		return 0, net.ErrClosed
	}
	if len(c.lags) > 0 {
		time.Sleep(c.lags[0])
		c.lags = c.lags[1:]
	}
	n, err := c.in.read(b)
	if c.gone.Load() {
		return 0, net.ErrClosed
	}
	return n, err
}
func (c *memConn) Write(b []byte) (int, error) {
	if c.gone.Load() {
		return 0, net.ErrClosed
	}
	return c.out.write(b)
}

func (c *memConn) Close() error {
	c.gone.Store(true)
	c.out.set(func() { c.out.closed = true })
	// Our own reader ends even if the cable is pulled.
	c.in.set(func() { c.in.closed = true; c.in.rd = time.Unix(1, 0) })
	return nil
}
func (c *memConn) LocalAddr() net.Addr  { return c.addr }
func (c *memConn) RemoteAddr() net.Addr { return c.addr }
func (c *memConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (p *pipe) later(t time.Time) {
	if !t.IsZero() {
		time.AfterFunc(time.Until(t)+time.Millisecond, p.cond.Broadcast)
	}
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	if !c.gone.Load() {
		c.in.set(func() { c.in.rd = t })
		c.in.later(t)
	}
	return nil
}

func (c *memConn) SetWriteDeadline(t time.Time) error {
	c.out.set(func() { c.out.wd = t })
	c.out.later(t)
	return nil
}

// pull pauses delivery in both directions, or goes on.
func (c *memConn) pull(on bool) {
	c.in.set(func() { c.in.paused = on })
	c.out.set(func() { c.out.paused = on })
}

// recorder is a Handler that keeps everything.
type recorder struct {
	mu          sync.Mutex
	raft, beats [][]byte
	up          map[engine.NodeID]int // PeerConnected minus PeerDisconnected
	connects    int
	bad         error

	onRequest  func(Request)
	onRaft     func([]byte)
	onSnapshot func([]byte, *SnapshotReader)
	changed    chan struct{}
}

func newRecorder() *recorder {
	return &recorder{up: map[engine.NodeID]int{}, changed: make(chan struct{}, 1)}
}

func (r *recorder) note(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *recorder) RaftFrame(n engine.NodeID, inc uint64, b []byte) {
	if r.onRaft != nil {
		r.onRaft(b)
	}
	r.note(func() {
		if r.up[n] != 1 {
			r.bad = fmt.Errorf("a frame of node %d, which is connected %d times", n, r.up[n])
		}
		r.raft = append(r.raft, b)
	})
}
func (r *recorder) Heartbeat(n engine.NodeID, inc uint64, b []byte) {
	r.note(func() { r.beats = append(r.beats, b) })
}
func (r *recorder) Request(q Request) {
	if r.onRequest != nil {
		r.onRequest(q)
		return
	}
	q.Reply(StatusOK, q.Body)
}
func (r *recorder) Snapshot(n engine.NodeID, inc uint64, h []byte, s *SnapshotReader) {
	if r.onSnapshot != nil {
		r.onSnapshot(h, s)
	}
}
func (r *recorder) PeerConnected(n engine.NodeID, inc uint64, addr string) {
	r.note(func() {
		r.connects++
		if r.up[n]++; r.up[n] != 1 {
			r.bad = fmt.Errorf("node %d connected %d times", n, r.up[n])
		}
	})
}
func (r *recorder) PeerDisconnected(n engine.NodeID, inc uint64) {
	r.note(func() { r.up[n]-- })
}

func (r *recorder) is(f func() bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f()
}

var cluster = ID{1, 2, 3}

// limits that make things happen soon.
func quick() Limits {
	return Limits{HandshakeTimeout: time.Minute, SilenceMax: 3 * time.Second, PingInterval: 50 * time.Millisecond,
		BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond, AttestMax: 200 * time.Millisecond}
}

type node struct {
	*Transport
	*recorder
	addr string
}

func (n *memNet) config(id engine.NodeID) Config {
	return Config{ClusterID: cluster, Node: id, Identity: ID{byte(id)}, Incarnations: []uint64{uint64(id) * 100}, AdvertiseAddr: fmt.Sprint("n", id),
		Dial: n.dial, Limits: quick(), Logger: slog.New(slog.DiscardHandler)}
}

func (n *memNet) start(t testing.TB, cfg Config, r *recorder) *node {
	t.Helper()
	tr, err := New(cfg, r)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	l := n.listen(cfg.AdvertiseAddr)
	go func() { done <- tr.Serve(l) }()
	t.Cleanup(func() {
		tr.Close()
		<-done
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.bad != nil {
			t.Error(r.bad)
		}
		for id, up := range r.up {
			if up != 0 {
				t.Errorf("node %d: connected %d times at the end", id, up)
			}
		}
	})
	return &node{Transport: tr, recorder: r, addr: cfg.AdvertiseAddr}
}

// until waits for something that other goroutines bring about.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// pair starts two nodes that are connected. Only the first dials, so that no second connection replaces this one in the middle
// of a test.
func pair(t testing.TB, change func(*Config)) (*memNet, *node, *node) {
	t.Helper()
	n := newNet()
	mk := func(id engine.NodeID) *node {
		cfg := n.config(id)
		if change != nil {
			change(&cfg)
		}
		return n.start(t, cfg, newRecorder())
	}
	a, b := mk(1), mk(2)
	a.SetPeer(2, b.addr)
	settle(t, a, b)
	return n, a, b
}

// settle waits until both hold the same one session.
func settle(t testing.TB, a, b *node) {
	t.Helper()
	until(t, "one session", func() bool {
		x, y := a.Conns(), b.Conns()
		return len(x) == 1 && len(y) == 1 && x[0].Session == y[0].Session && a.Connected(2) && b.Connected(1)
	})
}

func (n *memNet) client(t testing.TB, addr string, l Limits) *ClientConn {
	t.Helper()
	c, err := DialClient(t.Context(), addr, ClientConfig{Dial: n.dial, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
