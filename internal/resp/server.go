package resp

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/internal/budget"
	"github.com/kiloraft/kiloraft/internal/door"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

// KV is the part of router.Client that commands need.
type KV interface {
	GoReadSome(ctx context.Context, q *shard.Read, done func([]shard.Entry, error))
	GoWrite(ctx context.Context, w *shard.Write, done func(*shard.Result, error))
	GoScan(ctx context.Context, q *shard.Scan, done func(*shard.Page, error))
	LoadMap(ctx context.Context) error
	Map() *router.Map
}

// Config of a Server. KV must be set; the zero value of everything else is good.
type Config struct {
	KV KV
	// Timeout bounds how long a command tries. Default 5 s.
	Timeout time.Duration
	// ConnsMax bounds the connections; default 10,000. For one more some of those go that have been silent for longest: of a host that has more
	// than half of all, else of those that have been silent for IdleMin at least; default 10 s. If there are none it is refused.
	ConnsMax int
	IdleMin  time.Duration
	// InflightMax bounds the requests of one connection that have no reply yet; it is not read further until then. Default 1024.
	InflightMax int
	// RequestBytesMax bounds the arguments of the requests of one connection that are in flight; it is not read further until they are less.
	// A single request may be more. Default 64 MiB.
	RequestBytesMax int
	// ReplyBytesMax bounds the replies of one connection that its client has not taken, and what is read to make them. A command that
	// needs more gets an error, and over it the connection is closed. Default 256 MiB. From a 64th of it on no further requests are read.
	ReplyBytesMax int
	// HeldBytesMax bounds what all connections hold together: requests being read and in flight, replies in the making and not taken. Over it
	// the one that holds most is closed. Default 256 MiB.
	HeldBytesMax int64
	// BigBytesMax bounds the replies in the making for connections that are known for big ones: these wait for each other, and the others go
	// on meanwhile. Default 16 MiB.
	BigBytesMax int64
	// BigPatience is how long a client may take nothing of a big reply, or send nothing of a big request, while others wait for theirs. Default 2 s.
	BigPatience time.Duration
	// BigTime is how long a big request may take to arrive, once its turn has come. Default 30 s.
	BigTime time.Duration
	// WriteTimeout bounds how long a client may take nothing of its replies. Default 30 s.
	WriteTimeout time.Duration
	// IdleTimeout ends connections that send nothing; 0: never.
	IdleTimeout time.Duration
	// Guard says who clients are. Nil: everybody may do everything.
	Guard Guard
	// TLS, if set, is used for all connections.
	TLS *tls.Config
	// StrangersMax bounds the connections that have not shown who they are, over which the oldest of them is closed; default 1024.
	StrangersMax int
	// Node describes the node for INFO, HELLO and the like.
	Node   func() NodeInfo
	Logger *slog.Logger
	// After calls f after a while; default time.AfterFunc. For tests.
	After func(d time.Duration, f func())
}

// NodeInfo describes a node.
type NodeInfo struct {
	ID      uint64 // 0: belongs to no cluster
	Name    string
	Version string
}

func (c *Config) fill() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.ConnsMax, 10_000)
	def(&c.InflightMax, 1024)
	def(&c.StrangersMax, 1024)
	if c.Guard == nil {
		c.Guard = open{}
	}
	def(&c.RequestBytesMax, 64<<20)
	def(&c.ReplyBytesMax, 256<<20)
	if c.IdleMin <= 0 {
		c.IdleMin = 10 * time.Second
	}
	if c.HeldBytesMax <= 0 {
		c.HeldBytesMax = 256 << 20
	}
	if c.BigPatience <= 0 {
		c.BigPatience = 2 * time.Second
	}
	if c.BigTime <= 0 {
		c.BigTime = 30 * time.Second
	}
	if c.BigBytesMax <= 0 {
		c.BigBytesMax = 16 << 20
	}
	if c.Timeout <= 0 {
		c.Timeout = 5 * time.Second
	}
	if c.WriteTimeout <= 0 {
		c.WriteTimeout = 30 * time.Second
	}
	if c.After == nil {
		c.After = func(d time.Duration, f func()) { time.AfterFunc(d, f) }
	}
	if c.Node == nil {
		c.Node = func() NodeInfo { return NodeInfo{} }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Server serves Redis clients. It owns its goroutines: Close ends them.
type Server struct {
	cfg     Config
	began   time.Time
	ctx     context.Context // ends with Close, and with it all commands
	cancel  context.CancelFunc
	cursors *cursors
	stats   stats
	held    *budget.Budget
	big     *budget.Credits // for replies in the making
	bigAsk  *budget.Credits // for big requests, from when they are read until they are done
	bigDo   *budget.Credits // for big requests that are under way in the cluster, and as long after that
	// bigWriting are the connections that are being written a reply which has credits, and how many. bigMu may be taken under a connection's lock.
	bigMu      sync.Mutex
	bigWriting map[*conn]int64
	// replySize is what a reply has had of late, per key: what is expected of a connection that has had none.
	replySize atomic.Int64

	mu     sync.Mutex
	conns  map[uint64]*conn
	nextID uint64
	// strangers have not shown who they are, oldest first.
	strangers []*conn
	closed    bool
	listen    []net.Listener
	wg        sync.WaitGroup
}

// stats are counters.
type stats struct {
	accepted, refused, malformed, dropped, denied atomic.Uint64
	replyBytes, requestBytes                      atomic.Int64 // not taken yet; in flight
	calls                                         []atomic.Uint64
}

// New returns a Server; Serve makes it serve.
func New(cfg Config) *Server {
	cfg.fill()
	s := &Server{cfg: cfg, began: time.Now(), cursors: newCursors(), conns: map[uint64]*conn{}}
	s.bigWriting = map[*conn]int64{}
	s.held, s.big = budget.New(cfg.HeldBytesMax), budget.NewCredits(cfg.BigBytesMax)
	s.bigAsk, s.bigDo = budget.NewCredits(int64(limitsFull.requestBytes)), budget.NewCredits(bigDoBytes)
	s.stats.calls = make([]atomic.Uint64, len(table))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// errClosed: the server was closed.
var errClosed = errors.New("resp: server closed")

// acceptPause is how long to wait after an accept that failed, as when there are no file descriptors left.
const acceptPause = 50 * time.Millisecond

// Serve serves the connections of l until Close, which makes it return nil, or until l is closed by somebody else.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = l.Close()
		return errClosed
	}
	s.listen = append(s.listen, l)
	s.mu.Unlock()
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			s.accept(nc)
		case s.ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			s.cfg.Logger.Warn("redis: accept failed", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
			}
		}
	}
}

