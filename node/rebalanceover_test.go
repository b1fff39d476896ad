package node

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
)

// A rebalance that is asked for right after a split is not over while nobody has told of the children's leaders; but it does not wait for ever, for a
// shard may have lost its quorum.
func TestRebalanceAwaitsLeaders(t *testing.T) {
	cfg := Config{ElectionTimeout: 10 * time.Second} // that long it waits at least
	d := &driver{c: &core{n: &Node{cfg: cfg}}}
	long := max(d.grace(), 3*cfg.loadsEvery())
	for name, x := range map[string]struct {
		age    time.Duration // of the rebalance
		leader engine.NodeID // of the second of two shards
		plan   placement.Plan
		over   bool
	}{
		"all have leaders":                {0, 2, placement.Plan{}, true},
		"nobody has told of one":          {0, 0, placement.Plan{}, false},
		"soon after":                      {long / 2, 0, placement.Plan{}, false},
		"it has lost its quorum":          {2 * long, 0, placement.Plan{}, true},
		"moves are left":                  {2 * long, 2, placement.Plan{Moves: make([]placement.Proposal, 1)}, false},
		"moves are left, and one unknown": {0, 0, placement.Plan{Moves: make([]placement.Proposal, 1)}, false},
	} {
		o := &placement.Op{Kind: placement.OpRebalance, StartMS: time.Now().Add(-x.age).UnixMilli()}
		snap := &placement.Snapshot{Shards: []placement.BalanceShard{{ID: 2, Leader: 1}, {ID: 3, Leader: x.leader}}}
		if got := d.over(o, &x.plan, snap); got != x.over {
			t.Errorf("%s: over %v, want %v", name, got, x.over)
		}
	}
}
