package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// TestUncommittedTailPinsNothing: what a replica has and cannot apply, for its shard has no quorum, is rewritten, however often the shard is
// checkpointed: the segments of the other shards go (rules Log5, Log6).
func TestUncommittedTailPinsNothing(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.LogSegmentsMax = 2
	n.s.CreateReplicaAsync(NewReplica{Descriptor: testDescriptor(2, 3), Replica: 1}, func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	})
	n.spin(5)
	r := n.l.byShard[2]
	var body []byte
	for k := range 2 {
		body = raftlog.AppendEntry(body, engine.EntryNormal, shard.AppendWriteEntry(nil, 1, testPut(2, k, string(make([]byte, 60_000)))))
	}
	leader := engine.Peer{Node: 2, Replica: 2}
	n.l.inRuns = []wire.Run{{Term: 2, First: 2, Count: 2, Body: body}}
	n.l.feed(r, &engine.AppendRequest{From: leader, Vote: engine.Vote{Term: 2, Peer: leader, Committed: true}, Prev: r.machine.Applied(),
		Runs: []engine.TermRun{{Term: 2, First: 2, Last: 3}}, Commit: r.machine.Applied()})
	n.spin(5)
	n.fill()
	if oldest, active := n.s.log.Segments(); active < 5 || active-oldest > 3 {
		t.Errorf("segments %d to %d", oldest, active)
	}
	if st := n.l.log.Stats(r.key); st.Bytes < 120_000 || st.Last.Index != 3 {
		t.Fatalf("the log has %d bytes of it, up to entry %d", st.Bytes, st.Last.Index)
	}
}
