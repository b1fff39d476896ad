package simrt

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// desc returns the newest descriptor of a shard that a node has applied.
func (x *reshape) desc(id engine.ShardID) *shard.Descriptor {
	var best *shard.Descriptor
	for _, n := range x.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			if st.Shard == id && st.Descriptor != nil && (best == nil || st.Descriptor.Newer(best)) {
				best = st.Descriptor
			}
		}
	}
	return best
}

// merge orders once.
func (x *reshape) mergeOnce(left, right engine.ShardID) (started bool, err error) {
	n := x.c.Leader(left)
	l, r := x.desc(left), x.desc(right)
	if n == nil || l == nil || r == nil {
		return false, nil
	}
	done, life := false, n.life
	n.Sched.Merge(scheduler.MergeSpec{Left: left, Right: right, LeftVersion: l.Version, LeftConfVersion: l.ConfVersion,
		RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(e error) { err, done = e, true })
	n.pump()
	x.until(20*time.Second, "answer to a merge", func() bool { return done || n.life != life })
	return done, err
}

// merge orders until left covers the keys of right.
func (x *reshape) merge(left, right engine.ShardID) {
	x.t.Helper()
	start := bytes.Clone(x.desc(right).Start)
	var last error
	for range 200 {
		if l := x.desc(left); l != nil && l.Contains(start) {
			return
		}
		if _, err := x.mergeOnce(left, right); err != nil {
			last = err
		}
		x.run(50 * time.Millisecond)
	}
	for _, n := range x.c.Nodes {
		if n.Up {
			for _, st := range n.Statuses() {
				x.t.Logf("node %d: %+v %v", n.ID, st, st.Descriptor)
			}
		}
	}
	x.t.Fatalf("shards %d and %d are not merged: %v; steps %v", left, right, last, x.steps)
}

// splitFirst cuts the parent into n and waits until all have leaders.
func (x *reshape) splitFirst(n int) []engine.ShardID {
	x.t.Helper()
	x.run(300 * time.Millisecond)
	sp := x.spec(x.desc(parentShard), cutKeys(n)...)
	x.mustSplit(parentShard, sp)
	ids := []engine.ShardID{parentShard}
	for i := range sp.Children {
		ids = append(ids, sp.Children[i].Shard)
	}
	x.leaders(ids...)
	x.run(300 * time.Millisecond)
	return ids
}

func (x *reshape) leaders(ids ...engine.ShardID) {
	x.t.Helper()
	x.until(20*time.Second, fmt.Sprintf("leaders of %v", ids), func() bool {
		for _, id := range ids {
			if x.c.Leader(id) == nil {
				return false
			}
		}
		return true
	})
}

func TestMerge(t *testing.T) {
	for lanes := 1; lanes <= 3; lanes += 2 {
		t.Run(fmt.Sprint(lanes, "lanes"), func(t *testing.T) {
			x := newReshape(t, Options{Seed: 600, Lanes: lanes}, 20)
			ids := x.splitFirst(4)
			before := x.desc(parentShard).Version
			if _, err := x.mergeOnce(ids[0], ids[2]); !errors.Is(err, shard.ErrInvalid) {
				t.Errorf("a merge of shards that are no neighbours: %v", err)
			}
			if _, err := x.mergeOnce(ids[1], ids[0]); !errors.Is(err, shard.ErrInvalid) {
				t.Errorf("a merge with the left neighbour: %v", err)
			}
			at := x.c.now
			if ok, err := x.mergeOnce(ids[0], ids[1]); !ok || err != nil {
				t.Fatalf("%v %v", ok, err)
			}
			t.Logf("merged in %v of simulated time", time.Duration(x.c.now-at))
			if d := x.desc(parentShard); d.Version <= before+1 {
				t.Errorf("%v", d)
			}
			x.run(time.Second)
			x.check(3)
			x.merge(ids[2], ids[3])
			x.merge(ids[0], ids[2])
			x.check(1)
			for _, n := range x.c.Nodes {
				x.c.Crash(n.ID)
			}
			x.check(1)
			// And apart again, at the same key.
			x.mustSplit(parentShard, x.spec(x.desc(parentShard), cutKeys(4)...))
			x.check(4)
		})
	}
}

var mergeSteps = []string{"merge: propose", "merge: prepared", "merge: frozen", "merge: decide", "merge: applying", "merge: right cut",
	"merge: checkpoint", "merge: checkpoint written", "merge: right buried", "merge: done"}

// TestMergeCrash kills a node at each labelled step of a merge.
func TestMergeCrash(t *testing.T) {
	for i, step := range mergeSteps {
		for on := 1; on <= 3; on += 2 {
			if on > 1 && (step == "merge: propose" || step == "merge: decide") {
				continue
			}
			t.Run(fmt.Sprintf("%s %d", step, on), func(t *testing.T) {
				seed := uint64(700 + 10*i + on)
				x := newReshape(t, Options{Seed: seed, Lanes: 1 + int(seed/10%2), Crash: roughDisk, Config: smallLogs}, 15)
				ids := x.splitFirst(3)
				x.crashAt, x.crashOn = step, on
				for x.steps["merge: propose"] == 0 {
					_, err := x.mergeOnce(ids[0], ids[1])
					t.Logf("the merge: %v", err)
					x.run(10 * time.Millisecond)
				}
				x.run(2 * time.Second)
				if x.steps[step] < on {
					t.Fatalf("step was met %d times", x.steps[step])
				}
				x.heal()
				x.leaders(ids[0])
				if x.desc(ids[1]) != nil {
					x.merge(ids[0], ids[1])
				}
				x.check(2)
			})
		}
	}
}

// TestMergeAllCrash restarts all nodes at once at a step of a merge.
func TestMergeAllCrash(t *testing.T) {
	for i, step := range mergeSteps[1:] {
		t.Run(step, func(t *testing.T) {
			x := newReshape(t, Options{Seed: uint64(900 + i), Lanes: 1 + i%2, Crash: roughDisk, Config: smallLogs}, 15)
			ids := x.splitFirst(3)
			l, r := x.desc(ids[0]), x.desc(ids[1])
			for x.steps["merge: propose"] == 0 {
				n := x.c.Leader(ids[0])
				n.Sched.Merge(scheduler.MergeSpec{Left: ids[0], Right: ids[1], LeftVersion: l.Version, LeftConfVersion: l.ConfVersion,
					RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(error) {})
				n.pump()
				x.run(time.Millisecond)
			}
			x.until(5*time.Second, step, func() bool { return x.steps[step] > i%2 })
			for _, n := range x.c.Nodes {
				x.c.Crash(n.ID)
			}
			x.heal()
			x.leaders(ids[0])
			x.run(time.Second)
			if x.desc(ids[1]) != nil {
				x.merge(ids[0], ids[1])
			}
			x.check(2)
		})
	}
}

// merging tells whether any replica is in a merge.
func (x *reshape) merging() bool {
	for _, n := range x.c.Nodes {
		for _, st := range n.Statuses() {
			if st.Merge.Role != shard.MergeNone {
				return true
			}
		}
	}
	return false
}

// TestMergeAbort freezes a shard while one replica of it cannot be reached: the merge is given up, and the shard serves again.
func TestMergeAbort(t *testing.T) {
	for seed := uint64(1000); seed < 1004; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			x := newReshape(t, Options{Seed: seed, Lanes: 1 + int(seed%2), Config: smallLogs}, 15)
			ids := x.splitFirst(3)
			n := x.c.Leader(ids[0])
			other := n.ID%3 + 1
			x.c.Isolate(other, true) // it is not known to be dead yet
			if seed%2 == 0 {
				x.crashAt, x.crashOn = "merge: frozen", 2 // and a new leader of L finds the merge begun
			}
			_, err := x.mergeOnce(ids[0], ids[1])
			if err == nil && x.desc(ids[0]).Contains(x.desc(ids[2]).Start) {
				t.Fatalf("merged without a replica")
			}
			t.Logf("the merge: %v", err)
			x.run(3 * time.Second)
			x.heal()
			x.until(20*time.Second, "end of the abort", func() bool { return !x.merging() })
			if x.steps["merge: aborted"] == 0 || x.steps["merge: done"] != 0 {
				t.Errorf("steps %v", x.steps)
			}
			x.check(3)
			x.merge(ids[0], ids[1])
			x.check(2)
		})
	}
}

