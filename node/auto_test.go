package node_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// shardsOf returns how many user shards node i knows of.
func shardsOf(t *testing.T, c *nodetest.Cluster, i int) int {
	t.Helper()
	list, err := c.Node(i).Ranges(deadline(t, 5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for j := 1; j < len(list); j++ {
		if !bytes.Equal(list[j-1].End, list[j].Start) {
			t.Fatalf("a gap between %v and %v", list[j-1], list[j])
		}
	}
	return len(list)
}

// A shard that grows is split, and what it was split into is merged again when it is empty and cold. What an operator has made stays.
func TestAutoSplitAndMergeBySize(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		cfg.AutoSplitSize, cfg.AutoMergeAfter = 256<<10, time.Second
		node.SetLoadEvery(cfg, 100*time.Millisecond)
	}})
	c.Init(0, 2, 3)
	const keys = 500
	value := strings.Repeat("v", 4<<10) // 2 MiB in all; small against a part, for a part's size is an estimate, also when it is empty
	write(t, c, 0, keys, value)
	nodetest.Eventually(t, 30*time.Second, func() error {
		if n := shardsOf(t, c, 1); n < 7 {
			return fmt.Errorf("%d shards", n)
		}
		return nil
	})
	read(t, c, 2, keys, value)
	t.Logf("split into %d shards", shardsOf(t, c, 1))
	for k := range keys {
		if _, err := c.Node(1).Client().Delete(deadline(t, 10*time.Second), key(k)); err != nil {
			t.Fatal(err)
		}
	}
	nodetest.Eventually(t, 60*time.Second, func() error {
		if n := shardsOf(t, c, 1); n != 2 {
			return fmt.Errorf("%d shards, the operator has made 2", n)
		}
		return nil
	})
}

// hammer puts keys, one after the other, until it is told to stop.
func hammer(t *testing.T, c *nodetest.Cluster, via int, next func(i int) []byte) (stop func()) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ctx.Err() == nil; i++ {
				actx, done := context.WithTimeout(ctx, 10*time.Second)
				_, err := c.Node(via).Client().Put(actx, next(i), []byte("v"))
				done()
				if err != nil && ctx.Err() == nil {
					t.Errorf("put: %v", err)
					return
				}
			}
		}()
	}
	return func() { cancel(); wg.Wait() }
}

// Load over many keys splits a shard; load on one key does not, and is reported.
func TestAutoSplitByLoad(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		cfg.AutoSplitLoad = 5 // a busy machine writes little
		node.SetLoadEvery(cfg, 100*time.Millisecond)
	}})
	c.Init(0, 1, 3)
	stop := hammer(t, c, 0, func(int) []byte { return []byte("hot") })
	nodetest.Eventually(t, 30*time.Second, func() error {
		st, err := c.Node(1).StatusOf(deadline(t, 2*time.Second))
		if err != nil || !strings.Contains(strings.Join(st.Problems, "\n"), `key "hot" takes`) {
			return fmt.Errorf("problems: %+v, %v", st, err)
		}
		return nil
	})
	nodetest.Eventually(t, 30*time.Second, func() error {
		body, err := c.Node(2).Client().Call(deadline(t, 2*time.Second), 0, "", api.MethodShards, (&api.ShardsRequest{Shards: []engine.ShardID{2}}).Append(nil))
		var page api.ShardsPage
		if err == nil {
			err = api.Decode(body, &page)
		}
		if err == nil && (len(page.Shards) != 1 || page.Shards[0].Rates == nil || page.Shards[0].Rates.Writes == 0 || string(page.Shards[0].Rates.HotKey) != "hot") {
			err = fmt.Errorf("shard 2: %+v", page.Shards)
		}
		return err
	})
	stop()
	if n := shardsOf(t, c, 1); n != 1 {
		t.Errorf("a hot key: %d shards", n)
	}
	stop = hammer(t, c, 0, key)
	defer stop()
	nodetest.Eventually(t, 30*time.Second, func() error {
		if n := shardsOf(t, c, 1); n < 4 {
			return fmt.Errorf("%d shards", n)
		}
		return nil
	})
}

