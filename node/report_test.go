package node_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
)

// A move that is done is in meta, although the shard's leader has not come to reporting it. The driver once told all nodes of the new
// membership before meta had it; who was told took it off what was to be reported, and meta kept the learner for ever.
func TestDoneMoveIsInMeta(t *testing.T) {
	var silent atomic.Bool
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetFault(cfg, func(step string) error {
			if step == "report" && silent.Load() {
				return errors.New("no time to report")
			}
			return nil
		})
	}})
	c.Init(0, 2, 3)
	four := c.Add()
	silent.Store(true)
	op := startOp(t, c, 1, placement.Op{Kind: placement.OpMove, Shard: 2, From: c.Node(0).ID(), To: c.Node(four).ID()})
	waitOp(t, c, 1, op, 30*time.Second, placement.OpDone)
	d, err := c.Node(1).ShardInMeta(deadline(t, 10*time.Second), 2)
	if err != nil {
		t.Fatal(err)
	}
	_, left := d.OnNode(c.Node(0).ID())
	if _, ok := d.OnNode(c.Node(four).ID()); !ok || left || placement.MembershipJoint(d) {
		t.Errorf("the move is done, and meta has %v", d)
	}
	silent.Store(false)
}

// What is in meta and a node was not told of, because who should have told it was killed, it reads when that one is back.
func TestRestartTellsOfMissed(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 2, 3)
	d, err := c.Node(1).ShardInMeta(deadline(t, 10*time.Second), 2)
	if err != nil {
		t.Fatal(err)
	}
	// A write to meta that nobody is told of, as by a node that was killed right after it.
	next := *d
	next.ConfVersion++
	c.Kill(0)
	nodetest.Eventually(t, 30*time.Second, func() error { return c.Node(1).PutShardInMeta(deadline(t, 5*time.Second), &next) })
	c.Restart(0)
	nodetest.Eventually(t, 30*time.Second, func() error {
		for _, i := range []int{1, 2} {
			list, err := c.Node(i).Ranges(context.Background())
			if err != nil {
				return err
			}
			for _, x := range list {
				if x.Shard == 2 && x.ConfVersion != next.ConfVersion {
					return fmt.Errorf("node %d knows %v", i+1, x)
				}
			}
		}
		return nil
	})
}
