package engine

// CommandKind tells what a command asks of the runtime. The names are openraft's.
type CommandKind uint8

// The commands. Behind each: the fields of Command that it uses.
const (
	// --- storage: run in order; each is followed, once durable, by Flushed with the same IO ---

	// AppendInputEntries (IO, Token, Entry, First, Last, Membership): append the entries First..Last to the raft log.
	// Token > 0: they are those of the Write or ChangeMembership with that Token. Token 0 and Entry blank or membership: the
	// engine made it itself (the blank entry of a term, the second half of a joint change). Token 0 otherwise (Inbound set):
	// they are those entries of the AppendRequest being handled; entries of it outside First..Last are already there.
	AppendInputEntries CommandKind = iota + 1
	// TruncateLog (IO, First): forget all entries from First on.
	TruncateLog
	// PurgeLog (LogID): entries up to LogID are not needed any more. LogID may lie beyond the last entry (a snapshot): then
	// the log is empty and goes on behind it. No completion.
	PurgeLog
	// SaveVote (IO, Vote): make the vote durable.
	SaveVote
	// SaveCommitted (LogID): remember as committed; rides along with the next sync. No completion.
	SaveCommitted

	// --- state machine ---

	// Apply (First, Last): apply these entries, in order; then Applied, which may report a part. They are durable in the local log.
	// At most one Apply is outstanding; an InstallSnapshot may overtake it, and a later Applied is then ignored.
	Apply
	// InstallSnapshot (Token, Snapshot): the StateMachine command: link in the snapshot that came with SnapshotReceived of this
	// Token; then SnapshotInstalled.
	InstallSnapshot
	// RejectSnapshot (Token): throw it away.
	RejectSnapshot

	// --- network ---

	// Replicate (To, Vote, Prev, First, Last, LogID = commit, Stream, Seq, SentAt): send an AppendRequest with the entries
	// First..Last (none if Last < First). The runtime reads them and, if that took it out of the turn, checks with
	// StreamLive before it sends.
	Replicate
	// ReplicateCommitted (Vote, LogID, SentAt): tell all followers the new commit index; may be merged with other messages to them.
	// As a message it is a Heartbeat without a round. Sent to every peer in the membership except self.
	ReplicateCommitted
	// ReplicateSnapshot (To, Vote, Stream): send a snapshot of the applied state; then the follower's SnapshotResponse or SnapshotFailed.
	ReplicateSnapshot
	// BroadcastHeartbeat (Vote, LogID, Round, SentAt): a Heartbeat to every peer in the membership except self.
	BroadcastHeartbeat
	// SendHeartbeat (To, Heartbeat): one particular Heartbeat (quiesce, probe, resigned).
	SendHeartbeat
	// SendVote (Vote, LogID = last log, TransferOf): a VoteRequest to every voter, of both sets, except self.
	SendVote
	// SendPreVote (Vote, LogID = last log): the same with Pre.
	SendPreVote
	// SendTimeoutNow (To, Vote): TransferLeader's message.
	SendTimeoutNow
	// Respond (To, and one of VoteResponse, AppendResponse, HeartbeatResponse, SnapshotResponse by Response): an answer to a peer.
	// The engine has kept it back until its condition held. Uninitialised answers: the runtime sets Waiting (rule Split4).
	Respond

	// --- membership ---

	// RebuildReplicationStreams (Membership): the set of followers changed; streams of peers that are not in it are over.
	RebuildReplicationStreams
	// CloseReplicationStreams: this replica leads no more.
	CloseReplicationStreams

	// --- callers ---

	// Refuse (Token, Reason, To = the leader if known): the request with this token is not accepted and has no effect.
	Refuse
	// ReadReady (Token): every read up to and including this token may be served from the applied state now.
	ReadReady
	// FailPendingReads (Token): every read up to this token must be retried elsewhere. Comes before anything else when office is lost.
	FailPendingReads
)

// Command is one thing that the engine wants done. Which fields count is said at each kind.
type Command struct {
	Kind       CommandKind
	Entry      EntryKind
	Inbound    bool
	Response   ResponseKind
	Reason     Reason
	To         Peer
	Vote       Vote
	TransferOf Vote
	IO         IOID
	Prev       LogID
	LogID      LogID
	First      uint64
	Last       uint64
	Token      uint64
	Stream     uint64
	Seq        uint64
	Round      uint64
	SentAt     Instant
	Membership *Membership
	Snapshot   *SnapshotMeta
	Heartbeat  *Heartbeat

	// One of these by Response. The frequent ones are values, so that answering allocates nothing; the others only point, so that
	// commands, which are cleared each time, stay small.
	AppendResponse    AppendResponse
	HeartbeatResponse HeartbeatResponse
	VoteResponse      *VoteResponse
	SnapshotResponse  *SnapshotResponse
}

// ResponseKind tells which response a Respond command carries.
type ResponseKind uint8

// The responses.
const (
	RespondVote ResponseKind = iota + 1
	RespondAppend
	RespondHeartbeat
	RespondSnapshot
)

// Reason tells why a request was refused.
type Reason uint8

// The reasons.
const (
	ReasonNotLeader Reason = iota + 1
	// ReasonOverloaded: more uncommitted bytes than the shard may hold.
	ReasonOverloaded
	// ReasonBusy: a membership change or transfer is in progress, or no entry of the leader's own term is committed yet.
	ReasonBusy
	// ReasonTransferring: the leader is handing over; retry.
	ReasonTransferring
	// ReasonInvalid: the change makes no sense (unknown peer, a voter that never was a caught-up learner, empty set).
	ReasonInvalid
)
