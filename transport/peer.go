package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// peer is another node. It exists from the first SetPeer or session on, until RemovePeer.
type peer struct {
	node engine.NodeID
	t    *Transport

	// Guarded by t.mu.
	addr    string
	cur     *session // registered, perhaps still waiting for its predecessor to end
	dropped [8]uint64
	drops   int
	dialing bool // there is a dial loop

	// live is the session that can be used, if any.
	live atomic.Pointer[session]
	met  atomic.Bool // there was a session
	// wake tells the dial loop that cur or addr changed.
	wake   chan struct{}
	ctx    context.Context
	cancel context.CancelFunc
}

func (p *peer) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// holds returns the registered session if it is still alive. The lock is held.
func (p *peer) holds() *session {
	if p.cur != nil && p.cur.alive() {
		return p.cur
	}
	return nil
}

// drop ends a session which the peer says it does not hold any more, and remembers that, for a confirmation of it may still
// be on its way. The lock is held.
func (p *peer) drop(s *session) {
	p.dropped[p.drops%len(p.dropped)] = s.id
	p.drops++
	s.kill(errReplaced)
}

func (p *peer) wasDropped(id uint64) bool {
	for _, d := range p.dropped {
		if d == id {
			return true
		}
	}
	return false
}

// lower tells whether identity a is the lower one.
func lower(a, b ID) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// stays tells whether, of two live sessions between the same two processes, the one that was dialled by this side (or by the
// other) is the one that stays: the one dialled by the lower identity (rule Cluster8). Both sides compute the same.
func (t *Transport) stays(dialledHere bool, other ID) bool {
	return lower(t.self.Identity, other) == dialledHere
}

// greet decides, when a hello arrives, whether to go on (rules Cluster8 and Cluster9), and returns the id of a session that was
// given up because the dialler does not hold it.
func (t *Transport) greet(h *hello, incarnation uint64) (uint64, *Refused) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[h.node]
	if p == nil {
		return 0, nil
	}
	cur := p.holds()
	switch {
	case cur == nil:
		return 0, nil
	case cur.info.Incarnation() != incarnation:
		// What an older incarnation left behind. While it is alive, a second process runs under its name.
		if t.attests(cur) {
			return 0, refuse(ReasonAlive, "incarnation %016x", cur.info.Incarnation())
		}
		p.drop(cur)
		return cur.id, nil
	case h.held != cur.id:
		p.drop(cur)
		return cur.id, nil
	case cur.dialled && t.stays(false, h.identity):
		return 0, nil // both hold cur, and the new one will replace it
	}
	return 0, refuse(ReasonConnected, "")
}

func (t *Transport) attests(s *session) bool {
	if f := t.cfg.Attesting; f != nil {
		return f(s.info.Node, s.info.Incarnation())
	}
	return t.core.clock.now()-s.conn.lastRead.Load() < int64(t.core.limits.AttestMax)
}

// register makes s the session with its node, or refuses it. dropped is the session that the listener gave up for it.
func (t *Transport) register(s *session, dropped uint64) *Refused {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return refuse(ReasonOther, "shutting down")
	}
	p := t.peers[s.info.Node]
	if p == nil {
		if s.dialled {
			return refuse(ReasonRemoved, "while dialling")
		}
		p = t.addPeer(s.info.Node)
	}
	cur := p.holds()
	switch {
	case p.wasDropped(s.id):
		return refuse(ReasonConnected, "given up meanwhile")
	case cur != nil && cur.info.Incarnation() != s.info.Incarnation() && t.attests(cur):
		return refuse(ReasonAlive, "incarnation %016x", cur.info.Incarnation())
	case cur == nil || cur.id == dropped || cur.info.Incarnation() != s.info.Incarnation():
	case cur.dialled == s.dialled:
		if s.dialled {
			return refuse(ReasonConnected, "")
		}
		// The dialler never holds two of its own: it has lost the first.
	case !t.stays(s.dialled, s.info.Identity):
		return refuse(ReasonConnected, "")
	}
	s.prev = p.cur // which s ends before it begins
	p.cur = s
	s.begin = func() {
		t.handler.PeerConnected(p.node, s.info.Incarnation(), s.info.AdvertiseAddr)
		if p.met.Swap(true) {
			t.core.metrics.Reconnects.Add(1)
		}
		p.live.Store(s)
		t.core.log.Info("peer connected", "node", p.node, "incarnation", fmt.Sprintf("%016x", s.info.Incarnation()), "remote", s.info.RemoteAddr,
			"dialled", s.dialled, "version", s.info.Version)
	}
	s.end = func() { t.handler.PeerDisconnected(p.node, s.info.Incarnation()) }
	t.sessions[s] = struct{}{}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		// Senders must not see a session that has ended.
		stop := context.AfterFunc(t.ctx, func() { s.kill(ErrClosed) })
		defer stop()
		s.run()
		t.mu.Lock()
		p.live.CompareAndSwap(s, nil)
		delete(t.sessions, s)
		if p.cur == s {
			p.cur = nil
		}
		if t.leaving[p.node] == s {
			delete(t.leaving, p.node)
		}
		t.mu.Unlock()
		p.nudge()
	}()
	return nil
}