func (s *Server) accept(nc net.Conn) {
	s.mu.Lock()
	if !s.closed && len(s.conns) >= s.cfg.ConnsMax {
		s.dropIdle()
	}
	if s.closed || len(s.conns) >= s.cfg.ConnsMax {
		s.mu.Unlock()
		s.stats.refused.Add(1)
		_ = nc.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_, _ = nc.Write([]byte("-" + errManyClients + "\r\n"))
		_ = nc.Close()
		return
	}
	s.nextID++
	door.BoundSocket(nc)
	c := newConn(s, s.nextID, nc)
	s.conns[c.id] = c
	s.wg.Add(2)
	s.mu.Unlock()
	s.stranger(c, true)
	s.stats.accepted.Add(1)
	go func() { // both end when the connection is closed
		defer s.wg.Done()
		c.readLoop()
	}()
	go func() {
		defer s.wg.Done()
		c.writeLoop()
		c.lifeEnds()
		c.held.Close() // before it is not counted any more
		s.mu.Lock()
		delete(s.conns, c.id)
		s.mu.Unlock()
		s.stranger(c, false)
	}()
}

// dropIdle closes some of the connections that have been silent for longest (door.Idle). s.mu is held.
func (s *Server) dropIdle() {
	conns := slices.SortedFunc(maps.Values(s.conns), func(a, b *conn) int { return cmp.Compare(a.id, b.id) })
	held := make([]door.Held, len(conns))
	for i, c := range conns {
		held[i] = door.Held{Host: c.host, Heard: c.last.Load()}
	}
	for _, i := range door.Idle(held, time.Now().Add(-s.cfg.IdleMin).UnixMilli()) {
		c := conns[i]
		delete(s.conns, c.id)
		s.stats.dropped.Add(1)
		s.wg.Go(c.kill)
	}
}

// stranger puts a connection among those that have not shown who they are, or takes it out. Over the bound the oldest is closed: it is
// not the one that is just about to say.
func (s *Server) stranger(c *conn, is bool) {
	var oldest *conn
	s.mu.Lock()
	i := slices.Index(s.strangers, c)
	switch {
	case !is && i >= 0:
		s.strangers = slices.Delete(s.strangers, i, i+1)
	case is && i < 0 && s.conns[c.id] == c:
		s.strangers = append(s.strangers, c)
		if len(s.strangers) > s.cfg.StrangersMax {
			oldest = s.strangers[0]
			s.strangers = slices.Delete(s.strangers, 0, 1)
			s.stats.refused.Add(1)
		}
	}
	s.mu.Unlock()
	if oldest != nil {
		oldest.kill()
	}
}

// Close ends all connections and waits for their goroutines. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	listen, conns := s.listen, s.list()
	s.mu.Unlock()
	var errs []error
	if first {
		s.cancel()
		for _, l := range listen {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	for _, c := range conns {
		c.kill()
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// list returns the connections by id. s.mu is held.
func (s *Server) list() []*conn {
	list := make([]*conn, 0, len(s.conns))
	for _, c := range s.conns {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *conn) int { return int(int64(a.id) - int64(b.id)) })
	return list
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list()
}

// Metrics are the counters of a Server.
type Metrics struct {
	Connections, ReplyBytes, RequestBytes int64
	Accepted, Refused, Malformed, Dropped uint64
	Denied                                uint64 // wrong passwords
}

// Metrics returns the counters.
func (s *Server) Metrics() Metrics {
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	return Metrics{Connections: int64(n), ReplyBytes: s.stats.replyBytes.Load(), RequestBytes: s.stats.requestBytes.Load(), Accepted: s.stats.accepted.Load(),
		Refused: s.stats.refused.Load(), Malformed: s.stats.malformed.Load(), Dropped: s.stats.dropped.Load() + s.held.Evicted(), Denied: s.stats.denied.Load()}
}

// Commands yields, for each command that was used, how often.
func (s *Server) Commands(yield func(name string, calls uint64) bool) {
	for i := range table {
		if n := s.stats.calls[i].Load(); n > 0 && !yield(table[i].name, n) {
			return
		}
	}
}

func (s *Server) calls() (sum uint64) {
	s.Commands(func(_ string, n uint64) bool { sum += n; return true })
	return sum
}
