package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// startHeld starts three nodes whose drivers stop before they order a split or a merge, whose step is recorded by then, until they are let go.
func startHeld(t *testing.T) (c *nodetest.Cluster, letGo func()) {
	var hold atomic.Bool
	hold.Store(true)
	c = nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetFault(cfg, func(step string) error {
			if hold.Load() && (strings.HasSuffix(step, " split") || strings.HasSuffix(step, " merge")) && strings.Count(step, " ") > 1 {
				return errors.New("the driver dies here")
			}
			return nil
		})
	}})
	return c, func() { hold.Store(false) }
}

// leadOf returns what the leader of a shard says of it, and its node.
func leadOf(t *testing.T, c *nodetest.Cluster, id engine.ShardID) (at int, lead scheduler.Lead) {
	t.Helper()
	nodetest.Eventually(t, 10*time.Second, func() error {
		for i := range 3 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			list, err := c.Node(i).Sched().LeadsOf(ctx, id)
			cancel()
			if err == nil && len(list) == 1 {
				at, lead = i, list[0]
				return nil
			}
		}
		return fmt.Errorf("shard %d has no leader", id)
	})
	return at, lead
}

// leadOn waits until a node leads a shard, and returns what it says of it.
func leadOn(t *testing.T, n *node.Node, id engine.ShardID) (lead scheduler.Lead) {
	t.Helper()
	nodetest.Eventually(t, 10*time.Second, func() error {
		list, err := n.Sched().LeadsOf(deadline(t, time.Second), id)
		if err == nil && len(list) == 0 {
			err = errors.New("no leader")
		}
		if err == nil {
			lead = list[0]
		}
		return err
	})
	return lead
}

func waitStep(t *testing.T, c *nodetest.Cluster, id uint64, step string) {
	t.Helper()
	nodetest.Eventually(t, 10*time.Second, func() error {
		o, err := c.Node(1).ReadOp(deadline(t, 2*time.Second), id)
		if err == nil && o.Step != step {
			err = fmt.Errorf("step %q", o.Step)
		}
		return err
	})
}

// split orders a split of the leader itself, as a driver does.
func split(t *testing.T, c *nodetest.Cluster, at int, d *shard.Descriptor, child engine.ShardID, key string) error {
	t.Helper()
	ch := shard.SplitChild{Shard: child, Start: []byte(key)}
	for i, r := range d.Replicas {
		ch.Replicas = append(ch.Replicas, shard.SplitReplica{Node: r.Node, Replica: engine.ReplicaID(9000 + int(child)*10 + i)})
	}
	done := make(chan error, 1)
	c.Node(at).Sched().Split(d.Shard, &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{ch}}, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("no answer to a split")
		return nil
	}
}

// An order may be under way to the leader when its operation is cancelled. What is said to be cancelled does not happen after that: such an order is void.
func TestCancelledOrdersAreVoid(t *testing.T) {
	c, letGo := startHeld(t)
	c.Init(0, 2, 3)
	id := startOp(t, c, 1, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{[]byte("\x10")}})
	waitStep(t, c, id, "split")
	at, before := leadOf(t, c, 2)
	if err := c.Node(0).CancelOp(deadline(t, 5*time.Second), id); err != nil {
		t.Fatal(err)
	}
	letGo()
	waitOp(t, c, 1, id, 20*time.Second, placement.OpCancelled)
	if err := split(t, c, at, before.Descriptor, 900, "\x10"); !errors.Is(err, shard.ErrVoid) && !errors.Is(err, shard.ErrNotLeader) {
		t.Errorf("a split as it was ordered before it was cancelled: %v", err)
	}
	if _, now := leadOf(t, c, 2); now.Descriptor.Version != before.Descriptor.Version || now.Descriptor.ConfVersion <= before.Descriptor.ConfVersion {
		t.Errorf("the shard is at %v, and was at %v", now.Descriptor, before.Descriptor)
	}

	c2, letGo := startHeld(t)
	c2.Init(0, 2, 3)
	id = startOp(t, c2, 1, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3})
	waitStep(t, c2, id, "merge")
	at, left := leadOf(t, c2, 2)
	_, right := leadOf(t, c2, 3)
	if err := c2.Node(0).CancelOp(deadline(t, 5*time.Second), id); err != nil {
		t.Fatal(err)
	}
	letGo()
	waitOp(t, c2, 1, id, 20*time.Second, placement.OpCancelled)
	done := make(chan error, 1)
	c2.Node(at).Sched().Merge(scheduler.MergeSpec{Left: 2, LeftVersion: left.Descriptor.Version, LeftConfVersion: left.Descriptor.ConfVersion,
		Right: 3, RightVersion: right.Descriptor.Version, RightConfVersion: right.Descriptor.ConfVersion}, func(err error) { done <- err })
	if err := <-done; !errors.Is(err, shard.ErrVoid) && !errors.Is(err, shard.ErrNotLeader) {
		t.Errorf("a merge as it was ordered before it was cancelled: %v", err)
	}
}

