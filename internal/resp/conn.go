package resp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/budget"
	"github.com/kiloraft/kiloraft/internal/door"
)

// conn is one connection. What is not said to be guarded belongs to the reader.
type conn struct {
	s     *Server
	id    uint64
	nc    net.Conn // the TLS connection, if there is one
	raw   net.Conn // closed to end everything at once
	host  string   // where it comes from: whose share it takes
	p     parser
	began time.Time
	last  atomic.Int64 // unix ms of the last request
	resp3 bool
	quit  bool // read no more

	who     *auth.Identity // who the client is
	greeted *auth.Identity // who it was before it gave a password
	atEnd   func() bool    // stops the timer of the certificate's end; may be nil

	replyOff  bool // CLIENT REPLY
	replySkip int  // so many replies are left out

	multi   *transaction
	watched map[string]uint64 // versions

	ctx     context.Context // of commands; renewed
	ctxEnds context.CancelFunc
	ctxMade time.Time

	life     context.Context // ends when the connection is cut off: nobody waits any more for what it wanted
	lifeEnds context.CancelFunc
	asking   int64 // credits of Server.bigAsk for the request being read
	hasty    bool  // the request being read must arrive by askEnd, and without a pause that others would wait for
	askEnd   time.Time
	held     *budget.Account // requests being read and in flight, replies in the making and not taken

	mu                    sync.Mutex
	wake                  sync.Cond  // of the writer
	space                 sync.Cond  // of the reader
	queue                 []*request // in order; guarded by mu, like all below
	unfinished            int
	finished              []*request // whose waiters are to be told
	replyBytes            int        // of finished replies, and reserved
	requestBytes          int
	answered              int // requests, InflightMax at most
	replySize             int // what a reply has had of late, per key
	keys                  map[string]*keyState
	ended                 bool // the reader has ended: write what is left, then close
	broken                bool // replies go nowhere any more
	name, libName, libVer string
	user                  string
	lastCommand           string
	proto                 int
	inMulti               bool
}

// request is one command on its way.
type request struct {
	c      *conn
	spec   *spec
	args   [][]byte
	resp3  bool
	silent bool
	keys   [][]byte
	start  func(*request)
	size   int       // about how many bytes the arguments are
	credit int64     // of Server.big
	asking int64     // of Server.bigAsk
	doing  int64     // of Server.bigDo
	began  time.Time // when it got them

	// Guarded by conn.mu.
	reply   []byte
	held    int // bytes reserved for the reply in the making
	done    bool
	waits   int // requests that must be done first
	waiters []*request
}

// keyState is what is under way on a key.
type keyState struct {
	writer  *request // the last one, if it is not done
	readers []*request
}

func newConn(s *Server, id uint64, nc net.Conn) *conn {
	c := &conn{s: s, id: id, nc: nc, raw: nc, host: door.Of(nc), who: auth.Nobody(), user: "nobody", began: time.Now(), keys: map[string]*keyState{}, proto: 2}
	if s.cfg.TLS != nil {
		c.nc = tls.Server(nc, s.cfg.TLS)
	}
	c.wake.L, c.space.L = &c.mu, &c.mu
	c.life, c.lifeEnds = context.WithCancel(s.ctx)
	c.held = s.held.Open(c.host, c.kill)
	c.replySize = max(bigReply, int(s.replySize.Load()))
	c.p = parser{src: hurried{c}, limits: limitsStranger, beforeRead: c.beforeRead, hold: func(n int) { c.held.Add(int64(n)) }, admit: c.admit}
	c.last.Store(nowMs())
	return c
}

// beforeRead lets the writer send what it has, before the reader waits for more.
func (c *conn) beforeRead() {
	c.mu.Lock()
	c.wake.Signal()
	c.mu.Unlock()
	if c.hasty {
		c.hurry()
	} else if d := c.s.cfg.IdleTimeout; d > 0 && !c.p.limits.stranger {
		_ = c.nc.SetReadDeadline(time.Now().Add(d))
	}
}

