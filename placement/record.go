package placement

import (
	"fmt"
	"maps"
	"sort"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
)

// Bounds of what a record may hold; encoded records come from the network too.
const (
	labelsMax = 64
	textMax   = 256
)

// ClusterState tells how far the making of the cluster has come.
type ClusterState uint8

// The states of a cluster. They are stored: never renumber them.
const (
	// ClusterCreating: the cluster exists, its first shards may not all be recorded yet.
	ClusterCreating ClusterState = 1
	// ClusterReady: all first shards are recorded. It never goes back.
	ClusterReady ClusterState = 2
)

// ClusterVersion is the version of what this program writes to logs and meta; see rule Cluster8.
const ClusterVersion = 1

// ClusterRecord says what the cluster is, and while it is being made, from what: the initial plan is a function of it.
type ClusterRecord struct {
	ID       [16]byte
	Version  uint64 // gates new entry types and semantics (rule Cluster8)
	State    ClusterState
	CreateMS int64 // unix time
	// The arguments of the initial plan.
	Shards       int
	Replicas     int
	FirstShard   engine.ShardID
	FirstReplica engine.ReplicaID
	Nodes        []engine.NodeID
}

// Initial returns the arguments of the initial plan.
func (c *ClusterRecord) Initial() Initial {
	return Initial{Nodes: c.Nodes, Shards: c.Shards, Replicas: c.Replicas, FirstShard: c.FirstShard, FirstReplica: c.FirstReplica}
}

// Append encodes the record.
func (c *ClusterRecord) Append(b []byte) []byte {
	b = mp.AppendArray(b, 9)
	b = mp.AppendBin(b, c.ID[:])
	b = mp.AppendUint(b, c.Version)
	b = mp.AppendUint(b, uint64(c.State))
	b = mp.AppendInt(b, c.CreateMS)
	b = mp.AppendUint(b, uint64(c.Shards))
	b = mp.AppendUint(b, uint64(c.Replicas))
	b = mp.AppendUint(b, uint64(c.FirstShard))
	b = mp.AppendUint(b, uint64(c.FirstReplica))
	b = mp.AppendArray(b, len(c.Nodes))
	for _, n := range c.Nodes {
		b = mp.AppendUint(b, uint64(n))
	}
	return b
}

// DecodeCluster decodes a ClusterRecord.
func DecodeCluster(b []byte) (ClusterRecord, error) {
	r := mp.NewReader(b)
	var c ClusterRecord
	more := r.ArrayMin(9)
	ReadID(&r, &c.ID)
	c.Version = r.Uint()
	c.State = ClusterState(r.Uint())
	c.CreateMS = r.Int()
	c.Shards = int(r.Uint())
	c.Replicas = int(r.Uint())
	c.FirstShard = engine.ShardID(r.Uint())
	c.FirstReplica = engine.ReplicaID(r.Uint())
	n := r.Array()
	for range n {
		c.Nodes = append(c.Nodes, engine.NodeID(r.Uint()))
	}
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return ClusterRecord{}, fmt.Errorf("placement: cluster record: %w", err)
	}
	return c, nil
}

// NodeState is what the cluster has decided about a node; whether it is alive is not recorded.
type NodeState uint8

// The states of a node. They are stored: never renumber them.
const (
	NodeUp       NodeState = 1
	NodeDraining NodeState = 2
	NodeRemoved  NodeState = 3
)

// NodeRecord is what the cluster knows of a node.
type NodeRecord struct {
	ID       engine.NodeID
	Identity [16]byte // random, made at the node's first start; joining is idempotent by it (rule Cluster7)
	Name     string
	Addr     string // advertised to peers and clients
	HTTP     string
	State    NodeState
	Labels   map[string]string
}

// Equal tells whether both say the same.
func (n *NodeRecord) Equal(o *NodeRecord) bool {
	return n.ID == o.ID && n.Identity == o.Identity && n.Name == o.Name && n.Addr == o.Addr && n.HTTP == o.HTTP && n.State == o.State && maps.Equal(n.Labels, o.Labels)
}

// Append encodes the record.
func (n *NodeRecord) Append(b []byte) []byte {
	b = mp.AppendArray(b, 7)
	b = mp.AppendUint(b, uint64(n.ID))
	b = mp.AppendBin(b, n.Identity[:])
	b = mp.AppendString(b, n.Name)
	b = mp.AppendString(b, n.Addr)
	b = mp.AppendString(b, n.HTTP)
	b = mp.AppendUint(b, uint64(n.State))
	return AppendLabels(b, n.Labels)
}

