package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/kiloraft/kiloraft/internal/budget"
)

// core is what all sessions of a Transport or ClientConn share.
type core struct {
	versionMin, versionMax uint64

	limits  Limits
	log     *slog.Logger
	clock   clock
	metrics *Metrics
	held    *budget.Budget  // what clients hold
	big     *budget.Credits // for big answers to clients
	frames  *budget.Credits // for big frames of theirs
	spares  sync.Pool       // of *[]byte: bodies of such frames that did not arrive
	expect  func(method uint16) int
	cutOff  atomic.Int64 // when somebody was cut off last who did not take or send his
}

// mayCutOff tells whether a client may be cut off now so that others have their big answers made, or send their big frames, and notes it: not all at
// once, for then those are made and read at once.
func (c *core) mayCutOff(now int64) bool {
	last := c.cutOff.Load()
	return (last == 0 || now-last >= int64(c.limits.BigPatience/cutOffs)) && c.cutOff.CompareAndSwap(last, now)
}

// cutOffs is how many clients are cut off within Limits.BigPatience at most.
const cutOffs = 16

// The streams of a session. The dialler opens one of each of the first four, in this order, and writes its kind as the first
// byte; a client opens the third alone. Snapshots are opened by either side.
const (
	streamHeartbeat byte = 'h'
	streamRaft      byte = 'r'
	streamAsk       byte = 'q' // the dialler asks, the listener answers
	streamAskBack   byte = 'p' // the listener asks
	streamSnapshot  byte = 's'
)

// session is one connection with its streams. Its goroutines are: run, which owns all others and ends last; a reader
// and a writer per long-lived stream; one per snapshot.
//
//	kill (from anywhere) ─► done is closed, connection closed ─► readers and writers fail ─► run tears down ─► finished
type session struct {
	core   *core
	conn   *conn
	id     uint64
	info   PeerInfo
	client bool // the other side, or this one, is a client
	// identity is what Config.Authenticate said, and until is when a client's connection ends; zero: never.
	identity any
	until    time.Time
	dialled  bool
	handler  Handler
	// prev is the session with the same node that this one replaces: it must have finished before this one begins.
	prev *session
	// begin and end are called by run when the streams stand and when all is over; either may be nil.
	begin, end func()
	// gate, if set, is closed once the confirmation of the handshake was sent.
	gate chan struct{}
	// created is when setup began, or zero.
	created atomic.Int64

	mux     *yamux.Session
	streams []*yamux.Stream // the long-lived ones; complete once ready
	ready   atomic.Bool
	done    chan struct{}
	once    sync.Once
	err     error // why; written before done is closed
	finish  chan struct{}

	mu      sync.Mutex
	closing bool
	wg      sync.WaitGroup // of all goroutines but run; Add only by spawn

	hb, raft outbox
	hbSent   atomic.Int64
	calls    *caller
	srv      *server
	held     *budget.Account // of a client that calls this node; else nil
	host     string          // where such a client comes from: whose share it takes
	bigSince atomic.Int64    // since when a big frame of such a client is being read, or zero
	watches  [4]atomic.Int64 // when the write in progress of each writer began, or zero
	snaps    snapshotWindow
	snapsIn  atomic.Int32
}

func newSession(c *core, nc *conn, h Handler) *session {
	s := &session{core: c, conn: nc, handler: h, done: make(chan struct{}), finish: make(chan struct{})}
	l := &c.limits
	s.hb = newOutbox(l.HeartbeatBytesMax, l.FrameBytesMax, 0)
	s.raft = newOutbox(l.OutboxBytesMax, l.FrameBytesMax, l.FrameBytesTarget)
	s.calls = newCaller(c)
	s.snaps.init(l.SnapshotWindow)
	return s
}

func (s *session) caller() Caller {
	return Caller{Client: s.client, Node: s.info.Node, Incarnation: s.info.Incarnation(), Addr: s.info.RemoteAddr}
}

func (s *session) alive() bool {
	select {
	case <-s.done:
		return false
	default:
		return true
	}
}