// An order that waits for space on a full disk is cancelled at once, and does not happen when there is space again. The cancel waited for the space, too.
func TestCancelOnFullDisk(t *testing.T) {
	var full [2]atomic.Bool
	c := nodetest.Start(t, 2, nodetest.Options{Config: func(i int, cfg *node.Config) {
		cfg.OverlayBytesMax = 1 << 20
		node.SetStateFree(cfg, func() (int64, error) {
			if full[i].Load() {
				return 0, nil
			}
			return 1 << 40, nil
		})
	}})
	c.Init(0, 2, 1)
	lead := func(id engine.ShardID) (at int, l scheduler.Lead) {
		nodetest.Eventually(t, 10*time.Second, func() error {
			for i := range 2 {
				if list, err := c.Node(i).Sched().LeadsOf(deadline(t, time.Second), id); err == nil && len(list) == 1 {
					at, l = i, list[0]
					return nil
				}
			}
			return fmt.Errorf("shard %d has no leader", id)
		})
		return at, l
	}
	meta, _ := lead(shard.MetaShardID)
	id := engine.ShardID(2)
	at, before := lead(id)
	if at == meta {
		id = 3
		at, before = lead(id)
	}
	if at == meta {
		t.Fatal("the leader of the meta shard has all shards")
	}
	full[at].Store(true)
	key := append(bytes.Clone(before.Descriptor.Start), "\x00m"...)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if c.Node(at).Sched().DiskFull() {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := c.Node(at).Client().Put(ctx, key, make([]byte, 512<<10))
		return fmt.Errorf("the disk is not full yet; a write: %w", err)
	})
	op := startOp(t, c, meta, placement.Op{Kind: placement.OpSplit, Shard: id, Keys: [][]byte{key}})
	nodetest.Eventually(t, 10*time.Second, func() error {
		o, err := c.Node(meta).ReadOp(deadline(t, 2*time.Second), op)
		if err == nil && o.Step != "split" {
			err = fmt.Errorf("step %q", o.Step)
		}
		return err
	})
	nodetest.Eventually(t, 10*time.Second, func() error { // the driver's order waits, or this one, for there is only one at a time
		done := make(chan error, 1)
		d := before.Descriptor
		c.Node(at).Sched().Split(id, &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{{Shard: 900, Start: key,
			Replicas: []shard.SplitReplica{{Node: d.Replicas[0].Node, Replica: 9000}}}}}, func(err error) { done <- err })
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "another split or merge") {
				t.Fatalf("a split on a full disk: %v", err)
			}
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("no order waited")
		}
	})
	if err := c.Node(meta).CancelOp(deadline(t, 5*time.Second), op); err != nil {
		t.Fatal(err)
	}
	waitOp(t, c, meta, op, 20*time.Second, placement.OpCancelled)
	if !c.Node(at).Sched().DiskFull() {
		t.Error("there is space again: this was no full disk")
	}
	full[at].Store(false)
	nodetest.Eventually(t, 20*time.Second, func() error {
		_, err := c.Node(at).Client().Put(deadline(t, time.Second), key, []byte("small"))
		return err
	})
	if _, now := lead(id); now.Descriptor.Version != before.Descriptor.Version || now.Descriptor.ConfVersion <= before.Descriptor.ConfVersion {
		t.Errorf("the shard is at %v, and was at %v", now.Descriptor, before.Descriptor)
	}
	next := startOp(t, c, meta, placement.Op{Kind: placement.OpSplit, Shard: id, Keys: [][]byte{key}})
	waitOp(t, c, meta, next, 20*time.Second, placement.OpDone)
}

// A driver that was deposed before the step was recorded does not take that back, or a cancel would not make void what the next driver has ordered.
func TestLateRecordKeepsStep(t *testing.T) {
	c, letGo := startHeld(t)
	c.Init(0, 2, 3)
	id := startOp(t, c, 1, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3})
	waitStep(t, c, id, "merge")
	o, err := c.Node(0).ReadOp(deadline(t, 5*time.Second), id)
	if err != nil {
		t.Fatal(err)
	}
	late := *o
	late.Step, late.Reason = "", "it waits"
	if err := c.Node(0).RecordStep(deadline(t, 5*time.Second), late); err != nil {
		t.Fatal(err)
	}
	if o, err = c.Node(0).ReadOp(deadline(t, 5*time.Second), id); err != nil || o.Step != "merge" {
		t.Errorf("the step is %q, %v", o.Step, err)
	}
	letGo()
	waitOp(t, c, 1, id, 20*time.Second, placement.OpDone)
}

