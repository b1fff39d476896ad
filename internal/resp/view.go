package resp

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
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

// step is a step on the keys of one shard: read, evaluate, write if no version has changed, else once more.
type step struct {
	kv   KV
	ctx  context.Context
	keys [][]byte // each once
	// eval evaluates on the view; false: write nothing.
	eval func(v *view) bool
	done func(error)

	tries int
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
	x.kv.GoRead(x.ctx, &shard.Read{Keys: x.keys}, func(entries []shard.Entry, err error) {
		if err != nil {
			x.done(err)
			return
		}
		x.evaluate(entries)
	})
}

func (x *step) evaluate(entries []shard.Entry) {
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
	if !x.eval(v) {
		x.done(nil)
		return
	}
	w := v.write()
	if w == nil {
		x.done(nil)
		return
	}
	x.kv.GoWrite(x.ctx, w, func(_ *shard.Result, err error) {
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
