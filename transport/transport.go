package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/budget"
)

// Transport is a node's end of all its connections.
type Transport struct {
	cfg     Config
	core    *core
	handler Handler
	metrics Metrics

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of every goroutine that is owned here; Add under mu while not closed

	mu        sync.Mutex
	closed    bool
	self      PeerInfo // what this node says of itself
	peers     map[engine.NodeID]*peer
	sessions  map[*session]struct{}
	leaving   map[engine.NodeID]*session // of removed peers, until they have finished
	clients   int
	listeners map[net.Listener]struct{}
	shaking   []net.Conn // handshakes of others in progress, oldest first

	warned atomic.Int64 // when a refusal was last logged loudly

	// byNode is a copy of peers for senders, replaced whenever peers changes.
	byNode atomic.Pointer[map[engine.NodeID]*peer]
}

// New makes a Transport. Nothing is dialled before SetPeer and nothing accepted before Serve.
func New(cfg Config, h Handler) (*Transport, error) {
	switch {
	case cfg.Identity == ID{}:
		return nil, errors.New("transport: an identity is required")
	case len(cfg.Incarnations) == 0 || cfg.Incarnations[len(cfg.Incarnations)-1] == 0:
		return nil, errors.New("transport: an incarnation is required, and not zero")
	case (cfg.ClusterID == ID{}) != (cfg.Node == 0):
		return nil, errors.New("transport: cluster id and node id go together")
	case len(cfg.AdvertiseAddr) > addrBytesMax:
		return nil, fmt.Errorf("transport: the advertised address is longer than %d bytes", addrBytesMax)
	}
	t := &Transport{cfg: cfg, handler: h, peers: map[engine.NodeID]*peer{}, sessions: map[*session]struct{}{},
		leaving: map[engine.NodeID]*session{}, listeners: map[net.Listener]struct{}{}}
	t.core = newCore(cfg.Limits, cfg.Logger, &t.metrics)
	t.core.expect = cfg.Expect
	t.core.versions(cfg.VersionMin, cfg.VersionMax)
	if t.cfg.Dial == nil {
		t.cfg.Dial = dialTCP
	}
	list := cfg.Incarnations[max(0, len(cfg.Incarnations)-IncarnationsMax):]
	t.self = PeerInfo{ClusterID: cfg.ClusterID, Node: cfg.Node, Identity: cfg.Identity, Incarnations: append([]uint64(nil), list...),
		AdvertiseAddr: cfg.AdvertiseAddr}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.publish()
	t.wg.Add(1)
	go t.housekeep()
	return t, nil
}

func newCore(l Limits, log *slog.Logger, m *Metrics) *core {
	l.defaults()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &core{limits: l, log: log, clock: clock{base: time.Now()}, metrics: m,
		held: budget.New(int64(l.ClientsBytesMax)), big: budget.NewCredits(int64(l.BigBytesMax)),
		frames: budget.NewCredits(int64(l.BigFramesMax))}
}

