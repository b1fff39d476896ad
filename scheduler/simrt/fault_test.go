package simrt

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/vfs"
)

func TestLeaderCrashAndRestart(t *testing.T) {
	const shards = 60
	c := newCluster(t, Options{Seed: 2}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		put(t, c, id, 1, "before")
	}
	c.Crash(1)
	waitLeaders(t, c, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if v := get(t, c, id, 1); v != "before" {
			t.Fatalf("shard %d: %q", id, v)
		}
		put(t, c, id, 2, "during")
	}
	if err := c.Start(1); err != nil {
		t.Fatal(err)
	}
	c.Run(3 * time.Second)
	waitLeaders(t, c, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if v := get(t, c, id, 2); v != "during" {
			t.Fatalf("shard %d: %q", id, v)
		}
	}
	c.Run(2 * time.Second)
	checkReplicas(t, c, shards)
}

func TestAllCrash(t *testing.T) {
	const shards = 60
	c := newCluster(t, Options{Seed: 3}, shards)
	for round := range 3 {
		for id := engine.ShardID(1); id <= shards; id++ {
			put(t, c, id, round, fmt.Sprint("r", round))
		}
		for _, n := range c.Nodes {
			c.Crash(n.ID)
		}
		for _, n := range c.Nodes {
			if err := c.Start(n.ID); err != nil {
				t.Fatal(err)
			}
		}
		waitLeaders(t, c, shards)
	}
	for id := engine.ShardID(1); id <= shards; id++ {
		for round := range 3 {
			if v := get(t, c, id, round); v != fmt.Sprint("r", round) {
				t.Fatalf("shard %d round %d: %q", id, round, v)
			}
		}
	}
	c.Run(2 * time.Second)
	checkReplicas(t, c, shards)
}

func TestQuiesceAndWake(t *testing.T) {
	const shards = 40
	c := newCluster(t, Options{Seed: 4}, shards)
	asleep := func() int {
		n := 0
		for _, node := range c.Nodes {
			if node.Up {
				for _, st := range node.Statuses() {
					if st.Quiesced {
						n++
					}
				}
			}
		}
		return n
	}
	c.Run(8 * time.Second)
	if n := asleep(); n != 3*shards {
		for _, st := range c.Nodes[0].Statuses() {
			t.Logf("%+v", st)
		}
		t.Fatalf("%d of %d replicas sleep", n, 3*shards)
	}
	put(t, c, 7, 1, "wake")
	if get(t, c, 7, 1) != "wake" {
		t.Fatal("not there")
	}
	before := c.Nodes[0].Sched.Metrics().Commands.Load()
	c.Run(8 * time.Second)
	if n := asleep(); n != 3*shards {
		t.Fatalf("%d of %d replicas sleep", n, 3*shards)
	}
	c.Run(10 * time.Second)
	after := c.Nodes[0].Sched.Metrics().Commands.Load()
	c.Run(10 * time.Second)
	if idle := c.Nodes[0].Sched.Metrics().Commands.Load() - after; idle != 0 {
		t.Fatalf("%d commands while asleep (%d since wake)", idle, after-before)
	}
	// The leases of sleepers are kept by node heartbeats, and a dead node's shards find new leaders.
	waitLeaders(t, c, shards)
	c.Crash(2)
	waitLeaders(t, c, shards)
}

func TestSnapshotCatchUp(t *testing.T) {
	const shards = 10
	c := newCluster(t, Options{Seed: 5, Config: func(cfg *scheduler.Config) {
		cfg.CheckpointAge = engine.Duration(500 * time.Millisecond)
		cfg.ShardLogEntriesKeep = 4
		cfg.ShardLogBytesMax = 4 << 10
	}}, shards)
	c.Crash(3)
	waitLeaders(t, c, shards)
	for k := range 60 {
		for id := engine.ShardID(1); id <= shards; id++ {
			put(t, c, id, k, fmt.Sprintf("%0200d", k))
		}
		c.Run(100 * time.Millisecond)
	}
	c.Run(3 * time.Second)
	if err := c.Start(3); err != nil {
		t.Fatal(err)
	}
	for k := range 20 {
		for id := engine.ShardID(1); id <= shards; id++ {
			put(t, c, id, k, "while it catches up")
		}
		c.Run(200 * time.Millisecond)
	}
	c.Run(5 * time.Second)
	checkReplicas(t, c, shards)
	sent := uint64(0)
	for _, n := range c.Nodes {
		sent += n.Sched.Metrics().SnapshotsSent.Load()
	}
	if sent == 0 {
		t.Fatal("no snapshot was needed: the test tests nothing")
	}
}

