package transport

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// Requests go one way on a stream and their answers come back on the same stream, in any order. Both are concatenated
// msgpack arrays in frames, many to a frame:
//
//	request [ id, method, milliseconds left, flags, body ]
//	answer  [ id, status, body ]
//
// Two nodes have two such streams, one for each direction of asking, so that a node which does not read more requests
// still reads its answers.

const (
	requestFields = 5
	answerFields  = 3
	// envelopeMax bounds what either takes beside its body.
	envelopeMax = 48
)

// ReplyKept is the size over which the body of an answer is not copied.
const ReplyKept = 64 << 10

// FlagForwarded marks a request that must not be forwarded again (rule Cluster3).
const FlagForwarded uint8 = 1

// waiters is a table of things in progress with ids that are not reused soon: slot and generation.
type waiters[T any] struct {
	slots []waiter[T]
	free  []uint32
	// next is not later than the earliest deadline of a used slot; zero if there is none.
	next int64
}

type waiter[T any] struct {
	gen      uint32
	used     bool
	deadline int64
	v        T
}

func (w *waiters[T]) add(deadline int64, v T) uint64 {
	var i uint32
	if n := len(w.free); n > 0 {
		i, w.free = w.free[n-1], w.free[:n-1]
	} else {
		i = uint32(len(w.slots))
		w.slots = append(w.slots, waiter[T]{})
	}
	s := &w.slots[i]
	s.gen++
	s.used, s.deadline, s.v = true, deadline, v
	if w.next == 0 || deadline < w.next {
		w.next = deadline
	}
	return uint64(s.gen)<<32 | uint64(i)
}

// remove takes out the entry of this id, if it is still there.
func (w *waiters[T]) remove(id uint64) (v T, ok bool) {
	i := uint32(id)
	if uint64(i) >= uint64(len(w.slots)) {
		return v, false
	}
	s := &w.slots[i]
	if !s.used || s.gen != uint32(id>>32) {
		return v, false
	}
	v = s.v
	var zero T
	s.used, s.v = false, zero
	w.free = append(w.free, i)
	return v, true
}

// expired appends the ids whose deadline has passed.
func (w *waiters[T]) expired(now int64, ids []uint64) []uint64 {
	if w.next == 0 || now < w.next {
		return ids
	}
	w.next = 0
	for i := range w.slots {
		s := &w.slots[i]
		switch {
		case !s.used:
		case s.deadline <= now:
			ids = append(ids, uint64(s.gen)<<32|uint64(i))
		case w.next == 0 || s.deadline < w.next:
			w.next = s.deadline
		}
	}
	return ids
}

func (w *waiters[T]) used() int { return len(w.slots) - len(w.free) }

// caller is the asking end of a request stream.
type caller struct {
	outbox // its lock guards the rest too
	w      waiters[func([]byte, error)]
	core   *core
}

func newCaller(c *core) *caller {
	l := &c.limits
	return &caller{core: c, outbox: newOutbox(l.RequestBytesMax, min(l.ClientFrameMax, l.FrameBytesMax), l.FrameBytesTarget)}
}

// start queues a request. On an error done is not called; else it is called once. The id is for cancel.
func (c *caller) start(method uint16, deadline time.Time, flags uint8, body []byte, done func([]byte, error)) (uint64, error) {
	left := c.core.limits.RequestDeadlineMax
	if !deadline.IsZero() {
		left = min(left, time.Until(deadline))
	}
	if left <= 0 {
		return 0, ErrDeadline
	}
	c.mu.Lock()
	if err := c.admits(envelopeMax + len(body)); err != nil {
		c.mu.Unlock()
		return 0, err
	}
	id := c.w.add(c.core.clock.now()+int64(left), done)
	apart := c.partMax > 0 && len(body) > c.partMax // others overtake it
	var b []byte
	if apart {
		b = make([]byte, frameHeader, frameHeader+envelopeMax+len(body))
	} else {
		c.open(envelopeMax + len(body))
		b = c.cur
	}
	before := len(b)
	b = mp.AppendArray(b, requestFields)
	b = mp.AppendUint(b, id)
	b = mp.AppendUint(b, uint64(method))
	b = mp.AppendUint(b, uint64((left+time.Millisecond-1)/time.Millisecond))
	b = mp.AppendUint(b, uint64(flags))
	b = mp.AppendBin(b, body)
	if apart {
		c.putApart(apartFrame{b: b})
	} else {
		c.cur = b
		c.added(len(b) - before)
	}
	c.mu.Unlock()
	c.signal()
	c.core.metrics.Calls.Add(1)
	return id, nil
}

