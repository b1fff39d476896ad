package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// Pipe keeps many requests on their way for one goroutine of the process that embeds a node, without a goroutine, a channel or an
// allocation for each of them:
//
//	p := n.Pipe(1024)
//	for {
//		for p.Free() > 0 && more() {
//			p.Put(tag, key, value) // or Get, Delete, Write
//		}
//		if done, err = p.Wait(ctx, done[:0]); err != nil { … }
//		for _, d := range done { … } // by d.Tag
//	}
//
// Requests go straight to the lanes of this node for shards that it leads, and through Client for all others, or if the local leader has
// lost its office meanwhile. A nil Err means that a write was applied, once, and is durable on a quorum, and that a read is linearizable.
// shard.ErrAmbiguous says that it is not known whether a write was applied, and may be still; any other error, that it was
// not. Requests that are in flight at the same time are in no order. They belong to no session while this node leads the
// shard: an answer cannot get lost inside a process.
//
// A Pipe belongs to one goroutine: none of its methods may run beside another. It needs no closing; what is in flight when the node closes
// ends with an error.
type Pipe struct {
	n     *Node
	m     *router.Map
	slots []pipeSlot
	free  []*pipeSlot
	batch []*scheduler.Request // to be submitted by Wait
	away  []*pipeSlot          // for Client, by Wait
	taken []*pipeSlot          // from ended; kept for reuse
	w     shard.Write
	op    [1]shard.Op
	keys  [1][]byte
	read  shard.Read
	res   shard.Result
	room  [1]shard.Entry

	mu    sync.Mutex
	ended []*pipeSlot   // guarded by mu
	wake  chan struct{} // holds a token while ended is not empty
}

// Completed is how a request of a Pipe ended.
type Completed struct {
	Tag     uint64
	Version uint64 // of the key after a write, or as read
	// Value of a Get, until the pipe's next Wait.
	Value []byte
	// Err is nil, shard.ErrNotFound for a Get of a key that is not there, or another of package shard's errors.
	Err error
}

// pipeSlot is one request. Its buffers are reused.
type pipeSlot struct {
	p   *Pipe
	tag uint64
	req scheduler.Request
	// Of a request that went through Client.
	routed  bool
	version uint64
	value   []byte
	err     error
}

// Pipe returns a Pipe for up to depth requests at a time.
func (n *Node) Pipe(depth int) *Pipe {
	p := &Pipe{n: n, m: n.client.Map(), slots: make([]pipeSlot, depth), wake: make(chan struct{}, 1)}
	for i := range p.slots {
		s := &p.slots[i]
		s.p, s.req.User, s.req.Done = p, s, pipeDone
		p.free = append(p.free, s)
	}
	return p
}

// Free returns how many more requests the pipe has room for.
func (p *Pipe) Free() int { return len(p.free) }

// Put sets key to value. Both are copied. False: there is no room.
func (p *Pipe) Put(tag uint64, key, value []byte) bool {
	p.op[0] = shard.Op{Kind: shard.OpPut, Key: key, Value: value}
	p.w = shard.Write{Ops: p.op[:]}
	return p.Write(tag, &p.w)
}

// Delete removes key, which is copied. False: there is no room.
func (p *Pipe) Delete(tag uint64, key []byte) bool {
	p.op[0] = shard.Op{Kind: shard.OpDelete, Key: key}
	p.w = shard.Write{Ops: p.op[:]}
	return p.Write(tag, &p.w)
}

// Write does a mini-transaction on the keys of one shard. Shard, Version, Session, Seq and Lowest must be zero; w is copied. False: there
// is no room.
func (p *Pipe) Write(tag uint64, w *shard.Write) bool {
	s := p.slot(tag)
	if s == nil {
		return false
	}
	s.req.Kind = scheduler.KindWrite
	own := *w
	id, version, local := p.route(w.FirstKey())
	own.Shard, own.Version = id, version
	s.req.Body = shard.AppendWrite(s.req.Body[:0], &own)
	p.queue(s, id, local)
	return true
}

// Get reads key, which is copied, linearizably. False: there is no room.
func (p *Pipe) Get(tag uint64, key []byte) bool {
	s := p.slot(tag)
	if s == nil {
		return false
	}
	s.req.Kind = scheduler.KindRead
	p.keys[0] = key
	id, version, local := p.route(key)
	p.read = shard.Read{Shard: id, Version: version, Keys: p.keys[:]}
	s.req.Body = shard.AppendRead(s.req.Body[:0], &p.read)
	p.queue(s, id, local)
	return true
}

func (p *Pipe) slot(tag uint64) *pipeSlot {
	n := len(p.free)
	if n == 0 {
		return nil
	}
	s := p.free[n-1]
	p.free = p.free[:n-1]
	s.tag, s.routed, s.err = tag, false, nil
	return s
}

// route tells whether this node leads the shard of key, as far as its map knows.
func (p *Pipe) route(key []byte) (engine.ShardID, uint64, bool) {
	r, ok := p.m.Lookup(key)
	if !ok {
		return 0, 0, false
	}
	return r.Desc.Shard, r.Desc.Version, r.Leader != 0 && r.Leader == p.n.ID()
}

