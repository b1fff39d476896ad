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

// TestFollowersTellOfLeaders: every node that has a replica hears of each new leader, for clients ask any of them.
func TestFollowersTellOfLeaders(t *testing.T) {
	told := map[engine.NodeID]engine.NodeID{}
	c := newCluster(t, Options{Seed: 31, Config: func(cfg *scheduler.Config) {
		self := cfg.Node
		cfg.OnDescriptor = func(ev scheduler.DescriptorEvent) { told[self] = ev.Leader }
	}}, 1)
	for range 3 {
		c.Run(time.Second)
		to := c.Leader(1).ID%3 + 1
		if err := c.Leader(1).Transfer(1, to); err != nil {
			t.Fatal(err)
		}
		c.Run(time.Second)
		if told[1] != to || told[2] != to || told[3] != to {
			t.Fatalf("node %d leads, the nodes were told %v", to, told)
		}
	}
}

// TestIsolatedWhileAsleep: a node is cut off while all shards sleep and nodes say little to each other. The others lead its shards within
// three seconds, and what was written before is there.
func TestIsolatedWhileAsleep(t *testing.T) {
	const shards = 30
	c := newCluster(t, Options{Seed: 13}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if _, err := do(t, c, scheduler.KindWrite, id, putBody(id, 1, "before")); err != nil {
			t.Fatal(err)
		}
	}
	c.Run(10 * time.Second)
	beats := func() (n uint64) {
		for _, node := range c.Nodes {
			n += node.Sched.Metrics().HeartbeatsSent.Load()
		}
		return n
	}
	before := beats()
	c.Run(3 * time.Second)
	if n := beats() - before; n > 6*11 {
		t.Fatalf("%d node heartbeats in 3 s: the nodes are not quiet, the test tests nothing", n)
	}
	c.Isolate(3, true)
	start := c.Now()
	if err := c.Until(3*time.Second, func() bool {
		for id := engine.ShardID(1); id <= shards; id++ {
			if n := c.Leader(id); n == nil || n.ID == 3 {
				return false
			}
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("led by the others after %v", time.Duration(c.Now()-start))
	for id := engine.ShardID(1); id <= shards; id++ {
		if _, err := do(t, c, scheduler.KindWrite, id, putBody(id, 2, "after")); err != nil {
			t.Fatal(err)
		}
	}
}
