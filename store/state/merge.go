package state

import "bytes"

// overlaysMax bounds how many overlays are merged: live, frozen by a checkpoint, frozen by a split.
const overlaysMax = 4

// MergeOptions say which part of a range MergePage makes. Start, End and Reverse are those of the job that read the base.
type MergeOptions struct {
	Start, End []byte
	Limit      int // items; 0: no limit
	Bytes      int // keys and values; 0: no limit
	Reverse    bool
	Now        int64 // items that expire at or before it are left out (rule State8); 0: none
}

// MergePage makes the page of a range from what the store returned for it (base) and the overlays, newest first (nil ones
// are skipped). It covers at most what base covers. dst is reused; its items alias base and the overlays.
func MergePage(dst, base *Page, opt MergeOptions, overlays ...*Overlay) {
	dst.reset()
	var m merger
	m.init(base, &opt, overlays)
	size := 0
	for {
		kv, deleted, ok := m.next()
		if !ok {
			break
		}
		if deleted || opt.Now > 0 && kv.Expire != 0 && kv.Expire <= opt.Now {
			continue
		}
		dst.Items = append(dst.Items, kv)
		size += len(kv.Key) + len(kv.Value)
		if len(dst.Items) == opt.Limit || opt.Bytes > 0 && size >= opt.Bytes {
			dst.endAt(kv.Key, opt.Reverse)
			return
		}
	}
	if base.More {
		dst.bound = append(dst.bound[:0], base.CompleteTo...)
		dst.CompleteTo, dst.More = dst.bound, true
	}
}

// merger joins a page and overlays in key order. Source 0 is the page, the others are the overlays, the newest one last.
type merger struct {
	reverse bool
	items   []KV
	iters   [overlaysMax]Iter
	has     [overlaysMax]bool // the iterator stands on an entry
	n       int
}

func (m *merger) init(base *Page, opt *MergeOptions, overlays []*Overlay) {
	m.reverse = opt.Reverse
	m.items = base.Items
	start, end := opt.Start, opt.End
	if base.More && opt.Reverse {
		start = base.CompleteTo
	} else if base.More {
		end = base.CompleteTo
	}
	for i := len(overlays) - 1; i >= 0; i-- {
		if o := overlays[i]; o != nil && o.n > 0 {
			if m.n == overlaysMax {
				panic("state: too many overlays")
			}
			m.iters[m.n] = o.Iter(start, end, opt.Reverse)
			m.has[m.n] = m.iters[m.n].Next()
			m.n++
		}
	}
}

// next returns the next key and what the newest source says of it.
func (m *merger) next() (kv KV, deleted, ok bool) {
	if len(m.items) > 0 {
		kv, ok = m.items[0], true
	}
	from := -1
	for i := range m.n {
		if !m.has[i] {
			continue
		}
		key := m.iters[i].Key()
		if ok {
			c := bytes.Compare(key, kv.Key)
			if m.reverse {
				c = -c
			}
			if c > 0 {
				continue
			}
		}
		kv.Key, from, ok = key, i, true
	}
	if from >= 0 {
		kv = KV{Key: kv.Key, Item: m.iters[from].Item()}
		deleted = m.iters[from].Deleted()
	}
	m.skip(kv.Key)
	return kv, deleted, ok
}

// skip moves all sources past key.
func (m *merger) skip(key []byte) {
	if len(m.items) > 0 && bytes.Equal(m.items[0].Key, key) {
		m.items = m.items[1:]
	}
	for i := range m.n {
		if m.has[i] && bytes.Equal(m.iters[i].Key(), key) {
			m.has[i] = m.iters[i].Next()
		}
	}
}
