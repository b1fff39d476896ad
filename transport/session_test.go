package transport

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

func TestFramesArriveInOrder(t *testing.T) {
	_, a, b := pair(t, nil)
	var want []byte
	for i := range 2000 {
		m := fmt.Appendf(nil, "%d;", i)
		for !a.SendRaft(2, 0, m, false) {
			t.Fatal("not taken")
		}
		want = append(want, m...)
	}
	if !a.SendHeartbeat(2, []byte("beat")) || !b.SendHeartbeat(1, []byte("tick")) {
		t.Fatal("heartbeat not taken")
	}
	until(t, "all messages", func() bool {
		return b.is(func() bool { return bytes.Equal(bytes.Join(b.raft, nil), want) && len(b.beats) == 1 }) &&
			a.is(func() bool { return len(a.beats) == 1 && string(a.beats[0]) == "tick" })
	})
	if n := a.Metrics().FramesOut.Load(); n > 1500 {
		t.Logf("%d frames for 2000 messages", n)
	}
}

func TestBigMessage(t *testing.T) {
	_, a, b := pair(t, nil)
	big := bytes.Repeat([]byte("0123456789abcdef"), 9<<16) // 9 MiB
	if !a.SendRaft(2, 0, big, false) {
		t.Fatal("not taken")
	}
	until(t, "the message", func() bool { return b.is(func() bool { return len(b.raft) == 1 && bytes.Equal(b.raft[0], big) }) })
}

// A heartbeat goes between the parts of a big message that is on its way, and does not wait for all of it (rule Live6, FAULTS N11).
func TestHeartbeatOvertakesBigMessage(t *testing.T) {
	n, a, b := pair(t, func(c *Config) {
		c.Limits.WriteBytesMax = 64 << 10
		c.Limits.WriteTimeout, c.Limits.SilenceMax = time.Minute, time.Minute
	})
	n.mu.Lock()
	wire := n.conns[len(n.conns)-1] // the end of node 2
	n.mu.Unlock()
	wire.in.set(func() { wire.in.paused = true })
	big := make([]byte, 4<<20) // the window of a stream takes all of it
	if !a.SendRaft(2, 0, big, false) {
		t.Fatal("not taken")
	}
	s := a.session(2)
	writes := func(stream int) func() bool { return func() bool { return s.watches[stream].Load() != 0 } }
	until(t, "the message to be on its way", writes(1))
	until(t, "the wire to be full", func() bool {
		wire.in.mu.Lock()
		defer wire.in.mu.Unlock()
		return len(wire.in.buf) == pipeBytes
	})
	a.SendHeartbeat(2, []byte("alive"))
	until(t, "the heartbeat to be written", writes(0))
	wire.in.set(func() { wire.in.paused, wire.in.limit = false, 2<<20 }) // half of the message
	until(t, "the heartbeat", func() bool { return b.is(func() bool { return len(b.beats) == 1 }) })
	wire.in.set(func() { wire.in.paused, wire.in.limit = false, 0 })
	until(t, "the message", func() bool { return b.is(func() bool { return len(b.raft) == 1 && len(b.raft[0]) == len(big) }) })
}

// Peers that have nothing to say tell each other that they are there.
func TestIdlePeersAreHeard(t *testing.T) {
	_, a, b := pair(t, nil)
	before := [2]uint64{a.Metrics().FramesIn.Load(), b.Metrics().FramesIn.Load()}
	until(t, "empty frames", func() bool {
		return a.Metrics().FramesIn.Load() > before[0]+3 && b.Metrics().FramesIn.Load() > before[1]+3
	})
	if len(a.beats)+len(b.beats) > 0 {
		t.Error("the handler was told of them")
	}
}

