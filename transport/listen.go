package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/internal/door"
)

// Serve accepts peers and clients until the listener or the Transport is closed.
func (t *Transport) Serve(l net.Listener) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	t.listeners[l] = struct{}{}
	t.wg.Add(1)
	t.mu.Unlock()
	defer t.wg.Done()
	defer l.Close()
	for {
		nc, err := l.Accept()
		if err == nil {
			t.accepted(nc)
			continue
		}
		if t.ctx.Err() != nil {
			return ErrClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// Out of file descriptors, most likely.
		t.core.log.Warn("accept", "err", err)
		select {
		case <-time.After(50 * time.Millisecond):
		case <-t.ctx.Done():
			return ErrClosed
		}
	}
}

// accepted starts the handshake of a connection on a goroutine of its own.
func (t *Transport) accepted(nc net.Conn) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		nc.Close()
		return
	}
	var oldest net.Conn
	if len(t.shaking) >= t.core.limits.HandshakesMax {
		// Whoever says nothing waits longest: those go first, so that they keep nobody out.
		oldest = t.shaking[0]
		t.shaking = slices.Delete(t.shaking, 0, 1)
		t.metrics.Evicted.Add(1)
	}
	t.shaking = append(t.shaking, nc)
	t.wg.Add(1)
	t.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	go func() {
		defer t.wg.Done()
		stop := context.AfterFunc(t.ctx, func() { nc.Close() })
		defer stop()
		err := t.handshake(nc)
		t.mu.Lock()
		if i := slices.Index(t.shaking, nc); i >= 0 {
			t.shaking = slices.Delete(t.shaking, i, i+1)
		}
		t.mu.Unlock()
		if err != nil {
			nc.Close()
		}
	}()
}

