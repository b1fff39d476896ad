package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
)

// TestSlowDiskLosesLeaders: a node whose disk is slow while others' are not leads nothing two seconds later, is refused as a leader while
// that lasts and for a while after, and is a node like any other again.
func TestSlowDiskLosesLeaders(t *testing.T) {
	const shards, slow = 9, 1
	c := newCluster(t, Options{Seed: 71}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if n := c.Leader(id); n.ID != slow {
			if err := n.Transfer(id, slow); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Run(time.Second)
	led := func(node engine.NodeID) (n int) {
		for id := engine.ShardID(1); id <= shards; id++ {
			if l := c.Leader(id); l != nil && l.ID == node {
				n++
			}
		}
		return n
	}
	load := func(d time.Duration) { // a write to each shard, again and again, answered or not
		for end := c.Now() + engine.Instant(d); c.Now() < end; c.Run(20 * time.Millisecond) {
			for id := engine.ShardID(1); id <= shards; id++ {
				if n := c.Leader(id); n != nil {
					n.submitPut(id)
				}
			}
		}
	}
	load(time.Second)
	if n := led(slow); n != shards {
		t.Fatalf("node %d leads %d shards before", slow, n)
	}
	c.Node(slow).SyncTime = 600 * time.Millisecond
	load(2 * time.Second)
	if n := led(slow); n != 0 {
		t.Errorf("2 s later node %d still leads %d shards", slow, n)
	}
	if err := c.Leader(1).Transfer(1, slow); err == nil {
		t.Error("a leadership was handed to the node with the slow disk")
	}
	c.Node(slow).SyncTime = 0
	load(5 * time.Second)
	if err := c.Leader(1).Transfer(1, slow); err == nil {
		t.Error("a disk counts as good as soon as it was fast once")
	}
	load(10 * time.Second)
	if err := c.Leader(1).Transfer(1, slow); err != nil {
		t.Errorf("a disk that has been good for long is refused: %v", err)
	}
	load(3 * time.Second)
	if n := led(slow); n != 1 {
		t.Errorf("node %d leads %d shards, want the one that it was given", slow, n)
	}
}

// TestSharedSlowDisk: where all disks are equally slow nobody hands anything over.
func TestSharedSlowDisk(t *testing.T) {
	const shards = 6
	c := newCluster(t, Options{Seed: 72}, shards)
	before := map[engine.ShardID]engine.NodeID{}
	for id := engine.ShardID(1); id <= shards; id++ {
		before[id] = c.Leader(id).ID
	}
	for _, n := range c.Nodes {
		n.SyncTime = 400 * time.Millisecond
	}
	for range 250 {
		for id := engine.ShardID(1); id <= shards; id++ {
			if n := c.Leader(id); n != nil {
				n.submitPut(id)
			}
		}
		c.Run(20 * time.Millisecond)
	}
	for id := engine.ShardID(1); id <= shards; id++ {
		if n := c.Leader(id); n == nil || n.ID != before[id] {
			t.Errorf("shard %d has moved from node %d", id, before[id])
		}
	}
}

// submitPut writes a key, and does not wait for what becomes of it.
func (n *Node) submitPut(id engine.ShardID) {
	n.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: id, Body: putBody(id, 1, "v"), Done: func(*scheduler.Request) {}})
}
