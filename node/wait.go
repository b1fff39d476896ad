package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// helloEvery is how often waiting nodes talk to each other.
const helloEvery = 300 * time.Millisecond

// waitLoop keeps in touch with other nodes until this one is a member of a cluster: it learns who waits as well, and joins a
// cluster that it finds made.
func (n *Node) waitLoop() {
	told := false
	for n.core.Load() == nil {
		ctx, cancel := context.WithTimeout(n.ctx, 2*time.Second)
		n.boot.exchange(ctx)
		cancel()
		if peer, ok := n.boot.startedPeer(); ok {
			if _, res := n.facts.membership(); res == nil {
				if err := n.joinThrough(peer); err != nil {
					n.log.Info("cannot join the cluster yet", "through", peer.Addr, "cluster", idText(peer.Started), "err", err)
				}
			}
		}
		if !told && n.core.Load() == nil {
			told = true
			n.log.Info("waiting for a cluster: run `kiloraft cluster init` once all nodes are up", "addr", n.addr, "join", n.cfg.Join)
		}
		if sleep(n.ctx, helloEvery) != nil {
			return
		}
	}
}

// joinThrough asks a member of a cluster for a node id, and stores it. Asking again gives the same (rule Cluster7).
func (n *Node) joinThrough(peer nodeInfo) error {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	req := api.JoinRequest{Identity: n.facts.identity, Addr: n.addr, HTTP: n.HTTPAddr(), Name: n.name, Labels: n.cfg.Labels}
	body, err := n.boot.calls.(*dialer).call(ctx, peer.Addr, api.MethodJoin, req.Append(nil))
	if err != nil {
		return err
	}
	var ans api.JoinAnswer
	if err := api.Decode(body, &ans); err != nil {
		return err
	}
	if ans.Node == 0 || ans.ClusterID == (id128{}) || ans.Meta.Shard != shard.MetaShardID {
		return fmt.Errorf("%w: incomplete answer to a join", shard.ErrInternal)
	}
	// What is needed to find the cluster again goes first; the fact that makes this node a member is the last.
	if err := n.facts.sawMeta(&ans.Meta); err != nil {
		return err
	}
	var list []placement.NodeRecord
	for _, a := range ans.Nodes {
		list = append(list, placement.NodeRecord{ID: a.Node, Addr: a.Addr})
	}
	if err := n.facts.sawNodes(list); err != nil {
		return err
	}
	started := startedFact{Cluster: ans.ClusterID, Node: ans.Node}
	if err := n.facts.start(started); err != nil {
		return err
	}
	n.log.Info("joined a cluster", "cluster", idText(ans.ClusterID), "node", uint64(ans.Node), "through", peer.Addr)
	return n.becomeMember(started, nil)
}

// dialer makes calls to nodes that are not peers, as a client: one short connection each.
type dialer struct {
	tls  transport.TLS
	dial func(ctx context.Context, addr string) (net.Conn, error)
	log  *slog.Logger
}

func (d *dialer) call(ctx context.Context, addr string, method uint16, body []byte) ([]byte, error) {
	conn, err := transport.DialClient(ctx, addr, transport.ClientConfig{TLS: d.tls, Dial: d.dial, Logger: d.log})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	out, err := conn.Call(ctx, method, body)
	return out, decodeStatus(err)
}

// Hello implements bootCalls.
func (d *dialer) Hello(ctx context.Context, addr string, h *hello) (hello, error) {
	body, err := d.call(ctx, addr, methodHello, h.append(nil))
	if err != nil {
		return hello{}, err
	}
	return decodeHello(body)
}

// Reserve implements bootCalls.
func (d *dialer) Reserve(ctx context.Context, addr string, r *reservation) (held, error) {
	return d.held(ctx, addr, methodReserve, r)
}

// Start implements bootCalls.
func (d *dialer) Start(ctx context.Context, addr string, r *reservation) (held, error) {
	return d.held(ctx, addr, methodStart, r)
}

func (d *dialer) held(ctx context.Context, addr string, method uint16, r *reservation) (held, error) {
	body, err := d.call(ctx, addr, method, r.append(nil))
	if err != nil {
		return held{}, err
	}
	return decodeHeld(body)
}

