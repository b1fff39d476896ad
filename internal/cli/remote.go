package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// remote is client.Cluster over connections to nodes.
type remote struct {
	pool *router.Pool
	c    *router.Client

	mu      sync.Mutex
	servers []string // guarded by mu: the one that answered last comes first
}

var _ client.Cluster = (*remote)(nil)

// Dial gives a client of the cluster that the servers belong to. It connects when it is first used.
func Dial(ctx context.Context, servers []string) (client.Cluster, error) {
	return DialAs(ctx, servers, transport.ClientConfig{})
}

// DialAs is Dial with certificates, a user and a password.
func DialAs(_ context.Context, servers []string, t transport.ClientConfig) (client.Cluster, error) {
	r := &remote{servers: slices.Clone(servers)}
	r.pool = router.NewPool(t)
	r.c = router.New(r.pool, servers, router.Config{})
	return r, nil
}

// Close implements client.Cluster.
func (r *remote) Close() error { return errors.Join(r.c.Close(), r.pool.Close()) }

// marked gives an error a kind without changing its text.
type marked struct{ kind, err error }

func (m marked) Error() string   { return m.err.Error() }
func (m marked) Unwrap() []error { return []error{m.kind, m.err} }

var errorKinds = []struct{ is, kind error }{
	{shard.ErrAmbiguous, client.ErrUnknown}, // first: it may be joined with why
	{shard.ErrConditionFailed, client.ErrCondition},
	{shard.ErrNotFound, client.ErrNotFound},
	{shard.ErrTooLarge, client.ErrInvalid},
	{shard.ErrInvalid, client.ErrInvalid},
	{shard.ErrNotInteger, client.ErrInvalid},
	{shard.ErrCrossShard, client.ErrInvalid},
	{shard.ErrUnavailable, client.ErrUnavailable},
	{shard.ErrOverloaded, client.ErrUnavailable},
	{shard.ErrNotInitialized, client.ErrUnavailable},
	{shard.ErrNotLeader, client.ErrUnavailable},
	{shard.ErrShardMoved, client.ErrUnavailable},
	{shard.ErrShardNotFound, client.ErrUnavailable},
	{shard.ErrSessionExpired, client.ErrUnavailable},
	{context.DeadlineExceeded, client.ErrUnavailable},
}

// errOverloaded is what mark makes of shard.ErrOverloaded.
var errOverloaded error = marked{client.ErrUnavailable, shard.ErrOverloaded}

func mark(err error) error {
	switch err {
	case nil:
		return nil
	case shard.ErrOverloaded: // a node that has too much to do may say so very often
		return errOverloaded
	}
	for _, k := range errorKinds {
		if errors.Is(err, k.is) {
			return marked{k.kind, err}
		}
	}
	if errors.As(err, new(*router.SendError)) {
		return marked{client.ErrUnavailable, err}
	}
	return err
}

// Get implements client.KV.
func (r *remote) Get(ctx context.Context, key []byte) (client.Item, error) {
	e, err := r.c.Get(ctx, key)
	return client.Item{Key: key, Value: e.Value, Version: e.Version}, mark(err)
}

// Put implements client.KV.
func (r *remote) Put(ctx context.Context, key, value []byte) (uint64, error) {
	v, err := r.c.Put(ctx, key, value)
	return v, mark(err)
}

// GoGet starts a Get; done is called when it has ended.
func (r *remote) GoGet(ctx context.Context, key []byte, done func(error)) {
	r.c.GoRead(ctx, &shard.Read{Keys: [][]byte{key}}, func(es []shard.Entry, err error) {
		if err == nil && !es[0].Exists() {
			err = shard.ErrNotFound
		}
		done(mark(err))
	})
}

// GoPut starts a Put; done is called when it has ended.
func (r *remote) GoPut(ctx context.Context, key, value []byte, done func(error)) {
	w := &shard.Write{Ops: []shard.Op{{Kind: shard.OpPut, Key: key, Value: value}}}
	r.c.GoWrite(ctx, w, func(_ *shard.Result, err error) { done(mark(err)) })
}

// Delete implements client.KV.
func (r *remote) Delete(ctx context.Context, key []byte) error {
	_, err := r.c.Delete(ctx, key)
	return mark(err)
}

// CompareAndSwap implements client.KV.
func (r *remote) CompareAndSwap(ctx context.Context, key, expect, value []byte) (uint64, error) {
	cond := router.Absent(key)
	if expect != nil {
		cond = router.ValueIs(key, expect)
	}
	v, err := r.c.CompareAndSwap(ctx, key, cond, value)
	return v, mark(err)
}

// Add implements client.KV.
func (r *remote) Add(ctx context.Context, key []byte, delta int64) (int64, error) {
	sum, err := r.c.Add(ctx, key, delta)
	return sum, mark(err)
}

