package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// ReadOption changes a read or a scan.
type ReadOption func(*readOptions)

type readOptions struct {
	staleMs  uint64
	limit    int
	page     int
	reverse  bool
	keysOnly bool
}

// WithStale lets any replica answer that has heard from its leader within bound. Without it reads are linearizable.
func WithStale(bound time.Duration) ReadOption {
	return func(o *readOptions) { o.staleMs = uint64(max(bound.Milliseconds(), 1)) }
}

// WithLimit ends a scan after n items.
func WithLimit(n int) ReadOption { return func(o *readOptions) { o.limit = n } }

// WithPageSize makes the pages of a scan at most n items.
func WithPageSize(n int) ReadOption { return func(o *readOptions) { o.page = n } }

// Reverse makes a scan begin at the end of its range.
func Reverse() ReadOption { return func(o *readOptions) { o.reverse = true } }

// KeysOnly leaves the values out of a scan.
func KeysOnly() ReadOption { return func(o *readOptions) { o.keysOnly = true } }

func readOptionsOf(opts []ReadOption) (o readOptions) {
	for _, f := range opts {
		f(&o)
	}
	return o
}

// GoRead starts a read of user keys of one shard; done gets one entry per key. They are as of one moment if they fit into one answer
// (shard.AnswerBytesMax). q must not be changed until then; its Shard and Version are the client's business. The values belong to the caller.
func (c *Client) GoRead(ctx context.Context, q *shard.Read, done func([]shard.Entry, error)) {
	c.goRead(ctx, 0, q, done)
}

// GoReadIn is GoRead in a shard named by id.
func (c *Client) GoReadIn(ctx context.Context, id engine.ShardID, q *shard.Read, done func([]shard.Entry, error)) {
	c.goRead(ctx, id, q, done)
}

func (c *Client) goRead(ctx context.Context, id engine.ShardID, q *shard.Read, done func([]shard.Entry, error)) {
	if err := checkKeys(q.Keys); err != nil {
		done(nil, err)
		return
	}
	c.readRest(ctx, id, q, nil, done)
}

// readRest reads the keys for which there is no entry yet: an answer that would be too long is cut.
func (c *Client) readRest(ctx context.Context, id engine.ShardID, q *shard.Read, have []shard.Entry, done func([]shard.Entry, error)) {
	rest := *q
	rest.Keys = q.Keys[len(have):]
	c.readSome(ctx, id, &rest, have, func(have []shard.Entry, err error) {
		if err != nil || len(have) == len(q.Keys) {
			done(have, err)
			return
		}
		c.readRest(ctx, id, q, have, done)
	})
}

// GoReadSome is GoRead that does not ask again when the answer is cut at shard.AnswerBytesMax: done gets one entry at least, those of the
// first keys, all as of one moment. It lets the caller bound what it holds.
func (c *Client) GoReadSome(ctx context.Context, q *shard.Read, done func([]shard.Entry, error)) {
	if err := checkKeys(q.Keys); err != nil {
		done(nil, err)
		return
	}
	c.readSome(ctx, 0, q, nil, done)
}

// readSome appends to have what one answer holds, which is something.
func (c *Client) readSome(ctx context.Context, id engine.ShardID, q *shard.Read, have []shard.Entry, done func([]shard.Entry, error)) {
	c.start(&call{ctx: ctx, method: api.MethodRead, shard: id, r: q, stale: q.StaleMs > 0, done: func(b []byte, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		before := len(have)
		have, err := shard.DecodeAnswer(b, q.Keys, have)
		switch {
		case err != nil:
			done(nil, fmt.Errorf("%w: unreadable answer: %w", shard.ErrInternal, err))
		case len(have) == before:
			done(nil, fmt.Errorf("%w: an answer without entries", shard.ErrInternal))
		default:
			done(have, nil)
		}
	}})
}

func checkKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return &shard.InvalidError{What: "a read without keys"}
	}
	if len(keys) > shard.ReadKeysMax {
		return &shard.TooLargeError{What: "number of keys", Size: uint64(len(keys)), Max: shard.ReadKeysMax}
	}
	for _, k := range keys {
		if len(k) == 0 {
			return &shard.InvalidError{What: "empty key"}
		}
		if len(k) > shard.KeyBytesMax {
			return &shard.TooLargeError{What: "key", Size: uint64(len(k)), Max: shard.KeyBytesMax}
		}
	}
	return nil
}

