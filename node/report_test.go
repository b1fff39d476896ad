package node_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// Reports come late, in any order, or again: what was absorbed meanwhile is dead in meta, and is not put there as if it were alive. One of the
// two right shards was in meta before, in an older version, and one never was.
func TestLateReportsOfTheAbsorbed(t *testing.T) {
	var silent [3]atomic.Bool
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(i int, cfg *node.Config) {
		node.SetFault(cfg, func(step string) error {
			if step == "report" && silent[i].Load() {
				return errors.New("no time to report")
			}
			return nil
		})
	}})
	c.Init(0, 2, 3)
	const left, right, child = 2, 3, 100
	ctx := deadline(t, 60*time.Second)
	lead := func(id engine.ShardID, i int) { // has node i lead
		t.Helper()
		nodetest.Eventually(t, 20*time.Second, func() error {
			if st, err := c.Node(i).Sched().Status(ctx, id); err == nil && st.LeaseValid && st.Leader.Node == c.Node(i).ID() {
				return nil
			}
			for j := range 3 {
				_ = c.Node(j).Sched().Transfer(ctx, id, c.Node(i).ID())
			}
			return fmt.Errorf("shard %d is not led by node %d", id, c.Node(i).ID())
		})
	}
	desc := func(i int, id engine.ShardID) *shard.Descriptor {
		t.Helper()
		st, err := c.Node(i).Sched().Status(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return st.Descriptor
	}
	lead(left, 0)
	lead(right, 1)
	for i := range silent {
		silent[i].Store(true)
	}
	d := desc(1, right)
	sp := &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{{Shard: child, Start: append(slices.Clone(d.Start), 'x')}}}
	for _, r := range d.Replicas {
		sp.Children[0].Replicas = append(sp.Children[0].Replicas, shard.SplitReplica{Node: r.Node, Replica: 1000 + r.Replica})
	}
	try := func(what string, f func(done func(error))) {
		t.Helper()
		nodetest.Eventually(t, 20*time.Second, func() error {
			ch := make(chan error, 1)
			f(func(err error) { ch <- err })
			select {
			case err := <-ch:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	try("split", func(done func(error)) { c.Node(1).Sched().Split(right, sp, done) })
	lead(child, 2)
	for _, id := range []engine.ShardID{right, child} {
		try("merge", func(done func(error)) {
			l, err := c.Node(0).Sched().Status(ctx, left)
			r, rerr := c.Node(0).Sched().Status(ctx, id)
			switch {
			case errors.Is(rerr, shard.ErrShardNotFound) && l.Descriptor.Contains(d.Start):
				done(nil) // it was merged by an attempt whose answer was lost
				return
			case err != nil || rerr != nil:
				done(errors.Join(err, rerr))
				return
			}
			c.Node(0).Sched().Merge(scheduler.MergeSpec{Left: left, Right: id, LeftVersion: l.Descriptor.Version, LeftConfVersion: l.Descriptor.ConfVersion,
				RightVersion: r.Descriptor.Version, RightConfVersion: r.Descriptor.ConfVersion}, done)
		})
	}
	for i := range silent {
		if i > 0 && c.Node(i).Unreported() == 0 {
			t.Errorf("node %d has nothing to report: the test tests nothing", i+1)
		}
		silent[i].Store(false)
		nodetest.Eventually(t, 20*time.Second, func() error {
			if n := c.Node(i).Unreported(); n > 0 {
				return fmt.Errorf("node %d has %d descriptors to report", i+1, n)
			}
			return nil
		})
	}
	for _, id := range []engine.ShardID{right, child} {
		d, err := c.Node(0).ShardInMeta(ctx, id)
		by, derr := c.Node(0).DeadInMeta(ctx, id)
		if err != nil || derr != nil {
			t.Fatal(err, derr)
		}
		if d != nil || by != left {
			t.Errorf("shard %d is in meta as %v, and dead by shard %d", id, d, by)
		}
	}
}

// A replica of a shard that was absorbed asks nobody while it sleeps, and is removed nevertheless, by the comparison with meta.
func TestStampTellsOfAbsorbed(t *testing.T) {
	c := nodetest.Start(t, 4, nodetest.Options{Config: func(_ int, cfg *node.Config) { node.SetSyncEvery(cfg, 100*time.Millisecond) }})
	c.Init(0, 4, 3)
	holds := func(i int, id engine.ShardID) bool {
		_, err := c.Node(i).Sched().Status(deadline(t, 5*time.Second), id)
		if err != nil && !errors.Is(err, shard.ErrShardNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	for left := engine.ShardID(2); left < 5; left++ {
		for i := range 4 {
			if holds(i, left) || !holds(i, left+1) {
				continue
			}
			if err := c.Node(0).BuryInMeta(deadline(t, 10*time.Second), left+1, left); err != nil {
				t.Fatal(err)
			}
			nodetest.Eventually(t, 20*time.Second, func() error {
				if holds(i, left+1) {
					return fmt.Errorf("node %d still holds a replica of shard %d", i+1, left+1)
				}
				return nil
			})
			return
		}
	}
	t.Fatal("no two neighbours are on different nodes")
}