// hurry gives the client a while to send more of a big request.
func (c *conn) hurry() {
	at := time.Now().Add(c.s.cfg.BigPatience)
	if at.After(c.askEnd) {
		at = c.askEnd
	}
	_ = c.nc.SetReadDeadline(at)
}

// hurried reads from a connection. A pause within a big request ends it only if others wait for the credits of that, or if it was to be there by now.
type hurried struct{ c *conn }

// Read implements io.Reader.
func (h hurried) Read(b []byte) (int, error) {
	c := h.c
	for {
		n, err := c.nc.Read(b)
		if n > 0 || !c.hasty || !errors.Is(err, os.ErrDeadlineExceeded) || c.s.bigAsk.Waiting() || !time.Now().Before(c.askEnd) {
			return n, err
		}
		c.hurry()
	}
}

func (c *conn) readLoop() {
	if err := c.greet(); err != nil {
		c.s.cfg.Logger.Debug("redis: a client was not let in", "remote", c.nc.RemoteAddr(), "err", err)
		c.kill()
		return
	}
	if c.atEnd != nil {
		defer c.atEnd()
	}
	for !c.quit {
		args, err := c.p.next()
		if err != nil {
			var perr protocolError
			if errors.As(err, &perr) {
				c.s.stats.malformed.Add(1)
				c.replyErr("ERR " + perr.Error())
			}
			break
		}
		c.last.Store(nowMs())
		if isHTTP(args[0]) {
			c.s.stats.malformed.Add(1)
			break
		}
		c.dispatch(args)
		c.letGo()
	}
	c.letGo()
	c.setMulti(nil)
	c.mu.Lock()
	c.ended = true
	c.wake.Signal()
	c.mu.Unlock()
}

// kill ends the connection at once.
func (c *conn) kill() {
	c.mu.Lock()
	c.ended, c.broken = true, true
	c.wake.Signal()
	c.space.Broadcast()
	c.mu.Unlock()
	c.lifeEnds()
	_ = c.raw.Close()
}

// context returns one for a command that starts now. It is shared by the commands of some time, so that it costs them nothing.
func (c *conn) context() context.Context {
	now := time.Now()
	if c.ctx == nil || now.Sub(c.ctxMade) > c.s.cfg.Timeout/8 {
		// The one before ends by itself: its commands may still run.
		c.ctx, c.ctxEnds = context.WithTimeout(c.life, c.s.cfg.Timeout)
		c.ctxMade = now
	}
	return c.ctx
}

// bigDoBytes is how much of big requests is under way in the cluster at a time: small writes wait for the disk behind it. A single request may be more.
const bigDoBytes = 8 << 20

// rest gives back what a big request had of bigDo, after as long as it took: half of the time the logs of the cluster are there for small writes
// alone, each of which waits for the frame before it to be synced.
func (s *Server) rest(n int64, took time.Duration) {
	s.cfg.After(took, func() { s.bigDo.Give(n) })
}

// admit waits until a request of n bytes or more may be read, which others wait for meanwhile.
func (c *conn) admit(n int) error {
	c.asking = c.s.bigAsk.Take(c.host, int64(n), c.life.Done())
	if c.asking == 0 {
		return net.ErrClosed
	}
	c.hasty, c.askEnd = true, time.Now().Add(c.s.cfg.BigTime)
	return nil
}

// letGo is called when a request was taken over, or was not read to its end.
func (c *conn) letGo() {
	c.p.letGo()
	c.s.bigAsk.Give(c.asking)
	c.asking = 0
	if c.hasty {
		_ = c.nc.SetReadDeadline(time.Time{})
		c.hasty = false
	}
}

// waitFull waits until r may be queued. Others go on with the credits meanwhile, for it may be the client that one waits for. c.mu is held.
func (c *conn) waitFull(r *request) {
	if !c.full(r) {
		return
	}
	n := c.asking
	c.s.bigAsk.Give(n)
	c.asking = 0
	for c.full(r) && !c.broken {
		c.wake.Signal()
		c.space.Wait()
	}
	if n > 0 && !c.broken {
		c.mu.Unlock()
		c.asking = c.s.bigAsk.Take(c.host, n, c.life.Done())
		c.mu.Lock()
	}
}

