package router

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// WriteOption changes a write.
type WriteOption func(*shard.Write)

// WithTTL lets what the write puts expire so long after it was applied, by the cluster's clock.
func WithTTL(d time.Duration) WriteOption {
	ms := max(d.Milliseconds(), 1)
	return func(w *shard.Write) { expire(w, -ms) }
}

// WithExpireAt lets what the write puts expire at t.
func WithExpireAt(t time.Time) WriteOption {
	ms := max(t.UnixMilli(), 1)
	return func(w *shard.Write) { expire(w, ms) }
}

func expire(w *shard.Write, at int64) {
	ops := make([]shard.Op, len(w.Ops))
	copy(ops, w.Ops)
	for i := range ops {
		if ops[i].Kind == shard.OpPut {
			ops[i].Expire = at
		}
	}
	w.Ops = ops
}

// If makes a write conditional: it is applied only if all conditions hold, else the error is shard.ErrConditionFailed (a
// *shard.ConditionError).
func If(conds ...shard.Condition) WriteOption {
	return func(w *shard.Write) { w.Conditions = append(w.Conditions, conds...) }
}

// WithoutSession sends the write without protection against being applied twice: it is tried until an answer may have been lost,
// and is then ErrAmbiguous.
func WithoutSession() WriteOption {
	return func(w *shard.Write) { w.Lowest = noSession }
}

// Exists is the condition that key exists.
func Exists(key []byte) shard.Condition {
	return shard.Condition{Kind: shard.ConditionExists, Key: key}
}

// Absent is the condition that key does not exist.
func Absent(key []byte) shard.Condition {
	return shard.Condition{Kind: shard.ConditionAbsent, Key: key}
}

// VersionIs is the condition that the version of key is v; 0 is an absent key.
func VersionIs(key []byte, v uint64) shard.Condition {
	return shard.Condition{Kind: shard.ConditionVersion, Key: key, Version: v}
}

// ValueIs is the condition that key exists with exactly this value.
func ValueIs(key, value []byte) shard.Condition {
	return shard.Condition{Kind: shard.ConditionValue, Key: key, Value: value}
}

// GoWrite starts a write of user keys; done gets its result. w and what it refers to must not be changed until then. Shard,
// Version, Session, Seq and Lowest are the client's business and must be zero, unless the write is forwarded for somebody else
// who has a session: then Session, Seq and Lowest are theirs.
//
// A nil error means that the write was applied; a refusal by a condition is shard.ErrConditionFailed. Keys in different shards
// are shard.ErrCrossShard.
func (c *Client) GoWrite(ctx context.Context, w *shard.Write, done func(*shard.Result, error)) {
	c.goWrite(ctx, 0, w, done)
}

// GoWriteIn is GoWrite in a shard named by id, such as shard.MetaShardID.
func (c *Client) GoWriteIn(ctx context.Context, id engine.ShardID, w *shard.Write, done func(*shard.Result, error)) {
	c.goWrite(ctx, id, w, done)
}

// checkWrite tells whether a write makes sense at all.
func checkWrite(w *shard.Write) error {
	if w.Lowest != noSession {
		return w.Validate()
	}
	check := *w
	check.Lowest = 0
	return check.Validate()
}

func (c *Client) goWrite(ctx context.Context, id engine.ShardID, w *shard.Write, done func(*shard.Result, error)) {
	if err := checkWrite(w); err != nil {
		done(nil, err)
		return
	}
	c.start(&call{ctx: ctx, method: api.MethodWrite, shard: id, w: w, done: func(b []byte, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		var res shard.Result
		if err := shard.DecodeResult(b, &res); err != nil {
			done(nil, fmt.Errorf("%w: unreadable result: %w", shard.ErrAmbiguous, err))
			return
		}
		done(&res, res.Err())
	}})
}

// Write does a mini-transaction on the keys of one shard: all of it, or nothing. The result is set also if a condition failed.
func (c *Client) Write(ctx context.Context, w *shard.Write, opts ...WriteOption) (shard.Result, error) {
	return c.WriteIn(ctx, 0, w, opts...)
}

// WriteIn is Write in a shard named by id, such as shard.MetaShardID; 0 finds it by the keys.
func (c *Client) WriteIn(ctx context.Context, id engine.ShardID, w *shard.Write, opts ...WriteOption) (shard.Result, error) {
	own := *w
	own.Conditions = own.Conditions[:len(own.Conditions):len(own.Conditions)]
	for _, o := range opts {
		o(&own)
	}
	if err := checkWrite(&own); err != nil {
		return shard.Result{}, err
	}
	b, err := c.do(&call{ctx: ctx, method: api.MethodWrite, shard: id, w: &own})
	if err != nil {
		return shard.Result{}, err
	}
	var res shard.Result
	if err := shard.DecodeResult(b, &res); err != nil {
		return shard.Result{}, fmt.Errorf("%w: unreadable result: %w", shard.ErrAmbiguous, err)
	}
	return res, res.Err()
}

// Put sets key to value and returns the key's new version.
func (c *Client) Put(ctx context.Context, key, value []byte, opts ...WriteOption) (version uint64, err error) {
	res, err := c.Write(ctx, &shard.Write{Ops: []shard.Op{{Kind: shard.OpPut, Key: key, Value: value}}}, opts...)
	return res.Version, err
}

