package engine

// NodeID names a process of the cluster. It is never reused: a node that lost its disk gets a new one (DESIGN 3.5).
type NodeID uint64

// ShardID names a shard. The engine does not look at it; it stands here because every package above needs the type.
type ShardID uint64

// ReplicaID names one replica of one shard. It is unique within the shard and never reused (rule Engine5).
type ReplicaID uint64

// Instant is a point in time in nanoseconds on a monotonic clock that also runs while the machine is suspended
// (CLOCK_BOOTTIME). Zero means "no time". Instants of different nodes are never compared; those that are sent to a
// peer are only ever echoed back.
type Instant int64

// Duration is a span in nanoseconds on the same clock.
type Duration int64

// Peer names a replica for the others of its shard. Both parts are compared, always (rule Engine5).
type Peer struct {
	Node    NodeID
	Replica ReplicaID
}

// LogID names an entry: the term of the leader that wrote it, and its position. Terms and indexes start at 1.
// Every shard is born with LogID{1, 1} applied and purged (rule Split3), so the first real entry has index 2.
type LogID struct {
	Term  uint64
	Index uint64
}

// Compare orders log ids as Raft's election restriction does: by term, then by index.
func (a LogID) Compare(b LogID) int {
	switch {
	case a.Term < b.Term:
		return -1
	case a.Term > b.Term:
		return 1
	case a.Index < b.Index:
		return -1
	case a.Index > b.Index:
		return 1
	}
	return 0
}

// Less tells whether a is older than b in the sense of Compare.
func (a LogID) Less(b LogID) bool { return a.Compare(b) < 0 }

// Vote is what a replica has promised: in Term it supports Peer, and nobody else. Committed tells that Peer is known to
// have won the term; without, a zero Peer says that the term is known and nobody in it has our vote. A vote is replaced only by one that
// supersedes it: of a later term, or in the same term the winner's over a mere choice, or a choice over none.
type Vote struct {
	Term      uint64
	Peer      Peer
	Committed bool
}

// IOID names a log I/O: the leader (or own) vote under which it was accepted, and the last log id after it. A completion
// that carries an index alone could complete an entry that another leader has overwritten since.
type IOID struct {
	Vote Vote
	Last LogID
}

// Membership is a configuration: one set of voters, or two while it is joint; and learners, who receive entries but are
// not counted. A Membership is immutable once it was handed to the engine or received from it.
type Membership struct {
	Voters   [][]Peer
	Learners []Peer
}

// Joint tells whether two voter sets are in force.
func (m *Membership) Joint() bool { return len(m.Voters) > 1 }

// EntryKind tells what an entry is to the engine.
type EntryKind uint8

// The kinds of entries. They are stored in the raft log and sent to peers: never renumber them.
const (
	// EntryNormal carries a command of the state machine.
	EntryNormal EntryKind = 0
	// EntryBlank starts a leader's term.
	EntryBlank EntryKind = 1
	// EntryMembership carries a Membership.
	EntryMembership EntryKind = 2
	// EntryBarrier carries a command that moves ownership of keys (split, freeze, merge): while one is committed and
	// not applied, reads wait (rule Engine4).
	EntryBarrier EntryKind = 3
)

// TermRun is a run of consecutive entries of one term: all the engine keeps of them.
type TermRun struct {
	Term  uint64
	First uint64
	Last  uint64
}

// MembershipAt is a membership with the place of its entry.
type MembershipAt struct {
	LogID      LogID
	Membership *Membership
}

// SnapshotMeta tells what a snapshot covers.
type SnapshotMeta struct {
	Last       LogID        // the last entry it contains
	Membership MembershipAt // the membership in force at Last
}

// Role is what a replica is in its shard right now.
type Role uint8

// The roles.
const (
	// RoleUninitialised is a replica that holds neither entries nor a membership: it was made by a message and waits for a
	// snapshot or its parent's split. It may grant votes, and never campaigns (rule Split4).
	RoleUninitialised Role = iota
	RoleLearner
	RoleFollower
	RolePreCandidate
	RoleCandidate
	RoleLeader
)
