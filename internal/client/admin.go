package client

import (
	"context"

	"github.com/kiloraft/kiloraft/placement"
)

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
type Op = placement.OpView

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
