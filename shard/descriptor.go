package shard

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// MetaShardID is the shard of the system keys. Its keys are not part of the user's key space, and it never splits or merges
// (rule Cluster10).
const MetaShardID engine.ShardID = 1

// Role tells what a replica is in the membership of its descriptor. Stored and sent: never renumber.
type Role uint8

// The roles. While a membership is joint, a voter of the old set only is RoleOutgoing, or RoleDemoting if it stays as a
// learner; one of the new set only is RoleIncoming.
const (
	RoleVoter Role = iota + 1
	RoleLearner
	RoleIncoming
	RoleOutgoing
	RoleDemoting
)

// String returns the role as the command line shows it.
func (r Role) String() string {
	switch r {
	case RoleVoter:
		return "voter"
	case RoleLearner:
		return "learner"
	case RoleIncoming:
		return "incoming"
	case RoleOutgoing:
		return "outgoing"
	case RoleDemoting:
		return "demoting"
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// ReplicaDesc names one replica of a shard.
type ReplicaDesc struct {
	Replica engine.ReplicaID
	Node    engine.NodeID
	Role    Role
}

// Peer returns the replica's name in the engine.
func (r ReplicaDesc) Peer() engine.Peer { return engine.Peer{Node: r.Node, Replica: r.Replica} }

// Descriptor says which keys a shard owns, and which replicas serve it. It is immutable once shared.
type Descriptor struct {
	Shard engine.ShardID
	// Start is the first key of the shard, for life (rule Split5); End is the first behind it. An empty End is plus infinity.
	Start []byte
	End   []byte
	// Version moves on split and merge; among shards that cover a key the highest owns it (rule Split5).
	Version uint64
	// ConfVersion moves with each membership entry.
	ConfVersion uint64
	Replicas    []ReplicaDesc
}

// Contains tells whether key is in the shard's range.
func (d *Descriptor) Contains(key []byte) bool {
	return bytes.Compare(key, d.Start) >= 0 && (len(d.End) == 0 || bytes.Compare(key, d.End) < 0)
}

// ContainsRange tells whether all of [start, end) is in the shard's range; an empty end is plus infinity.
func (d *Descriptor) ContainsRange(start, end []byte) bool {
	if bytes.Compare(start, d.Start) < 0 {
		return false
	}
	return len(d.End) == 0 || len(end) > 0 && bytes.Compare(end, d.End) <= 0
}

// Overlaps tells whether some key is in the ranges of both.
func (d *Descriptor) Overlaps(o *Descriptor) bool {
	return (len(o.End) == 0 || bytes.Compare(d.Start, o.End) < 0) && (len(d.End) == 0 || bytes.Compare(o.Start, d.End) < 0)
}

// Newer tells whether d describes a later state of the same shard than o.
func (d *Descriptor) Newer(o *Descriptor) bool {
	if d.Version != o.Version {
		return d.Version > o.Version
	}
	return d.ConfVersion > o.ConfVersion
}

// Replica returns the replica with this id.
func (d *Descriptor) Replica(id engine.ReplicaID) (ReplicaDesc, bool) {
	for _, r := range d.Replicas {
		if r.Replica == id {
			return r, true
		}
	}
	return ReplicaDesc{}, false
}

// OnNode returns the replica on this node.
func (d *Descriptor) OnNode(node engine.NodeID) (ReplicaDesc, bool) {
	for _, r := range d.Replicas {
		if r.Node == node {
			return r, true
		}
	}
	return ReplicaDesc{}, false
}

// Clone returns a deep copy.
func (d *Descriptor) Clone() *Descriptor {
	c := *d
	c.Start, c.End, c.Replicas = bytes.Clone(d.Start), bytes.Clone(d.End), slices.Clone(d.Replicas)
	return &c
}

// String returns a line for logs.
func (d *Descriptor) String() string {
	return fmt.Sprintf("shard %d [%q, %q) v%d.%d %v", d.Shard, d.Start, d.End, d.Version, d.ConfVersion, d.Replicas)
}

// Validate reports what makes no sense in a descriptor.
func (d *Descriptor) Validate() error {
	switch {
	case d.Shard == 0:
		return invalid("descriptor without a shard id")
	case d.Version == 0 || d.ConfVersion == 0:
		return invalid("descriptor of shard %d without versions", d.Shard)
	case len(d.End) > 0 && bytes.Compare(d.Start, d.End) >= 0:
		return invalid("descriptor of shard %d has an empty range", d.Shard)
	case len(d.Start) > KeyBytesMax || len(d.End) > KeyBytesMax:
		return invalid("descriptor of shard %d has a bound over %d bytes", d.Shard, KeyBytesMax)
	case len(d.Replicas) > DescriptorReplicasMax:
		return invalid("descriptor of shard %d has %d replicas", d.Shard, len(d.Replicas))
	}
	for i, r := range d.Replicas {
		if r.Replica == 0 || r.Node == 0 || r.Role < RoleVoter || r.Role > RoleDemoting {
			return invalid("descriptor of shard %d has a malformed replica %+v", d.Shard, r)
		}
		for _, o := range d.Replicas[:i] {
			if o.Replica == r.Replica || o.Node == r.Node {
				return invalid("descriptor of shard %d names a replica or node twice: %+v, %+v", d.Shard, o, r)
			}
		}
	}
	return nil
}

// AppendDescriptor appends [shard, start, end, version, confVersion, [replica, node, role …]]; newer versions may append
// scalars to the outer array.
func AppendDescriptor(b []byte, d *Descriptor) []byte {
	b = mp.AppendArray(b, 6)
	b = mp.AppendUint(b, uint64(d.Shard))
	b = mp.AppendBin(b, d.Start)
	b = mp.AppendBin(b, d.End)
	b = mp.AppendUint(b, d.Version)
	b = mp.AppendUint(b, d.ConfVersion)
	b = mp.AppendArray(b, 3*len(d.Replicas))
	for _, r := range d.Replicas {
		b = mp.AppendUint(b, uint64(r.Replica))
		b = mp.AppendUint(b, uint64(r.Node))
		b = mp.AppendUint(b, uint64(r.Role))
	}
	return b
}

// ReadDescriptor reads a descriptor and copies what it keeps.
func ReadDescriptor(r *mp.Reader) Descriptor {
	var d Descriptor
	extra := r.ArrayMin(6)
	d.Shard = engine.ShardID(r.Uint())
	d.Start = copied(r.Bin())
	d.End = copied(r.Bin())
	d.Version = r.Uint()
	d.ConfVersion = r.Uint()
	n := r.Array()
	if n%3 != 0 || n > 3*DescriptorReplicasMax {
		r.Fail("replicas of a descriptor")
		return Descriptor{}
	}
	if n > 0 && r.Err() == nil {
		d.Replicas = make([]ReplicaDesc, n/3)
	}
	for i := range d.Replicas {
		d.Replicas[i] = ReplicaDesc{Replica: engine.ReplicaID(r.Uint()), Node: engine.NodeID(r.Uint()), Role: Role(r.Uint())}
	}
	r.Skip(extra)
	if r.Err() != nil {
		return Descriptor{}
	}
	return d
}

// DecodeDescriptor reads a descriptor that fills all of b.
func DecodeDescriptor(b []byte) (Descriptor, error) {
	r := mp.NewReader(b)
	d := ReadDescriptor(&r)
	return d, r.Finish()
}

// copied copies b; the empty slice is nil.
func copied(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

// MembershipOf returns the membership that the roles of the descriptor describe. Peers are in the order of the descriptor.
func MembershipOf(d *Descriptor) *engine.Membership {
	var learners []engine.Peer
	old, new := make([]engine.Peer, 0, len(d.Replicas)), make([]engine.Peer, 0, len(d.Replicas)) // no longer than needed: idle shards keep them
	joint := false
	for _, r := range d.Replicas {
		p := r.Peer()
		switch r.Role {
		case RoleVoter:
			old, new = append(old, p), append(new, p)
		case RoleLearner:
			learners = append(learners, p)
		case RoleIncoming:
			joint, new = true, append(new, p)
		case RoleOutgoing:
			joint, old = true, append(old, p)
		case RoleDemoting:
			joint, old, learners = true, append(old, p), append(learners, p)
		}
	}
	m := &engine.Membership{Learners: learners}
	switch {
	case joint:
		m.Voters = [][]engine.Peer{old, new}
	case len(old) > 0:
		m.Voters = [][]engine.Peer{old}
	}
	return m
}

// ReplicasOf returns the replicas that a membership describes, sorted by replica id, so that every replica of the shard gets the
// same descriptor.
func ReplicasOf(m *engine.Membership) []ReplicaDesc {
	var old, new []engine.Peer
	if len(m.Voters) > 0 {
		old, new = m.Voters[0], m.Voters[len(m.Voters)-1]
	}
	out := make([]ReplicaDesc, 0, len(old)+len(m.Learners)+1)
	add := func(p engine.Peer, role Role) {
		out = append(out, ReplicaDesc{Replica: p.Replica, Node: p.Node, Role: role})
	}
	for _, p := range old {
		switch {
		case slices.Contains(new, p):
			add(p, RoleVoter)
		case slices.Contains(m.Learners, p):
			add(p, RoleDemoting)
		default:
			add(p, RoleOutgoing)
		}
	}
	for _, p := range new {
		if !slices.Contains(old, p) {
			add(p, RoleIncoming)
		}
	}
	for _, p := range m.Learners {
		if !slices.Contains(old, p) && !slices.Contains(new, p) {
			add(p, RoleLearner)
		}
	}
	slices.SortFunc(out, func(a, b ReplicaDesc) int {
		if a.Replica != b.Replica {
			if a.Replica < b.Replica {
				return -1
			}
			return 1
		}
		return 0
	})
	return out
}

// ProvesDead tells whether d is the proof that the shard of x was absorbed: x begins in the range of d, whose Version is higher (rule Split5).
// The meta shard's keys are no part of the user's key space: no user shard covers it, wherever it begins.
func (d *Descriptor) ProvesDead(x *Descriptor) bool {
	return d.Shard != MetaShardID && x.Shard != MetaShardID && d.Shard != x.Shard && x.Version < d.Version && d.Contains(x.Start)
}
