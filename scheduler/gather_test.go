package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

// TestGather: writes that come while the batch with those before them is being synced are proposed together, after it, or after holdMax.
func TestGather(t *testing.T) {
	s, clock := single(t, 2)
	lane, m := s.lanes[0], s.Metrics()
	answered := 0
	send := func(id engine.ShardID) {
		s.Submit(&Request{Kind: KindWrite, Shard: id, Body: testPut(id, 1, "v"), Done: func(r *Request) {
			answered++
			if r.Err != nil {
				t.Error(r.Err)
			}
		}})
	}
	turn := func(after engine.Instant, proposals uint64) {
		t.Helper()
		clock.now += after
		lane.Turn()
		if got := m.Proposals.Load(); got != proposals {
			t.Fatalf("%d proposals, want %d", got, proposals)
		}
	}
	base := m.Proposals.Load()
	send(1)
	turn(1e5, base+1) // an idle lane proposes at once
	send(1)
	send(2)
	turn(1e5, base+1)
	s.FlushLog()
	turn(1e5, base+3)
	send(1)
	turn(1e5, base+3)
	turn(engine.Instant(holdMax), base+4) // the disk hangs
	s.FlushLog()
	turn(1e5, base+4)
	if answered != 4 {
		t.Errorf("%d of 4 answered", answered)
	}
}

// TestHintsRide: what was committed is no reason for a sync of its own, until hintDelay has passed.
func TestHintsRide(t *testing.T) {
	s, clock := single(t, 1)
	lane := s.lanes[0]
	pending := func() bool {
		select {
		case <-s.log.Pending():
			return true
		default:
			return false
		}
	}
	for pending() {
		s.FlushLog()
	}
	s.Submit(&Request{Kind: KindWrite, Shard: 1, Body: testPut(1, 1, "v"), Done: func(*Request) {}})
	lane.Turn()
	if !pending() {
		t.Fatal("a write was not handed to the log")
	}
	s.FlushLog()
	next := lane.Turn() // commits and applies
	if pending() {
		t.Error("a hint alone is to be synced")
	}
	if next == 0 || next > clock.now+engine.Instant(hintDelay) {
		t.Errorf("the next turn is wanted in %d", next-clock.now)
	}
	clock.now += engine.Instant(hintDelay)
	lane.Turn()
	if !pending() {
		t.Error("a hint was forgotten")
	}
}

// TestRound: writes of a shard wait until those proposed before them are applied, but no longer than the bound of inRound.
func TestRound(t *testing.T) {
	c := newBenchCluster(t, 2)
	leader, clock := c.leader[1], c.clock
	lane, m := leader.lanes[0], leader.Metrics()
	send := func(id engine.ShardID) {
		leader.Submit(&Request{Kind: KindWrite, Shard: id, Body: testPut(id, 1, "v"), Done: func(r *Request) {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}})
	}
	turn := func(after engine.Instant, proposals uint64) { // of this node alone: its followers are silent
		t.Helper()
		clock.now += after
		lane.Turn()
		leader.FlushLog()
		lane.Turn()
		if got := m.Proposals.Load(); got != proposals {
			t.Fatalf("%d proposals, want %d", got, proposals)
		}
	}
	base := m.Proposals.Load()
	send(1)
	turn(1e5, base+1)
	send(1)
	turn(1e5, base+1) // the own log is durable, a quorum is not
	turn(engine.Instant(roundMin), base+2)
	for range 10 {
		c.round(1e5) // now the followers answer
	}
	send(1)
	turn(1e5, base+3) // nothing is under way: at once
}