// submit puts a request into the queue, and starts it if no other must go first. A request without start is done.
func (c *conn) submit(r *request) {
	c.mu.Lock()
	c.waitFull(r)
	if n := c.expected(r); n > bigReply && !c.broken {
		c.wake.Signal()
		c.mu.Unlock()
		if c.s.big.Short(n) {
			c.s.hurryBig()
		}
		r.credit = c.s.big.Take(c.host, n, c.life.Done())
		c.mu.Lock()
	}
	if r.size >= bigRequest && r.start != nil && !c.broken {
		c.wake.Signal()
		c.mu.Unlock()
		r.doing, r.began = c.s.bigDo.Take(c.host, int64(r.size), c.life.Done()), time.Now()
		c.mu.Lock()
	}
	if c.broken {
		c.quit = true
		c.mu.Unlock()
		r.giveBack()
		c.s.bigDo.Give(r.doing)
		return
	}
	c.queue = append(c.queue, r)
	c.accountRequest(r.size)
	if r.start == nil {
		r.done = true
		c.account(len(r.reply))
		c.mu.Unlock()
		return
	}
	c.unfinished++
	r.asking, c.asking = c.asking, 0
	c.order(r)
	ready := r.waits == 0
	c.mu.Unlock()
	if ready {
		r.start(r)
	}
}

const (
	// bigReply is how big a reply is expected to be for its request to need credits.
	bigReply = 64 << 10
	// windowMin is how many requests a connection may have in flight before it has had a reply. Each reply adds two, so that what its requests
	// cost is known before there are many.
	windowMin = 4
)

// expected is how big the reply to r may be, or what is read for it. Of a new connection the worst is expected of commands with many keys. c.mu is held.
func (c *conn) expected(r *request) int64 {
	if r.spec != nil && !r.spec.readsValues(r.args) {
		return 0
	}
	perKey := c.replySize
	if len(r.keys) > 1 && c.answered < strangerReplies {
		perKey = max(perKey, strangerReply)
	}
	return int64(perKey) * int64(len(r.keys))
}

const (
	strangerReplies = 8
	strangerReply   = 256 << 10 // per key
)

// learn notes the size of a reply, of what was read for it if that is more. c.mu is held.
func (c *conn) learn(r *request, n int) {
	if c.broken || r.spec != nil && !r.spec.readsValues(r.args) { // there was no reply, or none that tells anything
		return
	}
	c.answered = min(c.answered+1, c.s.cfg.InflightMax)
	if n = max(n, r.held); len(r.keys) > 0 {
		c.replySize += (n/len(r.keys) - c.replySize) / 2
		c.s.replySize.Store(int64(c.replySize))
	}
}

// bigBegun notes that the reply to r, for which it has credits, is being written: until it is taken nobody else gets them, so that replies
// which nobody reads are not made one after the other.
func (s *Server) bigBegun(c *conn, r *request) {
	if r.credit == 0 {
		return
	}
	s.bigMu.Lock()
	s.bigWriting[c] = r.credit
	s.bigMu.Unlock()
	r.credit = 0
}

// bigTaken ends that.
func (s *Server) bigTaken(c *conn) {
	s.bigMu.Lock()
	n, writing := s.bigWriting[c]
	delete(s.bigWriting, c)
	s.bigMu.Unlock()
	if writing {
		s.big.Give(n)
	}
}

// patience is how long the client of c may take nothing of what is written to it.
func (s *Server) patience(c *conn) time.Duration {
	s.bigMu.Lock()
	_, writing := s.bigWriting[c]
	s.bigMu.Unlock()
	if writing && s.big.Waiting() {
		return min(s.cfg.BigPatience, s.cfg.WriteTimeout)
	}
	return s.cfg.WriteTimeout
}

// hurryBig is called by who is about to wait for credits: those who have them must take their replies in time from now on.
func (s *Server) hurryBig() {
	s.bigMu.Lock()
	defer s.bigMu.Unlock()
	for c := range s.bigWriting {
		_ = c.nc.SetWriteDeadline(time.Now().Add(min(s.cfg.BigPatience, s.cfg.WriteTimeout)))
	}
}

