package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// readNode reads a node's record.
func (c *core) readNode(ctx context.Context, id engine.NodeID) (placement.NodeRecord, uint64, error) {
	value, version, err := c.meta.get(ctx, placement.NodeKey(id))
	if err != nil {
		return placement.NodeRecord{}, 0, err
	}
	if version == 0 {
		return placement.NodeRecord{}, 0, fmt.Errorf("node %d: %w", id, shard.ErrNotFound)
	}
	rec, err := placement.DecodeNode(value)
	return rec, version, err
}

// nodeStateOp returns the change of meta that puts a node into a state, unless it changes otherwise meanwhile, as when it is removed.
func (c *core) nodeStateOp(ctx context.Context, id engine.NodeID, to placement.NodeState) ([]shard.Condition, []shard.Op, error) {
	rec, version, err := c.readNode(ctx, id)
	if err != nil || rec.State == placement.NodeRemoved {
		return nil, nil, err
	}
	rec.State = to
	key := placement.NodeKey(id)
	return []shard.Condition{{Kind: shard.ConditionVersion, Key: key, Version: version}}, []shard.Op{put(key, rec.Append(nil))}, nil
}

// startDrain marks a node as draining and records the operation that watches it become empty.
func (c *core) startDrain(ctx context.Context, o *placement.Op) error {
	o.Shard, o.To = 0, 0
	err := c.createOp(ctx, o, func() ([]shard.Condition, []shard.Op, error) {
		conds, ops, err := c.nodeStateOp(ctx, o.From, placement.NodeDraining)
		if err == nil && len(ops) == 0 {
			err = &shard.InvalidError{What: fmt.Sprintf("node %d is removed", o.From)}
		}
		return conds, ops, err
	})
	if err != nil {
		return err
	}
	c.n.log.Info("operation started", "op", o.ID, "what", o.String(), "why", o.Why)
	c.nodesChanged(ctx)
	c.tellDriver(ctx)
	return nil
}

// nodesChanged has all nodes read the records of the nodes again.
func (c *core) nodesChanged(ctx context.Context) {
	if err := c.syncNodes(ctx); err != nil {
		c.n.log.Info("cannot read the meta shard", "err", err)
	}
	c.tellNodes(ctx, syncRequest{First: shard.MetaShardID, Last: shard.MetaShardID})
}

// setNode undrains or removes a node.
func (c *core) setNode(ctx context.Context, r *api.NodeSetRequest) error {
	for {
		rec, version, err := c.readNode(ctx, r.Node)
		if err != nil {
			return err
		}
		switch r.Action {
		case api.NodeUndrain:
			if rec.State == placement.NodeRemoved {
				return &shard.InvalidError{What: fmt.Sprintf("node %d is removed for good: start it with an empty data directory", r.Node)}
			}
			if done, err := c.cancelDrain(ctx, r.Node); done || err != nil {
				return err
			}
			if rec.State == placement.NodeUp {
				return nil
			}
			rec.State = placement.NodeUp
		case api.NodeRemove:
			if rec.State == placement.NodeRemoved {
				return nil
			}
			if err := c.mayRemove(ctx, &rec, r.Force); err != nil {
				return err
			}
			rec.State = placement.NodeRemoved
		default:
			return &shard.InvalidError{What: fmt.Sprintf("unknown action %d", r.Action)}
		}
		key := placement.NodeKey(r.Node)
		err = c.meta.write(ctx, []shard.Condition{{Kind: shard.ConditionVersion, Key: key, Version: version}}, []shard.Op{put(key, rec.Append(nil))})
		if isConditionFailed(err) {
			continue
		}
		if err != nil {
			return err
		}
		c.n.log.Info("node", "node", uint64(r.Node), "state", rec.State)
		c.nodesChanged(ctx)
		c.tellDriver(ctx)
		return nil
	}
}

// cancelDrain asks a running drain of the node to stop, and waits for that.
func (c *core) cancelDrain(ctx context.Context, id engine.NodeID) (bool, error) {
	value, version, err := c.meta.get(ctx, placement.NodeLockKey(id))
	if err != nil || version == 0 {
		return false, err
	}
	op, err := placement.DecodeNextID(value)
	if err != nil {
		return false, err
	}
	o, err := c.updateOp(ctx, op, func(o *placement.Op) bool { o.Cancel = true; return true }, nil)
	for err == nil && o.State == placement.OpRunning {
		c.tellDriver(ctx)
		if serr := sleep(ctx, 50*time.Millisecond); serr != nil {
			return true, &shard.UnavailableError{Reason: fmt.Sprintf("operation %d has not stopped yet", op)}
		}
		o, _, err = c.readOp(ctx, op)
	}
	if err == nil {
		c.nodesChanged(ctx)
	}
	return err == nil && o.State == placement.OpCancelled, err
}