// Scan implements client.KV.
func (r *remote) Scan(ctx context.Context, q client.Range) iter.Seq2[client.Item, error] {
	var opts []router.ReadOption
	if q.Limit > 0 {
		opts = append(opts, router.WithLimit(q.Limit))
	}
	if q.Reverse {
		opts = append(opts, router.Reverse())
	}
	if q.KeysOnly {
		opts = append(opts, router.KeysOnly())
	}
	return func(yield func(client.Item, error) bool) {
		for e, err := range r.c.Scan(ctx, q.Start, q.End, opts...) {
			if !yield(client.Item{Key: e.Key, Value: e.Value, Version: e.Version}, mark(err)) {
				return
			}
		}
	}
}

// hedgeAfter is how long a question waits for one node before the next one is asked as well.
const hedgeAfter = 300 * time.Millisecond

// ask sends a question that any node answers. The nodes are asked one after the other, without waiting long for one that hangs; the first
// answer counts, and who gave it is asked first the next time.
func (r *remote) ask(ctx context.Context, method api.Method, q, answer api.Body) error {
	var body []byte
	if q != nil {
		body = q.Append(nil)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		server string
		body   []byte
		err    error
	}
	servers := r.order()
	results := make(chan result, len(servers))
	var errs []error
	for asked := 0; ; {
		var hedge <-chan time.Time
		if asked < len(servers) {
			s := servers[asked]
			asked++
			go func() {
				b, err := r.c.Call(ctx, 0, s, method, body)
				results <- result{s, b, err}
			}()
			hedge = time.After(hedgeAfter)
		}
		select {
		case <-hedge:
			continue
		case a := <-results:
			if a.err == nil {
				r.prefer(a.server)
				return api.Decode(a.body, answer)
			}
			errs = append(errs, fmt.Errorf("%s: %w", a.server, a.err))
			if len(errs) == len(servers) || !errors.Is(mark(a.err), client.ErrUnavailable) {
				return mark(errors.Join(errs...))
			}
		}
	}
}

// order gives the servers, the one that answered last first.
func (r *remote) order() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.servers)
}

func (r *remote) prefer(server string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.Index(r.servers, server); i > 0 {
		r.servers = slices.Insert(slices.Delete(r.servers, i, i+1), 0, server)
	}
}

