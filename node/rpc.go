package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// Methods that only nodes call, of each other. Sent: never renumber.
const (
	methodHello   api.Method = 64 // hello → hello; also served by nodes without a cluster
	methodReserve api.Method = 65 // reservation → held (rule Cluster7)
	methodStart   api.Method = 66 // reservation → held
	methodSync    api.Method = 67 // syncRequest → array with the number of replicas made: look into meta now
)

// reply answers a request, once, from any goroutine. A body of more than transport.ReplyKept bytes must not be changed any more; a shorter one is not kept.
type reply func(status uint16, body []byte)

// kept returns the body given to a reply, to be kept.
func kept(b []byte) []byte {
	if len(b) > transport.ReplyKept {
		return b
	}
	return append([]byte(nil), b...)
}

func (r reply) err(err error) {
	status, body := shard.EncodeError(nil, err)
	r(uint16(status), body)
}

// incoming is a request that this node serves.
type incoming struct {
	method   uint16
	flags    uint8
	deadline time.Time
	body     []byte
	reply    reply
	// Who asks, if it came from outside: nil for what this node asks itself.
	id     *auth.Identity
	client bool   // and not a peer
	from   string // for the audit log
}

func (q *incoming) forwarded() bool { return q.flags&transport.FlagForwarded != 0 }

// errNoMethod answers what this version does not know.
func errNoMethod(method uint16) error {
	return &shard.InvalidError{What: fmt.Sprintf("unknown method %d", method)}
}

// serve answers a request. It does not block: what must wait runs on a goroutine, of which there are slowMax at most.
func (n *Node) serve(q incoming) {
	switch q.method {
	case methodHello, methodReserve, methodStart, api.MethodInit, api.MethodNodeInfo, api.MethodInspect, api.MethodWhoAmI:
		n.slow(q, n.serveWaiting)
		return
	}
	c := n.core.Load()
	if c == nil {
		q.reply.err(shard.ErrNotInitialized)
		return
	}
	switch q.method {
	case api.MethodRead:
		c.serveShard(scheduler.KindRead, q)
	case api.MethodWrite:
		c.serveShard(scheduler.KindWrite, q)
	case api.MethodScan:
		c.serveShard(scheduler.KindScan, q)
	case api.MethodRouteRead, api.MethodRouteWrite, api.MethodRouteScan:
		n.serveRouted(q)
	default:
		n.slow(q, c.serveAdmin)
	}
}

// expected is how big the answer of a method that reads or writes keys may be; 0 for all other methods.
func expected(method uint16) int {
	switch method {
	case api.MethodRead, api.MethodWrite, api.MethodRouteRead, api.MethodRouteWrite:
		return 64 << 10
	case api.MethodScan, api.MethodRouteScan:
		return 1 << 20
	}
	return 0
}

// slowMax bounds the goroutines that serve what may wait, those for nodes and those for clients: while the meta shard cannot be read clients' wait,
// and must not take the places of what nodes ask of each other.
const slowMax = 4096

// slow serves q on a goroutine of its own, which ends with the request's deadline.
func (n *Node) slow(q incoming, f func(ctx context.Context, q *incoming) ([]byte, error)) {
	slots := n.slots[0]
	if q.client {
		slots = n.slots[1]
	}
	select {
	case slots <- struct{}{}:
	default:
		q.reply.err(shard.ErrOverloaded)
		return
	}
	if !n.spawn(func() {
		defer func() { <-slots }()
		ctx, cancel := n.deadline(q.deadline)
		defer cancel()
		body, err := f(ctx, &q)
		if err != nil {
			q.reply.err(err)
			return
		}
		q.reply(uint16(shard.StatusOK), body)
	}) {
		<-slots
		q.reply.err(&shard.UnavailableError{Reason: "the node is stopping"})
	}
}

// answerReserve is kept of a request's time for the answer's way back.
const answerReserve = 20 * time.Millisecond

// deadline returns a context that ends a little before t, so that the reason still reaches the caller, or with the node.
func (n *Node) deadline(t time.Time) (context.Context, context.CancelFunc) {
	if t.IsZero() {
		return context.WithCancel(n.ctx)
	}
	if left := time.Until(t); left > 10*answerReserve {
		t = t.Add(-answerReserve)
	}
	return context.WithDeadline(n.ctx, t)
}

