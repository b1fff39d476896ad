package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// redirectsMax is how many times in a row a request follows a redirect without a pause.
const redirectsMax = 4

// call is one request on its way: attempts, one at a time, until it has an answer or its context ends.
//
//	attempt ─► route known? ──no──► refresh the map ─┐
//	   ▲            │yes                             │
//	   │            ▼                                │
//	   │           Send ──► answer ──final──► finish │
//	   │                       │                     │
//	   └──── at once, or after a pause ◄─────────────┘
type call struct {
	c      *Client
	ctx    context.Context
	method api.Method
	shard  engine.ShardID // addressed by id; 0: by key
	stale  bool           // any replica will do
	w      *shard.Write   // one of these three
	r      *shard.Read
	s      *shard.Scan
	done   func([]byte, error)
	stop   func() bool // of context.AfterFunc; nil if the context cannot end
	waited bool        // somebody waits, and calls cancelled when the context ends

	session *session // of a write, if the client keeps it

	mu        sync.Mutex
	finished  bool
	sent      bool // an attempt is on its way
	unknown   bool // an earlier attempt of a write may have been applied
	attempts  int
	pauses    int
	redirects int
	rotor     int
	lastErr   error
}

func (c *Client) start(k *call) {
	k.c = c
	if k.ctx == nil {
		k.ctx = context.Background()
	}
	if err := k.ctx.Err(); err != nil {
		k.done(nil, err)
		return
	}
	if k.w != nil && k.w.Session.IsZero() && !k.unprotected() {
		k.openSession()
	}
	k.rotor = rand.IntN(1 << 20)
	if k.ctx.Done() != nil && !k.waited {
		stop := context.AfterFunc(k.ctx, k.cancelled)
		k.mu.Lock()
		k.stop = stop
		k.mu.Unlock()
	}
	k.attempt()
}

// answer is how a call ended.
type answer struct {
	body []byte
	err  error
}

// do starts a call and waits for its end. It costs less than start with a channel: the context is waited for here, not by a
// function registered with it.
func (c *Client) do(k *call) ([]byte, error) {
	ch := make(chan answer, 1)
	k.done = func(b []byte, err error) { ch <- answer{b, err} }
	k.waited = true
	c.start(k)
	select {
	case a := <-ch:
		return a.body, a.err
	case <-k.ctx.Done():
		k.cancelled()
		a := <-ch
		return a.body, a.err
	}
}

// unprotected tells whether the caller asked for a write without a session: Lowest is set, and nothing else.
func (k *call) unprotected() bool { return k.w.Lowest == noSession }

// noSession in Lowest marks a write that is to have no session.
const noSession = ^uint64(0)

func (k *call) openSession() {
	k.session, k.w.Seq = k.c.sessions.begin()
	k.w.Session = k.session.id
}

// attempt sends the request to whom it belongs now.
func (k *call) attempt() {
	k.mu.Lock()
	if k.finished {
		k.mu.Unlock()
		return
	}
	if k.c.ctx.Err() != nil {
		k.mu.Unlock()
		k.finish(nil, ErrClosed)
		return
	}
	if k.ctx.Err() != nil { // its deadline has passed, before its channel was closed or instead of that
		k.mu.Unlock()
		k.cancelled()
		return
	}
	route, ok := k.route()
	if !ok {
		k.mu.Unlock()
		k.c.refreshMap(k.refreshKey(), func(err error) {
			if err != nil {
				k.refreshFailed(err)
				return
			}
			k.mu.Lock()
			_, ok := k.route()
			k.mu.Unlock()
			if !ok {
				k.pause(0, fmt.Errorf("%w: no shard owns the key", shard.ErrUnavailable))
				return
			}
			k.attempt()
		})
		return
	}
	if !k.within(&route) && !k.unknown {
		k.mu.Unlock()
		k.finish(nil, shard.ErrCrossShard)
		return
	}
	k.attempts++
	k.sent = true
	node := k.target(&route)
	body := k.encode(route.Desc)
	k.mu.Unlock()
	deadline := k.c.cfg.Now().Add(k.c.cfg.AttemptTimeout)
	if d, ok := k.ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	k.c.sender.Send(node, k.c.m.Addr(node), k.method, 0, deadline, body, func(b []byte, err error) {
		k.answered(&route, node, b, err)
	})
}