func TestTransfer(t *testing.T) {
	c := newCluster(t, Options{Seed: 6}, 5)
	for id := engine.ShardID(1); id <= 5; id++ {
		to := c.Leader(id).ID%3 + 1
		if err := c.Leader(id).Transfer(id, to); err != nil {
			t.Fatal(err)
		}
		if err := c.Until(5*time.Second, func() bool { l := c.Leader(id); return l != nil && l.ID == to }); err != nil {
			t.Fatalf("shard %d: %v", id, err)
		}
	}
}

var (
	chaosFirst = flag.Uint64("chaos.first", 100, "first seed of TestChaos")
	chaosSeeds = flag.Uint64("chaos.seeds", 6, "number of seeds of TestChaos")
)

// register is one key with at most one write under way, so that every read has few right answers.
type register struct {
	shard   engine.ShardID
	acked   int          // newest acknowledged value
	pending int          // newest value whose fate may be open; pending >= acked
	open    map[int]bool // values of unacknowledged writes
	busy    bool
}

// TestChaos writes and reads registers while nodes crash and links fail, and checks that no acknowledged write is lost, that reads are
// linearizable, and that replicas end up the same.
func TestChaos(t *testing.T) {
	for seed := *chaosFirst; seed < *chaosFirst+*chaosSeeds; seed++ {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { chaos(t, seed) })
	}
}

