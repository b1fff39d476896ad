package node_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// Meta may have buried the right shard of a merge before its operation is recorded as over, and a node that starts then hears nothing of that shard any more. The merge
// has happened all the same: it is done, whether somebody cancels it or not. It once ran for ever, with the locks of both, or was said to be cancelled.
func TestMergeAfterRestart(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		var orders atomic.Int64
		var letGo atomic.Bool
		c := nodetest.Start(t, 1, nodetest.Options{Config: func(_ int, cfg *node.Config) {
			node.SetFault(cfg, func(step string) error {
				if step == "op merge: merge" && orders.Add(1) > 1 && !letGo.Load() {
					return errors.New("the driver dies here")
				}
				return nil
			})
		}})
		c.Init(0, 2, 1)
		id := startOp(t, c, 0, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3})
		nodetest.Eventually(t, 20*time.Second, func() error {
			absorber, err := c.Node(0).DeadInMeta(deadline(t, 2*time.Second), 3)
			if err == nil && absorber != 2 {
				err = fmt.Errorf("absorbed by shard %d", absorber)
			}
			return err
		})
		c.Kill(0)
		c.Restart(0)
		nodetest.Eventually(t, 20*time.Second, func() error { _, err := c.Node(0).ReadOp(deadline(t, 2*time.Second), id); return err })
		if cancelled {
			if err := c.Node(0).CancelOp(deadline(t, 10*time.Second), id); err != nil {
				t.Fatal(err)
			}
		}
		letGo.Store(true)
		waitOp(t, c, 0, id, 20*time.Second, placement.OpDone)
	}
}

// A shard that was merged away is forgotten by every node, once meta has buried it. Each was kept for as long as the process lived, and clusters split and merge for
// years. A report of it that comes late does not bring it back.
func TestForgetsTheMerged(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 3, 3)
	ctx := deadline(t, 60*time.Second)
	at, right := leadOf(t, c, 3)
	_, left := leadOf(t, c, 2)
	for i := range 3 {
		if _, err := c.Node(i).StatusOf(ctx); err != nil { // so that the loads have been told
			t.Fatal(err)
		}
		if where := c.Node(i).Remembers(3); len(where) < 2 {
			t.Fatalf("node %d remembers shard 3 in %v: this test looks at the wrong things", i, where)
		}
	}
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3}), 20*time.Second, placement.OpDone)
	forgotten := func() {
		t.Helper()
		for i := range 3 {
			nodetest.Eventually(t, 20*time.Second, func() error { // a node may not have applied the merge yet
				if err := c.Node(i).Compare(ctx); err != nil {
					return err
				}
				if where := c.Node(i).Remembers(3); len(where) > 0 {
					return fmt.Errorf("node %d remembers shard 3 in %v", i, where)
				}
				for _, id := range []engine.ShardID{2, 4} {
					if c.Node(i).Remembers(id) == nil {
						return fmt.Errorf("node %d has forgotten shard %d", i, id)
					}
				}
				return nil
			})
		}
	}
	forgotten()
	for i := range 3 {
		if err := c.Node(i).Learn(ctx, right.Descriptor, c.Node(at).ID()); err != nil {
			t.Fatal(err)
		}
		list, err := c.Node(i).Ranges(ctx)
		if err != nil || len(list) != 2 || list[0].Shard != 2 || list[0].Version <= left.Descriptor.Version {
			t.Errorf("node %d shows %v, %v", i, list, err)
		}
		err = c.Node(i).StartOp(ctx, &placement.Op{Kind: placement.OpMove, Shard: 3, From: 1, To: 2})
		if !errors.Is(err, shard.ErrNotFound) || !strings.Contains(err.Error(), "was merged into shard 2") {
			t.Errorf("a move of shard 3: %v", err)
		}
	}
	forgotten()
}

// A learner of the left shard that no operation wants, as a driver that came too late may add it, is removed by a merge. The merge once brought a voter of the right shard to its
// node, and then failed, as the replicas of the two differed.
func TestMergeWithStrayLearner(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: time.Second}) // long enough for the merge to come before the balancer
	c.Init(0, 2, 3)
	four := c.Add()
	at, left := leadOf(t, c, 2)
	d := left.Descriptor
	err := c.Node(at).Sched().ChangeMembership(deadline(t, 5*time.Second), scheduler.MembershipChange{Shard: 2, Version: d.Version, ConfVersion: d.ConfVersion,
		Replicas: append(slices.Clone(d.Replicas), shard.ReplicaDesc{Replica: 999, Node: c.Node(four).ID(), Role: shard.RoleLearner})})
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, 10*time.Second, func() error { // it knows what it is, and goes as soon as it hears of its removal
		st, err := c.Node(four).Sched().Status(deadline(t, time.Second), 2)
		if err == nil && (st.Descriptor == nil || len(st.Descriptor.Replicas) != 4) {
			err = fmt.Errorf("the learner knows %v", st.Descriptor)
		}
		return err
	})
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3}), 20*time.Second, placement.OpDone)
	_, l := leadOf(t, c, 2)
	if voters, learners := placement.WithoutLearners(l.Descriptor); len(voters) != 3 || learners || len(l.Descriptor.End) != 0 {
		t.Errorf("merged to %v", l.Descriptor)
	}
	nodetest.Eventually(t, 30*time.Second, func() error {
		if replicas, _ := count(t, c, four); replicas[four] != 0 {
			return fmt.Errorf("the node of the learner holds %d replicas", replicas[four])
		}
		return nil
	})
}

// What was merged is split off again at the key where it began: the shard that was there is not missed.
func TestSplitWhereMerged(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 2, 1)
	right := leadOn(t, c.Node(0), 3)
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3}), 20*time.Second, placement.OpDone)
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{right.Descriptor.Start}}), 20*time.Second, placement.OpDone)
	nodetest.Eventually(t, 20*time.Second, func() error {
		st, err := c.Node(0).StatusOf(deadline(t, 3*time.Second))
		if err == nil && (st.Shards.Total != 2 || len(st.Problems) > 0) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	})
}

// An operation that is recorded when its shard was just absorbed ends, and may be cancelled. It ran for ever, and kept a drain or a rebalance that it was part of from ending.
func TestOperationOnDeadShard(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 2, 1)
	two := c.Add()
	waitOp(t, c, 0, startOp(t, c, 0, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3}), 20*time.Second, placement.OpDone)
	for _, o := range []placement.Op{
		{Kind: placement.OpMove, Shard: 3, From: c.Node(0).ID(), To: c.Node(two).ID(), Why: "leave"},
		{Kind: placement.OpMove, Shard: 3, From: c.Node(0).ID(), To: c.Node(two).ID(), Cancel: true},
		{Kind: placement.OpTransfer, Shard: 3, To: c.Node(two).ID()},
		{Kind: placement.OpSplit, Shard: 3, Keys: [][]byte{{0xf0}}},
		{Kind: placement.OpMerge, Shard: 3, Other: 9},
	} {
		if err := c.Node(0).RecordOp(deadline(t, 10*time.Second), &o); err != nil {
			t.Fatal(err)
		}
		want := placement.OpFailed
		if o.Cancel {
			want = placement.OpCancelled
		}
		over := waitOp(t, c, 0, o.ID, 10*time.Second, want)
		if !o.Cancel && !strings.Contains(over.Error, "merged into shard 2") {
			t.Errorf("%s: %q", over, over.Error)
		}
	}
}
