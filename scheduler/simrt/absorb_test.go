package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// order begins a merge and does not wait for it.
func (x *reshape) order(left, right engine.ShardID) {
	n, l, r := x.c.Leader(left), x.desc(left), x.desc(right)
	n.Sched.Merge(scheduler.MergeSpec{Left: left, Right: right, LeftVersion: l.Version, LeftConfVersion: l.ConfVersion,
		RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(error) {})
	n.pump()
}

// covers tells whether the node's replica of a shard has absorbed what begins at key.
func (n *Node) covers(id engine.ShardID, key []byte) bool {
	st, ok := n.has(id)
	return ok && st.Descriptor != nil && st.Descriptor.Contains(key)
}

// TestMergeRightMissing has a Merge come to a node on which the right shard's replica is gone: only a snapshot of the left one helps. Nobody
// writes to the shard, so that its leader sends nothing by itself; or the replica that needs the snapshot leads (rule Merge3).
func TestMergeRightMissing(t *testing.T) {
	for i, name := range []string{"of a follower", "of the leader"} {
		t.Run(name, func(t *testing.T) {
			x := newReshape(t, Options{Seed: uint64(1300 + i), Config: smallLogs}, 0)
			ids := x.splitFirst(2)
			start := x.desc(ids[1]).Start
			lagging := x.c.Node(x.c.Leader(ids[0]).ID%3 + 1)
			x.order(ids[0], ids[1])
			x.until(5*time.Second, "decision", func() bool { return x.steps["merge: decide"] > 0 })
			x.c.Isolate(lagging.ID, true)
			x.until(5*time.Second, "merge", func() bool { return x.steps["merge: done"] >= 2 })
			st, _ := lagging.has(ids[1])
			x.c.Crash(lagging.ID)
			key := store.Key{Shard: ids[1], Replica: st.Replica}
			if err := lagging.db.Write([]state.Change{{Record: shard.TombstoneRecord(key, st.Applied)}}, 0); err != nil {
				t.Fatal(err)
			}
			x.heal()
			x.until(5*time.Second, "the Merge", func() bool { st, ok := lagging.has(ids[0]); return ok && st.Last == x.lastOf(ids[0]) })
			if lagging.covers(ids[0], start) {
				t.Fatal("it was merged without its right half: the test tests nothing")
			}
			if i == 1 {
				x.run(1100 * time.Millisecond) // of its first second it has promised not to campaign
				if err := x.c.Leader(ids[0]).Transfer(ids[0], lagging.ID); err != nil {
					t.Fatal(err)
				}
				x.until(500*time.Millisecond, "the new leader", func() bool { st, _ := lagging.has(ids[0]); return st.Role == engine.RoleLeader })
			}
			x.until(10*time.Second, "snapshot", func() bool { return lagging.covers(ids[0], start) })
			x.check(1)
			x.put(ids[0], 1, "it serves")
		})
	}
}

// put writes a key of a shard that was reshaped.
func (x *reshape) put(id engine.ShardID, k int, value string) {
	x.t.Helper()
	body := shard.AppendWrite(nil, &shard.Write{Shard: id, Version: x.desc(id).Version,
		Ops: []shard.Op{{Kind: shard.OpPut, Key: key(parentShard, k), Value: []byte(value)}}})
	if _, err := do(x.t, x.c, scheduler.KindWrite, id, body); err != nil {
		x.t.Fatal(err)
	}
}

// lastOf is the end of the log of whoever leads a shard.
func (x *reshape) lastOf(id engine.ShardID) (last engine.LogID) {
	for _, n := range x.c.Nodes {
		if st, ok := n.has(id); ok && n.Up && last.Less(st.Last) {
			last = st.Last
		}
	}
	return last
}
