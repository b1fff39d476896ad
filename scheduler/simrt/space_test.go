package simrt

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// fullDisks takes the space of a node, or of all, when a labelled step is met, and gives it back after a while.
type fullDisks struct {
	step string
	all  bool
	full map[engine.NodeID]bool
	met  int
	seen bool // a node has noticed, and refused writes
}

// fullTime is for how long a disk is full.
const fullTime = 4 * time.Second

func newFullDisks(step string, all bool) *fullDisks {
	return &fullDisks{step: step, all: all, full: map[engine.NodeID]bool{}}
}

// options makes the disks of opt those of f. A full one has space neither for a segment of the log nor for the state.
func (f *fullDisks) options(opt Options) Options {
	opt.SegmentBytes = 64 << 10
	opt.StateFull = func(n *Node) bool { return f.full[n.ID] }
	opt.Disk = func(n *Node, op *vfs.Op) error {
		if f.full[n.ID] && op.Kind == vfs.OpAllocate {
			return unix.ENOSPC
		}
		return nil
	}
	return opt
}

// hook is for scheduler.FaultHook.
func (f *fullDisks) hook(c *Cluster, node engine.NodeID, step string) {
	if step != f.step {
		return
	}
	if f.met++; f.met > 1 {
		return
	}
	for _, n := range c.Nodes {
		if n.ID == node || f.all {
			f.full[n.ID] = true
		}
	}
	c.After(fullTime, func() {
		f.notice(c)
		clear(f.full)
	})
}

// over tells whether the space was gone and is there again.
func (f *fullDisks) over() bool { return f.met > 0 && len(f.full) == 0 }

// wait lets the time go by in which disks are full, and looks at the answers of a leader on one: none of them may be anything but a refusal that
// may be tried again. Where all are full, one must have noticed.
func (f *fullDisks) wait(x *reshape, id engine.ShardID) {
	x.t.Helper()
	for !f.over() {
		f.look(x.t, x.c, id)
		x.run(100 * time.Millisecond)
	}
	if f.all && !f.seen {
		x.t.Error("nobody has noticed that the disks were full")
	}
}

func (f *fullDisks) notice(c *Cluster) {
	for _, n := range c.Nodes {
		f.seen = f.seen || n.Up && f.full[n.ID] && n.Sched.DiskFull()
	}
}

func (f *fullDisks) look(t *testing.T, c *Cluster, id engine.ShardID) {
	f.notice(c)
	n := c.Leader(id)
	if n == nil || !f.full[n.ID] {
		return
	}
	refused := n.Sched.DiskFull()
	n.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: id, Body: putBody(id, 5000, "x"), Done: func(req *scheduler.Request) {
		if req.Err != nil && !errors.Is(req.Err, shard.ErrUnavailable) && !errors.Is(req.Err, shard.ErrNotLeader) && !errors.Is(req.Err, shard.ErrAmbiguous) &&
			!errors.Is(req.Err, shard.ErrShardMoved) && !errors.Is(req.Err, shard.ErrOverloaded) || req.Err == nil && refused {
			t.Errorf("a write to a full disk: %v", req.Err)
		}
	}})
}

// fullRun runs do for each of the steps, with one full disk and all full by turns.
func fullRun(t *testing.T, seed uint64, steps []string, do func(t *testing.T, seed uint64, f *fullDisks)) {
	for i, step := range steps {
		all := i%2 == 0
		t.Run(fmt.Sprintf("%s all=%v", step, all), func(t *testing.T) {
			do(t, seed+uint64(i), newFullDisks(step, all))
		})
	}
}

func newFullReshape(t *testing.T, seed uint64, f *fullDisks) *reshape {
	x := newReshape(t, f.options(Options{Seed: seed, Lanes: 1 + int(seed%2), Config: smallLogs}), 15)
	scheduler.FaultHook = func(node engine.NodeID, id engine.ShardID, step string) {
		x.met(node, id, step)
		f.hook(x.c, node, step)
	}
	return x
}

