package simrt

import (
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
)

// TestSlowStateOfFollower: a follower whose state is slower than its leader's clients holds neither more in memory, nor more log, than it
// has room for, while the shards go on without it; and comes back when its state does (FAULTS D16).
func TestSlowStateOfFollower(t *testing.T) {
	const shards, budget, logMax = 4, 256 << 10, 128 << 10
	c := newCluster(t, Options{Seed: 21, SegmentBytes: 256 << 10, Config: func(cfg *scheduler.Config) {
		cfg.CheckpointBytes = budget
		cfg.CheckpointShard = 64 << 10
		cfg.ShardLogBytesMax = logMax
		cfg.ShardLogEntriesKeep = 4
	}}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if c.Leader(id).ID == 3 {
			if err := c.Leader(id).Transfer(id, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Run(time.Second)
	slow := c.Node(3)
	slow.NoCheckpoints = true
	value := strings.Repeat("v", 8<<10)
	for k := range 150 {
		for id := engine.ShardID(1); id <= shards; id++ {
			put(t, c, id, k, value)
		}
		c.Run(20 * time.Millisecond)
		dirty := 0
		for _, st := range slow.Statuses() {
			dirty += st.Dirty
			if st.LogBytes > 5*logMax {
				t.Fatalf("after %d writes per shard the log of shard %d has %d bytes", k, st.Shard, st.LogBytes)
			}
		}
		if dirty > 6*budget {
			t.Fatalf("after %d writes per shard the overlays hold %d bytes, the budget is %d", k, dirty, budget)
		}
	}
	if slow.Sched.Metrics().AppliesHeld.Load() == 0 {
		t.Fatal("nothing was held: the test tests nothing")
	}
	slow.NoCheckpoints = false
	c.Run(10 * time.Second)
	checkReplicas(t, c, shards)
}
