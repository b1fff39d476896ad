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
	l, r := left.Descriptor, right.Descriptor
	if len(l.End) == 0 || !bytes.Equal(l.End, r.Start) {
		return &shard.InvalidError{What: fmt.Sprintf("shard %d does not begin where shard %d ends: they are no neighbours in this order", o.Other, o.Shard)}
	}
	moves := placement.Relocations(l, r)
	o.Relocate(placement.Relocation{})
	o.Total = mergeSteps + uint64(len(moves))
	for i := range moves {
		if to := moves[i].To; to != 0 {
			o.BytesTotal += right.Bytes
			if err := c.mayTake(to); err != nil {
				return err
			}
		}
	}
	return nil
}

// mergeSteps are the steps of a merge without the moves before it.
const mergeSteps = 2

// stepMerge brings the replicas of the right shard to the nodes of the left one, one after the other, and then orders the merge at the versions that both shards have, unless it has happened: the left one covers where the right one began.
func (d *driver) stepMerge(ctx context.Context, o *placement.Op) (bool, error) {
	c := d.c
	o.Total = max(o.Total, mergeSteps)
	if _, moving := o.Relocation(); o.Cancel && o.Step == "" && !moving {
		o.State = placement.OpCancelled
		return true, nil
	}
	left, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return false, err
	}
	if happened, err := d.merged(ctx, o, left.Descriptor); happened || err != nil {
		return o.State != placement.OpRunning, err
	}
	if mv, ok := o.Relocation(); ok {
		return d.stepRelocation(ctx, o, &mv)
	}
	if o.Cancel {
		return d.cancelOrder(ctx, o, left)
	}
	right, err := c.findLead(ctx, o.Other)
	if err != nil {
		return false, err
	}
	l, r := left.Descriptor, right.Descriptor
	if placement.MembershipJoint(l) || placement.MembershipJoint(r) || right.Changing {
		o.Reason = changing
		return false, nil
	}
	if voters, learners := placement.WithoutLearners(l); learners {
		return d.dropLearners(ctx, o, left, voters)
	}
	if moves := placement.Relocations(l, r); len(moves) > 0 {
		return d.planRelocation(ctx, o, moves)
	}
	if o.Reason, o.Done = "", o.Total-mergeSteps; o.Step != "merge" { // recorded before it is ordered
		o.Step = "merge"
		return true, nil
	}
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

// stepLearners is the step of a merge that removes the learners of the left shard.
const stepLearners = "remove the learners of the left shard, which nobody wants"

// dropLearners removes the learners of the left shard: the right one has none there, and while the merge has the shard nobody else would. Their nodes
// destroy them when they hear of it.
func (d *driver) dropLearners(ctx context.Context, o *placement.Op, left *lead, voters []shard.ReplicaDesc) (bool, error) {
	if o.Reason = ""; o.Step != stepLearners { // recorded before it is ordered
		o.Step = stepLearners
		return true, nil
	}
	err := d.act(ctx, o, left, &placement.Action{Kind: placement.ActChange, Replicas: voters})
	return err == nil, err
}

// merged tells whether the right shard is no more, and ends the operation when meta says so. That it was absorbed must be there before the locks are let go of, and is
// looked for there: who has started since has never heard of the shard, or was not there to report it.
func (d *driver) merged(ctx context.Context, o *placement.Op, left *shard.Descriptor) (bool, error) {
	c := d.c
	entries, err := c.meta.getMany(ctx, [][]byte{placement.ShardKey(o.Other), placement.DeadKey(o.Other)})
	if err != nil {
		return false, err
	}
	if entries[1].Exists() {
		absorber, _, err := placement.DecodeDead(entries[1].Value)
		switch {
		case err != nil:
			return false, err
		case absorber == o.Shard:
			o.State, o.Done, o.Reason, o.BytesDone = placement.OpDone, o.Total, "", o.BytesTotal
		case o.Cancel:
			o.State, o.Reason = placement.OpCancelled, ""
		default:
			o.State, o.Reason, o.Error = placement.OpFailed, "", fmt.Sprintf("shard %d was merged into shard %d", o.Other, absorber)
		}
		return true, nil
	}
	right := c.view.shard(o.Other)
	if entries[0].Exists() {
		rec, err := placement.DecodeShard(entries[0].Value)
		if err != nil {
			return false, err
		}
		if right == nil || rec.Descriptor.Newer(right) {
			right = &rec.Descriptor
		}
	}
	if right == nil || !left.ProvesDead(right) {
		return false, nil
	}
	o.Step, o.Done, o.Reason = "record the merge", o.Total-1, ""
	c.reports.inMeta(right) // so that it is buried with the report of the left shard, whether meta has it or not
	return true, c.reports.report(ctx, []*shard.Descriptor{left})
}

