package node

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// serveAdmin serves what is asked seldom. It runs on a goroutine of its own.
func (c *core) serveAdmin(ctx context.Context, q *incoming) ([]byte, error) {
	switch q.method {
	case api.MethodMap:
		return answer(q, &api.MapRequest{}, func(r *api.MapRequest) (api.Body, error) { return c.mapPage(r), nil })
	case api.MethodReplicas:
		return answer(q, &api.ReplicasRequest{}, func(r *api.ReplicasRequest) (api.Body, error) { return c.replicasPage(ctx, r) })
	case api.MethodShards:
		return answer(q, &api.ShardsRequest{}, func(r *api.ShardsRequest) (api.Body, error) { return c.shardsPage(ctx, r) })
	case api.MethodChecksum:
		return answer(q, &api.ChecksumRequest{}, func(r *api.ChecksumRequest) (api.Body, error) { return c.checksum(ctx, r.Shard) })
	case api.MethodCut:
		return answer(q, &api.CutRequest{}, func(r *api.CutRequest) (api.Body, error) { return c.serveCut(ctx, r) })
	case api.MethodJoin:
		return answer(q, &api.JoinRequest{}, func(r *api.JoinRequest) (api.Body, error) { return c.serveJoin(ctx, r) })
	case api.MethodNodes:
		return c.nodesPage(ctx).Append(nil), nil
	case api.MethodTransfer:
		var r api.TransferRequest
		if err := api.Decode(q.body, &r); err != nil {
			return nil, err
		}
		return nil, c.transfer(ctx, q, &r)
	case methodSync:
		r, err := decodeSync(q.body)
		if err != nil {
			return nil, err
		}
		if r.all() && c.n.synced.Load() {
			c.ring() // the loop does it, once for all that ask meanwhile
			return mp.AppendUint(mp.AppendArray(nil, 1), 0), nil
		}
		if err := c.syncNodes(ctx); err != nil {
			return nil, err
		}
		made, err := c.syncShards(ctx, r, func(*shard.Descriptor) {})
		return mp.AppendUint(mp.AppendArray(nil, 1), uint64(made)), err
	}
	return c.serveOps(ctx, q)
}

// answer decodes a request, serves it and encodes the answer.
func answer[R api.Body](q *incoming, req R, f func(R) (api.Body, error)) ([]byte, error) {
	if err := api.Decode(q.body, req); err != nil {
		return nil, err
	}
	out, err := f(req)
	if err != nil {
		return nil, err
	}
	return out.Append(nil), nil
}

// Version is what this program calls itself.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "devel"
}

// nodeInfo describes this node.
func (n *Node) nodeInfo(ctx context.Context) *api.NodeInfo {
	info := n.boot.info()
	out := &api.NodeInfo{ClusterID: info.Started, Node: info.Node, Identity: info.Identity, Name: info.Name, Addr: info.Addr, HTTP: info.HTTP,
		Version: Version(), Started: n.began.UnixMilli(), Labels: info.Labels, Joins: n.cfg.Join,
		Reserved: info.Reserved != (id128{}) && info.Started == (id128{})}
	c := n.core.Load()
	if c == nil {
		return out
	}
	out.State = api.NodeUp
	sums, err := c.sched.Survey(ctx)
	if err != nil {
		return out
	}
	out.Replicas, out.Leaders = uint64(c.sched.Replicas()), uint64(sums.Leaders)
	return out
}

// nodesPage lists the nodes as meta knows them, with what the live ones say of themselves.
func (c *core) nodesPage(ctx context.Context) *api.NodesPage {
	records := c.view.nodeList()
	page := &api.NodesPage{Nodes: make([]api.NodeInfo, len(records))}
	var wg sync.WaitGroup
	for i, rec := range records {
		wg.Add(1)
		go func() { // bounded by the number of nodes, and by askMax
			defer wg.Done()
			page.Nodes[i] = c.askInfo(ctx, rec)
		}()
	}
	wg.Wait()
	return page
}

// askMax bounds a question to another node about itself.
const askMax = time.Second

