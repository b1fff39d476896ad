package e2e

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// TestNetwork severs, half-opens, blinds and slows the links of one node after the other, and lets nodes stand still for longer than a lease,
// under a load whose outcome is judged; then it restarts all nodes in turn.
func TestNetwork(t *testing.T) {
	seed := seedOf(t)
	pause, rounds := 2*time.Second, 1
	if full {
		pause, rounds = 6*time.Second, 4
	}
	c := startWith(t, demo.Options{Nodes: 3, Links: true, Dir: t.TempDir(), Args: []string{"--auto-balance=false", "--auto-balance-leaders=false"}})
	n := c.Links
	c.init(8)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seed)
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
	both := func(how demo.Fault) func(v, o int) {
		return func(v, o int) { n.Hurt(v, o, how); n.Hurt(o, v, how) }
	}
	cut := func(d demo.Damage) int { return d.CutConns }
	lost := func(d demo.Damage) int { return d.LostBytes }
	slowed := func(d demo.Damage) int { return d.SlowBytes }
	for round := range rounds {
		for i, f := range []struct {
			name string
			hurt func(victim, other int)
			done func(demo.Damage) int
		}{
			{"severed", both(demo.Cut), cut}, {"half open", both(demo.Lost), lost}, {"slow", both(demo.Slow), slowed},
			{"mute", func(v, o int) { n.Hurt(v, o, demo.Lost) }, lost}, {"deaf", func(v, o int) { n.Hurt(o, v, demo.Lost) }, lost},
		} {
			n.Damage() // what was done before
			victim := (i + round + int(seed%3)) % 3
			for o := range c.Nodes {
				if o != victim {
					f.hurt(victim, o)
				}
			}
			time.Sleep(pause)
			done := n.Damage()
			n.Heal()
			t.Logf("%s: node %d: %+v", f.name, victim+1, done)
			if f.done(done) == 0 {
				t.Errorf("%s: node %d: nothing was hurt", f.name, victim+1)
			}
			c.writable(load, fmt.Sprintf("%s: node %d", f.name, victim+1))
		}
		p := c.Nodes[(round+int(seed%3))%3]
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause + time.Second)
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.writable(load, "stood still: "+p.Name)
		for i, p := range c.Nodes {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			err := p.Stop(ctx)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			c.restart(i)
			c.writable(load, "restarted: "+p.Name)
		}
	}
	load.stop()
	all := a.settled(time.Minute)
	load.verify()
	a.disks(all)
}

// writable waits until every shard takes writes.
func (c *cluster) writable(load *workload, what string) {
	c.t.Helper()
	load.counters.Mark()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	over, err := load.counters.WaitWritable(ctx)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	c.t.Logf("%s: every shard takes writes after %v", what, over.Last.Round(time.Millisecond))
}
