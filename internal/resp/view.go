package resp

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/shard"
)

// item is a key in a view.
type item struct {
	key     []byte
	value   []byte
	version uint64 // as read; 0 absent
	// expire is as in shard.Op: > 0 unix ms, < 0 so many ms after the write, 0 never.
	expire  int64
	exists  bool
	changed bool
}

// view is what an atomic step sees of its keys, and what it has changed so far.
type view struct {
	now   int64 // unix ms, of this node
	items []item
	index map[string]int // of items, if they are many
}

// viewLinearMax is up to how many keys are looked for one by one.
const viewLinearMax = 8

func (v *view) find(key []byte) *item {
	if v.index != nil {
		return &v.items[v.index[string(key)]]
	}
	for i := range v.items {
		if bytes.Equal(v.items[i].key, key) {
			return &v.items[i]
		}
	}
	panic("resp: a command uses a key that it did not declare")
}

// get returns a key's item, nil if it does not exist.
func (v *view) get(key []byte) *item {
	if it := v.find(key); it.exists {
		return it
	}
	return nil
}

func (v *view) set(key, value []byte, expire int64) {
	it := v.find(key)
	it.value, it.expire, it.exists, it.changed = value, expire, true, true
	if expire > 0 && expire <= v.now {
		it.exists = false
	}
}

func (v *view) del(key []byte) bool {
	it := v.find(key)
	was := it.exists
	it.value, it.expire, it.exists = nil, 0, false
	it.changed = it.changed || was
	return was
}

// deadline returns when an item ends by this node's clock; 0 never.
func (v *view) deadline(it *item) int64 {
	if it.expire < 0 {
		return v.now - it.expire
	}
	return it.expire
}

// write returns what makes the view true: its operations, under the condition that nothing has changed since it was read; nil if it changed
// nothing.
func (v *view) write() *shard.Write {
	w := &shard.Write{}
	for i := range v.items {
		it := &v.items[i]
		if !it.changed {
			continue
		}
		switch {
		case it.exists:
			w.Ops = append(w.Ops, shard.Op{Kind: shard.OpPut, Key: it.key, Value: it.value, Expire: it.expire})
		case it.version != 0:
			w.Ops = append(w.Ops, shard.Op{Kind: shard.OpDelete, Key: it.key})
		}
	}
	if len(w.Ops) == 0 {
		return nil
	}
	for i := range v.items {
		w.Conditions = append(w.Conditions, shard.Condition{Kind: shard.ConditionVersion, Key: v.items[i].key, Version: v.items[i].version})
	}
	return w
}

// step is a step on the keys of one shard: read, evaluate, write if no version has changed, else once more. It finishes r with what is in o.
type step struct {
	r    *request
	ctx  context.Context
	keys [][]byte // each once
	// eval evaluates on the view, into o; false: write nothing.
	eval func(v *view) bool
	o    *out

	tries int
	// seen are the versions that were read last, if they came in several answers: those are not of one moment.
	seen []uint64
}

// dedup returns each key once.
func dedup(keys [][]byte) [][]byte {
	if len(keys) <= 1 {
		return keys
	}
	seen := make(map[string]bool, len(keys))
	list := make([][]byte, 0, len(keys))
	for _, k := range keys {
		if !seen[string(k)] {
			seen[string(k)] = true
			list = append(list, k)
		}
	}
	return list
}

func (x *step) start() {
	x.r.release()
	readPages(x.ctx, x.r.c.s.cfg.KV, x.keys, x.r.reserve, func(entries []shard.Entry, pages int, err error) {
		if err != nil {
			x.done(err)
			return
		}
		x.evaluate(entries, pages)
	})
}

// done ends the step.
func (x *step) done(err error) {
	if err != nil {
		x.r.fail(err)
		return
	}
	x.r.finish(x.o.b)
}

func (x *step) evaluate(entries []shard.Entry, pages int) {
	v := x.view(entries)
	x.o.again()
	write := x.eval(v)
	if x.o.over {
		x.done(errReplies)
		return
	}
	var w *shard.Write
	if write {
		w = v.write()
	}
	switch {
	case w != nil:
		x.write(w)
	case write && pages > 1 && !x.confirmed(entries):
		x.start()
	default:
		x.done(nil)
	}
}

// confirmed tells whether the entries have the versions that were read before. If so, they were all there at the moment between: a key never
// has a version again. (A write needs no such proof: it has the versions as conditions.)
func (x *step) confirmed(entries []shard.Entry) bool {
	now := make([]uint64, len(entries))
	for i := range entries {
		now[i] = entries[i].Version
	}
	before := x.seen
	x.seen = now
	return slices.Equal(before, now)
}

func (x *step) view(entries []shard.Entry) *view {
	v := &view{now: time.Now().UnixMilli(), items: make([]item, len(entries))}
	if len(entries) > viewLinearMax {
		v.index = make(map[string]int, len(entries))
	}
	for i := range entries {
		e := &entries[i]
		v.items[i] = item{key: x.keys[i], value: e.Value, version: e.Version, expire: e.Expire, exists: e.Exists()}
		if v.index != nil {
			v.index[string(x.keys[i])] = i
		}
	}
	return v
}

func (x *step) write(w *shard.Write) {
	x.r.c.s.cfg.KV.GoWrite(x.ctx, w, func(_ *shard.Result, err error) {
		if !errors.Is(err, shard.ErrConditionFailed) {
			x.done(err)
			return
		}
		// Somebody else was faster. It may be a lane that answers here: it must not be the one that asks again.
		x.tries++
		if x.tries == 1 {
			go x.start()
			return
		}
		pause := time.Duration(rand.Int64N(int64(time.Millisecond) << min(x.tries, 6)))
		time.AfterFunc(pause, func() {
			if x.ctx.Err() != nil {
				x.done(shard.ErrUnavailable)
				return
			}
			x.start()
		})
	})
}