// serveWaiting serves what a node without a cluster serves, too.
func (n *Node) serveWaiting(ctx context.Context, q *incoming) ([]byte, error) {
	switch q.method {
	case methodHello:
		h, err := decodeHello(q.body)
		if err != nil {
			return nil, malformed(err)
		}
		out := n.boot.onHello(&h)
		return out.append(nil), nil
	case methodReserve, methodStart:
		r, err := decodeReservation(q.body)
		if err != nil {
			return nil, malformed(err)
		}
		f := n.boot.onReserve
		if q.method == methodStart {
			f = n.boot.onStart
		}
		h, err := f(&r)
		return h.append(nil), err
	case api.MethodInit:
		var req api.InitRequest
		if err := api.Decode(q.body, &req); err != nil {
			return nil, err
		}
		res, err := n.Init(ctx, InitOptions{Shards: int(req.Shards), Replicas: int(req.Replicas)})
		if err != nil {
			return nil, err
		}
		out := api.InitAnswer{ClusterID: res.Cluster, Already: res.Already, Nodes: uint64(len(res.Nodes)), Shards: uint64(res.Shards)}
		return out.Append(nil), nil
	case api.MethodNodeInfo:
		out := n.nodeInfo(ctx)
		return out.Append(nil), nil
	case api.MethodInspect:
		return answer(q, &api.InspectRequest{}, func(r *api.InspectRequest) (api.Body, error) {
			data, err := n.inspect(ctx, r.What, r.Seconds)
			return &api.InspectAnswer{Data: data}, err
		})
	case api.MethodWhoAmI:
		return whoAmI(q).Append(nil), nil
	}
	return nil, errNoMethod(q.method)
}

func malformed(err error) error { return &shard.InvalidError{What: err.Error()} }

// shardCall is a request on its way through the scheduler. Calls are reused, with their buffers.
type shardCall struct {
	req scheduler.Request
	c   *core
	q   incoming
}

var shardCalls = sync.Pool{New: func() any { return new(shardCall) }}

// serveShard hands a request for one shard to its lane.
func (c *core) serveShard(kind scheduler.Kind, q incoming) {
	id, err := shardOf(q.body)
	if err != nil {
		q.reply.err(err)
		return
	}
	call := shardCalls.Get().(*shardCall)
	call.c, call.q = c, q
	call.req.Kind, call.req.Shard, call.req.Body = kind, id, q.body
	call.req.Deadline, call.req.Arrived = c.instants(q.deadline)
	call.req.Done, call.req.User = shardDone, call
	c.sched.Submit(&call.req)
}

// shardOf reads the shard's id, the first field of all requests to shards.
func shardOf(body []byte) (engine.ShardID, error) {
	r := mp.NewReader(body)
	r.ArrayMin(1)
	id := engine.ShardID(r.Uint())
	if err := r.Err(); err != nil {
		return 0, malformed(err)
	}
	return id, nil
}

// shardDone answers. It runs on a lane and does not block: the transport copies the answer into an outbox.
func shardDone(req *scheduler.Request) {
	call := req.User.(*shardCall)
	c, q, err, id := call.c, call.q, req.Err, req.Shard
	if err == nil {
		q.reply(uint16(shard.StatusOK), req.Answer)
	}
	answer := req.Answer
	call.c, call.q, call.req = nil, incoming{}, scheduler.Request{}
	if cap(answer) <= transport.ReplyKept {
		call.req.Answer = answer[:0]
	}
	shardCalls.Put(call)
	if err != nil {
		c.shardFailed(id, q, err)
	}
}

// shardFailed forwards a request that met a replica which does not lead, once (rule Cluster3), or answers with the error.
func (c *core) shardFailed(id engine.ShardID, q incoming, err error) {
	if err == shard.ErrOverloaded { // there may be many of it
		q.reply.err(err)
		return
	}
	var notLeader *shard.NotLeaderError
	away := errors.As(err, &notLeader)
	leader := engine.NodeID(0)
	switch {
	case away:
		leader = notLeader.Leader
	case errors.Is(err, shard.ErrShardNotFound):
		away, leader = true, c.view.leader(id)
		if d := c.view.shard(id); leader == 0 && d != nil && len(d.Replicas) > 0 {
			leader = d.Replicas[0].Node
		}
	}
	if away && leader != 0 && leader != c.node && q.flags&api.FlagForward != 0 && !q.forwarded() {
		reply := q.reply
		c.n.tr.Go(leader, q.method, q.deadline, transport.FlagForwarded, q.body, func(body []byte, err error) {
			passOn(reply, q.method, body, err)
		})
		return
	}
	if notLeader != nil && notLeader.Leader != 0 && notLeader.Addr == "" {
		err = &shard.NotLeaderError{Leader: notLeader.Leader, Addr: c.view.addr(notLeader.Leader)}
	}
	q.reply.err(err)
}