// Both dial at once, often; exactly one session remains and messages flow (rule Cluster8).
func TestBothDial(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			n := newNet()
			ca, cb := n.config(1), n.config(2)
			if round%2 == 0 { // stretch the handshakes, so that they meet at every point
				own := rand.New(rand.NewPCG(seed, uint64(round)))
				n.lag = func() time.Duration { return time.Duration(own.IntN(3000)) * time.Microsecond }
			}
			if rng.IntN(2) == 0 {
				ca.Identity, cb.Identity = cb.Identity, ca.Identity
			}
			a, b := n.start(t, ca, newRecorder()), n.start(t, cb, newRecorder())
			var wg sync.WaitGroup
			wg.Go(func() { a.SetPeer(2, b.addr) })
			wg.Go(func() { b.SetPeer(1, a.addr) })
			wg.Wait()
			settle(t, a, b)
			for range rng.IntN(3) { // and again, after cutting the wire
				n.each(func(c *memConn) { c.Close() })
				settle(t, a, b)
			}
			exchange(t, a, b)
			if c := a.recorder.connects + b.recorder.connects; c > 30 {
				t.Errorf("%d sessions to settle on one", c)
			}
		})
	}
}

// exchange sends from each to the other until something arrives, whatever happens to sessions meanwhile.
func exchange(t testing.TB, a, b *node) {
	t.Helper()
	tag := fmt.Appendf(nil, "x%d", rand.Uint64())
	got := func(n *node) bool {
		return n.is(func() bool { return bytes.Contains(bytes.Join(n.raft, nil), tag) })
	}
	until(t, "exchange", func() bool {
		if !got(b) {
			a.SendRaft(2, 0, tag, false)
		}
		if !got(a) {
			b.SendRaft(1, 0, tag, false)
		}
		return got(a) && got(b)
	})
}

func TestOnlyOneSideDials(t *testing.T) {
	n := newNet()
	a, b := n.start(t, n.config(1), newRecorder()), n.start(t, n.config(2), newRecorder())
	a.SetPeer(2, b.addr)
	until(t, "connection", func() bool { return a.Connected(2) && b.Connected(1) })
	exchange(t, a, b)
	n.each(func(c *memConn) { c.Close() })
	exchange(t, a, b)
	a.RemovePeer(2)
	until(t, "the end of it", func() bool { return len(a.Conns()) == 0 && len(b.Conns()) == 0 })
}

// A cable that is pulled gives no error to anyone: silence must end the session, and both must find each other again.
func TestHalfOpen(t *testing.T) {
	n, a, b := pair(t, func(c *Config) {
		c.Limits.SilenceMax = 300 * time.Millisecond
		c.Limits.DialTimeout = 200 * time.Millisecond
	})
	b.SetPeer(1, a.addr)
	// Nobody can dial anew meanwhile: the first of them to notice would replace the session of the other.
	n.mu.Lock()
	listeners := n.listeners
	n.listeners = nil
	n.mu.Unlock()
	n.each(func(c *memConn) { c.pull(true) })
	until(t, "silence to be noticed", func() bool { return a.Metrics().Silent.Load() > 0 && b.Metrics().Silent.Load() > 0 })
	n.mu.Lock()
	n.listeners = listeners
	n.mu.Unlock()
	exchange(t, a, b)
	settle(t, a, b)
}

// Only one direction is dead, and the side that hears nothing dials anew: the other gives up a session that looks alive.
func TestOneWayLink(t *testing.T) {
	n, a, b := pair(t, func(c *Config) { c.Limits.SilenceMax = 300 * time.Millisecond })
	b.SetPeer(1, a.addr)
	n.mu.Lock()
	first := n.conns[len(n.conns)-1]
	n.mu.Unlock()
	first.in.set(func() { first.in.paused = true })
	until(t, "silence to be noticed", func() bool { return a.Metrics().Silent.Load()+b.Metrics().Silent.Load() > 0 })
	exchange(t, a, b)
	settle(t, a, b)
}

func TestDamagedFrame(t *testing.T) {
	n, a, b := pair(t, nil)
	n.each(func(c *memConn) { c.out.set(func() { c.out.flip = true }) })
	until(t, "damage to be noticed", func() bool {
		a.SendRaft(2, 0, bytes.Repeat([]byte{1}, 100), false)
		b.SendRaft(1, 0, bytes.Repeat([]byte{1}, 100), false)
		return a.Metrics().Malformed.Load()+b.Metrics().Malformed.Load() > 0
	})
	exchange(t, a, b)
	for _, f := range b.raft[:1] {
		if bytes.ContainsFunc(f, func(r rune) bool { return r == 0 }) {
			t.Fatal("a damaged frame was delivered")
		}
	}
}