// giveBack gives back the credits of a request.
func (r *request) giveBack() {
	if r.credit > 0 {
		r.c.s.big.Give(r.credit)
		r.credit = 0
	}
}

// full tells whether r must wait until less is in flight. c.mu is held.
func (c *conn) full(r *request) bool {
	return len(c.queue) >= min(c.s.cfg.InflightMax, windowMin+2*c.answered) || c.replyBytes > c.s.cfg.ReplyBytesMax/64 || c.requestBytes > 0 && c.requestBytes+r.size > c.s.cfg.RequestBytesMax
}

// sizeOf is about what arguments take.
func sizeOf(args [][]byte) (n int) {
	for _, a := range args {
		n += len(a) + 24
	}
	return n
}

// order makes r wait for earlier requests on its keys: a write for all of them, a read for writes.
func (c *conn) order(r *request) {
	after := func(before *request) {
		if before != nil && before != r && !before.done {
			before.waiters = append(before.waiters, r)
			r.waits++
		}
	}
	write := r.spec.writes()
	for _, k := range r.keys {
		st := c.keys[string(k)]
		if st == nil {
			st = &keyState{}
			c.keys[string(k)] = st
		}
		after(st.writer)
		if !write {
			st.readers = append(st.readers, r)
			continue
		}
		for _, reader := range st.readers {
			after(reader)
		}
		st.readers, st.writer = st.readers[:0], r
	}
}

// forget takes a request that is done out of the keys' states.
func (c *conn) forget(r *request) {
	for _, k := range r.keys {
		st := c.keys[string(k)]
		if st == nil {
			continue
		}
		if st.writer == r {
			st.writer = nil
		}
		for i := 0; i < len(st.readers); {
			if st.readers[i] == r {
				last := len(st.readers) - 1
				st.readers[i], st.readers[last] = st.readers[last], nil
				st.readers = st.readers[:last]
			} else {
				i++
			}
		}
		if st.writer == nil && len(st.readers) == 0 {
			delete(c.keys, string(k))
		}
	}
}

// finish is called once per started request, on any goroutine, maybe a lane: it does little and starts nothing.
func (r *request) finish(reply []byte) {
	c := r.c
	c.mu.Lock()
	c.learn(r, len(reply))
	if r.silent || c.broken {
		reply = nil
	}
	if len(reply) < batchBytes { // else when its client has taken it
		r.giveBack()
	}
	c.s.bigAsk.Give(r.asking)
	if r.doing > 0 {
		c.s.rest(r.doing, time.Since(r.began))
	}
	r.reply, r.done = reply, true
	c.unfinished--
	over := c.account(len(reply) - r.held)
	r.held = 0
	if len(r.keys) > 0 {
		c.finished = append(c.finished, r)
	}
	if c.queue[0] == r || len(r.waiters) > 0 {
		c.wake.Signal()
	}
	if c.unfinished == 0 {
		c.space.Signal()
	}
	c.mu.Unlock()
	if over {
		c.s.stats.dropped.Add(1)
		go c.kill() // closing may take its time
	}
}

// account counts bytes of replies, and tells whether they are too many. c.mu is held.
func (c *conn) account(n int) bool {
	c.replyBytes += n
	c.held.Add(int64(n))
	c.s.stats.replyBytes.Add(int64(n))
	return n > 0 && c.replyBytes > c.s.cfg.ReplyBytesMax
}

func (c *conn) accountRequest(n int) {
	c.requestBytes += n
	c.held.Add(int64(n))
	c.s.stats.requestBytes.Add(int64(n))
}

// reserve counts n bytes for the reply of r, which is being made, or for what it is made of; false if that is too much for the connection.
func (r *request) reserve(n int) bool {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken || c.replyBytes+n > c.s.cfg.ReplyBytesMax {
		return false
	}
	c.account(n)
	r.held += n
	return true
}

// release gives back what was reserved: the reply is begun anew.
func (r *request) release() {
	r.c.mu.Lock()
	r.c.account(-r.held)
	r.held = 0
	r.c.mu.Unlock()
}