// refreshFailed ends the call if there is no cluster, else it goes on after a pause.
func (k *call) refreshFailed(err error) {
	if errors.Is(err, shard.ErrNotInitialized) || errors.Is(err, shard.ErrDenied) || errors.Is(err, ErrClosed) {
		k.finish(nil, err)
		return
	}
	k.pause(0, err)
}

// route returns where the request belongs as far as the map knows.
func (k *call) route() (Route, bool) {
	switch {
	case k.shard != 0:
		return k.c.m.Shard(k.shard)
	case k.s != nil && k.s.Reverse:
		return k.c.m.LookupBefore(k.s.End)
	}
	return k.c.m.Lookup(k.key())
}

// key returns the key that decides where the request goes: for a write the one that de-duplicates it (rule Cluster1).
func (k *call) key() []byte {
	switch {
	case k.w != nil:
		return k.w.FirstKey()
	case k.r != nil:
		return k.r.Keys[0]
	}
	return k.s.Start
}

func (k *call) refreshKey() []byte {
	if k.s != nil && k.s.Reverse && k.shard == 0 {
		if len(k.s.End) == 0 {
			return bytes.Repeat([]byte{0xff}, shard.KeyBytesMax)
		}
		return keyBefore(k.s.End)
	}
	if k.shard != 0 {
		return nil
	}
	return k.key()
}

// keyBefore returns a key below end, with hardly anything in between.
func keyBefore(end []byte) []byte {
	last := len(end) - 1
	if end[last] == 0 {
		return end[:last]
	}
	before := append(bytes.Clone(end[:last]), end[last]-1)
	for len(before) < min(last+17, shard.KeyBytesMax) {
		before = append(before, 0xff)
	}
	return before
}

// within tells whether all keys of a request by key are in the route's range. A scan may reach beyond it.
func (k *call) within(r *Route) bool {
	switch {
	case k.shard != 0 || k.s != nil:
		return true
	case k.r != nil:
		for _, key := range k.r.Keys {
			if !r.Contains(key) {
				return false
			}
		}
		return true
	}
	for i := range k.w.Conditions {
		if !r.Contains(k.w.Conditions[i].Key) {
			return false
		}
	}
	for i := range k.w.Ops {
		o := &k.w.Ops[i]
		if !r.Contains(o.Key) {
			return false
		}
		if o.Kind == shard.OpDeleteRange && len(r.End) > 0 && (len(o.End) == 0 || bytes.Compare(o.End, r.End) > 0) {
			return false
		}
	}
	return true
}

// target picks the replica: the leader, or whoever comes next if it is not known or the read may be stale.
func (k *call) target(r *Route) engine.NodeID {
	if r.Leader != 0 && !k.stale {
		return r.Leader
	}
	n := len(r.Desc.Replicas)
	for i := range n {
		rep := &r.Desc.Replicas[(k.rotor+i)%n]
		if k.stale || rep.Role != shard.RoleLearner {
			k.rotor += i + 1
			return rep.Node
		}
	}
	return 0
}

// encode makes the body of an attempt: it names the shard, its version, and for a write what is answered by now.
func (k *call) encode(d *shard.Descriptor) []byte {
	switch {
	case k.w != nil:
		w := *k.w
		w.Shard, w.Version = d.Shard, d.Version
		if k.session != nil {
			w.Lowest = k.c.sessions.lowest(k.session)
		} else if k.unprotected() {
			w.Lowest = 0
		}
		return shard.AppendWrite(nil, &w)
	case k.r != nil:
		q := *k.r
		q.Shard, q.Version = d.Shard, d.Version
		return shard.AppendRead(nil, &q)
	}
	q := *k.s
	q.Shard, q.Version = d.Shard, d.Version
	return shard.AppendScan(nil, &q)
}