func (c *core) askInfo(ctx context.Context, rec placement.NodeRecord) api.NodeInfo {
	info := api.NodeInfo{ClusterID: c.cluster, Node: rec.ID, Identity: rec.Identity, Name: rec.Name, Addr: rec.Addr, HTTP: rec.HTTP, Labels: rec.Labels}
	if c.alive(rec.ID) {
		ctx, cancel := context.WithTimeout(ctx, askMax)
		defer cancel()
		var said api.NodeInfo
		body, err := c.n.call(ctx, rec.ID, api.MethodNodeInfo, 0, nil)
		if err == nil && api.Decode(body, &said) == nil {
			info = said
			info.State = api.NodeUp
		} else {
			info.State = api.NodeSuspect
		}
	} else {
		info.State = api.NodeDown
	}
	switch rec.State {
	case placement.NodeDraining:
		if info.State != api.NodeDown {
			info.State = api.NodeDraining
		}
	case placement.NodeRemoved:
		info.State = api.NodeRemoved
	}
	return info
}

func (c *core) alive(id engine.NodeID) bool { return id == c.node || c.sched.PeerAlive(id) }

// mapPage returns a page of the range map as this node knows it.
func (c *core) mapPage(r *api.MapRequest) *api.MapPage {
	limit := int(min(r.Limit, api.MapPageMax))
	if limit == 0 {
		limit = api.MapPageMax
	}
	list, next, more := c.view.page(r.From, limit)
	page := &api.MapPage{ClusterID: c.cluster, Node: c.node, Nodes: c.nodeAddrs(), More: more, Next: next}
	if d := c.n.facts.metaDescriptor(); d != nil {
		page.Meta = *d
	}
	for _, d := range list {
		page.Descriptors = append(page.Descriptors, *d)
		page.Leaders = append(page.Leaders, c.view.leader(d.Shard))
	}
	return page
}

// replicasPage lists replicas of this node.
func (c *core) replicasPage(ctx context.Context, r *api.ReplicasRequest) (*api.ReplicasPage, error) {
	page := &api.ReplicasPage{}
	if len(r.Shards) > 0 {
		list, err := c.sched.StatusesNamed(ctx, r.Shards)
		if err != nil {
			return nil, err
		}
		for i := range list {
			page.Replicas = append(page.Replicas, replicaStatus(&list[i]))
		}
		return page, nil
	}
	limit := int(min(r.Limit, api.ReplicasPageMax))
	if limit == 0 {
		limit = api.ReplicasPageMax
	}
	list, err := c.sched.StatusesOf(ctx, r.From, ^engine.ShardID(0), limit+1)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if len(page.Replicas) == limit {
			page.More, page.Next = true, list[i].Shard
			break
		}
		page.Replicas = append(page.Replicas, replicaStatus(&list[i]))
	}
	return page, nil
}

func replicaStatus(s *scheduler.ReplicaStatus) api.ReplicaStatus {
	out := api.ReplicaStatus{Shard: s.Shard, Replica: s.Replica, Role: s.Role, Leader: s.Leader.Node, Term: s.Term, Last: s.Last.Index,
		Committed: s.Committed.Index, Applied: s.Applied.Index, Persisted: s.Checkpoint.Index, Keys: s.Keys, Bytes: s.Bytes, Quiesced: s.Quiesced}
	if s.Descriptor != nil {
		out.Version, out.ConfVersion = s.Descriptor.Version, s.Descriptor.ConfVersion
	}
	return out
}

// gathered is what one node says of its replicas.
type gathered struct {
	node     engine.NodeID
	replicas []api.ReplicaStatus
}

// gather asks all live nodes for their replicas: of the named shards, or all. Nodes that do not answer are left out.
func (c *core) gather(ctx context.Context, shards []engine.ShardID) []gathered {
	ids := c.nodeIDs()
	out := make([]gathered, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		if !c.alive(id) {
			continue
		}
		wg.Add(1)
		go func() { // bounded by the number of nodes, and by the time
			defer wg.Done()
			actx, cancel := context.WithTimeout(ctx, 2*askMax)
			defer cancel()
			out[i] = gathered{node: id, replicas: c.askReplicas(actx, id, shards)}
		}()
	}
	wg.Wait()
	return slices.DeleteFunc(out, func(g gathered) bool { return g.node == 0 })
}

func (c *core) askReplicas(ctx context.Context, id engine.NodeID, shards []engine.ShardID) []api.ReplicaStatus {
	var all []api.ReplicaStatus
	req := api.ReplicasRequest{Shards: shards}
	for {
		var page api.ReplicasPage
		body, err := c.n.call(ctx, id, api.MethodReplicas, 0, req.Append(nil))
		if err == nil {
			err = api.Decode(body, &page)
		}
		if err != nil {
			c.n.log.Debug("a node does not tell its replicas", "node", uint64(id), "err", err)
			return all
		}
		all = append(all, page.Replicas...)
		if !page.More || page.Next <= req.From {
			return all
		}
		req.From = page.Next
	}
}