// passOn hands the answer of another node to the caller.
func passOn(r reply, method uint16, body []byte, err error) {
	var status *transport.StatusError
	switch {
	case err == nil:
		r(uint16(shard.StatusOK), body)
	case errors.As(err, &status) && status.Status != transport.StatusExpired && status.Status != transport.StatusBusy:
		r(status.Status, status.Body)
	case method == api.MethodWrite && !notSent(err):
		r.err(fmt.Errorf("%w: forwarded: %v", shard.ErrAmbiguous, err))
	default:
		r.err(&shard.UnavailableError{Reason: "forwarded: " + err.Error()})
	}
}

// notSent tells whether a call failed before anything was sent.
func notSent(err error) bool {
	return errors.Is(err, transport.ErrNotConnected) || errors.Is(err, transport.ErrOverloaded) || errors.Is(err, transport.ErrTooLarge)
}

// call asks a node, this one included, and returns an answer or an error of package shard, if it was answered.
func (n *Node) call(ctx context.Context, node engine.NodeID, method uint16, flags uint8, body []byte) ([]byte, error) {
	type result struct {
		body []byte
		err  error
	}
	ch := make(chan result, 1)
	deadline, _ := ctx.Deadline()
	if c := n.core.Load(); c != nil && node == c.node {
		n.serve(incoming{method: method, flags: flags, deadline: deadline, body: body, reply: func(status uint16, b []byte) {
			b = kept(b)
			ch <- result{b, shard.DecodeError(shard.Status(status), b)}
		}})
	} else {
		n.tr.Go(node, method, deadline, flags, body, func(b []byte, err error) { ch <- result{b, decodeStatus(err)} })
	}
	select {
	case r := <-ch:
		return r.body, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// decodeStatus turns the answer of a call that was not OK into package shard's error.
func decodeStatus(err error) error {
	var status *transport.StatusError
	if errors.As(err, &status) && status.Status != transport.StatusExpired {
		return shard.DecodeError(shard.Status(status.Status), status.Body)
	}
	return err
}

// handler is what the transport calls.
type handler struct{ n *Node }

func (h handler) Request(req transport.Request) {
	q := incoming{method: req.Method, flags: req.Flags, deadline: req.Deadline, body: req.Body, reply: req.Reply}
	id, ok := req.Identity().(*auth.Identity)
	if !ok { // cannot be: the transport has asked security
		q.reply.err(shard.ErrDenied)
		return
	}
	from := req.From()
	q.id, q.client = id, from.Client
	if auditedMethod(q.method) && q.client {
		q.from = from.Addr.String()
		h.n.sec.audited(&q)
	}
	if err := h.n.sec.admit(&q); err != nil {
		if q.client && needOf(q.method) == auth.NeedAdmin && !auditedMethod(q.method) { // what an administrator may do unrecorded, others try on record
			h.n.sec.record(id, from.Addr.String(), "native", describeAction(&q), err)
		}
		q.reply.err(err)
		return
	}
	h.n.serve(q)
}

func (h handler) RaftFrame(from engine.NodeID, incarnation uint64, body []byte) {
	if c := h.n.core.Load(); c != nil {
		c.sched.RaftFrame(from, incarnation, body)
	}
}

func (h handler) Heartbeat(from engine.NodeID, incarnation uint64, body []byte) {
	if c := h.n.core.Load(); c != nil {
		if err := c.sched.Heartbeat(from, incarnation, body); err != nil {
			h.n.tr.Disconnect(from, incarnation, err)
		}
	}
}

func (h handler) Snapshot(from engine.NodeID, incarnation uint64, header []byte, r *transport.SnapshotReader) {
	if c := h.n.core.Load(); c != nil {
		c.sched.Snapshot(from, incarnation, header, r)
	}
}

func (h handler) PeerConnected(node engine.NodeID, incarnation uint64, _ string) {
	if c := h.n.core.Load(); c != nil {
		c.sched.PeerConnected(node, incarnation)
	}
}

func (h handler) PeerDisconnected(node engine.NodeID, incarnation uint64) {
	h.n.log.Info("peer disconnected", "node", uint64(node))
	if c := h.n.core.Load(); c != nil {
		c.sched.PeerDisconnected(node, incarnation)
	}
}

// network is the transport as the scheduler wants it.
type network struct{ tr *transport.Transport }

func (w network) SendRaft(node engine.NodeID, lane int, msgs []byte, bulk bool) bool {
	return w.tr.SendRaft(node, lane, msgs, bulk)
}

func (w network) SendHeartbeat(node engine.NodeID, body []byte) bool {
	return w.tr.SendHeartbeat(node, body)
}

func (w network) OpenSnapshot(ctx context.Context, node engine.NodeID, header []byte) (scheduler.SnapshotWriter, error) {
	s, err := w.tr.OpenSnapshot(ctx, node, header)
	if err != nil {
		return nil, err
	}
	return s, nil
}
