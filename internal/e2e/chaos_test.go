package e2e

import (
	"context"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// TestChaos kills and pauses one node after another under a load of counters, then lets the cluster heal and compares everything. The
// seed is printed; KILORAFT_E2E_SEED repeats the choice of victims (not the timing: these are real processes).
func TestChaos(t *testing.T) {
	rounds := 3
	if full {
		rounds = 20
	}
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	c := start(t, 3, "--store-log-segment-size", "1MiB", "--store-log-keep-size", "32KiB")
	c.init(100)
	list := c.shards()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	counters := demo.StartCounters(ctx, c.kv, list, "chaos", 20*time.Millisecond)
	defer counters.Stop()
	for round := range rounds {
		victim := rng.IntN(3)
		pause := time.Duration(rng.IntN(2500)) * time.Millisecond
		if rng.IntN(3) == 0 {
			t.Logf("round %d: node %d stands still for %v", round, victim+1, pause)
			if err := c.Nodes[victim].Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause)
			if err := c.Nodes[victim].Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		} else {
			t.Logf("round %d: node %d is killed and away for %v", round, victim+1, pause)
			c.Nodes[victim].Kill()
			time.Sleep(pause)
			c.restart(victim)
		}
		counters.Mark()
		wait, cancel := context.WithTimeout(ctx, 30*time.Second)
		over, err := counters.WaitWritable(wait)
		cancel()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("round %d: every shard takes writes after %v", round, over.Last)
	}
	counters.Stop()
	heal, cancelHeal := context.WithTimeout(ctx, time.Minute)
	defer cancelHeal()
	if err := demo.WaitEqual(heal, c.kv, list); err != nil {
		t.Fatal(err)
	}
	if err := counters.Verify(ctx, c.kv); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged adds, %d of unknown outcome: all counters are right", counters.Acked(), counters.Unknown())
}
