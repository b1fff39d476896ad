package scheduler

import (
	"math/rand/v2"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// TestAheadIsAhead: whatever the length of a loop, who is served has taken all steps, those behind have taken no fewer than those behind them, and no
// more are on their way than there is room for.
func TestAheadIsAhead(t *testing.T) {
	for n := range 70 {
		var a ahead
		asked := 0
		a.begin(nil, aheadOfMessages)
		for i := range n {
			a.next(n, func(j int) *replica {
				if j != asked || j >= n || j >= i+aheadMax {
					t.Fatalf("of %d, at %d: asked for %d after %d", n, i, j, asked-1)
				}
				asked++
				return nil
			})
			before := a.added
			for step, taken := range a.taken {
				if taken <= i || taken > before {
					t.Fatalf("of %d, at %d: %d have taken step %d, %d the one before", n, i, taken, step, before)
				}
				before = taken
			}
		}
		if asked != n {
			t.Fatalf("asked for %d of %d", asked, n)
		}
	}
}

// TestReplicaOf finds what byShard has, and nothing else, with ids that are close together and ids that are not.
func TestReplicaOf(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	l := newHeartbeats(t).s.lanes[0]
	var ids []engine.ShardID
	for i := range 300 {
		ids = append(ids, engine.ShardID(i+1), engine.ShardID(rnd.Uint64()), engine.ShardID(i)<<32)
	}
	for range 5000 {
		id := ids[rnd.IntN(len(ids))]
		if r := l.byShard[id]; r == nil {
			if err := l.add(&replica{key: store.Key{Shard: id, Replica: 1}, timerAt: -1, lane: l}); err != nil {
				t.Fatal(err)
			}
		} else if rnd.IntN(3) == 0 {
			l.drop(r)
		}
		for range 5 {
			if id := ids[rnd.IntN(len(ids))]; l.replicaOf(id) != l.byShard[id] {
				t.Fatalf("shard %d: %p, want %p", id, l.replicaOf(id), l.byShard[id])
			}
		}
	}
}

// TestReceiveAll: each message of a frame is served, in order, whether it is shorter or longer than what is read ahead, and those before one that
// is malformed.
func TestReceiveAll(t *testing.T) {
	for _, n := range []int{0, 1, aheadMax - 1, aheadMax, aheadMax + 1, 3*aheadMax + 5} {
		for _, bad := range []bool{false, true} {
			h := newHeartbeats(t)
			l := h.s.lanes[0]
			var body []byte
			for i := range n { // of shards that are not here: each is disclaimed
				hb := engine.Heartbeat{From: engine.Peer{Node: 2, Replica: 1}, Vote: engine.Vote{Term: 1}, Probe: true}
				body = wire.AppendHeartbeat(body, wire.Header{Shard: engine.ShardID(100 + i), From: 1, To: 1}, &hb)
			}
			want := uint64(n)
			if bad {
				body = append(body, 0xc1)
				want++
			}
			l.receive(&frame{from: 2, incarnation: 7, body: body})
			if dropped := h.s.metrics.MessagesDropped.Load(); l.count.received != uint64(n) || dropped != want {
				t.Errorf("%d messages, malformed behind them: %v: %d received, %d dropped", n, bad, l.count.received, dropped)
			}
			var rd wire.Reader
			var m wire.Message
			rd.Reset(l.out(2).msgs)
			for i := range n {
				if !rd.Next(&m) || m.Shard != engine.ShardID(100+i) {
					t.Fatalf("answer %d of %d is for shard %d (%v)", i, n, m.Shard, rd.Err())
				}
			}
		}
	}
}
