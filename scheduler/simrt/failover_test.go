package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
)

// TestFailoverUnderLoad kills a node while all shards take writes, and measures how long the last of its shards is without a leader.
func TestFailoverUnderLoad(t *testing.T) {
	const shards = 60
	c := newCluster(t, Options{Seed: 12}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		var next func()
		body := putBody(id, 1, "load")
		next = func() {
			n := c.Leader(id)
			if n == nil {
				c.after(10*time.Millisecond, next)
				return
			}
			life := n.life
			done := false
			n.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: id, Body: body, Done: func(*scheduler.Request) {
				done = true
				c.after(c.jitter(2*time.Millisecond), next)
			}})
			c.after(500*time.Millisecond, func() {
				if !done && n.life != life {
					next()
				}
			})
		}
		c.after(c.jitter(2*time.Millisecond), next)
	}
	c.Run(500 * time.Millisecond)
	c.Crash(3)
	start := c.Now()
	for bucket := range 60 {
		missing := 0
		for id := engine.ShardID(1); id <= shards; id++ {
			if c.Leader(id) == nil {
				missing++
			}
		}
		t.Logf("%4d ms: %d without a leader", bucket*100, missing)
		if missing == 0 && bucket > 0 {
			break
		}
		c.Run(100 * time.Millisecond)
	}
	if d := time.Duration(c.Now() - start); d > 3*time.Second {
		t.Fatalf("the last shard had a leader after %v", d)
	}
}
