package scheduler

import (
	"github.com/kiloraft/kiloraft/engine"
)

// Kind tells what a Request asks for.
type Kind uint8

// The kinds, and what Body and Answer are.
const (
	KindWrite Kind = iota + 1 // shard.AppendWrite; shard.AppendResult
	KindRead                  // shard.AppendRead; shard.AppendAnswerHeader and entries
	KindScan                  // shard.AppendScan; shard.AppendPage

	kindBarrier // a split or merge step of this node's own
	kindLead    // what the leader knows of its shard, see LeadsOf; into User
)

// Request is one request to a shard of this node. It may be used again once it was answered.
//
// Err is one of package shard's errors. A write whose outcome is that a condition failed is an answer, not an error:
// decode it with shard.DecodeResult.
type Request struct {
	Kind  Kind
	Shard engine.ShardID
	// Body must not change until Done was called.
	Body []byte
	// Deadline is when nobody waits for the answer any more; zero: never. A request that is still waiting to be looked at then
	// is refused; a write that was proposed is answered when its outcome is known.
	Deadline engine.Instant
	// Arrived is when the request came to this node, if the caller knows: then the log of slow operations tells how long it waited for
	// the lane.
	Arrived engine.Instant
	// Done is called exactly once, on a lane or on the caller's goroutine: it must not block, and must not call Submit.
	Done func(*Request)
	// User is the caller's.
	User any

	Err    error
	Answer []byte // appended to Answer[:0]

	next  *Request
	began engine.Instant
	size  int64 // bytes counted against InflightBytesMax; not 0: it counts against InflightMax, too
	// For the log of slow operations; 0: not reached. proposed: a write was appended, a read may be served; applying: what holds a write
	// was committed and durable here, and held is what that had waited for.
	proposed, applying engine.Instant
	held               Stage
	// awaited: it has waited for a leader here.
	awaited bool
}
