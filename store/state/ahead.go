package state

import "github.com/kiloraft/kiloraft/internal/prefetch"

// AheadSlot asks the CPU for what Put of key will look at first (see package prefetch), and returns key's tag for AheadItem, some time later.
func (o *Overlay) AheadSlot(key []byte) (tag uint64) {
	if o.n == 0 {
		return 0
	}
	tag = tagOf(key)
	prefetch.Of(&o.table[tag>>32&uint64(len(o.table)-1)])
	prefetch.Slice(o.chunks, 4)
	return tag
}

// AheadItem asks for the entry that Put will find, most likely, or for where it will add one.
func (o *Overlay) AheadItem(tag uint64) {
	if o.n == 0 {
		return
	}
	s := o.table[tag>>32&uint64(len(o.table)-1)]
	if uint32(s) == 0 || s&^0xffffffff != tag {
		return
	}
	p := place(uint32(s) - 1)
	if c := o.chunks[p.chunk()]; p.offset() < len(c) {
		prefetch.Slice(c[p.offset():], aheadBytes)
	}
}

// aheadBytes is how much of an entry is asked for: behind that the CPU sees by itself where it goes.
const aheadBytes = 192
