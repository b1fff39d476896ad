package simrt

import (
	"errors"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// TestRequestsWaitForLeader: after a leader died, whoever asks a survivor is told of the next leader as soon as that is known there, and is
// sent away only if that takes longer than a quarter of an election timeout.
func TestRequestsWaitForLeader(t *testing.T) {
	c := newCluster(t, Options{Seed: 44}, 1)
	put(t, c, 1, 0, "before")
	dead := c.Leader(1).ID
	c.Crash(dead)
	c.Run(5 * time.Millisecond)
	wait := time.Second / 4
	type asked struct {
		node        engine.NodeID
		at, ended   engine.Instant
		unavailable bool
	}
	var all []*asked
	pending := 0
	for range 60 {
		for node := engine.NodeID(1); node <= 3; node++ {
			if node == dead {
				continue
			}
			a := &asked{node: node, at: c.Now()}
			all = append(all, a)
			pending++
			c.Nodes[node-1].Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: 1, Body: putBody(1, 1, "x"), Done: func(r *scheduler.Request) {
				if pending--; a.ended != 0 {
					t.Error("answered twice")
				}
				a.ended = c.Now()
				a.unavailable = errors.Is(r.Err, shard.ErrUnavailable)
				var nl *shard.NotLeaderError
				if r.Err != nil && !a.unavailable && (!errors.As(r.Err, &nl) || nl.Leader == dead) {
					t.Errorf("%v after the death of node %d", r.Err, dead)
				}
			}})
		}
		c.Run(50 * time.Millisecond)
	}
	c.Run(2 * wait)
	if pending != 0 {
		t.Fatalf("%d requests were never answered", pending)
	}
	for node := engine.NodeID(1); node <= 3; node++ {
		var known engine.Instant
		for _, a := range all {
			if a.node == node && !a.unavailable && (known == 0 || a.ended < known) {
				known = a.ended
			}
		}
		if node != dead && known == 0 {
			t.Errorf("node %d never told of a leader", node)
		}
		for _, a := range all {
			if a.node != node {
				continue
			}
			switch d := time.Duration(a.ended - a.at); {
			case a.unavailable && d < wait:
				t.Errorf("node %d: sent away after %v", node, d)
			case d > wait+50*time.Millisecond: // whatever the answer is
				t.Errorf("node %d: kept for %v", node, d)
			}
			if a.unavailable && a.ended >= known {
				t.Errorf("node %d: sent away at %d, a leader was known at %d", node, a.ended, known)
			}
		}
	}
}

// TestRequestsOutliveTransfer: a write that comes while its leader hands over is not sent away empty-handed.
func TestRequestsOutliveTransfer(t *testing.T) {
	c := newCluster(t, Options{Seed: 45}, 1)
	for round := range 20 {
		old := c.Leader(1)
		if err := old.Transfer(1, old.ID%3+1); err != nil {
			t.Fatal(err)
		}
		pending := 0
		for range 100 {
			pending++
			old.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: 1, Body: putBody(1, round, "x"), Done: func(r *scheduler.Request) {
				pending--
				var nl *shard.NotLeaderError
				if r.Err != nil && (!errors.As(r.Err, &nl) || nl.Leader == 0) {
					t.Errorf("round %d: %v", round, r.Err)
				}
			}})
			c.Run(time.Millisecond / 2)
		}
		c.Run(time.Second)
		if pending != 0 {
			t.Fatalf("%d requests were never answered", pending)
		}
	}
}
