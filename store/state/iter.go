package state

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Iter walks an overlay in key order. It is valid until the next write to the overlay.
type Iter struct {
	o       *Overlay
	index   []uint32
	reverse bool
	entry   []byte
}

// Iter returns an iterator over the keys from start up to, not including, end; an empty end means plus infinity. If
// reverse, it begins at the greatest of them. The order is made here, from what was added since it was last made.
func (o *Overlay) Iter(start, end []byte, reverse bool) Iter {
	index := o.order()
	lo := o.search(index, start)
	hi := len(index)
	if len(end) > 0 {
		hi = max(lo, o.search(index, end))
	}
	return Iter{o: o, index: index[lo:hi], reverse: reverse}
}

// Next moves to the next key and tells whether there is one.
func (it *Iter) Next() bool {
	n := len(it.index)
	if n == 0 {
		it.entry = nil
		return false
	}
	var p place
	if it.reverse {
		p = place(it.index[n-1])
		it.index = it.index[:n-1]
	} else {
		p = place(it.index[0])
		it.index = it.index[1:]
	}
	it.entry = it.o.newest(p)
	return true
}

// Key returns the current key. It aliases the overlay.
func (it *Iter) Key() []byte { return keyOf(it.entry) }

// Item returns the current item, for a tombstone its version. The value aliases the overlay.
func (it *Iter) Item() Item {
	if it.Deleted() {
		return Item{Version: binary.LittleEndian.Uint64(it.entry)}
	}
	return itemOf(it.entry)
}

// Deleted tells whether the current entry is a tombstone.
func (it *Iter) Deleted() bool { return flagsOf(it.entry)&flagDeleted != 0 }

// newest follows moved entries from p.
func (o *Overlay) newest(p place) []byte {
	for {
		e := o.chunks[p.chunk()][p.offset():]
		if flagsOf(e)&flagMoved == 0 {
			return e
		}
		p = place(binary.LittleEndian.Uint32(e[offValueLen:]))
	}
}

func (o *Overlay) keyAt(p uint32) []byte {
	return keyOf(o.chunks[place(p).chunk()][place(p).offset():])
}

// search returns the first position in index whose key is at or after key.
func (o *Overlay) search(index []uint32, key []byte) int {
	if len(key) == 0 {
		return 0
	}
	lo, hi := 0, len(index)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if bytes.Compare(o.keyAt(index[m]), key) < 0 {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// order returns the places of all keys in key order. Of a frozen overlay several goroutines may ask at once: each makes
// its own, and one of them stays.
func (o *Overlay) order() []uint32 {
	if !o.frozen {
		if len(o.index) < o.n {
			held := cap(o.index)
			o.index = o.extend(o.index)
			o.arena.grown += 4 * (cap(o.index) - held)
			o.mark = o.end()
		}
		return o.index
	}
	if x := o.ordered.Load(); x != nil {
		return *x
	}
	x := o.index
	if len(x) < o.n {
		x = o.extend(slices.Grow(slices.Clone(x), o.n-len(x)))
	}
	o.ordered.CompareAndSwap(nil, &x)
	return x
}

func (o *Overlay) end() place {
	c := len(o.chunks) - 1
	if len(o.chunks[c]) > 0xffff { // full or of its own: go on with the next chunk
		return place((c + 1) << 16)
	}
	return place(c<<16 | len(o.chunks[c]))
}

// tailKey is an entry of the unsorted tail with eight bytes of its key, taken behind what all keys of the tail have in
// common: most comparisons touch nothing else.
type tailKey struct {
	prefix uint64
	at     uint32
}

// extend sorts the entries behind mark and merges them into index, which covers those before it.
func (o *Overlay) extend(index []uint32) []uint32 {
	tail := make([]tailKey, 0, o.n-len(index))
	for c := o.mark.chunk(); c < len(o.chunks); c++ {
		at := 0
		if c == o.mark.chunk() {
			at = o.mark.offset()
		}
		for at < len(o.chunks[c]) {
			e := o.chunks[c][at:]
			if flagsOf(e)&flagCopy == 0 {
				tail = append(tail, tailKey{at: uint32(c<<16 | at)})
			}
			at += entrySize(e)
		}
	}
	o.sortTail(tail)
	old := len(index)
	index = slices.Grow(index, len(tail))[:old+len(tail)]
	for w, i, j := len(index)-1, old-1, len(tail)-1; j >= 0; w-- { // from behind, in place
		if i >= 0 && bytes.Compare(o.keyAt(index[i]), o.keyAt(tail[j].at)) > 0 {
			index[w] = index[i]
			i--
		} else {
			index[w] = tail[j].at
			j--
		}
	}
	return index
}

func (o *Overlay) sortTail(tail []tailKey) {
	if len(tail) == 0 {
		return
	}
	first := o.keyAt(tail[0].at)
	common := len(first)
	for _, t := range tail[1:] {
		common = commonPrefix(first[:common], o.keyAt(t.at))
	}
	for i := range tail {
		tail[i].prefix = prefixOf(o.keyAt(tail[i].at)[common:])
	}
	slices.SortFunc(tail, func(a, b tailKey) int {
		if a.prefix != b.prefix {
			if a.prefix < b.prefix {
				return -1
			}
			return 1
		}
		return bytes.Compare(o.keyAt(a.at), o.keyAt(b.at))
	})
}

func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// prefixOf returns the first eight bytes of b as a big-endian number, zeros behind its end.
func prefixOf(b []byte) uint64 {
	if len(b) >= 8 {
		return binary.BigEndian.Uint64(b)
	}
	var x uint64
	for i, c := range b {
		x |= uint64(c) << (56 - 8*i)
	}
	return x
}
