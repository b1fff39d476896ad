package scheduler

import (
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// nodeHeartbeat is what nodes send each other at an interval, on a stream of its own (rule Live6). On the wire it is a
// msgpack array of these fields in this order; newer versions may add fields behind them.
type nodeHeartbeat struct {
	// Incarnation is the sender's.
	Incarnation uint64
	// SentAt is the sender's clock; it is echoed.
	SentAt engine.Instant
	// EchoIncarnation and EchoSentAt are those of the newest heartbeat that the sender has got from the receiver; zero if none.
	EchoIncarnation uint64
	EchoSentAt      engine.Instant
	// Promise is the length of the lease that the sender grants from EchoSentAt on (rule Engine2); zero grants none.
	Promise engine.Duration
	// LaneAge and WriterAge attest progress (rule Live1): how long the slowest lane, and the log writer, have been at the work
	// that they are doing; zero when idle.
	LaneAge   engine.Duration
	WriterAge engine.Duration
	// Wall is the sender's clock, unix ms (rule State8).
	Wall int64
	// Awake holds the heartbeats of awake shards: messages of package wire, end to end. It aliases the frame.
	Awake []byte
	// SyncTime is what a sync of the sender's raft log takes, DiskBad that it takes no leaderships because of that (see diskwatch.go). Older
	// versions do not send them.
	SyncTime engine.Duration
	DiskBad  bool
}

const (
	nodeHeartbeatFields    = 11
	nodeHeartbeatFieldsMin = 9 // of the first version
)

func (h *nodeHeartbeat) append(b []byte) []byte {
	b = mp.AppendArray(b, nodeHeartbeatFields)
	b = mp.AppendUint(b, h.Incarnation)
	b = mp.AppendInt(b, int64(h.SentAt))
	b = mp.AppendUint(b, h.EchoIncarnation)
	b = mp.AppendInt(b, int64(h.EchoSentAt))
	b = mp.AppendInt(b, int64(h.Promise))
	b = mp.AppendInt(b, int64(h.LaneAge))
	b = mp.AppendInt(b, int64(h.WriterAge))
	b = mp.AppendInt(b, h.Wall)
	b = mp.AppendBin(b, h.Awake)
	b = mp.AppendInt(b, int64(h.SyncTime))
	return mp.AppendBool(b, h.DiskBad)
}

func (h *nodeHeartbeat) decode(b []byte) error {
	r := mp.NewReader(b)
	extra := r.ArrayMin(nodeHeartbeatFieldsMin)
	h.Incarnation = r.Uint()
	h.SentAt = engine.Instant(r.Int())
	h.EchoIncarnation = r.Uint()
	h.EchoSentAt = engine.Instant(r.Int())
	h.Promise = engine.Duration(r.Int())
	h.LaneAge = engine.Duration(r.Int())
	h.WriterAge = engine.Duration(r.Int())
	h.Wall = r.Int()
	h.Awake = r.Bin()
	if extra >= nodeHeartbeatFields-nodeHeartbeatFieldsMin {
		h.SyncTime, h.DiskBad = engine.Duration(r.Int()), r.Bool()
		extra -= nodeHeartbeatFields - nodeHeartbeatFieldsMin
	}
	r.Skip(extra)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("node heartbeat: %w", err)
	}
	return nil
}
