package node

import (
	"context"
	"errors"

	"github.com/kiloraft/kiloraft/engine"
)

// Node is a running node.
type Node struct {
	cfg Config
}

// Open starts a node on its data directory and returns when it listens. It is then a member of its cluster, or waits for one to
// be made.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	return nil, errors.New("node: not implemented")
}

// Close hands leaderships away, checkpoints, and stops everything. When ctx ends it stops without further ado, which loses
// nothing. It may be called more than once.
func (n *Node) Close(ctx context.Context) error { return nil }

// Addr returns the address that the node tells others.
func (n *Node) Addr() string { return "" }

// HTTPAddr returns the address of the HTTP endpoints, empty if there are none.
func (n *Node) HTTPAddr() string { return "" }

// ID returns the node's id, 0 while it belongs to no cluster.
func (n *Node) ID() engine.NodeID { return 0 }

// ClusterID returns the cluster that the node belongs to, zero while there is none.
func (n *Node) ClusterID() [16]byte { return [16]byte{} }