// handshake is the listener's side of it.
func (t *Transport) handshake(nc net.Conn) error {
	c := newConn(nc, t.core.clock)
	// One deadline for all of it, TLS included: whoever drips bytes is cut off.
	if err := nc.SetDeadline(time.Now().Add(t.core.limits.HandshakeTimeout)); err != nil {
		return err
	}
	s, dropped, err := t.hello(c)
	if err == nil {
		err = t.welcome(s, dropped)
	}
	if err == nil {
		return nil
	}
	t.metrics.Refusals.Add(1)
	var ref *Refused
	switch {
	case errors.Is(err, errHTTP):
		t.metrics.Malformed.Add(1)
		text := errHTTP.Error() + "\n"
		_, _ = fmt.Fprintf(c, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	case errors.As(err, &ref):
		if ref.Reason == ReasonMalformed {
			t.metrics.Malformed.Add(1)
		}
		if !ref.Remote {
			_ = writeHandshake(c, kindRefusal, ref.encode())
		}
	}
	// Whoever knocks at the port all day does not fill the log.
	level, now := slog.LevelDebug, t.core.clock.now()
	if last := t.warned.Load(); !isReason(err, ReasonConnected) && (last == 0 || now-last > int64(100*time.Millisecond)) && t.warned.CompareAndSwap(last, now) {
		level = slog.LevelWarn
	}
	t.core.log.Log(t.ctx, level, "refused a connection", "remote", nc.RemoteAddr(), "reason", err)
	return err
}

// hello reads who calls, and returns a session that is still to be confirmed.
func (t *Transport) hello(c *conn) (*session, uint64, error) {
	ctx, cancel := context.WithTimeout(t.ctx, t.core.limits.HandshakeTimeout)
	defer cancel()
	if err := c.secure(ctx, t.cfg.TLS, true, ""); err != nil {
		return nil, 0, fmt.Errorf("tls: %w", err)
	}
	b, err := readHandshake(c, kindHello)
	if err != nil {
		return nil, 0, err
	}
	var h hello
	if err := h.decode(b); err != nil {
		return nil, 0, refuse(ReasonMalformed, "%v", err)
	}
	version, ref := agree(t.core.versionMin, t.core.versionMax, h.versionMin, h.versionMax)
	if ref != nil {
		return nil, 0, ref
	}
	s := newSession(t.core, c, t.handler)
	if err := t.authenticate(ctx, s, &h); err != nil {
		return nil, 0, err
	}
	s.id = h.session
	s.info = PeerInfo{ClusterID: h.cluster, Node: h.node, Identity: h.identity, Incarnations: h.incarnations, AdvertiseAddr: h.addr,
		Version: version, RemoteAddr: c.RemoteAddr(), TLS: c.tlsState()}
	switch h.role {
	case roleClient:
		s.client = true
		err = t.admitClient(s)
		return s, 0, err
	case rolePeer:
		dropped, err := t.admitPeer(s, &h)
		return s, dropped, err
	}
	return nil, 0, refuse(ReasonMalformed, "role %d", h.role)
}

// authenticate finds out who calls.
func (t *Transport) authenticate(ctx context.Context, s *session, h *hello) error {
	if t.cfg.Authenticate == nil {
		return nil
	}
	var err error
	s.identity, s.until, err = t.cfg.Authenticate(ctx, &Credentials{Peer: h.role == rolePeer, User: h.user, Password: h.password,
		TLS: s.conn.tlsState(), RemoteAddr: s.conn.RemoteAddr()})
	if err == nil {
		return nil
	}
	t.metrics.Denied.Add(1)
	var ref *Refused
	if errors.As(err, &ref) {
		return ref
	}
	return refuse(ReasonDenied, "%v", err)
}

func (t *Transport) admitClient(s *session) error {
	s.info.Node = 0
	self := t.who()
	if s.info.ClusterID != (ID{}) && s.info.ClusterID != self.ClusterID {
		return refuse(ReasonCluster, "%x here, %x there", self.ClusterID, s.info.ClusterID)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.clientRoom() {
		return refuse(ReasonBusy, "%d clients", t.clients)
	}
	return nil
}

func (t *Transport) admitPeer(s *session, h *hello) (uint64, error) {
	self := t.who()
	switch {
	case self.ClusterID == ID{}:
		return 0, refuse(ReasonNoCluster, "")
	case h.cluster != self.ClusterID:
		return 0, refuse(ReasonCluster, "%x here, %x there", self.ClusterID, h.cluster)
	case h.node == 0 || h.identity == ID{} || len(h.incarnations) == 0 || h.session == 0:
		return 0, refuse(ReasonMalformed, "a peer without a name")
	case h.node == self.Node || h.identity == self.Identity:
		return 0, refuse(ReasonNode, "that is this node's own name, %d", self.Node)
	}
	dropped, ref := t.greet(h, s.info.Incarnation())
	if ref != nil {
		return 0, ref
	}
	return dropped, t.accept(&s.info)
}

// welcome answers, waits for the confirmation, and starts the session.
func (t *Transport) welcome(s *session, dropped uint64) error {
	self := t.who()
	w := &welcome{version: s.info.Version, cluster: self.ClusterID, node: self.Node, identity: self.Identity,
		incarnations: self.Incarnations, addr: self.AdvertiseAddr, dropped: dropped}
	if err := writeHandshake(s.conn, kindWelcome, w.encode()); err != nil {
		return err
	}
	if _, err := readHandshake(s.conn, kindConfirm); err != nil {
		return err
	}
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if s.client {
		door.BoundSocket(s.conn.raw)
		return t.startClient(s)
	}
	if ref := t.register(s, dropped); ref != nil {
		return ref
	}
	return nil
}

func (t *Transport) startClient(s *session) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || !t.clientRoom() {
		return ErrClosed
	}
	s.host = door.Of(s.conn.raw)
	t.clients++
	t.sessions[s] = struct{}{}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		stop := context.AfterFunc(t.ctx, func() { s.kill(ErrClosed) })
		defer stop()
		s.run()
		t.mu.Lock()
		t.leave(s)
		t.mu.Unlock()
	}()
	return nil
}

// clientRoom tells whether there is room for one more client, and makes some if there is none. t.mu is held.
func (t *Transport) clientRoom() bool {
	if t.clients >= t.core.limits.ClientsMax {
		t.dropIdle()
	}
	return t.clients < t.core.limits.ClientsMax
}

// dropIdle closes some of the clients that have been silent for longest (door.Idle). Who waits for an answer is not silent. t.mu is held.
func (t *Transport) dropIdle() {
	now := t.core.clock.now()
	var clients []*session
	var held []door.Held
	for s := range t.sessions {
		if !s.client {
			continue
		}
		heard := s.conn.lastRead.Load()
		if s.ready.Load() && s.srv.inFlight() > 0 {
			heard = now
		}
		clients = append(clients, s)
		held = append(held, door.Held{Host: s.host, Heard: heard})
	}
	for _, i := range door.Idle(held, now-int64(t.core.limits.IdleMin)) {
		clients[i].kill(errIdle)
		t.leave(clients[i])
	}
}

// leave takes a client out, once. t.mu is held.
func (t *Transport) leave(s *session) {
	if _, ok := t.sessions[s]; ok {
		t.clients--
		delete(t.sessions, s)
	}
}
