package node

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// reporter brings what this node's leaders have applied to meta, which keeps the newest (rule Split5), and to the other nodes, so that
// clients find what has moved. What could not be reported is reported by the next leader, or when the shard's next change is.
type reporter struct {
	c    *core
	wake chan struct{}

	mu sync.Mutex
	// queue holds the newest descriptors that leaders of this node have applied and meta may not have.
	queue map[engine.ShardID]*shard.Descriptor
	// meta holds what meta is known to have.
	meta map[engine.ShardID]*shard.Descriptor
	// gone are shards whose replica on this node has applied that it was removed.
	gone map[engine.ShardID]*shard.Descriptor
	// missed are nodes that were not told of something: they are asked to look into meta once they live.
	missed map[engine.NodeID]bool
}

func newReporter(c *core) *reporter {
	return &reporter{c: c, wake: make(chan struct{}, 1), queue: map[engine.ShardID]*shard.Descriptor{},
		meta: map[engine.ShardID]*shard.Descriptor{}, gone: map[engine.ShardID]*shard.Descriptor{},
		missed: map[engine.NodeID]bool{}}
}

// onDescriptor takes what a replica of this node has applied. It is called on a lane and does not block.
func (r *reporter) onDescriptor(ev scheduler.DescriptorEvent) {
	d := ev.Descriptor
	if d == nil {
		return
	}
	_, member := d.Replica(ev.Replica)
	r.mu.Lock()
	if old := r.meta[ev.Shard]; old != nil && old != d && sameVersion(old, d) {
		r.meta[ev.Shard] = d // the replica holds it in any case
	}
	switch {
	case !member:
		r.gone[ev.Shard] = d
		if ev.IsLeader {
			r.queue[ev.Shard] = d // nobody else may have applied it yet
		}
	case ev.IsLeader && (d.Version > 1 || d.ConfVersion > 1) && r.news(d):
		r.queue[ev.Shard] = d
	default:
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.ring()
}

// onDescriptors takes what one split or merge has changed, in one go (rule Split5); the first is that of the shard whose entry it was.
// It is called on a lane and does not block.
func (r *reporter) onDescriptors(events []scheduler.DescriptorEvent) {
	if len(events) == 0 || !events[0].IsLeader {
		return
	}
	r.mu.Lock()
	for _, ev := range events {
		switch {
		case ev.Descriptor == nil || !r.news(ev.Descriptor):
		case ev.Absorber != 0:
			r.meta[ev.Shard] = ev.Descriptor // whether meta has it or not: it is to be buried with the absorber's report
		default:
			r.queue[ev.Shard] = ev.Descriptor
		}
	}
	r.mu.Unlock()
	r.ring()
}

func (r *reporter) ring() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// news tells whether meta may lack d. The caller holds mu.
func (r *reporter) news(d *shard.Descriptor) bool {
	old := r.meta[d.Shard]
	return old == nil || d.Newer(old)
}

// inMeta takes note of a descriptor that meta has.
func (r *reporter) inMeta(d *shard.Descriptor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.news(d) {
		r.meta[d.Shard] = r.c.view.known(d)
	}
}

// among returns the shards from first to last that meta has, or had, as far as is known here.
func (r *reporter) among(first, last engine.ShardID) (list []engine.ShardID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.meta {
		if first <= id && id <= last {
			list = append(list, id)
		}
	}
	return list
}

// forget drops a shard that meta has buried.
func (r *reporter) forget(id engine.ShardID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.meta, id)
	delete(r.queue, id)
}

// reportMax is how many descriptors are reported in one write: within shard.ReadKeysMax.
const reportMax = 1000

// loop reports until the node stops.
func (r *reporter) loop() {
	ctx := r.c.n.ctx
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		for {
			err := r.round(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				break
			}
			r.c.n.log.Info("cannot report to the meta shard", "err", err)
			if sleep(ctx, 200*time.Millisecond) != nil {
				return
			}
		}
	}
}

