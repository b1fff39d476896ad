package resp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/resp"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

// serve starts a server of its own on a cluster of one node.
func serve(t *testing.T, cfg resp.Config) (*resp.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Timeout = time.Minute
	s := resp.New(cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return s, l.Addr().String()
}

// TestReplyBytes asks, with a few bytes, for replies that would take more memory than a connection may have.
func TestReplyBytes(t *testing.T) {
	c, _ := cluster(t, 1, 2)
	s, addr := serve(t, resp.Config{KV: c.Node(0).Client(), ReplyBytesMax: 8 << 20})
	r := dial(t, addr)
	value := strings.Repeat("v", 1<<20)
	for _, k := range []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"} {
		if got := r.do("SET", k, value); got != "+OK" {
			t.Fatal(got)
		}
	}
	transaction := func(n int, command ...string) string {
		r.send(encode("MULTI") + strings.Repeat(encode(command...), n) + encode("EXEC"))
		for range n + 1 {
			if got := r.read(); got != "+OK" && got != "+QUEUED" {
				t.Fatal(got)
			}
		}
		return r.read()
	}
	const much = "-ERR the replies of this connection would take too much memory"
	for name, got := range map[string]string{
		"a key again and again":    r.do(append([]string{"MGET"}, strings.Fields(strings.Repeat("a ", 2000))...)...),
		"many keys":                r.do("MGET", "a", "b", "c", "d", "e", "f", "g", "h", "i"),
		"a transaction":            transaction(1000, "GET", "a"),
		"a transaction of ranges":  transaction(1000, "GETRANGE", "a", "0", "100000"),
		"a transaction of many":    transaction(1, "MGET", "a", "b", "c", "d", "e", "f", "g", "h", "i"),
		"a transaction that takes": transaction(4, "MGET", "a", "b", "a", "b"),
		"a transaction that sets":  transaction(20, "GETEX", "a", "EX", "1000"),
	} {
		if !strings.HasPrefix(got, much) {
			t.Errorf("%s: %.80s", name, got)
		}
	}
	// What needs no values takes none, what fits is answered, and nothing was changed.
	if got := r.do("EXISTS", "a", "b", "c", "d", "e", "f", "g", "h", "i"); got != ":9" {
		t.Error(got)
	}
	if got := r.do("WATCH", "a", "b", "c", "d", "e", "f", "g", "h", "i"); got != "+OK" {
		t.Error(got)
	}
	if got := r.do("UNWATCH"); got != "+OK" {
		t.Error(got)
	}
	if got := r.do("MGET", "a", "b"); got != fmt.Sprintf("[%q %q]", value, value) {
		t.Errorf("%d bytes", len(got))
	}
	if got := transaction(2, "GET", "a"); got != fmt.Sprintf("[%q %q]", value, value) {
		t.Errorf("%d bytes", len(got))
	}
	heldNothing(t, s)
}

// heldNothing waits until nothing is held any more: that a reply was taken is noted a moment after its client has it.
func heldNothing(t *testing.T, s *resp.Server) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		m := s.Metrics()
		if m.Dropped == 0 && m.ReplyBytes == 0 && m.RequestBytes == 0 {
			return
		}
		if m.Dropped != 0 || time.Now().After(deadline) {
			t.Fatalf("%+v: want nothing dropped, and nothing held any more", m)
		}
	}
}

// TestUnreadBigReplies: what a client does not take of its reply is held, and nobody else is made a big one meanwhile, until those who wait have lost
// patience with it. Small replies go on.
func TestUnreadBigReplies(t *testing.T) {
	c, _ := cluster(t, 1, 2)
	s, addr := serve(t, resp.Config{KV: c.Node(0).Client(), BigBytesMax: 1 << 20, BigPatience: 50 * time.Millisecond, WriteTimeout: time.Hour})
	r := dial(t, addr)
	value := strings.Repeat("v", 8<<20)
	for _, k := range []string{"a", "b"} {
		if got := r.do("SET", k, value); got != "+OK" {
			t.Fatal(got)
		}
	}
	wait := func(what string, cond func(m resp.Metrics) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !cond(s.Metrics()); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, s.Metrics())
			}
		}
	}
	greedy := dial(t, addr)
	greedy.send(encode("MGET", "a", "b", "a", "b"))
	// More than the sockets' buffers take.
	wait("a reply that is not taken is held", func(m resp.Metrics) bool { return m.ReplyBytes > 16<<20 })
	if got := r.do("INCR", "n"); got != ":1" {
		t.Error(got)
	}
	if m := s.Metrics(); m.ReplyBytes <= 16<<20 {
		t.Errorf("%+v: nobody waits, and it was cut off", m)
	}
	other := dial(t, addr)
	if got := other.do("MGET", "a", "b"); got != fmt.Sprintf("[%q %q]", value, value) {
		t.Errorf("%d bytes", len(got))
	}
	wait("it is cut off", func(m resp.Metrics) bool { return m.ReplyBytes == 0 && m.RequestBytes == 0 })
}

