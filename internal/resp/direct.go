package resp

import (
	"context"
	"errors"
	"sync"

	"github.com/kiloraft/kiloraft/shard"
)

// The direct forms: one read or one write, or one of them in each shard. They return false, having done nothing, if the arguments
// need the general form.

// replyOK and replyNull need no allocation.
var (
	replyOK    = []byte("+OK\r\n")
	replyZero  = []byte(":0\r\n")
	replyOne   = []byte(":1\r\n")
	replyNull2 = []byte("$-1\r\n")
	replyNull3 = []byte("_\r\n")
)

func (r *request) null() []byte {
	if r.resp3 {
		return replyNull3
	}
	return replyNull2
}

// singleWrite is a write of one operation in one piece of memory.
type singleWrite struct {
	w    shard.Write
	op   [1]shard.Op
	cond [1]shard.Condition
}

func newSingleWrite(op shard.Op) *singleWrite {
	s := &singleWrite{op: [1]shard.Op{op}}
	s.w.Ops = s.op[:]
	return s
}

func (s *singleWrite) on(kind shard.ConditionKind) {
	s.cond[0] = shard.Condition{Kind: kind, Key: s.op[0].Key}
	s.w.Conditions = s.cond[:]
}

// directSet is SET without GET and KEEPTTL, SETNX, SETEX and PSETEX.
func directSet(r *request, ctx context.Context) bool {
	key, value, opt, errText := setArgs(r.args)
	if errText != "" || opt.get || opt.keepTTL {
		return false
	}
	s := newSingleWrite(shard.Op{Kind: shard.OpPut, Key: key, Value: value, Expire: opt.expire})
	done, refused := replyOK, r.null()
	if is(r.args[0], "SETNX") {
		done, refused = replyOne, replyZero
	}
	switch {
	case opt.nx:
		s.on(shard.ConditionAbsent)
	case opt.xx:
		s.on(shard.ConditionExists)
	}
	r.c.s.cfg.KV.GoWrite(ctx, &s.w, func(_ *shard.Result, err error) {
		switch {
		case err == nil:
			r.finish(done)
		case errors.Is(err, shard.ErrConditionFailed):
			r.finish(refused)
		default:
			r.fail(err)
		}
	})
	return true
}

// directIncr is INCR, DECR, INCRBY and DECRBY. If the addition is refused, the general form finds out why.
func directIncr(r *request, ctx context.Context) bool {
	d, errText := delta(r.args)
	if errText != "" {
		return false
	}
	s := newSingleWrite(shard.Op{Kind: shard.OpAdd, Key: r.args[1], Delta: d})
	r.c.s.cfg.KV.GoWrite(ctx, &s.w, func(res *shard.Result, err error) {
		switch {
		case errors.Is(err, shard.ErrNotInteger):
			go r.evaluate(ctx) // not on the lane that may be answering
		case err != nil:
			r.fail(err)
		case len(res.Values) != 1:
			r.fail(shard.ErrInternal)
		default:
			o := out{}
			o.int(res.Values[0])
			r.finish(o.b)
		}
	})
	return true
}

// parts counts answers.
type parts struct {
	mu   sync.Mutex
	left int
	err  error
	sum  int64
	done func(sum int64, err error)
}

func (p *parts) answer(n int64, err error) {
	p.mu.Lock()
	p.sum += n
	if err != nil && (p.err == nil || errors.Is(err, shard.ErrAmbiguous)) {
		p.err = err
	}
	p.left--
	last := p.left == 0
	p.mu.Unlock()
	if last {
		p.done(p.sum, p.err)
	}
}

// directDel is DEL and UNLINK: a write for each key, which tells whether it existed.
func directDel(r *request, ctx context.Context) bool {
	keys := dedup(r.keys)
	p := &parts{left: len(keys), done: func(sum int64, err error) {
		if err != nil {
			r.fail(err)
			return
		}
		o := out{}
		o.int(sum)
		r.finish(o.b)
	}}
	for _, k := range keys {
		s := newSingleWrite(shard.Op{Kind: shard.OpDelete, Key: k})
		s.on(shard.ConditionExists)
		r.c.s.cfg.KV.GoWrite(ctx, &s.w, func(_ *shard.Result, err error) {
			if errors.Is(err, shard.ErrConditionFailed) {
				p.answer(0, nil)
				return
			}
			p.answer(1, err)
		})
	}
	return true
}

// groupBytesMax bounds the values of one write of MSET.
const groupBytesMax = 4 << 20

// groups sorts things by the shard of their key, as far as the map knows.
func groups(kv KV, n int, key func(i int) []byte, size func(i int) int, each func(list []int)) {
	type group struct {
		list  []int
		bytes int
	}
	byShard := map[uint64]*group{}
	for i := range n {
		route, ok := kv.Map().Lookup(key(i))
		if !ok {
			each([]int{i})
			continue
		}
		id := uint64(route.Desc.Shard)
		g := byShard[id]
		if g == nil {
			g = &group{}
			byShard[id] = g
		}
		if len(g.list) == shard.ReadKeysMax || len(g.list) > 0 && g.bytes+size(i) > groupBytesMax {
			each(g.list)
			*g = group{}
		}
		g.list = append(g.list, i)
		g.bytes += size(i)
	}
	for _, g := range byShard {
		each(g.list)
	}
}