// planRelocation writes the next move of the right shard's replicas into the record, with the name of the replica that comes, before
// anything is done about it.
func (d *driver) planRelocation(ctx context.Context, o *placement.Op, moves []placement.Relocation) (bool, error) {
	c, next := d.c, moves[0]
	o.Total = max(o.Total, mergeSteps+uint64(len(moves)))
	o.Done = o.Total - mergeSteps - uint64(len(moves))
	if next.To != 0 {
		err := c.mayTake(next.To)
		if errors.Is(err, shard.ErrInvalid) || errors.Is(err, shard.ErrNotFound) {
			o.State, o.Error = placement.OpFailed, err.Error()
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	alloc, key := placement.AllocKey(placement.AllocReplica), placement.OpKey(o.ID)
	entries, err := c.meta.getMany(ctx, [][]byte{alloc, key})
	if err != nil {
		return false, err
	}
	rec, err := placement.DecodeOp(entries[1].Value)
	if err != nil || rec.State != placement.OpRunning {
		return false, err
	}
	if _, ok := rec.Relocation(); ok {
		o.Relocate(placement.Relocation{From: rec.From, FromReplica: rec.FromReplica, To: rec.To, Replica: rec.Replica}) // another driver's
		return true, nil
	}
	conds := []shard.Condition{unchanged(&entries[1])}
	var ops []shard.Op
	if next.To != 0 && next.Replica == 0 {
		id, err := placement.DecodeNextID(entries[0].Value)
		if err != nil {
			return false, err
		}
		next.Replica = engine.ReplicaID(id)
		conds = append(conds, unchanged(&entries[0]))
		ops = append(ops, put(alloc, placement.AppendNextID(nil, id+1)))
	}
	rec.Relocate(next)
	err = c.meta.write(ctx, conds, append(ops, put(key, rec.Append(nil))))
	if isConditionFailed(err) {
		return false, nil // look again
	}
	if err == nil {
		o.Relocate(next)
	}
	return err == nil, err
}

// stepRelocation takes the next step of the move that the record names.
func (d *driver) stepRelocation(ctx context.Context, o, mv *placement.Op) (bool, error) {
	l, err := d.c.findLead(ctx, mv.Shard)
	if err != nil {
		return false, err
	}
	act := mv.Next(d.viewOf(mv, l))
	what := fmt.Sprintf("move shard %d from node %d to node %d", mv.Shard, mv.From, mv.To)
	switch {
	case mv.From == 0:
		what = fmt.Sprintf("add a replica of shard %d on node %d", mv.Shard, mv.To)
	case mv.To == 0:
		what = fmt.Sprintf("remove the replica of shard %d on node %d", mv.Shard, mv.From)
	}
	if act.Step != "" {
		o.Step = what + ": " + act.Step
	}
	o.Reason = ""
	switch act.Kind {
	case placement.ActWait:
		o.Reason = act.Reason
		if mv.To != 0 { // those that came before had as many
			o.BytesDone = max(o.BytesDone, min(o.Done*l.Bytes+l.SnapshotSent, o.BytesTotal))
		}
		return false, nil
	case placement.ActFail:
		o.State, o.Error = placement.OpFailed, what+": "+act.Reason
		return true, nil
	case placement.ActDone:
		if act.Cancelled {
			advanced, err := d.cancelOrder(ctx, o, l)
			if o.State == placement.OpCancelled {
				d.undo(ctx, mv, l)
				o.Relocate(placement.Relocation{})
			}
			return advanced, err
		}
		o.Relocate(placement.Relocation{})
		return true, nil
	}
	if err := d.act(ctx, mv, l, &act); err != nil {
		return false, err
	}
	switch mv.State {
	case placement.OpFailed:
		o.State, o.Error = placement.OpFailed, what+": "+mv.Error
	case placement.OpDone:
		if mv.To != 0 {
			o.BytesDone = min((o.Done+1)*l.Bytes, o.BytesTotal)
		}
		o.Done++
		o.Relocate(placement.Relocation{})
	}
	return true, nil
}
