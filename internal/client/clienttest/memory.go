package clienttest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strconv"
	"sync"

	"github.com/kiloraft/kiloraft/internal/client"
)

// Limits are the real ones.
const (
	KeyBytesMax   = 4 << 10
	ValueBytesMax = 8 << 20
)

// Cluster is three nodes and some shards, all in one map.
type Cluster struct {
	mu      sync.Mutex
	data    map[string]client.Item
	version uint64
	shards  []client.Shard
	nodes   []client.Node
	// Fail, if set, is asked before each operation; an error is its answer.
	Fail func(op string, key []byte) error
	// Hold, if set, is called before each operation without the lock held: the place to make one slow.
	Hold func(op string)
}

// New makes an empty cluster that is not initialized.
func New() *Cluster {
	c := &Cluster{data: make(map[string]client.Item)}
	for i := uint64(1); i <= 3; i++ {
		c.nodes = append(c.nodes, client.Node{ID: i, Name: fmt.Sprintf("n%d", i), Address: fmt.Sprintf("127.0.0.1:710%d", i-1),
			HTTP: fmt.Sprintf("127.0.0.1:718%d", i-1), State: "up", Labels: map[string]string{"zone": string(rune('a' + i - 1))}})
	}
	return c
}

func (c *Cluster) begin(op string, key []byte) error {
	if c.Hold != nil {
		c.Hold(op)
	}
	if c.Fail != nil {
		if err := c.Fail(op, key); err != nil {
			return err
		}
	}
	if len(key) > KeyBytesMax {
		return fmt.Errorf("%w: key of %d bytes, at most %d are allowed", client.ErrInvalid, len(key), KeyBytesMax)
	}
	return nil
}

