package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/fault"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// getMany returns the entries of several keys, as of one moment.
func (m *metaClient) getMany(ctx context.Context, keys [][]byte) ([]shard.Entry, error) {
	body, err := m.do(ctx, api.MethodRead, func(v uint64) []byte {
		return shard.AppendRead(nil, &shard.Read{Shard: shard.MetaShardID, Version: v, Keys: keys})
	})
	if err != nil {
		return nil, err
	}
	entries, err := shard.DecodeAnswer(body, keys, nil)
	if err != nil || len(entries) != len(keys) {
		return nil, fmt.Errorf("%w: answer of the meta shard: %d entries, %v", shard.ErrInternal, len(entries), err)
	}
	return entries, nil
}

func unchanged(e *shard.Entry) shard.Condition {
	return shard.Condition{Kind: shard.ConditionVersion, Key: e.Key, Version: e.Version}
}

func del(key []byte) shard.Op { return shard.Op{Kind: shard.OpDelete, Key: key} }

// busyWith is the refusal of a second operation: it names the first.
func busyWith(o *placement.Op) error {
	what := fmt.Sprintf("shard %d", o.Shard)
	if o.Kind == placement.OpDrain {
		what = fmt.Sprintf("node %d", o.From)
	}
	if o.Kind == placement.OpRebalance {
		what = "the cluster"
	}
	return &shard.InvalidError{What: fmt.Sprintf("%s is busy: %s is running", what, o)}
}

// createOp writes the record of a new operation, with the locks that keep others away, in one write. also are more conditions and changes
// that belong to it. It fills in the ids.
func (c *core) createOp(ctx context.Context, o *placement.Op, also func() ([]shard.Condition, []shard.Op, error)) error {
	made, busy, err := c.createOps(ctx, []*placement.Op{o}, also)
	if err == nil && made == 0 {
		err = c.lockedBy(ctx, busy)
	}
	return err
}

// createOps does so for several operations in one write, and tells how many it has made: those that something else is in the way of keep the
// ID 0. busy is the lock of the last of those.
func (c *core) createOps(ctx context.Context, list []*placement.Op, also func() ([]shard.Condition, []shard.Op, error)) (made int, busy []byte, err error) {
	allocs := [][]byte{placement.AllocKey(placement.AllocOp), placement.AllocKey(placement.AllocReplica), placement.AllocKey(placement.AllocShard)}
	keys := slices.Clone(allocs)
	for _, o := range list {
		keys = append(keys, o.Locks()...)
	}
	for {
		entries, err := c.meta.getMany(ctx, keys)
		if err != nil {
			return 0, nil, err
		}
		var first, next [3]uint64
		for i := range allocs {
			if first[i], err = placement.DecodeNextID(entries[i].Value); err != nil {
				return 0, nil, err
			}
		}
		next = first
		var conds []shard.Condition
		var ops []shard.Op
		locks := entries[len(allocs):]
		made, now := 0, time.Now().UnixMilli()
		for _, o := range list {
			own := locks[:len(o.Locks())]
			locks = locks[len(own):]
			if o.ID = 0; slices.ContainsFunc(own, func(e shard.Entry) bool {
				if e.Version != 0 {
					busy = e.Value
				}
				return e.Version != 0
			}) {
				continue
			}
			made++
			o.State, o.StartMS, o.UpdateMS = placement.OpRunning, now, now
			nameOp(o, &next)
			for i := range own {
				conds = append(conds, unchanged(&own[i]))
				ops = append(ops, put(own[i].Key, placement.AppendNextID(nil, o.ID)))
			}
			ops = append(ops, put(placement.OpKey(o.ID), o.Append(nil)))
		}
		if made == 0 {
			return 0, busy, nil
		}
		for i := range allocs {
			if next[i] != first[i] {
				conds = append(conds, unchanged(&entries[i]))
				ops = append(ops, put(allocs[i], placement.AppendNextID(nil, next[i])))
			}
		}
		if also != nil {
			moreConds, moreOps, err := also()
			if err != nil {
				return 0, nil, err
			}
			conds, ops = append(conds, moreConds...), append(ops, moreOps...)
		}
		err = c.meta.write(ctx, conds, ops)
		if isConditionFailed(err) {
			continue // another operation was created meanwhile, maybe on the same shard: look again
		}
		return made, busy, err
	}
}

// nameOp gives an operation its id, and the ids that are set aside for the replicas and shards that it makes. next are those of operations,
// replicas and shards.
func nameOp(o *placement.Op, next *[3]uint64) {
	o.ID = next[0]
	next[0]++
	switch {
	case o.Kind == placement.OpMove && o.To != 0:
		o.Replica = engine.ReplicaID(next[1])
		next[1]++
	case o.Kind == placement.OpSplit && len(o.Keys) > 0:
		o.Replica, o.Other = engine.ReplicaID(next[1]), engine.ShardID(next[2])
		next[1] += splitWidth * uint64(len(o.Keys))
		next[2] += uint64(len(o.Keys))
	}
}

