package simrt

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// spare makes a cluster whose last node holds no replica.
func spare(t *testing.T, opt Options, shards engine.ShardID) *Cluster {
	t.Helper()
	t.Logf("seed %d", opt.Seed)
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	last := len(c.Nodes) - 1
	for id := engine.ShardID(1); id <= shards; id++ {
		d := Descriptor(c, id)
		d.Replicas = d.Replicas[:last]
		for i, n := range c.Nodes[:last] {
			if err := n.create(d, engine.ReplicaID(i+1), i == int(id)%last); err != nil {
				t.Fatal(err)
			}
		}
	}
	waitLeaders(t, c, shards)
	return c
}

// lead returns what the leader of a shard says, nil if there is none now.
func (c *Cluster) lead(id engine.ShardID) (*Node, *scheduler.ReplicaStatus) {
	n := c.Leader(id)
	if n == nil {
		return nil, nil
	}
	for _, st := range n.Statuses() {
		if st.Shard == id {
			return n, &st
		}
	}
	return nil, nil
}

// drive moves a replica step by step, as an operation does, and fails after a while.
func drive(t *testing.T, c *Cluster, id engine.ShardID, from, to engine.NodeID, replica engine.ReplicaID) {
	t.Helper()
	for range 2000 {
		c.Run(20 * time.Millisecond)
		n, st := c.lead(id)
		if n == nil {
			continue
		}
		d := st.Descriptor
		mine, there := d.Replica(replica)
		old, fromThere := d.OnNode(from)
		ch := scheduler.MembershipChange{Shard: id, Version: d.Version, ConfVersion: d.ConfVersion}
		switch {
		case there && mine.Role == shard.RoleVoter && !fromThere:
			return
		case !there:
			ch.Replicas = append(append(ch.Replicas, d.Replicas...), shard.ReplicaDesc{Replica: replica, Node: to, Role: shard.RoleLearner})
		case mine.Role != shard.RoleLearner:
			continue
		default:
			for _, r := range d.Replicas {
				if r.Replica == replica {
					r.Role = shard.RoleVoter
				}
				if r.Replica != old.Replica {
					ch.Replicas = append(ch.Replicas, r)
				}
			}
		}
		err := errors.New("not answered")
		n.Sched.ChangeMembershipAsync(ch, func(e error) { err = e })
		n.pump()
		c.Run(5 * time.Millisecond)
		if errors.Is(err, shard.ErrInvalid) {
			t.Fatal(err)
		}
	}
	t.Fatalf("shard %d: replica %d did not come to node %d", id, replica, to)
}

func (n *Node) has(id engine.ShardID) (scheduler.ReplicaStatus, bool) {
	for _, st := range n.Statuses() {
		if st.Shard == id {
			return st, true
		}
	}
	return scheduler.ReplicaStatus{}, false
}

func (n *Node) remove(t *testing.T, id engine.ShardID, r engine.ReplicaID) {
	t.Helper()
	done := false
	n.Sched.RemoveReplicaAsync(id, r, nil, func(err error) {
		if err != nil {
			t.Error(err)
		}
		done = true
	})
	n.pump()
	if err := n.c.Until(5*time.Second, func() bool { return done }); err != nil {
		t.Fatal(err)
	}
}

// sameContent waits until the members of a shard have applied the same, and compares them.
func sameContent(t *testing.T, c *Cluster, id engine.ShardID, members ...engine.NodeID) {
	t.Helper()
	type sum struct {
		content state.Content
		at      engine.LogID
	}
	for range 200 {
		var sums []sum
		for _, m := range members {
			c.Node(m).Sched.ChecksumAsync(id, func(k state.Content, at engine.LogID, err error) {
				if err == nil {
					sums = append(sums, sum{k, at})
				}
			})
			c.Node(m).pump()
		}
		c.Run(100 * time.Millisecond)
		same := len(sums) == len(members)
		for _, s := range sums {
			same = same && s.at == sums[0].at
		}
		if !same {
			continue
		}
		for _, s := range sums {
			if s.content != sums[0].content {
				t.Fatalf("shard %d: replicas differ: %+v", id, sums)
			}
		}
		return
	}
	t.Fatalf("shard %d: replicas do not come to the same entry", id)
}

