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
	c.Init(0, 3, 3)
	four := c.Add() // holds no replica of the meta shard, whose changes make a node look
	const id = 3
	knows := func() uint64 {
		list, _ := c.Node(four).Ranges(context.Background())
		for _, x := range list {
			if x.Shard == id {
				return x.ConfVersion
			}
		}
		return 0
	}
	nodetest.Eventually(t, 30*time.Second, func() error {
		if knows() == 0 {
			return errors.New("it does not know the shard yet")
		}
		return nil
	})
	d, err := c.Node(1).ShardInMeta(deadline(t, 10*time.Second), id)
	if err != nil {
		t.Fatal(err)
	}
	// A write to meta that nobody is told of, as by a node that was killed right after it.
	next := *d
	next.ConfVersion++
	c.Kill(0)
	nodetest.Eventually(t, 30*time.Second, func() error { return c.Node(1).PutShardInMeta(deadline(t, 5*time.Second), &next) })
	c.Restart(0)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if v := knows(); v != next.ConfVersion {
			return fmt.Errorf("it knows version %d, meta has %d", v, next.ConfVersion)
		}
		return nil
	})
}

// What is in meta and a node was not told of, because who should have told it is gone for good, it finds by the stamps.
func TestStampTellsOfMissed(t *testing.T) {
	var silent atomic.Bool
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetSyncEvery(cfg, 100*time.Millisecond)
		node.SetFault(cfg, func(step string) error {
			if step == "spread" && silent.Load() {
				return errors.New("no time to tell anybody")
			}
			return nil
		})
	}})
	c.Init(0, 2, 3)
	four := c.Add() // holds no replica, of which it could learn anything
	nodetest.Eventually(t, 30*time.Second, func() error {
		if n := shardsOf(t, c, four); n != 2 {
			return fmt.Errorf("it knows %d shards", n)
		}
		return nil
	})
	silent.Store(true)
	op := startOp(t, c, 1, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{{0x10}, {0x20}}})
	waitOp(t, c, 1, op, 30*time.Second, placement.OpDone)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if n := shardsOf(t, c, four); n != 4 {
			return fmt.Errorf("it knows %d shards, there are 4", n)
		}
		return nil
	})
}
