package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/ports"
)

const tourParts = 4

// reshape adds a node, splits the fullest shard and moves a part of it to the new node, all under load.
func (g *guide) reshape(ctx context.Context) error {
	admin, ok := g.kv.(client.Admin)
	if !ok {
		return errors.New("this cluster has no operations")
	}
	g.say("Start one more node, split the fullest shard into %d, and move a part to the new node, under load", tourParts)
	counters := StartCounters(ctx, g.kv, g.shards, fmt.Sprintf("%08x", rand.Uint32()), 200*time.Millisecond)
	defer counters.Stop()
	to, err := g.addNode(ctx)
	if err != nil {
		return err
	}
	start := time.Now()
	parent, err := g.operate(ctx, admin, func(shards []client.Shard) (client.OpSpec, bool) {
		s := slices.MaxFunc(shards, func(a, b client.Shard) int { return int(a.Bytes - b.Bytes) })
		return client.OpSpec{Kind: "split", Shard: s.ID, Parts: tourParts}, true
	})
	if err != nil {
		return err
	}
	g.tour.SplitS = time.Since(start).Seconds()
	if g.shards, err = g.kv.Shards(ctx, 0); err != nil {
		return err
	}
	g.note("shard %d became %d shards in %.2f s; there are %d now", parent, tourParts, g.tour.SplitS, len(g.shards))

	start = time.Now()
	moved, err := g.operate(ctx, admin, func(shards []client.Shard) (client.OpSpec, bool) { return moveOf(shards, parent, to) })
	if err != nil {
		return err
	}
	g.tour.MoveS = time.Since(start).Seconds()
	s, err := g.kv.Shard(ctx, moved)
	if err != nil {
		return err
	}
	if len(s.Replicas) != 3 || !slices.ContainsFunc(s.Replicas, func(r client.Replica) bool { return r.Node == to }) {
		return fmt.Errorf("shard %d is not where it was moved: %+v", moved, s.Replicas)
	}
	g.note("a replica of shard %d (about %d MiB) moved to node %d in %.2f s", moved, s.Bytes>>20, to, g.tour.MoveS)
	counters.Mark()
	if _, err := counters.WaitWritable(ctx); err != nil {
		return err
	}
	counters.Stop()
	if err := WaitEqual(ctx, g.kv, []client.Shard{s}); err != nil {
		return err
	}
	if err := counters.Verify(ctx, g.kv); err != nil {
		return err
	}
	if err := g.compare(ctx, g.c.Servers[len(g.c.Servers)-1:]); err != nil {
		return err
	}
	g.note("all %d files came back through the new node, and the counters show exactly the %d adds made meanwhile", len(g.want), counters.Acked())
	return nil
}

// addNode starts one more node and returns its id.
func (g *guide) addNode(ctx context.Context) (uint64, error) {
	free, err := ports.Free(2)
	if err != nil {
		return 0, err
	}
	first := g.c.Nodes[0].Spec
	first.Name, first.Addr, first.HTTP, first.Join = "n"+strconv.Itoa(len(g.c.Nodes)+1), free[0], free[1], g.c.Servers
	p, err := Start(first)
	if err != nil {
		return 0, err
	}
	g.c.Nodes = append(g.c.Nodes, p)
	g.c.Servers = append(slices.Clone(g.c.Servers), p.Addr)
	for {
		nodes, err := g.kv.Nodes(ctx)
		for _, n := range nodes {
			if n.Address == p.Addr && n.State == "up" {
				g.note("%s  %s  has joined as node %d", n.Name, n.Address, n.ID)
				return n.ID, nil
			}
		}
		if !p.running() {
			return 0, p.Unexpected()
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			return 0, fmt.Errorf("node %s does not join: %w, %v", p.Name, ctx.Err(), err)
		}
	}
}

// moveOf moves the part of a split shard that is furthest right, and not on the new node yet.
func moveOf(shards []client.Shard, parent, to uint64) (client.OpSpec, bool) {
	slices.SortFunc(shards, func(a, b client.Shard) int { return bytes.Compare(a.Start, b.Start) })
	i := slices.IndexFunc(shards, func(s client.Shard) bool { return s.ID == parent })
	if i < 0 {
		return client.OpSpec{}, false
	}
	for k := min(i+tourParts, len(shards)) - 1; k >= i; k-- {
		s := &shards[k]
		if len(s.Replicas) > 0 && !slices.ContainsFunc(s.Replicas, func(r client.Replica) bool { return r.Node == to }) {
			return client.OpSpec{Kind: "move", Shard: s.ID, From: s.Replicas[0].Node, To: to}, true
		}
	}
	return client.OpSpec{}, false
}

// operate starts what choose wants, waits until it is done, and returns its shard. A shard that is busy, as when it is being split by itself, is
// chosen again.
func (g *guide) operate(ctx context.Context, admin client.Admin, choose func([]client.Shard) (client.OpSpec, bool)) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var last error
	for {
		shards, err := g.kv.Shards(ctx, 0)
		if err != nil {
			return 0, err
		}
		if spec, ok := choose(shards); ok {
			op, err := admin.StartOp(ctx, spec)
			if err == nil {
				return spec.Shard, waitOp(ctx, admin, op)
			}
			last = err
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			return 0, fmt.Errorf("%w; the last refusal: %v", ctx.Err(), last)
		}
	}
}

func waitOp(ctx context.Context, admin client.Admin, op client.Op) error {
	for !op.Over() {
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("operation %d (%s) does not end: %w; it waits for: %s", op.ID, op.What, err, op.Reason)
		}
		now, err := admin.Op(ctx, op.ID)
		if err != nil && !errors.Is(err, client.ErrUnavailable) {
			return err
		}
		if err == nil {
			op = now
		}
	}
	if op.State != "done" {
		return fmt.Errorf("operation %d (%s) %s: %s", op.ID, op.What, op.State, op.Error)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
