package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// Methods of splits, to the leader of the shard. Sent: never renumber.
const (
	methodSplit  api.Method = 78 // [shard, shard.Split] → empty, when it is applied
	methodSample api.Method = 79 // [shard, parts] → array of keys
)

// splitWidth is how many replica ids are set aside for each child of a split: one for each node that may hold the parent.
const splitWidth = shard.DescriptorReplicasMax

func (c *core) serveSplit(ctx context.Context, body []byte) error {
	r := mp.NewReader(body)
	more := r.ArrayMin(2)
	id := engine.ShardID(r.Uint())
	raw := r.Bin()
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return malformed(err)
	}
	sp, err := shard.DecodeSplit(raw)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	c.sched.Split(id, sp, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return &shard.UnavailableError{Reason: "the split is not applied yet"}
	}
}

func (c *core) serveSample(ctx context.Context, body []byte) ([]byte, error) {
	ids, err := decodeIDs[engine.ShardID](body)
	if err != nil || len(ids) != 2 {
		return nil, malformed(fmt.Errorf("sample: %w", err))
	}
	type result struct {
		keys [][]byte
		err  error
	}
	done := make(chan result, 1)
	c.sched.SampleSplitKeys(ids[0], int(ids[1]), func(keys [][]byte, err error) { done <- result{keys, err} })
	select {
	case r := <-done:
		if r.err != nil {
			return nil, r.err
		}
		b := mp.AppendArray(nil, len(r.keys))
		for _, k := range r.keys {
			b = mp.AppendBin(b, k)
		}
		return b, nil
	case <-ctx.Done():
		return nil, &shard.UnavailableError{Reason: "the shard is not sampled yet"}
	}
}

// checkSplit refuses splits that make no sense, and finds the keys if only a number of parts is given.
func (c *core) checkSplit(ctx context.Context, o *placement.Op) error {
	if o.Shard == shard.MetaShardID {
		return &shard.InvalidError{What: "the meta shard never splits"}
	}
	l, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return err
	}
	o.BytesTotal = l.Bytes
	switch {
	case len(o.Keys) == 0 && (o.Parts < 2 || o.Parts > shard.SplitChildrenMax+1):
		return &shard.InvalidError{What: fmt.Sprintf("a split into %d parts", o.Parts)}
	case len(o.Keys) > shard.SplitChildrenMax:
		return &shard.InvalidError{What: fmt.Sprintf("a split at %d keys: at most %d", len(o.Keys), shard.SplitChildrenMax)}
	case len(o.Keys) == 0:
		if o.Keys, err = c.sample(ctx, l, o.Parts); err != nil {
			return err
		}
		if len(o.Keys) == 0 {
			return &shard.InvalidError{What: fmt.Sprintf("shard %d holds too little to be split into %d parts: give the keys", o.Shard, o.Parts)}
		}
	}
	slices.SortFunc(o.Keys, bytes.Compare)
	for i, k := range o.Keys {
		switch {
		case len(k) > shard.KeyBytesMax:
			return &shard.TooLargeError{What: "key", Size: uint64(len(k)), Max: shard.KeyBytesMax}
		case !l.Descriptor.Contains(k):
			return &shard.InvalidError{What: fmt.Sprintf("key %q is not in shard %d", k, o.Shard)}
		case bytes.Equal(k, l.Descriptor.Start):
			return &shard.InvalidError{What: fmt.Sprintf("key %q is where shard %d begins", k, o.Shard)}
		case i > 0 && bytes.Equal(k, o.Keys[i-1]):
			return &shard.InvalidError{What: fmt.Sprintf("key %q twice", k)}
		}
	}
	return nil
}

func (c *core) sample(ctx context.Context, l *lead, parts uint64) ([][]byte, error) {
	body, err := c.n.call(ctx, l.Node, methodSample, 0, appendIDs(nil, []uint64{uint64(l.Descriptor.Shard), parts}))
	if err != nil {
		return nil, err
	}
	r := mp.NewReader(body)
	var keys [][]byte
	n := r.Array()
	if n > shard.SplitChildrenMax {
		r.Fail("too many keys")
	}
	for ; n > 0 && r.Err() == nil; n-- {
		keys = append(keys, bytes.Clone(r.Bin()))
	}
	return keys, r.Finish()
}

// stepSplit proposes the split at the versions that the shard has, unless it has happened: the parent keeps what is below the first key.
// It is done when meta has the children, which their leader, or who leads after it, reports.
func (d *driver) stepSplit(ctx context.Context, o *placement.Op) (bool, error) {
	c := d.c
	o.Total = 2
	if len(o.Keys) == 0 {
		o.State, o.Error = placement.OpFailed, "no keys"
		return true, nil
	}
	if o.Cancel && o.Step == "" {
		o.State = placement.OpCancelled
		return true, nil
	}
	l, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return false, err
	}
	if l.Descriptor.Contains(o.Keys[0]) {
		if o.Cancel {
			return d.cancelOrder(ctx, o, l)
		}
		if o.Step == "" { // recorded before it is ordered
			o.Step, o.Reason = "split", ""
			return true, nil
		}
		o.Reason = ""
		err := d.callSplit(ctx, o, l)
		var void *shard.VoidError
		if errors.As(err, &void) {
			return true, nil // look again
		}
		if errors.Is(err, shard.ErrInvalid) {
			o.State, o.Error = placement.OpFailed, err.Error()
			return true, nil
		}
		return err == nil, err
	}
	o.Step, o.Done = "record the children", 1
	last := o.Other + engine.ShardID(len(o.Keys)-1)
	entries, err := c.meta.getMany(ctx, [][]byte{placement.ShardKey(last), placement.DeadKey(last)}) // it may have been merged away by now
	if err != nil {
		return false, err
	}
	if entries[0].Version == 0 && entries[1].Version == 0 {
		return d.awaitChildren(ctx, o)
	}
	o.State, o.Done, o.Reason, o.BytesDone = placement.OpDone, 2, "", o.BytesTotal
	return true, nil
}