// A peer that does not read: SendRaft says no over its bound, heartbeats still flow, and the session ends.
func TestPeerThatDoesNotRead(t *testing.T) {
	stuck := make(chan struct{})
	release := sync.OnceFunc(func() { close(stuck) })
	n := newNet()
	ca, cb := n.config(1), n.config(2)
	ca.Limits.OutboxBytesMax = 1 << 20
	ca.Limits.WriteTimeout = 500 * time.Millisecond
	rb := newRecorder()
	var once sync.Once
	rb.onRaft = func([]byte) { once.Do(func() { <-stuck }) }
	a, b := n.start(t, ca, newRecorder()), n.start(t, cb, rb)
	t.Cleanup(release) // before the nodes are closed, which wait for the peer's goroutine
	a.SetPeer(2, b.addr)
	until(t, "connection", func() bool { return a.Connected(2) && b.Connected(1) })
	msg := make([]byte, 64<<10)
	until(t, "the bound", func() bool { return !a.SendRaft(2, 0, msg, false) })
	if c := a.Conns(); len(c) == 1 && c[0].OutboxBytes > 1<<20+1<<16 {
		t.Fatalf("%d bytes wait", c[0].OutboxBytes)
	}
	if a.Metrics().RaftDropped.Load() == 0 {
		t.Fatal("not counted")
	}
	a.SendHeartbeat(2, []byte("alive"))
	until(t, "a heartbeat", func() bool { return b.is(func() bool { return len(b.beats) > 0 }) })
	until(t, "the slow write to end the session", func() bool {
		a.SendRaft(2, 0, msg, false) // what waited so far may fit into the stream's window
		return a.Metrics().Slow.Load() > 0
	})
	release()
	exchange(t, a, b)
}

// A node that is removed and set again, over and over: its sessions never overlap for the handler (start checks that).
func TestRemoveAndSetAgain(t *testing.T) {
	n := newNet()
	a, b := n.start(t, n.config(1), newRecorder()), n.start(t, n.config(2), newRecorder())
	b.SetPeer(1, a.addr)
	for range 30 {
		a.SetPeer(2, b.addr)
		until(t, "connection", func() bool { return a.Connected(2) })
		a.RemovePeer(2)
	}
	a.SetPeer(2, b.addr)
	exchange(t, a, b)
}

func TestMovedPeer(t *testing.T) {
	n := newNet()
	a := n.start(t, n.config(1), newRecorder())
	wrong := n.config(3)
	w := n.start(t, wrong, newRecorder())
	b := n.start(t, n.config(2), newRecorder())
	a.SetPeer(3, "")     // a peer, but whose address is not known: nothing else refuses it
	a.SetPeer(2, w.addr) // two nodes of one address: node 3 answers there
	until(t, "a refusal", func() bool { return a.Metrics().DialErrors.Load() > 0 })
	if a.Connected(2) || len(a.Conns()) != 0 {
		t.Fatal("connected with the wrong node")
	}
	a.SetPeer(2, b.addr)
	exchange(t, a, b)
}

func TestCloseIsQuickAndEndsCalls(t *testing.T) {
	n, a, b := pair(t, nil)
	b.recorder.onRequest = func(Request) {} // never answers
	got := make(chan error, 1)
	a.Go(2, 1, time.Now().Add(time.Minute), 0, nil, func(_ []byte, err error) { got <- err })
	n.each(func(c *memConn) { c.pull(true) }) // nothing can be flushed any more
	a.Close()
	if err := <-got; err != ErrConnectionLost {
		t.Fatal(err)
	}
	a.Go(2, 1, time.Time{}, 0, nil, func(_ []byte, err error) { got <- err })
	if err := <-got; err != ErrNotConnected {
		t.Fatal(err)
	}
	if a.SendRaft(2, 0, []byte{1}, false) || a.SendHeartbeat(2, nil) {
		t.Fatal("taken after Close")
	}
}

