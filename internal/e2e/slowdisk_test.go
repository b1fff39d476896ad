package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/internal/fault"
)

// TestSlowDisk makes the disk of one node slow, under load: others lead its shards before long, and no write fails. When the disk is good
// again the node has to wait a while, and then leads its share. Times are printed: the goal for the first is 2 s.
func TestSlowDisk(t *testing.T) {
	const shards = 30
	dir := t.TempDir()
	t.Setenv(fault.Env, dir)
	c := start(t, 3)
	c.init(shards)
	share := func(p *demo.Process) func() error {
		return func() error {
			if n := leaders(t, p); n < shards/3-2 {
				return fmt.Errorf("%s leads %d of %d shards", p.Name, n, shards)
			}
			return nil
		}
	}
	p := startProbe(t, c.kv, 8, 20*time.Millisecond, anyKey, 100)
	slow := c.Nodes[slices.IndexFunc(c.Nodes, func(p *demo.Process) bool { return leaders(t, p) > 0 })]
	eventually(t, time.Minute, share(slow))

	begin := time.Now()
	end := slowDisk(t, dir, slow.PID(), time.Second)
	nothing := func() error {
		if n := leaders(t, slow); n > 0 {
			return fmt.Errorf("%s leads %d shards", slow.Name, n)
		}
		return nil
	}
	eventually(t, time.Minute, nothing)
	moved := time.Now()
	t.Logf("a sync takes a second longer: the node leads nothing after %v", moved.Sub(begin).Round(time.Millisecond))
	eventually(t, time.Minute, func() error { return allLed(t, c, shards) })
	t.Logf("others lead all shards after %v", time.Since(begin).Round(time.Millisecond))
	time.Sleep(2 * time.Second) // of writes, to see how they do
	eventually(t, time.Minute, nothing)

	end()
	good := time.Now()
	eventually(t, 2*time.Minute, share(slow))
	t.Logf("the disk is good again: the node leads its share after %v", time.Since(good).Round(time.Millisecond))
	p.stop(t)
	t.Logf("writes before: %s", p.between(begin.Add(-time.Hour), begin))
	t.Logf("writes until it led nothing: %s", p.between(begin, moved))
	t.Logf("writes from then on, while its disk was slow: %s", p.between(moved, good))
	t.Logf("writes afterwards: %s", p.between(good, time.Now()))
}

// slowDisk makes each sync of a process take so much longer, until the function that it returns is called.
func slowDisk(t *testing.T, dir string, pid int, by time.Duration) (end func()) {
	t.Helper()
	path := filepath.Join(dir, fault.DiskSync+"@"+strconv.Itoa(pid))
	if err := os.WriteFile(path+".new", []byte(by.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// allLed checks that the nodes together lead all shards and the meta shard.
func allLed(t *testing.T, c *cluster, shards int) error {
	led := 0
	for _, p := range c.Nodes {
		led += leaders(t, p)
	}
	if led < shards+1 {
		return fmt.Errorf("%d of %d shards are led", led, shards+1)
	}
	return nil
}
