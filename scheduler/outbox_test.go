package scheduler

import (
	"bytes"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// fullNet has no room for large frames.
type fullNet struct {
	noNet
	sent int
}

func (n *fullNet) SendRaft(_ engine.NodeID, _ int, msgs []byte, _ bool) bool {
	if len(msgs) > frameBytesMax {
		return false
	}
	n.sent += len(msgs)
	return true
}

// What other shards have to say does not share the frame of a large message, for which there may be no room.
func TestLargeMessageIsDroppedAlone(t *testing.T) {
	net := &fullNet{}
	l := &Lane{s: &Scheduler{net: net, cfg: Config{BulkBytes: 256 << 10}}, outs: map[engine.NodeID]*outbox{}}
	to := engine.Peer{Node: 2, Replica: 2}
	send := func(r *replica, size int) {
		run := raftlog.Run{Term: 1, First: 1, Count: 1, Body: make([]byte, size)}
		l.sendRuns(r, to, &engine.AppendRequest{Stream: 1}, []raftlog.Run{run})
	}
	small, large := &replica{}, &replica{}
	send(small, 100)
	send(large, 8<<20)
	send(small, 100)
	l.sendAll()
	if len(l.dropped) != 1 || l.dropped[0].r != large {
		t.Errorf("%d messages are lost, want the large one", len(l.dropped))
	}
	if net.sent < 200 {
		t.Errorf("%d bytes were sent", net.sent)
	}
}

// TestBulkKeepsOrder: what follows a big append request of its stream goes behind it until the follower has confirmed it; what other shards say, to
// other followers or in later streams, overtakes it.
func TestBulkKeepsOrder(t *testing.T) {
	const bulkBytes = 1000
	l := &Lane{s: &Scheduler{net: &fullNet{}, cfg: Config{BulkBytes: bulkBytes}}, outs: map[engine.NodeID]*outbox{}}
	one, two := &replica{key: store.Key{Shard: 1, Replica: 1}}, &replica{key: store.Key{Shard: 2, Replica: 1}}
	to, other := engine.Peer{Node: 2, Replica: 2}, engine.Peer{Node: 3, Replica: 3}
	next := uint64(0)
	want := func(what string, bulk bool, r *replica, to engine.Peer, stream uint64, size int) {
		t.Helper()
		next++
		if got := l.outAppend(r, to, stream, next, size).isBulk; got != bulk {
			t.Errorf("%s: bulk %v, want %v", what, got, bulk)
		}
	}
	res := engine.AppendResponse{From: to, Stream: 7, Success: true}
	want("small", false, one, to, 7, 100)
	want("big", true, one, to, 7, bulkBytes)
	big := next
	want("small behind it", true, one, to, 7, 100)
	want("of another shard", false, two, to, 7, 100)
	want("to another follower", false, one, other, 7, 100)
	res.Match.Index = big - 1
	l.bulkConfirmed(one, &res)
	want("before it is confirmed", true, one, to, 7, 0)
	res.Match.Index, res.Success = big, false
	l.bulkConfirmed(one, &res)
	want("after a rejection", true, one, to, 7, 0)
	res.Success = true
	l.bulkConfirmed(one, &res)
	want("after it was confirmed", false, one, to, 7, 100)
	want("big", true, one, to, 7, bulkBytes)
	want("of the next stream", false, one, to, 8, 100)
	want("big", true, one, to, 8, 8<<20)
	l.bulkForget(one)
	if len(l.bulk) != 0 {
		t.Errorf("%d are remembered of a leader that is none any more", len(l.bulk))
	}
}

// keepingNet keeps bulk messages, as the transport does, and copies others.
type keepingNet struct {
	noNet
	kept [][]byte
}

func (n *keepingNet) SendRaft(_ engine.NodeID, _ int, msgs []byte, bulk bool) bool {
	if bulk {
		n.kept = append(n.kept, msgs)
	}
	return true
}

// TestBulkIsTheNetworks: a lane does not write any more into what it has handed over.
func TestBulkIsTheNetworks(t *testing.T) {
	net := &keepingNet{}
	l := &Lane{s: &Scheduler{net: net, cfg: Config{BulkBytes: 1}}, outs: map[engine.NodeID]*outbox{}}
	var want [][]byte
	for i := range byte(3) {
		run := raftlog.Run{Term: 1, First: 1, Count: 1, Body: bytes.Repeat([]byte{'a' + i}, 1000)}
		l.sendRuns(&replica{}, engine.Peer{Node: 2, Replica: 2}, &engine.AppendRequest{Stream: 1}, []raftlog.Run{run})
		l.sendAll()
		want = append(want, bytes.Clone(net.kept[len(net.kept)-1]))
	}
	for i := range want {
		if !bytes.Equal(net.kept[i], want[i]) {
			t.Errorf("message %d has changed since: %.40q", i, net.kept[i])
		}
	}
}
