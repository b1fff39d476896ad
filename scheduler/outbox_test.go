package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// fullNet has no room for large frames.
type fullNet struct {
	noNet
	sent int
}

func (n *fullNet) SendRaft(_ engine.NodeID, _ int, msgs []byte) bool {
	if len(msgs) > frameBytesMax {
		return false
	}
	n.sent += len(msgs)
	return true
}

// What other shards have to say does not share the frame of a large message, for which there may be no room.
func TestLargeMessageIsDroppedAlone(t *testing.T) {
	net := &fullNet{}
	l := &Lane{s: &Scheduler{net: net}, outs: map[engine.NodeID]*outbox{}}
	to := engine.Peer{Node: 2, Replica: 2}
	send := func(r *replica, size int) {
		run := raftlog.Run{Term: 1, First: 1, Count: 1, Body: make([]byte, size)}
		l.sendRuns(r, l.out(to.Node), to, &engine.AppendRequest{Stream: 1}, []raftlog.Run{run})
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