// A split whose key another split has taken is not done, whoever waits for its children; it fails, or is cancelled, and lets go of the shard.
func TestSplitOfLostKey(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		c, letGo := startHeld(t)
		c.Init(0, 1, 3)
		id := startOp(t, c, 1, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{[]byte("m")}})
		waitStep(t, c, id, "split")
		at, lead := leadOf(t, c, 2)
		if err := split(t, c, at, lead.Descriptor, 900, "g"); err != nil {
			t.Fatal(err)
		}
		if cancelled {
			if err := c.Node(0).CancelOp(deadline(t, 5*time.Second), id); err != nil {
				t.Fatal(err)
			}
		}
		letGo()
		want := placement.OpFailed
		if cancelled {
			want = placement.OpCancelled
		}
		o := waitOp(t, c, 1, id, 20*time.Second, want)
		if !cancelled && !strings.Contains(o.Error, "shard 900") {
			t.Errorf("error %q", o.Error)
		}
		next := startOp(t, c, 1, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{[]byte("c")}})
		waitOp(t, c, 1, next, 20*time.Second, placement.OpDone)
	}
}

// A membership change that comes late, after its move was cancelled, is void. It once made a replica a member that no operation knew of any more.
func TestLateChangeOfCancelledMove(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	two := c.Add()
	n := c.Node(0)
	descriptor := func() *shard.Descriptor {
		st, err := n.Sched().Status(deadline(t, 10*time.Second), 2)
		if err != nil || st.Descriptor == nil {
			t.Fatal(st, err)
		}
		return st.Descriptor
	}
	was := descriptor()
	o := placement.Op{Kind: placement.OpMove, Shard: 2, To: c.Node(two).ID(), Cancel: true}
	if err := n.RecordOp(deadline(t, 10*time.Second), &o); err != nil {
		t.Fatal(err)
	}
	waitOp(t, c, 0, o.ID, 20*time.Second, placement.OpCancelled)
	late := scheduler.MembershipChange{Shard: 2, Version: was.Version, ConfVersion: was.ConfVersion,
		Replicas: append(append([]shard.ReplicaDesc(nil), was.Replicas...), shard.ReplicaDesc{Replica: o.Replica, Node: o.To, Role: shard.RoleLearner})}
	var moved *shard.MovedError
	if err := n.Sched().ChangeMembership(deadline(t, 10*time.Second), late); !errors.As(err, &moved) {
		t.Errorf("the late change: %v", err)
	}
	if now := descriptor(); len(now.Replicas) != 1 {
		t.Errorf("it happened: %v", now)
	}
}

// So is one of a merge that moves the right shard's replicas first.
func TestLateChangeOfCancelledMerge(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 2, 1)
	two := c.Add()
	n := c.Node(0)
	was := leadOn(t, n, 3)
	o := placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3, Cancel: true}
	o.Relocate(placement.Relocation{From: n.ID(), FromReplica: was.Descriptor.Replicas[0].Replica, To: c.Node(two).ID(), Replica: 7001})
	if err := n.RecordOp(deadline(t, 10*time.Second), &o); err != nil {
		t.Fatal(err)
	}
	waitOp(t, c, 0, o.ID, 20*time.Second, placement.OpCancelled)
	late := scheduler.MembershipChange{Shard: 3, Version: was.Descriptor.Version, ConfVersion: was.Descriptor.ConfVersion,
		Replicas: append(append([]shard.ReplicaDesc(nil), was.Descriptor.Replicas...), shard.ReplicaDesc{Replica: 7001, Node: o.To, Role: shard.RoleLearner})}
	var moved *shard.MovedError
	if err := n.Sched().ChangeMembership(deadline(t, 10*time.Second), late); !errors.As(err, &moved) {
		t.Errorf("the late change: %v", err)
	}
}

// A split whose last child has been merged away by the time that somebody looks has happened all the same.
func TestSplitOfMergedChild(t *testing.T) {
	c, letGo := startHeld(t)
	c.Init(0, 1, 3)
	id := startOp(t, c, 1, placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: [][]byte{[]byte("m")}})
	waitStep(t, c, id, "split")
	o, err := c.Node(1).ReadOp(deadline(t, 5*time.Second), id)
	if err != nil {
		t.Fatal(err)
	}
	at, lead := leadOf(t, c, 2)
	if err := split(t, c, at, lead.Descriptor, o.Other, "m"); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, 20*time.Second, func() error {
		_, err := c.Node(1).ShardInMeta(deadline(t, 5*time.Second), o.Other)
		return err
	})
	if err := c.Node(0).BuryInMeta(deadline(t, 10*time.Second), o.Other, 2); err != nil {
		t.Fatal(err)
	}
	letGo()
	waitOp(t, c, 1, id, 20*time.Second, placement.OpDone)
}
