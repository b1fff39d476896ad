package node_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

var (
	opsSeedFlag   = flag.Uint64("ops.seed", 0, "of TestOperationsAtRandom; 0: of the time")
	opsRoundsFlag = flag.Int("ops.rounds", 2, "how many rounds of it")
)

// opsChaos is a cluster to which anything happens that an operator, or a failure, may do.
type opsChaos struct {
	t    *testing.T
	c    *nodetest.Cluster
	rng  *rand.Rand
	down int // the node that is down; -1: none
	ops  []uint64
}

const (
	opsChaosNodes = 4
	opsChaosKeys  = 40
)

// TestOperationsAtRandom: shards are split at a few keys, merged, moved, drained off nodes, and all of that is cancelled, while drivers die, reports are not sent, and nodes are
// killed, one or all. When that is over every operation ends, a node can be drained, nothing is missed and nothing left over, and the data is there.
func TestOperationsAtRandom(t *testing.T) {
	seed := *opsSeedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d: -ops.seed=%[1]d", seed)
	var calm atomic.Bool
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(seed, 1))
	x := &opsChaos{t: t, rng: rand.New(rand.NewPCG(seed, 2)), down: -1}
	x.c = nodetest.Start(t, opsChaosNodes, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetSyncEvery(cfg, 300*time.Millisecond)
		node.SetFault(cfg, func(step string) error {
			mu.Lock()
			defer mu.Unlock()
			if !calm.Load() && (strings.HasPrefix(step, "op ") && dice.IntN(6) == 0 || (step == "report" || step == "spread") && dice.IntN(2) == 0) {
				return errors.New("it does not come to that")
			}
			return nil
		})
	}})
	x.c.Init(0, 5, 3)
	write(t, x.c, 0, opsChaosKeys, "v")
	for round := range *opsRoundsFlag {
		calm.Store(false)
		for range 25 {
			x.happen()
			time.Sleep(time.Duration(x.rng.IntN(200)) * time.Millisecond) // the pace
		}
		calm.Store(true)
		began := time.Now()
		x.settle()
		t.Logf("round %d: all is well after %v", round, time.Since(began))
	}
}

// via is a node that lives.
func (x *opsChaos) via() *node.Node {
	for {
		if i := x.rng.IntN(opsChaosNodes); i != x.down {
			return x.c.Node(i)
		}
	}
}

// ask does what may be refused, as nodes are down.
func (x *opsChaos) ask(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return f(ctx)
}

func (x *opsChaos) nodeID() engine.NodeID { return engine.NodeID(1 + x.rng.IntN(opsChaosNodes)) }

// happen has one thing happen.
func (x *opsChaos) happen() {
	n := x.via()
	list, _ := n.Ranges(context.Background())
	if len(list) == 0 {
		return // it has just started
	}
	at := x.rng.IntN(len(list))
	d := list[at]
	switch x.rng.IntN(9) {
	case 0, 1:
		x.start(n, placement.Op{Kind: placement.OpSplit, Shard: d.Shard, Keys: [][]byte{{byte(x.rng.IntN(8) << 5)}}})
	case 2, 3:
		if at+1 < len(list) {
			x.start(n, placement.Op{Kind: placement.OpMerge, Shard: d.Shard, Other: list[at+1].Shard})
		}
	case 4, 5:
		to := x.nodeID()
		if _, there := d.OnNode(to); !there && len(d.Replicas) > 0 {
			x.start(n, placement.Op{Kind: placement.OpMove, Shard: d.Shard, From: d.Replicas[x.rng.IntN(len(d.Replicas))].Node, To: to})
		}
	case 6:
		if len(x.ops) > 0 {
			_ = x.ask(func(ctx context.Context) error { return n.CancelOp(ctx, x.ops[x.rng.IntN(len(x.ops))]) })
		}
	case 7:
		if x.rng.IntN(3) == 0 {
			x.start(n, placement.Op{Kind: placement.OpDrain, From: x.nodeID()})
		} else {
			_ = x.undrain(n, x.nodeID())
		}
	case 8:
		x.kill()
	}
}

func (x *opsChaos) start(n *node.Node, o placement.Op) {
	if err := x.ask(func(ctx context.Context) error { return n.StartOp(ctx, &o) }); err == nil {
		x.ops = append(x.ops, o.ID)
	}
}

func (x *opsChaos) undrain(n *node.Node, id engine.NodeID) error {
	return x.ask(func(ctx context.Context) error {
		return n.SetNode(ctx, api.NodeSetRequest{Node: id, Action: api.NodeUndrain})
	})
}

// kill kills a node, or starts the one that is down; at times it is all of them.
func (x *opsChaos) kill() {
	switch {
	case x.rng.IntN(5) == 0:
		for i := range opsChaosNodes {
			if i != x.down {
				x.c.Kill(i)
			}
		}
		for i := range opsChaosNodes {
			x.c.Restart(i)
		}
		x.down = -1
	case x.down >= 0:
		x.c.Restart(x.down)
		x.down = -1
	default:
		x.down = x.rng.IntN(opsChaosNodes)
		x.c.Kill(x.down)
	}
}

// settle has all nodes live and take replicas, and waits until all is well.
func (x *opsChaos) settle() {
	if x.down >= 0 {
		x.c.Restart(x.down)
		x.down = -1
	}
	first := x.c.Node(0)
	for id := engine.NodeID(1); id <= opsChaosNodes; id++ {
		nodetest.Eventually(x.t, 30*time.Second, func() error { return x.undrain(first, id) })
	}
	for _, id := range slices.Compact(x.ops) {
		nodetest.Eventually(x.t, 60*time.Second, func() error {
			return x.ask(func(ctx context.Context) error {
				o, err := first.ReadOp(ctx, id)
				if err == nil && o.State == placement.OpRunning {
					err = fmt.Errorf("%s still runs: step %q, reason %q, cancelled %v", o, o.Step, o.Reason, o.Cancel)
				}
				if errors.Is(err, shard.ErrNotFound) {
					err = nil // it was over long ago
				}
				return err
			})
		})
	}
	x.ops = nil
	nodetest.Eventually(x.t, 90*time.Second, x.well)
	i := x.rng.IntN(opsChaosNodes)
	other := (i + 1) % opsChaosNodes
	waitOp(x.t, x.c, other, startOp(x.t, x.c, other, placement.Op{Kind: placement.OpDrain, From: x.c.Node(i).ID()}), 60*time.Second, placement.OpDone)
	nodetest.Eventually(x.t, 30*time.Second, func() error { return x.undrain(first, x.c.Node(i).ID()) })
	read(x.t, x.c, other, opsChaosKeys, "v")
}

// well tells what is not well: a problem that some node names, or a replica too many.
func (x *opsChaos) well() error {
	for i := range opsChaosNodes {
		st, err := x.c.Node(i).StatusOf(deadline(x.t, 3*time.Second))
		if err != nil || len(st.Problems) > 0 {
			return fmt.Errorf("node %d: %+v, %v", i, st, err)
		}
		sum := 0
		replicas, _ := count(x.t, x.c, 0, 1, 2, 3)
		for _, n := range replicas {
			sum += n
		}
		if sum != 3*st.Shards.Total {
			return fmt.Errorf("%d shards, replicas %v", st.Shards.Total, replicas)
		}
	}
	return nil
}
