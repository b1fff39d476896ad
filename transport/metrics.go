package transport

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// Metrics counts since the start. Its fields are read with Load at any time.
type Metrics struct {
	FramesOut, FramesIn       atomic.Uint64 // of raft, heartbeats, requests and answers
	BytesOut, BytesIn         atomic.Uint64 // of their bodies
	RaftDropped               atomic.Uint64 // calls of SendRaft that returned false
	HeartbeatsDropped         atomic.Uint64
	Calls, Requests           atomic.Uint64 // asked, and served
	Sessions                  atomic.Uint64 // begun
	Reconnects                atomic.Uint64 // of them, with a peer that there was one with before
	Dials, DialErrors         atomic.Uint64
	Refusals                  atomic.Uint64 // of others by this node
	Denied                    atomic.Uint64 // refusals for wrong or missing credentials
	Evicted                   atomic.Uint64 // handshakes given up because there were too many
	Refused                   atomic.Uint64 // of this node by others
	Malformed                 atomic.Uint64
	Slow, Silent              atomic.Uint64 // sessions ended for that
	SnapshotsOut, SnapshotsIn atomic.Uint64
}

// ConnStats describes one connection.
type ConnStats struct {
	Client             bool
	Node               engine.NodeID
	Incarnation        uint64
	Session            uint64
	Dialled            bool // by this side
	RemoteAddr         net.Addr
	BytesIn, BytesOut  uint64
	LastRead           time.Duration // ago
	OutboxBytes        int
	AnswerBytes        int
	CallsWaiting       int
	RequestsInFlight   int
	SnapshotUnacked    int
	SnapshotsReceiving int
	Streams            int
	RTT                time.Duration // as TCP has smoothed it; 0: unknown
}
