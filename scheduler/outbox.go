package scheduler

import (
	"maps"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
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
	// bulk is for big messages and what must stay behind them: what is in the outbox itself overtakes it.
	bulk   *outbox
	isBulk bool
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

// bulkKey names a follower of a replica on this lane, and bulkSent the last big append request to it that it has not confirmed.
type (
	bulkKey struct {
		leader store.Key
		to     engine.Peer
	}
	bulkSent struct{ stream, last uint64 }
)

// outAppend returns the outbox for an append request of size bytes up to the entry last. One that overtook another of its stream would
// find a gap, and have the big one sent again: so what follows a big one goes the same way, until that is confirmed.
func (l *Lane) outAppend(r *replica, to engine.Peer, stream, last uint64, size int) *outbox {
	o := l.out(to.Node)
	if size < l.s.cfg.BulkBytes && len(l.bulk) == 0 {
		return o
	}
	k := bulkKey{r.key, to}
	if size >= l.s.cfg.BulkBytes {
		if l.bulk == nil {
			l.bulk = map[bulkKey]bulkSent{}
		}
		l.bulk[k] = bulkSent{stream, last}
	} else if b, ok := l.bulk[k]; !ok || b.stream != stream {
		delete(l.bulk, k)
		return o
	}
	if o.bulk == nil {
		o.bulk = &outbox{node: o.node, isBulk: true}
	}
	return o.bulk
}

// bulkConfirmed notes that a follower has what it says that it has.
func (l *Lane) bulkConfirmed(r *replica, res *engine.AppendResponse) {
	k := bulkKey{r.key, res.From}
	if b, ok := l.bulk[k]; ok && res.Success && res.Stream == b.stream && res.Match.Index >= b.last {
		delete(l.bulk, k)
	}
}

// bulkForget forgets what r had sent as a leader.
func (l *Lane) bulkForget(r *replica) {
	maps.DeleteFunc(l.bulk, func(k bulkKey, _ bulkSent) bool { return k.leader == r.key })
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
		if l.s.net.SendRaft(o.node, l.id, o.msgs, o.isBulk) {
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
	if o.isBulk || cap(o.msgs) > 2*frameBytesMax {
		o.msgs = nil // it is the network's now, or one huge message would be paid for for ever
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
