package node_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// shards returns what node i says of all shards.
func shards(t *testing.T, c *nodetest.Cluster, i int) []api.ShardInfo {
	t.Helper()
	body, err := c.Node(i).Client().Call(deadline(t, 5*time.Second), 0, "", api.MethodShards, (&api.ShardsRequest{}).Append(nil))
	if err != nil {
		t.Fatalf("shards: %v", err)
	}
	var page api.ShardsPage
	if err := api.Decode(body, &page); err != nil {
		t.Fatal(err)
	}
	return page.Shards
}

// checkEven waits until n shards have leaders, spread over all nodes: at once, or by the balancer where a busy machine has let others win.
func checkEven(t *testing.T, c *nodetest.Cluster, nodes, n int) {
	t.Helper()
	nodetest.Eventually(t, 30*time.Second, func() error { return even(shards(t, c, 0), nodes, n) })
}

func even(list []api.ShardInfo, nodes, n int) error {
	if len(list) != n {
		return fmt.Errorf("%d shards, want %d", len(list), n)
	}
	leaders, replicas := map[engine.NodeID]int{}, map[engine.NodeID]int{}
	for _, s := range list {
		leaders[s.Leader]++
		for _, r := range s.Descriptor.Replicas {
			replicas[r.Node]++
		}
	}
	if leaders[0] != 0 {
		return fmt.Errorf("%d shards without a leader", leaders[0])
	}
	for id := range engine.NodeID(nodes) {
		if got, want := leaders[id+1], n/nodes; got < want*8/10 || got > want*12/10+1 {
			return fmt.Errorf("node %d leads %d of %d shards: %v", id+1, got, n, leaders)
		}
		if got, want := replicas[id+1], n*3/nodes; got < want || got > want+1 {
			return fmt.Errorf("node %d has %d replicas, want %d: %v", id+1, got, want, replicas)
		}
	}
	return nil
}

func TestInitConcurrently(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: time.Second})
	var wg sync.WaitGroup
	results := make([]node.InitResult, 3)
	for i := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			results[i] = c.Init(i, 60, 3)
		}()
	}
	wg.Wait()
	for _, r := range results {
		if r.Cluster != results[0].Cluster || r.Cluster == ([16]byte{}) || r.Shards != 60 {
			t.Errorf("init: %+v", results)
		}
	}
	checkEven(t, c, 3, 60)
}

// An init that ends between any two of its steps, with all nodes killed after it, is completed by another one at another node.
func TestInitInterrupted(t *testing.T) {
	crash := errors.New("crash")
	for _, step := range []string{"reserved 1", "started 0", "meta written", "shards written 0", "shards made 1"} {
		t.Run(step, func(t *testing.T) {
			first := true
			c := nodetest.Start(t, 3, nodetest.Options{Config: func(i int, cfg *node.Config) {
				if i == 0 && first {
					node.SetFault(cfg, func(s string) error {
						if s == step {
							return crash
						}
						return nil
					})
				}
			}})
			first = false
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			const n = 300 // more than a batch
			if _, err := c.Node(0).Init(ctx, node.InitOptions{Shards: n, Nodes: 3}); !errors.Is(err, crash) {
				t.Fatalf("init: %v", err)
			}
			for i := range 3 {
				c.Kill(i)
			}
			for i := range 3 {
				c.Restart(i)
			}
			if res := c.Init(1, 5, 1); res.Already || res.Shards != n || res.Replicas != 3 {
				t.Errorf("second init: %+v", res)
			}
			if res := c.Init(2, 5, 1); !res.Already {
				t.Errorf("third init: %+v", res)
			}
			if got := len(shards(t, c, 0)); got != n {
				t.Errorf("%d shards, want %d", got, n)
			}
		})
	}
}

// A node that comes later becomes a member without replicas, under an id of its own, and keeps it.
func TestJoinLater(t *testing.T) {
	c := nodetest.Start(t, 2, nodetest.Options{})
	c.Init(0, 4, 2)
	cfg := node.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Join: c.Addrs()[1:], Name: "late", Fatal: func(err error) { t.Error(err) }}
	for range 2 {
		n, err := node.Open(context.Background(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		nodetest.Eventually(t, 10*time.Second, func() error {
			if n.ID() != 3 || n.ClusterID() != c.Node(0).ClusterID() {
				return fmt.Errorf("node %d of cluster %x", n.ID(), n.ClusterID())
			}
			_, err := n.Client().Put(deadline(t, 2*time.Second), []byte("k"), []byte("v"))
			return err
		})
		if err := n.Close(deadline(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
	}
}

// A newcomer cannot be reached where another node is.
func TestJoinAtTheAddressOfAnother(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 1, 3)
	join := func(addr string) error {
		req := api.JoinRequest{Identity: [16]byte{1, 2, 3}, Addr: addr, Name: "copy"}
		_, err := c.Node(0).Client().Call(deadline(t, 5*time.Second), 0, "", api.MethodJoin, req.Append(nil))
		return err
	}
	if err := join(c.Addrs()[1]); !errors.Is(err, shard.ErrUnavailable) || !strings.Contains(fmt.Sprint(err), "--advertise") {
		t.Error(err)
	}
	if err := join("127.0.0.1:1"); err != nil {
		t.Error(err)
	}
}