// heldWrites is a client whose writes wait for release.
type heldWrites struct {
	*router.Client
	release chan struct{}
}

func (k *heldWrites) GoWrite(ctx context.Context, w *shard.Write, done func(*shard.Result, error)) {
	go func() {
		<-k.release
		k.Client.GoWrite(ctx, w, done)
	}()
}

// TestRequestBytes sends a pipeline of writes on one key, of which all but the first must wait: they are read as far as they may take memory.
func TestRequestBytes(t *testing.T) {
	c, _ := cluster(t, 1, 1)
	const bound, size, writes = 4 << 20, 1 << 20, 25
	kv := &heldWrites{Client: c.Node(0).Client(), release: make(chan struct{})}
	s, addr := serve(t, resp.Config{KV: kv, RequestBytesMax: bound})
	r := dial(t, addr)
	var most atomic.Int64
	ended := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for ; ; time.Sleep(time.Millisecond) {
			most.Store(max(most.Load(), s.Metrics().RequestBytes))
			select {
			case <-ended:
				return
			default:
			}
		}
	})
	defer close(ended)
	wg.Go(func() {
		if _, err := io.WriteString(r.c, strings.Repeat(encode("SET", "k", strings.Repeat("v", size)), writes)); err != nil {
			t.Errorf("%v", err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); most.Load() < bound-size; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("only %d bytes were read", most.Load())
		}
	}
	close(kv.release)
	for range writes {
		if got := r.read(); got != "+OK" {
			t.Fatal(got)
		}
	}
	if got := most.Load(); got > bound {
		t.Errorf("%d bytes of requests were held, want %d at most", got, bound)
	}
}

// torn is a client that changes a and b together before it reads b alone, the first time.
type torn struct {
	*router.Client
	once sync.Once
	t    *testing.T
}

func (k *torn) GoReadSome(ctx context.Context, q *shard.Read, done func([]shard.Entry, error)) {
	if len(q.Keys) == 1 {
		k.once.Do(func() { k.set(ctx, "2") })
	}
	k.Client.GoReadSome(ctx, q, done)
}

// set puts as much into each of a and b that one answer does not hold both.
func (k *torn) set(ctx context.Context, v string) {
	value := []byte(strings.Repeat(v, 3<<20))
	w := &shard.Write{Ops: []shard.Op{{Kind: shard.OpPut, Key: []byte("a"), Value: value}, {Kind: shard.OpPut, Key: []byte("b"), Value: value}}}
	ch := make(chan error, 1)
	k.GoWrite(ctx, w, func(_ *shard.Result, err error) { ch <- err })
	if err := <-ch; err != nil {
		k.t.Errorf("write: %v", err)
	}
}

// TestLargeTransactionIsAtomic reads two values that come in two answers, between which both are changed.
func TestLargeTransactionIsAtomic(t *testing.T) {
	c, _ := cluster(t, 1, 1)
	kv := &torn{Client: c.Node(0).Client(), t: t}
	kv.set(t.Context(), "1")
	_, addr := serve(t, resp.Config{KV: kv})
	r := dial(t, addr)
	r.send(encode("MULTI") + encode("GET", "a") + encode("GET", "b") + encode("EXEC"))
	for range 3 {
		r.read()
	}
	value := strings.Repeat("2", 3<<20)
	if got := r.read(); got != fmt.Sprintf("[%q %q]", value, value) {
		t.Errorf("%d bytes, a is %.5s…, b is …%s", len(got), got[1:], got[max(len(got)-6, 0):])
	}
}

