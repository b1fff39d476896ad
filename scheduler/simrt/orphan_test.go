package simrt

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// newOrphan kills a node on which a child has voted and taken entries, before the split checkpoint: the child is in its raft log and has no
// record (rule Log7). To replay the parent up to the split will take the node a while.
func newOrphan(t *testing.T, opt Options) (x *reshape, n *Node, child engine.ShardID) {
	opt.Config = smallLogs
	x = newReshape(t, opt, 0)
	d, l := x.owner(key(parentShard, 0))
	n = x.c.Node(l.ID%3 + 1)
	for k := range 100 {
		put(t, x.c, parentShard, k*10, "before")
	}
	x.run(3 * time.Second) // all is in checkpoints
	n.NoCheckpoints = true
	for range 60 { // each of them reads the store again
		body := shard.AppendWrite(nil, &shard.Write{Shard: parentShard, Version: 1, Ops: []shard.Op{{Kind: shard.OpDeleteRange,
			Key: key(parentShard, 1), End: key(parentShard, 9)}}})
		if _, err := do(t, x.c, scheduler.KindWrite, parentShard, body); err != nil {
			t.Fatal(err)
		}
	}
	child = x.next
	x.mustSplit(parentShard, x.spec(d, key(parentShard, 500)))
	x.until(5*time.Second, "leader of the child", func() bool { return x.c.Leader(child) != nil })
	x.run(200 * time.Millisecond)
	x.c.Crash(n.ID)
	n.NoCheckpoints = false
	x.until(5*time.Second, "leaders", func() bool { return x.c.Leader(parentShard) != nil && x.c.Leader(child) != nil })
	return x, n, child
}

// TestSplitOrphan has a snapshot of the parent, from behind the split, arrive while the restarted node is still replaying: the child must
// be born all the same.
func TestSplitOrphan(t *testing.T) {
	for lanes := 1; lanes <= 3; lanes += 2 {
		t.Run(fmt.Sprint(lanes, "lanes"), func(t *testing.T) {
			x, n, _ := newOrphan(t, Options{Seed: 480, Lanes: lanes})
			for k := range 200 { // the parent's log is purged beyond what the node has
				put(t, x.c, parentShard, k, fmt.Sprintf("%080d", k))
				x.run(20 * time.Millisecond)
			}
			x.run(3 * time.Second)
			if err := x.c.Start(n.ID); err != nil {
				t.Fatal(err)
			}
			x.run(3 * time.Second)
			if n.Sched.Metrics().SnapshotsReceived.Load() == 0 {
				t.Error("no snapshot was needed: the test tests nothing")
			}
			x.check(2)
		})
	}
}

// TestSplitOrphanRemoved removes the parent's replica while the restarted node is still replaying it.
func TestSplitOrphanRemoved(t *testing.T) {
	x, n, child := newOrphan(t, Options{Seed: 481})
	if err := x.c.Start(n.ID); err != nil {
		t.Fatal(err)
	}
	done := false
	n.Sched.RemoveReplicaAsync(parentShard, engine.ReplicaID(n.ID), nil, func(err error) {
		if done = true; err != nil {
			t.Error(err)
		}
	})
	n.pump()
	x.until(5*time.Second, "removal", func() bool { return done })
	x.until(5*time.Second, "child", func() bool {
		return slices.ContainsFunc(n.Statuses(), func(st scheduler.ReplicaStatus) bool { return st.Shard == child && st.Descriptor != nil })
	})
}

// TestOrphanRemoved removes a child that is still an orphan: what was answered as removed must not be brought back by its parent's replay, nor by
// another one after a crash.
func TestOrphanRemoved(t *testing.T) {
	x, n, child := newOrphan(t, Options{Seed: 482})
	replica := engine.ReplicaID(0)
	for _, r := range x.desc(child).Replicas {
		if r.Node == n.ID {
			replica = r.Replica
		}
	}
	if err := x.c.Start(n.ID); err != nil {
		t.Fatal(err)
	}
	if _, there := n.has(child); there {
		t.Fatal("the child is there already: the test tests nothing")
	}
	n.remove(t, child, replica)
	gone := func() {
		t.Helper()
		x.until(5*time.Second, "replay of the parent", func() bool {
			st, there := n.has(parentShard)
			return there && st.Descriptor != nil && st.Descriptor.Version > 1
		})
		x.run(time.Second)
		if st, there := n.has(child); there {
			t.Fatalf("the removed replica is back: %+v", st)
		}
	}
	gone()
	x.c.Crash(n.ID)
	if err := x.c.Start(n.ID); err != nil {
		t.Fatal(err)
	}
	gone()
}
