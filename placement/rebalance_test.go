package placement

import "testing"

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
		o.Count(&x.plan, len(x.plan.Moves))
	}
	if o.Moves != 3 || o.Transfers != 6 {
		t.Errorf("%d moves, %d transfers", o.Moves, o.Transfers)
	}
	older := Op{Moves: 1, Transfers: 9}
	if o.KeepCounts(&older); o.Moves != 3 || o.Transfers != 9 {
		t.Errorf("%d moves, %d transfers", o.Moves, o.Transfers)
	}
}