// A replica moves away and back, under writes, over a network that loses and repeats; what was removed never comes back, not by a late
// message, nor by a restart (FAULTS R6, R7, R9, M5).
func TestMove(t *testing.T) {
	const shards = 4
	c := spare(t, Options{Nodes: 4, Seed: 21, Drop: 0.05, Dup: 0.1}, shards)
	at := map[engine.ShardID]int{}
	burst := func(id engine.ShardID) {
		for range 10 {
			put(t, c, id, at[id], fmt.Sprint(at[id]))
			at[id]++
		}
	}
	for id := engine.ShardID(1); id <= shards; id++ {
		burst(id)
		from := engine.NodeID(id-1)%3 + 1
		drive(t, c, id, from, 4, 10)
		burst(id)
		if n, st := c.lead(id); n != nil {
			// A change made for an older descriptor is void (rule Cluster6).
			var err error
			n.Sched.ChangeMembershipAsync(scheduler.MembershipChange{Shard: id, Version: 1, ConfVersion: 1, Replicas: st.Descriptor.Replicas}, func(e error) { err = e })
			n.pump()
			c.Run(5 * time.Millisecond)
			if !errors.Is(err, shard.ErrShardMoved) {
				t.Errorf("a step for an old descriptor: %v", err)
			}
		}
		c.Node(from).remove(t, id, engine.ReplicaID(from))
		c.Run(3 * time.Second)
		if st, ok := c.Node(from).has(id); ok {
			t.Fatalf("shard %d is on node %d again: %+v", id, from, st)
		}
		var members []engine.NodeID
		for n := engine.NodeID(1); n <= 4; n++ {
			if n != from {
				members = append(members, n)
			}
		}
		sameContent(t, c, id, members...)
		c.Crash(from)
		c.Run(200 * time.Millisecond)
		if err := c.Start(from); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Node(from).has(id); ok {
			t.Fatalf("shard %d is on node %d after its restart", id, from)
		}
		drive(t, c, id, 4, from, 20) // and back, under a new name
		c.Node(4).remove(t, id, 10)
		burst(id)
		sameContent(t, c, id, 1, 2, 3)
		for k := range at[id] {
			if v := get(t, c, id, k); v != fmt.Sprint(k) {
				t.Fatalf("shard %d key %d: %q", id, k, v)
			}
		}
	}
	if c.Failed != nil {
		t.Fatal(c.Failed)
	}
}

// Crashes of any node between and during the steps do not keep a move from its end (FAULTS M6).
func TestMoveCrashes(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		c := spare(t, Options{Nodes: 4, Seed: 30 + seed, Drop: 0.02}, 1)
		for k := range 20 {
			put(t, c, 1, k, "v")
		}
		stop := false
		var crash func()
		crash = func() {
			if stop {
				return
			}
			id := engine.NodeID(c.Rand.IntN(4) + 1)
			c.Crash(id)
			c.after(300*time.Millisecond, func() {
				if err := c.Start(id); err != nil {
					t.Error(err)
				}
				c.after(time.Duration(c.Rand.IntN(1500))*time.Millisecond, crash)
			})
		}
		crash()
		drive(t, c, 1, 2, 4, 10)
		stop = true
		c.Run(2 * time.Second)
		put(t, c, 1, 100, "after")
		sameContent(t, c, 1, 1, 3, 4)
		if c.Failed != nil {
			t.Fatal(c.Failed)
		}
	}
}

// A replica that was never initialised gives way to a later one on its node.
func TestLaterReplicaReplacesUninitialised(t *testing.T) {
	c := spare(t, Options{Nodes: 4, Seed: 40}, 1)
	put(t, c, 1, 1, "v")
	mute := func(cut bool) { // it hears, and nobody hears it: so it gets no snapshot
		for id := engine.NodeID(1); id <= 3; id++ {
			c.Cut(4, id, cut)
		}
	}
	mute(true)
	n, st := c.lead(1)
	add := func(r engine.ReplicaID) {
		n, st = c.lead(1)
		d := st.Descriptor
		ch := scheduler.MembershipChange{Shard: 1, Version: d.Version, ConfVersion: d.ConfVersion, Replicas: append([]shard.ReplicaDesc(nil), d.Replicas[:3]...)}
		if r != 0 {
			ch.Replicas = append(ch.Replicas, shard.ReplicaDesc{Replica: r, Node: 4, Role: shard.RoleLearner})
		}
		n.Sched.ChangeMembershipAsync(ch, func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		n.pump()
		c.Run(300 * time.Millisecond)
	}
	add(10)
	if st, ok := c.Node(4).has(1); !ok || st.Replica != 10 || st.Descriptor != nil {
		t.Fatalf("no uninitialised replica 10: %+v", st)
	}
	add(0)
	add(11)
	mute(false)
	if err := c.Until(10*time.Second, func() bool { st, ok := c.Node(4).has(1); return ok && st.Replica == 11 && st.Descriptor != nil }); err != nil {
		t.Fatal(err)
	}
	sameContent(t, c, 1, 1, 2, 3, 4)
}
