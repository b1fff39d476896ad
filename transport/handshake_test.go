package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// raw dials without a handshake.
func (n *memNet) raw(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := n.dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What is not a handshake ends with the connection closed, soon, and counted.
func TestGarbage(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Limits.HandshakeTimeout = 300 * time.Millisecond
	a := n.start(t, cfg, newRecorder())
	bomb := append([]byte(magic), kindHello, 0xff, 0xff, 0, 0, 0, 0)
	badCRC := append([]byte(magic), kindHello, 0, 1, 0, 0, 0, 0, 0x90)
	var wrongKind, empty, array bytes.Buffer
	_ = writeHandshake(&wrongKind, kindConfirm, nil)
	_ = writeHandshake(&empty, kindHello, nil)
	_ = writeHandshake(&array, kindHello, []byte{0xdd, 0xff, 0xff, 0xff, 0xff})
	for name, test := range map[string]struct {
		sent   []byte
		answer string // each is refused for what is wrong with it, not by something further on
	}{
		"nothing":      {nil, ""},
		"half a magic": {[]byte("KR"), ""},
		"random":       {[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls spoken to a plain port"), "begins with"},
		"redis":        {[]byte("*1000000000\r\n$4\r\nPING\r\n"), "begins with"},
		"http":         {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "400 Bad Request"},
		"huge length":  {bomb, "a handshake of 65535 bytes"},
		"bad checksum": {badCRC, "checksum of the handshake"},
		"wrong kind":   {wrongKind.Bytes(), "handshake of kind"},
		"empty":        {empty.Bytes(), "malformed"},
		"array bomb":   {array.Bytes(), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			before := a.Metrics().Refusals.Load()
			c := n.raw(t, a.addr)
			if _, err := c.Write(test.sent); err != nil {
				t.Fatal(err)
			}
			if answer, _ := io.ReadAll(c); !strings.Contains(string(answer), test.answer) {
				t.Fatalf("answered with %q, want %q in it", answer, test.answer)
			}
			until(t, "refusal", func() bool { return a.Metrics().Refusals.Load() > before })
		})
	}
}

// Whoever drips its bytes does not hold a handshake for longer than the time-out, and in a full house the oldest makes room.
func TestSlowLoris(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Limits.HandshakeTimeout = 200 * time.Millisecond
	cfg.Limits.HandshakesMax = 2
	a := n.start(t, cfg, newRecorder())
	var conns []net.Conn
	for range 4 {
		conns = append(conns, n.raw(t, a.addr))
	}
	// A byte at a time, and the last one never: nothing in it is wrong, it is only slow.
	drip := append([]byte(magic), kindHello, 0, 200, 0, 0, 0, 0)
	drip = append(drip, make([]byte, 199)...)
	until(t, "all of them to be gone", func() bool {
		for _, c := range conns {
			_, _ = c.Write(drip[:min(1, len(drip))])
		}
		drip = drip[min(1, len(drip)):]
		return a.Metrics().Refusals.Load() == 4
	})
	if got := a.Metrics().Evicted.Load(); got != 2 {
		t.Errorf("%d were given up for those that came later, want 2", got)
	}
	n.client(t, a.addr, Limits{})
}

func wantReason(t *testing.T, err error, want Reason, remote bool) {
	t.Helper()
	var ref *Refused
	if !errors.As(err, &ref) || ref.Reason != want || ref.Remote != remote {
		t.Fatalf("got %v, want a refusal: %v", err, want)
	}
}

// Both sides learn why.
func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   Reason
	}{
		"cluster":  {func(c *Config) { c.ClusterID = ID{9} }, ReasonCluster},
		"versions": {func(c *Config) { c.VersionMin, c.VersionMax = 7, 9 }, ReasonVersion},
		"own name": {func(c *Config) { c.Node = 1 }, ReasonNode},
		"copied identity": {func(c *Config) {
			c.Identity = ID{1}
		}, ReasonNode},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNet()
			a := n.start(t, n.config(1), newRecorder())
			cfg := n.config(2)
			tc.change(&cfg)
			got := make(chan *Refused, 100)
			cfg.OnRefused = func(_ string, r *Refused) {
				select {
				case got <- r:
				default:
				}
			}
			b := n.start(t, cfg, newRecorder())
			// The map key says "node 1"; where that is its own name it has to be another to be dialled at all.
			target := a.who().Node
			if target == cfg.Node {
				target = 77
			}
			b.SetPeer(target, a.addr)
			wantReason(t, <-got, tc.want, true)
			if a.Metrics().Refusals.Load() == 0 || b.Metrics().Refused.Load() == 0 {
				t.Fatal("not counted")
			}
		})
	}
}

