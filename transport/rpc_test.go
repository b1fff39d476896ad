package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/mp"
)

// server starts a node that serves clients with f.
func (n *memNet) server(t testing.TB, l Limits, f func(Request)) *node {
	cfg := n.config(1)
	cfg.Limits = l
	r := newRecorder()
	r.onRequest = f
	return n.start(t, cfg, r)
}

// Thousands in flight, answered in any order and from any goroutine: every answer reaches its own question.
func TestPipelining(t *testing.T) {
	var mu sync.Mutex
	var held []Request
	n := newNet()
	a := n.server(t, quick(), func(q Request) {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, q)
		if len(held) < 50 {
			return
		}
		rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
		for _, q := range held {
			go func() {
				if q.Method == 7 {
					q.Reply(42, append([]byte("no "), q.Body...))
				} else {
					q.Reply(StatusOK, append([]byte("yes "), q.Body...))
				}
				q.Reply(StatusOK, []byte("twice"))
			}()
		}
		held = nil
	})
	c := n.client(t, a.addr, Limits{})
	var wg sync.WaitGroup
	var bad atomic.Int64
	for i := range 5000 {
		wg.Add(1)
		body := fmt.Appendf(nil, "%d", i)
		c.Go(uint16(i%10), time.Now().Add(time.Minute), FlagForwarded, body, func(b []byte, err error) {
			defer wg.Done()
			var st *StatusError
			switch {
			case i%10 != 7 && err == nil && string(b) == fmt.Sprint("yes ", i):
			case i%10 == 7 && errors.As(err, &st) && st.Status == 42 && string(st.Body) == fmt.Sprint("no ", i):
			default:
				bad.Add(1)
				t.Errorf("%d: %q, %v", i, b, err)
			}
		})
	}
	wg.Wait()
	if s := c.Stats(); s.CallsWaiting != 0 {
		t.Fatalf("%+v", s)
	}
	until(t, "nothing in flight", func() bool { return a.Conns()[0].RequestsInFlight == 0 })
	if f, q := a.Metrics().FramesIn.Load(), a.Metrics().Requests.Load(); q != 5000 || f > q/2 {
		t.Logf("%d frames for %d requests", f, q)
	}
}