// Get returns the entry of key, or shard.ErrNotFound.
func (c *Client) Get(ctx context.Context, key []byte, opts ...ReadOption) (shard.Entry, error) {
	return c.GetIn(ctx, 0, key, opts...)
}

// GetIn is Get in a shard named by id, such as shard.MetaShardID; 0 finds it by the key.
func (c *Client) GetIn(ctx context.Context, id engine.ShardID, key []byte, opts ...ReadOption) (shard.Entry, error) {
	o := readOptionsOf(opts)
	keys := [][]byte{key}
	if err := checkKeys(keys); err != nil {
		return shard.Entry{}, err
	}
	b, err := c.do(&call{ctx: ctx, method: api.MethodRead, shard: id, r: &shard.Read{StaleMs: o.staleMs, Keys: keys}, stale: o.staleMs > 0})
	if err != nil {
		return shard.Entry{}, err
	}
	var room [1]shard.Entry
	entries, err := shard.DecodeAnswer(b, keys, room[:0])
	switch {
	case err != nil:
		return shard.Entry{}, fmt.Errorf("%w: unreadable answer: %w", shard.ErrInternal, err)
	case len(entries) != 1:
		return shard.Entry{}, fmt.Errorf("%w: an answer without entries", shard.ErrInternal)
	case !entries[0].Exists():
		return shard.Entry{}, shard.ErrNotFound
	}
	return entries[0], nil
}

type readAnswer struct {
	entries []shard.Entry
	err     error
}

func (c *Client) read(ctx context.Context, id engine.ShardID, keys [][]byte, o *readOptions) <-chan readAnswer {
	ch := make(chan readAnswer, 1)
	c.goRead(ctx, id, &shard.Read{StaleMs: o.staleMs, Keys: keys}, func(es []shard.Entry, err error) { ch <- readAnswer{es, err} })
	return ch
}

