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

func newCluster(t *testing.T, opt Options, shards engine.ShardID) *Cluster {
	t.Helper()
	t.Logf("seed %d", opt.Seed)
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateShards(1, shards); err != nil {
		t.Fatal(err)
	}
	waitLeaders(t, c, shards)
	return c
}

func waitLeaders(t *testing.T, c *Cluster, shards engine.ShardID) {
	t.Helper()
	missing := engine.ShardID(0)
	if err := c.Until(30*time.Second, func() bool {
		for id := engine.ShardID(1); id <= shards; id++ {
			if c.Leader(id) == nil {
				missing = id
				return false
			}
		}
		return true
	}); err != nil {
		for _, n := range c.Nodes {
			if n.Up {
				for _, st := range n.Statuses() {
					if st.Shard == missing {
						t.Logf("node %d: %+v", n.ID, st)
					}
				}
			}
		}
		t.Fatalf("shard %d has no leader: %v", missing, err)
	}
}

func key(id engine.ShardID, k int) []byte { return fmt.Appendf(nil, "s%05d/%04d", id, k) }

func putBody(id engine.ShardID, k int, value string) []byte {
	return shard.AppendWrite(nil, &shard.Write{Shard: id, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(id, k), Value: []byte(value)}}})
}

// do runs one request to its end on the leader of its shard, trying again while there is none.
func do(t *testing.T, c *Cluster, kind scheduler.Kind, id engine.ShardID, body []byte) ([]byte, error) {
	t.Helper()
	var last error
	for range 100 {
		n := c.Leader(id)
		if n == nil {
			c.Run(50 * time.Millisecond)
			continue
		}
		done := false
		req := &scheduler.Request{Kind: kind, Shard: id, Body: body, Done: func(*scheduler.Request) { done = true }}
		n.Submit(req)
		if err := c.Until(10*time.Second, func() bool { return done || !n.Up }); err != nil {
			t.Fatalf("shard %d: request has no answer: %v", id, err)
		}
		if done && req.Err == nil {
			return req.Answer, nil
		}
		last = req.Err
		c.Run(50 * time.Millisecond)
	}
	return nil, last
}

func put(t *testing.T, c *Cluster, id engine.ShardID, k int, value string) {
	t.Helper()
	b, err := do(t, c, scheduler.KindWrite, id, putBody(id, k, value))
	if err != nil {
		t.Fatal(err)
	}
	var res shard.Result
	if err := shard.DecodeResult(b, &res); err != nil || res.Outcome != shard.OutcomeApplied {
		t.Fatalf("result %+v, %v", res, err)
	}
}

