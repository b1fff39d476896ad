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
	l, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return false, err
	}
	if len(o.Keys) == 0 {
		o.State, o.Error = placement.OpFailed, "no keys"
		return true, nil
	}
	if l.Descriptor.Contains(o.Keys[0]) {
		if o.Cancel && l.Changing { // it may be ordered already: what is said to be cancelled must not happen after that
			o.Reason = changing
			return false, nil
		}
		if o.Cancel {
			o.State = placement.OpCancelled
			return true, nil
		}
		o.Step, o.Reason = "split", ""
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
	_, version, err := c.meta.get(ctx, placement.ShardKey(o.Other+engine.ShardID(len(o.Keys)-1)))
	if err != nil {
		return false, err
	}
	if version == 0 {
		o.Reason = "the leader has not reported the children yet"
		return false, nil
	}
	o.State, o.Done, o.Reason, o.BytesDone = placement.OpDone, 2, "", o.BytesTotal
	return true, nil
}

// changing is why nothing can be done about a shard now.
const changing = "a membership change, a split or a merge of the shard is being committed"

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