// TestMergeNeedsSnapshot has R told to freeze when that cannot be committed before the only other voter that is alive has got a snapshot of R: the
// Freeze that is proposed may not keep it from being cut.
func TestMergeNeedsSnapshot(t *testing.T) {
	x := newReshape(t, Options{Seed: 1200, Config: smallLogs}, 15)
	ids := x.splitFirst(3)
	n := x.c.Leader(ids[0])
	if r := x.c.Leader(ids[1]); r != n {
		if err := r.Transfer(ids[1], n.ID); err != nil {
			t.Fatal(err)
		}
		x.until(5*time.Second, "one leader of both", func() bool { return x.c.Leader(ids[1]) == n })
	}
	l, r := x.desc(ids[0]), x.desc(ids[1])
	x.clients = slices.DeleteFunc(x.clients, func(k *counter) bool { return !r.Contains(k.key) }) // L's log stays as it is
	x.run(time.Second)
	lagging, other := n.ID%3+1, (n.ID+1)%3+1
	x.c.Isolate(lagging, true)
	x.run(6 * time.Second) // R's log is purged beyond what it has
	if x.c.Leader(ids[0]) != n || x.c.Leader(ids[1]) != n {
		t.Fatal("a leader has changed: the test tests nothing")
	}
	x.c.Isolate(lagging, false)
	sent := n.Sched.Metrics().SnapshotsSent.Load()
	x.until(5*time.Second, "the node that is back", func() bool { return n.Sched.PeerAlive(lagging) })
	x.c.Crash(other) // it is not known to be dead for a while
	x.until(5*time.Second, "a merge that begins", func() bool {
		if x.steps["merge: propose"] == 0 {
			n.Sched.Merge(scheduler.MergeSpec{Left: ids[0], Right: ids[1], LeftVersion: l.Version, LeftConfVersion: l.ConfVersion,
				RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(error) {})
			n.pump()
		}
		return x.steps["merge: prepared"] > 0
	})
	if n.Sched.Metrics().SnapshotsSent.Load() != sent {
		t.Fatal("the snapshot came before: the test tests nothing")
	}
	x.until(20*time.Second, "the freeze", func() bool { return x.steps["merge: frozen"] > 0 })
	if n.Sched.Metrics().SnapshotsSent.Load() == sent {
		t.Error("no snapshot was sent: the test tests nothing")
	}
	x.heal()
	x.leaders(ids...)
	x.merge(ids[0], ids[1])
	x.check(2)
}

// TestMergeLaggard lets a node miss all that comes after the freeze: it catches up by L's log, or by a snapshot of L that ends R.
func TestMergeLaggard(t *testing.T) {
	for i, away := range []time.Duration{300 * time.Millisecond, 8 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			x := newReshape(t, Options{Seed: uint64(1100 + i), Lanes: 1 + i, Config: smallLogs}, 15)
			ids := x.splitFirst(3)
			n := x.c.Leader(ids[0])
			lagging := n.ID%3 + 1
			l, r := x.desc(ids[0]), x.desc(ids[1])
			n.Sched.Merge(scheduler.MergeSpec{Left: ids[0], Right: ids[1], LeftVersion: l.Version, LeftConfVersion: l.ConfVersion,
				RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(error) {})
			n.pump()
			x.until(5*time.Second, "decision", func() bool { return x.steps["merge: decide"] > 0 })
			x.c.Isolate(lagging, true)
			x.until(5*time.Second, "merge", func() bool { return x.steps["merge: done"] >= 2 })
			x.merge(ids[0], ids[1])
			x.run(away)
			x.c.Isolate(lagging, false)
			x.run(5 * time.Second)
			x.check(2)
		})
	}
}

