package simrt

import (
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
)

// TestHotShardStarvesNobody has sixty clients write 60 KiB each to one shard without a pause, and writes to the others of the same lane, one after
// the other (FAULTS R19). Time here is turns, flushes and messages, not what the processor takes: a write to a quiet shard waits for those that
// are under way, not for a turn behind all that waits at the hot one.
func TestHotShardStarvesNobody(t *testing.T) {
	const shards, hot, waiting = 10, engine.ShardID(1), 60
	c := newCluster(t, Options{Seed: 41, SegmentBytes: 32 << 20}, shards)
	for id := engine.ShardID(2); id <= shards; id++ { // all leaders in one lane of one node
		if l := c.Leader(id); l.ID != c.Leader(hot).ID {
			if err := l.Transfer(id, c.Leader(hot).ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Run(time.Second)
	n := c.Leader(hot)
	alone := slowestWrite(t, c, shards)
	value := strings.Repeat("v", 60<<10)
	written := 0
	for k := range waiting {
		var again func()
		body := putBody(hot, k, value)
		again = func() {
			n.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: hot, Body: body, Done: func(r *scheduler.Request) {
				if r.Err != nil {
					t.Errorf("the hot shard: %v", r.Err)
					return
				}
				written++
				c.after(c.jitter(2*time.Millisecond), again)
			}})
		}
		again()
	}
	c.Run(20 * time.Millisecond)
	beside := slowestWrite(t, c, shards)
	t.Logf("the slowest write to a quiet shard took %v alone, %v beside the hot one, which took %d writes", alone, beside, written)
	if written < 20*shards {
		t.Fatalf("the hot shard took %d writes: it was not hot", written)
	}
	if beside > 4*alone {
		t.Errorf("a write to a quiet shard took %v beside a hot one, %v alone", beside, alone)
	}
}

// slowestWrite writes to each shard but the first, one after the other, and returns how long the slowest write took.
func slowestWrite(t *testing.T, c *Cluster, shards engine.ShardID) (slowest time.Duration) {
	for round := range 2 {
		for id := engine.ShardID(2); id <= shards; id++ {
			start := c.Now()
			put(t, c, id, round, "quiet")
			slowest = max(slowest, time.Duration(c.Now()-start))
		}
	}
	return slowest
}
