package node_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

// These tests run whole nodes, with their goroutines, disks and yamux, in a bubble of testing/synctest: time goes on when all wait, so
// time-outs cost nothing and are exact, and a goroutine that outlives its node fails the test.

// bubble runs f on virtual time. Two collections empty the pools: a timer of yamux's must not cross from one bubble to the next.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	collect := func() { runtime.GC(); runtime.GC() }
	collect()
	defer collect()
	synctest.Test(t, f)
}

func virtualCluster(t *testing.T, n int, election time.Duration) (*nodetest.Cluster, *virtualNet) {
	vn := newVirtualNet(time.Millisecond)
	c := nodetest.Start(t, n, nodetest.Options{ElectionTimeout: election, Config: func(_ int, cfg *node.Config) { vn.plug(cfg) }})
	return c, vn
}

// isolate takes node i off the network.
func (n *virtualNet) isolate(c *nodetest.Cluster, i int, how string) {
	for j, a := range c.Addrs() {
		if j != i {
			n.hurt(c.Addrs()[i], a, how)
		}
	}
}

// TestVirtualPartition writes while each node in turn is cut off, or swallowed without a sign, and while nodes stop and start.
func TestVirtualPartition(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, vn := virtualCluster(t, 3, 400*time.Millisecond)
		c.Init(0, 6, 3)
		write(t, c, 0, 20, "a")
		for i := range 3 {
			how, other := []string{"cut", "lost"}[i%2], (i+1)%3
			vn.isolate(c, i, how)
			value := fmt.Sprint(how, i)
			write(t, c, other, 20, value)
			// The one that is alone answers in time that it cannot, and never with the old value.
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			e, err := c.Node(i).Client().Get(ctx, key(0))
			cancel()
			if err == nil {
				t.Errorf("node %d answers %q while it is alone", i+1, e.Value)
			}
			if took := time.Since(began); took > 6*time.Second {
				t.Errorf("a read with a deadline of 5 s took %v", took)
			}
			vn.heal()
			read(t, c, i, 20, value)
		}
		c.Stop(0)
		write(t, c, 1, 20, "b")
		c.Restart(0)
		c.Kill(1)
		read(t, c, 0, 20, "b")
		c.Restart(1)
		read(t, c, 1, 20, "b")
	})
}

// TestVirtualIdle lets an hour pass in which nobody asks for anything: all user shards sleep, and nodes send heartbeats and next to nothing else.
func TestVirtualIdle(t *testing.T) {
	real := time.Now()
	span := time.Hour
	if testing.Short() { // the race detector is slow
		span = 5 * time.Minute
	}
	bubble(t, func(t *testing.T) {
		const heartbeat = 500 * time.Millisecond // a tenth of the election time-out
		c, vn := virtualCluster(t, 3, 10*heartbeat)
		c.Init(0, 20, 3)
		write(t, c, 0, 20, "a")
		time.Sleep(10 * time.Minute)
		vn.writes()
		began := time.Now()
		time.Sleep(span)
		if d := time.Since(began); d != span {
			t.Errorf("%v took %v", span, d)
		}
		links := 3 * 2
		beats := links * int(span/heartbeat)
		got := vn.writes()
		t.Logf("%d writes, %d heartbeats are due", got, beats)
		if got > 2*beats {
			t.Errorf("%d writes while idle, of %d heartbeats", got, beats)
		}
		asleep := 0
		for i := range 3 {
			list, err := c.Node(i).Replicas(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				if r.Quiesced {
					asleep++
				}
			}
		}
		if asleep < 20*3 {
			t.Errorf("%d of 60 replicas of user shards sleep", asleep)
		}
		read(t, c, 1, 20, "a")
	})
	t.Logf("%v in %v", span+10*time.Minute, time.Since(real).Round(time.Millisecond))
}

// TestVirtualStops stops nodes at different points of their lives, also amid an init and amid writes; the bubble does not end if a goroutine
// stays.
func TestVirtualStops(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 7 * time.Millisecond, 100 * time.Millisecond, 2 * time.Second} {
		bubble(t, func(t *testing.T) {
			c, _ := virtualCluster(t, 3, 400*time.Millisecond)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = c.Node(0).Init(ctx, node.InitOptions{Shards: 4, Replicas: 3, Nodes: 3}) })
			client := c.Node(1).Client()
			wg.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					if _, err := client.Put(ctx, key(k), []byte("v")); err != nil {
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
			time.Sleep(after)
			c.Kill(2)
			c.Stop(1)
			cancel()
			wg.Wait()
		})
	}
}

// TestVirtualRace has clients count through all nodes while links break, on real goroutines: for the race detector, and for the sum.
func TestVirtualRace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, vn := virtualCluster(t, 3, 400*time.Millisecond)
		c.Init(0, 3, 3)
		var acked, unknown atomic.Int64
		done := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 3 {
			client := c.Node(i).Client()
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
					}
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
					if _, err := client.Add(ctx, []byte("count"), 1); err == nil {
						acked.Add(1)
					} else {
						unknown.Add(1)
					}
					cancel()
				}
			})
		}
		for i := range 6 {
			time.Sleep(time.Second)
			vn.isolate(c, i%3, []string{"cut", "lost"}[i%2])
			time.Sleep(time.Second)
			vn.heal()
		}
		close(done)
		wg.Wait()
		sum, err := c.Node(2).Client().Add(t.Context(), []byte("count"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if lo, hi := acked.Load(), acked.Load()+unknown.Load(); sum < lo || sum > hi || lo == 0 {
			t.Errorf("the counter is %d after %d acknowledged additions and %d of unknown outcome", sum, lo, unknown.Load())
		}
		t.Logf("%d additions, %d of unknown outcome", acked.Load(), unknown.Load())
	})
}