// mayRemove refuses to remove a node that still matters.
func (c *core) mayRemove(ctx context.Context, rec *placement.NodeRecord, force bool) error {
	held, err := c.held(ctx, rec.ID)
	if err != nil && !force {
		return err
	}
	switch {
	case held == 0 && rec.State == placement.NodeDraining:
		return nil
	case force && c.alive(rec.ID):
		return &shard.InvalidError{What: fmt.Sprintf("node %d is alive and holds %s: drain it, or stop it first", rec.ID, placement.Count(held, "replica", ""))}
	case force:
		return nil
	case held > 0:
		return &shard.InvalidError{What: fmt.Sprintf("node %d holds %s: drain it first (or, if it is down for good, use --force)", rec.ID, placement.Count(held, "replica", ""))}
	}
	return &shard.InvalidError{What: fmt.Sprintf("node %d is not drained: drain it first (or, if it is down for good, use --force)", rec.ID)}
}

// held counts the shards of which a node is to hold a replica, as the living leaders say, and meta of the others: a node that has started a moment ago knows few by itself.
func (c *core) held(ctx context.Context, id engine.NodeID) (n int, err error) {
	c.gatherLoads(ctx) // learns the newest descriptors
	err = c.meta.scan(ctx, []byte(placement.PrefixShard), placement.PrefixEnd(placement.PrefixShard), func(_, value []byte) error {
		rec, err := placement.DecodeShard(value)
		if err == nil {
			c.view.learn(&rec.Descriptor)
		}
		return err
	})
	for _, d := range c.view.all() {
		if _, ok := d.OnNode(id); ok {
			n++
		}
	}
	return n, err
}

// removed ends this node for good: the cluster has removed it (rule Cluster9: a refusal is durable on the refused).
func (n *Node) removed() {
	err := fmt.Errorf("%w: this node was removed from the cluster", ErrRefused)
	if perr := n.state.NodePut(factRefused, []byte(err.Error())); perr != nil {
		err = errors.Join(err, perr)
	}
	n.fatal(err)
}

// refuseRemoved refuses the session of a node that was removed: it is told, and stops.
func (n *Node) refuseRemoved(id engine.NodeID) error {
	if n.facts.isLost(id) {
		return &transport.Refused{Reason: transport.ReasonRemoved, Text: fmt.Sprintf("node %d was given up by a recovery of the cluster", id)}
	}
	if c := n.core.Load(); c != nil {
		if rec, ok := c.view.node(id); ok && rec.State == placement.NodeRemoved {
			return &transport.Refused{Reason: transport.ReasonRemoved, Text: fmt.Sprintf("node %d was removed from the cluster", id)}
		}
	}
	return nil
}

// metaPatience is for how long a status waits for the meta shard.
const metaPatience = 2 * time.Second

// statusPage says what is wrong, in words, and since when.
func (c *core) statusPage(ctx context.Context) (*api.Status, error) {
	mctx, cancel := context.WithTimeout(ctx, metaPatience)
	defer cancel()
	return c.statusOf(mctx, c.gatherLoads(ctx)), nil
}

// statusOf is statusPage with what the nodes have told of their loads. mctx bounds what is asked of the meta shard.
func (c *core) statusOf(mctx context.Context, loads *loadTable) *api.Status {
	c.driver.watchNodes()
	out := &api.Status{ClusterID: hex.EncodeToString(c.cluster[:]), Problems: []string{}}
	now := time.Now()
	recorded := map[string]placement.Problem{}
	list, merr := c.readProblems(mctx)
	for _, p := range list {
		recorded[p.Name] = p
	}
	if rec, version, err := c.clusterRecord(mctx); err == nil && version != 0 {
		out.Want = int(rec.Replicas)
	}
	c.count(out, loads)
	found := c.nodeProblems(recorded, now)
	found = append(found, c.shardProblems(loads, out.Want, recorded)...)
	found = append(found, othersOf(recorded)...)
	if merr == nil {
		merr = c.listOps(mctx, func(o *placement.Op) {
			if o.State != placement.OpRunning {
				return
			}
			out.Operations.Running++
			if o.Reason != "" && now.UnixMilli()-o.UpdateMS > stuckAfter.Milliseconds() {
				found = append(found, placement.Problem{Text: fmt.Sprintf("%s is stuck: %s", o, o.Reason), SinceMS: o.UpdateMS})
			}
		})
	}
	if merr != nil {
		found = append(found, placement.Problem{Name: "meta", Text: fmt.Sprintf("shards and nodes cannot be changed now: %v", merr)})
	}
	c.noticed.since(now, recorded, found)
	for _, p := range found[:min(len(found), statusMax)] {
		out.Problems = append(out.Problems, withSince(p, now))
	}
	if more := len(found) - statusMax; more > 0 {
		out.Problems = append(out.Problems, placement.Count(more, "more problem", ""))
	}
	return out
}

const (
	// stuckAfter is for how long nothing must change in an operation that waits for something to be called stuck.
	stuckAfter = 10 * time.Second
	// statusMax bounds the problems that a status names.
	statusMax = 500
)