// answered decides what an answer means.
func (k *call) answered(r *Route, node engine.NodeID, body []byte, err error) {
	k.mu.Lock()
	k.sent = false
	if k.finished {
		k.mu.Unlock()
		return
	}
	var (
		notLeader *shard.NotLeaderError
		moved     *shard.MovedError
		unavail   *shard.UnavailableError
		lost      *SendError
		id        = r.Desc.Shard
		m         = k.c.m
	)
	k.mu.Unlock()
	switch {
	case err == nil:
		if !k.stale {
			m.SetLeader(id, node)
		}
		k.finish(body, nil)
	case err == shard.ErrOverloaded: // of all answers the one that there may be most of: before the questions below
		k.overloaded(err)
	case errors.As(err, &notLeader):
		m.ForgetLeader(id, node)
		m.SetAddr(notLeader.Leader, notLeader.Addr)
		if l := notLeader.Leader; l != 0 && l != node {
			m.SetLeader(id, l)
			k.redirect(err)
		} else {
			k.pause(0, err)
		}
	case errors.As(err, &moved):
		k.moved(node, moved)
	case errors.Is(err, shard.ErrShardNotFound):
		m.ForgetLeader(id, node)
		k.askAgain(err)
	case errors.As(err, &unavail):
		m.ForgetLeader(id, node)
		k.pauseFor(unavail.RetryAfter, err)
	case errors.Is(err, shard.ErrStale):
		k.tooStale(r, err)
	case errors.Is(err, shard.ErrOverloaded):
		k.overloaded(err)
	case errors.Is(err, shard.ErrNotInitialized):
		m.ForgetLeader(id, node)
		k.pause(0, err)
	case errors.Is(err, shard.ErrSessionExpired):
		k.sessionExpired(err)
	case errors.As(err, &lost) && k.w == nil && isBusy(err):
		k.pause(k.c.cfg.BackoffMin*5, err)
	case errors.As(err, &lost):
		m.ForgetLeader(id, node)
		k.lostAnswer(lost.Sent, err)
	case errors.Is(err, shard.ErrAmbiguous), errors.Is(err, shard.ErrInternal):
		k.lostAnswer(true, err)
	default:
		k.finish(nil, err)
	}
}

// overloaded: the node has too much to do, and that there is one more who asks again and again is part of it. So pauses grow for longer than
// others do, up to four times BackoffMax.
func (k *call) overloaded(err error) {
	k.mu.Lock()
	unknown := k.unknown
	pause := min(k.c.cfg.BackoffMin*5<<min(k.pauses, 16), k.c.cfg.BackoffMax*4)
	k.mu.Unlock()
	if !unknown && k.ctx.Value(failOverloaded{}) != nil {
		k.finish(nil, err)
		return
	}
	k.pauseUpTo(pause/2, pause, err)
}

type failOverloaded struct{}

// FailOverloaded returns a context whose requests end with ErrOverloaded when a node refuses them so, instead of being tried again until it
// ends: for callers that know something better to do with what is too much. A write that may have been applied by an earlier attempt is still
// tried again.
func FailOverloaded(ctx context.Context) context.Context {
	return context.WithValue(ctx, failOverloaded{}, true)
}

// isBusy tells whether a peer had an answer and no room to send it.
func isBusy(err error) bool {
	var status *transport.StatusError
	return errors.As(err, &status) && status.Status == transport.StatusBusy
}

// moved: the shard does not own the key any more, or not all of them. Who leads a shard leads at first what is split off it.
func (k *call) moved(node engine.NodeID, e *shard.MovedError) {
	news := k.c.m.Update(e.Descriptors...)
	for i := range e.Descriptors {
		k.c.m.HintLeader(e.Descriptors[i].Shard, node)
	}
	k.mu.Lock()
	unknown := k.unknown
	route, ok := k.route()
	k.mu.Unlock()
	if ok && k.w != nil && k.shard == 0 && !k.within(&route) && (e.NotApplied || !unknown) {
		// The owner of the first key vouches, or nothing was ever sent that could be applied: the caller may cut it anew.
		k.finish(nil, shard.ErrCrossShard)
		return
	}
	if news && ok {
		k.redirect(e)
		return
	}
	k.askAgain(e)
}

// redirect goes on at once, unless that happened too often in a row.
func (k *call) redirect(err error) {
	k.mu.Lock()
	k.redirects++
	again := k.redirects <= redirectsMax
	k.lastErr = err
	k.mu.Unlock()
	if !again {
		k.pause(0, err)
		return
	}
	k.attempt()
}

