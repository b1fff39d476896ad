package engine

// Event is something that happened. The engine reads an event during Handle and keeps no reference to it or to any slice
// in it (memberships excepted, which are immutable), so a runtime may reuse one struct per kind.
type Event interface{ event() }

// --- requests of callers ---

// Write asks a leader to append Count entries. All of them get consecutive indexes. Answered by AppendInputEntries with
// the same Token, or by Refuse.
type Write struct {
	Token uint64
	Count int
	Bytes int       // payload bytes, for the bound on uncommitted bytes
	Kind  EntryKind // EntryNormal or EntryBarrier
}

// ChangeMembership asks a leader to make Target the membership: directly if only learners differ, else by way of a joint one.
// New voters must be learners that have caught up, else it is refused. Answered by AppendInputEntries or Refuse.
type ChangeMembership struct {
	Token  uint64
	Target Membership
}

// ReadIndex asks for permission to read the applied state linearizably. Answered by ReadReady with the same Token once the
// applied state may be read, or by Refuse. Tokens of one engine must grow. A runtime merges the reads of one turn into one
// event.
type ReadIndex struct{ Token uint64 }

// TransferLeader asks a leader to hand its office to To. Answered by Refuse if it cannot; else it is tried until one
// election timeout has passed.
type TransferLeader struct {
	Token uint64
	To    Peer
}

// Campaign asks a follower to start an election (with pre-vote) now: the designated first leader of a new shard.
type Campaign struct{}

// Lead makes a newborn replica the leader of the term in which it was born, without an election: the split that made it says who leads
// then, and nobody else ever campaigns in that term. Whoever sends it vouches that no other life of any replica of the shard is sent one.
type Lead struct{}

// Resign asks a leader to give up office, as when its disk stalls or its clock runs ahead. It tells its followers.
type Resign struct{}

// --- time ---

// Tick tells that the time is past Deadline.
type Tick struct{}

// --- completions ---

// Flushed tells that everything up to and including the I/O that was submitted with this id is durable.
type Flushed struct{ IO IOID }

// Applied tells that the state machine has applied all entries up to LogID.
type Applied struct{ LogID LogID }

// Committed tells that the entry LogID is committed: another shard's log says so (rule Merge3). It has no effect if that entry is
// not in the log.
type Committed struct{ LogID LogID }

// Checkpointed tells that the state up to LogID is durable without the log (rule Engine7). Entries below PurgeBelow may be
// purged even if a live follower still needs them: the log has outgrown its bound.
type Checkpointed struct {
	LogID      LogID
	PurgeBelow uint64
}

// SnapshotReceived tells that a whole snapshot of leader From has arrived in a fresh tablet. The engine answers with
// InstallSnapshot (same Token) or with RejectSnapshot.
type SnapshotReceived struct {
	Token  uint64
	From   Peer
	Vote   Vote
	Stream uint64
	Meta   SnapshotMeta
}

// SnapshotInstalled tells that the snapshot of this Token is linked in, durably, and is now the applied state.
// If the runtime found that it had come too late (rule Log7), Superseded is set and nothing was changed.
type SnapshotInstalled struct {
	Token      uint64
	Meta       SnapshotMeta
	Superseded bool
}

// SnapshotFailed tells a leader that the snapshot it had sent to a follower did not arrive.
type SnapshotFailed struct {
	To     Peer
	Stream uint64
}

// ReplicateFailed tells a leader that a message to this follower was dropped before it left (rule Live6): probe again.
type ReplicateFailed struct {
	To     Peer
	Stream uint64
}

// --- liveness of nodes ---

// PeerUp tells that Node is alive, with this incarnation.
type PeerUp struct {
	Node        NodeID
	Incarnation uint64
}

// PeerDown tells that Node is not alive any more.
type PeerDown struct{ Node NodeID }

// Wake ends quiescence without any other effect than starting the ordinary timers; on a follower also the probe of its
// leader (rule Live4).
type Wake struct{}

// --- messages of peers; From is filled in by the runtime from the session and the message ---

// VoteRequest asks for a vote, or with Pre for a pre-vote.
type VoteRequest struct {
	From Peer
	Pre  bool
	// Vote is the candidate's vote: for a pre-vote the one it would take.
	Vote    Vote
	LastLog LogID
	// TransferOf is set when the campaign was ordered by TimeoutNow: the vote of the leader that ordered it. It breaks
	// exactly the grant that was given to that leader (rule Engine2).
	TransferOf Vote
}