func (c *core) versions(lo, hi uint64) {
	c.versionMin, c.versionMax = lo, hi
	if lo == 0 {
		c.versionMin = ProtocolMin
	}
	if hi == 0 {
		c.versionMax = ProtocolMax
	}
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// Join tells the Transport which node of which cluster it is, once. Until then it serves clients only.
func (t *Transport) Join(cluster ID, node engine.NodeID) error {
	if cluster == (ID{}) || node == 0 {
		return errors.New("transport: no cluster or node to join")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.self.ClusterID != (ID{}) && (t.self.ClusterID != cluster || t.self.Node != node) {
		return fmt.Errorf("transport: already node %d of cluster %x", t.self.Node, t.self.ClusterID)
	}
	t.self.ClusterID, t.self.Node = cluster, node
	for _, p := range t.peers {
		p.startDialling()
	}
	return nil
}

func (t *Transport) who() PeerInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.self
}

// SetPeer tells where a node is reached; a session with it is kept from now on. An empty address means that the node must
// dial. Setting a new address does not end a session that works.
func (t *Transport) SetPeer(node engine.NodeID, addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || node == t.self.Node {
		return
	}
	p := t.peers[node]
	if p == nil {
		p = t.addPeer(node)
	}
	p.addr = addr
	p.startDialling()
	p.nudge()
}

// startDialling starts the dial loop once there is an address and a cluster. The lock is held.
func (p *peer) startDialling() {
	if p.dialing || p.addr == "" || p.t.self.ClusterID == (ID{}) || p.t.closed || p.node == p.t.self.Node {
		return
	}
	p.dialing = true
	p.t.wg.Add(1)
	go p.dialLoop()
}

// addPeer makes a peer. The lock is held.
func (t *Transport) addPeer(node engine.NodeID) *peer {
	p := &peer{node: node, t: t, wake: make(chan struct{}, 1), cur: t.leaving[node]}
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	t.peers[node] = p
	t.publish()
	return p
}

func (t *Transport) publish() {
	m := maps.Clone(t.peers)
	t.byNode.Store(&m)
}

// RemovePeer ends the session with a node and stops dialling it. It does not keep the node from dialling: Config.Accept does.
func (t *Transport) RemovePeer(node engine.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[node]
	if p == nil {
		return
	}
	p.cancel()
	if p.cur != nil {
		p.cur.kill(errRemoved)
		t.leaving[node] = p.cur
	}
	delete(t.peers, node)
	t.publish()
}

// session returns the live session with a node, or nil.
func (t *Transport) session(node engine.NodeID) *session {
	if p := (*t.byNode.Load())[node]; p != nil {
		if s := p.live.Load(); s != nil && s.alive() {
			return s
		}
	}
	return nil
}

// Connected tells whether there is a session with the node.
func (t *Transport) Connected(node engine.NodeID) bool { return t.session(node) != nil }

// SendRaft queues concatenated messages of package wire for a node. They are copied, unless they are bulk. It returns false, having queued nothing,
// if there is no session or its outbox is full: the engine must then be told that the stream lost a message (rule Live6).
// Messages of one lane arrive in order or not at all: those that are bulk among themselves, and the others, which may overtake them, too.
func (t *Transport) SendRaft(node engine.NodeID, lane int, msgs []byte, bulk bool) bool {
	if len(msgs) == 0 {
		return true
	}
	if s := t.session(node); s != nil {
		add := s.raft.add
		if bulk {
			add = s.raft.addApart
		}
		if add(msgs) == nil {
			return true
		}
	}
	t.metrics.RaftDropped.Add(1)
	return false
}

// SendHeartbeat queues a frame on the stream of heartbeats, which waits for nothing else (rule Live6). The body is copied.
func (t *Transport) SendHeartbeat(node engine.NodeID, body []byte) bool {
	if s := t.session(node); s != nil && s.heartbeat(body) == nil {
		return true
	}
	t.metrics.HeartbeatsDropped.Add(1)
	return false
}

// Disconnect ends the session with this incarnation of a node, as when the messages in a frame make no sense. It is counted as
// malformed if reason wraps ErrMalformed.
func (t *Transport) Disconnect(node engine.NodeID, incarnation uint64, reason error) {
	if s := t.session(node); s != nil && s.info.Incarnation() == incarnation {
		s.kill(reason)
	}
}

// Call asks a node and waits for the answer. An answer with another status than StatusOK is a *StatusError.
func (t *Transport) Call(ctx context.Context, node engine.NodeID, method uint16, body []byte) ([]byte, error) {
	s := t.session(node)
	if s == nil {
		return nil, ErrNotConnected
	}
	return s.calls.call(ctx, method, 0, body)
}

// CallFlags is Call with flags.
func (t *Transport) CallFlags(ctx context.Context, node engine.NodeID, method uint16, flags uint8, body []byte) ([]byte, error) {
	s := t.session(node)
	if s == nil {
		return nil, ErrNotConnected
	}
	return s.calls.call(ctx, method, flags, body)
}

// Go asks a node and calls done exactly once, with the answer (which then belongs to it) or an error: on a goroutine of the
// connection, where it must not block, or before Go returns. The body is copied.
func (t *Transport) Go(node engine.NodeID, method uint16, deadline time.Time, flags uint8, body []byte, done func([]byte, error)) {
	err := ErrNotConnected
	if s := t.session(node); s != nil {
		_, err = s.calls.start(method, deadline, flags, body, done)
	}
	if err != nil {
		done(nil, err)
	}
}

// OpenSnapshot begins to send a snapshot. The caller must end it by Finish or Abort.
func (t *Transport) OpenSnapshot(ctx context.Context, node engine.NodeID, header []byte) (*SnapshotWriter, error) {
	s := t.session(node)
	if s == nil {
		return nil, ErrNotConnected
	}
	return openSnapshot(ctx, s, header)
}

// Metrics returns the counters.
func (t *Transport) Metrics() *Metrics { return &t.metrics }

// Conns describes all connections: one per connected peer, and those of clients.
func (t *Transport) Conns() []ConnStats {
	now := t.core.clock.now()
	var out []ConnStats
	for _, s := range t.all() {
		if s.alive() {
			out = append(out, s.stats(now))
		}
	}
	return out
}

func (t *Transport) all() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*session, 0, len(t.sessions))
	for s := range t.sessions {
		out = append(out, s)
	}
	return out
}

// Shrink lets go of the memory that connections keep for the next big frames: up to some MiB each after a load. It is for a node that has come
// to rest.
func (t *Transport) Shrink() {
	for _, s := range t.all() {
		s.shrink()
	}
}

// housekeep is the one goroutine that looks at the clock: often while anything is under way, else seldom.
func (t *Transport) housekeep() {
	defer t.wg.Done()
	l := &t.core.limits
	tick := time.NewTimer(l.tickInterval())
	defer tick.Stop()
	for {
		select {
		case <-t.ctx.Done():
			return
		case <-tick.C:
			now := t.core.clock.now()
			next := l.idleInterval()
			for _, s := range t.all() {
				s.tick(now)
				if s.busy() {
					next = l.tickInterval()
				}
			}
			tick.Reset(next)
		}
	}
}

// Close ends everything and waits for all goroutines, so for handlers that are running too. It must not be called by a handler.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		t.wg.Wait()
		return nil
	}
	t.closed = true
	for l := range t.listeners {
		l.Close()
	}
	for s := range t.sessions {
		s.kill(ErrClosed)
	}
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	return nil
}