func TestRestartedPeer(t *testing.T) {
	n := newNet()
	var mu sync.Mutex
	newest := map[engine.NodeID]uint64{}
	accept := func(p PeerInfo) error { // what Cluster9 asks of a node
		mu.Lock()
		defer mu.Unlock()
		last := newest[p.Node]
		for _, inc := range p.Incarnations {
			if inc == last || last == 0 {
				newest[p.Node] = p.Incarnation()
				return nil
			}
		}
		return refuse(ReasonClone, "lacks %d", last)
	}
	ca := n.config(1)
	ca.Accept = accept
	a := n.start(t, ca, newRecorder())
	b := n.start(t, n.config(2), newRecorder())
	a.SetPeer(2, b.addr)
	exchange(t, a, b)

	// While it is alive, a second process of the same name is kept out.
	refused := make(chan Reason, 100)
	twin := n.config(2)
	twin.AdvertiseAddr, twin.Incarnations = "twin", []uint64{200, 201}
	twin.OnRefused = func(_ string, r *Refused) {
		select {
		case refused <- r.Reason:
		default:
		}
	}
	tw := n.start(t, twin, newRecorder())
	tw.SetPeer(1, a.addr)
	if r := <-refused; r != ReasonAlive {
		t.Fatal(r)
	}
	b.Transport.Close()
	until(t, "the new incarnation", func() bool {
		c := a.Conns()
		return len(c) == 1 && c[0].Incarnation == 201
	})
	tw.Transport.Close()

	// The old disk, restored: its list lacks 201.
	old := n.config(2)
	old.AdvertiseAddr, old.Incarnations, old.OnRefused = "old", []uint64{200, 202}, twin.OnRefused
	o := n.start(t, old, newRecorder())
	o.SetPeer(1, a.addr)
	until(t, "the clone to be refused", func() bool { return <-refused == ReasonClone })
}

func BenchmarkSendRaft(b *testing.B) {
	_, x, y := pair(b, nil)
	y.recorder.onRaft = nil
	msg := make([]byte, 200)
	b.SetBytes(200)
	b.ReportAllocs()
	for b.Loop() {
		for !x.SendRaft(2, 0, msg, false) {
			time.Sleep(100 * time.Microsecond)
		}
	}
	b.ReportMetric(float64(b.N)/float64(x.Metrics().FramesOut.Load()), "msgs/frame")
}

// halfConn is a connection that takes so many bytes.
type halfConn struct {
	net.Conn
	left atomic.Int64
	end  chan struct{}
	once sync.Once
}