// TestReshapeChaos splits and merges again and again while nodes crash and links fail.
func TestReshapeChaos(t *testing.T) {
	for seed := uint64(1200); seed < 1202; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { reshapeChaos(t, seed, 25) })
	}
}

func reshapeChaos(t *testing.T, seed uint64, rounds int) {
	x := newReshape(t, Options{Seed: seed, Lanes: 1 + int(seed%3), Drop: 0.01, Dup: 0.01, Crash: roughDisk, Config: smallLogs}, 12)
	for i := range rounds {
		k := key(parentShard, 1+x.rng.IntN(998))
		d, n := x.owner(k)
		switch {
		case n == nil:
		case x.rng.IntN(2) == 0 && !bytes.Equal(d.Start, k):
			n.Sched.Split(d.Shard, x.spec(d, k), func(error) {})
			n.pump()
		case len(d.End) > 0:
			if r, _ := x.owner(d.End); r != nil && bytes.Equal(r.Start, d.End) {
				n.Sched.Merge(scheduler.MergeSpec{Left: d.Shard, Right: r.Shard, LeftVersion: d.Version, LeftConfVersion: d.ConfVersion,
					RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(error) {})
				n.pump()
			}
		}
		x.run(time.Duration(x.rng.IntN(1000)) * time.Millisecond)
		if i%2 == 1 {
			x.c.fault(t, x.rng)
		}
	}
	x.check(0)
	t.Logf("%d shards, steps %v", len(x.c.Nodes[0].Statuses()), x.steps)
}