// round reports all that waits, and removes what is gone.
func (r *reporter) round(ctx context.Context) error {
	if err := r.c.n.boot.step("report"); err != nil {
		return err // a test plays a node that does not come to it
	}
	var list []*shard.Descriptor
	r.mu.Lock()
	for id, d := range r.queue {
		if r.news(d) {
			list = append(list, d)
		} else {
			delete(r.queue, id)
		}
	}
	gone := r.gone
	r.gone = map[engine.ShardID]*shard.Descriptor{}
	r.mu.Unlock()
	var errs []error
	if len(list) > 0 {
		actx, cancel := context.WithTimeout(ctx, 10*time.Second)
		errs = append(errs, r.report(actx, list))
		cancel()
	}
	for _, d := range gone {
		if err := r.c.removeGone(ctx, d); err != nil {
			errs = append(errs, err)
			r.mu.Lock()
			r.gone[d.Shard] = d
			r.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// report writes descriptors to meta where it has older ones, as few writes as can be, and tells the other nodes. All that belongs
// together, as the children of a split, is in one write.
func (r *reporter) report(ctx context.Context, list []*shard.Descriptor) error {
	for len(list) > 0 {
		part := list[:min(len(list), reportMax)]
		list = list[len(part):]
		var dead []engine.ShardID
		for {
			var err error
			dead, err = r.reportPart(ctx, part)
			if isConditionFailed(err) {
				continue // somebody else has reported as well: compare again
			}
			if err != nil {
				return err
			}
			break
		}
		r.mu.Lock()
		for _, d := range part {
			if r.news(d) {
				r.meta[d.Shard] = d
			}
			if r.queue[d.Shard] == d {
				delete(r.queue, d.Shard)
			}
		}
		for _, id := range dead {
			delete(r.meta, id)
			delete(r.queue, id)
		}
		r.mu.Unlock()
		r.c.spread(ctx, part)
	}
	return nil
}

// reportPart writes what meta does not have, and returns the shards that are dead as it knows now.
func (r *reporter) reportPart(ctx context.Context, part []*shard.Descriptor) (dead []engine.ShardID, err error) {
	keys := make([][]byte, len(part))
	for i, d := range part {
		keys[i] = placement.ShardKey(d.Shard)
	}
	entries, err := r.c.meta.getMany(ctx, keys)
	if err != nil {
		return nil, err
	}
	graves, err := r.graves(ctx, part, entries)
	if err != nil {
		return nil, err
	}
	var conds []shard.Condition
	var ops []shard.Op
	for i, d := range part {
		rec := placement.ShardRecord{}
		if entries[i].Version != 0 {
			if rec, err = placement.DecodeShard(entries[i].Value); err != nil {
				return nil, err
			}
			if !d.Newer(&rec.Descriptor) {
				continue
			}
		} else if grave := graves[d.Shard]; grave.Exists() {
			dead = append(dead, d.Shard) // it was absorbed before this report came
			continue
		} else {
			conds = append(conds, unchanged(&grave))
		}
		rec.Descriptor = *d
		conds = append(conds, unchanged(&entries[i]))
		ops = append(ops, put(keys[i], rec.Append(nil)))
	}
	buried, err := r.bury(ctx, part, &conds, &ops)
	if err != nil {
		return nil, err
	}
	if len(ops) > 0 {
		err = r.c.meta.write(ctx, conds, append(ops, stampsOf(ops)...))
	}
	return append(dead, buried...), err
}

// graves reads the dead-shard records of those that meta does not have alive: a shard that is dead there stays dead (rule Cluster5).
func (r *reporter) graves(ctx context.Context, part []*shard.Descriptor, entries []shard.Entry) (map[engine.ShardID]shard.Entry, error) {
	var ids []engine.ShardID
	var keys [][]byte
	for i, d := range part {
		if !entries[i].Exists() {
			ids, keys = append(ids, d.Shard), append(keys, placement.DeadKey(d.Shard))
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	found, err := r.c.meta.getMany(ctx, keys)
	if err != nil {
		return nil, err
	}
	graves := make(map[engine.ShardID]shard.Entry, len(ids))
	for i, id := range ids {
		graves[id] = found[i]
	}
	return graves, nil
}

// stampsOf returns the changes that let other nodes see that records of shards have changed, see placement.StampKey.
func stampsOf(ops []shard.Op) (list []shard.Op) {
	seen := map[string]bool{}
	for i := range ops {
		id, err := placement.KeyID(placement.PrefixShard, ops[i].Key)
		if err != nil {
			continue
		}
		if key := placement.StampKey(engine.ShardID(id)); !seen[string(key)] {
			seen[string(key)] = true
			list = append(list, put(key, []byte{1}))
		}
	}
	return list
}

// bury adds the changes by which meta takes note of shards that were absorbed: a dead-shard record, which stays for ever, instead of the
// shard's, if meta has that at all (rules Split5, Cluster5).
func (r *reporter) bury(ctx context.Context, part []*shard.Descriptor, conds *[]shard.Condition, ops *[]shard.Op) ([]engine.ShardID, error) {
	absorbed := map[engine.ShardID]*shard.Descriptor{}
	r.mu.Lock()
	for _, d := range part {
		if d.Version == 1 || d.Shard == shard.MetaShardID {
			continue
		}
		for id, x := range r.meta {
			if id != d.Shard && id != shard.MetaShardID && x.Version < d.Version && d.Contains(x.Start) && !bytes.Equal(x.Start, d.Start) {
				absorbed[id] = d
			}
		}
	}
	r.mu.Unlock()
	var dead []engine.ShardID
	for id, by := range absorbed {
		key, grave := placement.ShardKey(id), placement.DeadKey(id)
		entries, err := r.c.meta.getMany(ctx, [][]byte{key, grave})
		if err != nil {
			return nil, err
		}
		if entries[0].Exists() {
			rec, err := placement.DecodeShard(entries[0].Value)
			if err != nil {
				return nil, err
			}
			if rec.Descriptor.Version >= by.Version {
				r.inMeta(&rec.Descriptor) // it lives, and by is old
				continue
			}
			*ops = append(*ops, del(key))
		}
		dead = append(dead, id)
		if !entries[0].Exists() && entries[1].Exists() {
			continue
		}
		*conds = append(*conds, unchanged(&entries[0]))
		*ops = append(*ops, put(grave, placement.AppendDead(nil, id, by.Shard, by.Version)))
	}
	return dead, nil
}

// spread tells all living nodes of new descriptors, which meta has: who is told takes them off what it must report. Who misses it is told to look into meta later:
// a node that has just started may have looked before they were there, and would not do so again for a long time.
func (c *core) spread(ctx context.Context, list []*shard.Descriptor) {
	if c.n.boot.step("spread") != nil {
		return // a test plays a node that dies before it tells anybody
	}
	b := mp.AppendUint(mp.AppendArray(nil, 2), uint64(c.node))
	b = mp.AppendArray(b, len(list))
	for _, d := range list {
		b = shard.AppendDescriptor(b, d)
		c.view.learn(d)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	for _, id := range c.nodeIDs() {
		switch {
		case id == c.node:
		case c.alive(id):
			c.n.tr.Go(id, methodLearn, deadline, 0, b, func(_ []byte, err error) { c.reports.told(id, err) })
		default:
			c.reports.told(id, shard.ErrUnavailable)
		}
	}
}

// told takes note of a node that has not taken what it was told.
func (r *reporter) told(id engine.NodeID, err error) {
	if err != nil {
		r.mu.Lock()
		r.missed[id] = true
		r.mu.Unlock()
	}
}

// restarted has all other nodes look into meta: in its life before, this node may have reported what it had no time to tell them.
func (r *reporter) restarted() {
	for _, id := range r.c.nodeIDs() {
		if id != r.c.node {
			r.told(id, shard.ErrUnavailable)
		}
	}
}

// remind asks the nodes that have missed something, and live, to look into meta.
func (r *reporter) remind() {
	var list []engine.NodeID
	r.mu.Lock()
	for id := range r.missed {
		if r.c.alive(id) {
			delete(r.missed, id)
			list = append(list, id)
		}
	}
	r.mu.Unlock()
	body := (&syncRequest{Last: ^engine.ShardID(0), Phase: syncAll}).append(nil)
	for _, id := range list {
		r.c.n.tr.Go(id, methodSync, time.Now().Add(10*time.Second), 0, body, func(_ []byte, err error) { r.told(id, err) })
	}
}

// serveLearn takes what another node's leaders have applied.
func (c *core) serveLearn(ctx context.Context, body []byte) error {
	r := mp.NewReader(body)
	more := r.ArrayMin(2)
	from := engine.NodeID(r.Uint())
	var list []*shard.Descriptor
	n := r.Array()
	if n > api.CreateMax {
		r.Fail("too many descriptors")
	}
	for ; n > 0 && r.Err() == nil; n-- {
		d := shard.ReadDescriptor(&r)
		list = append(list, &d)
	}
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return malformed(err)
	}
	for _, d := range list {
		if err := d.Validate(); err != nil {
			return err
		}
		c.view.learn(d)
		c.view.setLeader(d.Shard, from)
		c.reports.inMeta(d)
		if d.Shard == shard.MetaShardID {
			c.sawMeta(d)
		}
		if _, here := d.OnNode(c.node); !here {
			if err := c.removeGone(ctx, d); err != nil {
				return err
			}
		}
	}
	return nil
}
