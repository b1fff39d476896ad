package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// initBatch is how many shard records an init writes at a time, and then has made.
const initBatch = 256

// Init makes the cluster out of the nodes that are up and wait (rule Cluster7), and returns when every shard has a leader. It may be
// called at several nodes, and again after any failure: it goes on where the last one stopped.
func (n *Node) Init(ctx context.Context, opt InitOptions) (InitResult, error) {
	if opt.Shards == 0 {
		opt.Shards = 1
	}
	if opt.Replicas == 0 {
		opt.Replicas = 3
	}
	if err := checkInit(opt); err != nil {
		return InitResult{}, err
	}
	started, res := n.facts.membership()
	if started == nil && res == nil {
		if peer, ok := n.boot.startedPeer(); ok {
			return n.initElsewhere(ctx, peer.Addr, opt)
		}
	}
	if !n.exists(ctx) {
		if started != nil && res == nil {
			return InitResult{}, &shard.UnavailableError{Reason: "the meta shard does not answer"}
		}
		r, err := n.boot.run(ctx, opt)
		if err != nil {
			return InitResult{}, err
		}
		res = r
	}
	c := n.core.Load()
	if c == nil { // another init has made the cluster without this node
		return n.initElsewhere(ctx, res.Members[0].info.Addr, opt)
	}
	return c.populate(ctx, res)
}

// exists tells whether this node is a member of a cluster whose first record is committed.
func (n *Node) exists(ctx context.Context) bool {
	c := n.core.Load()
	if c == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, version, err := c.clusterRecord(ctx)
	return err == nil && version != 0
}

// checkInit refuses what no number of nodes can make.
func checkInit(opt InitOptions) error {
	in := placement.Initial{Shards: opt.Shards, Replicas: opt.Replicas}
	for i := range max(opt.Replicas, 0) {
		if i <= placement.ReplicasMax {
			in.Nodes = append(in.Nodes, engine.NodeID(i+1))
		}
	}
	if err := in.Validate(); err != nil {
		return &shard.InvalidError{What: err.Error()}
	}
	return nil
}

// initNodesMax bounds the number of nodes in another process's answer.
const initNodesMax = 1 << 16

// initElsewhere passes an init on to a member of the cluster.
func (n *Node) initElsewhere(ctx context.Context, addr string, opt InitOptions) (InitResult, error) {
	req := api.InitRequest{Shards: uint64(opt.Shards), Replicas: uint64(opt.Replicas)}
	body, err := n.boot.calls.(*dialer).call(ctx, addr, api.MethodInit, req.Append(nil))
	if err != nil {
		return InitResult{}, err
	}
	var ans api.InitAnswer
	if err := api.Decode(body, &ans); err != nil {
		return InitResult{}, err
	}
	if ans.Nodes > initNodesMax { // a number from another process: it must not make this one allocate without bound
		return InitResult{}, fmt.Errorf("%s answers that the cluster has %d nodes; at most %d make sense", addr, ans.Nodes, initNodesMax)
	}
	return InitResult{Cluster: ans.ClusterID, Already: ans.Already, Shards: int(ans.Shards), Nodes: make([]engine.NodeID, ans.Nodes)}, nil
}

// populate fills meta with the cluster's first records and waits for the shards. Every write depends on the version of the cluster
// record, so that whatever is late changes nothing once the cluster is ready.
func (c *core) populate(ctx context.Context, res *reservation) (InitResult, error) {
	rec, version, err := c.clusterRecord(ctx)
	if err != nil {
		return InitResult{}, err
	}
	already := version != 0 && rec.State == placement.ClusterReady
	if version == 0 {
		if res == nil {
			return InitResult{}, &shard.UnavailableError{Reason: errNotYet.Error()}
		}
		if rec, version, err = c.found(ctx, res); err != nil {
			return InitResult{}, err
		}
		if err := c.n.boot.step("meta written"); err != nil {
			return InitResult{}, err
		}
	}
	out := InitResult{Cluster: rec.ID, Already: already, Nodes: rec.Nodes, Shards: rec.Shards, Replicas: rec.Replicas}
	if already {
		return out, nil
	}
	if rec.State != placement.ClusterReady {
		if err := c.writeShards(ctx, &rec, version); err != nil {
			return InitResult{}, err
		}
	}
	return out, c.waitLeaders(ctx, rec.Shards)
}

func (c *core) clusterRecord(ctx context.Context) (placement.ClusterRecord, uint64, error) {
	value, version, err := c.meta.get(ctx, placement.ClusterKey())
	if err != nil || version == 0 {
		return placement.ClusterRecord{}, 0, err
	}
	rec, err := placement.DecodeCluster(value)
	return rec, version, err
}