// DecodeNode decodes a NodeRecord.
func DecodeNode(b []byte) (NodeRecord, error) {
	r := mp.NewReader(b)
	var n NodeRecord
	more := r.ArrayMin(7)
	n.ID = engine.NodeID(r.Uint())
	ReadID(&r, &n.Identity)
	n.Name = ReadText(&r)
	n.Addr = ReadText(&r)
	n.HTTP = ReadText(&r)
	n.State = NodeState(r.Uint())
	n.Labels = ReadLabels(&r)
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return NodeRecord{}, fmt.Errorf("placement: node record: %w", err)
	}
	return n, nil
}

// ReadID reads a 16-byte id.
func ReadID(r *mp.Reader, id *[16]byte) {
	b := r.Bin()
	if r.Err() == nil && len(b) != len(id) {
		r.Fail("an id must have 16 bytes")
		return
	}
	copy(id[:], b)
}

// ReadText reads a short text such as a name or an address.
func ReadText(r *mp.Reader) string {
	b := r.Bin()
	if len(b) > textMax {
		r.Fail("text too long")
		return ""
	}
	return string(b)
}

// AppendLabels encodes labels as one array of keys and values, sorted.
func AppendLabels(b []byte, labels map[string]string) []byte {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	b = mp.AppendArray(b, 2*len(keys))
	for _, k := range keys {
		b = mp.AppendString(mp.AppendString(b, k), labels[k])
	}
	return b
}

// ReadLabels reads what AppendLabels has written.
func ReadLabels(r *mp.Reader) map[string]string {
	n := r.Array()
	if n%2 != 0 || n > 2*labelsMax {
		r.Fail("bad labels")
		return nil
	}
	labels := make(map[string]string, n/2)
	for range n / 2 {
		k := ReadText(r)
		labels[k] = ReadText(r)
	}
	return labels
}

// AppendNextID encodes the value of an allocator's key.
func AppendNextID(b []byte, next uint64) []byte { return mp.AppendUint(mp.AppendArray(b, 1), next) }

// DecodeNextID decodes the value of an allocator's key. An absent one (no bytes) is 1: ids start there.
func DecodeNextID(b []byte) (uint64, error) {
	if len(b) == 0 {
		return 1, nil
	}
	r := mp.NewReader(b)
	more := r.ArrayMin(1)
	next := r.Uint()
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return 0, fmt.Errorf("placement: allocator: %w", err)
	}
	return next, nil
}

// ShardRecord is what meta knows of a shard. The shard's own log is the truth of its descriptor; this follows it (rules Split5, Cluster5).
type ShardRecord struct {
	Descriptor shard.Descriptor
	// Leader is the node that leads a new shard first, 0 for none: a preference, not a fact.
	Leader engine.NodeID
}

// Append encodes the record.
func (s *ShardRecord) Append(b []byte) []byte {
	b = mp.AppendBin(mp.AppendArray(b, 2), shard.AppendDescriptor(nil, &s.Descriptor))
	return mp.AppendUint(b, uint64(s.Leader))
}

// DecodeShard decodes a ShardRecord.
func DecodeShard(b []byte) (ShardRecord, error) {
	r := mp.NewReader(b)
	more := r.ArrayMin(2)
	desc := r.Bin()
	s := ShardRecord{Leader: engine.NodeID(r.Uint())}
	r.Skip(more)
	err := r.Finish()
	if err == nil {
		s.Descriptor, err = shard.DecodeDescriptor(desc)
	}
	if err != nil {
		return ShardRecord{}, fmt.Errorf("placement: shard record: %w", err)
	}
	return s, nil
}

// Record returns the record of a shard of an initial plan: Version 1, ConfVersion 1 (rule Split6).
func (s *InitialShard) Record() ShardRecord {
	rec := ShardRecord{Descriptor: shard.Descriptor{Shard: s.ID, Start: s.Start, End: s.End, Version: 1, ConfVersion: 1}}
	if len(s.Replicas) > 0 {
		rec.Leader = s.Replicas[0].Node
	}
	for _, r := range s.Replicas {
		rec.Descriptor.Replicas = append(rec.Descriptor.Replicas, shard.ReplicaDesc{Replica: r.Replica, Node: r.Node, Role: shard.RoleVoter})
	}
	return rec
}

// AppendDead encodes a dead-shard record: which shard absorbed this one, and at which of its versions. It is kept for ever (rule Cluster5).
func AppendDead(b []byte, id, absorber engine.ShardID, version uint64) []byte {
	b = mp.AppendUint(mp.AppendArray(b, 3), uint64(id))
	return mp.AppendUint(mp.AppendUint(b, uint64(absorber)), version)
}

// DecodeDead decodes a dead-shard record.
func DecodeDead(b []byte) (absorber engine.ShardID, version uint64, err error) {
	r := mp.NewReader(b)
	more := r.ArrayMin(3)
	_ = r.Uint()
	absorber, version = engine.ShardID(r.Uint()), r.Uint()
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return 0, 0, fmt.Errorf("placement: dead-shard record: %w", err)
	}
	return absorber, version, nil
}
