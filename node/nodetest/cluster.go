package nodetest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/ports"
	"github.com/kiloraft/kiloraft/node"
)

// Options of a Cluster. The zero value is good.
type Options struct {
	// ElectionTimeout is short by default, for tests that wait for elections.
	ElectionTimeout time.Duration
	// Config changes a node's configuration before it is opened.
	Config func(i int, cfg *node.Config)
	// Verbose logs the nodes through the test.
	Verbose bool
}

// Cluster is a number of nodes.
type Cluster struct {
	tb    testing.TB
	opt   Options
	dirs  []string
	addrs []string
	nodes []*node.Node
}

// Start starts n nodes that know of each other and wait for a cluster. They stop with the test.
func Start(tb testing.TB, n int, opt Options) *Cluster {
	tb.Helper()
	if opt.ElectionTimeout == 0 {
		opt.ElectionTimeout = 400 * time.Millisecond
	}
	c := &Cluster{tb: tb, opt: opt, nodes: make([]*node.Node, n)}
	root := tb.TempDir()
	var listeners []net.Listener
	for i := range n {
		l, err := ports.Listen()
		if err != nil {
			tb.Fatal(err)
		}
		listeners = append(listeners, l)
		c.addrs = append(c.addrs, l.Addr().String())
		c.dirs = append(c.dirs, filepath.Join(root, fmt.Sprintf("n%d", i+1)))
	}
	tb.Cleanup(c.stop)
	for i := range n {
		c.open(i, listeners[i])
	}
	return c
}

func (c *Cluster) open(i int, l net.Listener) {
	c.tb.Helper()
	cfg := node.Config{
		DataDir:         c.dirs[i],
		Listen:          c.addrs[i],
		HTTP:            "127.0.0.1:0",
		Join:            c.addrs,
		Name:            fmt.Sprintf("n%d", i+1),
		ElectionTimeout: c.opt.ElectionTimeout,
		LogSegmentBytes: 4 << 20,
		Listener:        l,
		Fatal:           func(err error) { c.tb.Errorf("node %d: fatal: %v", i+1, err) },
	}
	// What the cluster does by itself is off: tests say what they want.
	cfg.AutoSplitSize, cfg.AutoSplitLoad, cfg.AutoMergeAfter, cfg.NoReplicaBalance = -1, -1, -1, true
	if c.opt.Verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(writer{c.tb}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("on", cfg.Name)
	}
	if c.opt.Config != nil {
		c.opt.Config(i, &cfg)
	}
	n, err := node.Open(context.Background(), cfg)
	if err != nil {
		c.tb.Fatalf("node %d: %v", i+1, err)
	}
	c.nodes[i] = n
}

// writer logs through a test.
type writer struct{ tb testing.TB }

func (w writer) Write(b []byte) (int, error) {
	w.tb.Log(string(b))
	return len(b), nil
}

// Init makes the cluster by way of node i.
func (c *Cluster) Init(i, shards, replicas int) node.InitResult {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	res, err := c.nodes[i].Init(ctx, node.InitOptions{Shards: shards, Replicas: replicas, Nodes: len(c.nodes)})
	if err != nil {
		c.tb.Fatalf("init: %v", err)
	}
	return res
}

// Add starts one more node, which joins the cluster through the others, and returns its number. Its directory is new.
func (c *Cluster) Add() int {
	c.tb.Helper()
	l, err := ports.Listen()
	if err != nil {
		c.tb.Fatal(err)
	}
	i := len(c.nodes)
	c.addrs = append(c.addrs, l.Addr().String())
	c.dirs = append(c.dirs, filepath.Join(filepath.Dir(c.dirs[0]), fmt.Sprintf("n%d", i+1)))
	c.nodes = append(c.nodes, nil)
	c.open(i, l)
	Eventually(c.tb, 10*time.Second, func() error {
		if c.nodes[i].ID() == 0 {
			return errors.New("the node has not joined")
		}
		return nil
	})
	return i
}

// Wipe empties the directory of node i, which was stopped or killed: its disk is lost.
func (c *Cluster) Wipe(i int) {
	c.tb.Helper()
	if err := os.RemoveAll(c.dirs[i]); err != nil {
		c.tb.Fatal(err)
	}
}

// Node returns node i, nil if it is stopped. Nodes are counted from 0.
func (c *Cluster) Node(i int) *node.Node { return c.nodes[i] }

// Addrs returns the addresses of all nodes; they stay the same over restarts.
func (c *Cluster) Addrs() []string { return c.addrs }

// Dir returns the data directory of node i.
func (c *Cluster) Dir(i int) string { return c.dirs[i] }

// Kill stops node i as a crash would.
func (c *Cluster) Kill(i int) {
	c.nodes[i].Abort()
	c.nodes[i] = nil
}

// Stop closes node i gracefully.
func (c *Cluster) Stop(i int) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.nodes[i].Close(ctx); err != nil {
		c.tb.Errorf("close node %d: %v", i+1, err)
	}
	c.nodes[i] = nil
}

// Restart starts node i, which was stopped or killed, on its directory and address.
func (c *Cluster) Restart(i int) {
	c.tb.Helper()
	var l net.Listener
	Eventually(c.tb, 5*time.Second, func() (err error) {
		l, err = net.Listen("tcp", c.addrs[i])
		return err
	})
	c.open(i, l)
}

// stop aborts all nodes: together they have nobody to hand their shards to.
func (c *Cluster) stop() {
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		if n != nil {
			wg.Add(1)
			go func() {
				defer wg.Done()
				n.Abort()
			}()
		}
	}
	wg.Wait()
}

// Eventually repeats f until it returns nil, and fails the test with its last error if that takes longer than within.
func Eventually(tb testing.TB, within time.Duration, f func() error) {
	tb.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("after %v: %v", within, err)
		}
		time.Sleep(5 * time.Millisecond) // the pace of looking, not a synchronization
	}
}