// kill ends the session. It does not block and may be called from anywhere: the rest is done by run. The connection is closed
// first of all, so that nothing in yamux can wait for it (yamux issues 142 and 149).
func (s *session) kill(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		s.release()
		s.conn.Close()
		switch {
		case errors.Is(err, ErrMalformed):
			s.core.metrics.Malformed.Add(1)
		case errors.Is(err, errSlow):
			s.core.metrics.Slow.Add(1)
		case errors.Is(err, errSilent):
			s.core.metrics.Silent.Add(1)
		}
		level := slog.LevelInfo
		switch {
		case errors.Is(err, ErrMalformed) || errors.Is(err, errNotReading):
			level = slog.LevelWarn
		case s.client || errors.Is(err, ErrClosed):
			level = slog.LevelDebug
		}
		s.core.log.Log(context.Background(), level, "connection ended", "node", s.info.Node, "client", s.client, "remote", s.info.RemoteAddr, "reason", err)
	})
}

// release has those return who read from the long-lived streams, once they have read all that is there, or write to them. It comes before yamux closes
// them: between the end of a session and that of its streams yamux (v0.1.2) has them all ask again and again whether it is over, and when a hundred
// sessions end at once those keep the processors from who would close them.
func (s *session) release() {
	if s.ready.Load() {
		for _, st := range s.streams {
			_ = st.SetDeadline(time.Unix(1, 0))
		}
	}
}

// spawn runs f on a goroutine that run waits for; false if the session is over.
func (s *session) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		f()
	}()
	return true
}