// drain waits until all requests are done.
func (c *conn) drain() {
	c.mu.Lock()
	for c.wake.Signal(); c.unfinished > 0 && !c.broken; {
		c.space.Wait()
	}
	c.mu.Unlock()
}

// batchBytes is about how much the writer hands to the socket at a time.
const batchBytes = 64 << 10

// batches are buffers for replies that are being written: who writes nothing has none.
var batches = sync.Pool{New: func() any { return new([]byte) }}

func (c *conn) writeLoop() {
	var ready []*request
	for {
		c.mu.Lock()
		for len(c.finished) == 0 && (len(c.queue) == 0 || !c.queue[0].done) && (!c.ended || len(c.queue) > 0) {
			c.wake.Wait()
		}
		ready = c.release(ready[:0])
		buf := batches.Get().(*[]byte)
		batch, copied := c.collect((*buf)[:0])
		last := c.ended && len(c.queue) == 0
		broken := c.broken
		c.mu.Unlock()
		for _, r := range ready {
			r.start(r)
		}
		started := len(ready) > 0
		clear(ready)
		if broken {
			c.taken(len(batch))
		} else if c.write(batch) != nil {
			c.kill()
		}
		if copied && cap(batch) <= 16*batchBytes {
			*buf = batch
		}
		batches.Put(buf)
		c.s.bigTaken(c)
		if last && !started {
			if broken {
				_ = c.raw.Close()
			} else {
				_ = c.nc.Close() // says goodbye in TLS
			}
			return
		}
	}
}

// release returns the requests that had been waiting for those that are done.
func (c *conn) release(ready []*request) []*request {
	for _, r := range c.finished {
		c.forget(r)
		for _, w := range r.waiters {
			if w.waits--; w.waits == 0 {
				ready = append(ready, w)
			}
		}
		r.waiters = nil
	}
	clear(c.finished) // or what was asked last would be held for as long as nothing else is
	c.finished = c.finished[:0]
	return ready
}

// collect takes replies from the head of the queue. They are copied into buf, but for one that is a batch by itself. Until they are taken they count.
// c.mu is held.
func (c *conn) collect(buf []byte) (batch []byte, copied bool) {
	n := 0
	batch, copied = buf, true
	for n < len(c.queue) && c.queue[n].done && len(batch) < batchBytes {
		r := c.queue[n]
		c.accountRequest(-r.size)
		c.queue[n] = nil
		n++
		if len(batch) == 0 && len(r.reply) >= batchBytes {
			batch, copied = r.reply, false
			c.s.bigBegun(c, r)
			break
		}
		batch = append(batch, r.reply...)
	}
	if n > 0 {
		if c.queue = c.queue[n:]; len(c.queue) == 0 {
			c.queue = nil
		}
		c.space.Signal()
	}
	return batch, copied
}

// write sends b in steps, each of which the client must take in time.
func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		step := b[:min(len(b), 4*batchBytes)]
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.s.patience(c)))
		if _, err := c.nc.Write(step); err != nil {
			c.taken(len(b)) // or never will be
			return err
		}
		c.taken(len(step))
		b = b[len(step):]
	}
	return nil
}

// taken counts bytes of replies as taken by the client.
func (c *conn) taken(n int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	c.account(-n)
	c.space.Signal()
	c.mu.Unlock()
}

// out returns an empty reply in the connection's protocol.
func (c *conn) out() *out { return &out{resp3: c.resp3} }

// replyNow puts a finished reply into the queue.
func (c *conn) replyNow(o *out) {
	r := &request{c: c, reply: o.b}
	if c.silent() {
		r.reply = nil
	}
	c.submit(r)
}

func (c *conn) replyErr(text string) {
	o := c.out()
	o.err(text)
	c.replyNow(o)
}

// silent tells whether the request at hand gets no reply, and forgets CLIENT REPLY SKIP.
func (c *conn) silent() bool {
	s := c.replyOff || c.replySkip > 0
	c.replySkip = max(c.replySkip-1, 0)
	return s
}
