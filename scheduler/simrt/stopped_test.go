package simrt

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
)

// stopper makes the replicas of a node stop, as if the next entry were one that they do not understand.
type stopper struct{ on *bool }

func (stopper) Fed(store.Key, *engine.Engine, engine.Event)        {}
func (stopper) Command(store.Key, *engine.Engine, *engine.Command) {}
func (stopper) Linked(store.Key, engine.LogID)                     {}
func (stopper) Removed(store.Key)                                  {}

func (s stopper) Applied(_ store.Key, id engine.LogID, _ engine.EntryKind, _ []byte, m *shard.Machine, _ *shard.Answer) {
	if *s.on {
		var ans shard.Answer
		_ = m.Apply(engine.LogID{Term: id.Term, Index: id.Index + 1}, []byte{0xff}, nil, &ans)
	}
}

// TestStoppedReplicaKeepsNoOffice: a replica that applies nothing any more votes and stores, and may win an election. Then it brings another
// voter up to date and leaves, however often it wins: the shard serves.
func TestStoppedReplicaKeepsNoOffice(t *testing.T) {
	const shards = 16
	on := false
	c := newCluster(t, Options{Seed: 33, Config: smallLogs, Probe: func(n *Node) scheduler.Probe {
		if n.ID == 1 {
			return stopper{&on}
		}
		off := false
		return stopper{&off}
	}}, shards)
	for id := engine.ShardID(1); id <= shards; id++ { // a leader would refuse what makes it stop
		if c.Leader(id).ID == 1 {
			if err := c.Leader(id).Transfer(id, 2); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Run(3 * time.Second)
	on = true
	for id := engine.ShardID(1); id <= shards; id++ {
		put(t, c, id, 1, "the last that it applies")
		put(t, c, id, 1, "stops")
	}
	c.Run(3 * time.Second)
	if n := c.Node(1).Sched.Metrics().ReplicasStopped.Load(); n != shards {
		t.Fatalf("%d replicas have stopped", n)
	}
	wins := c.Node(1).Sched.Metrics().LeadersWon.Load()
	for range 3 { // who leads the shards of the other is decided anew
		for _, id := range []engine.NodeID{2, 3} {
			c.Crash(id)
			for s := engine.ShardID(1); s <= shards; s++ {
				put(t, c, s, 2, "without one")
			}
			if err := c.Start(id); err != nil {
				t.Fatal(err)
			}
			c.Run(3 * time.Second)
		}
	}
	if c.Node(1).Sched.Metrics().LeadersWon.Load() == wins {
		t.Error("it never won: the test tests nothing")
	}

	// A snapshot from behind that entry heals it, for good.
	on = false
	for k := range 300 {
		put(t, c, 1, k, "more than the log of a shard may hold")
		c.Run(20 * time.Millisecond)
	}
	c.Run(5 * time.Second)
	checkReplicas1(t, c, 1)
	for _, id := range []engine.NodeID{2, 3} {
		if l := c.Leader(1); l.ID != 1 {
			if err := l.Transfer(1, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Until(5*time.Second, func() bool { l := c.Leader(1); return l != nil && l.ID == 1 }); err != nil {
			t.Fatal("a healed replica does not lead")
		}
		c.Crash(id)
		c.Run(3 * time.Second)
		if l := c.Leader(1); l == nil || l.ID != 1 {
			t.Error("a healed replica has left its office")
		}
		if err := c.Start(id); err != nil {
			t.Fatal(err)
		}
		c.Run(3 * time.Second)
	}
}

// TestStoppedLeaderLeaves: a leader that comes to an entry which it does not understand, as one of a newer version has left it, hands the shard to
// whoever does (FAULTS P3).
func TestStoppedLeaderLeaves(t *testing.T) {
	on := [3]bool{}
	c := newCluster(t, Options{Seed: 34, Probe: func(n *Node) scheduler.Probe { return stopper{&on[n.ID-1]} }}, 1)
	put(t, c, 1, 1, "before")
	old := c.Leader(1)
	on[old.ID-1] = true
	for k := range 2 { // the first makes it stop at the second
		old.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: 1, Body: putBody(1, k, "x"), Done: func(*scheduler.Request) {}})
	}
	if err := c.Until(5*time.Second, func() bool { l := c.Leader(1); return l != nil && l != old }); err != nil {
		t.Fatalf("node %d stays in office, %d of its replicas have stopped", old.ID, old.Sched.Metrics().ReplicasStopped.Load())
	}
	put(t, c, 1, 2, "after")
}
