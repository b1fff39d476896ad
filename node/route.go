package node

import (
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// sender brings the requests of this node's own client to nodes: to this one directly, to others over the peer sessions.
type sender struct{ n *Node }

// Send implements router.Sender.
func (s sender) Send(node engine.NodeID, addr string, method api.Method, flags uint8, deadline time.Time, body []byte, done func([]byte, error)) {
	n := s.n
	if node != 0 && node != n.ID() {
		n.tr.Go(node, method, deadline, flags, body, func(b []byte, err error) { done(b, router.AnswerError(err)) })
		return
	}
	n.serve(incoming{method: method, flags: flags, deadline: deadline, body: body, reply: func(status uint16, b []byte) {
		b = kept(b)
		err := shard.DecodeError(shard.Status(status), b)
		if err == nil && method == api.MethodWrite {
			done(b, nil)
			return
		}
		// What follows may send another request, and must not do so on the lane that answers this one.
		if !n.spawn(func() { done(b, err) }) {
			done(b, err)
		}
	}})
}

// Client returns a client of the cluster that works inside this node. It ends with the node, and must not be closed.
func (n *Node) Client() *router.Client { return n.client }

// serveRouted serves a request that names no shard: this node's client finds it, retries until the deadline, and gives a write a session
// if it has none. What it sends is never forwarded again (rule Cluster3).
func (n *Node) serveRouted(q incoming) {
	ctx, cancel := n.deadline(q.deadline)
	fail := func(err error) {
		cancel()
		q.reply.err(err)
	}
	switch q.method {
	case api.MethodRouteRead:
		r := &shard.Read{}
		if err := shard.DecodeRead(q.body, r); err != nil {
			fail(err)
			return
		}
		n.client.GoReadSome(ctx, r, func(entries []shard.Entry, err error) {
			if err != nil {
				fail(err)
				return
			}
			b := shard.AppendAnswerHeader(nil, len(entries))
			for i := range entries {
				b = shard.AppendAnswerEntry(b, entries[i].Version, entries[i].Expire, entries[i].Value)
			}
			cancel()
			q.reply(uint16(shard.StatusOK), b)
		})
	case api.MethodRouteWrite:
		w := &shard.Write{}
		if err := shard.DecodeWrite(q.body, w); err != nil {
			fail(err)
			return
		}
		n.client.GoWrite(ctx, w, func(res *shard.Result, err error) {
			if err != nil && res == nil {
				fail(err)
				return
			}
			cancel()
			q.reply(uint16(shard.StatusOK), shard.AppendResult(nil, res))
		})
	case api.MethodRouteScan:
		s := &shard.Scan{}
		if err := shard.DecodeScan(q.body, s); err != nil {
			fail(err)
			return
		}
		n.client.GoScanBytes(ctx, s, func(page []byte, err error) {
			if err != nil {
				fail(err)
				return
			}
			cancel()
			q.reply(uint16(shard.StatusOK), page)
		})
	default:
		fail(errNoMethod(q.method))
	}
}

// Leading returns the user shards that this node leads, by start key, and how many user shards have a leader that it knows of. The
// descriptors must not be changed.
func (n *Node) Leading() (led []*shard.Descriptor, known int) {
	c := n.core.Load()
	if c == nil {
		return nil, 0
	}
	known, led = c.view.leading(c.node)
	return led, known
}
