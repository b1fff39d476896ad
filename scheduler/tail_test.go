package scheduler

import (
	"fmt"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// follower makes a replica of a shard of three voters whose leader is elsewhere, and has given it entries of 60 kB that it may not apply.
func (n *storeNode) follower(id engine.ShardID, entries int) *replica {
	n.t.Helper()
	n.s.CreateReplicaAsync(NewReplica{Descriptor: testDescriptor(id, 3), Replica: 1}, func(err error) {
		if err != nil {
			n.t.Fatal(err)
		}
	})
	n.spin(5)
	r := n.l.byShard[id]
	prev := r.machine.Applied()
	for k := range entries {
		at := engine.LogID{Term: 2, Index: uint64(k) + 2}
		n.offer(r, prev, at, 60_000)
		n.spin(1)
		prev = at
	}
	return r
}

// offer is the leader of r sending it an entry of so many bytes, which is not committed; r may not take it.
func (n *storeNode) offer(r *replica, prev, at engine.LogID, size int) {
	n.offerEntry(r, prev, at, engine.EntryNormal, shard.AppendWriteEntry(nil, 1, testPut(r.key.Shard, int(at.Index), string(make([]byte, size)))))
}

func (n *storeNode) offerEntry(r *replica, prev, at engine.LogID, kind engine.EntryKind, payload []byte) {
	leader := engine.Peer{Node: 2, Replica: 2}
	req := &engine.AppendRequest{From: leader, Vote: engine.Vote{Term: at.Term, Peer: leader, Committed: true}, Prev: prev,
		Runs: []engine.TermRun{{Term: at.Term, First: at.Index, Last: at.Index}}, Commit: r.machine.Applied()}
	n.l.inRuns = []wire.Run{{Term: at.Term, First: at.Index, Count: 1, Special: kind != engine.EntryNormal, Body: raftlog.AppendEntry(nil, kind, payload)}}
	if !n.l.takesNoEntries(r, req) {
		n.l.feed(r, req)
	}
}

// TestUncommittedTailPinsNothing: what a replica has and cannot apply, for its shard has no quorum, is rewritten, however often the shard is
// checkpointed: the segments of the other shards go (rules Log5, Log6). That holds for more than a quarter of a segment, and for more than
// a segment.
func TestUncommittedTailPinsNothing(t *testing.T) {
	for _, entries := range []int{2, 6, 20, 40} {
		t.Run(fmt.Sprint(entries), func(t *testing.T) {
			n := newStoreNode(t)
			n.s.cfg.LogSegmentsMax = 2
			r := n.follower(2, entries)
			checkpoints := n.s.metrics.Checkpoints.Load()
			n.fill()
			if oldest, active := n.s.log.Segments(); active < 5 || active-oldest > 3 {
				t.Errorf("segments %d to %d", oldest, active)
			}
			if st := n.l.log.Stats(r.key); st.Bytes < int64(entries)*60_000 || st.Last.Index != uint64(entries)+1 {
				t.Errorf("the log has %d bytes of it, up to entry %d", st.Bytes, st.Last.Index)
			}
			if made := n.s.metrics.Checkpoints.Load() - checkpoints; made > 110 {
				t.Errorf("%d checkpoints for 100 writes", made)
			}
		})
	}
}

// TestBigTailsPinNothing: the tails of several shards, which are more together than one look rewrites.
func TestBigTailsPinNothing(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.LogSegmentsMax = 2
	for id := engine.ShardID(2); id <= 5; id++ {
		n.follower(id, 90) // 5.4 MB
	}
	n.fill()
	n.fill()
	if oldest, active := n.s.log.Segments(); active-oldest > 30 {
		t.Errorf("segments %d to %d", oldest, active)
	}
}

// TestTooBigTailHoldsNobody: a replica that cannot be rewritten keeps its segments, but the look goes on to the others behind it.
func TestTooBigTailHoldsNobody(t *testing.T) {
	n := newStoreNodeWith(t, 1, raftlog.Options{RewriteBytesMax: 200_000})
	n.s.cfg.LogSegmentsMax = 2
	n.s.cfg.ShardLogBytesMax = 4 << 20
	big, small := n.follower(2, 4), n.follower(3, 3)
	n.fill()
	if oldest, _ := n.s.log.Segments(); oldest != 1 || big.pins < pinsMax {
		t.Fatalf("oldest segment %d, %d refusals: nothing was too big", oldest, big.pins)
	}
	for _, k := range n.l.log.Pinned(nil, 100) {
		if k == small.key {
			t.Errorf("replica %v still lies in the oldest segment", k)
		}
	}
}