func (c *halfConn) Write(b []byte) (int, error) {
	if c.left.Add(-int64(len(b))) < 0 {
		<-c.end
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

func (c *halfConn) Close() error {
	c.once.Do(func() { close(c.end) })
	return c.Conn.Close()
}

// halfSenders starts a node that reads two frames of 1 MiB at a time, and ten clients that send two thirds of one.
func halfSenders(t *testing.T, patience time.Duration) (*memNet, *node, []*ClientConn) {
	n := newNet()
	l := quick()
	l.FrameBytesTarget, l.BigFramesMax, l.BigPatience = 1<<10, 2<<20+1<<10, patience
	l.ClientWindow = windowMin
	l.WriteTimeout, l.RequestDeadlineMax = time.Minute, time.Minute
	a := n.server(t, l, func(q Request) { q.Reply(StatusOK, nil) })
	var clients []*ClientConn
	for range 10 {
		c, err := DialClient(t.Context(), a.addr, ClientConfig{Limits: l, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := n.dial(ctx, addr)
			half := &halfConn{Conn: nc, end: make(chan struct{})}
			half.left.Store(700 << 10)
			return half, err
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.Go(1, time.Now().Add(time.Minute), 0, make([]byte, 1<<20), func([]byte, error) {})
		clients = append(clients, c)
	}
	return n, a, clients
}

// Of all clients together only so much of big frames is being read at a time, however many are sent in half: the others' are not read, but for what yamux
// takes of them. Small requests go on.
func TestHalfSentFramesWait(t *testing.T) {
	n, a, clients := halfSenders(t, time.Minute)
	until(t, "all to have sent what they can", func() bool {
		for _, c := range clients {
			if c.s.conn.out.Load() < windowMin {
				return false
			}
		}
		return true
	})
	small := n.client(t, a.addr, quick())
	if _, err := small.Call(t.Context(), 1, []byte("x")); err != nil {
		t.Fatal(err)
	}
	held := func() int64 { return a.core.held.Held() }
	most := int64(2<<20 + len(clients)*(windowMin+32<<10))
	until(t, "two frames to be read", func() bool { return held() > most || a.core.frames.Waiting() && held() >= 2<<20 })
	if got := held(); got > most {
		t.Errorf("%d bytes are held, want %d at most", got, most)
	}
	if len(a.Conns()) != len(clients)+1 {
		t.Error("somebody is gone")
	}
}

// Who pauses within a big frame is cut off once others wait to send theirs, and those get their turn.
func TestHalfSentGivesWay(t *testing.T) {
	n, a, clients := halfSenders(t, time.Millisecond)
	until(t, "those who pause to go", func() bool { return !clients[0].s.alive() || !clients[9].s.alive() })
	c := n.client(t, a.addr, quick())
	if _, err := c.Call(t.Context(), 1, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
}

// stuckConn is a connection that is slow to close.
type stuckConn struct {
	net.Conn
	released chan struct{}
}

func (c stuckConn) Close() error {
	<-c.released
	return c.Conn.Close()
}

// Who reads from a connection that the other side has closed is told, and does not ask again and again until yamux has closed its streams.
func TestReaderEndsBeforeStreams(t *testing.T) {
	n := newNet()
	a := n.server(t, quick(), func(Request) {})
	released := make(chan struct{})
	c, err := DialClient(t.Context(), a.addr, ClientConfig{Limits: quick(), Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		nc, err := n.dial(ctx, addr)
		return stuckConn{nc, released}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the client", func() bool { return len(a.Conns()) == 1 && c.s.ready.Load() })
	a.Close()
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		t.Error("its reader has not come back")
	}
	close(released)
	c.Close()
}

// TestShrink: after a big message memory is given back, and messages of any size go on to arrive.
func TestShrink(t *testing.T) {
	_, a, b := pair(t, nil)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<15) // within a frame that is kept for reuse
	for round := 1; round <= 3; round++ {
		if !a.SendRaft(2, 0, big, false) {
			t.Fatal("not taken")
		}
		until(t, "the message", func() bool {
			return b.is(func() bool { return len(b.raft) >= round && bytes.Contains(b.raft[len(b.raft)-1], big) })
		})
		kept := func(n *node) (k int) {
			for _, s := range n.all() {
				s.raft.mu.Lock()
				for _, f := range s.raft.spare {
					k += cap(f)
				}
				s.raft.mu.Unlock()
			}
			return k
		}
		until(t, "the frame to be written", func() bool { return kept(a) >= len(big) })
		a.Shrink()
		b.Shrink()
		if kept(a) != 0 {
			t.Errorf("%d bytes are kept", kept(a))
		}
	}
	exchange(t, a, b)
}

// TestBulkIsOvertaken: a raft message that is bulk comes whole, behind small ones that were sent when a part of it was under way, and another that is bulk behind it.
func TestBulkIsOvertaken(t *testing.T) {
	n, a, b := pair(t, nil)
	first, second := bytes.Repeat([]byte("bulk"), 4<<20), []byte("small, but bulk") // more than the window takes
	n.each(func(c *memConn) { c.in.set(func() { c.in.paused = true }) })
	send := func(b []byte, bulk bool) {
		if !a.SendRaft(2, 0, b, bulk) {
			t.Fatalf("%.10q was dropped", b)
		}
	}
	send(first, true)
	until(t, "the first to be on its way", func() bool { return a.session(2).watches[1].Load() != 0 })
	send(second, true)
	send([]byte("small"), false)
	n.each(func(c *memConn) { c.in.set(func() { c.in.paused = false }) })
	until(t, "three frames", func() bool { return b.is(func() bool { return len(b.raft) == 3 }) })
	for i, want := range [][]byte{[]byte("small"), first, second} {
		if got := b.raft[i]; !bytes.Equal(got, want) {
			t.Errorf("frame %d is %d bytes, %.10q; want %d, %.10q", i, len(got), got, len(want), want)
		}
	}
}
