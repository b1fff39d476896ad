package api

import (
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
)

// Method is the number of a method. Sent: never renumber.
type Method = uint16

// The methods. Behind each: the bodies of request and answer. An answer with another status than shard.StatusOK carries what
// shard.DecodeError reads.
const (
	// MethodRead, MethodWrite and MethodScan (shard.Read → answer, shard.Write → shard.Result, shard.Scan → shard.Page) go to
	// one shard, named in the body, and are served by this node's replica of it. A replica that does not lead forwards to
	// the leader if the request was not forwarded already and asks for it (FlagForward), else answers ErrNotLeader.
	MethodRead  Method = 1
	MethodWrite Method = 2
	MethodScan  Method = 3
	// MethodRouteRead, MethodRouteWrite and MethodRouteScan have the same bodies with Shard and Version 0: any node takes them and
	// finds the shard of the (user) keys itself, retries until the deadline, and uses its own session if the write has none
	// (rule Cluster2). They are for simple clients, and never forwarded as such.
	MethodRouteRead  Method = 4
	MethodRouteWrite Method = 5
	MethodRouteScan  Method = 6

	// MethodMap (MapRequest → MapPage): the range map as this node knows it.
	MethodMap Method = 16
	// MethodNodeInfo (empty → NodeInfo): about this node; also served by a node that is in no cluster.
	MethodNodeInfo Method = 17
	// MethodReplicas (ReplicasRequest → ReplicasPage): this node's replicas.
	MethodReplicas Method = 18
	// MethodTransfer (TransferRequest → empty): hand over the leadership of a shard; answered when the new leader is known here
	// or the deadline has passed. Served by the leader.
	MethodTransfer Method = 19
	// MethodChecksum (ChecksumRequest → Checksum): of this node's replica.
	MethodChecksum Method = 20
	// MethodNodes (empty → NodesPage): all nodes of the cluster as meta knows them, with this node's view of their liveness.
	MethodNodes Method = 21

	// MethodInit (InitRequest → InitAnswer): make the cluster (rule Cluster7).
	MethodInit Method = 32
	// MethodReserve and MethodStart (Reservation → Reservation): the durable steps of init. The answer to MethodReserve is the
	// reservation that the node holds, which may be another's.
	MethodReserve Method = 33
	MethodStart   Method = 34
	// MethodJoin (JoinRequest → JoinAnswer): a new node asks any node of a cluster for an id.
	MethodJoin Method = 35
	// MethodCreate (CreateRequest → empty): make this node's replicas of the given initial descriptors, idempotently (Split6).
	MethodCreate Method = 36
	// MethodShards (ShardsRequest → ShardsPage): descriptors with leader and size, as this node's view of the whole cluster.
	MethodShards Method = 37
)

// FlagForward, beside transport.FlagForwarded (1), asks a node that does not lead to forward the request to the leader.
const FlagForward uint8 = 2

// Bounds of the bodies.
const (
	textBytesMax    = 1 << 10
	LabelsMax       = 64
	NodesMax        = 4096
	MapPageMax      = 2048 // descriptors of one page
	ReplicasPageMax = 4096
	MembersMax      = 256
	CreateMax       = 2048
	ListOfShardsMax = 4096
	InitShardsMax   = 1_000_000
	addressesMax    = 64
)

// ID is a random 128-bit number: of a cluster, or the identity of a node.
type ID = [16]byte

// Body is a request or an answer.
type Body interface {
	// Append appends the encoded body.
	Append(b []byte) []byte
	read(r *mp.Reader)
}

// Decode reads a body that fills all of b. It copies what it keeps.
func Decode(b []byte, into Body) error {
	r := mp.NewReader(b)
	into.read(&r)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("%w: %w", &shard.InvalidError{What: fmt.Sprintf("malformed %T", into)}, err)
	}
	return nil
}

// MapRequest asks for the descriptors of user shards that end after From, in order of their start: the first of them contains
// From, if any shard does.
type MapRequest struct {
	From  []byte
	Limit uint64 // 0: MapPageMax
}

// MapPage is a part of the range map. Nodes and Meta are in every page.
type MapPage struct {
	ClusterID   ID
	Node        engine.NodeID    // who answers
	Meta        shard.Descriptor // Shard 0 if unknown
	Nodes       []NodeAddr
	Descriptors []shard.Descriptor
	Leaders     []engine.NodeID // as far as known, in the order of Descriptors; may be empty
	More        bool
	Next        []byte // From of the next page
}

// NodeAddr is where a node is reached.
type NodeAddr struct {
	Node engine.NodeID
	Addr string
}

// NodeState tells what a node is to the operator.
type NodeState uint8

