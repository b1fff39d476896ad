package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// Sender brings requests to nodes.
type Sender interface {
	// Send sends a request and returns without waiting. done is called exactly once, on any goroutine and maybe before Send
	// returns; it does not block. Its error is nil; one of package shard that the node answered; or a *SendError.
	// The body must not be changed until done was called. The answer's body belongs to done.
	//
	// node may be 0 if it is not known yet who is at addr. An empty addr is for senders that know nodes by id; node 0 without
	// an address is the node itself, if the sender is part of one.
	Send(node engine.NodeID, addr string, method api.Method, flags uint8, deadline time.Time, body []byte, done func([]byte, error))
}

// SendError tells that no answer came.
type SendError struct {
	// Sent: the request may have reached the node and been carried out.
	Sent bool
	Err  error
}

// Error implements error.
func (e *SendError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *SendError) Unwrap() error { return e.Err }

// AnswerError turns the error of a transport call into that of a Sender.
func AnswerError(err error) error {
	if s, ok := err.(*transport.StatusError); ok && s.Status == uint16(shard.StatusOverloaded) { // there may be many of it
		return shard.DecodeError(shard.StatusOverloaded, s.Body)
	}
	var status *transport.StatusError
	var refused *transport.Refused
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused) && refused.Reason == transport.ReasonDenied:
		return fmt.Errorf("%w: %s", shard.ErrDenied, refused.Text)
	case errors.As(err, &status) && (status.Status == transport.StatusExpired || status.Status == transport.StatusBusy):
		return &SendError{Sent: true, Err: err}
	case errors.As(err, &status):
		return shard.DecodeError(shard.Status(status.Status), status.Body)
	case errors.Is(err, transport.ErrTooLarge):
		return fmt.Errorf("%w: %w", &shard.TooLargeError{What: "request"}, err)
	case errors.Is(err, transport.ErrOverloaded): // nothing was sent, and the node is no worse for it
		return fmt.Errorf("%w: %w", shard.ErrOverloaded, err)
	case errors.Is(err, transport.ErrNotConnected):
		return &SendError{Err: err}
	}
	return &SendError{Sent: true, Err: err}
}

// Pool is the Sender of a remote client: one connection per address, dialled when it is first needed.
type Pool struct {
	cfg    transport.ClientConfig
	dial   func(ctx context.Context, addr string, cfg transport.ClientConfig) (poolConn, error)
	ctx    context.Context // ends dials
	cancel context.CancelFunc
	wg     sync.WaitGroup // dials

	// ready has the connections that can be used, by address: thousands of requests at a time should not meet in a lock.
	ready sync.Map

	mu     sync.Mutex
	conns  map[string]*pooled
	closed bool
}

// poolConn is the part of transport.ClientConn that a Pool uses.
type poolConn interface {
	Go(method uint16, deadline time.Time, flags uint8, body []byte, done func([]byte, error))
	Done() <-chan struct{}
	Close() error
}

// pooled is a connection, or the dial of one.
type pooled struct {
	conn    poolConn // nil: dialling
	waiting []waiting
}

type waiting struct {
	method   api.Method
	flags    uint8
	deadline time.Time
	body     []byte
	done     func([]byte, error)
}

// waitingMax bounds the requests that wait for one dial.
const waitingMax = 65536

// dialTimeout bounds a dial, handshake included.
const dialTimeout = 3 * time.Second

// NewPool returns a Pool without connections.
func NewPool(cfg transport.ClientConfig) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	return &Pool{cfg: cfg, ctx: ctx, cancel: cancel, conns: map[string]*pooled{},
		dial: func(ctx context.Context, addr string, cfg transport.ClientConfig) (poolConn, error) {
			c, err := transport.DialClient(ctx, addr, cfg)
			if err != nil {
				return nil, err
			}
			return c, nil
		}}
}

var errNoAddress = errors.New("address of the node is not known")

// Send implements Sender.
func (p *Pool) Send(node engine.NodeID, addr string, method api.Method, flags uint8, deadline time.Time, body []byte, done func([]byte, error)) {
	if addr == "" {
		done(nil, &SendError{Err: errNoAddress})
		return
	}
	answer := func(b []byte, err error) { done(b, AnswerError(err)) }
	if c, ok := p.ready.Load(addr); ok {
		conn := c.(poolConn)
		select {
		case <-conn.Done():
			p.ready.CompareAndDelete(addr, c)
		default:
			conn.Go(method, deadline, flags, body, answer)
			return
		}
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		done(nil, &SendError{Err: transport.ErrClosed})
		return
	}
	c := p.conns[addr]
	if c != nil && c.conn != nil {
		select {
		case <-c.conn.Done():
			delete(p.conns, addr)
			c = nil
		default:
		}
	}
	if c != nil && c.conn != nil {
		conn := c.conn
		p.mu.Unlock()
		conn.Go(method, deadline, flags, body, answer)
		return
	}
	if c == nil {
		c = &pooled{}
		p.conns[addr] = c
		p.wg.Add(1)
		go p.connect(addr, c)
	}
	if len(c.waiting) >= waitingMax {
		p.mu.Unlock()
		done(nil, AnswerError(transport.ErrOverloaded))
		return
	}
	c.waiting = append(c.waiting, waiting{method, flags, deadline, body, answer})
	p.mu.Unlock()
}

// connect dials addr and sends what has been waiting for it.
func (p *Pool) connect(addr string, c *pooled) {
	defer p.wg.Done()
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	conn, err := p.dial(ctx, addr, p.cfg)
	p.mu.Lock()
	if err == nil && p.closed {
		err = transport.ErrClosed
		defer conn.Close()
	}
	if err != nil {
		delete(p.conns, addr)
	}
	for len(c.waiting) > 0 {
		queue := c.waiting
		c.waiting = nil
		p.mu.Unlock()
		for _, w := range queue {
			if err != nil {
				w.done(nil, fmt.Errorf("%w: %s: %w", transport.ErrNotConnected, addr, err))
			} else {
				conn.Go(w.method, w.deadline, w.flags, w.body, w.done)
			}
		}
		p.mu.Lock()
	}
	if err == nil {
		c.conn = conn
		p.ready.Store(addr, conn)
	}
	p.mu.Unlock()
}

// Close closes the connections; what waits for an answer gets an error.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	var conns []poolConn
	for _, c := range p.conns {
		if c.conn != nil {
			conns = append(conns, c.conn)
		}
	}
	clear(p.conns)
	p.mu.Unlock()
	p.cancel()
	var errs []error
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	p.wg.Wait()
	return errors.Join(errs...)
}