// nodeProblems names the nodes that are down.
func (c *core) nodeProblems(recorded map[string]placement.Problem, now time.Time) (list []placement.Problem) {
	byAddr := map[string]placement.NodeRecord{}
	for _, n := range c.view.nodeList() {
		if n.State != placement.NodeRemoved {
			byAddr[n.Addr] = n // the newest at an address: ids grow
		}
	}
	for _, n := range c.view.nodeList() {
		alive, since := c.driver.nodeSince(n.ID)
		if alive || n.State == placement.NodeRemoved {
			continue
		}
		if p, ok := recorded[nodeDown(n.ID)]; ok {
			since = time.UnixMilli(p.SinceMS)
		}
		text := fmt.Sprintf("node %d (%s, %s) is down", n.ID, n.Name, n.Addr)
		if o := byAddr[n.Addr]; o.ID != n.ID {
			text += fmt.Sprintf("; node %d has its address now: if its disk is lost, node remove %d --force", o.ID, n.ID)
		} else if left := c.n.cfg.repairAfter() - now.Sub(since); left > 0 {
			text += fmt.Sprintf("; its replicas are replaced in %s", left.Round(time.Second))
		}
		list = append(list, placement.Problem{Name: nodeDown(n.ID), Text: text, SinceMS: since.UnixMilli()})
	}
	return list
}

// count counts nodes and user shards.
func (c *core) count(out *api.Status, t *loadTable) {
	for _, rec := range c.view.nodeList() {
		if rec.State != placement.NodeRemoved {
			out.Nodes.Total++
			if c.alive(rec.ID) {
				out.Nodes.Up++
			}
		}
	}
	list := c.view.byStart()
	out.Shards.Total = len(list)
	for _, d := range list {
		live, voters, all := 0, 0, 0
		for _, r := range d.Replicas {
			alive := c.alive(r.Node)
			if alive {
				live++
			}
			if r.Role == shard.RoleVoter {
				all++
				if alive {
					voters++
				}
			}
		}
		led := c.living(t, d.Shard) != nil
		out.Replicas += len(d.Replicas)
		if led {
			out.Shards.WithLeader++
		}
		if live < max(len(d.Replicas), out.Want) {
			out.Shards.UnderReplicated++
		}
		if !led || 2*voters <= all {
			out.Shards.Unavailable++
		}
	}
}

// leaderlessMax is how many shards without a leader a status names; the rest are counted.
const leaderlessMax = 20

// shardProblems names the shards without a leader, and counts those with too few voters, or living ones.
func (c *core) shardProblems(loads *loadTable, replicas int, recorded map[string]placement.Problem) (list []placement.Problem) {
	few := map[engine.NodeID]int{}
	leaderless, small := 0, 0
	for _, d := range c.view.all() {
		if len(d.Replicas) < replicas {
			small++
		}
		dead := 0
		for _, r := range d.Replicas {
			if !c.alive(r.Node) {
				dead++
			}
		}
		if c.living(loads, d.Shard) != nil {
			for _, r := range d.Replicas {
				if dead > 0 && !c.alive(r.Node) {
					few[r.Node]++
				}
			}
			continue
		}
		if leaderless++; leaderless <= leaderlessMax {
			name := fmt.Sprintf("shard %d", d.Shard)
			if d.Shard == shard.MetaShardID {
				name = "the meta shard"
			}
			list = append(list, placement.Problem{Name: noLeader(d.Shard), Text: fmt.Sprintf("%s has no leader: %d of its %s on nodes that are down", name, dead,
				placement.Count(len(d.Replicas), "replica is", "replicas are"))})
		}
	}
	if more := leaderless - leaderlessMax; more > 0 {
		list = append(list, placement.Problem{Name: "shards/leader", Text: placement.Count(more, "more shard has", "more shards have") + " no leader"})
	}
	if small > 0 {
		list = append(list, placement.Problem{Name: tooFew, Text: fmt.Sprintf("%s fewer than %d replicas: more are made as soon as there are nodes for them",
			placement.Count(small, "shard has", "shards have"), replicas)})
	}
	for _, id := range slices.Sorted(maps.Keys(few)) {
		_, since := c.driver.nodeSince(id)
		p := placement.Problem{Text: fmt.Sprintf("%s a replica on node %d, which is down", placement.Count(few[id], "shard has", "shards have"), id), SinceMS: since.UnixMilli()}
		if down, ok := recorded[nodeDown(id)]; ok {
			p.SinceMS = down.SinceMS
		}
		list = append(list, p)
	}
	return list
}

// repairAfter is how long a node may be down before its replicas are replaced.
func (c *Config) repairAfter() time.Duration {
	if c.RepairAfter > 0 {
		return c.RepairAfter
	}
	return 5 * time.Minute
}

// livingNodes returns the other nodes that live.
func (c *core) livingNodes() []engine.NodeID {
	var list []engine.NodeID
	for _, id := range c.nodeIDs() {
		if id != c.node && c.sched.PeerAlive(id) {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}