// run is the life of the session.
func (s *session) run() {
	defer close(s.finish)
	if s.prev != nil {
		s.prev.kill(errReplaced)
		<-s.prev.finish
		s.prev = nil
	}
	began := false
	if s.gate != nil {
		<-s.gate
	}
	s.created.Store(s.core.clock.now())
	loops, err := s.setup()
	if err != nil {
		s.kill(err)
	} else if s.alive() {
		began = true
		if s.begin != nil {
			s.begin()
		}
		s.core.metrics.Sessions.Add(1)
		s.ready.Store(true)
		for _, f := range loops {
			s.spawn(f)
		}
		s.wait()
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	if s.mux != nil {
		s.mux.Close()
	}
	s.hb.close(ErrNotConnected)
	s.raft.close(ErrNotConnected)
	if s.srv != nil {
		s.srv.close(ErrNotConnected)
	}
	s.calls.fail()
	s.snaps.close()
	s.wg.Wait()
	if s.srv != nil {
		s.srv.end()
	}
	if s.held != nil {
		s.held.Close()
	}
	if began && s.end != nil {
		s.end()
	}
}

// wait returns when the session is over.
func (s *session) wait() {
	if s.held == nil {
		<-s.done // what a peer has sent before it went is still read
		return
	}
	select {
	case <-s.done:
	case <-s.mux.CloseChan(): // its reader does not see it while it waits for room for a request
		s.kill(errGone)
	}
}

// setup starts yamux and opens or accepts the long-lived streams. It returns the loops that serve them. It cannot hang:
// tick kills a session that is not ready in time.
func (s *session) setup() ([]func(), error) {
	l := &s.core.limits
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false // our own frames tell life from death, in seconds
	cfg.AcceptBacklog = 64
	cfg.ConnectionWriteTimeout = l.WriteTimeout
	cfg.StreamOpenTimeout = l.HandshakeTimeout
	cfg.StreamCloseTimeout = 30 * time.Second
	cfg.MaxStreamWindowSize = uint32(l.PeerWindow)
	if s.client && !s.dialled {
		cfg.MaxStreamWindowSize = uint32(l.ClientWindow)
	}
	cfg.LogOutput = io.Discard
	if s.client && !s.dialled {
		s.held = s.core.held.Open(s.host, func() { s.kill(errGreedy) })
		s.conn.arrived = s.hold
	}
	s.conn.muxed, s.conn.failed = true, s.release
	var err error
	if s.dialled {
		s.mux, err = yamux.Client(s.conn, cfg)
	} else {
		s.mux, err = yamux.Server(s.conn, cfg)
	}
	if err != nil {
		return nil, err
	}
	kinds := []byte{streamHeartbeat, streamRaft, streamAsk, streamAskBack}
	if s.client {
		kinds = []byte{streamAsk}
	}
	var loops []func()
	for i, kind := range kinds {
		st, err := s.longStream(kind)
		if err != nil {
			return nil, fmt.Errorf("stream %q: %w", kind, err)
		}
		s.streams = append(s.streams, st)
		loops = append(loops, s.serve(kind, st, &s.watches[i])...)
	}
	if !s.client {
		loops = append(loops, s.acceptLoop)
	}
	return loops, nil
}

func (s *session) longStream(kind byte) (*yamux.Stream, error) {
	if s.dialled {
		st, err := s.mux.OpenStream()
		if err == nil {
			_, err = st.Write([]byte{kind})
		}
		return st, err
	}
	st, err := s.mux.AcceptStream()
	if err != nil {
		return nil, err
	}
	var got [1]byte
	if _, err := io.ReadFull(st, got[:]); err != nil {
		return nil, err
	}
	s.hold(-1)
	if got[0] != kind {
		return nil, fmt.Errorf("%w: stream of kind %q", ErrMalformed, got[0])
	}
	return st, nil
}

// serve returns the reader and the writer of a stream.
func (s *session) serve(kind byte, st *yamux.Stream, w *atomic.Int64) []func() {
	var out *outbox
	var in func([]byte) error
	node, inc := s.info.Node, s.info.Incarnation()
	switch {
	case kind == streamHeartbeat:
		out = &s.hb
		in = func(b []byte) error {
			if len(b) > 0 { // an empty one only says that the peer is there
				s.handler.Heartbeat(node, inc, b)
			}
			return nil
		}
	case kind == streamRaft:
		out = &s.raft
		in = func(b []byte) error { s.handler.RaftFrame(node, inc, b); return nil }
	case (kind == streamAsk) == s.dialled:
		out, in = &s.calls.outbox, s.calls.frame
	default:
		s.srv = newServer(s, s.handler)
		out, in = &s.srv.outbox, s.srv.frame
	}
	if !s.client {
		out.mu.Lock()
		out.partMax = s.core.limits.WriteBytesMax
		out.mu.Unlock()
	}
	return []func(){func() { s.readLoop(st, in) }, func() { s.writeLoop(st, out, w) }}
}

func (s *session) readLoop(st *yamux.Stream, in func([]byte) error) {
	l := &s.core.limits
	bytesMax, eager := l.FrameBytesMax, 16*l.FrameBytesTarget // what a peer announces comes, and to grow with it costs another copy of big values
	if s.client && !s.dialled {
		bytesMax, eager = l.ClientFrameMax, 64<<10
	}
	f := newFrameReader(unheld{st, s}, bytesMax, eager)
	f.hold = s.hold
	f.parts = !s.client
	var credit int64
	if s.held != nil {
		f.spares, f.roomMin = &s.core.spares, 2*l.FrameBytesTarget
		f.room = func(n int) bool {
			if credit = s.core.frames.Take(s.host, int64(n), s.done); credit > 0 {
				s.bigSince.Store(s.core.clock.now())
			}
			return credit > 0
		}
	}
	for {
		b, err := f.next()
		if credit > 0 {
			s.bigSince.Store(0)
			s.core.frames.Give(credit)
			credit = 0
		}
		if err == nil {
			s.core.metrics.FramesIn.Add(1)
			s.core.metrics.BytesIn.Add(uint64(len(b)))
			if err = in(b); err != nil {
				err = fmt.Errorf("%w: %w", ErrMalformed, err)
			}
		}
		s.hold(-len(b))
		if err != nil {
			s.kill(err)
			return
		}
	}
}

// unheld reads from a stream of a client. What yamux has received of it is held until it is read.
type unheld struct {
	st *yamux.Stream
	s  *session
}

// Read implements io.Reader.
func (u unheld) Read(b []byte) (int, error) {
	n, err := u.st.Read(b)
	u.s.hold(-n)
	if err == yamux.ErrTimeout {
		err = io.EOF // see release
	}
	return n, err
}

// hold counts bytes that a client holds.
func (s *session) hold(n int) {
	if s.held != nil {
		s.held.Add(int64(n))
	}
}

// writeLoop writes whatever the outbox holds, one frame at a time. While a write is in progress the next frame grows.
func (s *session) writeLoop(st *yamux.Stream, o *outbox, w *atomic.Int64) {
	for {
		select {
		case <-s.done:
			return
		case <-o.wake:
		}
		for b := o.take(); b != nil; b = o.take() {
			tail := o.writing.tail // only this goroutine sets it
			sealFrame(b, tail)
			err := s.write(st, b, w)
			if err == nil {
				err = s.write(st, tail, w)
			}
			if err != nil {
				// A stream on which a write failed is of no more use, and yamux does not close the session by itself.
				s.kill(fmt.Errorf("write: %w", err))
				return
			}
			s.core.metrics.FramesOut.Add(1)
			s.core.metrics.BytesOut.Add(uint64(len(b) - frameHeader + len(tail)))
			o.done(b)
		}
	}
}

// write writes a frame in one Write, or in several if it is so big that heartbeats would wait for it.
func (s *session) write(st *yamux.Stream, b []byte, w *atomic.Int64) error {
	for len(b) > 0 {
		n := min(len(b), s.core.limits.WriteBytesMax)
		w.Store(s.core.clock.now())
		_, err := st.Write(b[:n])
		w.Store(0)
		if err == yamux.ErrTimeout {
			err = yamux.ErrSessionShutdown // see release
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// tick does what depends on time; the owner calls it every tickInterval while the session is busy, and every idleInterval.
func (s *session) tick(now int64) {
	l := &s.core.limits
	if !s.ready.Load() {
		if since := s.created.Load(); since != 0 && now-since > int64(l.HandshakeTimeout) {
			s.kill(errors.New("the streams were not opened in time"))
		}
		return
	}
	for i := range s.watches {
		since := s.watches[i].Load()
		if since == 0 || now-since <= int64(min(l.WriteTimeout, l.BigPatience)) {
			continue
		}
		if now-since > int64(l.WriteTimeout) || s.held != nil && s.srv.owes() && s.core.big.Waiting() && s.alive() && s.core.mayCutOff(now) {
			s.kill(errSlow)
			return
		}
	}
	if since := s.bigSince.Load(); since != 0 && s.core.frames.Waiting() && s.alive() &&
		(now-max(since, s.conn.lastRead.Load()) > int64(l.BigPatience) || now-since > int64(l.BigTime)) && s.core.mayCutOff(now) {
		s.kill(errHalfSent)
		return
	}
	if s.client && !s.until.IsZero() && time.Now().After(s.until) {
		s.kill(errExpired)
		return
	}
	if !s.client {
		if now-s.conn.lastRead.Load() > int64(l.SilenceMax) {
			s.kill(errSilent)
			return
		}
		if now-s.hbSent.Load() > int64(l.PingInterval) {
			s.heartbeat(nil)
		}
	}
	s.calls.expire(now)
	if s.srv != nil {
		s.srv.expire(now)
	}
}

// busy tells whether something is under way whose time may be over soon.
func (s *session) busy() bool {
	return !s.ready.Load() || s.calls.inFlight() > 0 || s.srv != nil && (s.srv.inFlight() > 0 || s.srv.owes() || s.bigSince.Load() != 0)
}

// idleInterval is fine enough for every time-out in limits, tickInterval for those of requests too.
func (l *Limits) idleInterval() time.Duration {
	return max(min(l.WriteTimeout, l.SilenceMax, l.PingInterval, l.HandshakeTimeout)/2, 5*time.Millisecond)
}

func (l *Limits) tickInterval() time.Duration { return min(l.idleInterval(), 50*time.Millisecond) }

// shrink lets go of buffers that are kept for the next big frame.
func (s *session) shrink() {
	if !s.ready.Load() {
		return
	}
	for _, st := range s.streams {
		st.Shrink()
	}
	s.hb.shrink()
	s.raft.shrink()
	s.calls.shrink()
	if s.srv != nil {
		s.srv.shrink()
	}
}

func (s *session) heartbeat(body []byte) error {
	s.hbSent.Store(s.core.clock.now())
	return s.hb.add(body)
}

func (s *session) stats(now int64) ConnStats {
	c := ConnStats{Client: s.client, Node: s.info.Node, Incarnation: s.info.Incarnation(), Session: s.id, Dialled: s.dialled,
		RemoteAddr: s.info.RemoteAddr, BytesIn: s.conn.in.Load(), BytesOut: s.conn.out.Load(),
		LastRead: time.Duration(now - s.conn.lastRead.Load()), OutboxBytes: s.raft.pending() + s.hb.pending() + s.calls.pending(),
		SnapshotUnacked: s.snaps.unacked(), SnapshotsReceiving: int(s.snapsIn.Load())}
	s.calls.mu.Lock()
	c.CallsWaiting = s.calls.w.used()
	s.calls.mu.Unlock()
	if s.ready.Load() && s.mux != nil {
		c.Streams = s.mux.NumStreams()
	}
	c.RTT = rtt(s.conn.raw)
	if s.ready.Load() && s.srv != nil {
		c.AnswerBytes, c.RequestsInFlight = s.srv.pending(), s.srv.inFlight()
	}
	return c
}

// deadlineOf is a time d from now, for streams.
func deadlineOf(d time.Duration) time.Time { return time.Now().Add(d) }
