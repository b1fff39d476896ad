package router

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// Config configures a Client. The zero value is good.
type Config struct {
	// Map is shared with others, as inside a node, which feeds it. Default: an own one, filled from the nodes.
	Map *Map
	// AttemptTimeout bounds one attempt, after which the request is sent again, maybe elsewhere. Default 2 s.
	AttemptTimeout time.Duration
	// BackoffMin and BackoffMax bound the pauses: the n-th is up to min(BackoffMax, BackoffMin << n). Default 10 ms, 500 ms.
	BackoffMin time.Duration
	BackoffMax time.Duration
	// Transport is how Dial connects.
	Transport transport.ClientConfig
	Logger    *slog.Logger

	// Now and After replace the clock in tests.
	Now   func() time.Time
	After func(d time.Duration, f func())
}

// Client is a client of a cluster.
type Client struct {
	cfg      Config
	sender   Sender
	servers  []string
	m        *Map
	sessions *sessions
	pool     *Pool // that Dial made
	ctx      context.Context
	cancel   context.CancelFunc

	mu      sync.Mutex
	refresh *refresh // in progress
}

// ErrClosed: the client was closed.
var ErrClosed = errors.New("client closed")

// Dial returns a client of the cluster that any of the addresses belongs to, once one of them has answered with a map.
func Dial(ctx context.Context, servers []string, cfg Config) (*Client, error) {
	if len(servers) == 0 {
		return nil, &shard.InvalidError{What: "no server address"}
	}
	pool := NewPool(cfg.Transport)
	c := New(pool, servers, cfg)
	c.pool = pool
	if err := c.Refresh(ctx, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// New returns a client over a sender. servers are asked for the map, beside the nodes that are known; [""] inside a node.
func New(sender Sender, servers []string, cfg Config) *Client {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.AttemptTimeout, 2*time.Second)
	def(&cfg.BackoffMin, 10*time.Millisecond)
	def(&cfg.BackoffMax, 500*time.Millisecond)
	if cfg.Map == nil {
		cfg.Map = NewMap()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = func(d time.Duration, f func()) { time.AfterFunc(d, f) }
	}
	c := &Client{cfg: cfg, sender: sender, servers: servers, m: cfg.Map, sessions: newSessions(cfg.Now)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends all requests with ErrClosed, or ErrAmbiguous, and closes the connections that Dial opened.
func (c *Client) Close() error {
	c.cancel()
	if c.pool != nil {
		return c.pool.Close()
	}
	return nil
}

// Map returns the range map.
func (c *Client) Map() *Map { return c.m }

// Call sends a request to one node and waits for the answer: for the methods that are about nodes. It is not retried.
// The error is one of package shard, or a *SendError, or the context's.
func (c *Client) Call(ctx context.Context, node engine.NodeID, addr string, method api.Method, body []byte) ([]byte, error) {
	if addr == "" && node != 0 {
		addr = c.m.Addr(node)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = c.cfg.Now().Add(time.Hour)
	}
	type answer struct {
		body []byte
		err  error
	}
	ch := make(chan answer, 1)
	c.sender.Send(node, addr, method, 0, deadline, body, func(b []byte, err error) { ch <- answer{b, err} })
	select {
	case a := <-ch:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.ctx.Done():
		return nil, ErrClosed
	}
}

// Refresh asks the nodes, one after the other, for the part of the map around key, and returns when one has answered.
func (c *Client) Refresh(ctx context.Context, key []byte) error {
	ch := make(chan error, 1)
	c.refreshMap(key, func(err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ctx.Done():
		return ErrClosed
	}
}

// LoadMap fills the map with all user shards.
func (c *Client) LoadMap(ctx context.Context) error {
	from := []byte(nil)
	for {
		r, ok := c.m.Lookup(from)
		if !ok {
			if err := c.Refresh(ctx, from); err != nil {
				return err
			}
			if r, ok = c.m.Lookup(from); !ok {
				return fmt.Errorf("%w: no shard owns %q", shard.ErrUnavailable, from)
			}
		}
		if len(r.End) == 0 {
			return nil
		}
		from = r.End
	}
}

// refreshLimit is how many descriptors are asked for at a time.
const refreshLimit = 512

// refresh is one round of questions to the nodes. Whoever needs the map while it runs waits for it, and asks again if it was
// about other keys.
type refresh struct {
	targets []target
	key     []byte

	// Guarded by Client.mu.
	next    int // of targets
	asking  int // asked, without an answer yet
	ended   bool
	waiting []func(error)
	errs    []error
}

type target struct {
	node engine.NodeID
	addr string
}

// refreshMap calls done once somebody has answered for key, or nobody did.
func (c *Client) refreshMap(key []byte, done func(error)) {
	c.mu.Lock()
	if r := c.refresh; r != nil {
		if string(r.key) != string(key) {
			waited := done
			done = func(err error) {
				if _, ok := c.m.Lookup(key); ok || err != nil {
					waited(err)
					return
				}
				c.refreshMap(key, waited) // it was about other keys
			}
		}
		r.waiting = append(r.waiting, done)
		c.mu.Unlock()
		return
	}
	r := &refresh{key: key, waiting: []func(error){done}}
	c.refresh = r
	for _, n := range c.m.Nodes() {
		r.targets = append(r.targets, target{node: n, addr: c.m.Addr(n)})
	}
	rand.Shuffle(len(r.targets), func(i, j int) { r.targets[i], r.targets[j] = r.targets[j], r.targets[i] })
	for _, s := range c.servers {
		r.targets = append(r.targets, target{addr: s})
	}
	if len(c.servers) == 1 && c.servers[0] == "" { // inside a node: it knows best
		r.targets = append([]target{{}}, r.targets[:len(r.targets)-1]...)
	}
	c.mu.Unlock()
	c.askForMap(r)
}

// hedgeAfter is how long a round waits for one node before it asks the next one as well: nodes hang, and dialling one that does takes
// longer than many a caller has time.
const hedgeAfter = 300 * time.Millisecond

// askForMap asks the next node. The first answer counts; without any, the round ends when all have failed.
func (c *Client) askForMap(r *refresh) {
	c.mu.Lock()
	closed := c.ctx.Err() != nil
	if r.ended || r.next == len(r.targets) && r.asking > 0 && !closed {
		c.mu.Unlock()
		return
	}
	if r.next == len(r.targets) || closed {
		err := c.refreshError(r)
		c.mu.Unlock()
		c.endRefresh(r, err)
		return
	}
	t := r.targets[r.next]
	r.next++
	r.asking++
	asked, more := r.next, r.next < len(r.targets)
	c.mu.Unlock()
	if more {
		c.cfg.After(hedgeAfter, func() {
			c.mu.Lock()
			hangs := r.next == asked
			c.mu.Unlock()
			if hangs {
				c.askForMap(r)
			}
		})
	}
	body := (&api.MapRequest{From: r.key, Limit: refreshLimit}).Append(nil)
	c.sender.Send(t.node, t.addr, api.MethodMap, 0, c.cfg.Now().Add(c.cfg.AttemptTimeout), body, func(b []byte, err error) {
		var page api.MapPage
		if err == nil {
			err = api.Decode(b, &page)
		}
		if err == nil {
			c.learn(&page)
			c.endRefresh(r, nil)
			return
		}
		c.mu.Lock()
		r.asking--
		r.errs = append(r.errs, fmt.Errorf("%s: %w", t, err))
		c.mu.Unlock()
		c.askForMap(r)
	})
}

// endRefresh tells those who wait, once.
func (c *Client) endRefresh(r *refresh, err error) {
	c.mu.Lock()
	if r.ended {
		c.mu.Unlock()
		return
	}
	r.ended = true
	c.refresh = nil
	waiting := r.waiting
	c.mu.Unlock()
	for _, w := range waiting {
		w(err)
	}
}

// String names the target for messages.
func (t target) String() string {
	if t.addr != "" {
		return t.addr
	}
	return fmt.Sprintf("node %d", t.node)
}

// refreshError sums up why nobody answered. Only if all that could be reached say that there is no cluster, there is none.
func (c *Client) refreshError(r *refresh) error {
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	none, denied := 0, 0
	for _, err := range r.errs {
		if errors.Is(err, shard.ErrDenied) {
			denied++
		}
		if errors.Is(err, shard.ErrNotInitialized) {
			none++
		} else if e := (*SendError)(nil); !errors.As(err, &e) {
			none = -len(r.errs)
		}
	}
	if none > 0 {
		return shard.ErrNotInitialized
	}
	if denied > 0 && denied == len(r.errs) {
		return r.errs[0]
	}
	return fmt.Errorf("%w: no node answers: %w", shard.ErrUnavailable, withoutDenied(r.errs))
}

// withoutDenied joins the errors, those of nodes that denied access as text only: others may answer later.
func withoutDenied(errs []error) error {
	out := make([]error, len(errs))
	for i, err := range errs {
		if out[i] = err; errors.Is(err, shard.ErrDenied) {
			out[i] = errors.New(err.Error())
		}
	}
	return errors.Join(out...)
}

// learn takes a page of the map in.
func (c *Client) learn(page *api.MapPage) {
	for _, n := range page.Nodes {
		c.m.SetAddr(n.Node, n.Addr)
	}
	if page.Meta.Shard == shard.MetaShardID {
		c.m.Update(page.Meta)
	}
	c.m.Update(page.Descriptors...)
	if len(page.Leaders) == len(page.Descriptors) {
		for i, l := range page.Leaders {
			c.m.HintLeader(page.Descriptors[i].Shard, l)
		}
	}
}
