package placement

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

// With moves left it goes on; with leaderships left until it has had as many handed over as there are shards.
func TestRebalanceOver(t *testing.T) {
	move, lead := []Proposal{{Shard: 1}}, []Proposal{{Shard: 2, Leader: true}, {Shard: 3, Leader: true}}
	var o Op
	for i, x := range []struct {
		plan Plan
		over bool
	}{
		{Plan{Moves: move}, false}, {Plan{Moves: move, Transfers: lead}, false}, {Plan{}, true},
		{Plan{Transfers: lead}, false}, {Plan{Transfers: lead}, false}, {Plan{Transfers: lead}, true}, {Plan{Moves: move, Transfers: lead}, false},
	} {
		if got := o.RebalanceOver(&x.plan, 4); got != x.over {
			t.Errorf("plan %d: over %v, want %v, after %+v", i, got, x.over, o)
		}
		o.Count(&x.plan, len(x.plan.Moves), 0)
	}
	if o.Moves != 3 || o.Transfers != 6 {
		t.Errorf("%d moves, %d transfers", o.Moves, o.Transfers)
	}
	older := Op{Moves: 1, Transfers: 9}
	if o.KeepCounts(&older); o.Moves != 3 || o.Transfers != 9 {
		t.Errorf("%d moves, %d transfers", o.Moves, o.Transfers)
	}
}

// A rebalance that has ordered four moves of 1,000 bytes each, one of which is half done, and expects two more of 500 bytes. What is done never becomes less,
// as when a driver takes over and does not know yet how far the moves are.
func TestRebalanceProgress(t *testing.T) {
	move := Proposal{Shard: 1, Bytes: 1000}
	var o Op
	o.Count(&Plan{Moves: []Proposal{move, move, move, move}}, 4, 4000)
	want := func(done, total, bytesDone, bytesTotal uint64) {
		t.Helper()
		if o.Done != done || o.Total != total || o.BytesDone != bytesDone || o.BytesTotal != bytesTotal {
			t.Errorf("%d of %d moves, %d of %d bytes", o.Done, o.Total, o.BytesDone, o.BytesTotal)
		}
	}
	o.Progress(4, 4000, 2, 1000)
	want(0, 6, 0, 5000)
	o.Progress(1, 500, 2, 1000)
	want(3, 6, 3500, 5000)
	o.Progress(4, 4000, 2, 1000)
	want(3, 6, 3500, 5000)
	again, err := DecodeOp(o.Append(nil))
	if err != nil || again.OrderedBytes != 4000 {
		t.Errorf("%+v, %v", again, err)
	}
	o.Progress(0, 0, 0, 0)
	want(4, 4, 4000, 4000)
}

// What a plan leaves to later ones is counted in moves and in bytes.
func TestPlanLeft(t *testing.T) {
	snap := &Snapshot{Replicas: 1, Nodes: []BalanceNode{{ID: 1, Takes: true, Lives: true}, {ID: 2, Takes: true, Lives: true}}}
	for i := range 40 {
		snap.Shards = append(snap.Shards, BalanceShard{ID: engine.ShardID(i + 2), Nodes: []engine.NodeID{1}, Leader: 1, Bytes: 100})
	}
	plan := MakePlan(snap, By{Replicas: true}, Limits{MovesMax: 5})
	if len(plan.Moves) != 5 || plan.Bytes != 500 || plan.Left != 15 || plan.LeftBytes != 1500 {
		t.Errorf("%d moves of %d bytes, left %d of %d bytes", len(plan.Moves), plan.Bytes, plan.Left, plan.LeftBytes)
	}
	if plan = MakePlan(snap, By{Replicas: true}, Limits{}); len(plan.Moves) != 20 || plan.Left != 0 || plan.LeftBytes != 0 {
		t.Errorf("without limits: %d moves, left %d of %d bytes", len(plan.Moves), plan.Left, plan.LeftBytes)
	}
}