// call is start and wait.
func (c *caller) call(ctx context.Context, method uint16, flags uint8, body []byte) ([]byte, error) {
	type answer struct {
		body []byte
		err  error
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ch := make(chan answer, 1)
	deadline, _ := ctx.Deadline()
	id, err := c.start(method, deadline, flags, body, func(b []byte, err error) { ch <- answer{b, err} })
	if err != nil {
		return nil, err
	}
	select {
	case a := <-ch:
		return a.body, a.err
	case <-ctx.Done():
		if c.cancel(id) {
			return nil, ctx.Err()
		}
		a := <-ch // it came at the same moment
		return a.body, a.err
	}
}

func (c *caller) finish(id uint64, body []byte, err error) {
	c.mu.Lock()
	done, ok := c.w.remove(id)
	c.mu.Unlock()
	if ok {
		done(body, err)
	}
}

// cancel forgets a request; its answer will be dropped. It returns false if done was or is being called.
func (c *caller) cancel(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.w.remove(id)
	return ok
}

// frame delivers a frame of answers, whose bodies alias it.
func (c *caller) frame(b []byte) error {
	r := mp.NewReader(b)
	for r.Len() > 0 && r.Err() == nil {
		extra := r.ArrayMin(answerFields)
		id, status, body := r.Uint(), r.Uint(), r.Bin()
		r.Skip(extra)
		if r.Err() != nil {
			break
		}
		switch {
		case status == uint64(StatusOK):
			c.finish(id, body, nil)
		case status > 65535:
			r.Fail("status")
		default:
			c.finish(id, nil, &StatusError{Status: uint16(status), Body: body})
		}
	}
	return r.Err()
}

func (c *caller) expire(now int64) {
	c.mu.Lock()
	ids := c.w.expired(now, nil)
	c.mu.Unlock()
	for _, id := range ids {
		c.finish(id, nil, ErrDeadline)
	}
}

func (c *caller) inFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.used()
}

// fail ends all that waits.
func (c *caller) fail() {
	c.outbox.close(ErrNotConnected)
	c.mu.Lock()
	var all []func([]byte, error)
	for i := range c.w.slots {
		if s := &c.w.slots[i]; s.used {
			all = append(all, s.v)
		}
	}
	c.w = waiters[func([]byte, error)]{}
	c.mu.Unlock()
	for _, done := range all {
		done(nil, ErrConnectionLost)
	}
}

// flight is a request that was not answered yet.
type flight struct {
	theirs uint64 // its id at the caller
	bytes  int
	quick  bool
	credit int64 // of core.big
}

// server is the answering end of a request stream.
type server struct {
	outbox // its lock guards the rest too
	w      waiters[flight]
	flying int // bytes of the requests in flight
	// Of a client's quick requests (Config.Expect): how many are in flight, how many were answered, InFlightMax at most, and what an answer has
	// had of late.
	quick, answered, answerSize int
	s                           *session
	handler                     requestHandler
}

// requestHandler is the part of Handler that a server needs.
type requestHandler interface{ Request(req Request) }

func newServer(s *session, h requestHandler) *server {
	l := &s.core.limits
	target := l.FrameBytesTarget
	if s.client {
		target = min(target, 64<<10)
	}
	v := &server{s: s, handler: h, outbox: newOutbox(l.AnswerBytesMax, l.FrameBytesMax, target)}
	v.cond = sync.NewCond(&v.mu)
	v.hold, v.give = s.hold, s.core.big.Give
	return v
}

// Request is a request being served, and its only way to be answered: by calling Reply once, from any goroutine. The body
// belongs to the handler.
type Request struct {
	Method   uint16
	Flags    uint8
	Deadline time.Time
	Body     []byte

	id  uint64
	srv *server
}

// Caller names the other side of a connection.
type Caller struct {
	Client      bool
	Node        engine.NodeID // zero for clients
	Incarnation uint64
	Addr        net.Addr
}

// From tells who asks.
func (q *Request) From() Caller { return q.srv.s.caller() }

// Identity returns what Config.Authenticate said of who asks, nil without it.
func (q *Request) Identity() any { return q.srv.s.identity }

// Forwarded tells that the request must not be forwarded again (rule Cluster3).
func (q *Request) Forwarded() bool { return q.Flags&FlagForwarded != 0 }

// Reply answers. A body of ReplyKept bytes or less is copied; a longer one is kept, and must not be changed any more. A second answer, or one that
// comes after the deadline or the end of the connection, is dropped.
func (q *Request) Reply(status uint16, body []byte) {
	if q.srv != nil {
		q.srv.reply(q.id, status, body)
	}
}

// frame hands the requests of a frame to the handler, and waits while too many are in flight.
func (v *server) frame(b []byte) error {
	now := time.Now()
	r := mp.NewReader(b)
	for r.Len() > 0 && r.Err() == nil {
		extra := r.ArrayMin(requestFields)
		theirs, method, ms, flags, body := r.Uint(), r.Uint(), r.Uint(), r.Uint(), r.Bin()
		r.Skip(extra)
		if method > 65535 || flags > 255 {
			r.Fail("method or flags")
		}
		if r.Err() != nil {
			break
		}
		left := v.s.core.limits.RequestDeadlineMax
		left = time.Duration(min(ms, uint64(left/time.Millisecond))) * time.Millisecond
		expect := 0
		if v.s.held != nil && v.s.core.expect != nil {
			expect = v.s.core.expect(uint16(method))
		}
		id, ok := v.admit(flight{theirs: theirs, bytes: len(body), quick: expect > 0}, expect, left)
		if !ok {
			return nil // closed
		}
		v.s.core.metrics.Requests.Add(1)
		v.handler.Request(Request{Method: uint16(method), Flags: uint8(flags), Deadline: now.Add(left), Body: body, id: id, srv: v})
	}
	return r.Err()
}