// The states. Sent: never renumber.
const (
	NodeWaiting  NodeState = 0 // in no cluster yet
	NodeUp       NodeState = 1
	NodeSuspect  NodeState = 2
	NodeDown     NodeState = 3
	NodeDraining NodeState = 4
	NodeRemoved  NodeState = 5
)

// String returns the state as the command line shows it.
func (s NodeState) String() string {
	names := [...]string{"waiting", "up", "suspect", "down", "draining", "removed"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// NodeInfo describes a node.
type NodeInfo struct {
	ClusterID ID // zero: in no cluster
	Node      engine.NodeID
	Identity  ID
	Name      string
	Addr      string
	HTTP      string
	Redis     string
	Version   string
	State     NodeState
	Started   int64 // unix ms
	Replicas  uint64
	Leaders   uint64
	Labels    map[string]string
	Joins     []string // addresses this node was told about: how init finds the others
	Reserved  bool     // holds a reservation: an init was interrupted
}

// NodesPage lists nodes.
type NodesPage struct{ Nodes []NodeInfo }

// ReplicasRequest asks for replicas, in order of shard id, from From on; or for those of the named shards.
type ReplicasRequest struct {
	From   engine.ShardID
	Limit  uint64 // 0: ReplicasPageMax
	Shards []engine.ShardID
}

// ReplicasPage lists replicas of one node.
type ReplicasPage struct {
	Replicas []ReplicaStatus
	More     bool
	Next     engine.ShardID
}

// ReplicaStatus describes a replica as its node sees it.
type ReplicaStatus struct {
	Shard       engine.ShardID
	Replica     engine.ReplicaID
	Role        engine.Role
	Leader      engine.NodeID // 0: unknown
	Term        uint64
	Last        uint64
	Committed   uint64
	Applied     uint64
	Persisted   uint64 // applied by the last checkpoint
	Version     uint64
	ConfVersion uint64
	Keys        uint64
	Bytes       uint64
	Quiesced    bool
	Problem     string // why it does not work; empty if it does
}

// ShardsRequest asks for shards as MapRequest does, or for the named ones.
type ShardsRequest struct {
	From   []byte
	Limit  uint64
	Shards []engine.ShardID
	Meta   bool // the meta shard as well, first
}

// ShardsPage lists shards.
type ShardsPage struct {
	Shards []ShardInfo
	More   bool
	Next   []byte
}

// ShardInfo is a descriptor with what is known about its shard.
type ShardInfo struct {
	Descriptor shard.Descriptor
	Leader     engine.NodeID // 0: none known
	Keys       uint64
	Bytes      uint64
	Rates      *Rates // if one shard was named and its leader told; else nil
}

// Rates are what is asked of a shard per second, smoothed over some 20 s.
type Rates struct {
	Reads  uint64
	Writes uint64
	Bytes  uint64 // read and written
	// HotKey takes HotPercent of the requests, so that no split can help; nil: there is none.
	HotKey     []byte
	HotPercent uint64
}

// TransferRequest asks for leadership to move.
type TransferRequest struct {
	Shard engine.ShardID
	To    engine.NodeID
}

// ChecksumRequest asks for the checksum of a replica's content.
type ChecksumRequest struct{ Shard engine.ShardID }

// Checksum is of a replica's content at an applied entry: the same at the same entry on all replicas.
type Checksum struct {
	Applied  engine.LogID
	Items    uint64
	Bytes    uint64
	Checksum uint64
}

// InitRequest asks to make a cluster of the nodes that are up and wait.
type InitRequest struct {
	Shards   uint64
	Replicas uint64
}

// InitAnswer tells the outcome.
type InitAnswer struct {
	ClusterID ID
	Already   bool // it had been made before; nothing was changed
	Nodes     uint64
	Shards    uint64
}

// Reservation is what a node holds for a cluster to be made (rule Cluster7). A zero ClusterID is none.
type Reservation struct {
	ClusterID ID
	Members   []Member // ascending by identity
	// Meta is the first descriptor of the meta shard.
	Meta     shard.Descriptor
	Shards   uint64 // as asked for in InitRequest
	Replicas uint64
	Started  bool
}

// Member is a node chosen for a new cluster.
type Member struct {
	Identity ID
	Node     engine.NodeID
	Addr     string
}

// JoinRequest is a new node's.
type JoinRequest struct {
	Identity ID
	Addr     string
	HTTP     string
	Redis    string
	Name     string
	Labels   map[string]string
}

// JoinAnswer gives the new node its place.
type JoinAnswer struct {
	ClusterID ID
	Node      engine.NodeID
	Meta      shard.Descriptor
	Nodes     []NodeAddr
}

// CreateRequest carries initial descriptors, and which node leads each first (0: no preference).
type CreateRequest struct {
	Descriptors []shard.Descriptor
	Leaders     []engine.NodeID
}
