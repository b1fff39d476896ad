package state

import (
	"bytes"
	"errors"
	"slices"
	"sort"
	"sync"
)

// memKV is the backend in memory: sorted slices. Every commit is durable at once.
type memKV struct {
	mu      sync.RWMutex
	spaces  map[space]*memBucket
	tabs    map[TabletID]*memBucket
	fault   func() error
	free    func() (int64, error) // nil: there is always space
	reserve int64
	closed  bool
	undoing []func() // of the transaction that is open, to be run in reverse
}

type memKVPair struct{ key, value []byte }

type memBucket struct {
	kv    *memKV
	pairs []memKVPair // sorted by key; pairs are replaced, never modified
}

func newMemKV(opt *Options) *memKV {
	m := &memKV{spaces: make(map[space]*memBucket), tabs: make(map[TabletID]*memBucket), fault: opt.Fault, free: opt.FreeBytes, reserve: opt.ReserveBytes}
	for _, s := range []space{spaceNode, spaceRecords, spaceMeta, spaceGarbage} {
		m.spaces[s] = &memBucket{kv: m}
	}
	return m
}

// clone returns a copy of all that was committed.
func (m *memKV) clone(opt *Options) *memKV {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c := newMemKV(opt)
	for s, b := range m.spaces {
		c.spaces[s].pairs = slices.Clone(b.pairs)
	}
	for t, b := range m.tabs {
		c.tabs[t] = &memBucket{kv: c, pairs: slices.Clone(b.pairs)}
	}
	return c
}

func (m *memKV) view(fn func(kvTx) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ErrClosed
	}
	return fn((*memTx)(m))
}

func (m *memKV) update(n need, fn func(kvTx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.free != nil && !n.urgent {
		if free, err := m.free(); err != nil || free < m.reserve {
			return errors.Join(ErrNoSpace, err)
		}
	}
	m.undoing = m.undoing[:0]
	err := fn((*memTx)(m))
	if err == nil && m.fault != nil {
		if ferr := m.fault(); ferr != nil {
			err = &failedError{ferr}
		}
	}
	if err != nil {
		for _, undo := range slices.Backward(m.undoing) {
			undo()
		}
	}
	return err
}

func (m *memKV) stats(*Stats) {}

func (m *memKV) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

type memTx memKV

func (t *memTx) space(s space) kvBucket { return t.spaces[s] }

func (t *memTx) tablet(id TabletID) (kvBucket, bool) {
	b, ok := t.tabs[id]
	return b, ok
}

func (t *memTx) createTablet(id TabletID) (kvBucket, error) {
	if _, ok := t.tabs[id]; ok {
		return nil, errors.New("tablet exists")
	}
	b := &memBucket{kv: (*memKV)(t)}
	t.tabs[id] = b
	t.undoing = append(t.undoing, func() { delete(t.tabs, id) })
	return b, nil
}

func (t *memTx) deleteTablet(id TabletID) error {
	b, ok := t.tabs[id]
	if !ok {
		return errors.New("no such tablet")
	}
	delete(t.tabs, id)
	t.undoing = append(t.undoing, func() { t.tabs[id] = b })
	return nil
}

func (t *memTx) tablets(fn func(TabletID) error) error {
	ids := make([]TabletID, 0, len(t.tabs))
	for id := range t.tabs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := fn(id); err != nil {
			return err
		}
	}
	return nil
}

// search returns the position of the first key at or after key.
func (b *memBucket) search(key []byte) (int, bool) {
	n := len(b.pairs)
	if n > 0 && bytes.Compare(b.pairs[n-1].key, key) < 0 { // ascending writes
		return n, false
	}
	i := sort.Search(n, func(i int) bool { return bytes.Compare(b.pairs[i].key, key) >= 0 })
	return i, i < n && bytes.Equal(b.pairs[i].key, key)
}

func (b *memBucket) Get(key []byte) []byte {
	if i, ok := b.search(key); ok {
		return b.pairs[i].value
	}
	return nil
}

func (b *memBucket) Put(key, value []byte) error {
	i, ok := b.search(key)
	value = bytes.Clone(value)
	if ok {
		old := b.pairs[i]
		b.pairs[i] = memKVPair{old.key, value}
		b.kv.undoing = append(b.kv.undoing, func() { _ = b.undoPut(old) })
		return nil
	}
	key = bytes.Clone(key)
	b.pairs = slices.Insert(b.pairs, i, memKVPair{key, value})
	b.kv.undoing = append(b.kv.undoing, func() { b.remove(key) })
	return nil
}

func (b *memBucket) undoPut(p memKVPair) error {
	i, ok := b.search(p.key)
	if ok {
		b.pairs[i] = p
	} else {
		b.pairs = slices.Insert(b.pairs, i, p)
	}
	return nil
}

func (b *memBucket) remove(key []byte) {
	if i, ok := b.search(key); ok {
		b.pairs = slices.Delete(b.pairs, i, i+1)
	}
}

func (b *memBucket) Delete(key []byte) error {
	i, ok := b.search(key)
	if !ok {
		return nil
	}
	old := b.pairs[i]
	b.pairs = slices.Delete(b.pairs, i, i+1)
	b.kv.undoing = append(b.kv.undoing, func() { _ = b.undoPut(old) })
	return nil
}

func (b *memBucket) Cursor() kvCursor { return &memCursor{b: b} }

type memCursor struct {
	b *memBucket
	i int
}

func (c *memCursor) at(i int) (key, value []byte) {
	if c.i = i; i < 0 || i >= len(c.b.pairs) {
		return nil, nil
	}
	return c.b.pairs[i].key, c.b.pairs[i].value
}

func (c *memCursor) First() (key, value []byte) { return c.at(0) }
func (c *memCursor) Last() (key, value []byte)  { return c.at(len(c.b.pairs) - 1) }
func (c *memCursor) Next() (key, value []byte)  { return c.at(c.i + 1) }
func (c *memCursor) Prev() (key, value []byte)  { return c.at(c.i - 1) }
func (c *memCursor) Seek(at []byte) (key, value []byte) {
	i, _ := c.b.search(at)
	return c.at(i)
}
