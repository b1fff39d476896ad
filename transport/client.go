package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// dial opens a connection and says hello. check judges what the other side says of itself. The session that is returned is
// still to be confirmed.
func (c *core) dial(ctx context.Context, dial func(context.Context, string) (net.Conn, error), addr string, tc TLS, self *PeerInfo,
	h *hello, check func(*PeerInfo) error) (*session, *welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limits.DialTimeout)
	defer cancel()
	nc, err := dial(ctx, addr)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	s, w, err := c.introduce(ctx, nc, addr, tc, self, h, check)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ne := net.Error(nil); ctx.Err() != nil || errors.As(err, &ne) && ne.Timeout() { // else it would speak of a closed connection
			err = fmt.Errorf("connected, but no answer: the node hangs, or this is not its --listen address: %w", cmp.Or(ctx.Err(), err))
		}
		return nil, nil, err
	}
	return s, w, nil
}

func (c *core) introduce(ctx context.Context, nc net.Conn, addr string, tc TLS, self *PeerInfo, h *hello,
	check func(*PeerInfo) error) (*session, *welcome, error) {
	cn := newConn(nc, c.clock)
	if err := nc.SetDeadline(time.Now().Add(c.limits.HandshakeTimeout)); err != nil {
		return nil, nil, err
	}
	if err := cn.secure(ctx, tc, false, addr); err != nil {
		return nil, nil, err
	}
	h.versionMin, h.versionMax = c.versionMin, c.versionMax
	h.cluster, h.node, h.identity, h.incarnations, h.addr = self.ClusterID, self.Node, self.Identity, self.Incarnations, self.AdvertiseAddr
	if err := writeHandshake(cn, kindHello, h.encode()); err != nil {
		return nil, nil, err
	}
	b, err := readHandshake(cn, kindWelcome)
	if err != nil {
		return nil, nil, err
	}
	w := new(welcome)
	if err := w.decode(b); err != nil {
		return nil, nil, refuse(ReasonMalformed, "%v", err)
	}
	s := newSession(c, cn, nil)
	s.id, s.dialled, s.client = h.session, true, h.role == roleClient
	s.info = PeerInfo{ClusterID: w.cluster, Node: w.node, Identity: w.identity, Incarnations: w.incarnations, AdvertiseAddr: w.addr,
		Version: w.version, RemoteAddr: cn.RemoteAddr(), TLS: cn.tlsState()}
	if w.version < c.versionMin || w.version > c.versionMax {
		err = refuse(ReasonVersion, "%d was chosen", w.version)
	} else {
		err = check(&s.info)
	}
	var ref *Refused
	if errors.As(err, &ref) {
		_ = writeHandshake(cn, kindRefusal, ref.encode())
	}
	return s, w, err
}

// ClientConfig is what DialClient needs; its zero value will do.
type ClientConfig struct {
	ClusterID ID // if set, a node of another cluster is an error
	TLS       TLS
	// User and Password, if set, say who calls; else a client certificate does, if TLS has one. A password goes over TLS, or to an
	// address of this machine's own, and nowhere else.
	User     string
	Password []byte
	Logger   *slog.Logger
	Dial     func(ctx context.Context, addr string) (net.Conn, error) // nil means TCP
	Limits   Limits
}

// ClientConn is a client's connection with one node. It is not redialled.
type ClientConn struct {
	s       *session
	metrics Metrics
	wg      sync.WaitGroup
}

// DialClient connects as a client. Its errors may be a *Refused.
func DialClient(ctx context.Context, addr string, cfg ClientConfig) (*ClientConn, error) {
	cc := &ClientConn{}
	c := newCore(cfg.Limits, cfg.Logger, &cc.metrics)
	c.versions(0, 0)
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	self := &PeerInfo{ClusterID: cfg.ClusterID}
	if len(cfg.Password) > 0 && cfg.TLS == nil && !loopback(addr) {
		return nil, refuse(ReasonDenied, "a password is not sent to %s without TLS: say --tls-ca", addr)
	}
	h := &hello{role: roleClient, session: rand.Uint64() | 1, user: cfg.User, password: cfg.Password}
	s, _, err := c.dial(ctx, cfg.Dial, addr, cfg.TLS, self, h, func(info *PeerInfo) error {
		if cfg.ClusterID != (ID{}) && info.ClusterID != cfg.ClusterID {
			return refuse(ReasonCluster, "%x there", info.ClusterID)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err = writeHandshake(s.conn, kindConfirm, nil); err == nil {
		err = s.conn.SetDeadline(time.Time{})
	}
	if err != nil {
		s.conn.Close()
		return nil, err
	}
	cc.s = s
	cc.wg.Add(2)
	go func() {
		defer cc.wg.Done()
		s.run()
	}()
	go cc.housekeep()
	return cc, nil
}

// loopback tells whether an address is this machine's own.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (c *ClientConn) housekeep() {
	defer c.wg.Done()
	l := &c.s.core.limits
	tick := time.NewTimer(l.tickInterval())
	defer tick.Stop()
	for {
		select {
		case <-c.s.done:
			return
		case <-tick.C:
			c.s.tick(c.s.core.clock.now())
			next := l.idleInterval()
			if c.s.busy() {
				next = l.tickInterval()
			}
			tick.Reset(next)
		}
	}
}

// Call asks the node and waits for the answer. An answer with another status than StatusOK is a *StatusError.
func (c *ClientConn) Call(ctx context.Context, method uint16, body []byte) ([]byte, error) {
	return c.s.calls.call(ctx, method, 0, body)
}

// Go is like Transport.Go.
func (c *ClientConn) Go(method uint16, deadline time.Time, flags uint8, body []byte, done func([]byte, error)) {
	if _, err := c.s.calls.start(method, deadline, flags, body, done); err != nil {
		done(nil, err)
	}
}

// Peer tells what the node has said of itself.
func (c *ClientConn) Peer() PeerInfo { return c.s.info }

// Metrics returns the counters of this connection.
func (c *ClientConn) Metrics() *Metrics { return &c.metrics }

// Stats describes the connection.
func (c *ClientConn) Stats() ConnStats { return c.s.stats(c.s.core.clock.now()) }

// Done is closed when the connection has ended.
func (c *ClientConn) Done() <-chan struct{} { return c.s.done }

// Close ends the connection and waits for its goroutines; what still waits for an answer gets ErrConnectionLost. It must not
// be called by a function given to Go.
func (c *ClientConn) Close() error {
	c.s.kill(ErrClosed)
	c.wg.Wait()
	return nil
}
