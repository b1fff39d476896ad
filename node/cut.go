package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

const (
	// cutIdle is after how long a cut ends whose next page nobody asks for: it keeps its shard from being checkpointed.
	cutIdle = 15 * time.Second
	// cutPageBytes is about how much is in a page; a large value may be more.
	cutPageBytes = 1 << 20
)

// cuts are the cuts that backups read from this node, by a random number.
type cuts struct {
	mu   sync.Mutex
	open map[uint64]*openCut
}

// openCut is a cut and the page that was asked for last, which may be asked for again.
type openCut struct {
	cut  *scheduler.Cut
	idle *time.Timer

	mu   sync.Mutex
	page uint64
	last *api.CutPage
}

// serveCut serves api.MethodCut.
func (c *core) serveCut(ctx context.Context, q *api.CutRequest) (api.Body, error) {
	switch {
	case q.Cut == 0:
		return c.openCut(ctx, q)
	case q.Close:
		c.cuts.end(q.Cut)
		return &api.CutPage{Cut: q.Cut, Last: true}, nil
	}
	return c.cuts.next(ctx, q)
}

// openCut reads linearizably from this node's replica, which must lead, and cuts it then: the cut has what was acknowledged before.
func (c *core) openCut(ctx context.Context, q *api.CutRequest) (api.Body, error) {
	if q.Shard == shard.MetaShardID {
		return nil, &shard.InvalidError{What: "the meta shard is not backed up: it describes this cluster, and no other"}
	}
	if err := c.barrierRead(ctx, q); err != nil {
		return nil, err
	}
	cut, err := c.sched.Cut(ctx, q.Shard)
	if err != nil {
		return nil, err
	}
	p := &api.CutPage{Record: state.AppendRecord(nil, cut.Record()), Cluster: c.cluster}
	p.Cut = c.cuts.add(cut, p)
	return p, nil
}

func (c *core) barrierRead(ctx context.Context, q *api.CutRequest) error {
	ch := make(chan error, 1)
	key := q.Key
	if len(key) == 0 { // the first shard's start is no key
		key = []byte{0}
	}
	body := shard.AppendRead(nil, &shard.Read{Shard: q.Shard, Version: q.Version, Keys: [][]byte{key}})
	req := &scheduler.Request{Kind: scheduler.KindRead, Shard: q.Shard, Body: body, Done: func(r *scheduler.Request) { ch <- r.Err }}
	if t, ok := ctx.Deadline(); ok {
		req.Deadline, req.Arrived = c.instants(t)
	}
	c.sched.Submit(req)
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *cuts) add(cut *scheduler.Cut, first *api.CutPage) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[uint64]*openCut{}
	}
	id := rand.Uint64() | 1
	o := &openCut{cut: cut, last: first}
	o.idle = time.AfterFunc(cutIdle, func() { t.end(id) })
	t.open[id] = o
	return id
}

func (t *cuts) end(id uint64) {
	t.mu.Lock()
	o := t.open[id]
	delete(t.open, id)
	t.mu.Unlock()
	if o != nil {
		o.idle.Stop()
		o.cut.Close()
	}
}

func (t *cuts) next(ctx context.Context, q *api.CutRequest) (api.Body, error) {
	t.mu.Lock()
	o := t.open[q.Cut]
	t.mu.Unlock()
	if o == nil {
		return nil, &shard.UnavailableError{Reason: fmt.Sprintf("the cut of shard %d has ended", q.Shard)}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.idle.Reset(cutIdle)
	switch {
	case q.Page == o.page:
		return o.last, nil
	case q.Page != o.page+1 || o.last.Last:
		return nil, &shard.InvalidError{What: fmt.Sprintf("page %d of a cut whose last one was %d", q.Page, o.page)}
	}
	items, content, err := o.cut.Next(ctx, nil, cutPageBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		t.end(q.Cut)
		return nil, err
	}
	o.page++
	o.last = &api.CutPage{Cut: q.Cut, Items: items, Last: err != nil, Count: content.Items, Bytes: content.Bytes, Sum: content.Checksum}
	return o.last, nil
}