// serveJoin gives a new node its place: the one it has already, by its identity, or a new id. It gets no replicas yet.
func (c *core) serveJoin(ctx context.Context, req *api.JoinRequest) (*api.JoinAnswer, error) {
	if req.Identity == (id128{}) || req.Addr == "" {
		return nil, &shard.InvalidError{What: "a join without identity or address"}
	}
	for {
		if _, v, err := c.meta.get(ctx, placement.ClusterKey()); err != nil || v == 0 {
			if err == nil {
				err = &shard.UnavailableError{Reason: errNotYet.Error(), RetryAfter: time.Second}
			}
			return nil, err
		}
		id, err := c.findNode(ctx, req)
		if err == nil && id == 0 {
			id, err = c.allocNode(ctx, req)
		}
		if err != nil {
			return nil, err
		}
		if id != 0 {
			c.nodesChanged(ctx)
			c.ring()
			return c.joinAnswer(id), nil
		}
		// Another join was faster: look again.
	}
}

// findNode returns the id that a node has already, else 0. A newcomer may take over the address of a node that is gone, not of one that is up.
func (c *core) findNode(ctx context.Context, req *api.JoinRequest) (id engine.NodeID, err error) {
	var clash error
	err = c.meta.scan(ctx, []byte(placement.PrefixNode), placement.PrefixEnd(placement.PrefixNode), func(_, value []byte) error {
		rec, err := placement.DecodeNode(value)
		switch {
		case err != nil:
		case rec.Identity == req.Identity:
			id = rec.ID
		case rec.Addr == req.Addr && rec.State != placement.NodeRemoved && c.alive(rec.ID):
			clash = &shard.UnavailableError{Reason: fmt.Sprintf("node %d (%s) is up and is reached at %s: give each node its own --advertise",
				rec.ID, rec.Name, rec.Addr)}
		}
		return err
	})
	if err == nil && id == 0 {
		err = clash
	}
	return id, err
}

// allocNode takes an id and writes the node's record, in one conditional write; 0 if somebody else took an id meanwhile.
func (c *core) allocNode(ctx context.Context, req *api.JoinRequest) (engine.NodeID, error) {
	key := placement.AllocKey(placement.AllocNode)
	value, version, err := c.meta.get(ctx, key)
	if err != nil {
		return 0, err
	}
	next, err := placement.DecodeNextID(value)
	if err != nil {
		return 0, err
	}
	rec := placement.NodeRecord{ID: engine.NodeID(next), Identity: req.Identity, Name: req.Name, Addr: req.Addr, HTTP: req.HTTP,
		State: placement.NodeUp, Labels: req.Labels}
	err = c.meta.write(ctx,
		[]shard.Condition{{Kind: shard.ConditionVersion, Key: key, Version: version}},
		[]shard.Op{put(key, placement.AppendNextID(nil, next+1)), put(placement.NodeKey(rec.ID), rec.Append(nil))})
	if isConditionFailed(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	c.n.log.Info("a node has joined", "node", next, "addr", req.Addr)
	for _, old := range c.view.nodeList() {
		if old.Addr == req.Addr && old.State != placement.NodeRemoved {
			c.n.log.Warn("a node without data has come at the address of another one, and is a new node: its disk was lost or replaced",
				"node", next, "addr", req.Addr, "was", uint64(old.ID))
		}
	}
	return rec.ID, nil
}

func (c *core) joinAnswer(id engine.NodeID) *api.JoinAnswer {
	ans := &api.JoinAnswer{ClusterID: c.cluster, Node: id, Nodes: c.nodeAddrs()}
	if d := c.n.facts.metaDescriptor(); d != nil {
		ans.Meta = *d
	}
	return ans
}

func (c *core) nodeAddrs() []api.NodeAddr {
	var list []api.NodeAddr
	for _, n := range c.view.nodeList() {
		list = append(list, api.NodeAddr{Node: n.ID, Addr: n.Addr})
	}
	if len(list) == 0 {
		for id, addr := range c.n.facts.nodeAddrs() {
			list = append(list, api.NodeAddr{Node: id, Addr: addr})
		}
	}
	return list
}