// expireGrace is how long after its deadline a request that nobody answered is given up.
const expireGrace = time.Second

// admit waits until one more request may be in flight: what is not read, the other side cannot send.
func (v *server) admit(f flight, expect int, left time.Duration) (uint64, bool) {
	l := &v.s.core.limits
	v.mu.Lock()
	defer v.mu.Unlock()
	for v.err == nil && (v.w.used() >= l.InFlightMax || f.quick && v.quick >= quickMin+2*v.answered || v.flying > 0 && v.flying+f.bytes > l.InFlightBytesMax || v.bytes > l.AnswerBytesMax/2) {
		v.cond.Wait()
	}
	if v.answered >= strangerAnswers {
		expect = 0
	}
	if n := max(expect, v.answerSize); f.quick && n > bigAnswer && v.err == nil {
		v.mu.Unlock()
		f.credit = v.s.core.big.Take(v.s.host, int64(n), v.s.done)
		v.mu.Lock()
		if f.credit == 0 {
			return 0, false // the connection has ended: nobody would take the answer
		}
	}
	if v.err != nil {
		v.s.core.big.Give(f.credit)
		return 0, false
	}
	v.flying += f.bytes
	if f.quick {
		v.quick++
	}
	v.s.hold(f.bytes)
	return v.w.add(v.s.core.clock.now()+int64(left+expireGrace), f), true
}

const (
	// bigAnswer is the size of answers over which a client's requests need credits, over which an answer may be refused to a busy peer, and over
	// which smaller ones overtake it.
	bigAnswer = ReplyKept
	// quickMin is how many quick requests a client may have in flight before it has had an answer. Each answer adds two, so that what its requests
	// cost is known before there are many.
	quickMin = 4
	// strangerAnswers is after how many answers what was seen counts, and not what is expected.
	strangerAnswers = 8
)

// landed gives back what a request had in flight, but for its credits. v.mu is held.
func (v *server) landed(f *flight, answer int) {
	v.flying -= f.bytes
	v.s.hold(-f.bytes)
	if f.quick {
		v.quick--
		v.answered = min(v.answered+1, v.s.core.limits.InFlightMax)
		v.answerSize += (answer - v.answerSize) / 4
	}
	v.cond.Signal()
}

// end is called when the session is over and nothing of it runs any more: answers that come now go nowhere.
func (v *server) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range v.w.slots {
		if s := &v.w.slots[i]; s.used {
			v.landed(&s.v, 0)
			v.s.core.big.Give(s.v.credit)
		}
	}
	v.w = waiters[flight]{}
}

func (v *server) reply(id uint64, status uint16, body []byte) {
	v.mu.Lock()
	f, ok := v.w.remove(id)
	if ok {
		v.landed(&f, len(body))
	}
	defer func() {
		if f.credit > 0 {
			v.s.core.big.Give(f.credit)
		}
	}()
	if !ok || v.err != nil {
		v.mu.Unlock()
		return
	}
	n := envelopeMax + len(body)
	if v.s.held == nil && status == StatusOK && n > bigAnswer && v.bytes+n > v.bytesMax/2 {
		status, body, n = StatusBusy, nil, envelopeMax // this much at a time can only be reads: the link to a peer is not worth them
	}
	if n > v.frameMax {
		status, body, n = StatusTooLarge, nil, envelopeMax
	}
	if v.bytes > 0 && v.bytes+n > v.bytesMax {
		v.mu.Unlock()
		v.s.kill(errNotReading) // rule Cluster3
		return
	}
	before := v.bytes
	if n > bigAnswer {
		b := appendAnswerHeader(make([]byte, frameHeader, frameHeader+envelopeMax), f.theirs, status, len(body))
		v.putApart(apartFrame{b: b, tail: body, credit: f.credit})
		f.credit = 0 // until the client has taken it: answers that nobody reads are not made one after the other
	} else {
		v.open(n)
		at := len(v.cur)
		v.cur = appendAnswer(v.cur, f.theirs, status, body)
		v.added(len(v.cur) - at)
	}
	v.s.hold(v.bytes - before)
	v.mu.Unlock()
	v.signal()
}

func appendAnswer(b []byte, id uint64, status uint16, body []byte) []byte {
	return append(appendAnswerHeader(b, id, status, len(body)), body...)
}

// appendAnswerHeader appends an answer but for its body.
func appendAnswerHeader(b []byte, id uint64, status uint16, bodyBytes int) []byte {
	b = mp.AppendArray(b, answerFields)
	b = mp.AppendUint(b, id)
	b = mp.AppendUint(b, uint64(status))
	return mp.AppendBinHeader(b, bodyBytes)
}

func (v *server) expire(now int64) {
	v.mu.Lock()
	ids := v.w.expired(now, nil)
	v.mu.Unlock()
	for _, id := range ids {
		v.reply(id, StatusExpired, nil)
	}
}

func (v *server) inFlight() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.w.used()
}
