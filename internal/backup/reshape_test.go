package backup_test

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
)

// runOp starts an operation and waits for its end; false if it did not succeed.
func runOp(ctx context.Context, c *nodetest.Cluster, o *placement.Op) bool {
	ask := func(method api.Method, q, a api.Body) bool {
		b, err := c.Node(0).Client().Call(ctx, c.Node(0).ID(), "", method, q.Append(nil))
		return err == nil && api.Decode(b, a) == nil
	}
	var page api.OpsPage
	if !ask(api.MethodOpStart, &api.OpRequest{Op: o.Append(nil)}, &page) {
		return false
	}
	for ctx.Err() == nil && len(page.Ops) == 1 {
		got, err := placement.DecodeOp(page.Ops[0])
		if err != nil || got.State != placement.OpRunning {
			return err == nil && got.State == placement.OpDone
		}
		time.Sleep(5 * time.Millisecond) // the pace of asking
		ask(api.MethodOps, &api.OpsRequest{ID: got.ID}, &page)
	}
	return false
}

// reshape splits and merges shards until stop, and returns how many it did.
func reshape(c *nodetest.Cluster, stop *atomic.Bool) (done int) {
	m := c.Node(0).Client().Map()
	for i := 0; !stop.Load(); i++ {
		r, ok := m.Lookup([]byte{byte(i * 53)})
		if !ok {
			continue
		}
		op := placement.Op{Kind: placement.OpSplit, Shard: r.Desc.Shard, Parts: 2}
		if next, ok := m.Lookup(r.End); ok && i%3 == 2 && len(r.End) > 0 {
			op = placement.Op{Kind: placement.OpMerge, Shard: r.Desc.Shard, Other: next.Desc.Shard}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if runOp(ctx, c, &op) {
			done++
		}
		cancel()
	}
	return done
}
