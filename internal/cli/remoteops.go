package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/router/api"
)

var _ client.Admin = (*remote)(nil)

var opKinds = map[string]placement.OpKind{"move": placement.OpMove, "transfer": placement.OpTransfer, "drain": placement.OpDrain,
	"rebalance": placement.OpRebalance, "split": placement.OpSplit, "merge": placement.OpMerge}

// StartOp implements client.Admin. While the cluster cannot say whether it may be started it tries again, until ctx ends.
func (r *remote) StartOp(ctx context.Context, s client.OpSpec) (client.Op, error) {
	kind, ok := opKinds[s.Kind]
	if !ok {
		return client.Op{}, fmt.Errorf("%w: operation %q", client.ErrInvalid, s.Kind)
	}
	o := placement.Op{Kind: kind, Shard: engine.ShardID(s.Shard), Other: engine.ShardID(s.Other), From: engine.NodeID(s.From), To: engine.NodeID(s.To),
		Keys: s.Keys, Parts: s.Parts, By: s.By}
	req := &api.OpRequest{Op: o.Append(nil)}
	for {
		op, err := r.oneOp(ctx, api.MethodOpStart, req)
		if err == nil || !errors.Is(err, client.ErrUnavailable) {
			return op, err
		}
		select {
		case <-ctx.Done():
			return op, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tell sends a command to one node; to the next one only if it surely did not reach that.
func (r *remote) tell(ctx context.Context, method api.Method, req, answer api.Body) error {
	body := req.Append(nil)
	var errs []error
	for _, s := range r.order() {
		b, err := r.c.Call(ctx, 0, s, method, body)
		if err == nil {
			if answer == nil {
				return nil
			}
			return api.Decode(b, answer)
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
		if send := (*router.SendError)(nil); !errors.As(err, &send) || ctx.Err() != nil {
			break
		} else if send.Sent {
			return marked{client.ErrUnknown, errors.Join(errs...)}
		}
	}
	return mark(errors.Join(errs...))
}

func (r *remote) oneOp(ctx context.Context, method api.Method, req api.Body) (client.Op, error) {
	var page api.OpsPage
	do := r.tell
	if method == api.MethodOps {
		do = r.ask
	}
	if err := do(ctx, method, req, &page); err != nil {
		return client.Op{}, err
	}
	if len(page.Ops) != 1 {
		return client.Op{}, fmt.Errorf("operation: %w", client.ErrNotFound)
	}
	return toOp(page.Ops[0])
}

// Op implements client.Admin.
func (r *remote) Op(ctx context.Context, id uint64) (client.Op, error) {
	return r.oneOp(ctx, api.MethodOps, &api.OpsRequest{ID: id})
}

// CancelOp implements client.Admin.
func (r *remote) CancelOp(ctx context.Context, id uint64) (client.Op, error) {
	return r.oneOp(ctx, api.MethodOpCancel, &api.OpsRequest{ID: id})
}

// Ops implements client.Admin.
func (r *remote) Ops(ctx context.Context, limit int) ([]client.Op, error) {
	var page api.OpsPage
	if err := r.ask(ctx, api.MethodOps, &api.OpsRequest{Limit: uint64(limit)}, &page); err != nil {
		return nil, err
	}
	out := make([]client.Op, 0, len(page.Ops))
	for _, b := range page.Ops {
		o, err := toOp(b)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

func toOp(b []byte) (client.Op, error) {
	o, err := placement.DecodeOp(b)
	if err != nil {
		return client.Op{}, err
	}
	return o.View(time.Now()), nil
}

// Undrain implements client.Admin.
func (r *remote) Undrain(ctx context.Context, node uint64) error {
	return r.setNode(ctx, &api.NodeSetRequest{Node: engine.NodeID(node), Action: api.NodeUndrain})
}

// RemoveNode implements client.Admin.
func (r *remote) RemoveNode(ctx context.Context, node uint64, force bool) error {
	return r.setNode(ctx, &api.NodeSetRequest{Node: engine.NodeID(node), Action: api.NodeRemove, Force: force})
}

func (r *remote) setNode(ctx context.Context, req *api.NodeSetRequest) error {
	return r.tell(ctx, api.MethodNodeSet, req, nil)
}

// Plan implements client.Admin.
func (r *remote) Plan(ctx context.Context, by []string) (client.Plan, error) {
	var p api.Plan
	if err := r.ask(ctx, api.MethodPlan, &api.PlanRequest{By: by}, &p); err != nil {
		return client.Plan{}, err
	}
	out := client.Plan{Moves: []client.PlanMove{}, Bytes: p.Bytes, Before: toBalance(&p.Before), After: toBalance(&p.After), Stuck: p.Stuck}
	for _, m := range p.Moves {
		out.Moves = append(out.Moves, client.PlanMove{Shard: uint64(m.Shard), From: uint64(m.From), To: uint64(m.To), Leader: m.Leader, Bytes: m.Bytes, Why: m.Why})
	}
	if out.Stuck == nil {
		out.Stuck = []string{}
	}
	return out, nil
}

func toBalance(s *[4]api.Spread) client.Balance {
	return client.Balance{Replicas: client.Spread(s[0]), Leaders: client.Spread(s[1]), Bytes: client.Spread(s[2]), Load: client.Spread(s[3])}
}

// waitOp waits until an operation is over, asking whoever answers. progress, if any, is told how far it is.
func waitOp(ctx context.Context, admin client.Admin, id uint64, progress func(*client.Op)) (client.Op, error) {
	var last client.Op
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		o, err := admin.Op(ctx, id)
		switch {
		case err == nil:
			last = o
			if o.Over() {
				return o, nil
			}
			if progress != nil {
				progress(&o)
			}
		case !errors.Is(err, client.ErrUnavailable):
			return last, err
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(pause):
		}
	}
}
