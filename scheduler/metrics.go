package scheduler

import (
	"errors"
	"math/bits"
	"sync/atomic"

	"github.com/kiloraft/kiloraft/shard"
)

// Metrics counts what the scheduler does. All of it may be read at any time.
type Metrics struct {
	Turns             atomic.Uint64
	Events            atomic.Uint64
	Commands          atomic.Uint64
	LogBatches        atomic.Uint64 // batches that lanes handed to the log
	LogSyncs          atomic.Uint64 // flushes of the log writer
	LogSyncShards     atomic.Uint64 // sum over flushes of the shards with I/O in it
	Entries           atomic.Uint64 // appended, own and peers'
	Applied           atomic.Uint64 // entries applied
	Frames            atomic.Uint64 // raft frames handed to the network
	FrameBytes        atomic.Uint64
	FrameMessages     atomic.Uint64 // messages in them
	FramesDropped     atomic.Uint64
	FramesReceived    atomic.Uint64
	FramesOverflowed  atomic.Uint64 // received and dropped: the lane's mailbox was full
	MessagesReceived  atomic.Uint64
	MessagesDropped   atomic.Uint64 // received, but malformed or for no replica of this node
	HeartbeatsSent    atomic.Uint64
	HeartbeatMessages atomic.Uint64 // messages of awake shards in node heartbeats
	Elections         atomic.Uint64 // campaigns for a vote
	LeadersWon        atomic.Uint64
	Proposals         atomic.Uint64
	ProposalsRefused  atomic.Uint64
	ReadsLease        atomic.Uint64
	ReadsIndex        atomic.Uint64
	ReadsCold         atomic.Uint64 // reads that went to the reader pool
	ReadsMoved        atomic.Uint64 // and had to be done again
	AppliesSuspended  atomic.Uint64
	AppliesHeld       atomic.Uint64 // because the store is slower than the writes
	LogColdReads      atomic.Uint64
	Checkpoints       atomic.Uint64 // shards written
	CheckpointTx      atomic.Uint64
	CheckpointBytes   atomic.Uint64
	SnapshotsSent     atomic.Uint64
	SnapshotsReceived atomic.Uint64
	SnapshotsFailed   atomic.Uint64
	Splits            atomic.Uint64 // applied here
	Merges            atomic.Uint64 // applied here
	ReplicasStopped   atomic.Uint64 // by an entry that this version does not understand
	PeersUp           atomic.Int64
	Inflight          atomic.Int64 // proposals accepted and not answered
	InflightBytes     atomic.Int64 // of them
	Stalls            atomic.Uint64

	// Refusals are requests that were answered with an error, by Refusal; Slow are slow ones, by the Stage that took longest.
	Refusals [RefusalKinds]atomic.Uint64
	Slow     [Stages]atomic.Uint64

	SyncLatency     Histogram // of Flush, nanoseconds
	SyncBytes       Histogram // written by one Flush
	CommitLatency   Histogram // from when a write came to its answer, nanoseconds
	TurnTime        Histogram // nanoseconds
	TurnRequests    Histogram // taken by a turn that took any
	TurnCommands    Histogram // of a turn that gave any
	SnapshotSend    Histogram // of snapshots that were sent completely, nanoseconds
	SnapshotReceive Histogram // of snapshots that were received completely, nanoseconds
}

// Refusal is why a request was answered with an error.
type Refusal uint8

// The reasons.
const (
	RefusalOther       Refusal = iota // malformed, too large, …
	RefusalNotLeader                  // another node leads, where the client is sent
	RefusalMoved                      // the client's descriptor is stale: the key has left the shard
	RefusalNotHere                    // no replica of the shard on this node
	RefusalOverloaded                 // too much is in flight
	RefusalUnavailable                // no leader, a full disk, a deadline that has passed, …
	refusals
)

// RefusalKinds is how many reasons there are.
const RefusalKinds = int(refusals)

// String returns the name under which metrics have the reason.
func (r Refusal) String() string {
	return [refusals]string{"other", "not_leader", "moved", "not_here", "overloaded", "unavailable"}[r]
}

func refusalOf(err error) Refusal {
	switch {
	case errors.Is(err, shard.ErrNotLeader):
		return RefusalNotLeader
	case errors.Is(err, shard.ErrShardMoved):
		return RefusalMoved
	case errors.Is(err, shard.ErrShardNotFound):
		return RefusalNotHere
	case errors.Is(err, shard.ErrOverloaded):
		return RefusalOverloaded
	case errors.Is(err, shard.ErrUnavailable):
		return RefusalUnavailable
	}
	return RefusalOther
}