// Peers ask each other, in both directions of one session, and a full server on one does not stop answers to it.
func TestBothAsk(t *testing.T) {
	_, a, b := pair(t, func(c *Config) { c.Limits.InFlightMax = 4 })
	var mu sync.Mutex
	var held []Request
	b.recorder.onRequest = func(q Request) {
		mu.Lock()
		held = append(held, q)
		mu.Unlock()
	}
	var wg sync.WaitGroup
	for range 20 { // b is full after four
		wg.Go(func() {
			if got, err := a.Call(t.Context(), 2, 1, []byte("x")); err != nil || string(got) != "late" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	until(t, "b to be full", func() bool { mu.Lock(); defer mu.Unlock(); return len(held) == 4 })
	for range 20 {
		if got, err := b.CallFlags(t.Context(), 1, 1, FlagForwarded, []byte("y")); err != nil || string(got) != "y" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	mu.Lock()
	if len(held) != 4 {
		t.Errorf("%d in flight", len(held))
	}
	mu.Unlock()
	stop := make(chan struct{})
	var answers sync.WaitGroup
	answers.Go(func() {
		for {
			mu.Lock()
			for _, q := range held {
				q.Reply(StatusOK, []byte("late"))
			}
			held = held[:0]
			mu.Unlock()
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	wg.Wait()
	close(stop)
	answers.Wait()
}

// Calls that were cancelled or ran out of time leave nothing behind, and their late answers reach nobody.
func TestCancel(t *testing.T) {
	var mu sync.Mutex
	held := map[uint16][]Request{} // by method
	n := newNet()
	a := n.server(t, quick(), func(q Request) {
		mu.Lock()
		held[q.Method] = append(held[q.Method], q)
		mu.Unlock()
	})
	there := func(method uint16) bool { mu.Lock(); defer mu.Unlock(); return len(held[method]) == 50 }
	c := n.client(t, a.addr, quick())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := c.Call(ctx, 1, []byte("old")); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	until(t, "all to be there", func() bool { return there(1) })
	cancel()
	wg.Wait()
	if s := c.Stats(); s.CallsWaiting != 0 {
		t.Fatalf("%d waiters are left", s.CallsWaiting)
	}
	got := make(chan error, 1)
	c.Go(2, time.Now().Add(20*time.Millisecond), 0, nil, func(_ []byte, err error) { got <- err })
	if err := <-got; err != ErrDeadline {
		t.Fatal(err)
	}
	c.Go(2, time.Now().Add(-time.Second), 0, nil, func(_ []byte, err error) { got <- err })
	if err := <-got; err != ErrDeadline {
		t.Fatal(err)
	}
	for i := range 50 { // the slots are used again, all of them
		wg.Go(func() {
			body := fmt.Append(nil, i)
			if b, err := c.Call(t.Context(), 3, body); err != nil || !bytes.Equal(b, body) {
				t.Errorf("%q, %v; want %q", b, err, body)
			}
		})
	}
	until(t, "the new ones to be there", func() bool { return there(3) })
	mu.Lock()
	for _, q := range append(held[1], held[3]...) { // the old answers arrive first
		q.Reply(StatusOK, q.Body)
	}
	mu.Unlock()
	wg.Wait()
}

func TestDeadlineTravels(t *testing.T) {
	left := make(chan time.Duration, 2)
	n := newNet()
	a := n.server(t, quick(), func(q Request) {
		left <- time.Until(q.Deadline)
		if !q.Forwarded() || !q.From().Client {
			t.Error("flags or role are lost")
		}
		q.Reply(StatusOK, nil)
	})
	c := n.client(t, a.addr, Limits{})
	c.Go(1, time.Now().Add(10*time.Second), FlagForwarded, nil, func([]byte, error) {})
	c.Go(1, time.Now().Add(24*time.Hour), FlagForwarded, nil, func([]byte, error) {})
	if d := <-left; d > 11*time.Second || d < time.Second {
		t.Fatal(d)
	}
	if d := <-left; d > time.Minute {
		t.Fatal(d)
	}
}

// A handler that never answers does not hold its slot for ever.
func TestUnansweredExpires(t *testing.T) {
	n := newNet()
	a := n.server(t, quick(), func(q Request) {})
	c := n.client(t, a.addr, quick())
	c.Go(1, time.Now().Add(10*time.Millisecond), 0, nil, func([]byte, error) {})
	until(t, "its arrival", func() bool { return a.Metrics().Requests.Load() == 1 })
	until(t, "expiry", func() bool { return a.Conns()[0].RequestsInFlight == 0 })
}

// A client that asks much and reads nothing is closed over a bound (rule Cluster3); others do not notice.
func TestClientThatDoesNotRead(t *testing.T) {
	n := newNet()
	l := quick()
	l.AnswerBytesMax = 4 << 20
	l.WriteTimeout = time.Second
	answer := make([]byte, 256<<10)
	a := n.server(t, l, func(q Request) { q.Reply(StatusOK, answer) })
	good := n.client(t, a.addr, quick())
	bad := n.client(t, a.addr, quick())
	n.mu.Lock()
	wire := n.conns[len(n.conns)-2]
	n.mu.Unlock()
	wire.in.set(func() { wire.in.paused = true }) // its answers stay in the network
	for range 1000 {
		bad.Go(1, time.Now().Add(time.Minute), 0, nil, func([]byte, error) {})
	}
	most := 0
	until(t, "the bad one to be closed", func() bool {
		conns := a.Conns()
		for _, c := range conns {
			most = max(most, c.AnswerBytes)
		}
		if _, err := good.Call(t.Context(), 1, nil); err != nil {
			t.Fatal(err)
		}
		return len(conns) == 1
	})
	if most > l.AnswerBytesMax {
		t.Fatalf("%d bytes of answers were kept", most)
	}
}

// Answers that all come at once, to a client that does not read, are not kept over the bound: it is closed.
func TestAnswersAtOnceAreBounded(t *testing.T) {
	n := newNet()
	l := quick()
	l.AnswerBytesMax = 4 << 20
	l.SilenceMax, l.WriteTimeout = time.Minute, time.Minute // nothing else ends the connection
	answer := make([]byte, 256<<10)
	const requests = 100
	held := make(chan Request, requests)
	a := n.server(t, l, func(q Request) { held <- q })
	c := n.client(t, a.addr, l)
	n.mu.Lock()
	wire := n.conns[len(n.conns)-1]
	n.mu.Unlock()
	for range requests {
		c.Go(1, time.Now().Add(time.Minute), 0, nil, func([]byte, error) {})
	}
	until(t, "all to be there", func() bool { return len(held) == requests })
	wire.in.set(func() { wire.in.paused = true })
	for range requests {
		q := <-held
		q.Reply(StatusOK, answer)
		for _, s := range a.Conns() {
			if s.AnswerBytes > l.AnswerBytesMax {
				t.Fatalf("%d bytes of answers are kept", s.AnswerBytes)
			}
		}
	}
	until(t, "the client to be closed", func() bool { return len(a.Conns()) == 0 })
	wire.in.set(func() { wire.in.paused = false })
}

// A client that asks for more than it has read is not closed for that: no more of its requests are taken until it has. All are answered.
func TestSlowReaderIsServed(t *testing.T) {
	n := newNet()
	l := quick()
	l.AnswerBytesMax = 4 << 20
	l.SilenceMax, l.WriteTimeout = time.Minute, time.Minute
	answer := make([]byte, 256<<10)
	a := n.server(t, l, func(q Request) { q.Reply(StatusOK, answer) })
	c := n.client(t, a.addr, l)
	n.mu.Lock()
	wire := n.conns[len(n.conns)-2] // the client's end
	n.mu.Unlock()
	wire.in.set(func() { wire.in.paused = true })
	const requests = 200
	got := make(chan error, requests)
	for range requests {
		c.Go(1, time.Now().Add(time.Minute), 0, nil, func(_ []byte, err error) { got <- err })
	}
	until(t, "answers to wait", func() bool { s := a.Conns(); return len(s) == 1 && s[0].AnswerBytes > l.AnswerBytesMax/2 })
	wire.in.set(func() { wire.in.paused = false })
	for range requests {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

// What one connection has in flight is bounded in bytes; what was answered makes room.
func TestBytesInFlightAreBounded(t *testing.T) {
	n := newNet()
	l := quick()
	l.InFlightBytesMax = 1 << 20
	held := make(chan Request, 100)
	a := n.server(t, l, func(q Request) { held <- q })
	c := n.client(t, a.addr, l)
	const requests, at = 40, 4
	got := make(chan error, requests)
	for range requests {
		c.Go(1, time.Now().Add(time.Minute), 0, make([]byte, l.InFlightBytesMax/at), func(_ []byte, err error) { got <- err })
	}
	for i := range requests {
		q := <-held
		if n := a.Conns()[0].RequestsInFlight; n > at {
			t.Fatalf("%d requests of a quarter of the bound each are in flight", n)
		}
		until(t, "as much as may be in flight", func() bool { return a.Conns()[0].RequestsInFlight == min(at, requests-i) })
		q.Reply(StatusOK, nil)
	}
	for range requests {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitsOfRequests(t *testing.T) {
	n := newNet()
	l := quick()
	l.FrameBytesMax, l.ClientFrameMax = 2<<20, 1<<20
	var answer []byte
	a := n.server(t, l, func(q Request) { q.Reply(StatusOK, answer) })
	c := n.client(t, a.addr, l)
	if _, err := c.Call(t.Context(), 1, make([]byte, 1<<20)); err != ErrTooLarge {
		t.Fatal(err)
	}
	if _, err := c.Call(t.Context(), 1, make([]byte, 1<<20-100)); err != nil {
		t.Fatal(err)
	}
	answer = make([]byte, 2<<20)
	var st *StatusError
	if _, err := c.Call(t.Context(), 1, nil); !errors.As(err, &st) || st.Status != StatusTooLarge {
		t.Fatal(err)
	}
}

func TestConnectionLostEndsCalls(t *testing.T) {
	n := newNet()
	a := n.server(t, quick(), func(q Request) {})
	c := n.client(t, a.addr, quick())
	got := make(chan error, 100)
	for range 100 {
		c.Go(1, time.Now().Add(time.Minute), 0, nil, func(_ []byte, err error) { got <- err })
	}
	until(t, "arrival", func() bool { return a.Metrics().Requests.Load() == 100 })
	n.each(func(c *memConn) { c.Close() })
	for range 100 {
		if err := <-got; err != ErrConnectionLost {
			t.Fatal(err)
		}
	}
	<-c.Done()
	if s := c.Stats(); s.CallsWaiting != 0 {
		t.Errorf("%d waiters are left", s.CallsWaiting)
	}
	until(t, "the waiters to be gone", func() bool {
		_, err := c.Call(t.Context(), 1, nil)
		return err == ErrNotConnected
	})
}

// Malformed envelopes close the connection that sent them.
func TestMalformedEnvelope(t *testing.T) {
	for _, b := range [][]byte{{0xc1}, {0x95, 1, 2, 3}, {0x95, 1, 0xce, 1, 0, 0, 0, 1, 1, 0xc4, 0}, {0xdd, 0xff, 0xff, 0xff, 0xff}} {
		n := newNet()
		a := n.server(t, quick(), func(q Request) { t.Error("served") })
		c := n.client(t, a.addr, quick())
		until(t, "the session", func() bool { return c.s.ready.Load() })
		if err := c.s.calls.add(b); err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		until(t, "the count", func() bool { return a.Metrics().Malformed.Load() == 1 })
	}
}

func FuzzEnvelopes(f *testing.F) {
	f.Add([]byte{0x95, 1, 2, 3, 0, 0xc4, 1, 9})
	f.Add([]byte{0x93, 0, 0, 0xc4, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Metrics
		c := newCore(Limits{}, nil, &m)
		s := &session{core: c}
		_ = newServer(s, handlerFunc(func(q Request) { q.Reply(StatusOK, q.Body) })).frame(b)
		k := newCaller(c)
		_, _ = k.start(1, time.Time{}, 0, nil, func([]byte, error) {})
		_ = k.frame(b)
	})
}

type handlerFunc func(Request)

func (f handlerFunc) Request(q Request) { f(q) }

// The path of a call allocates nothing but the frames that are read.
func TestCallAllocations(t *testing.T) {
	var m Metrics
	c := newCore(Limits{}, nil, &m)
	k := newCaller(c)
	v := newServer(&session{core: c}, handlerFunc(func(q Request) { q.Reply(StatusOK, q.Body) }))
	done := func([]byte, error) {}
	deadline := time.Now().Add(time.Minute)
	body := make([]byte, 200)
	got := testing.AllocsPerRun(200, func() {
		for range 10 {
			if _, err := k.start(3, deadline, 0, body, done); err != nil {
				t.Fatal(err)
			}
		}
		q := k.take()
		if err := v.frame(q[frameHeader:]); err != nil {
			t.Fatal(err)
		}
		k.outbox.done(q)
		r := v.take()
		if err := k.frame(r[frameHeader:]); err != nil {
			t.Fatal(err)
		}
		v.outbox.done(r)
	})
	if got > 0 {
		t.Fatalf("%v allocations", got)
	}
}

func BenchmarkCalls(b *testing.B) {
	n := newNet()
	a := n.server(b, Limits{}, func(q Request) { q.Reply(StatusOK, q.Body) })
	c := n.client(b, a.addr, Limits{})
	slots := make(chan struct{}, 1000)
	body := make([]byte, 100)
	done := func(_ []byte, err error) {
		if err != nil {
			b.Error(err)
		}
		<-slots
	}
	deadline := time.Now().Add(time.Minute)
	b.ReportAllocs()
	for b.Loop() {
		slots <- struct{}{}
		c.Go(1, deadline, 0, body, done)
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
}

// A peer that does not take big answers gets an error for more of them, and small ones all the same; its session stays.
func TestBusy(t *testing.T) {
	var m Metrics
	c := newCore(Limits{AnswerBytesMax: 1 << 20, FrameBytesTarget: 100}, nil, &m)
	v := newServer(&session{core: c}, handlerFunc(func(q Request) { q.Reply(StatusOK, make([]byte, int(q.Method)<<10)) }))
	var b []byte
	for i, kib := range []uint64{200, 200, 200, 1, 200} {
		b = mp.AppendArray(b, requestFields)
		b = mp.AppendUint(mp.AppendUint(mp.AppendUint(mp.AppendUint(b, uint64(i)), kib), 1000), 0)
		b = mp.AppendBin(b, nil)
	}
	if err := v.frame(b); err != nil {
		t.Fatal(err)
	}
	got := make([]uint64, 5) // by request: big answers may be overtaken
	for f := v.take(); f != nil; f = v.take() {
		r := mp.NewReader(f[frameHeader:])
		for r.Len() > 0 {
			r.Array()
			id := r.Uint()
			got[id] = r.Uint()
			r.Bin()
		}
	}
	if want := []uint64{uint64(StatusOK), uint64(StatusOK), uint64(StatusBusy), uint64(StatusOK), uint64(StatusBusy)}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// The body of a big answer is sent as it is, and not copied.
func TestBigAnswersAreNotCopied(t *testing.T) {
	for _, size := range []int{ReplyKept - envelopeMax, ReplyKept + 1, 300 << 10, 4 << 20} {
		var metrics Metrics
		c := newCore(Limits{}, nil, &metrics)
		answer := make([]byte, size)
		for i := range answer {
			answer[i] = byte(i * 7)
		}
		v := newServer(&session{core: c}, handlerFunc(func(q Request) { q.Reply(StatusOK, answer) }))
		k := newCaller(c)
		var got []byte
		if _, err := k.start(1, time.Now().Add(time.Minute), 0, nil, func(b []byte, err error) { got = b }); err != nil {
			t.Fatal(err)
		}
		if err := v.frame(k.take()[frameHeader:]); err != nil {
			t.Fatal(err)
		}
		b := v.take()
		tail := v.writing.tail
		if big := size > ReplyKept; big != (len(tail) > 0) || big && &tail[0] != &answer[0] {
			t.Errorf("%d bytes: %d of them are sent as they are", size, len(tail))
		}
		sealFrame(b, tail)
		body, err := newFrameReader(bytes.NewReader(slices.Concat(b, tail)), 64<<20, 64<<20).next()
		if err != nil {
			t.Fatal(err)
		}
		if err := k.frame(body); err != nil || !bytes.Equal(got, answer) {
			t.Errorf("%d bytes came, not the %d of the answer: %v", len(got), size, err)
		}
		if v.outbox.done(b); v.bytes != 0 || v.writing.tail != nil {
			t.Errorf("%d bytes are left", v.bytes)
		}
	}
}

// What a client has sent and the node has not read counts, though it lies in yamux, and counts no more once it was read and answered.
func TestUnreadIsHeld(t *testing.T) {
	var mu sync.Mutex
	var waiting []Request
	answering := false
	n := newNet()
	l := quick()
	l.InFlightMax, l.FrameBytesTarget = 1, 1<<10 // each request is a frame: two of them at a time are not in yamux
	l.WriteTimeout, l.RequestDeadlineMax = time.Minute, time.Minute
	a := n.server(t, l, func(q Request) {
		mu.Lock()
		defer mu.Unlock()
		if waiting = append(waiting, q); !answering {
			return
		}
		for _, q := range waiting {
			q.Reply(StatusOK, nil)
		}
		waiting = nil
	})
	c := n.client(t, a.addr, l)
	const requests, size = 40, 100 << 10
	answers := make(chan error, requests)
	for range requests {
		c.Go(1, time.Now().Add(time.Minute), 0, make([]byte, size), func(_ []byte, err error) { answers <- err })
	}
	until(t, "what is not read to be held", func() bool { return a.core.held.Held() > 4*size })
	mu.Lock()
	answering = true
	for _, q := range waiting {
		q.Reply(StatusOK, nil)
	}
	waiting = nil
	mu.Unlock()
	for range requests {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	until(t, "nothing to be held", func() bool { return a.core.held.Held() == 0 })
	if len(a.Conns()) != 1 {
		t.Error("the client is gone")
	}
}

// oneBig is the configuration of a node that expects an answer of 1 MiB to each request, and has credits for one.
func (n *memNet) oneBig() Config {
	cfg := n.config(1)
	cfg.Limits.BigBytesMax, cfg.Limits.RequestDeadlineMax = 1<<20, time.Minute
	cfg.Expect = func(uint16) int { return 1 << 20 }
	return cfg
}

// A client that goes while its requests are being served gives back what the answers to them were expected to take: the next one is served.
func TestCreditsOfTheGoneComeBack(t *testing.T) {
	n := newNet()
	cfg := n.oneBig()
	r := newRecorder()
	got := make(chan Request, 10)
	r.onRequest = func(q Request) { got <- q }
	a := n.start(t, cfg, r)
	first := n.client(t, a.addr, quick())
	first.Go(1, time.Now().Add(time.Minute), 0, nil, func([]byte, error) {})
	<-got
	second := n.client(t, a.addr, quick())
	answered := make(chan error, 1)
	second.Go(1, time.Now().Add(time.Minute), 0, nil, func(_ []byte, err error) { answered <- err })
	first.Close()
	select {
	case q := <-got:
		q.Reply(StatusOK, nil)
	case <-time.After(20 * time.Second):
		t.Fatal("who is gone keeps what its answers were to take")
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

// A session that has ended while its request waited for credits has the request served no more, though the rest of it is still there: the answer would be
// made for nobody, and without credits.
func TestTheEndedHaveNoTurn(t *testing.T) {
	var m Metrics
	c := newCore(Limits{BigBytesMax: 1 << 20}, nil, &m)
	c.expect = func(uint16) int { return 1 << 20 }
	s := &session{core: c, done: make(chan struct{}), held: c.held.Open("", func() {})}
	served := 0
	v := newServer(s, handlerFunc(func(Request) { served++ }))
	k := newCaller(c)
	for range 2 {
		if _, err := k.start(1, time.Now().Add(time.Minute), 0, nil, func([]byte, error) {}); err != nil {
			t.Fatal(err)
		}
		if err := v.frame(k.take()[frameHeader:]); err != nil {
			t.Fatal(err)
		}
		if served == 1 && s.alive() {
			close(s.done)
		}
	}
	if served != 1 {
		t.Errorf("%d requests were served, of which one had credits", served)
	}
}

// Who goes while its request waits for a turn is out of the way, and the request is not served.
func TestTheGoneHaveNoTurn(t *testing.T) {
	n := newNet()
	cfg := n.oneBig()
	r := newRecorder()
	var served atomic.Int32
	r.onRequest = func(Request) { served.Add(1) }
	a := n.start(t, cfg, r)
	ask := func() *ClientConn {
		c := n.client(t, a.addr, quick())
		c.Go(1, time.Now().Add(time.Minute), 0, nil, func([]byte, error) {})
		return c
	}
	ask()
	until(t, "the first request", func() bool { return served.Load() == 1 })
	var waiting []*ClientConn
	for range 20 {
		waiting = append(waiting, ask())
	}
	until(t, "the others to wait", func() bool { return a.metrics.FramesIn.Load() == 21 })
	for _, c := range waiting {
		c.Close()
	}
	until(t, "one client to be left", func() bool { return len(a.Conns()) == 1 })
	if n := served.Load(); n != 1 {
		t.Errorf("%d requests were served, of which all but one were of those who have gone", n)
	}
}

// unreadBig starts a node with credits for one big answer, which a client has asked for and does not read, and another one that waits for its
// turn. The function returned has the first one read.
func unreadBig(t *testing.T, patience time.Duration) (first *ClientConn, answers [2]chan error, read func()) {
	n := newNet()
	cfg := n.oneBig()
	cfg.Limits.BigPatience, cfg.Limits.WriteTimeout = patience, time.Minute
	r := newRecorder()
	answer := make([]byte, 1<<20)
	var served atomic.Int32
	r.onRequest = func(q Request) {
		served.Add(1)
		q.Reply(StatusOK, answer)
	}
	a := n.start(t, cfg, r)
	first = n.client(t, a.addr, quick())
	n.mu.Lock()
	wire := n.conns[len(n.conns)-2]
	n.mu.Unlock()
	second := n.client(t, a.addr, quick())
	wire.in.set(func() { wire.in.paused = true })
	for i, c := range []*ClientConn{first, second} {
		answers[i] = make(chan error, 1)
		c.Go(1, time.Now().Add(time.Minute), 0, nil, func(_ []byte, err error) { answers[i] <- err })
		if i == 0 {
			until(t, "the first answer", func() bool { return served.Load() == 1 })
		}
	}
	if patience >= time.Minute {
		until(t, "the second one to wait", a.core.big.Waiting)
		if n := served.Load(); n != 1 {
			t.Fatalf("%d requests were served", n)
		}
	}
	return first, answers, func() { wire.in.set(func() { wire.in.paused = false }) }
}

// A big answer that its client has not taken keeps its credits: the next one is made when it was.
func TestUnreadAnswersKeepTheirCredits(t *testing.T) {
	_, answers, read := unreadBig(t, time.Minute)
	read()
	for _, c := range answers {
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	}
}

// While others wait for these credits, a client that takes nothing is cut off after a while.
func TestUnreadAnswersCutOff(t *testing.T) {
	first, answers, read := unreadBig(t, time.Millisecond)
	if err := <-answers[1]; err != nil {
		t.Fatal(err)
	}
	read() // else it cannot see that its connection has ended
	<-first.Done()
}

// Those who are to be cut off go one after the other: all that wait for them would be made at once.
func TestCutOffOneAfterTheOther(t *testing.T) {
	var m Metrics
	c := newCore(Limits{}, nil, &m)
	c.big.Take("", int64(c.limits.BigBytesMax), nil)
	gone := make(chan struct{})
	waited := make(chan struct{})
	go func() {
		c.big.Take("another", 1, gone)
		close(waited)
	}()
	until(t, "somebody to wait", c.big.Waiting)
	var all []*session
	for range 3 {
		near, far := net.Pipe()
		defer far.Close()
		s := newSession(c, newConn(near, c.clock), nil)
		s.held = c.held.Open("", func() {})
		s.srv = newServer(s, handlerFunc(func(Request) {}))
		s.srv.putApart(apartFrame{b: make([]byte, frameHeader), credit: 1})
		s.watches[0].Store(1)
		s.ready.Store(true)
		all = append(all, s)
	}
	at := int64(c.limits.BigPatience)
	for want, now := range []int64{at, at + 2, at + 3, at + 2 + at/cutOffs, at + 2 + 2*at/cutOffs} {
		want = []int{0, 1, 1, 2, 3}[want]
		for _, s := range all {
			s.tick(now)
		}
		alive := 0
		for _, s := range all {
			if s.alive() {
				alive++
			}
		}
		if alive != len(all)-want {
			t.Errorf("after %v %d are there, want %d", time.Duration(now), alive, len(all)-want)
		}
	}
	close(gone)
	<-waited
}

// Over the bound of all clients a client goes whose requests lie in yamux unread.
func TestUnreadGreedyGoes(t *testing.T) {
	n := newNet()
	l := quick()
	l.InFlightMax, l.ClientsBytesMax, l.FrameBytesTarget = 1, 256<<10, 1<<10
	l.WriteTimeout, l.RequestDeadlineMax = time.Minute, time.Minute
	a := n.server(t, l, func(Request) {})
	c := n.client(t, a.addr, l)
	for range 20 {
		c.Go(1, time.Now().Add(time.Minute), 0, make([]byte, 50<<10), func([]byte, error) {})
	}
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("%d bytes are held", a.core.held.Held())
	}
}