func (c *core) lockedBy(ctx context.Context, lock []byte) error {
	id, err := placement.DecodeNextID(lock)
	if err != nil {
		return err
	}
	o, _, err := c.readOp(ctx, id)
	if err != nil {
		return &shard.UnavailableError{Reason: fmt.Sprintf("busy with operation %d", id)}
	}
	return busyWith(o)
}

func (c *core) readOp(ctx context.Context, id uint64) (*placement.Op, uint64, error) {
	value, version, err := c.meta.get(ctx, placement.OpKey(id))
	if err != nil {
		return nil, 0, err
	}
	if version == 0 {
		return nil, 0, fmt.Errorf("operation %d: %w", id, shard.ErrNotFound)
	}
	o, err := placement.DecodeOp(value)
	return &o, version, err
}

// updateOp changes the record of a running operation, whatever others have changed in it. change returns false if there is nothing to write.
// A final state releases the locks. also, if given, are conditions and changes that belong to it.
func (c *core) updateOp(ctx context.Context, id uint64, change func(o *placement.Op) bool, also func() ([]shard.Condition, []shard.Op, error)) (*placement.Op, error) {
	for {
		o, version, err := c.readOp(ctx, id)
		if err != nil {
			return nil, err
		}
		if o.State != placement.OpRunning || !change(o) {
			return o, nil
		}
		o.UpdateMS = time.Now().UnixMilli()
		var conds []shard.Condition
		var ops []shard.Op
		if also != nil {
			if conds, ops, err = also(); err != nil {
				return nil, err
			}
		}
		if o.State != placement.OpRunning {
			o.EndMS = o.UpdateMS
			for _, l := range o.Locks() {
				ops = append(ops, del(l))
			}
		}
		key := placement.OpKey(id)
		ops = append(ops, put(key, o.Append(nil)))
		err = c.meta.write(ctx, append(conds, shard.Condition{Kind: shard.ConditionVersion, Key: key, Version: version}), ops)
		if isConditionFailed(err) {
			continue
		}
		return o, err
	}
}

// listOps calls f with all operations that are recorded, oldest first.
func (c *core) listOps(ctx context.Context, f func(o *placement.Op)) error {
	return c.meta.scan(ctx, []byte(placement.PrefixOp), placement.PrefixEnd(placement.PrefixOp), func(_, value []byte) error {
		o, err := placement.DecodeOp(value)
		if err == nil {
			f(&o)
		}
		return err
	})
}

// serveOps serves the methods for operators.
func (c *core) serveOps(ctx context.Context, q *incoming) ([]byte, error) {
	switch q.method {
	case api.MethodOpStart:
		return answer(q, &api.OpRequest{}, func(r *api.OpRequest) (api.Body, error) {
			o, err := placement.DecodeOp(r.Op)
			if err != nil {
				return nil, malformed(err)
			}
			if err := c.startOp(ctx, &o); err != nil {
				return nil, err
			}
			return &api.OpsPage{Ops: [][]byte{o.Append(nil)}}, nil
		})
	case api.MethodOps:
		return answer(q, &api.OpsRequest{}, func(r *api.OpsRequest) (api.Body, error) { return c.opsPage(ctx, r) })
	case api.MethodOpCancel:
		return answer(q, &api.OpsRequest{}, func(r *api.OpsRequest) (api.Body, error) {
			o, err := c.cancelOp(ctx, r.ID)
			if err != nil {
				return nil, err
			}
			return &api.OpsPage{Ops: [][]byte{o.Append(nil)}}, nil
		})
	case api.MethodNodeSet:
		var r api.NodeSetRequest
		if err := api.Decode(q.body, &r); err != nil {
			return nil, err
		}
		return nil, c.setNode(ctx, &r)
	case api.MethodPlan:
		return answer(q, &api.PlanRequest{}, func(r *api.PlanRequest) (api.Body, error) { return c.dryRun(ctx, r) })
	case api.MethodStatus:
		return answer(&incoming{body: (&api.PlanRequest{}).Append(nil)}, &api.PlanRequest{}, func(*api.PlanRequest) (api.Body, error) { return c.statusPage(ctx) })
	case methodDrive:
		c.driver.ring()
		return mp.AppendArray(nil, 0), nil
	case api.MethodUsers, api.MethodUserSet, api.MethodPassword:
		return c.serveUsers(ctx, q)
	}
	return c.servePeer(ctx, q)
}

// cancelOp asks an operation to stop.
func (c *core) cancelOp(ctx context.Context, id uint64) (*placement.Op, error) {
	o, err := c.updateOp(ctx, id, func(o *placement.Op) bool { was := o.Cancel; o.Cancel = true; return !was }, nil)
	var unavailable *shard.UnavailableError
	switch {
	case err == nil:
		c.tellDriver(ctx)
	case errors.As(err, &unavailable):
		err = &shard.UnavailableError{RetryAfter: unavailable.RetryAfter, Reason: fmt.Sprintf("operation %d goes on, as the meta shard cannot record that it is to be cancelled: %s", id, unavailable.Reason)}
	}
	return o, err
}