func get(t *testing.T, c *Cluster, id engine.ShardID, k int) string {
	t.Helper()
	keys := [][]byte{key(id, k)}
	b, err := do(t, c, scheduler.KindRead, id, shard.AppendRead(nil, &shard.Read{Shard: id, Version: 1, Keys: keys}))
	if err != nil {
		t.Fatal(err)
	}
	e, err := shard.DecodeAnswer(b, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(e[0].Value)
}

// checkReplicas waits until all replicas of all shards have applied the same, and compares their checksums.
func checkReplicas(t *testing.T, c *Cluster, shards engine.ShardID) {
	t.Helper()
	for id := engine.ShardID(1); id <= shards; id++ {
		checkReplicas1(t, c, id)
	}
}

func checkReplicas1(t *testing.T, c *Cluster, id engine.ShardID) {
	t.Helper()
	{
		var want state.Content
		var at engine.LogID
		for i, n := range c.Nodes {
			var got state.Content
			var gotAt engine.LogID
			for try := 0; ; try++ {
				done := false
				var cerr error
				n.Sched.ChecksumAsync(id, func(c state.Content, l engine.LogID, err error) { got, gotAt, cerr, done = c, l, err, true })
				n.pump()
				if err := c.Until(10*time.Second, func() bool { return done }); err != nil {
					t.Fatalf("shard %d node %d: checksum: %v", id, n.ID, err)
				}
				if cerr != nil {
					for _, n := range c.Nodes {
						for _, st := range n.Statuses() {
							t.Logf("node %d: %v applied %v committed %v leader %v merge %+v", n.ID, st.Descriptor, st.Applied, st.Committed, st.Leader, st.Merge)
						}
					}
					t.Fatalf("shard %d node %d: checksum: %v", id, n.ID, cerr)
				}
				if i == 0 || gotAt == at {
					break
				}
				if try > 50 {
					for _, n := range c.Nodes {
						for _, st := range n.Statuses() {
							if st.Shard == id {
								t.Logf("node %d: %+v", n.ID, st)
							}
						}
						m := n.Sched.Metrics()
						t.Logf("node %d: snapshots sent %d received %d failed %d", n.ID, m.SnapshotsSent.Load(), m.SnapshotsReceived.Load(), m.SnapshotsFailed.Load())
					}
					t.Fatalf("shard %d: node %d is at %v, node 1 at %v", id, n.ID, gotAt, at)
				}
				c.Run(100 * time.Millisecond)
			}
			if i == 0 {
				want, at = got, gotAt
			} else if got != want {
				t.Fatalf("shard %d at %v: node %d holds %+v, node 1 %+v", id, at, n.ID, got, want)
			}
		}
	}
}

func TestWriteRead(t *testing.T) {
	const shards = 50
	c := newCluster(t, Options{Seed: 1}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		put(t, c, id, 1, fmt.Sprint("v", id))
	}
	for id := engine.ShardID(1); id <= shards; id++ {
		if v := get(t, c, id, 1); v != fmt.Sprint("v", id) {
			t.Fatalf("shard %d: %q", id, v)
		}
	}
	c.Run(time.Second)
	checkReplicas(t, c, shards)
}

func shardAmbiguous(err error) bool { return errors.Is(err, shard.ErrAmbiguous) }

// TestExpiry checks that a leader whose clock says that a key is due proposes a time entry and answers after it (rule State8).
func TestExpiry(t *testing.T) {
	c := newCluster(t, Options{Seed: 9}, 1)
	body := shard.AppendWrite(nil, &shard.Write{Shard: 1, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: key(1, 1), Value: []byte("short"), Expire: -1500}}})
	if _, err := do(t, c, scheduler.KindWrite, 1, body); err != nil {
		t.Fatal(err)
	}
	put(t, c, 1, 2, "long")
	if v := get(t, c, 1, 1); v != "short" {
		t.Fatalf("%q before its time", v)
	}
	c.Run(2 * time.Second)
	for range 2 {
		if v := get(t, c, 1, 1); v != "" {
			t.Fatalf("%q after its time", v)
		}
		b, err := do(t, c, scheduler.KindScan, 1, shard.AppendScan(nil, &shard.Scan{Shard: 1, Version: 1, Start: key(1, 0), End: key(1, 9)}))
		if err != nil {
			t.Fatal(err)
		}
		var p shard.Page
		if err := shard.DecodePage(b, &p); err != nil || len(p.Entries) != 1 || !p.Done {
			t.Fatalf("page %+v, %v", p, err)
		}
	}
	c.Run(time.Second) // so that followers have applied it all
	checkReplicas(t, c, 1)
}

// TestConditionalWrites adds to counters on three nodes while their overlays are checkpointed all the time, so that applies are
// suspended for cold values, and while a node is away.
func TestConditionalWrites(t *testing.T) {
	const shards = 4
	c := newCluster(t, Options{Seed: 10, Config: func(cfg *scheduler.Config) {
		cfg.CheckpointInterval = engine.Duration(50 * time.Millisecond)
		cfg.CheckpointAge = engine.Duration(20 * time.Millisecond)
	}}, shards)
	for i := 1; i <= 60; i++ {
		for id := engine.ShardID(1); id <= shards; id++ {
			w := shard.Write{Shard: id, Version: 1, Ops: []shard.Op{{Kind: shard.OpAdd, Key: key(id, i%3), Delta: 1}}}
			b, err := do(t, c, scheduler.KindWrite, id, shard.AppendWrite(nil, &w))
			var res shard.Result
			if err == nil {
				err = shard.DecodeResult(b, &res)
			}
			if err != nil || len(res.Values) != 1 || res.Values[0] != int64((i+2)/3) {
				t.Fatalf("add %d: %+v, %v", i, res, err)
			}
		}
		c.Run(300 * time.Millisecond)
		if i == 20 {
			c.Crash(2)
			waitLeaders(t, c, shards)
		}
		if i == 40 {
			if err := c.Start(2); err != nil {
				t.Fatal(err)
			}
		}
	}
	suspended := uint64(0)
	for _, n := range c.Nodes {
		suspended += n.Sched.Metrics().AppliesSuspended.Load()
	}
	if suspended == 0 {
		t.Fatal("no apply was suspended: the test tests nothing")
	}
	c.Run(3 * time.Second)
	checkReplicas(t, c, shards)
}