// askAgain fills the map anew and goes on after a pause.
func (k *call) askAgain(err error) {
	k.c.refreshMap(k.refreshKey(), func(rerr error) {
		if rerr != nil {
			k.refreshFailed(rerr)
			return
		}
		k.pause(0, err)
	})
}

// tooStale: this replica has not heard from its leader; another may have, and the leader itself is never stale.
func (k *call) tooStale(r *Route, err error) {
	k.mu.Lock()
	if k.attempts >= len(r.Desc.Replicas) {
		k.stale = false
	}
	k.mu.Unlock()
	k.redirect(err)
}

// lostAnswer: if the request may have been carried out, a write is repeated under its name, or its outcome is unknown.
func (k *call) lostAnswer(sent bool, err error) {
	if sent && k.w != nil {
		k.mu.Lock()
		k.unknown = true
		k.mu.Unlock()
		if k.w.Session.IsZero() {
			k.finish(nil, fmt.Errorf("%w: %w", shard.ErrAmbiguous, err))
			return
		}
	}
	k.pause(0, err)
}

// sessionExpired: this attempt was not applied. If it was the only one, it is repeated in a new session; else nobody knows.
func (k *call) sessionExpired(err error) {
	if k.session == nil {
		k.finish(nil, err)
		return
	}
	var e *shard.SessionExpiredError
	shardTime := int64(0)
	if errors.As(err, &e) {
		shardTime = e.ShardTime
	}
	k.c.sessions.expired(k.session, shardTime)
	k.mu.Lock()
	unknown := k.unknown
	k.mu.Unlock()
	if unknown {
		k.finish(nil, fmt.Errorf("%w: %w", shard.ErrAmbiguous, err))
		return
	}
	k.mu.Lock()
	if k.finished {
		k.mu.Unlock()
		return
	}
	k.c.sessions.end(k.session, k.w.Seq)
	k.openSession()
	k.mu.Unlock()
	k.redirect(err)
}

// pauseFor goes on after as long as the shard said, and up to twice that: it knows better than we do how soon that makes sense.
func (k *call) pauseFor(d time.Duration, err error) {
	if d <= 0 {
		k.pause(0, err)
		return
	}
	k.pauseUpTo(d, min(d, k.c.cfg.BackoffMax), err)
}

// pause goes on after a pause with full jitter, of at least atLeast.
func (k *call) pause(atLeast time.Duration, err error) {
	k.mu.Lock()
	limit := min(k.c.cfg.BackoffMin<<min(k.pauses, 16), k.c.cfg.BackoffMax)
	k.mu.Unlock()
	k.pauseUpTo(atLeast, limit, err)
}

func (k *call) pauseUpTo(atLeast, limit time.Duration, err error) {
	k.mu.Lock()
	k.pauses++
	k.redirects = 0
	k.lastErr = err
	k.mu.Unlock()
	k.c.cfg.After(atLeast+time.Duration(rand.Int64N(int64(limit)+1)), k.attempt)
}

// cancelled ends the call with its context.
func (k *call) cancelled() {
	k.mu.Lock()
	last := k.lastErr
	ambiguous := k.w != nil && (k.unknown || k.sent)
	k.mu.Unlock()
	err := context.Cause(k.ctx)
	if err == nil {
		err = k.ctx.Err()
	}
	switch {
	case ambiguous:
		err = fmt.Errorf("%w: %w", shard.ErrAmbiguous, err)
	case last != nil:
		err = fmt.Errorf("%w: %w (last answer: %w)", shard.ErrUnavailable, err, last)
	default:
		err = fmt.Errorf("%w: %w", shard.ErrUnavailable, err)
	}
	k.finish(nil, err)
}

func (k *call) finish(body []byte, err error) {
	k.mu.Lock()
	if k.finished {
		k.mu.Unlock()
		return
	}
	k.finished = true
	if k.w != nil && k.unknown && (errors.Is(err, ErrClosed) || errors.Is(err, shard.ErrDenied)) {
		err = fmt.Errorf("%w: %w", shard.ErrAmbiguous, err)
	}
	session, stop := k.session, k.stop
	k.mu.Unlock()
	if stop != nil {
		stop()
	}
	if session != nil {
		k.c.sessions.end(session, k.w.Seq)
	}
	k.done(body, err)
}
