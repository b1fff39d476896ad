package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

// TestStorm reshapes a cluster at random, under a load whose outcome is judged, while nodes are killed and stand still: splits, merges, moves,
// transfers, drains. Half a minute, or ten with KILORAFT_E2E=full, or the seconds in KILORAFT_E2E_STORM_S. The seed repeats what is tried, not the timing: these are real processes.
func TestStorm(t *testing.T) {
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	duration := time.Duration(size(t, "KILORAFT_E2E_STORM_S", 30, 600)) * time.Second
	c := start(t, 4, "--auto-balance=false", "--auto-balance-leaders=false", "--store-log-segment-size", "1MiB", "--store-log-keep-size", "32KiB")
	c.init(8)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seed)
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	storm := make(chan struct{})
	go func() {
		defer close(storm)
		w := &walker{cluster: c, rng: rand.New(rand.NewPCG(seed, 4))}
		for ctx.Err() == nil {
			w.reshape(ctx)
			sleep(ctx, time.Duration(20+w.rng.IntN(150))*time.Millisecond)
		}
	}()
	kills := 0
	for sleep(ctx, time.Duration(500+rng.IntN(3000))*time.Millisecond) {
		kills++
		c.disturb(rng)
	}
	<-storm
	c.calm()
	c.quiet(2 * time.Minute)
	load.stop()
	all := a.settled(time.Minute)
	load.verify()
	a.everything(kills)
	a.disks(all)
}

// sleep waits, and tells whether ctx still goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// disturb kills a node, or lets it stand still, for a while. Rarely it is all of them.
func (c *cluster) disturb(rng *rand.Rand) {
	c.t.Helper()
	victims, pause := []int{rng.IntN(len(c.Nodes))}, time.Duration(rng.IntN(2500))*time.Millisecond
	if rng.IntN(20) == 0 {
		victims, pause = []int{0, 1, 2, 3}, 0
	}
	if rng.IntN(3) == 0 {
		for _, v := range victims {
			if err := c.Nodes[v].Signal(syscall.SIGSTOP); err != nil {
				c.t.Fatal(err)
			}
		}
		time.Sleep(pause)
		for _, v := range victims {
			if err := c.Nodes[v].Signal(syscall.SIGCONT); err != nil {
				c.t.Fatal(err)
			}
		}
		return
	}
	for _, v := range victims {
		c.Nodes[v].Kill()
	}
	time.Sleep(pause)
	for _, v := range victims {
		c.restart(v)
	}
}

// calm ends all drains.
func (c *cluster) calm() {
	c.t.Helper()
	eventually(c.t, 30*time.Second, func() error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		nodes, err := c.kv.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.State != "up" {
				return fmt.Errorf("node %d is %s: %v", n.ID, n.State, c.admin().Undrain(ctx, n.ID))
			}
		}
		return nil
	})
}

// reshape starts a random operation. What is refused, or cannot be answered now, is part of the storm.
func (w *walker) reshape(ctx context.Context) {
	actx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	list, err := w.kv.Shards(actx, 0)
	if err != nil || len(list) == 0 {
		return
	}
	s := list[w.rng.IntN(len(list))]
	var spec client.OpSpec
	switch p := w.rng.IntN(100); {
	case p < 25 && len(list) < 30:
		key, ok := client.KeyIn(s, fmt.Sprintf("%08x", w.rng.Uint32()))
		if !ok {
			return
		}
		spec = client.OpSpec{Kind: "split", Shard: s.ID, Keys: [][]byte{key}}
	case p < 55:
		i := w.pair(list)
		if i < 0 {
			return
		}
		spec = client.OpSpec{Kind: "merge", Shard: list[i].ID, Other: list[i+1].ID}
	case p < 80:
		var free []uint64
		for n := range uint64(len(w.Nodes)) {
			if !slices.Contains(nodesOf(s), n+1) {
				free = append(free, n+1)
			}
		}
		if len(free) == 0 {
			return
		}
		spec = client.OpSpec{Kind: "move", Shard: s.ID, From: nodesOf(s)[w.rng.IntN(len(s.Replicas))], To: free[0]}
	case p < 97:
		spec = client.OpSpec{Kind: "transfer", Shard: s.ID, To: nodesOf(s)[w.rng.IntN(len(s.Replicas))]}
	default:
		n := uint64(1 + w.rng.IntN(len(w.Nodes)))
		if _, err := w.admin().StartOp(actx, client.OpSpec{Kind: "drain", From: n}); err == nil {
			sleep(ctx, time.Duration(500+w.rng.IntN(2000))*time.Millisecond)
		}
		for ctx.Err() == nil {
			uctx, ucancel := context.WithTimeout(ctx, 5*time.Second)
			err := w.admin().Undrain(uctx, n)
			ucancel()
			if err == nil {
				return
			}
		}
		return
	}
	switch _, err := w.admin().StartOp(actx, spec); {
	case err == nil, errors.Is(err, client.ErrInvalid), errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrUnknown), errors.Is(err, client.ErrNotFound):
	default:
		w.t.Errorf("%+v: %v", spec, err)
	}
}

// everything requires that the storm has seen the end of each kind of operation.
func (a *audit) everything(kills int) {
	ops, err := a.c.admin().Ops(a.c.t.Context(), 0)
	if err != nil {
		a.c.t.Fatal(err)
	}
	count := map[string]int{}
	for _, o := range ops {
		count[o.Kind+" "+o.State]++
		if o.State == "failed" {
			a.c.t.Logf("%s failed at %q: %s", o.What, o.Step, o.Error)
		}
	}
	a.c.t.Logf("%d disturbances, %d shards were seen, operations: %v", kills, len(a.epochs), count)
	for _, kind := range []string{"split", "merge", "move", "transfer"} {
		if count[kind+" done"] == 0 {
			a.c.t.Errorf("no %s was done", kind)
		}
	}
}
