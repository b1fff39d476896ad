package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// methodMerge ([left, version, conf version, right, version, conf version] → empty, when it is applied) goes to the leader of the left
// shard. Sent: never renumber.
const methodMerge api.Method = 80

func (c *core) serveMerge(ctx context.Context, body []byte) error {
	v, err := decodeIDs[uint64](body)
	if err != nil || len(v) != 6 {
		return malformed(fmt.Errorf("merge: %w", err))
	}
	sp := scheduler.MergeSpec{Left: engine.ShardID(v[0]), LeftVersion: v[1], LeftConfVersion: v[2],
		Right: engine.ShardID(v[3]), RightVersion: v[4], RightConfVersion: v[5]}
	done := make(chan error, 1)
	c.sched.Merge(sp, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &shard.UnavailableError{Reason: "the merge is not over yet"}
	}
}

// checkMerge refuses merges that make no sense.
func (c *core) checkMerge(ctx context.Context, o *placement.Op) error {
	if o.Shard == shard.MetaShardID || o.Other == shard.MetaShardID {
		return &shard.InvalidError{What: "the meta shard never merges"}
	}
	left, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return err
	}
	right, err := c.findLead(ctx, o.Other)
	if err != nil {
		return err
	}
	o.BytesTotal = right.Bytes
	l, r := left.Descriptor, right.Descriptor
	if len(l.End) == 0 || !bytes.Equal(l.End, r.Start) {
		return &shard.InvalidError{What: fmt.Sprintf("shard %d does not begin where shard %d ends: they are no neighbours in this order", o.Other, o.Shard)}
	}
	for _, p := range [][2]*shard.Descriptor{{l, r}, {r, l}} {
		for _, m := range p[0].Replicas {
			if _, ok := p[1].OnNode(m.Node); !ok {
				return &shard.InvalidError{What: fmt.Sprintf("shard %d has a replica on node %d, shard %d has none there: move one first, both must be on the same nodes",
					p[0].Shard, m.Node, p[1].Shard)}
			}
		}
	}
	return nil
}

// stepMerge orders the merge at the versions that both shards have, unless it has happened: the left one covers where the right one began.
func (d *driver) stepMerge(ctx context.Context, o *placement.Op) (bool, error) {
	c := d.c
	o.Total = 2
	left, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return false, err
	}
	gone := c.view.shard(o.Other)
	if gone != nil && left.Descriptor.Contains(gone.Start) && left.Descriptor.Version > gone.Version {
		o.Step, o.Done = "record the merge", 1
		_, version, err := c.meta.get(ctx, placement.DeadKey(o.Other))
		if err == nil && version == 0 {
			err = c.reports.report(ctx, []*shard.Descriptor{left.Descriptor})
		}
		if err != nil {
			return false, err
		}
		o.State, o.Done, o.Reason, o.BytesDone = placement.OpDone, 2, "", o.BytesTotal
		return true, nil
	}
	if o.Cancel {
		o.State = placement.OpCancelled
		return true, nil
	}
	right, err := c.findLead(ctx, o.Other)
	if err != nil {
		return false, err
	}
	o.Step, o.Reason = "merge", ""
	l, r := left.Descriptor, right.Descriptor
	body := appendIDs(nil, []uint64{uint64(o.Shard), l.Version, l.ConfVersion, uint64(o.Other), r.Version, r.ConfVersion})
	_, err = c.n.call(ctx, left.Node, methodMerge, 0, body)
	switch {
	case errors.Is(err, shard.ErrVoid):
		return false, nil // look again
	case errors.Is(err, shard.ErrInvalid):
		o.State, o.Error = placement.OpFailed, err.Error()
		return true, nil
	}
	return err == nil, err
}
