package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// TestNarrowLinks gives a cluster links of 1 Mbit/s (FAULTS N16): idle shards cost next to nothing of it, however many they are, all are led, and
// after a node has died all are led again, by elections that go over the same links.
func TestNarrowLinks(t *testing.T) {
	const shards, bandwidth = 1000, 125_000
	c, err := New(Options{Seed: 31, Lanes: 2})
	if err != nil {
		t.Fatal(err)
	}
	c.Net.BytesPerSecond = bandwidth
	if err := c.CreateShards(1, shards); err != nil {
		t.Fatal(err)
	}
	waitLeaders(t, c, shards)
	t.Logf("all shards have leaders after %v", time.Duration(c.Now()))
	for range 60 {
		if c.Run(time.Second); c.awake() == 0 {
			break
		}
	}
	if n := c.awake(); n > 0 {
		t.Fatalf("%d replicas do not sleep", n)
	}
	terms := c.terms()
	before := c.sentMost()
	const idle = 60
	c.Run(idle * time.Second)
	perSecond := (c.sentMost() - before) / idle
	t.Logf("idle: %d bytes a second on the busiest link", perSecond)
	if perSecond > bandwidth/50 {
		t.Errorf("idle shards take %d bytes a second of a link that carries %d", perSecond, bandwidth)
	}
	for id, term := range c.terms() {
		if term != terms[id] {
			t.Errorf("shard %d was idle, and went from term %d to %d", id, terms[id], term)
		}
	}
	for id := engine.ShardID(1); id <= shards; id += 50 {
		put(t, c, id, 1, "narrow")
	}
	c.Crash(3)
	start := c.Now()
	waitLeaders(t, c, shards)
	t.Logf("a node died, and all shards have leaders after %v", time.Duration(c.Now()-start))
	for id := engine.ShardID(1); id <= shards; id += 50 {
		if v := get(t, c, id, 1); v != "narrow" {
			t.Errorf("shard %d holds %q", id, v)
		}
	}
}

// awake counts replicas that do not sleep.
func (c *Cluster) awake() (n int) {
	for _, node := range c.Nodes {
		for _, st := range node.Statuses() {
			if !st.Quiesced {
				n++
			}
		}
	}
	return n
}

// terms returns the term of each shard on the first node.
func (c *Cluster) terms() map[engine.ShardID]uint64 {
	out := map[engine.ShardID]uint64{}
	for _, st := range c.Node(1).Statuses() {
		out[st.Shard] = st.Term
	}
	return out
}

// sentMost returns what went over the busiest link so far.
func (c *Cluster) sentMost() (most int) {
	for _, n := range c.sent {
		most = max(most, n)
	}
	return most
}