func TestRemovedPeerIsRefused(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Accept = func(p PeerInfo) error { return &Refused{Reason: ReasonRemoved, Text: "on Monday"} }
	a := n.start(t, cfg, newRecorder())
	got := make(chan *Refused, 100)
	c2 := n.config(2)
	c2.OnRefused = func(_ string, r *Refused) {
		select {
		case got <- r:
		default:
		}
	}
	b := n.start(t, c2, newRecorder())
	b.SetPeer(1, a.addr)
	r := <-got
	wantReason(t, r, ReasonRemoved, true)
	if r.Text != "on Monday" {
		t.Fatal(r.Text)
	}
	// A dialler asks its own node too.
	a.SetPeer(2, b.addr)
	until(t, "the dialler's refusal", func() bool { return b.Metrics().Refusals.Load() > 0 })
}

// A node without a cluster serves clients and nobody else (rule Cluster7), until it joins.
func TestJoin(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.ClusterID, cfg.Node = ID{}, 0
	a := n.start(t, cfg, newRecorder())
	c := n.client(t, a.addr, Limits{})
	if got, err := c.Call(t.Context(), 1, []byte("hi")); err != nil || string(got) != "hi" {
		t.Fatal(got, err)
	}
	got := make(chan *Refused, 100)
	c2 := n.config(2)
	c2.OnRefused = func(_ string, r *Refused) {
		select {
		case got <- r:
		default:
		}
	}
	b := n.start(t, c2, newRecorder())
	b.SetPeer(1, a.addr)
	wantReason(t, <-got, ReasonNoCluster, true)
	a.SetPeer(2, b.addr)
	if err := a.Join(cluster, 1); err != nil {
		t.Fatal(err)
	}
	if a.Join(ID{5}, 1) == nil || a.Join(cluster, 4) == nil || a.Join(ID{}, 1) == nil {
		t.Fatal("joined twice")
	}
	exchange(t, a, b)
}

func TestClientOfAnotherCluster(t *testing.T) {
	n := newNet()
	a := n.start(t, n.config(1), newRecorder())
	_, err := DialClient(t.Context(), a.addr, ClientConfig{Dial: n.dial, ClusterID: ID{9}})
	wantReason(t, err, ReasonCluster, true)
	c := n.client(t, a.addr, Limits{})
	if p := c.Peer(); p.Node != 1 || p.ClusterID != cluster || p.AdvertiseAddr != "n1" {
		t.Fatalf("%+v", p)
	}
}

// TestClientWithoutStreams: who says hello and then opens no streams is ended in time, and nothing waits for it, not even Close.
func TestClientWithoutStreams(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Limits.HandshakeTimeout = 200 * time.Millisecond
	a := n.start(t, cfg, newRecorder())
	c := n.raw(t, a.addr)
	h := hello{versionMin: a.core.versionMin, versionMax: a.core.versionMax, role: roleClient, session: 1}
	if err := writeHandshake(c, kindHello, h.encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := readHandshake(c, kindWelcome); err != nil {
		t.Fatal(err)
	}
	if err := writeHandshake(c, kindConfirm, nil); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, c)
	}()
	until(t, "the connection to be closed", func() bool {
		select {
		case <-closed:
			return len(a.all()) == 0
		default:
			return false
		}
	})
}

// serveToo serves another listener, whose clients are of a host of its name, until the Transport is closed.
func (n *node) serveToo(l net.Listener) { go func() { _ = n.Serve(l) }() }

