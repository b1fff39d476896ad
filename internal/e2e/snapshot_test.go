package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// TestSnapshot takes a node away until the log that it would need is gone, and brings it back while writes go on.
func TestSnapshot(t *testing.T) {
	const shards = 10
	c := start(t, 3, "--store-log-segment-size", "1MiB", "--store-log-keep-size", "64KiB", "--store-log-cache-size", "1MiB")
	c.init(shards)
	list := c.shards()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	counters := demo.StartCounters(ctx, c.kv, list, "snapshot", 5*time.Millisecond)
	defer counters.Stop()
	counters.Mark()
	if _, err := counters.WaitWritable(ctx); err != nil {
		t.Fatal(err)
	}
	c.measureSize(shards)
	c.Nodes[0].Kill()
	counters.Mark()
	if _, err := counters.WaitWritable(ctx); err != nil {
		t.Fatal(err)
	}
	// 24 MiB of values, 2.4 MiB a shard: far more than the log keeps.
	value := make([]byte, 16<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 1500 {
		for j := range value[:64] {
			value[j] = byte(rng.Uint32())
		}
		if _, err := c.kv.Put(ctx, fmt.Appendf([]byte{byte(i * 7)}, "/%d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	before := counters.Acked()
	begin := time.Now()
	c.restart(0)
	var received float64
	eventually(t, time.Minute, func() error {
		if received = metrics(t, c.Nodes[0])["kiloraft_raft_snapshots_received_total"]; received < shards/2 {
			return fmt.Errorf("%v snapshots received", received)
		}
		return nil
	})
	during := counters.Acked() - before
	counters.Stop()
	if err := demo.WaitEqual(ctx, c.kv, list); err != nil {
		t.Fatal(err)
	}
	t.Logf("%.0f snapshots received, all replicas equal %v after the restart, %d adds meanwhile", received, time.Since(begin), during)
	if during == 0 {
		t.Error("no writes went on meanwhile")
	}
	if err := counters.Verify(ctx, c.kv); err != nil {
		t.Fatal(err)
	}
}
