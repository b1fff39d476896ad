package scheduler

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// TestRequestWaitsForReach: a request that waits because the leader's node cannot be reached is answered when it can be, not when it has waited for long
// enough.
func TestRequestWaitsForReach(t *testing.T) {
	h := newHeartbeats(t)
	h.s.CreateReplicaAsync(NewReplica{testDescriptor(7, 3), 1, CreateOptions{}}, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	for range 5 {
		spin(h.s, h.clock)
	}
	vote := engine.Vote{Term: 5, Peer: engine.Peer{Node: 2, Replica: 2}, Committed: true}
	h.s.RaftFrame(2, 7, wire.AppendHeartbeat(nil, wire.Header{Shard: 7, From: 2, To: 1}, &engine.Heartbeat{Vote: vote, SentAt: 1}))
	for range 5 {
		spin(h.s, h.clock)
	}
	if r := h.s.laneOf(7).byShard[7]; r.eng.Leader().Node != 2 || h.s.live.reachable(2) {
		t.Fatalf("leader %v, reachable %v: the test tests nothing", r.eng.Leader(), h.s.live.reachable(2))
	}
	var got []error
	start := h.clock.now
	h.s.Submit(&Request{Kind: KindWrite, Shard: 7, Body: testPut(7, 1, "v"), Done: func(r *Request) { got = append(got, r.Err) }})
	spin(h.s, h.clock)
	if len(got) != 0 {
		t.Fatalf("sent away at once: %v", got)
	}
	h.get(func(*nodeHeartbeat) {})
	for range 5 {
		spin(h.s, h.clock)
	}
	var nl *shard.NotLeaderError
	if len(got) != 1 || !errors.As(got[0], &nl) || nl.Leader != 2 {
		t.Fatalf("answers %v", got)
	}
	if waited := h.clock.now - start; waited >= h.s.lanes[0].leaderWait() {
		t.Fatalf("asked after %d: the test tests nothing", waited)
	}
}