// readPages reads keys of one shard, answer by answer. What is in one answer is as of one moment; pages is how many there were. keep is
// asked whether so many bytes of values may be held; nil: they are not wanted.
func readPages(ctx context.Context, kv KV, keys [][]byte, keep func(n int) bool, done func(entries []shard.Entry, pages int, err error)) {
	var entries []shard.Entry
	pages := 0
	var next func(es []shard.Entry, err error)
	next = func(es []shard.Entry, err error) {
		size := 0
		for i := range es {
			size += len(es[i].Value)
			if keep == nil {
				es[i].Value = nil
			}
		}
		if err == nil && keep != nil && size > 0 && !keep(size) {
			err = errReplies
		}
		if err != nil {
			done(nil, pages, err)
			return
		}
		pages++
		if entries == nil {
			entries = es
		} else {
			entries = append(entries, es...)
		}
		if len(entries) == len(keys) {
			done(entries, pages, nil)
			return
		}
		kv.GoReadSome(ctx, &shard.Read{Keys: keys[len(entries):]}, next)
	}
	kv.GoReadSome(ctx, &shard.Read{Keys: keys}, next)
}

// readKeys reads keys of any shards: those of one shard as of one moment, as far as they fit into one answer. keep is as in readPages.
func readKeys(ctx context.Context, kv KV, keys [][]byte, keep func(n int) bool, done func([]shard.Entry, error)) {
	entries := make([]shard.Entry, len(keys))
	p := &parts{left: 1, done: func(_ int64, err error) { done(entries, err) }}
	var read func(list []int)
	read = func(list []int) {
		p.mu.Lock()
		p.left++
		p.mu.Unlock()
		part := make([][]byte, len(list))
		for i, k := range list {
			part[i] = keys[k]
		}
		readPages(ctx, kv, part, keep, func(es []shard.Entry, _ int, err error) {
			if errors.Is(err, shard.ErrCrossShard) && len(list) > 1 { // the map was out of date
				for _, k := range list {
					read([]int{k})
				}
				err = nil
			}
			for i := range es {
				entries[list[i]] = es[i]
			}
			p.answer(0, err)
		})
	}
	groups(kv, len(keys), func(i int) []byte { return keys[i] }, func(int) int { return 0 }, read)
	p.answer(0, nil)
}

// directMGet is MGET.
func directMGet(r *request, ctx context.Context) bool {
	if len(r.keys) == 1 {
		return false
	}
	readKeys(ctx, r.c.s.cfg.KV, r.keys, r.reserve, func(entries []shard.Entry, err error) {
		if err != nil {
			r.fail(err)
			return
		}
		size := 0
		for i := range entries {
			size += len(entries[i].Value) + bulkOverhead
		}
		if size > bigReply {
			go r.finishValues(entries, size) // who answers is a lane, or reads what a peer sends: others wait for it
			return
		}
		r.finishValues(entries, size)
	})
	return true
}

// bulkOverhead is at most what the protocol adds to a value.
const bulkOverhead = 24

// finishValues replies with values, which take about so many bytes.
func (r *request) finishValues(entries []shard.Entry, size int) {
	o := out{resp3: r.resp3, r: r, b: make([]byte, 0, size+bulkOverhead)}
	o.array(len(entries))
	for i := range entries {
		if entries[i].Exists() {
			o.bulk(entries[i].Value)
		} else {
			o.null()
		}
	}
	if o.over {
		r.fail(errReplies)
		return
	}
	r.finish(o.b)
}

// directExists is EXISTS and TOUCH.
func directExists(r *request, ctx context.Context) bool {
	if len(r.keys) == 1 {
		return false
	}
	readKeys(ctx, r.c.s.cfg.KV, r.keys, nil, func(entries []shard.Entry, err error) {
		if err != nil {
			r.fail(err)
			return
		}
		n := int64(0)
		for i := range entries {
			if entries[i].Exists() {
				n++
			}
		}
		o := out{}
		o.int(n)
		r.finish(o.b)
	})
	return true
}

// directMSet is MSET: atomic in each shard.
func directMSet(r *request, ctx context.Context) bool {
	a := r.args
	if len(a)%2 == 0 {
		return false
	}
	last := make(map[string]int, len(a)/2) // of a key that is named twice the last value counts
	ops := make([]shard.Op, 0, len(a)/2)
	for i := 1; i < len(a); i += 2 {
		op := shard.Op{Kind: shard.OpPut, Key: a[i], Value: a[i+1]}
		if at, ok := last[string(a[i])]; ok {
			ops[at] = op
			continue
		}
		last[string(a[i])] = len(ops)
		ops = append(ops, op)
	}
	p := &parts{left: 1, done: func(_ int64, err error) {
		if err != nil {
			r.fail(err)
			return
		}
		r.finish(replyOK)
	}}
	kv := r.c.s.cfg.KV
	var write func(list []int)
	write = func(list []int) {
		p.mu.Lock()
		p.left++
		p.mu.Unlock()
		w := &shard.Write{Ops: make([]shard.Op, len(list))}
		for i, at := range list {
			w.Ops[i] = ops[at]
		}
		kv.GoWrite(ctx, w, func(_ *shard.Result, err error) {
			if !errors.Is(err, shard.ErrCrossShard) || len(list) == 1 {
				p.answer(0, err)
				return
			}
			go func() { // not on the lane that may be answering
				for _, at := range list {
					write([]int{at})
				}
				p.answer(0, nil)
			}()
		})
	}
	groups(kv, len(ops), func(i int) []byte { return ops[i].Key }, func(i int) int { return len(ops[i].Key) + len(ops[i].Value) + 32 }, write)
	p.answer(0, nil)
	return true
}

// directGet is GET without a view.
func directGet(r *request, ctx context.Context) bool {
	r.c.s.cfg.KV.GoReadSome(ctx, &shard.Read{Keys: r.keys}, func(entries []shard.Entry, err error) {
		switch {
		case err != nil:
			r.fail(err)
		case !entries[0].Exists():
			r.finish(r.null())
		default:
			v := entries[0].Value
			o := out{b: make([]byte, 0, len(v)+24)}
			o.bulk(v)
			r.finish(o.b)
		}
	})
	return true
}