// shardsPage lists shards with leader and size, as the live nodes tell.
func (c *core) shardsPage(ctx context.Context, r *api.ShardsRequest) (*api.ShardsPage, error) {
	page := &api.ShardsPage{}
	var list []*shard.Descriptor
	switch {
	case len(r.Shards) > 0:
		if len(r.Shards) > api.ListOfShardsMax {
			return nil, &shard.InvalidError{What: "too many shards named"}
		}
		for _, id := range r.Shards {
			d, err := c.find(ctx, id)
			if err != nil {
				return nil, err
			}
			list = append(list, d)
		}
	default:
		if d := c.view.shard(shard.MetaShardID); r.Meta && d != nil && len(r.From) == 0 {
			list = append(list, d)
		}
		limit := int(min(r.Limit, api.MapPageMax))
		if limit == 0 {
			limit = api.MapPageMax
		}
		user, next, more := c.view.page(r.From, limit)
		list = append(list, user...)
		page.More, page.Next = more, next
	}
	if len(list) == 0 {
		return page, nil
	}
	named := make([]engine.ShardID, len(list)) // never all: each page of a long list would make every node tell of all its replicas
	for i, d := range list {
		named[i] = d.Shard
	}
	sizes := c.leaderStatuses(ctx, named)
	for _, d := range list {
		info := api.ShardInfo{Descriptor: *d}
		if l, ok := sizes[d.Shard]; ok {
			info.Leader, info.Keys, info.Bytes = l.Leader, l.Keys, l.Bytes
		}
		if len(r.Shards) == 1 && info.Leader != 0 {
			info.Rates = c.rates(ctx, d.Shard, info.Leader)
		}
		page.Shards = append(page.Shards, info)
	}
	return page, nil
}

// leaderStatuses returns what the leaders say of their shards. Of two that claim to lead, the one of the later term does.
func (c *core) leaderStatuses(ctx context.Context, shards []engine.ShardID) map[engine.ShardID]api.ReplicaStatus {
	out := map[engine.ShardID]api.ReplicaStatus{}
	for _, g := range c.gather(ctx, shards) {
		for _, s := range g.replicas {
			if s.Role == engine.RoleLeader && s.Term >= out[s.Shard].Term {
				s.Leader = g.node
				out[s.Shard] = s
				c.view.setLeader(s.Shard, g.node)
			}
		}
	}
	return out
}

// checksum returns the checksum of this node's replica.
func (c *core) checksum(ctx context.Context, id engine.ShardID) (*api.Checksum, error) {
	content, at, err := c.sched.Checksum(ctx, id)
	if err != nil {
		return nil, err
	}
	return &api.Checksum{Applied: at, Items: content.Items, Bytes: content.Bytes, Checksum: content.Checksum}, nil
}

// transfer moves the leadership of a shard, and waits until the new leader is known here. Another node's shard is passed on, once.
func (c *core) transfer(ctx context.Context, q *incoming, r *api.TransferRequest) error {
	d, err := c.find(ctx, r.Shard)
	if err != nil {
		return err
	}
	if _, ok := d.OnNode(r.To); !ok {
		return &shard.InvalidError{What: fmt.Sprintf("shard %d has no replica on node %d", r.Shard, r.To)}
	}
	st, err := c.sched.Status(ctx, r.Shard)
	if err != nil || st.Role != engine.RoleLeader {
		leader := c.leaderStatuses(ctx, []engine.ShardID{r.Shard})[r.Shard].Leader
		switch {
		case leader == r.To && leader != 0:
			return nil
		case leader == 0:
			return &shard.UnavailableError{Reason: fmt.Sprintf("shard %d has no leader", r.Shard)}
		case leader == c.node, q.forwarded():
			return &shard.NotLeaderError{Leader: leader, Addr: c.view.addr(leader)}
		}
		_, err := c.n.call(ctx, leader, api.MethodTransfer, transport.FlagForwarded, q.body)
		return err
	}
	if r.To == c.node {
		return nil
	}
	if err := c.sched.Transfer(ctx, r.Shard, r.To); err != nil {
		return err
	}
	for {
		st, err := c.sched.Status(ctx, r.Shard)
		if err == nil && st.Leader.Node == r.To && st.Role != engine.RoleLeader {
			return nil
		}
		if sleep(ctx, 5*time.Millisecond) != nil {
			return &shard.UnavailableError{Reason: fmt.Sprintf("node %d does not lead shard %d yet", r.To, r.Shard)}
		}
	}
}
