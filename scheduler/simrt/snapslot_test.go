package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
)

// TestSnapshotSlotIsShared: two followers of a shard need a snapshot, and its leader's node sends one at a time. The first one never takes it,
// because its node is down, or has no space: that must not keep the second one from getting it.
func TestSnapshotSlotIsShared(t *testing.T) {
	for _, down := range []bool{true, false} {
		name := "has no space"
		if down {
			name = "is down"
		}
		t.Run(name, func(t *testing.T) {
			full := false
			c := newCluster(t, Options{Seed: 30, Nodes: 5, StateFull: func(n *Node) bool { return full && n.ID == 1 }, Config: func(cfg *scheduler.Config) {
				smallLogs(cfg)
				cfg.SnapshotsMax = 1
			}}, 4)
			const id = engine.ShardID(4) // node 5 leads it at first
			never, lagging := c.Node(1), c.Node(2)
			c.Isolate(never.ID, true)
			c.Isolate(lagging.ID, true)
			for k := range 200 {
				put(t, c, id, k, "a value")
				c.Run(20 * time.Millisecond)
			}
			if down {
				c.Crash(never.ID)
			} else {
				full = true
				c.Isolate(never.ID, false)
			}
			c.Run(time.Second)
			c.Isolate(lagging.ID, false)
			l := c.Leader(id)
			before := l.Sched.Metrics().Checkpoints.Load()
			if err := c.Until(30*time.Second, func() bool {
				_, st := c.lead(id)
				for _, o := range lagging.Statuses() {
					if st != nil && o.Shard == id && o.Applied == st.Last {
						return true
					}
				}
				return false
			}); err != nil {
				t.Fatalf("the second follower was not brought up to date: %v", err)
			}
			if l.Sched.Metrics().SnapshotsSent.Load() == 0 {
				t.Error("no snapshot was sent: the test tests nothing")
			}
			c.Run(10 * time.Second)
			if n := l.Sched.Metrics().Checkpoints.Load() - before; n > 40 {
				t.Errorf("%d checkpoints of shards that nobody writes: each attempt costs one", n)
			}
		})
	}
}