// found writes the first records: the cluster exists once this is committed. If somebody else was faster, theirs stand.
func (c *core) found(ctx context.Context, res *reservation) (placement.ClusterRecord, uint64, error) {
	meta := res.metaDescriptor()
	first := engine.ReplicaID(1)
	for _, r := range meta.Replicas {
		first = max(first, r.Replica+1)
	}
	rec := placement.ClusterRecord{ID: res.Cluster, Version: placement.ClusterVersion, State: placement.ClusterCreating, CreateMS: res.CreateMS,
		Shards: res.Shards, Replicas: res.Replicas, FirstShard: shard.MetaShardID + 1, FirstReplica: first, Nodes: res.nodeIDs()}
	nodeMax := engine.NodeID(0)
	ops := []shard.Op{put(placement.ClusterKey(), rec.Append(nil))}
	for _, m := range res.Members {
		nodeMax = max(nodeMax, m.Node)
		n := placement.NodeRecord{ID: m.Node, Identity: m.info.Identity, Name: m.info.Name, Addr: m.info.Addr, HTTP: m.info.HTTP,
			State: placement.NodeUp, Labels: m.info.Labels}
		ops = append(ops, put(placement.NodeKey(m.Node), n.Append(nil)))
	}
	metaRec := placement.ShardRecord{Descriptor: *meta}
	ops = append(ops,
		put(placement.AllocKey(placement.AllocNode), placement.AppendNextID(nil, uint64(nodeMax)+1)),
		put(placement.AllocKey(placement.AllocShard), placement.AppendNextID(nil, uint64(rec.FirstShard)+uint64(rec.Shards))),
		put(placement.AllocKey(placement.AllocReplica), placement.AppendNextID(nil, uint64(first)+uint64(rec.Shards)*uint64(rec.Replicas))),
		put(placement.ShardKey(shard.MetaShardID), metaRec.Append(nil)))
	err := c.meta.write(ctx, []shard.Condition{{Kind: shard.ConditionAbsent, Key: placement.ClusterKey()}}, ops)
	if err != nil && !isConditionFailed(err) {
		return rec, 0, err
	}
	return c.clusterRecord(ctx)
}

// writeShards records the shards of the initial plan in bounded batches, has the nodes make each batch, and sets the cluster ready.
func (c *core) writeShards(ctx context.Context, rec *placement.ClusterRecord, version uint64) error {
	plan, err := placement.PlanInitial(rec.Initial())
	if err != nil {
		return &shard.InvalidError{What: err.Error()}
	}
	c.tellNodes(ctx, syncRequest{First: shard.MetaShardID, Last: shard.MetaShardID}) // learn of each other
	same := []shard.Condition{{Kind: shard.ConditionVersion, Key: placement.ClusterKey(), Version: version}}
	for i := 0; i < len(plan); i += initBatch {
		batch := plan[i:min(i+initBatch, len(plan))]
		ops := make([]shard.Op, len(batch))
		for j := range batch {
			r := batch[j].Record()
			ops[j] = put(placement.ShardKey(batch[j].ID), r.Append(nil))
		}
		if err := c.meta.write(ctx, same, ops); err != nil {
			if isConditionFailed(err) {
				return nil // another init has finished
			}
			return fmt.Errorf("record shards: %w", err)
		}
		if err := c.n.boot.step(fmt.Sprintf("shards written %d", i/initBatch)); err != nil {
			return err
		}
		first, last := batch[0].ID, batch[len(batch)-1].ID
		c.tellNodes(ctx, syncRequest{First: first, Last: last, Phase: syncFollowers})
		c.tellNodes(ctx, syncRequest{First: first, Last: last, Phase: syncLeaders})
		if err := c.n.boot.step(fmt.Sprintf("shards made %d", i/initBatch)); err != nil {
			return err
		}
	}
	ready := *rec
	ready.State = placement.ClusterReady
	if err := c.meta.write(ctx, same, []shard.Op{put(placement.ClusterKey(), ready.Append(nil))}); err != nil && !isConditionFailed(err) {
		return fmt.Errorf("set the cluster ready: %w", err)
	}
	return c.n.boot.step("ready")
}

// tellNodes has all nodes look into meta. One that does not answer does so later by itself.
func (c *core) tellNodes(ctx context.Context, q syncRequest) {
	body := q.append(nil)
	var wg sync.WaitGroup
	for _, id := range c.nodeIDs() {
		wg.Add(1)
		go func() { // bounded by the number of nodes, and by the deadline
			defer wg.Done()
			actx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if _, err := c.n.call(actx, id, methodSync, 0, body); err != nil {
				c.n.log.Info("a node does not look into meta", "node", uint64(id), "err", err)
			}
		}()
	}
	wg.Wait()
}

// nodeIDs returns all nodes of the cluster, this one included.
func (c *core) nodeIDs() []engine.NodeID {
	ids := map[engine.NodeID]bool{c.node: true}
	for _, n := range c.view.nodeList() {
		ids[n.ID] = n.State != placement.NodeRemoved
	}
	if _, res := c.n.facts.membership(); res != nil && res.Cluster == c.cluster && len(ids) == 1 {
		for _, m := range res.Members {
			ids[m.Node] = true
		}
	}
	var list []engine.NodeID
	for id, ok := range ids {
		if ok {
			list = append(list, id)
		}
	}
	return list
}

// waitLeaders waits until every user shard has a leader, as the leaders themselves say.
func (c *core) waitLeaders(ctx context.Context, shards int) error {
	pause := max(20*time.Millisecond, time.Duration(shards)*20*time.Microsecond)
	for {
		found := map[engine.ShardID]bool{}
		for _, r := range c.gather(ctx, nil) {
			for _, s := range r.replicas {
				if s.Role == engine.RoleLeader && s.Shard != shard.MetaShardID {
					found[s.Shard] = true
				}
			}
		}
		if len(found) >= shards {
			return nil
		}
		if sleep(ctx, pause) != nil {
			return &shard.UnavailableError{Reason: fmt.Sprintf("the cluster is made, and %d of %d shards have a leader yet", len(found), shards)}
		}
	}
}

func isConditionFailed(err error) bool { return errors.Is(err, shard.ErrConditionFailed) }
