package node_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// moves tells whether a shard is being moved.
func moves(d *shard.Descriptor) bool {
	return d == nil || slices.ContainsFunc(d.Replicas, func(r shard.ReplicaDesc) bool { return r.Role != shard.RoleVoter })
}

// A rebalance ends although the leaders never come to rest, as when nodes are killed again and again: somebody hands all of them back to the
// first two nodes as fast as the balancer spreads them. The rebalance takes a node into account that has joined a moment before.
func TestRebalanceEnds(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	const shards = 12
	c.Init(0, shards, 3)
	four := c.Add()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			for i, n := range []int{0, 1, 2, four} {
				list, err := c.Node(n).Replicas(ctx)
				for _, st := range list {
					if err == nil && i > 1 && st.Role == engine.RoleLeader && st.Shard != shard.MetaShardID && !moves(st.Descriptor) {
						tctx, done := context.WithTimeout(ctx, time.Second)
						if c.Node(n).Sched().Transfer(tctx, st.Shard, c.Node(0).ID()) != nil {
							_ = c.Node(n).Sched().Transfer(tctx, st.Shard, c.Node(1).ID())
						}
						done()
					}
				}
			}
			time.Sleep(5 * time.Millisecond) // the pace of the disturbance
		}
	})
	defer wg.Wait()
	defer cancel()
	o := waitOp(t, c, 1, startOp(t, c, 1, placement.Op{Kind: placement.OpRebalance}), 60*time.Second, placement.OpDone)
	replicas, _ := count(t, c, 0, 1, 2, four)
	t.Logf("after %d ms: %d of %d moves, %d leaderships handed over, replicas %v", o.EndMS-o.StartMS, o.Done, o.Total, o.Transfers, replicas)
	if o.Done != o.Total || o.Moves < 8 {
		t.Errorf("%+v: want at least 8 moves, all of them done", o)
	}
	for n, k := range replicas {
		if k < 8 || k > 10 {
			t.Errorf("node %d: %d replicas", n+1, k)
		}
	}
}