// Neighbours on different nodes are merged: the right one's replicas come to the left one's nodes first, while drivers die at every step.
func TestMergeRelocates(t *testing.T) {
	c := startDying(t, "op merge", 1)
	c.Init(0, 4, 3)
	four, five := c.Add(), c.Add()
	write(t, c, 0, 60, "v")
	tr := startTraffic(t, c, 0, 1, four)
	for i, to := range []int{four, five} {
		waitOp(t, c, 1, startOp(t, c, 1, placement.Op{Kind: placement.OpMove, Shard: 3, From: c.Node(i).ID(), To: c.Node(to).ID()}), 20*time.Second, placement.OpDone)
	}
	o := waitOp(t, c, 1, startOp(t, c, 1, placement.Op{Kind: placement.OpMerge, Shard: 2, Other: 3}), 40*time.Second, placement.OpDone)
	t.Logf("%s took %d ms, %d of %d steps", o, o.EndMS-o.StartMS, o.Done, o.Total)
	if o.Total != 4 || o.Done != 4 {
		t.Errorf("%d of %d steps, want 4 of 4", o.Done, o.Total)
	}
	// Cancelled in the middle: it stays two shards, each on three nodes.
	waitOp(t, c, 1, startOp(t, c, 1, placement.Op{Kind: placement.OpMove, Shard: 5, From: c.Node(0).ID(), To: c.Node(five).ID()}), 20*time.Second, placement.OpDone)
	id := startOp(t, c, 1, placement.Op{Kind: placement.OpMerge, Shard: 4, Other: 5})
	if err := c.Node(1).CancelOp(deadline(t, 5*time.Second), id); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, 20*time.Second, func() error {
		o, err := c.Node(1).ReadOp(deadline(t, 2*time.Second), id)
		if err == nil && o.State == placement.OpRunning {
			err = fmt.Errorf("%s: %q, %q", o, o.Step, o.Reason)
		}
		return err
	})
	tr.end(1)
	nodetest.Eventually(t, 20*time.Second, func() error {
		replicas, _ := count(t, c, 0, 1, 2, four, five)
		sum := 0
		for _, n := range replicas {
			sum += n
		}
		if want := 3 * shardsOf(t, c, 1); sum != want {
			return fmt.Errorf("%d replicas, want %d: %v", sum, want, replicas)
		}
		return nil
	})
	read2(t, c, five, 60)
}

// A node that joins gets its share of replicas and leaders by itself, gently, under traffic; then nothing more happens.
func TestAutoBalanceAfterJoin(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: 200 * time.Millisecond, Config: func(_ int, cfg *node.Config) {
		cfg.NoReplicaBalance = false
		node.SetLoadEvery(cfg, 200*time.Millisecond)
	}})
	c.Init(0, 12, 3)
	write(t, c, 0, 60, "v")
	four := c.Add()
	tr := startTraffic(t, c, 0, 1, 2)
	nodetest.Eventually(t, 60*time.Second, func() error {
		replicas, leaders := count(t, c, 0, 1, 2, four)
		for _, i := range []int{0, 1, 2, four} {
			if replicas[i] < 8 || replicas[i] > 10 || leaders[i] < 2 || leaders[i] > 4 {
				return fmt.Errorf("replicas %v, leaders %v", replicas, leaders)
			}
		}
		return nil
	})
	tr.end(four)
	read2(t, c, four, 60)
}

// Since when a node is down is known although the driver that has seen it go is gone too.
func TestProblemsOutliveTheDriver(t *testing.T) {
	c := nodetest.Start(t, 5, nodetest.Options{ElectionTimeout: 200 * time.Millisecond, Config: func(_ int, cfg *node.Config) {
		node.SetLoadEvery(cfg, 100*time.Millisecond)
	}})
	c.Init(0, 4, 3)
	spare := -1 // without a replica of the meta shard
	leader := -1
	for i := range 5 {
		st, err := c.Node(i).Sched().Status(deadline(t, time.Second), shard.MetaShardID)
		switch {
		case err != nil:
			spare = i
		case st.Role == engine.RoleLeader:
			leader = i
		}
	}
	if spare < 0 || leader < 0 {
		t.Fatalf("spare %d, leader %d", spare, leader)
	}
	down := fmt.Sprintf("node %d (n%d,", c.Node(spare).ID(), spare+1)
	c.Kill(spare)
	var via int
	for via = 0; via == spare || via == leader; via++ {
	}
	since := func() (string, error) {
		st, err := c.Node(via).StatusOf(deadline(t, 3*time.Second))
		if err != nil {
			return "", err
		}
		for _, p := range st.Problems {
			if strings.HasPrefix(p, down) {
				_, at, _ := strings.Cut(p, "since ")
				at, _, _ = strings.Cut(at, " ")
				return at, nil
			}
		}
		return "", fmt.Errorf("%+v", st.Problems)
	}
	nodetest.Eventually(t, 20*time.Second, func() error {
		list, err := c.Node(via).Recorded(deadline(t, 2*time.Second))
		if err == nil && !strings.Contains(strings.Join(list, " "), "/down") {
			err = fmt.Errorf("recorded: %v", list)
		}
		return err
	})
	before, err := since()
	if err != nil {
		t.Fatal(err)
	}
	c.Kill(leader)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if after, err := since(); err != nil || after != before {
			return fmt.Errorf("since %q, before %q, %v", after, before, err)
		}
		return nil
	})
	c.Restart(leader)
	c.Restart(spare)
	nodetest.Eventually(t, 20*time.Second, func() error {
		list, err := c.Node(via).Recorded(deadline(t, 2*time.Second))
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("recorded: %v", list)
		}
		return err
	})
}
