package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// syncEvery is how often a node looks at the nodes in meta unasked, and at the shards whose records have changed since, by their stamps: in
// case that it was not told of something, as the node that should have told it has died. syncShardsEvery is how often it looks at all shards;
// there are many of them, and asking after them costs what an idle cluster must not spend.
const (
	syncEvery       = 30 * time.Second
	syncShardsEvery = 10 * time.Minute
)

// createBatch is how many replicas are made in one transaction.
const createBatch = 512

// syncPhase says which of its replicas a node makes. In an init all followers are made before the first leaders, which campaign at
// once and find their voters: so leaders start where the plan wants them.
type syncPhase uint8

const (
	syncAll       syncPhase = 0
	syncFollowers syncPhase = 1
	syncLeaders   syncPhase = 2
)

// syncRequest asks a node to look into meta, for the shards from First to Last.
type syncRequest struct {
	First, Last engine.ShardID
	Phase       syncPhase
}

// all tells whether nothing is left out, as when somebody has missed something and nobody waits for it.
func (r *syncRequest) all() bool {
	return r.First == 0 && r.Last == ^engine.ShardID(0) && r.Phase == syncAll
}

func (r *syncRequest) append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendArray(b, 3), uint64(r.First))
	return mp.AppendUint(mp.AppendUint(b, uint64(r.Last)), uint64(r.Phase))
}

func decodeSync(b []byte) (syncRequest, error) {
	r := mp.NewReader(b)
	more := r.ArrayMin(3)
	q := syncRequest{First: engine.ShardID(r.Uint()), Last: engine.ShardID(r.Uint()), Phase: syncPhase(r.Uint())}
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return q, malformed(err)
	}
	return q, nil
}

// syncLoop looks into meta at start, when it is told to, and at a low rate.
func (c *core) syncLoop() {
	ctx := c.n.ctx
	var full time.Time // when the shards were looked at last
	stamps := map[string]uint64{}
	for {
		shards := time.Since(full) >= syncShardsEvery
		actx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := c.syncAll(actx, shards, stamps)
		cancel()
		c.n.sec.users.Expire()
		c.n.sec.watchCertificate(time.Now())
		if err == nil && shards {
			full = time.Now()
		}
		wait := cmp.Or(c.n.cfg.syncEvery, syncEvery)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotYet):
			wait = 200 * time.Millisecond // an init is about to make the cluster, or was interrupted
		case err != nil:
			c.n.log.Info("cannot read the meta shard", "err", err)
			wait = time.Second
		default:
			if !c.n.synced.Swap(true) && len(c.n.facts.incarnations) > 1 {
				c.reports.restarted()
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-c.wake:
			full = time.Time{}
		case <-t.C:
		}
		t.Stop()
	}
}

// errNotYet: meta has no cluster record yet, or not all of its first shards.
var errNotYet = errors.New("the cluster is not made yet: run cluster init")

// syncAll brings this node in line with meta: nodes, its own record, and the shards: if asked for all, else those whose stamps have changed.
func (c *core) syncAll(ctx context.Context, shards bool, stamps map[string]uint64) error {
	rec, version, err := c.clusterRecord(ctx)
	if err != nil {
		return err
	}
	if version == 0 {
		return errNotYet
	}
	if err := c.syncNodes(ctx); err != nil {
		return err
	}
	if rec.State != placement.ClusterReady {
		return errNotYet // the init says when to make which replicas
	}
	now, err := c.readStamps(ctx)
	if err != nil {
		return err
	}
	if shards {
		if err := c.compare(ctx, syncRequest{First: 0, Last: ^engine.ShardID(0), Phase: syncAll}); err != nil {
			return err
		}
		maps.Copy(stamps, now)
		return nil
	}
	for key, version := range now {
		if stamps[key] == version {
			continue
		}
		first, last, err := placement.Stamped([]byte(key))
		if err != nil {
			return err
		}
		if err := c.compare(ctx, syncRequest{First: first, Last: last, Phase: syncAll}); err != nil {
			return err
		}
		stamps[key] = version
	}
	return nil
}

// compare brings this node in line with meta as to some shards: it makes the replicas that it should have, and removes those that it should
// not have.
func (c *core) compare(ctx context.Context, q syncRequest) error {
	inMeta := map[engine.ShardID]bool{}
	if _, err := c.syncShards(ctx, q, func(d *shard.Descriptor) { inMeta[d.Shard] = true }); err != nil {
		return err
	}
	return errors.Join(c.forgetBuried(ctx, &q, inMeta), c.sweepGone(ctx, &q, inMeta))
}

// forgetBuried has this node forget those shards of q that meta has a dead-shard record of: they never come back (rule Cluster5), and clusters split and merge for
// years. inMeta are those that have a record. That one has none is no proof.
func (c *core) forgetBuried(ctx context.Context, q *syncRequest, inMeta map[engine.ShardID]bool) error {
	list := append(c.view.among(q.First, q.Last), c.reports.among(q.First, q.Last)...)
	slices.Sort(list)
	list = slices.DeleteFunc(slices.Compact(list), func(id engine.ShardID) bool { return inMeta[id] })
	for part := range slices.Chunk(list, reportMax) {
		keys := make([][]byte, len(part))
		for i, id := range part {
			keys[i] = placement.DeadKey(id)
		}
		graves, err := c.meta.getMany(ctx, keys)
		if err != nil {
			return err
		}
		for i, id := range part {
			if graves[i].Exists() {
				c.view.forget(id)
				c.reports.forget(id)
				c.book.forget(id)
			}
		}
	}
	return nil
}