// Init implements client.Cluster. One node does it; asking another after a lost answer completes what the first began.
func (r *remote) Init(ctx context.Context, shards, replicas int) (client.InitResult, error) {
	for began := time.Now(); ; {
		res, err := r.init(ctx, shards, replicas)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) > initListenMax {
			return res, err
		}
		select {
		case <-ctx.Done():
			return res, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// initListenMax is how long cluster init waits for nodes that do not listen yet: people start them with the command before.
const initListenMax = 5 * time.Second

func (r *remote) init(ctx context.Context, shards, replicas int) (client.InitResult, error) {
	body := (&api.InitRequest{Shards: uint64(shards), Replicas: uint64(replicas)}).Append(nil)
	var errs []error
	for _, s := range r.order() {
		b, err := r.c.Call(ctx, 0, s, api.MethodInit, body)
		if err == nil {
			var a api.InitAnswer
			if err := api.Decode(b, &a); err != nil {
				return client.InitResult{}, err
			}
			return client.InitResult{Already: a.Already, ClusterID: hex.EncodeToString(a.ClusterID[:]), Nodes: int(a.Nodes), Shards: int(a.Shards), Replicas: replicas}, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", s, err))
		if send := (*router.SendError)(nil); !errors.As(err, &send) || ctx.Err() != nil {
			break
		}
	}
	return client.InitResult{}, mark(errors.Join(errs...))
}

// Nodes implements client.Cluster.
func (r *remote) Nodes(ctx context.Context) ([]client.Node, error) {
	page, err := r.nodes(ctx)
	if err != nil {
		return nil, err
	}
	var out []client.Node
	for i := range page.Nodes {
		out = append(out, page.Nodes[i].View())
	}
	return out, nil
}

func (r *remote) nodes(ctx context.Context) (*api.NodesPage, error) {
	page := new(api.NodesPage)
	return page, r.ask(ctx, api.MethodNodes, nil, page)
}

// Shards implements client.Cluster.
func (r *remote) Shards(ctx context.Context, limit int) ([]client.Shard, error) {
	var out []client.Shard
	q := api.ShardsRequest{}
	for {
		if limit > 0 {
			q.Limit = uint64(limit - len(out))
		}
		var page api.ShardsPage
		if err := r.ask(ctx, api.MethodShards, &q, &page); err != nil {
			return nil, err
		}
		for i := range page.Shards {
			out = append(out, toShard(&page.Shards[i]))
		}
		if !page.More || limit > 0 && len(out) >= limit {
			return out, nil
		}
		q.From = page.Next
	}
}

func toShard(s *api.ShardInfo) client.Shard {
	d := &s.Descriptor
	out := client.Shard{ID: uint64(d.Shard), Start: d.Start, End: d.End, Version: d.Version, ConfVersion: d.ConfVersion, Leader: uint64(s.Leader),
		Replicas: api.ReplicaViews(d), Keys: int64(s.Keys), Bytes: int64(s.Bytes)}
	if x := s.Rates; x != nil {
		out.Load = &client.Load{Reads: x.Reads, Writes: x.Writes, Bytes: x.Bytes, HotKey: x.HotKey, HotPercent: x.HotPercent}
	}
	return out
}

// Shard implements client.Cluster.
func (r *remote) Shard(ctx context.Context, id uint64) (client.Shard, error) {
	var page api.ShardsPage
	if err := r.ask(ctx, api.MethodShards, &api.ShardsRequest{Shards: []engine.ShardID{engine.ShardID(id)}}, &page); err != nil {
		return client.Shard{}, err
	}
	for i := range page.Shards {
		if uint64(page.Shards[i].Descriptor.Shard) == id {
			return toShard(&page.Shards[i]), nil
		}
	}
	return client.Shard{}, fmt.Errorf("shard %d: %w", id, client.ErrNotFound)
}

// Locate implements client.Cluster.
func (r *remote) Locate(ctx context.Context, key []byte) (client.Shard, error) {
	if len(key) > shard.KeyBytesMax {
		return client.Shard{}, fmt.Errorf("%w: a key of %d bytes, at most %d are allowed", client.ErrInvalid, len(key), shard.KeyBytesMax)
	}
	if err := r.c.Refresh(ctx, key); err != nil {
		return client.Shard{}, mark(err)
	}
	route, ok := r.c.Map().Lookup(key)
	if !ok {
		return client.Shard{}, fmt.Errorf("%w: no shard is known to hold the key", client.ErrUnavailable)
	}
	return r.Shard(ctx, uint64(route.Desc.Shard))
}

// Transfer implements client.Cluster: it starts an operation and waits for its end.
func (r *remote) Transfer(ctx context.Context, id, to uint64) error {
	s, err := r.Shard(ctx, id)
	if err != nil {
		return err
	}
	if !holds(s, to) {
		return fmt.Errorf("%w: node %d holds no replica of shard %d", client.ErrInvalid, to, id)
	}
	o, err := r.StartOp(ctx, client.OpSpec{Kind: "transfer", Shard: id, To: to})
	if err != nil {
		return err
	}
	end, err := waitOp(ctx, r, o.ID, nil)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %s still runs: %w", client.ErrUnknown, o.What, err)
	case end.State != "done":
		return fmt.Errorf("%s %s: %s", end.What, end.State, end.Error)
	}
	return nil
}

func holds(s client.Shard, node uint64) bool {
	for _, rep := range s.Replicas {
		if rep.Node == node {
			return true
		}
	}
	return false
}

// callNode asks one node by its id.
func (r *remote) callNode(ctx context.Context, id uint64, method api.Method, body []byte, answer api.Body) error {
	addr := r.c.Map().Addr(engine.NodeID(id))
	if addr == "" {
		page, err := r.nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range page.Nodes {
			r.c.Map().SetAddr(n.Node, n.Addr)
		}
		if addr = r.c.Map().Addr(engine.NodeID(id)); addr == "" {
			return fmt.Errorf("node %d: %w", id, client.ErrNotFound)
		}
	}
	b, err := r.c.Call(ctx, engine.NodeID(id), addr, method, body)
	if err != nil {
		return mark(fmt.Errorf("node %d (%s): %w", id, addr, err))
	}
	if answer == nil {
		return nil
	}
	return api.Decode(b, answer)
}

// Checksums implements client.Cluster. A replica that does not answer is listed with the reason.
func (r *remote) Checksums(ctx context.Context, id uint64) ([]client.Checksum, error) {
	s, err := r.Shard(ctx, id)
	if err != nil {
		return nil, err
	}
	body := (&api.ChecksumRequest{Shard: engine.ShardID(id)}).Append(nil)
	out := make([]client.Checksum, len(s.Replicas))
	var wg sync.WaitGroup
	for i, rep := range s.Replicas {
		wg.Go(func() {
			c := client.Checksum{Node: rep.Node, Replica: rep.Replica}
			var a api.Checksum
			if err := r.callNode(ctx, rep.Node, api.MethodChecksum, body, &a); err != nil {
				c.Err = err.Error()
			} else {
				c.Term, c.Applied, c.Checksum, c.Keys = a.Applied.Term, a.Applied.Index, a.Checksum, int64(a.Items)
			}
			out[i] = c
		})
	}
	wg.Wait()
	return out, nil
}
