package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/internal/ports"
)

// nodes gives what the live nodes say of themselves, by id.
func (c *cluster) nodes() map[uint64]client.Node {
	c.t.Helper()
	list, err := c.kv.Nodes(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	m := map[uint64]client.Node{}
	for _, n := range list {
		m[n.ID] = n
	}
	return m
}

// process gives the process of a node.
func (c *cluster) process(id uint64) int {
	c.t.Helper()
	addr := c.nodes()[id].Address
	i := slices.IndexFunc(c.Nodes, func(p *demo.Process) bool { return p.Addr == addr })
	if i < 0 {
		c.t.Fatalf("node %d at %q is no process of this test", id, addr)
	}
	return i
}

// leaders counts what a node leads, as its own metrics say: one small question, so that the asking takes no time.
func leaders(t *testing.T, p *demo.Process) int {
	return int(metrics(t, p)["kiloraft_raft_leaders"])
}

// anyKey gives keys all over the key space.
func anyKey(r *rand.Rand) []byte { return spreadKey(r.Uint64N(1<<20), 1<<20) }

// TestEvacuate drains a node that leads a third of the shards, and stops another one by SIGTERM, while clients write: how long it leads
// anything is printed, and no write fails.
func TestEvacuate(t *testing.T) {
	shards := size(t, "KILORAFT_E2E_SHARDS", 300, 15000)
	c := start(t, 3)
	t.Logf("cluster init --shards %d: %v", shards, c.init(shards).Round(time.Millisecond))
	p := startProbe(t, c.kv, 8, 20*time.Millisecond, anyKey, 100)
	time.Sleep(time.Second)
	first := c.Nodes[c.process(1)]
	led := leaders(t, first)
	begin := time.Now()
	t.Logf("before: %s", p.between(begin.Add(-time.Second), begin))
	c.want(0, "node", "drain", "1", "--detach")
	for leaders(t, first) > 0 && time.Since(begin) < time.Minute {
		time.Sleep(20 * time.Millisecond)
	}
	end := time.Now()
	t.Logf("node drain: %d leaderships left node 1 in %v", led, end.Sub(begin).Round(time.Millisecond))
	if n := leaders(t, first); n > 0 || led < shards/4 {
		t.Errorf("node 1 led %d of %d shards and leads %d after a minute of draining", led, shards, n)
	}
	time.Sleep(time.Second)
	t.Logf("meanwhile: %s", p.between(begin, end.Add(time.Second)))
	c.want(0, "node", "undrain", "1")
	second := c.Nodes[c.process(2)]
	led = leaders(t, second)
	begin = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := second.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	end = time.Now()
	t.Logf("SIGTERM: node 2, which led %d, ended after %v", led, end.Sub(begin).Round(time.Millisecond))
	eventually(t, 30*time.Second, func() error { // the meta shard is one more; a cheap question, while there is much to do
		led := 0
		for _, p := range c.Nodes {
			if p != second {
				led += leaders(t, p)
			}
		}
		if led < shards+1 {
			return fmt.Errorf("%d of %d shards are led", led, shards+1)
		}
		return nil
	})
	t.Logf("every shard is led by another node after %v", time.Since(begin).Round(time.Millisecond))
	eventually(t, 30*time.Second, func() error { return c.tiled(shards) })
	time.Sleep(time.Second)
	p.stop(t)
	t.Logf("meanwhile: %s", p.between(begin, end.Add(time.Second)))
	t.Logf("slowest, from SIGTERM:%s", p.slow(begin, 8))
	c.restart(slices.Index(c.Nodes, second))
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// grow starts more nodes that join the cluster.
func (c *cluster) grow(n int, args ...string) {
	c.t.Helper()
	addrs, err := ports.Free(2 * n)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range n {
		p, err := demo.Start(demo.Spec{Binary: binary, Name: "n" + strconv.Itoa(len(c.Nodes)+1), Dir: filepath.Dir(c.Nodes[0].DataDir()),
			Addr: addrs[i], HTTP: addrs[n+i], Join: c.Servers, Args: args})
		if err != nil {
			c.t.Fatal(err)
		}
		c.Nodes = append(c.Nodes, p)
	}
	want := len(c.Nodes)
	eventually(c.t, 30*time.Second, func() error {
		for id, n := range c.nodes() {
			if n.State != "up" {
				return fmt.Errorf("node %d is %s", id, n.State)
			}
		}
		if got := len(c.nodes()); got != want {
			return fmt.Errorf("%d nodes, want %d", got, want)
		}
		return nil
	})
}

// spread tells how far nodes are from the mean, in replicas and leaders; an error if it is more than limit, or one. It counts the meta
// shard, as the balancer does.
func (c *cluster) spread(limit float64, nodes ...uint64) error {
	replicas, leaders := map[uint64]int{}, map[uint64]int{}
	meta, err := c.kv.Shard(c.t.Context(), 1)
	if err != nil {
		return err
	}
	list := append(c.shards(), meta)
	for _, s := range list {
		leaders[s.Leader]++
		for _, r := range s.Replicas {
			replicas[r.Node]++
		}
		if len(s.Replicas) != 3 {
			return fmt.Errorf("shard %d has %d replicas", s.ID, len(s.Replicas))
		}
	}
	c.t.Logf("replicas %v, leaders %v", replicas, leaders)
	for what, m := range map[string]map[uint64]int{"replicas": replicas, "leaders": leaders} {
		total := len(list)
		if what == "replicas" {
			total *= 3
		}
		mean := float64(total) / float64(len(nodes))
		for _, id := range nodes {
			if d := math.Abs(float64(m[id]) - mean); d > max(limit*mean, 1) {
				return fmt.Errorf("%s: node %d has %d, the mean is %.1f", what, id, m[id], mean)
			}
			delete(m, id)
		}
		if len(m) > 0 {
			return fmt.Errorf("%s elsewhere: %v", what, m)
		}
	}
	return nil
}

// TestGrowAndShrink takes a cluster from 3 to 5 nodes and back while it is written, and the leader of the meta shard is killed again and
// again: the replicas are level, the ranges tile, no write fails and every counter is exact.
func TestGrowAndShrink(t *testing.T) {
	t.Run("quiet", func(t *testing.T) { growAndShrink(t, 0) })
	t.Run("meta leader killed", func(t *testing.T) {
		every := size(t, "KILORAFT_E2E_KILL_S", 0, 5)
		if every == 0 {
			t.Skip("takes minutes: KILORAFT_E2E=full, or the seconds between two kills in KILORAFT_E2E_KILL_S")
		}
		growAndShrink(t, time.Duration(every)*time.Second)
	})
}

func growAndShrink(t *testing.T, killEvery time.Duration) {
	shards := size(t, "KILORAFT_E2E_SHARDS", 40, 1000)
	keys := size(t, "KILORAFT_E2E_KEYS", 2000, 100_000)
	c := start(t, 3)
	c.init(shards)
	c.fill(keys, 1000)
	counters := demo.StartCounters(t.Context(), c.kv, c.shards(), "grow", time.Duration(size(t, "KILORAFT_E2E_PAUSE_MS", 200, 2000))*time.Millisecond)
	defer counters.Stop()
	p := startProbe(t, c.kv, 8, 20*time.Millisecond, anyKey, 100)
	time.Sleep(time.Second)
	c.grow(2)
	stopKilling := c.killMetaLeader(killEvery)
	phase := func(name string, args ...string) {
		begin := time.Now()
		c.want(0, args...)
		end := time.Now()
		t.Logf("%s: %v; %s", name, end.Sub(begin).Round(time.Millisecond), p.between(begin, end))
	}
	phase("rebalance to 5 nodes", "shard", "rebalance")
	if killEvery == 0 {
		eventually(t, 30*time.Second, func() error { return c.spread(0.05, 1, 2, 3, 4, 5) })
	}
	for _, id := range []string{"4", "5"} {
		phase("drain node "+id, "node", "drain", id)
	}
	kills := stopKilling()
	for _, id := range []string{"4", "5"} {
		c.want(0, "node", "remove", id)
	}
	c.Nodes[3].Kill()
	c.Nodes[4].Kill()
	phase("rebalance on 3 nodes", "shard", "rebalance")
	eventually(t, time.Minute, func() error { return c.spread(0.05, 1, 2, 3) })
	p.stop(t)
	counters.Stop()
	if err := c.tiled(shards); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := demo.WaitEqual(ctx, c.kv, c.shards()); err != nil {
		t.Error(err)
	}
	if err := counters.Verify(ctx, c.kv); err != nil {
		t.Error(err)
	}
	t.Logf("%d acknowledged adds, %d of unknown outcome: all counters are right; the meta leader was killed %d times", counters.Acked(), counters.Unknown(), kills)
}

// killMetaLeader kills the leader of the meta shard again and again, and starts it anew. The function it gives ends that, and tells how often.
func (c *cluster) killMetaLeader(every time.Duration) (stop func() int) {
	done, ended := make(chan struct{}), make(chan struct{})
	if every == 0 {
		return func() int { return 0 }
	}
	kills := 0
	stop = sync.OnceValue(func() int { close(done); <-ended; return kills })
	c.t.Cleanup(func() { stop() })
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(every):
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			s, err := c.kv.Shard(ctx, 1)
			list, err2 := c.kv.Nodes(ctx)
			cancel()
			if err != nil || err2 != nil || s.Leader == 0 {
				continue
			}
			var addr string
			for _, n := range list {
				if n.ID == s.Leader {
					addr = n.Address
				}
			}
			i := slices.IndexFunc(c.Nodes, func(p *demo.Process) bool { return p.Addr == addr })
			if i < 0 {
				continue
			}
			c.Nodes[i].Kill()
			kills++
			ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
			if err := c.Restart(ctx, i); err != nil {
				c.t.Error(err)
			}
			cancel()
		}
	}()
	return stop
}

// TestTakeOver kills a node of a cluster of many shards, each of which takes writes.
func TestTakeOver(t *testing.T) {
	if !full {
		t.Skip("TestThousandShards kills a node, too; KILORAFT_E2E=full for 10,000 shards")
	}
	shards := size(t, "KILORAFT_E2E_SHARDS", 0, 10_000)
	c := start(t, 3)
	c.init(shards)
	counters := demo.StartCounters(t.Context(), c.kv, c.shards(), "over", time.Duration(size(t, "KILORAFT_E2E_PAUSE_MS", 0, 2000))*time.Millisecond)
	defer counters.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for round := range 3 {
		counters.Mark()
		if _, err := counters.WaitWritable(ctx); err != nil {
			t.Fatal(err)
		}
		counters.Mark()
		c.Nodes[round].Kill()
		over, err := counters.WaitWritable(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("node %d killed: of %d shards half take writes after %v, 99%% after %v, all after %v", round+1, over.Shards, over.P50, over.P99, over.Last)
		c.restart(round)
		time.Sleep(5 * time.Second)
	}
	counters.Stop()
	if err := counters.Verify(ctx, c.kv); err != nil {
		t.Error(err)
	}
}
