package e2e

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// TestChaos kills and pauses one node after another under a load whose outcome is judged, with segments so small that the log comes and goes; then it lets the
// cluster heal and compares everything, on the disks too. The seed is printed; KILORAFT_E2E_SEED repeats the choice of victims (not the timing: these are real processes).
func TestChaos(t *testing.T) {
	rounds := 3
	if full {
		rounds = 20
	}
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	c := start(t, 3, "--store-log-segment-size", "1MiB", "--store-log-keep-size", "32KiB", "--auto-balance=false", "--auto-balance-leaders=false")
	c.init(100)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seed)
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
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
		c.writable(load, fmt.Sprintf("round %d", round))
	}
	load.stop()
	all := a.settled(time.Minute)
	load.verify()
	a.disks(all)
}