func TestTooManyClients(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Limits.ClientsMax = 2
	a := n.start(t, cfg, newRecorder())
	a.serveToo(n.listen("other"))
	n.client(t, a.addr, Limits{})
	c := n.client(t, "other", Limits{}) // from another host: none has most of them
	until(t, "two clients", func() bool { return len(a.Conns()) == 2 })
	_, err := DialClient(t.Context(), a.addr, ClientConfig{Dial: n.dial})
	wantReason(t, err, ReasonBusy, true)
	c.Close()
	until(t, "a place", func() bool {
		c, err := DialClient(t.Context(), a.addr, ClientConfig{Dial: n.dial})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Clients of one host that only hold their connections keep nobody out: of them the one goes that has been silent for longest, and none that
// waits for an answer.
func TestIdleClientsMakeRoom(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Limits.ClientsMax = 4
	r := newRecorder()
	waits := make(chan struct{}, 1)
	r.onRequest = func(q Request) {
		if q.Method == 2 {
			waits <- struct{}{}
			return
		}
		q.Reply(StatusOK, nil)
	}
	a := n.start(t, cfg, r)
	a.serveToo(n.listen("other"))
	other := n.client(t, "other", Limits{})
	var clients []*ClientConn
	for range 3 {
		clients = append(clients, n.client(t, a.addr, Limits{}))
	}
	until(t, "all to be there", func() bool {
		ready := 0
		for _, c := range a.Conns() {
			ready += c.Streams
		}
		return ready == 4
	})
	waiting, silent, busy := clients[0], clients[1], clients[2]
	waiting.Go(2, time.Now().Add(time.Minute), 0, nil, func([]byte, error) {})
	<-waits
	if _, err := busy.Call(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client(t, "other", Limits{}).Call(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	<-silent.Done()
	for what, c := range map[string]*ClientConn{"of the other host": other, "that waits for an answer": waiting, "that has just asked": busy} {
		select {
		case <-c.Done():
			t.Errorf("the client %s is gone", what)
		default:
		}
	}
}

func TestDialClientEndsWithItsContext(t *testing.T) {
	n := newNet()
	l := n.listen("mute")
	go func() { // accepts, and says nothing
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := DialClient(ctx, "mute", ClientConfig{Dial: n.dial}); err == nil {
		t.Fatal("connected with nobody")
	}
}

func TestHandshakeCodec(t *testing.T) {
	var list []uint64
	for i := range 100 {
		list = append(list, ^uint64(i))
	}
	h := &hello{versionMin: 1, versionMax: 9, role: rolePeer, cluster: cluster, node: 1 << 63, identity: ID{7}, incarnations: list,
		addr: strings.Repeat("a", addrBytesMax), session: ^uint64(0), held: 5,
		user: strings.Repeat("u", credentialBytesMax), password: bytes.Repeat([]byte("p"), credentialBytesMax)}
	b := h.encode()
	if len(b) > handshakeBytesMax {
		t.Fatalf("%d bytes", len(b))
	}
	var got hello
	if err := got.decode(b); err != nil || len(got.incarnations) != IncarnationsMax || got.incarnations[63] != list[99] || got.held != 5 || got.addr != h.addr ||
		got.user != h.user || !bytes.Equal(got.password, h.password) {
		t.Fatalf("%+v, %v", got, err)
	}
	old := append([]byte{0x90 | helloFieldsMin}, b[1:len(b)-2*(credentialBytesMax+3)]...) // as older versions send it, without credentials
	if got = (hello{}); got.decode(old) != nil || got.held != 5 || got.user != "" {
		t.Fatalf("an old hello: %+v", got)
	}
	h.password = append(h.password, 'x')
	if new(hello).decode(h.encode()) == nil {
		t.Fatal("a password without bound")
	}
	for i := range b {
		if new(hello).decode(b[:i]) == nil {
			t.Fatalf("%d of %d bytes are enough", i, len(b))
		}
	}
	err := decodeRefused((&Refused{Reason: ReasonClone, Text: "x\x1b[31m\n" + strings.Repeat("y", 9999)}).encode())
	if r := err.(*Refused); r.Reason != ReasonClone || strings.ContainsAny(r.Text, "\x1b\n") {
		t.Fatalf("%q", r.Text)
	}
}

func TestBadConfig(t *testing.T) {
	n := newNet()
	for name, f := range map[string]func(*Config){
		"identity":    func(c *Config) { c.Identity = ID{} },
		"incarnation": func(c *Config) { c.Incarnations = nil },
		"half joined": func(c *Config) { c.Node = 0 },
		"address":     func(c *Config) { c.AdvertiseAddr = strings.Repeat("a", 9999) },
	} {
		cfg := n.config(1)
		f(&cfg)
		if _, err := New(cfg, newRecorder()); err == nil {
			t.Error(name)
		}
	}
}

// Damaged streams behind a good handshake: neither a panic nor harm to others.
func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(nil, []byte("hello")))
	f.Add(appendFrame(appendFrame(nil, nil), []byte{0x95, 1, 2, 3, 4, 0xc4, 0}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := newFrameReader(bytes.NewReader(b), 1<<20, 16)
		total := 0
		for {
			body, err := fr.next()
			if err != nil {
				break
			}
			total += len(body) + frameHeader
		}
		if total > len(b) {
			t.Fatalf("%d bytes out of %d", total, len(b))
		}
	})
}

func FuzzHandshake(f *testing.F) {
	var buf bytes.Buffer
	_ = writeHandshake(&buf, kindHello, (&hello{versionMax: 1, role: 1, incarnations: []uint64{1, 2}}).encode())
	f.Add(buf.Bytes())
	buf.Reset()
	_ = writeHandshake(&buf, kindRefusal, (&Refused{Reason: 3, Text: "no"}).encode())
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		if body, err := readHandshake(bytes.NewReader(b), kindHello); err == nil {
			_ = new(hello).decode(body)
		}
		_ = new(hello).decode(b)
		_ = new(welcome).decode(b)
		_ = decodeRefused(b)
	})
}

// A length alone makes nobody allocate.
func TestFrameLengthBomb(t *testing.T) {
	hdr := make([]byte, frameHeader)
	binary.BigEndian.PutUint32(hdr, 60<<20)
	got := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := newFrameReader(bytes.NewReader(hdr), 64<<20, 64<<10).next(); err != io.ErrUnexpectedEOF {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if got > 128<<10 {
		t.Fatalf("%d bytes allocated", got)
	}
	binary.BigEndian.PutUint32(hdr, 64<<20+1)
	if _, err := newFrameReader(bytes.NewReader(hdr), 64<<20, 64<<10).next(); !errors.Is(err, ErrMalformed) {
		t.Fatal(err)
	}
}

// Who is connected and says nothing (it hangs, or speaks something else and waits for more) is told from who refuses.
func TestDialWithoutAnswer(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	go func() { _, _ = io.Copy(io.Discard, there) }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := DialClient(ctx, "n", ClientConfig{Dial: func(context.Context, string) (net.Conn, error) { return here, nil }})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "--listen") {
		t.Error(err)
	}
}

// A listener that is out of file descriptors for a while (FAULTS D21) is asked again.
func TestAcceptFailsForAWhile(t *testing.T) {
	n := newNet()
	tr, err := New(n.config(1), newRecorder())
	if err != nil {
		t.Fatal(err)
	}
	l := &emptyHanded{memListener: n.listen("n1")}
	l.left.Store(3)
	done := make(chan error, 1)
	go func() { done <- tr.Serve(l) }()
	n.client(t, "n1", quick())
	if l.left.Load() > 0 {
		t.Error("accepted before the listener has failed")
	}
	tr.Close()
	<-done
}

type emptyHanded struct {
	*memListener
	left atomic.Int32
}

func (l *emptyHanded) Accept() (net.Conn, error) {
	if l.left.Load() > 0 {
		l.left.Add(-1)
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.memListener.Accept()
}

// A connection that does not come about is given up, whatever the dialler's own context says.
func TestDialIsBounded(t *testing.T) {
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, err := DialClient(ctx, "nowhere", ClientConfig{Limits: Limits{DialTimeout: 10 * time.Millisecond},
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it is waited for")
	}
}