// dialLoop keeps a session with the peer: it dials whenever there is none.
func (p *peer) dialLoop() {
	defer p.t.wg.Done()
	l := &p.t.core.limits
	var said string
	failures := 0
	for {
		addr, cur := p.want()
		switch {
		case cur != nil:
			since := time.Now()
			select {
			case <-cur.done:
				<-cur.finish // it ends in a moment, and dialling before would only be told that it is there
			case <-p.ctx.Done():
				return
			}
			failures = failuresAfter(l, failures, time.Since(since))
		case addr == "":
			select {
			case <-p.wake:
			case <-p.ctx.Done():
				return
			}
			continue
		}
		if !p.pause(backoff(l, failures)) {
			return
		}
		addr, cur = p.want()
		if cur != nil || addr == "" {
			continue
		}
		failures++
		err := p.t.dialPeer(p.ctx, p, addr)
		if p.ctx.Err() != nil {
			return
		}
		if err == nil {
			said = ""
			continue
		}
		p.t.core.metrics.DialErrors.Add(1)
		level := slog.LevelDebug
		if text := err.Error(); text != said && !isReason(err, ReasonConnected) {
			level, said = slog.LevelWarn, text
		}
		p.t.core.log.Log(p.ctx, level, "dialling a peer", "node", p.node, "addr", addr, "err", err)
		if isReason(err, ReasonClone) || isReason(err, ReasonRemoved) {
			failures = max(failures, 16)
		}
	}
}

func isReason(err error, r Reason) bool {
	var ref *Refused
	return errors.As(err, &ref) && ref.Reason == r
}

func (p *peer) want() (string, *session) {
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	return p.addr, p.cur
}

// failuresAfter is how many failures count after a session of that length. One that ends at once is no better than a dial that fails: where a link flaps, or
// a peer ends each session, the pauses grow.
func failuresAfter(l *Limits, failures int, session time.Duration) int {
	if session > l.BackoffMax {
		return 0
	}
	return failures
}

// backoff is random, so that two nodes do not dial in step for ever.
func backoff(l *Limits, failures int) time.Duration {
	d := l.BackoffMin << min(failures, 20)
	if d > l.BackoffMax || d <= 0 {
		d = l.BackoffMax
	}
	return time.Duration(rand.Int64N(int64(d)) + 1)
}

// pause waits; false if the peer was removed or the transport closed. A nudge does not shorten it.
func (p *peer) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// dialPeer makes one attempt.
func (t *Transport) dialPeer(ctx context.Context, p *peer, addr string) error {
	t.core.metrics.Dials.Add(1)
	self := t.who()
	t.mu.Lock()
	var held uint64
	if cur := p.holds(); cur != nil {
		held = cur.id
	}
	t.mu.Unlock()
	h := &hello{role: rolePeer, session: rand.Uint64() | 1, held: held}
	s, w, err := t.core.dial(ctx, t.cfg.Dial, addr, t.cfg.TLS, &self, h, func(info *PeerInfo) error {
		switch {
		case info.Identity == self.Identity || info.Node != p.node:
			return refuse(ReasonNode, "node %d answers, not %d", info.Node, p.node)
		case info.ClusterID != self.ClusterID:
			return refuse(ReasonCluster, "%x there, %x here", info.ClusterID, self.ClusterID)
		}
		return t.accept(info)
	})
	if err != nil {
		var ref *Refused
		if errors.As(err, &ref) && ref.Remote {
			t.core.metrics.Refused.Add(1)
			if f := t.cfg.OnRefused; f != nil {
				f(addr, ref)
			}
		}
		return err
	}
	s.handler = t.handler
	if err := t.authenticate(ctx, s, h); err != nil { // it will ask, too
		s.conn.Close()
		return err
	}
	return t.confirm(s, w)
}

// confirm registers a session that the listener has welcomed, and tells it.
func (t *Transport) confirm(s *session, w *welcome) error {
	// The confirmation goes out before yamux begins, and yamux begins only after registration.
	gate := make(chan struct{})
	s.gate = gate
	if ref := t.register(s, w.dropped); ref != nil {
		_ = writeHandshake(s.conn, kindRefusal, ref.encode())
		s.conn.Close()
		return ref
	}
	defer close(gate)
	if err := writeHandshake(s.conn, kindConfirm, nil); err != nil {
		s.kill(err)
		return err
	}
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		s.kill(err)
		return err
	}
	return nil
}

// accept asks the node about a peer.
func (t *Transport) accept(info *PeerInfo) error {
	if f := t.cfg.Accept; f != nil {
		if err := f(*info); err != nil {
			var ref *Refused
			if errors.As(err, &ref) {
				return ref
			}
			return refuse(ReasonOther, "%v", err)
		}
	}
	return nil
}