// Get implements client.KV.
func (c *Cluster) Get(_ context.Context, key []byte) (client.Item, error) {
	if err := c.begin("get", key); err != nil {
		return client.Item{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	it, ok := c.data[string(key)]
	if !ok {
		return it, client.ErrNotFound
	}
	return it, nil
}

// Put implements client.KV.
func (c *Cluster) Put(_ context.Context, key, value []byte) (uint64, error) {
	if err := c.begin("put", key); err != nil {
		return 0, err
	}
	if len(value) > ValueBytesMax {
		return 0, fmt.Errorf("%w: value of %d bytes, at most %d are allowed", client.ErrInvalid, len(value), ValueBytesMax)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.put(key, value), nil
}

func (c *Cluster) put(key, value []byte) uint64 {
	c.version++
	c.data[string(key)] = client.Item{Key: bytes.Clone(key), Value: append([]byte{}, value...), Version: c.version}
	return c.version
}

// Delete implements client.KV.
func (c *Cluster) Delete(_ context.Context, key []byte) error {
	if err := c.begin("del", key); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.data, string(key))
	return nil
}

// CompareAndSwap implements client.KV.
func (c *Cluster) CompareAndSwap(_ context.Context, key, expect, value []byte) (uint64, error) {
	if err := c.begin("cas", key); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	it, ok := c.data[string(key)]
	if expect == nil && ok || expect != nil && (!ok || !bytes.Equal(it.Value, expect)) {
		return 0, client.ErrCondition
	}
	return c.put(key, value), nil
}

// Add implements client.KV.
func (c *Cluster) Add(_ context.Context, key []byte, delta int64) (int64, error) {
	if err := c.begin("add", key); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := int64(0)
	if it, ok := c.data[string(key)]; ok {
		var err error
		if sum, err = strconv.ParseInt(string(it.Value), 10, 64); err != nil {
			return 0, fmt.Errorf("%w: the value is no number", client.ErrInvalid)
		}
	}
	sum += delta
	c.put(key, strconv.AppendInt(nil, sum, 10))
	return sum, nil
}

// Scan implements client.KV. It sees the store as it is when the scan begins.
func (c *Cluster) Scan(_ context.Context, r client.Range) iter.Seq2[client.Item, error] {
	return func(yield func(client.Item, error) bool) {
		if err := c.begin("scan", nil); err != nil {
			yield(client.Item{}, err)
			return
		}
		for _, it := range c.items(r) {
			if !yield(it, nil) {
				return
			}
		}
	}
}

func (c *Cluster) items(r client.Range) []client.Item {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []client.Item
	for _, it := range c.data {
		if bytes.Compare(it.Key, r.Start) >= 0 && (len(r.End) == 0 || bytes.Compare(it.Key, r.End) < 0) {
			if r.KeysOnly {
				it.Value = nil
			}
			out = append(out, it)
		}
	}
	sort.Slice(out, func(i, j int) bool { return bytes.Compare(out[i].Key, out[j].Key) < 0 })
	if r.Reverse {
		slices.Reverse(out)
	}
	if r.Limit > 0 && len(out) > r.Limit {
		out = out[:r.Limit]
	}
	return out
}

// Init implements client.Cluster.
func (c *Cluster) Init(_ context.Context, shards, replicas int) (client.InitResult, error) {
	if err := c.begin("init", nil); err != nil {
		return client.InitResult{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	res := client.InitResult{ClusterID: "00000000-0000-4000-8000-000000000001", Nodes: 3, Shards: len(c.shards), Replicas: replicas, Already: len(c.shards) > 0}
	if res.Already {
		return res, nil
	}
	if replicas > 3 {
		return res, fmt.Errorf("%w: %d replicas need %d nodes, 3 are up", client.ErrUnavailable, replicas, replicas)
	}
	bound := func(i int) []byte {
		if i == 0 || i == shards {
			return nil
		}
		n := i * 65536 / shards
		return []byte{byte(n >> 8), byte(n)}
	}
	for i := range shards {
		s := client.Shard{ID: uint64(i + 2), Start: bound(i), End: bound(i + 1), Version: 1, ConfVersion: 1, Leader: uint64(i%3 + 1)}
		for n := uint64(1); n <= 3; n++ {
			s.Replicas = append(s.Replicas, client.Replica{Node: n, Replica: n, Role: "voter"})
		}
		c.shards = append(c.shards, s)
	}
	res.Shards = shards
	return res, nil
}

// Status implements client.Cluster.
func (c *Cluster) Status(context.Context) (client.Status, error) {
	if err := c.begin("status", nil); err != nil {
		return client.Status{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var s client.Status
	if len(c.shards) == 0 {
		return s, fmt.Errorf("%w: not initialized", client.ErrUnavailable)
	}
	s.ClusterID = "00000000-0000-4000-8000-000000000001"
	s.Nodes.Total, s.Nodes.Up = 3, 3
	s.Shards.Total, s.Replicas, s.Problems = len(c.shards), 3*len(c.shards), []string{}
	for _, sh := range c.shards {
		if sh.Leader != 0 {
			s.Shards.WithLeader++
		} else {
			s.Shards.Unavailable++
			s.Problems = append(s.Problems, fmt.Sprintf("shard %d has no leader", sh.ID))
		}
	}
	return s, nil
}

// Nodes implements client.Cluster.
func (c *Cluster) Nodes(context.Context) ([]client.Node, error) {
	if err := c.begin("nodes", nil); err != nil {
		return nil, err
	}
	return slices.Clone(c.nodes), nil
}

// Shards implements client.Cluster.
func (c *Cluster) Shards(_ context.Context, limit int) ([]client.Shard, error) {
	if err := c.begin("shards", nil); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := slices.Clone(c.shards)
	if limit > 0 && limit < len(out) {
		out = out[:limit]
	}
	return out, nil
}

// Shard implements client.Cluster.
func (c *Cluster) Shard(_ context.Context, id uint64) (client.Shard, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.shards {
		if s.ID == id {
			return s, nil
		}
	}
	return client.Shard{}, fmt.Errorf("shard %d: %w", id, client.ErrNotFound)
}

// Locate implements client.Cluster.
func (c *Cluster) Locate(_ context.Context, key []byte) (client.Shard, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.shards {
		if bytes.Compare(key, s.Start) >= 0 && (len(s.End) == 0 || bytes.Compare(key, s.End) < 0) {
			return s, nil
		}
	}
	return client.Shard{}, fmt.Errorf("%w: not initialized", client.ErrUnavailable)
}

// Transfer implements client.Cluster.
func (c *Cluster) Transfer(_ context.Context, shard, to uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.shards {
		if c.shards[i].ID != shard {
			continue
		}
		if to < 1 || to > 3 {
			return fmt.Errorf("%w: node %d holds no replica of shard %d", client.ErrInvalid, to, shard)
		}
		c.shards[i].Leader = to
		return nil
	}
	return fmt.Errorf("shard %d: %w", shard, client.ErrNotFound)
}

// Checksums implements client.Cluster.
func (c *Cluster) Checksums(ctx context.Context, shard uint64) ([]client.Checksum, error) {
	s, err := c.Shard(ctx, shard)
	if err != nil {
		return nil, err
	}
	var out []client.Checksum
	for _, r := range s.Replicas {
		out = append(out, client.Checksum{Node: r.Node, Replica: r.Replica, Term: 1, Applied: c.version, Checksum: 0xc0ffee})
	}
	return out, nil
}

// LoseLeader takes the leader of a shard away.
func (c *Cluster) LoseLeader(shard uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.shards {
		if c.shards[i].ID == shard {
			c.shards[i].Leader = 0
		}
	}
}

// Close implements client.Cluster.
func (c *Cluster) Close() error { return nil }

var _ client.Cluster = (*Cluster)(nil)
