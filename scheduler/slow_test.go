package scheduler

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// TestSlowOperation: a slow write is logged with the stage that took longest; those over the limit are counted and told of later.
func TestSlowOperation(t *testing.T) {
	s, clock := single(t, 2)
	var out bytes.Buffer
	s.logger = slog.New(slog.NewTextHandler(&out, nil))
	s.cfg.SlowAfter = engine.Duration(time.Second)
	lane, m := s.lanes[0], s.Metrics()
	send := func(n int, arrived engine.Instant) {
		for i := range n {
			s.Submit(&Request{Kind: KindWrite, Shard: 1, Arrived: arrived, Body: testPut(1, i, "v"), Done: func(r *Request) {
				if r.Err != nil {
					t.Error(r.Err)
				}
			}})
		}
	}
	step := func(after time.Duration) {
		clock.now += engine.Instant(after)
		lane.Turn()
	}
	send(1, 0) // quick
	step(0)
	s.FlushLog()
	step(100 * time.Millisecond)
	if out.Len() != 0 || m.CommitLatency.count.Load() == 0 {
		t.Fatalf("%d commits, log:\n%s", m.CommitLatency.count.Load(), out.String())
	}
	send(slowLogged+3, 0) // the disk is slow
	step(0)
	clock.now += engine.Instant(2 * time.Second)
	s.FlushLog()
	step(0)
	if got := m.Slow[StageLogSync].Load(); got != slowLogged+3 {
		t.Errorf("%d slow because of the log, want %d", got, slowLogged+3)
	}
	if n := strings.Count(out.String(), "slow operation"); n != slowLogged || !strings.Contains(out.String(), "stage=log_sync took=2s log_sync=2s") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
	out.Reset()
	arrived := clock.now
	clock.now += engine.Instant(3 * time.Second)
	send(1, arrived) // the lane was busy elsewhere
	step(0)
	s.FlushLog()
	step(0)
	if got := m.Slow[StageQueue].Load(); got != 1 || !strings.Contains(out.String(), "stage=queue took=3s queue=3s suppressed=3") {
		t.Errorf("%d slow in the queue:\n%s", got, out.String())
	}
}

func TestSpans(t *testing.T) {
	second := engine.Instant(time.Second)
	for _, c := range []struct {
		name  string
		req   Request
		stage Stage
	}{
		{"never proposed", Request{Kind: KindWrite, began: 1}, StageQueue},
		{"a slow follower", Request{Kind: KindWrite, began: 1, proposed: second, applying: 9 * second, held: StageReplication}, StageReplication},
		{"a slow apply", Request{Kind: KindWrite, began: 1, proposed: second, applying: 2 * second, held: StageReplication}, StageApply},
		{"behind a slow apply", Request{Kind: KindWrite, began: 1, proposed: second, applying: 8 * second, held: StageApply}, StageApply},
		{"lost office", Request{Kind: KindWrite, began: 1, proposed: second}, StageReplication},
		{"no quorum for a read", Request{Kind: KindRead, began: 1, proposed: 9 * second}, StageReplication},
		{"a cold read", Request{Kind: KindScan, began: 1, proposed: second}, StageRead},
	} {
		sp, total := spansOf(&c.req, 10*second)
		sum := engine.Duration(0)
		for _, d := range sp.took {
			sum += d
		}
		if got := sp.slowest(); got != c.stage || sum != total {
			t.Errorf("%s: stage %v of %v, want %v; the stages sum up to %v of %v", c.name, got, sp.took, c.stage, sum, total)
		}
	}
}

func TestTally(t *testing.T) {
	var own tally
	var h, want Histogram
	for round := range 3 {
		for v := int64(0); v < 1<<20; v += 1 + v/3 {
			own.observe(v + int64(round))
			want.Observe(v + int64(round))
		}
		own.publish(&h)
	}
	for i := range h.buckets {
		if h.buckets[i].Load() != want.buckets[i].Load() {
			t.Errorf("bucket %d: %d, want %d", i, h.buckets[i].Load(), want.buckets[i].Load())
		}
	}
	if n, sum := h.Count(); n != want.count.Load() || sum != want.sum.Load() {
		t.Errorf("%d values of %d, want %d of %d", n, sum, want.count.Load(), want.sum.Load())
	}
}

// TestLoads: every request counts at the replica that served it.
func TestLoads(t *testing.T) {
	s, clock := single(t, 3)
	lane := s.lanes[0]
	for _, id := range []engine.ShardID{1, 1, 3} {
		s.Submit(&Request{Kind: KindWrite, Shard: id, Body: testPut(id, 1, "v"), Done: func(*Request) {}})
	}
	spin(s, clock)
	want := map[engine.ShardID]uint64{1: 2, 3: 1}
	for _, r := range lane.list {
		if r.load.Writes != want[r.key.Shard] || (r.load.WriteBytes > 0) != (want[r.key.Shard] > 0) {
			t.Errorf("shard %d: %+v", r.key.Shard, r.load)
		}
	}
	sum := lane.survey()
	if sum.Leaders != 3 || sum.Leaderless != 0 || sum.UnderReplicated != 0 {
		t.Errorf("%+v", sum)
	}
}