// Delete removes key; one that does not exist is no error.
func (c *Client) Delete(ctx context.Context, key []byte, opts ...WriteOption) (version uint64, err error) {
	res, err := c.Write(ctx, &shard.Write{Ops: []shard.Op{{Kind: shard.OpDelete, Key: key}}}, opts...)
	return res.Version, err
}

// CompareAndSwap sets key to value if expect holds (Absent, ValueIs, VersionIs, Exists), and returns its new version. Else the error is
// shard.ErrConditionFailed. A condition without a key is about key.
func (c *Client) CompareAndSwap(ctx context.Context, key []byte, expect shard.Condition, value []byte, opts ...WriteOption) (version uint64, err error) {
	if len(expect.Key) == 0 {
		expect.Key = key
	}
	return c.Put(ctx, key, value, append([]WriteOption{If(expect)}, opts...)...)
}

// Add adds delta to the decimal integer at key, which counts as 0 if it is absent, and returns the sum.
func (c *Client) Add(ctx context.Context, key []byte, delta int64, opts ...WriteOption) (sum int64, err error) {
	res, err := c.Write(ctx, &shard.Write{Ops: []shard.Op{{Kind: shard.OpAdd, Key: key, Delta: delta}}}, opts...)
	if err != nil {
		return 0, err
	}
	if len(res.Values) != 1 {
		return 0, fmt.Errorf("%w: %d sums for one add", shard.ErrInternal, len(res.Values))
	}
	return res.Values[0], nil
}

// Batch collects operations and conditions for Client.Batch.
type Batch struct{ w shard.Write }

// Put adds a put.
func (b *Batch) Put(key, value []byte) *Batch {
	b.w.Ops = append(b.w.Ops, shard.Op{Kind: shard.OpPut, Key: key, Value: value})
	return b
}

// Delete adds a delete.
func (b *Batch) Delete(key []byte) *Batch {
	b.w.Ops = append(b.w.Ops, shard.Op{Kind: shard.OpDelete, Key: key})
	return b
}

// Add adds an addition. Its key may stand in no other operation of the batch.
func (b *Batch) Add(key []byte, delta int64) *Batch {
	b.w.Ops = append(b.w.Ops, shard.Op{Kind: shard.OpAdd, Key: key, Delta: delta})
	return b
}

// If adds a condition.
func (b *Batch) If(conds ...shard.Condition) *Batch {
	b.w.Conditions = append(b.w.Conditions, conds...)
	return b
}

// Len returns the number of operations.
func (b *Batch) Len() int { return len(b.w.Ops) }

// Batch applies all operations at once, or none of them. All keys must be in one shard, else the error is shard.ErrCrossShard.
func (c *Client) Batch(ctx context.Context, b *Batch, opts ...WriteOption) (shard.Result, error) {
	return c.Write(ctx, &b.w, opts...)
}

// DeleteRange removes the keys from start up to, not including, end (empty: plus infinity), and returns how many there were. It is not
// atomic: it goes shard by shard, in bounded steps. On an error the number is of what is known to be removed.
func (c *Client) DeleteRange(ctx context.Context, start, end []byte) (removed int64, err error) {
	if err := shard.CheckBounds(start, end); err != nil {
		return 0, err
	}
	cursor := start
	for {
		if len(end) > 0 && bytes.Compare(cursor, end) >= 0 {
			return removed, nil
		}
		route, err := c.routeOf(ctx, cursor)
		if err != nil {
			return removed, err
		}
		stop := route.End
		if len(end) > 0 && (len(stop) == 0 || bytes.Compare(end, stop) < 0) {
			stop = end
		}
		res, err := c.Write(ctx, &shard.Write{Ops: []shard.Op{{Kind: shard.OpDeleteRange, Key: cursor, End: stop}}})
		if isCrossShard(err) {
			continue // the map has changed: cut it anew, under a new sequence number (rule Cluster1)
		}
		if err != nil {
			return removed, err
		}
		if len(res.Values) == 1 {
			removed += res.Values[0]
		}
		switch {
		case res.More && len(res.Next) > 0:
			cursor = res.Next
		case res.More: // the answer to a retry does not say how far it came
		case len(stop) == 0:
			return removed, nil
		default:
			cursor = stop
		}
	}
}

// routeOf returns the owner of a key, and asks for it if need be.
func (c *Client) routeOf(ctx context.Context, key []byte) (Route, error) {
	for pause := c.cfg.BackoffMin; ; pause = min(2*pause, c.cfg.BackoffMax) {
		if r, ok := c.m.Lookup(key); ok {
			return r, nil
		}
		err := c.Refresh(ctx, key)
		if err == nil {
			if r, ok := c.m.Lookup(key); ok {
				return r, nil
			}
		}
		if fatalRefresh(err) {
			return Route{}, err
		}
		if err := c.sleep(ctx, pause); err != nil {
			return Route{}, fmt.Errorf("%w: %w", shard.ErrUnavailable, err)
		}
	}
}

// sleep waits, or for the context.
func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	ch := make(chan struct{})
	c.cfg.After(d, func() { close(ch) })
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.ctx.Done():
		return ErrClosed
	}
}
