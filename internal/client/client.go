package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/kiloraft/kiloraft/router/api"
)

var (
	// ErrNotFound tells that the key, shard or node named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable tells that the cluster or a shard cannot serve now: no leader, too few nodes, not initialized, nobody
	// reachable. The request had no effect.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnknown tells that a write may or may not have happened.
	ErrUnknown = errors.New("outcome unknown")
	// ErrInvalid tells that the request can never be served: a key or value over its limit, a bad number.
	ErrInvalid = errors.New("invalid")
	// ErrCondition tells that the expectation of a compare-and-swap did not hold.
	ErrCondition = errors.New("condition did not hold")
)

// Item is a key with its value. A scan of keys only leaves Value nil.
type Item struct {
	Key, Value []byte
	Version    uint64
}

// Range selects keys: Start is included, End is not; empty means unbounded.
type Range struct {
	Start, End []byte
	Limit      int // 0: no limit
	Reverse    bool
	KeysOnly   bool
}

// KV is the key-value side. Implementations are used by many goroutines at once; they retry until ctx ends.
type KV interface {
	Get(ctx context.Context, key []byte) (Item, error) // ErrNotFound
	Put(ctx context.Context, key, value []byte) (version uint64, err error)
	Delete(ctx context.Context, key []byte) error // an absent key is no error
	// CompareAndSwap puts value if the present one equals expect, or, with expect nil, if there is none; else ErrCondition.
	CompareAndSwap(ctx context.Context, key, expect, value []byte) (version uint64, err error)
	Add(ctx context.Context, key []byte, delta int64) (sum int64, err error)
	// Scan yields the items in order until the range or the limit ends or an error is yielded, which is the last.
	Scan(ctx context.Context, r Range) iter.Seq2[Item, error]
}

// Cluster is the whole of what one connection gives.
type Cluster interface {
	KV
	Init(ctx context.Context, shards, replicas int) (InitResult, error)
	Status(ctx context.Context) (Status, error)
	Nodes(ctx context.Context) ([]Node, error)
	Shards(ctx context.Context, limit int) ([]Shard, error) // 0: all
	Shard(ctx context.Context, id uint64) (Shard, error)    // ErrNotFound
	Locate(ctx context.Context, key []byte) (Shard, error)
	Transfer(ctx context.Context, shard, toNode uint64) error
	Checksums(ctx context.Context, shard uint64) ([]Checksum, error)
	Close() error
}

// InitResult tells what cluster init did.
type InitResult struct {
	Already   bool   `json:"already"`
	ClusterID string `json:"cluster_id"`
	Nodes     int    `json:"nodes"`
	Shards    int    `json:"shards"`
	Replicas  int    `json:"replicas"`
}

// Status is the health of a cluster at a glance.
type Status = api.Status

// Node is one process of the cluster.
type Node = api.NodeView

// Shard is a range of keys and who holds it.
type Shard struct {
	ID          uint64
	Start, End  []byte // End empty: to the end of the key space
	Version     uint64
	ConfVersion uint64
	Leader      uint64 // node, 0: none
	Replicas    []Replica
	Keys, Bytes int64 // estimates
	Load        *Load // of one shard that was asked for, if its leader told; else nil
}

// Load is what is asked of a shard per second, smoothed over some 20 s.
type Load struct {
	Reads, Writes, Bytes uint64
	// HotKey takes HotPercent of the requests, so that no split can help; nil: there is none.
	HotKey     []byte
	HotPercent uint64
}

// Replica is one copy of a shard.
type Replica = api.ReplicaView

// Checksum is the content of one replica at one point of its log.
type Checksum struct {
	Node     uint64
	Replica  uint64
	Term     uint64
	Applied  uint64
	Checksum uint64
	Keys     int64
	Err      string // why this replica gave none
}

// KeyIn gives a key of the shard that ends in suffix, so that a load can be spread over shards on purpose; false if the shard is too
// narrow. Different suffixes of equal length give different keys.
func KeyIn(s Shard, suffix string) ([]byte, bool) {
	key := append(bytes.Clone(s.Start), suffix...)
	for range 9 {
		if len(s.End) == 0 || bytes.Compare(key, s.End) < 0 {
			return key, true
		}
		key = append(key[:len(key)-len(suffix)], 0)
		key = append(key, suffix...)
	}
	return nil, false
}

// IdleTimeout gives a context that ends when progress was not called for d: for what may take long as a whole. d of 0 is no bound.
func IdleTimeout(ctx context.Context, d time.Duration) (_ context.Context, progress, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if d <= 0 {
		return ctx, func() {}, func() { cancel(nil) }
	}
	t := time.AfterFunc(d, func() { cancel(fmt.Errorf("%w: no answer within %v", ErrUnavailable, d)) })
	last := time.Now()
	progress = func() {
		if now := time.Now(); now.Sub(last) > d/16 {
			t.Reset(d)
			last = now
		}
	}
	return ctx, progress, func() { t.Stop(); cancel(nil) }
}
