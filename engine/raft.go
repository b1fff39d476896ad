package engine

// Engine is one replica's Raft. It is not safe for concurrent use: its lane owns it.
type Engine struct {
	cfg Config
	rec Recovered
}

// New makes the engine of one replica. It always starts as a follower (rule Engine1).
func New(cfg Config, rec Recovered) *Engine { return &Engine{cfg: cfg, rec: rec} }

// Handle feeds one event and appends to out what is to be done about it, in order.
func (e *Engine) Handle(now Instant, ev Event, out []Command) []Command { return out }

// Deadline tells when a Tick is wanted next. Zero: never, as long as nothing else happens.
func (e *Engine) Deadline() Instant { return 0 }

// Status returns a copy of what the engine is now.
func (e *Engine) Status() Status { return Status{} }

// Progress appends a leader's view of its followers to buf.
func (e *Engine) Progress(buf []Progress) []Progress { return buf }

// StreamLive tells whether what was read for a Replicate or ReplicateSnapshot to this peer may still be sent.
func (e *Engine) StreamLive(to Peer, stream uint64) bool { return false }

// LeaseValid tells whether this replica is a leader that may serve reads of its applied state now.
func (e *Engine) LeaseValid(now Instant) bool { return false }

// Leader names the leader, if it is known.
func (e *Engine) Leader() Peer { return Peer{} }

// IsLeader tells whether this replica leads.
func (e *Engine) IsLeader() bool { return false }