func (c *core) opsPage(ctx context.Context, r *api.OpsRequest) (*api.OpsPage, error) {
	if r.ID != 0 {
		o, _, err := c.readOp(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		return &api.OpsPage{Ops: [][]byte{o.Append(nil)}}, nil
	}
	page := &api.OpsPage{}
	if err := c.listOps(ctx, func(o *placement.Op) {
		if !r.Running || o.State == placement.OpRunning {
			page.Ops = append(page.Ops, o.Append(nil))
		}
	}); err != nil {
		return nil, err
	}
	slices.Reverse(page.Ops)
	limit := int(min(r.Limit, api.OpsPageMax))
	if limit == 0 {
		limit = api.OpsPageMax
	}
	page.Ops = page.Ops[:min(len(page.Ops), limit)]
	return page, nil
}

// startOp checks what an operator wants against what is, and writes the record. Nothing has changed if it returns an error.
func (c *core) startOp(ctx context.Context, o *placement.Op) error {
	o.Parent, o.State, o.Step, o.Reason, o.Error, o.Cancel, o.Done, o.Total = 0, 0, "", "", "", false, 0, 0
	o.Replica, o.FromReplica = 0, 0
	if o.Why == "" {
		o.Why = "operator"
	}
	var err error
	switch o.Kind {
	case placement.OpMove:
		err = c.checkMove(ctx, o)
	case placement.OpTransfer:
		err = c.checkTransfer(ctx, o)
	case placement.OpSplit:
		err = c.checkSplit(ctx, o)
	case placement.OpMerge:
		err = c.checkMerge(ctx, o)
	case placement.OpDrain:
		return c.startDrain(ctx, o)
	case placement.OpRebalance:
		o.By = slices.DeleteFunc(o.By, func(s string) bool { return s == "" })
		_, err = placement.ParseBy(o.By)
		if err != nil {
			err = malformed(err)
		}
	default:
		err = &shard.InvalidError{What: fmt.Sprintf("operation %s is not known", o.Kind)}
	}
	if err != nil {
		return err
	}
	fault.At("op " + o.Kind.String() + ": create")
	if err := c.createOp(ctx, o, nil); err != nil {
		return err
	}
	fault.At("op " + o.Kind.String() + ": created")
	c.n.log.Info("operation started", "op", o.ID, "what", o.String(), "why", o.Why)
	c.tellDriver(ctx)
	return nil
}

// checkMove refuses moves that make no sense, and fills in the replica that goes.
func (c *core) checkMove(ctx context.Context, o *placement.Op) error {
	l, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return err
	}
	d := l.Descriptor
	o.BytesTotal = l.Bytes
	if o.From != 0 {
		r, ok := d.OnNode(o.From)
		if !ok {
			return &shard.InvalidError{What: fmt.Sprintf("node %d holds no replica of shard %d", o.From, o.Shard)}
		}
		o.FromReplica = r.Replica
	}
	if o.To == 0 {
		if o.From == 0 {
			return &shard.InvalidError{What: "a move from nowhere to nowhere"}
		}
		return nil
	}
	if _, ok := d.OnNode(o.To); ok {
		return &shard.InvalidError{What: fmt.Sprintf("node %d holds a replica of shard %d already", o.To, o.Shard)}
	}
	return c.mayTake(o.To)
}

// mayTake refuses a replica for a node that cannot take one now.
func (c *core) mayTake(id engine.NodeID) error {
	rec, ok := c.view.node(id)
	switch {
	case !ok || rec.State == placement.NodeRemoved:
		return fmt.Errorf("node %d: %w", id, shard.ErrNotFound)
	case rec.State == placement.NodeDraining:
		return &shard.InvalidError{What: fmt.Sprintf("node %d is being drained", id)}
	case !c.alive(id):
		return &shard.UnavailableError{Reason: fmt.Sprintf("node %d is down", id)}
	}
	return nil
}

func (c *core) checkTransfer(ctx context.Context, o *placement.Op) error {
	l, err := c.findLead(ctx, o.Shard)
	if err != nil {
		return err
	}
	o.From = l.Node
	r, ok := l.Descriptor.OnNode(o.To)
	switch {
	case !ok || r.Role == shard.RoleLearner:
		return &shard.InvalidError{What: fmt.Sprintf("node %d holds no voter of shard %d", o.To, o.Shard)}
	case !c.alive(o.To):
		return &shard.UnavailableError{Reason: fmt.Sprintf("node %d is down", o.To)}
	}
	return nil
}

// methodDrive tells the driver that there is something to do.
const methodDrive api.Method = 77

// tellDriver wakes the driver, which is where the meta shard is led.
func (c *core) tellDriver(ctx context.Context) {
	leader := c.meta.knownLeader()
	if leader == 0 || leader == c.node {
		c.driver.ring()
		return
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Second)
	}
	c.n.tr.Go(leader, methodDrive, deadline, 0, nil, func([]byte, error) {})
}

func (m *metaClient) knownLeader() engine.NodeID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leader
}

// node returns what is known of a node.
func (v *view) node(id engine.NodeID) (placement.NodeRecord, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	rec, ok := v.nodes[id]
	return rec, ok
}
