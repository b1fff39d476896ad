package engine

// Config is what the engines of a lane have in common: each refers to it, so that it takes room once, and none changes it. Only Links changes.
type Config struct {
	// ElectionTimeoutMin is T: a follower that has not heard from a leader for T to 2T campaigns. It is also the length
	// of the leases that this replica grants; who relies on one subtracts ClockDriftMax. Default 1 s.
	ElectionTimeoutMin Duration
	// HeartbeatInterval is how often a leader asks followers that have not answered; those that have are sent a heartbeat when half of
	// their lease is over.
	HeartbeatInterval Duration
	// QuiesceAfter is how long a shard is idle before its leader proposes to sleep. Zero: never.
	QuiesceAfter Duration
	// ClockDriftMax is subtracted from every lease by the side that relies on it.
	ClockDriftMax Duration
	// LeaseStart: until this instant a replica that was here before gives no vote or pre-vote, its own included (rule Engine2).
	LeaseStart Instant
	// Bounds.
	UncommittedBytesMax int // per shard, over it Write is refused; zero: no bound
	InflightMax         int // messages per follower in the pipeline; default 256
	EntriesPerMessage   int // entries per Replicate; default 256
	// Links is what the lane knows about the node-level leases between this node and others. It outlives the engine, is shared by
	// all engines of the lane, and is only read here.
	Links *Links
}

// WithDefaults returns c with a value for what must not be zero.
func (c Config) WithDefaults() *Config {
	if c.ElectionTimeoutMin <= 0 {
		c.ElectionTimeoutMin = 1e9
	}
	if c.HeartbeatInterval <= 0 {
		c.HeartbeatInterval = c.ElectionTimeoutMin / 10
	}
	if c.InflightMax <= 0 {
		c.InflightMax = 256
	}
	if c.EntriesPerMessage <= 0 {
		c.EntriesPerMessage = 256
	}
	return &c
}

// Recovered is what storage knew of the replica when it was opened.
type Recovered struct {
	Vote      Vote
	Purged    LogID     // last log id that is not in the log any more
	Runs      []TermRun // entries after Purged, all durable
	Committed LogID     // hint, at most the last entry
	Applied   LogID     // of the durable state
	// Membership is the newest in log or state, Previous the one before it (the one in force if the newest is truncated).
	Membership MembershipAt
	Previous   MembershipAt
	Barriers   []uint64 // indexes of barrier entries after Applied
	// Incarnation was never seen before (rule Cluster9).
	Incarnation uint64
	// Newborn: the replica was made just now, of a new shard. It leaves the first election to the designated leader: unless
	// told to Campaign it waits an ordinary election timeout.
	Newborn bool
	// GrantUntil: until then a promise to the leader of Vote stands. An uninitialised replica gave it, and now gets the engine that
	// its parent's split, or its creation, makes (rule Engine2). Zero: none.
	GrantUntil Instant
}

// Status is a copy of what an engine is at a moment.
type Status struct {
	Role       Role
	Vote       Vote
	Leader     Peer // zero if unknown
	Last       LogID
	Flushed    LogID
	Committed  LogID
	Applied    LogID
	Purged     LogID
	Membership MembershipAt
	Quiesced   bool
	LeaseUntil Instant // leaders: zero if none
	Deadline   Instant
}

// Progress is a leader's view of one follower.
type Progress struct {
	Peer     Peer
	Match    LogID
	Next     uint64
	State    ProgressState
	Inflight int
	Learner  bool
}

// ProgressState is how a leader sends to a follower.
type ProgressState uint8

// The states of progress.
const (
	ProgressProbe ProgressState = iota
	ProgressPipeline
	ProgressSnapshot
)

// Links is the lane's table of node-level leases (rule Engine2): it lets a sleeping shard keep its lease, and a sleeping follower
// keep its promise, while the two nodes exchange heartbeats without a break. The owner writes it between events; engines
// read it. All times are on the local clock.
type Links struct {
	Nodes map[NodeID]Link
}

// Link is the state of the heartbeats with one node.
type Link struct {
	Up          bool
	Incarnation uint64
	// GrantedUntil: the peer has promised, by an echo, that until then (counted from the sending of what it echoed, drift
	// already subtracted) its replicas stand by grants given earlier in GrantEpoch.
	GrantedUntil Instant
	// GrantEpoch moves when an echo arrives after GrantedUntil had run out. A grant remembers the epoch in which it was given.
	GrantEpoch uint64
	// PromisedUntil: until then we have promised the same to the peer, in PromiseEpoch.
	PromisedUntil Instant
	PromiseEpoch  uint64
}