// MultiGet returns one entry per key, in the order of the keys; those that do not exist have Version 0. Keys of one shard are read
// as of one moment if there are at most shard.ReadKeysMax and their values fit into shard.AnswerBytesMax; those of different shards are not.
func (c *Client) MultiGet(ctx context.Context, keys [][]byte, opts ...ReadOption) ([]shard.Entry, error) {
	o := readOptionsOf(opts)
	out := make([]shard.Entry, len(keys))
	todo := make([]int, len(keys))
	for i := range keys {
		todo[i] = i
	}
	for len(todo) > 0 {
		groups, err := c.groupByShard(ctx, keys, todo)
		if err != nil {
			return nil, err
		}
		answers := make([]<-chan readAnswer, len(groups))
		for g, group := range groups {
			part := make([][]byte, len(group))
			for i, k := range group {
				part[i] = keys[k]
			}
			answers[g] = c.read(ctx, 0, part, &o)
		}
		todo = todo[:0]
		for g, group := range groups {
			a := <-answers[g]
			if isCrossShard(a.err) {
				todo = append(todo, group...) // the shard was split meanwhile
				continue
			}
			if a.err != nil {
				err = a.err
				continue
			}
			for i, k := range group {
				out[k] = a.entries[i]
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (c *Client) groupByShard(ctx context.Context, keys [][]byte, todo []int) ([][]int, error) {
	byShard := map[string]int{} // start of the range → group
	var groups [][]int
	for _, i := range todo {
		if err := checkKeys(keys[i : i+1]); err != nil {
			return nil, err
		}
		r, err := c.routeOf(ctx, keys[i])
		if err != nil {
			return nil, err
		}
		g, ok := byShard[string(r.Start)]
		if !ok || len(groups[g]) == shard.ReadKeysMax {
			g = len(groups)
			groups = append(groups, nil)
			byShard[string(r.Start)] = g
		}
		groups[g] = append(groups[g], i)
	}
	return groups, nil
}

// GoScan starts a scan for one page: of the shard that owns the start of the range (the end, if reversed). q must not be changed until
// done is called, which gets a page of its own; its Shard and Version are the client's business. Page.Done false: go on at CompleteTo.
func (c *Client) GoScan(ctx context.Context, q *shard.Scan, done func(*shard.Page, error)) {
	c.GoScanIn(ctx, 0, q, done)
}

// GoScanIn is GoScan in a shard named by id; 0 finds it by the range.
func (c *Client) GoScanIn(ctx context.Context, id engine.ShardID, q *shard.Scan, done func(*shard.Page, error)) {
	c.goScan(ctx, id, q, func(b []byte, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		var p shard.Page
		if err := shard.DecodePage(b, &p); err != nil {
			done(nil, fmt.Errorf("%w: unreadable page: %w", shard.ErrInternal, err))
			return
		}
		done(&p, nil)
	})
}

// GoScanBytes is GoScan for who passes the page on: it gets the page as shard.AppendPage makes it, and need not copy what may be megabytes.
func (c *Client) GoScanBytes(ctx context.Context, q *shard.Scan, done func([]byte, error)) {
	c.goScan(ctx, 0, q, done)
}

func (c *Client) goScan(ctx context.Context, id engine.ShardID, q *shard.Scan, done func([]byte, error)) {
	if err := shard.CheckBounds(q.Start, q.End); err != nil {
		done(nil, err)
		return
	}
	if len(q.End) > 0 && bytes.Compare(q.Start, q.End) >= 0 {
		done(shard.AppendPage(nil, &shard.Page{Done: true}), nil)
		return
	}
	c.start(&call{ctx: ctx, method: api.MethodScan, shard: id, s: q, stale: q.StaleMs > 0, done: done})
}

// Scan yields the entries from start up to, not including, end (empty: plus infinity), in order. It ends with an error if there is one;
// all entries before it are right. Each page is linearizable; the scan as a whole is not a snapshot (rule Cluster4).
func (c *Client) Scan(ctx context.Context, start, end []byte, opts ...ReadOption) iter.Seq2[shard.Entry, error] {
	return c.ScanIn(ctx, 0, start, end, opts...)
}

// ScanIn is Scan in a shard named by id, such as shard.MetaShardID; 0 finds the shards by the range.
func (c *Client) ScanIn(ctx context.Context, id engine.ShardID, start, end []byte, opts ...ReadOption) iter.Seq2[shard.Entry, error] {
	o := readOptionsOf(opts)
	return func(yield func(shard.Entry, error) bool) {
		q := shard.Scan{StaleMs: o.staleMs, Start: start, End: end, Reverse: o.reverse, KeysOnly: o.keysOnly}
		left := o.limit
		for {
			q.Limit = o.page
			if left > 0 && (q.Limit == 0 || left < q.Limit) {
				q.Limit = left
			}
			p, err := c.scanPage(ctx, id, q)
			if err != nil {
				yield(shard.Entry{}, err)
				return
			}
			for i := range p.Entries {
				if !yield(p.Entries[i], nil) {
					return
				}
				if left--; o.limit > 0 && left == 0 {
					return
				}
			}
			if p.Done {
				return
			}
			if err := advance(&q, p.CompleteTo); err != nil {
				yield(shard.Entry{}, err)
				return
			}
		}
	}
}

// advance moves the range of a scan behind a page.
func advance(q *shard.Scan, to []byte) error {
	if q.Reverse {
		if len(to) == 0 || len(q.End) > 0 && bytes.Compare(to, q.End) >= 0 {
			return fmt.Errorf("%w: a page that goes back to %q", shard.ErrInternal, to)
		}
		q.End = to
		return nil
	}
	if bytes.Compare(to, q.Start) <= 0 {
		return fmt.Errorf("%w: a page that ends at %q", shard.ErrInternal, to)
	}
	q.Start = to
	return nil
}

func (c *Client) scanPage(ctx context.Context, id engine.ShardID, q shard.Scan) (*shard.Page, error) {
	type answer struct {
		p   *shard.Page
		err error
	}
	ch := make(chan answer, 1)
	c.GoScanIn(ctx, id, &q, func(p *shard.Page, err error) { ch <- answer{p, err} })
	a := <-ch
	return a.p, a.err
}

func isCrossShard(err error) bool { return errors.Is(err, shard.ErrCrossShard) }

// fatalRefresh tells whether it is of no use to ask for the map again.
func fatalRefresh(err error) bool {
	return errors.Is(err, shard.ErrNotInitialized) || errors.Is(err, ErrClosed) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