func chaos(t *testing.T, seed uint64) {
	const shards = 20
	c := newCluster(t, Options{Seed: seed, SegmentBytes: 24 << 10, Lanes: 1 + int(seed%2), Drop: 0.02, Dup: 0.02, Crash: vfs.CrashPolicy{KeepWrite: 0.3, TearWrite: 0.3, KeepDir: 0.5}, Config: func(cfg *scheduler.Config) {
		cfg.CheckpointAge = engine.Duration(700 * time.Millisecond)
		cfg.ShardLogEntriesKeep = 8
		cfg.ShardLogBytesMax = 8 << 10
		cfg.QuiesceAfter = engine.Duration(600 * time.Millisecond)
		cfg.LogSegmentsMax = 2
	}}, shards)
	rng := rand.New(rand.NewPCG(seed, 7))
	regs := make([]*register, shards)
	for i := range regs {
		regs[i] = &register{shard: engine.ShardID(i + 1), open: map[int]bool{}}
	}
	writes, reads := 0, 0
	for step := range 4000 {
		r := regs[rng.IntN(shards)]
		n := c.Nodes[rng.IntN(3)]
		if l := c.Leader(r.shard); l != nil && rng.IntN(10) > 0 {
			n = l
		}
		if n.Up {
			if rng.IntN(2) == 0 {
				if !r.busy {
					r.write(t, c, n)
					writes++
				}
			} else {
				r.read(t, n)
				reads++
			}
		}
		c.Run(time.Duration(rng.IntN(4000)) * time.Microsecond)
		if step%200 == 199 {
			c.fault(t, rng)
		}
		if c.Failed != nil {
			t.Fatal(c.Failed)
		}
	}
	for _, n := range c.Nodes {
		c.Isolate(n.ID, false)
		if !n.Up {
			if err := c.Start(n.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Net = NetFaults{}
	c.Run(5 * time.Second)
	waitLeaders(t, c, shards)
	for _, r := range regs {
		v := 0
		fmt.Sscan(get(t, c, r.shard, 0), &v)
		if v < r.acked && !r.open[v] || v > r.pending {
			t.Fatalf("shard %d: found %d, acknowledged %d", r.shard, v, r.acked)
		}
	}
	c.Run(5 * time.Second)
	checkReplicas(t, c, shards)
	t.Logf("%d writes, %d reads", writes, reads)
}

func (r *register) write(t *testing.T, c *Cluster, n *Node) {
	r.pending++
	v := r.pending
	r.busy = true
	life := n.life
	// A lost answer leaves the write open: it may be applied at any time later, so the register moves on without it.
	c.after(3*time.Second, func() {
		if n.life != life && r.busy && r.pending == v {
			r.open[v] = true
			r.busy = false
		}
	})
	n.Submit(&scheduler.Request{Kind: scheduler.KindWrite, Shard: r.shard, Body: putBody(r.shard, 0, fmt.Sprint(v)), Done: func(req *scheduler.Request) {
		if n.life != life {
			return
		}
		r.busy = false
		if req.Err == nil {
			r.acked = v
		} else if shardAmbiguous(req.Err) {
			r.open[v] = true
		}
	}})
}

func (r *register) read(t *testing.T, n *Node) {
	floor := r.acked
	life := n.life
	keys := [][]byte{key(r.shard, 0)}
	body := shard.AppendRead(nil, &shard.Read{Shard: r.shard, Version: 1, Keys: keys})
	n.Submit(&scheduler.Request{Kind: scheduler.KindRead, Shard: r.shard, Body: body, Done: func(req *scheduler.Request) {
		if n.life != life || req.Err != nil {
			return
		}
		e, err := shard.DecodeAnswer(req.Answer, keys, nil)
		if err != nil {
			t.Error(err)
			return
		}
		v := 0
		fmt.Sscan(string(e[0].Value), &v)
		if v < floor && !r.open[v] || v > r.pending {
			t.Errorf("shard %d: read %d when %d was acknowledged before it began, %d was written", r.shard, v, floor, r.pending)
		}
	}})
}

// fault changes something for the worse, or for the better.
func (c *Cluster) fault(t *testing.T, rng *rand.Rand) {
	up := 0
	for _, n := range c.Nodes {
		if n.Up {
			up++
		}
	}
	n := c.Nodes[rng.IntN(3)]
	switch rng.IntN(5) {
	case 0:
		if rng.IntN(3) == 0 {
			for _, n := range c.Nodes {
				if n.Up {
					c.Crash(n.ID)
				}
			}
			for range 2 { // and again while they start
				for _, n := range c.Nodes {
					if !n.Up {
						if err := c.Start(n.ID); err != nil {
							t.Fatal(err)
						}
					}
				}
				c.Run(time.Duration(rng.IntN(3000)) * time.Microsecond)
				for _, n := range c.Nodes {
					if rng.IntN(2) == 0 {
						c.Crash(n.ID)
					}
				}
			}
			if !slices.ContainsFunc(c.Nodes, func(n *Node) bool { return n.Up }) { // else nothing would ever happen again
				if err := c.Start(n.ID); err != nil {
					t.Fatal(err)
				}
			}
			return
		}
		if n.Up && up == 3 {
			c.Crash(n.ID)
		}
	case 1, 2:
		for _, n := range c.Nodes {
			if !n.Up {
				if err := c.Start(n.ID); err != nil {
					t.Fatal(err)
				}
			}
			c.Isolate(n.ID, false)
		}
	case 3:
		c.Isolate(n.ID, true)
	case 4:
		c.Cut(n.ID, n.ID%3+1, true)
	}
}

// TestLogIsFreed checks that neither idle shards nor a node that is away keep the raft log from being freed.
func TestLogIsFreed(t *testing.T) {
	const shards = 12
	c := newCluster(t, Options{Seed: 8, SegmentBytes: 256 << 10, Config: func(cfg *scheduler.Config) { cfg.LogSegmentsMax = 3 }}, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		put(t, c, id, 1, "idle from here on")
	}
	c.Crash(3)
	waitLeaders(t, c, shards)
	value := fmt.Sprintf("%04000d", 7)
	for k := range 1500 {
		put(t, c, 5, k%50, value)
		if k%20 == 0 {
			c.Run(200 * time.Millisecond)
		}
	}
	c.Run(5 * time.Second)
	for _, n := range c.Nodes[:2] {
		if oldest, active := n.Segments(); active < 10 || active-oldest > 6 {
			t.Errorf("node %d: segments %d to %d, pinned by %v", n.ID, oldest, active, n.Sched.Lanes()[0].Pinned())
			for _, st := range n.Statuses() {
				t.Logf("%+v", st)
			}
		}
	}
	for _, n := range c.Nodes[:2] {
		c.Crash(n.ID)
	}
	for _, n := range c.Nodes {
		if err := c.Start(n.ID); err != nil {
			t.Fatal(err)
		}
	}
	c.Run(10 * time.Second)
	waitLeaders(t, c, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		if id != 5 && get(t, c, id, 1) != "idle from here on" {
			t.Fatalf("shard %d lost its value", id)
		}
	}
	checkReplicas(t, c, shards)
}

// TestSameSeedSameRun checks that a run is a function of its seed.
func TestSameSeedSameRun(t *testing.T) {
	run := func() string {
		const shards = 8
		c := newCluster(t, Options{Seed: 11, Drop: 0.05, Dup: 0.05}, shards)
		for k := range 20 {
			for id := engine.ShardID(1); id <= shards; id++ {
				put(t, c, id, k, "x")
			}
			if k == 7 {
				c.Crash(1)
			}
			if k == 14 {
				if err := c.Start(1); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.Run(5 * time.Second)
		out := fmt.Sprint(c.Now(), " ")
		for _, n := range c.Nodes {
			m := n.Sched.Metrics()
			out += fmt.Sprint(m.Turns.Load(), m.Commands.Load(), m.FrameBytes.Load(), m.LogSyncs.Load(), " ")
		}
		return out
	}
	if a, b := run(), run(); a != b {
		t.Fatalf("two runs of one seed differ:\n%s\n%s", a, b)
	}
}