// readStamps reads the versions of all stamps.
func (c *core) readStamps(ctx context.Context) (map[string]uint64, error) {
	list := map[string]uint64{}
	err := c.meta.entries(ctx, []byte(placement.PrefixStamp), placement.PrefixEnd(placement.PrefixStamp), func(e *shard.Entry) error {
		list[string(e.Key)] = e.Version
		return nil
	})
	return list, err
}

// syncNodes reads all node records, and corrects this node's own if it has moved.
func (c *core) syncNodes(ctx context.Context) error {
	var list []placement.NodeRecord
	own := -1
	err := c.meta.scan(ctx, []byte(placement.PrefixNode), placement.PrefixEnd(placement.PrefixNode), func(_, value []byte) error {
		rec, err := placement.DecodeNode(value)
		if err != nil {
			return err
		}
		if rec.ID == c.node {
			own = len(list)
		}
		list = append(list, rec)
		return nil
	})
	if err != nil {
		return err
	}
	if own >= 0 {
		if rec := list[own]; c.n.describes(&rec) {
			list[own] = rec
			if err := c.updateOwn(ctx, rec); err != nil {
				return err
			}
		}
	}
	if err := c.removeLost(ctx, list); err != nil {
		return err
	}
	c.view.setNodes(list)
	for _, rec := range list {
		switch {
		case rec.State != placement.NodeRemoved:
			c.setPeer(rec.ID, rec.Addr)
		case rec.ID == c.node:
			c.n.removed()
			return ErrRefused
		default:
			c.n.tr.RemovePeer(rec.ID)
		}
	}
	if err := c.n.facts.sawNodes(list); err != nil {
		return err
	}
	return c.syncUsers(ctx)
}

// updateOwn replaces this node's record, unless the control plane changes it meanwhile; the next sync tries again.
func (c *core) updateOwn(ctx context.Context, rec placement.NodeRecord) error {
	key := placement.NodeKey(rec.ID)
	old, version, err := c.meta.get(ctx, key)
	if err != nil || version == 0 {
		return err
	}
	now, err := placement.DecodeNode(old)
	if err != nil {
		return err
	}
	rec.State = now.State
	err = c.meta.write(ctx, []shard.Condition{{Kind: shard.ConditionVersion, Key: key, Version: version}}, []shard.Op{put(key, rec.Append(nil))})
	if errors.Is(err, shard.ErrConditionFailed) {
		return nil
	}
	return err
}

// syncShards reads the records of a range of shards and makes this node's replicas of new ones (rule Split6). It returns how many it
// asked for. saw is told of each record.
func (c *core) syncShards(ctx context.Context, q syncRequest, saw func(*shard.Descriptor)) (int, error) {
	var list []scheduler.NewReplica
	made := 0
	end := placement.PrefixEnd(placement.PrefixShard)
	if q.Last != ^engine.ShardID(0) {
		end = placement.ShardKey(q.Last + 1)
	}
	err := c.meta.scan(ctx, placement.ShardKey(q.First), end, func(_, value []byte) error {
		rec, err := placement.DecodeShard(value)
		if err != nil {
			return err
		}
		if r, ok := c.wanted(&rec, q.Phase); ok {
			list = append(list, r)
		}
		saw(&rec.Descriptor)
		c.view.learn(&rec.Descriptor)
		c.reports.inMeta(&rec.Descriptor)
		if rec.Descriptor.Shard == shard.MetaShardID {
			c.sawMeta(&rec.Descriptor)
		}
		if len(list) < createBatch {
			return nil
		}
		made += len(list)
		err = c.create(ctx, list)
		list = list[:0]
		return err
	})
	if err == nil && len(list) > 0 {
		made += len(list)
		err = c.create(ctx, list)
	}
	return made, err
}

// wanted returns the replica that a record asks this node to make in this phase. A descriptor that has moved on makes none: such a replica
// comes from a snapshot or its parent's split.
func (c *core) wanted(rec *placement.ShardRecord, phase syncPhase) (scheduler.NewReplica, bool) {
	d := &rec.Descriptor
	r, ok := d.OnNode(c.node)
	leads := rec.Leader == c.node
	switch {
	case !ok, d.Version != 1, d.ConfVersion != 1, d.Shard == shard.MetaShardID,
		phase == syncFollowers && leads, phase == syncLeaders && !leads:
		return scheduler.NewReplica{}, false
	}
	c.createMu.Lock()
	known := c.created.Has(d.Shard)
	c.createMu.Unlock()
	return scheduler.NewReplica{Descriptor: d, Replica: r.Replica, Options: scheduler.CreateOptions{Campaign: leads}}, !known
}

// create makes replicas, and remembers that they need not be asked for again. One at a time: two that make the same replica at once
// would give it two tablets.
func (c *core) create(ctx context.Context, list []scheduler.NewReplica) error {
	c.making.Lock()
	defer c.making.Unlock()
	c.createMu.Lock()
	list = slices.DeleteFunc(slices.Clone(list), func(r scheduler.NewReplica) bool { return c.created.Has(r.Descriptor.Shard) })
	c.createMu.Unlock()
	if err := c.sched.CreateReplicas(ctx, list); err != nil {
		if !errors.Is(err, scheduler.ErrExists) || len(list) == 1 {
			return fmt.Errorf("create replicas: %w", err)
		}
		// One of them cannot be made, as it was removed, or another is here: that must not keep back the others.
		for _, r := range list {
			if err := c.sched.CreateReplica(ctx, r.Descriptor, r.Replica, r.Options); err != nil {
				c.n.log.Warn("cannot make a replica", "shard", uint64(r.Descriptor.Shard), "err", err)
			}
		}
	}
	c.createMu.Lock()
	defer c.createMu.Unlock()
	for _, r := range list {
		c.created.Add(r.Descriptor.Shard)
	}
	return nil
}