// VoteResponse answers a VoteRequest.
type VoteResponse struct {
	From    Peer
	Pre     bool
	Granted bool
	// Request is the vote that was asked for.
	Request Vote
	// Vote is the responder's own, so that a higher term is learnt even from a refusal.
	Vote Vote
	// LiveLeader tells that it was refused because of a live leader (rule Live5).
	LiveLeader bool
}

// AppendRequest carries entries, or none (a probe).
type AppendRequest struct {
	From Peer
	Vote Vote // the leader's, committed
	Prev LogID
	// Runs describe the entries that follow Prev, without gap; their bodies stay with the runtime.
	Runs []TermRun
	// Memberships are those among the entries, in order.
	Memberships []MembershipAt
	// Barriers are the indexes of barrier entries among them, in order.
	Barriers []uint64
	// Commit is at most what the leader has itself applied (rule Engine4).
	Commit LogID
	// Stream and Seq name the message within the leader's progress; they are echoed.
	Stream uint64
	Seq    uint64
	// SentAt is the leader's clock; it is echoed and starts the lease.
	SentAt Instant
}

// AppendResponse answers an AppendRequest, after everything that it acknowledges is durable.
type AppendResponse struct {
	From   Peer
	Vote   Vote // the responder's: a higher one ends the leader's term
	Stream uint64
	Seq    uint64
	SentAt Instant
	// Success: all of the log up to Match is the same and durable here.
	Success bool
	Match   LogID
	// Hint, on a rejection, is the responder's last log id that could match.
	Hint LogID
	// Uninitialised: the responder holds nothing and waits for a snapshot, or for its parent's split if Waiting (rule Split4).
	Uninitialised bool
	Waiting       bool
	// Promise is the length of the lease that the responder grants, from SentAt. Zero grants none.
	Promise Duration
}

// Heartbeat keeps the lease, announces the commit index and carries a read round. Quiesce asks the follower to sleep.
type Heartbeat struct {
	From   Peer
	Vote   Vote
	Commit LogID
	Round  uint64 // read round
	SentAt Instant
	// Quiesce asks to sleep if the follower's last = committed = Last exactly (rule Live2).
	Quiesce bool
	Last    LogID
	// Probe asks only for a Heartbeat in return: a provoked follower doubts its leader (rule Live4). Vote is then the sender's.
	Probe bool
	// Resigned tells that the sender leads no more (rule Live4).
	Resigned bool
}

// HeartbeatResponse answers a Heartbeat.
type HeartbeatResponse struct {
	From     Peer
	Vote     Vote
	Round    uint64
	SentAt   Instant
	Promise  Duration
	Quiesced bool // accepted a Quiesce for exactly this Last
	Last     LogID
	// Behind tells that the follower is missing entries before Commit: the leader probes it.
	Behind bool
}

// SnapshotResponse answers a snapshot once it is installed, or refused.
type SnapshotResponse struct {
	From     Peer
	Vote     Vote
	Stream   uint64
	Accepted bool
	Match    LogID
}

// TimeoutNow orders a follower to campaign at once.
type TimeoutNow struct {
	From Peer
	Vote Vote
}

func (*Write) event()             {}
func (*ChangeMembership) event()  {}
func (*ReadIndex) event()         {}
func (*TransferLeader) event()    {}
func (*Campaign) event()          {}
func (*Lead) event()              {}
func (*Resign) event()            {}
func (*Tick) event()              {}
func (*Flushed) event()           {}
func (*Applied) event()           {}
func (*Checkpointed) event()      {}
func (*Committed) event()         {}
func (*SnapshotReceived) event()  {}
func (*SnapshotInstalled) event() {}
func (*SnapshotFailed) event()    {}
func (*ReplicateFailed) event()   {}
func (*PeerUp) event()            {}
func (*PeerDown) event()          {}
func (*Wake) event()              {}
func (*VoteRequest) event()       {}
func (*VoteResponse) event()      {}
func (*AppendRequest) event()     {}
func (*AppendResponse) event()    {}
func (*Heartbeat) event()         {}
func (*HeartbeatResponse) event() {}
func (*SnapshotResponse) event()  {}
func (*TimeoutNow) event()        {}
