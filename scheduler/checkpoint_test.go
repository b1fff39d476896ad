package scheduler

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
)

// TestCheckpointOrder: what somebody waits for is written before all else, and never with it.
func TestCheckpointOrder(t *testing.T) {
	s := &Scheduler{}
	s.cfg.defaults()
	c := newCheckpointer(s)
	reps := make([]*replica, 6)
	for i := range reps {
		reps[i] = &replica{key: store.Key{Shard: engine.ShardID(i), Replica: 1}}
	}
	for _, r := range reps[:4] {
		c.put(ckptItem{r: r}, false)
	}
	if c.hurried() {
		t.Error("nobody waits")
	}
	c.put(ckptItem{r: reps[4]}, true)
	c.expedite(reps[2])
	c.expedite(reps[2])
	c.expedite(reps[5]) // not queued
	if !c.hurried() {
		t.Error("somebody waits")
	}
	check := func(want ...engine.ShardID) {
		t.Helper()
		items, _ := c.take()
		if len(items) != len(want) {
			t.Fatalf("%d items, want %v", len(items), want)
		}
		for i, it := range items {
			if it.r.key.Shard != want[i] {
				t.Errorf("item %d is of shard %d, want %v", i, it.r.key.Shard, want)
			}
		}
	}
	check(4, 2)
	check(0, 1, 3)
	check()
}

func TestRestAfterCheckpoint(t *testing.T) {
	if got := restAfter(4*time.Second, 1); got != restTime {
		t.Errorf("after a long one: %v", got)
	}
	for _, c := range []struct {
		filled float64
		want   time.Duration
	}{{0, 300 * time.Millisecond}, {1, 300 * time.Millisecond}, {1.375, 150 * time.Millisecond}, {1.75, 0}, {3, 0}} {
		if got := restAfter(100*time.Millisecond, c.filled); got != c.want {
			t.Errorf("filled %v: rest %v, want %v", c.filled, got, c.want)
		}
	}
}