func (p *Pipe) queue(s *pipeSlot, id engine.ShardID, local bool) {
	s.req.Shard = id
	if local {
		p.batch = append(p.batch, &s.req)
		return
	}
	p.away = append(p.away, s)
}

// Wait sends what was queued, waits until a request has ended, and appends all that have to done. If none is in flight it returns at
// once. When ctx ends first, requests go on; the next Wait returns them.
func (p *Pipe) Wait(ctx context.Context, done []Completed) ([]Completed, error) {
	for {
		p.send()
		if len(p.free) == len(p.slots) {
			return done, nil
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
			return done, context.Cause(ctx)
		}
		p.mu.Lock()
		p.taken, p.ended = p.ended, p.taken[:0]
		p.mu.Unlock()
		before := len(done)
		for i, s := range p.taken {
			p.taken[i] = nil
			if !s.routed && leadsElsewhere(s.req.Err) {
				p.away = append(p.away, s)
				continue
			}
			done = append(done, p.complete(s))
			p.free = append(p.free, s)
		}
		if len(done) > before {
			return done, nil
		}
	}
}

// leadsElsewhere tells whether a request that has had no effect here should go through Client, which finds out where it belongs, and when.
func leadsElsewhere(err error) bool {
	if err == nil {
		return false
	}
	var notLeader *shard.NotLeaderError
	var moved *shard.MovedError
	var unavailable *shard.UnavailableError
	return errors.As(err, &notLeader) || errors.As(err, &moved) || errors.As(err, &unavailable) || errors.Is(err, shard.ErrShardNotFound)
}

// send hands what is queued to the lanes and to Client.
func (p *Pipe) send() {
	if len(p.batch) > 0 {
		p.n.core.Load().sched.SubmitAll(p.batch) // a node that leads a shard has a core
		p.batch = p.batch[:0]
	}
	for i, s := range p.away {
		p.away[i] = nil
		p.sendAway(s)
	}
	p.away = p.away[:0]
}

// sendAway sends a request through the node's client, which retries until it knows the outcome or the node closes.
func (p *Pipe) sendAway(s *pipeSlot) {
	s.routed = true
	if s.req.Kind == scheduler.KindRead {
		q := &shard.Read{}
		if err := shard.DecodeRead(s.req.Body, q); err != nil {
			s.end(0, nil, err)
			return
		}
		q.Shard, q.Version = 0, 0
		p.n.client.GoRead(p.n.ctx, q, func(entries []shard.Entry, err error) {
			switch {
			case err != nil:
				s.end(0, nil, err)
			case !entries[0].Exists():
				s.end(0, nil, shard.ErrNotFound)
			default:
				s.end(entries[0].Version, entries[0].Value, nil)
			}
		})
		return
	}
	w := &shard.Write{}
	if err := shard.DecodeWrite(s.req.Body, w); err != nil {
		s.end(0, nil, err)
		return
	}
	w.Shard, w.Version = 0, 0
	p.n.client.GoWrite(p.n.ctx, w, func(res *shard.Result, err error) {
		version := uint64(0)
		if res != nil {
			version = res.Version
		}
		s.end(version, nil, err)
	})
}

// end notes the outcome of a request that went through Client.
func (s *pipeSlot) end(version uint64, value []byte, err error) {
	s.version, s.value, s.err = version, value, err
	s.p.put(s)
}

// pipeDone is called on a lane, or by SubmitAll.
func pipeDone(req *scheduler.Request) {
	s := req.User.(*pipeSlot)
	s.p.put(s)
}

func (p *Pipe) put(s *pipeSlot) {
	p.mu.Lock()
	p.ended = append(p.ended, s)
	first := len(p.ended) == 1
	p.mu.Unlock()
	if first {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// complete tells how a request ended.
func (p *Pipe) complete(s *pipeSlot) Completed {
	switch {
	case s.routed:
		return Completed{Tag: s.tag, Version: s.version, Value: s.value, Err: s.err}
	case s.req.Err != nil:
		return Completed{Tag: s.tag, Err: s.req.Err}
	case s.req.Kind == scheduler.KindRead:
		return p.completeRead(s)
	}
	if err := shard.DecodeResult(s.req.Answer, &p.res); err != nil {
		return Completed{Tag: s.tag, Err: fmt.Errorf("%w: unreadable result: %w", shard.ErrAmbiguous, err)}
	}
	return Completed{Tag: s.tag, Version: p.res.Version, Err: p.res.Err()}
}

func (p *Pipe) completeRead(s *pipeSlot) Completed {
	entries, err := shard.DecodeAnswer(s.req.Answer, p.keys[:], p.room[:0])
	switch {
	case err != nil:
		return Completed{Tag: s.tag, Err: fmt.Errorf("%w: unreadable answer: %w", shard.ErrInternal, err)}
	case len(entries) != 1:
		return Completed{Tag: s.tag, Err: fmt.Errorf("%w: an answer without entries", shard.ErrInternal)}
	case !entries[0].Exists():
		return Completed{Tag: s.tag, Err: shard.ErrNotFound}
	}
	return Completed{Tag: s.tag, Version: entries[0].Version, Value: entries[0].Value}
}