// TestGreedyGoes: over the bound of all connections together the one goes that holds most, and nobody else notices.
func TestGreedyGoes(t *testing.T) {
	c, _ := cluster(t, 1, 2)
	s, addr := serve(t, resp.Config{KV: c.Node(0).Client(), HeldBytesMax: 8 << 20})
	modest, greedy, half := dial(t, addr), dial(t, addr), dial(t, addr)
	keys := strings.Fields("a b c d e f g h i j k l")
	for _, k := range keys {
		if got := modest.do("SET", k, strings.Repeat("v", 1<<20)); got != "+OK" {
			t.Fatal(got)
		}
	}
	greedy.send(encode(append([]string{"MGET"}, keys...)...))
	gone := func(r *raw) {
		t.Helper()
		_ = r.c.SetReadDeadline(time.Now().Add(20 * time.Second))
		var timeout net.Error
		if _, err := io.Copy(io.Discard, r.br); errors.As(err, &timeout) && timeout.Timeout() {
			t.Error("it was not closed")
		}
	}
	left := func(n int64) { // else what it held counts beside what the others ask for
		t.Helper()
		for end := time.Now().Add(20 * time.Second); s.Metrics().Connections != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%+v: want %d connections", s.Metrics(), n)
			}
		}
	}
	gone(greedy)
	left(2)
	if got := modest.do("STRLEN", "a"); got != ":1048576" {
		t.Error(got)
	}
	go func() { // a request that never ends; writing it fails half-way
		_, _ = io.WriteString(half.c, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$16000000\r\n"+strings.Repeat("x", 15_900_000))
	}()
	gone(half)
	left(1)
	if got := modest.do("STRLEN", "a"); got != ":1048576" {
		t.Error(got)
	}
	if m := s.Metrics(); m.Dropped != 2 || m.Connections != 1 {
		t.Fatalf("%+v: want two dropped and one left", m)
	}
}

// elsewhere is a listener whose connections come from where they are said to.
type elsewhere struct {
	net.Listener
	from chan string
}

type connFrom struct {
	net.Conn
	from string
}

func (c connFrom) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}

func (l elsewhere) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return connFrom{c, <-l.from}, nil
}

// TestHostWithMostGivesWay: a host that has more than half of the connections makes room with its own, however short they have been silent, and
// the others keep theirs. If no host has that many, who comes is refused.
func TestHostWithMostGivesWay(t *testing.T) {
	c, _ := cluster(t, 1, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := elsewhere{l, make(chan string, 1)}
	s := resp.New(resp.Config{KV: c.Node(0).Client(), ConnsMax: 4, IdleMin: time.Hour})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(e)
	}()
	defer func() {
		_ = s.Close()
		<-done
	}()
	from := func(host string) *raw {
		e.from <- host
		return dial(t, l.Addr().String())
	}
	ping := func(r *raw) {
		t.Helper()
		if got := r.do("PING"); got != "+PONG" {
			t.Fatal(got)
		}
	}
	honest := from("10.0.0.2:1")
	ping(honest)
	var greedy []*raw
	for i := range 3 {
		r := from(fmt.Sprintf("10.0.0.1:%d", i+1))
		ping(r)
		greedy = append(greedy, r)
	}
	other := from("10.0.0.3:1")
	ping(other)
	if _, err := greedy[0].br.ReadByte(); err == nil {
		t.Error("the oldest of the host that has most is still there")
	}
	for _, r := range append(greedy[1:], honest, other) {
		ping(r)
	}
	late := from("10.0.0.4:1") // nobody has more than two of four
	if got := late.read(); got != "-ERR max number of clients reached" {
		t.Error(got)
	}
}

// TestIdleGivesWay: when there are too many connections the silent ones go.
func TestIdleGivesWay(t *testing.T) {
	c, _ := cluster(t, 1, 1)
	_, addr := serve(t, resp.Config{KV: c.Node(0).Client(), ConnsMax: 3, IdleMin: time.Millisecond})
	first := dial(t, addr)
	for range 10 {
		r := dial(t, addr)
		if got := r.do("PING"); got != "+PONG" {
			t.Fatal(got)
		}
		time.Sleep(5 * time.Millisecond) // longer than IdleMin: it is silent now
	}
	if _, err := first.br.ReadByte(); err == nil {
		t.Error("the oldest is still there")
	}
}