// publish adds the counts of a turn to the metrics, once: other goroutines read them, and lanes would else fight for the cache lines with
// every request.
func (l *Lane) publish(turn int64) {
	m, c := &l.s.metrics, &l.count
	m.Turns.Add(1)
	m.TurnTime.Observe(turn)
	for _, x := range [...]struct {
		to *atomic.Uint64
		n  uint64
	}{{&m.Events, c.events}, {&m.Commands, c.commands}, {&m.MessagesReceived, c.received}, {&m.Applied, c.applied}, {&m.Entries, c.entries},
		{&m.Proposals, c.proposals}, {&m.ReadsLease, c.readsLease}, {&m.ReadsIndex, c.readsIndex}} {
		if x.n > 0 {
			x.to.Add(x.n)
		}
	}
	if c.requests > 0 {
		m.TurnRequests.Observe(int64(c.requests))
	}
	if c.commands > 0 {
		m.TurnCommands.Observe(int64(c.commands))
	}
	l.commitLatency.publish(&m.CommitLatency)
	*c = counts{}
}

// tally is a Histogram in the making, of one owner.
type tally struct {
	buckets    [64]uint32
	used       uint64 // one bit per bucket that is not 0
	sum, count uint64
}

func (t *tally) observe(v int64) {
	u := uint64(max(v, 0))
	i := bits.Len64(u) & 63
	t.buckets[i]++
	t.used |= 1 << i
	t.sum += u
	t.count++
}

// publish adds t to h and empties it.
func (t *tally) publish(h *Histogram) {
	if t.count == 0 {
		return
	}
	for ; t.used != 0; t.used &= t.used - 1 {
		i := bits.TrailingZeros64(t.used)
		h.buckets[i].Add(uint64(t.buckets[i]))
		t.buckets[i] = 0
	}
	h.sum.Add(t.sum)
	h.count.Add(t.count)
	t.sum, t.count = 0, 0
}

// Histogram counts values in buckets of powers of two.
type Histogram struct {
	buckets [64]atomic.Uint64
	sum     atomic.Uint64
	count   atomic.Uint64
}

// Observe counts v.
func (h *Histogram) Observe(v int64) {
	u := uint64(max(v, 0))
	h.buckets[bits.Len64(u)&63].Add(1)
	h.sum.Add(u)
	h.count.Add(1)
}

// Count returns how many values were observed, and their sum.
func (h *Histogram) Count() (count, sum uint64) { return h.count.Load(), h.sum.Load() }

// Buckets calls f with the exclusive upper bound of each bucket that holds something, in order, and what it holds.
func (h *Histogram) Buckets(f func(below uint64, count uint64)) {
	for i := range h.buckets {
		if n := h.buckets[i].Load(); n > 0 {
			f(uint64(1)<<i, n)
		}
	}
}

// Reading is a Histogram at a moment.
type Reading [64]uint64

// Read copies what h has counted.
func (h *Histogram) Read() (r Reading) {
	for i := range h.buckets {
		r[i] = h.buckets[i].Load()
	}
	return r
}

// Sub returns what was counted since earlier.
func (r Reading) Sub(earlier *Reading) Reading {
	for i := range r {
		r[i] -= earlier[i]
	}
	return r
}

// Quantile estimates the q-quantile: values are taken to be spread evenly over the bucket that holds it. 0 if nothing was counted.
func (r *Reading) Quantile(q float64) float64 {
	total := uint64(0)
	for _, n := range r {
		total += n
	}
	want, seen := q*float64(total), 0.0
	for i, n := range r {
		if n > 0 && seen+float64(n) >= want {
			hi := float64(uint64(1) << i)
			return hi/2 + hi/2*(want-seen)/float64(n)
		}
		seen += float64(n)
	}
	return 0
}

// Quantile returns an upper bound of the q-quantile, to a factor of two.
func (h *Histogram) Quantile(q float64) uint64 {
	total := h.count.Load()
	if total == 0 {
		return 0
	}
	want := uint64(q * float64(total))
	var seen uint64
	for i := range h.buckets {
		seen += h.buckets[i].Load()
		if seen > want {
			return uint64(1) << i
		}
	}
	return 1 << 63
}
