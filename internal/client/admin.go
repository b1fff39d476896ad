package client

import "context"

// Admin is what changes the shape of a cluster. A Cluster may implement it.
type Admin interface {
	StartOp(ctx context.Context, o OpSpec) (Op, error) // ErrInvalid names an operation that is in the way
	Op(ctx context.Context, id uint64) (Op, error)     // ErrNotFound
	Ops(ctx context.Context, limit int) ([]Op, error)  // newest first
	CancelOp(ctx context.Context, id uint64) (Op, error)
	Undrain(ctx context.Context, node uint64) error
	RemoveNode(ctx context.Context, node uint64, force bool) error
	Plan(ctx context.Context, by []string) (Plan, error)
}

// OpSpec says what is wanted. Which fields count depends on Kind.
type OpSpec struct {
	Kind  string // move, transfer, drain, rebalance, split, merge
	Shard uint64
	Other uint64 // merge: the right one
	From  uint64
	To    uint64
	Keys  [][]byte // split
	Parts uint64   // split
	By    []string // rebalance
}

// Op is an operation.
type Op struct {
	ID         uint64 `json:"id"`
	Kind       string `json:"kind"`
	State      string `json:"state"` // running done failed cancelled
	What       string `json:"what"`
	Why        string `json:"why"`
	Parent     uint64 `json:"parent,omitempty"`
	Shard      uint64 `json:"shard,omitempty"`
	From       uint64 `json:"from,omitempty"`
	To         uint64 `json:"to,omitempty"`
	Step       string `json:"step"`
	Done       uint64 `json:"done"`
	Total      uint64 `json:"total"`
	BytesDone  uint64 `json:"bytes_done"`
	BytesTotal uint64 `json:"bytes_total"`
	Started    string `json:"started"`
	Updated    string `json:"updated"`
	Ended      string `json:"ended,omitempty"`
	LeftS      int64  `json:"left_s,omitempty"` // estimated seconds until it ends
	Cancel     bool   `json:"cancel,omitempty"` // asked to stop
	Reason     string `json:"reason,omitempty"` // why it does not advance
	Error      string `json:"error,omitempty"`
}

// Over tells whether the operation has ended.
func (o *Op) Over() bool { return o.State != "running" }

// Plan is what a rebalance would do.
type Plan struct {
	Moves  []PlanMove `json:"moves"`
	Bytes  uint64     `json:"bytes"`
	Before Balance    `json:"before"`
	After  Balance    `json:"after"`
	Stuck  []string   `json:"stuck"`
}

// PlanMove moves a replica, or with Leader the leadership.
type PlanMove struct {
	Shard  uint64 `json:"shard"`
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
	Leader bool   `json:"leader"`
	Bytes  uint64 `json:"bytes"`
	Why    string `json:"why"`
}

// Balance is how evenly things are spread over nodes.
type Balance struct {
	Replicas Spread `json:"replicas"`
	Leaders  Spread `json:"leaders"`
	Bytes    Spread `json:"bytes"`
	Load     Spread `json:"load"`
}

// Spread is over the nodes that take replicas.
type Spread struct {
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// Inspector asks one node about itself. A Cluster may implement it.
type Inspector interface {
	// Inspect returns what the node at an address tells of itself: one of config, version, metrics, log, goroutines, heap, cpu (of so many
	// seconds), replicas, heat and history. Node 0 is whoever listens there.
	Inspect(ctx context.Context, node uint64, addr, what string, seconds uint64) ([]byte, error)
}
