package simrt

import (
	"errors"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// A read of a key that is due, whose leader loses its office while the key is fetched from the store: it has an answer, and no empty one.
func TestDueReadOutlivesOffice(t *testing.T) {
	c := newCluster(t, Options{Seed: 31, Config: func(cfg *scheduler.Config) {
		cfg.CheckpointAge = engine.Duration(300 * time.Millisecond)
	}}, 1)
	body := shard.AppendWrite(nil, &shard.Write{Shard: 1, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(1, 1), Value: []byte("v"), Expire: -2000}}})
	if _, err := do(t, c, scheduler.KindWrite, 1, body); err != nil {
		t.Fatal(err)
	}
	c.Run(4 * time.Second) // written to the store, and due
	d := Descriptor(c, 1)
	keys := [][]byte{key(1, 1)}
	for _, req := range []*scheduler.Request{
		{Kind: scheduler.KindScan, Body: shard.AppendScan(nil, &shard.Scan{Shard: 1, Version: 1, Start: d.Start, End: d.End})},
		{Kind: scheduler.KindRead, Body: shard.AppendRead(nil, &shard.Read{Shard: 1, Version: 1, Keys: keys})},
	} {
		waitLeaders(t, c, 1)
		n := c.Leader(1)
		done := false
		req.Shard, req.Done = 1, func(*scheduler.Request) { done = true }
		cold := n.Sched.Metrics().ReadsCold.Load()
		n.Submit(req)
		if err := c.Until(time.Second, func() bool { return n.Sched.Metrics().ReadsCold.Load() > cold }); err != nil {
			t.Fatal(err)
		}
		n.SetClock(1, 3_600_000) // an hour ahead: it resigns
		n.Sched.Heartbeats()
		if err := c.Until(100*time.Millisecond, func() bool { return done }); err != nil {
			t.Fatalf("kind %d has no answer: %v", req.Kind, err)
		}
		if req.Err == nil && len(req.Answer) == 0 {
			t.Fatalf("kind %d has an empty answer", req.Kind)
		}
		if req.Err != nil && !errors.Is(req.Err, shard.ErrNotLeader) && !errors.Is(req.Err, shard.ErrUnavailable) {
			t.Fatal(req.Err)
		}
		if n == c.Leader(1) {
			t.Fatal("it has not resigned: the test tests nothing")
		}
		n.SetClock(1, 0)
		c.Run(5 * time.Second)
	}
}

// A leader whose wall clock jumps ahead stamps nothing with it, not even before it hears from its peers: keys would expire for good
// (rule State8).
func TestClockJumpStampsNothing(t *testing.T) {
	c := newCluster(t, Options{Seed: 32}, 1)
	c.Run(time.Second) // the clocks have been compared, and were good
	n := c.Leader(1)
	expire := n.clock.Wall() + 600_000
	body := shard.AppendWrite(nil, &shard.Write{Shard: 1, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(1, 1), Value: []byte("v"), Expire: expire}}})
	if _, err := do(t, c, scheduler.KindWrite, 1, body); err != nil {
		t.Fatal(err)
	}
	n.SetClock(1, 3_600_000)
	put(t, c, 1, 2, "written with an hour too much on the clock")
	n.SetClock(1, 0)
	c.Run(3 * time.Second)
	waitLeaders(t, c, 1)
	if v := get(t, c, 1, 1); v != "v" {
		t.Fatalf("%q: it has expired ten minutes early", v)
	}
	put(t, c, 1, 3, "stamped again")
}

// Nor does one that starts with a wrong clock, or joins the others with one; and what is to live for a while is not written with a
// stamp of long ago.
func TestWrongClockAtStart(t *testing.T) {
	c := newCluster(t, Options{Seed: 33}, 6)
	wall := c.Nodes[0].clock.Wall()
	for id := engine.ShardID(1); id <= 6; id++ {
		body := shard.AppendWrite(nil, &shard.Write{Shard: id, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(id, 1), Value: []byte("v"), Expire: wall + 1_800_000}}})
		if _, err := do(t, c, scheduler.KindWrite, id, body); err != nil {
			t.Fatal(err)
		}
	}
	c.Run(10 * time.Minute) // the shards sleep, and their times stand still
	for _, bad := range c.Nodes {
		for _, n := range c.Nodes {
			c.Crash(n.ID)
		}
		bad.SetClock(1, 3_600_000)
		for _, n := range c.Nodes {
			if err := c.Start(n.ID); err != nil {
				t.Fatal(err)
			}
		}
		for id := engine.ShardID(1); id <= 6; id++ {
			body := shard.AppendWrite(nil, &shard.Write{Shard: id, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(id, 2), Value: []byte("w"), Expire: -60_000}}})
			if _, err := do(t, c, scheduler.KindWrite, id, body); err != nil {
				t.Fatal(err)
			}
		}
		bad.SetClock(1, 0)
		c.Run(3 * time.Second)
		for id := engine.ShardID(1); id <= 6; id++ {
			put(t, c, id, 3, "stamp")
			if v := get(t, c, id, 1); v != "v" {
				t.Fatalf("shard %d: %q: it has expired early", id, v)
			}
			if v := get(t, c, id, 2); v != "w" {
				t.Fatalf("shard %d: %q: it has not lived for a minute", id, v)
			}
		}
	}
}
