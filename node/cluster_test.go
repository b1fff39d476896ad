package node_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/shard"
)

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func key(i int) []byte { return fmt.Appendf(nil, "%ckey-%d", byte(i*37), i) }

// write puts n keys through node i.
func write(t *testing.T, c *nodetest.Cluster, i, n int, value string) {
	t.Helper()
	ctx := deadline(t, 20*time.Second)
	for k := range n {
		if _, err := c.Node(i).Client().Put(ctx, key(k), []byte(value)); err != nil {
			t.Fatalf("put %q through node %d: %v", key(k), i+1, err)
		}
	}
}

// read finds n keys through node i, one by one and by a scan.
func read(t *testing.T, c *nodetest.Cluster, i, n int, value string) {
	t.Helper()
	ctx := deadline(t, 20*time.Second)
	for k := range n {
		e, err := c.Node(i).Client().Get(ctx, key(k))
		if err != nil || string(e.Value) != value {
			t.Fatalf("get %q through node %d: %q, %v", key(k), i+1, e.Value, err)
		}
	}
	found := 0
	for e, err := range c.Node(i).Client().Scan(ctx, nil, nil) {
		if err != nil {
			t.Fatalf("scan through node %d: %v", i+1, err)
		}
		if string(e.Value) != value {
			t.Fatalf("scan through node %d: %q is %q", i+1, e.Key, e.Value)
		}
		found++
	}
	if found != n {
		t.Fatalf("scan through node %d: %d keys, want %d", i+1, found, n)
	}
}

func TestClusterServes(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	if _, err := c.Node(0).Client().Get(deadline(t, time.Second), []byte("k")); !errors.Is(err, shard.ErrUnavailable) && !errors.Is(err, shard.ErrNotInitialized) {
		t.Errorf("before init: %v", err)
	}
	began := time.Now()
	res := c.Init(1, 50, 3)
	t.Logf("init of 50 shards: %v", time.Since(began))
	if res.Already || len(res.Nodes) != 3 || res.Shards != 50 {
		t.Errorf("init: %+v", res)
	}
	if again := c.Init(2, 7, 1); !again.Already || again.Cluster != res.Cluster || again.Shards != 50 {
		t.Errorf("second init: %+v", again)
	}
	const n = 100
	write(t, c, 0, n, "a")
	for i := range 3 {
		read(t, c, i, n, "a")
	}
	// All restarted.
	for i := range 3 {
		c.Kill(i)
	}
	for i := range 3 {
		c.Restart(i)
	}
	read(t, c, 2, n, "a")
	// One is gone.
	c.Kill(1)
	write(t, c, 2, n, "b")
	read(t, c, 0, n, "b")
	c.Restart(1)
	read(t, c, 1, n, "b")
}
