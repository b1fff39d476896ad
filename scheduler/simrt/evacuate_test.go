package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// TestEvacuateBesideFullDisk: a node that is drained hands its leaderships to voters that can take them, and not to one whose disk is full, which never has all of the
// log. It once ordered that again and again, and its clients were refused meanwhile.
func TestEvacuateBesideFullDisk(t *testing.T) {
	const shards, leaves, bad = 6, 1, 2
	f := newFullDisks("", false)
	opt := f.options(Options{Seed: 73, Config: smallLogs})
	c := newCluster(t, opt, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if n := c.Leader(id); n.ID != leaves {
			if err := n.Transfer(id, leaves); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Run(time.Second)
	load := func(until func() bool, most time.Duration) {
		for end := c.Now() + engine.Instant(most); c.Now() < end && !until(); c.Run(20 * time.Millisecond) {
			for id := engine.ShardID(1); id <= shards; id++ {
				if n := c.Leader(id); n != nil {
					n.submitPut(id)
				}
			}
		}
	}
	f.full[bad] = true
	load(c.Node(bad).Sched.DiskFull, 60*time.Second)
	load(func() bool { return false }, time.Second)
	if !c.Node(bad).Sched.DiskFull() {
		t.Fatal("the disk is not full")
	}
	left := shards
	load(func() bool {
		c.Node(leaves).Sched.EvacuateAsync(nil, func(n int) { left = n })
		return left == 0
	}, 20*time.Second)
	for id := engine.ShardID(1); id <= shards; id++ {
		if n := c.Leader(id); n == nil || n.ID == leaves || n.ID == bad {
			t.Errorf("shard %d is led by node %v", id, n)
		}
	}
}
