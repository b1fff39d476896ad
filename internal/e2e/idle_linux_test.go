package e2e

import (
	"strconv"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// TestTenThousandShards makes 10,000 shards, writes into each, and measures what a minute of idleness costs. With fewer shards and a shorter
// look it also runs in the short form.
func TestTenThousandShards(t *testing.T) {
	shards, watch := 2000, 5*time.Second
	if full {
		shards, watch = 10_000, time.Minute
	}
	c := start(t, 3)
	t.Logf("cluster init --shards %d: every shard has a leader after %v", shards, c.init(shards))
	list := c.shards()
	if len(list) != shards {
		t.Fatalf("%d shards", len(list))
	}
	counters := demo.StartCounters(t.Context(), c.kv, list, "idle", time.Second)
	counters.Mark()
	begin := time.Now()
	if _, err := counters.WaitWritable(t.Context()); err != nil {
		t.Fatal(err)
	}
	counters.Stop()
	t.Logf("a write into each of the %d shards after %v", shards, time.Since(begin))
	c.measureSize(shards)
	time.Sleep(8 * time.Second) // shards fall asleep, checkpoints end
	var before, used time.Duration
	turns := 0.0
	for _, p := range c.Nodes {
		before += cpuTime(t, p)
		turns -= metrics(t, p)["kiloraft_sched_turns_total"]
	}
	time.Sleep(watch)
	for _, p := range c.Nodes {
		used += cpuTime(t, p)
		turns += metrics(t, p)["kiloraft_sched_turns_total"]
	}
	used -= before
	share := 100 * used.Seconds() / watch.Seconds()
	t.Logf("idle with %d shards: three processes used %v in %v, %s %% of a core; %.0f turns a second", shards, used, watch,
		strconv.FormatFloat(share, 'f', 1, 64), turns/watch.Seconds())
	if share > 15 {
		t.Errorf("idle nodes use %.1f %% of a core", share)
	}
	if err := counters.Verify(t.Context(), c.kv); err != nil {
		t.Fatal(err)
	}
}