// awaitChildren is where the parent has lost the first key, and meta does not have the last child. Either the split has happened and its children are not
// reported yet, or another one took the key: then whoever has it now is known to meta, and no child of this one was ever.
func (d *driver) awaitChildren(ctx context.Context, o *placement.Op) (bool, error) {
	c := d.c
	o.Reason = "the leader has not reported the children yet"
	owner := c.view.covering(o.Keys[0])
	if owner == nil || owner.Shard == o.Shard || owner.Shard >= o.Other && owner.Shard < o.Other+engine.ShardID(len(o.Keys)) {
		return false, nil
	}
	entries, err := c.meta.getMany(ctx, [][]byte{placement.ShardKey(owner.Shard), placement.ShardKey(o.Other), placement.DeadKey(o.Other)})
	if err != nil || entries[0].Version == 0 || entries[1].Version != 0 || entries[2].Version != 0 {
		return false, err
	}
	if rec, err := placement.DecodeShard(entries[0].Value); err != nil || !rec.Descriptor.Contains(o.Keys[0]) {
		return false, err
	}
	o.State, o.Reason = placement.OpFailed, ""
	if o.Error = fmt.Sprintf("key %q is in shard %d now: shard %d was split there by another operation", o.Keys[0], owner.Shard, o.Shard); o.Cancel {
		o.State, o.Error = placement.OpCancelled, ""
	}
	return true, nil
}

// cancelOrder cancels a move, a split or a merge whose order may be under way to the leader, or lie there: what is said to be cancelled must not happen after
// that. An order names the versions that the shard must have; so the shard gets another, by a change of the membership to what it is, and when that is
// applied no order from before it can be carried out.
func (d *driver) cancelOrder(ctx context.Context, o *placement.Op, l *lead) (bool, error) {
	if l.Changing || placement.MembershipJoint(l.Descriptor) {
		o.Reason = tooLate
		return false, nil
	}
	d.mu.Lock()
	a := d.active[o.ID]
	fenced := a.fenced
	if fenced != nil && fenced.Shard != l.Descriptor.Shard { // a merge orders changes of both its shards
		fenced = nil
	}
	if fenced == nil {
		a.fenced = l.Descriptor
	}
	d.mu.Unlock()
	if fenced != nil && l.Descriptor.Newer(fenced) {
		o.State = placement.OpCancelled
		return true, nil
	}
	o.Reason = "makes orders that are under way void"
	ch := scheduler.MembershipChange{Shard: l.Descriptor.Shard, Version: l.Descriptor.Version, ConfVersion: l.Descriptor.ConfVersion, Replicas: l.Descriptor.Replicas}
	_, err := d.c.n.call(ctx, l.Node, methodChange, 0, appendChange(nil, &ch))
	var moved *shard.MovedError
	if errors.As(err, &moved) {
		err = nil // look again
	}
	return err == nil, err
}

// changing is why nothing can be done about a shard now.
const changing = "a membership change, a split or a merge of the shard is being committed"

// tooLate is why an operation cannot be cancelled now. What is decided on a full disk waits for space there.
const tooLate = "cannot be cancelled now: " + changing + "; if that does not end, the disk of a node may be full (metric kiloraft_disk_full): make room there"

// callSplit asks the leader. The children's names follow from the operation's record and the nodes of the parent.
func (d *driver) callSplit(ctx context.Context, o *placement.Op, l *lead) error {
	desc := l.Descriptor
	if placement.MembershipJoint(desc) || l.Changing {
		return &shard.UnavailableError{Reason: changing}
	}
	sp := &shard.Split{Version: desc.Version, ConfVersion: desc.ConfVersion}
	for i, k := range o.Keys {
		ch := shard.SplitChild{Shard: o.Other + engine.ShardID(i), Start: k}
		for j, r := range desc.Replicas {
			ch.Replicas = append(ch.Replicas, shard.SplitReplica{Node: r.Node, Replica: o.Replica + engine.ReplicaID(i*splitWidth+j)})
		}
		sp.Children = append(sp.Children, ch)
	}
	b := mp.AppendUint(mp.AppendArray(nil, 2), uint64(o.Shard))
	b = mp.AppendBin(b, shard.AppendSplit(nil, sp))
	_, err := d.c.n.call(ctx, l.Node, methodSplit, 0, b)
	return err
}