// TestSplitFullDisk: whatever step of a split meets a full disk, the split is done when there is space again, and nothing is lost.
func TestSplitFullDisk(t *testing.T) {
	steps := append([]string{"split: child made", "split: checkpoint"}, splitSteps...)
	fullRun(t, 2000, steps, func(t *testing.T, seed uint64, f *fullDisks) {
		x := newFullReshape(t, seed, f)
		x.run(500 * time.Millisecond)
		d, _ := x.owner(key(parentShard, 0))
		x.mustSplit(parentShard, x.spec(d, cutKeys(5)...))
		x.until(5*time.Second, f.step, func() bool { return f.met > 0 })
		f.wait(x, parentShard)
		x.until(5*time.Second, "end of the split", func() bool { return x.steps["split: settled"] == 3 })
		x.check(5)
	})
}

// TestMergeFullDisk: the same for a merge, which may be given up and tried again.
func TestMergeFullDisk(t *testing.T) {
	fullRun(t, 2100, mergeSteps, func(t *testing.T, seed uint64, f *fullDisks) {
		x := newFullReshape(t, seed, f)
		ids := x.splitFirst(3)
		for f.met == 0 {
			_, err := x.mergeOnce(ids[0], ids[1])
			t.Logf("the merge: %v", err)
			x.run(10 * time.Millisecond)
		}
		f.wait(x, ids[0])
		x.leaders(ids[0])
		x.run(3 * time.Second)
		if x.desc(ids[1]) != nil {
			x.merge(ids[0], ids[1])
		}
		x.check(2)
	})
}

// TestAbortFullDisk: the same for a merge that is given up.
func TestAbortFullDisk(t *testing.T) {
	fullRun(t, 2200, []string{"merge: frozen", "merge: abort", "merge: aborted", "merge: unfrozen", "merge: ended"}, func(t *testing.T, seed uint64, f *fullDisks) {
		x := newFullReshape(t, seed, f)
		ids := x.splitFirst(3)
		x.c.Isolate(x.c.Leader(ids[0]).ID%3+1, true)
		_, err := x.mergeOnce(ids[0], ids[1])
		t.Logf("the merge: %v", err)
		x.until(10*time.Second, f.step, func() bool { return f.met > 0 })
		f.wait(x, ids[0])
		x.heal()
		x.until(20*time.Second, "end of the abort", func() bool { return !x.merging() })
		x.check(3)
		x.merge(ids[0], ids[1])
		x.check(2)
	})
}

// TestMoveFullDisk: the same for a move, and the removal that ends it.
func TestMoveFullDisk(t *testing.T) {
	steps := []string{"membership: propose", "membership: learners", "snapshot: cut", "snapshot: link", "snapshot: linked", "membership: joint",
		"membership: joint left", "remove: tombstone", "remove: tombstone written", "remove: log dropped", "garbage: collect"}
	fullRun(t, 2300, steps, func(t *testing.T, seed uint64, f *fullDisks) {
		var c *Cluster
		scheduler.FaultHook = func(node engine.NodeID, _ engine.ShardID, step string) { f.hook(c, node, step) }
		t.Cleanup(func() { scheduler.FaultHook = nil })
		c = spare(t, f.options(Options{Nodes: 4, Seed: seed, Config: smallLogs}), 1)
		for k := range 20 {
			put(t, c, 1, k, fmt.Sprint(k))
		}
		drive(t, c, 1, 1, 4, 10)
		removed := false
		for !removed {
			answered := false
			c.Node(1).Sched.RemoveReplicaAsync(1, 1, nil, func(err error) { answered, removed = true, err == nil })
			c.Node(1).pump()
			if err := c.Until(10*time.Second, func() bool { return answered }); err != nil {
				t.Fatal(err)
			}
		}
		c.Run(2 * time.Second)
		if f.step != "garbage: collect" && f.met == 0 {
			t.Fatal("the step was not met")
		}
		if f.met > 0 {
			if err := c.Until(2*fullTime, f.over); err != nil {
				t.Fatal(err)
			}
		}
		c.Run(2 * time.Second)
		for k := range 20 {
			if v := get(t, c, 1, k); v != fmt.Sprint(k) {
				t.Errorf("key %d: %q", k, v)
			}
		}
		put(t, c, 1, 1, "again")
		sameContent(t, c, 1, 2, 3, 4)
		if _, ok := c.Node(1).has(1); ok {
			t.Error("the replica is still there")
		}
		if g := c.Node(1).db.Stats().GarbageRanges; g != 0 {
			t.Errorf("%d ranges of garbage are left", g)
		}
		if c.Failed != nil {
			t.Fatal(c.Failed)
		}
	})
}
