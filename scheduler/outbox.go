package scheduler

import (
	"github.com/kiloraft/kiloraft/engine"
)

// outbox gathers what a lane has to say to one peer until the end of the turn: one frame for all shards.
type outbox struct {
	node  engine.NodeID
	msgs  []byte // raft messages, end to end
	count int
	// streams are the replication messages in msgs, so that a dropped frame is reported to their engines (rule Live6).
	streams []outStream
	// awake are heartbeats that may wait for the next node heartbeat.
	awake      []byte
	awakeCount int
	queued     bool // is in Lane.dirtyOuts
}

type outStream struct {
	r      *replica
	to     engine.Peer
	stream uint64
}

// out returns the outbox for a node.
func (l *Lane) out(node engine.NodeID) *outbox {
	o := l.outs[node]
	if o == nil {
		o = &outbox{node: node}
		l.outs[node] = o
	}
	return o
}

// dirty notes that o has something in it.
func (l *Lane) dirty(o *outbox) {
	if !o.queued {
		o.queued = true
		l.dirtyOuts = append(l.dirtyOuts, o)
	}
}

// frameBytesMax is where a lane cuts a frame although it has more to say: memory for it is bounded, and it may take a
// long time on the wire.
const frameBytesMax = 4 << 20

// message notes that one message was appended to o.msgs.
func (l *Lane) message(o *outbox) {
	o.count++
	l.dirty(o)
	if len(o.msgs) >= frameBytesMax {
		l.sendOut(o)
	}
}

// sendOut hands the raft messages of o to the network.
func (l *Lane) sendOut(o *outbox) {
	if o.count > 0 {
		m := &l.s.metrics
		if l.s.net.SendRaft(o.node, l.id, o.msgs) {
			m.Frames.Add(1)
			m.FrameBytes.Add(uint64(len(o.msgs)))
			m.FrameMessages.Add(uint64(o.count))
		} else {
			m.FramesDropped.Add(1)
			l.dropped = append(l.dropped, o.streams...)
		}
	}
	clear(o.streams)
	o.streams = o.streams[:0]
	o.count = 0
	if cap(o.msgs) > 2*frameBytesMax {
		o.msgs = nil // one huge message should not be paid for for ever
	}
	o.msgs = o.msgs[:0]
}

// sendAll ends a turn: everything goes out, one frame per peer.
func (l *Lane) sendAll() {
	for i, o := range l.dirtyOuts {
		if o.awakeCount > 0 && !l.s.live.ride(o.node, o.awake, o.awakeCount) {
			o.msgs = append(o.msgs, o.awake...)
			o.count += o.awakeCount
		}
		o.awake, o.awakeCount = o.awake[:0], 0
		l.sendOut(o)
		o.queued = false
		l.dirtyOuts[i] = nil
	}
	l.dirtyOuts = l.dirtyOuts[:0]
}
