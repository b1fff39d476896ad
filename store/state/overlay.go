package state

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
	"unsafe"
)

// Hit tells what an overlay knows about a key.
type Hit uint8

// The answers of Overlay.Get.
const (
	Miss    Hit = iota // nothing: look further down
	Found              // the key holds the item
	Deleted            // the key was deleted: do not look further down
)

// An entry lies in a chunk as: version 8, value length 4, value capacity 4, key length 2, flags 2, key, [expiry 8], value.
// Little-endian, not aligned. An entry that moved keeps its key, and has the place of its successor as value length.
const (
	entryHeader = 20

	offValueLen = 8
	offValueCap = 12
	offKeyLen   = 16
	offFlags    = 18
)

const (
	flagDeleted = 1 << iota // a tombstone
	flagExpire              // room for an expiry is there
	flagMoved               // superseded by the entry at place value length
	flagCopy                // not the first entry of its key: reached through a moved one
)

// KeyBytesMax is the longest key that an overlay takes. (What users may store is bounded lower, by the package shard.)
const KeyBytesMax = 1<<16 - 1

// Overlay holds what was applied to a shard since its last checkpoint: the newest item or tombstone of each key.
//
// It belongs to a lane until Freeze; from then on it never changes, and any goroutine may read it. It holds no pointer per
// entry: entries lie in byte chunks, and an open-addressing table of (hash tag, place) finds them. Order is made when an
// iterator asks for it, and kept. An empty overlay costs about 150 bytes, one key less than a KiB.
type Overlay struct {
	table  []uint64 // hash tag in the upper half, place+1 in the lower; 0 is empty. Length is a power of two
	chunks [][]byte // len is what is used; entries never move within a chunk
	n      int      // keys, tombstones included
	data   int      // keys and values as stored, without dead ones
	frozen bool
	arena  *Arena
	bytes  int // memory held
	dead   int // bytes of entries that moved

	// index holds the places of the first entries of all keys in the chunks before mark, in key order. Owned as the
	// overlay is; a frozen overlay never touches it and publishes a complete one in ordered.
	index   []uint32
	mark    place
	ordered atomic.Pointer[[]uint32]
}

// A place is chunk<<16 | offset. Entries larger than a chunk start at offset 0 of a chunk of their own.
type place uint32

func (p place) chunk() int  { return int(p >> 16) }
func (p place) offset() int { return int(p & 0xffff) }

// NewOverlay returns an empty overlay that takes its memory from a, which belongs to the same lane.
func NewOverlay(a *Arena) *Overlay {
	a.grown += overlaySize
	return &Overlay{arena: a}
}

const overlaySize = int(unsafe.Sizeof(Overlay{}))

// Len returns the number of keys, tombstones included.
func (o *Overlay) Len() int { return o.n }

// Bytes returns the memory that the overlay holds.
func (o *Overlay) Bytes() int { return o.bytes + 4*cap(o.index) + overlaySize }

// DataBytes returns the bytes of keys and values that a checkpoint would write.
func (o *Overlay) DataBytes() int { return o.data }

// DeadBytes returns the bytes that values left behind that outgrew their place. They are freed with the overlay.
func (o *Overlay) DeadBytes() int { return o.dead }

// Frozen tells whether Freeze was called.
func (o *Overlay) Frozen() bool { return o.frozen }

// Freeze makes the overlay immutable; it may then be read by any goroutine that learns of it from this one.
func (o *Overlay) Freeze() { o.frozen = true }

// Release gives the memory back to the arena. The lane calls it when nobody reads the overlay any more; what Get or an
// iterator returned is invalid from then on.
func (o *Overlay) Release() {
	for _, c := range o.chunks {
		o.arena.putChunk(c)
	}
	if o.table != nil {
		o.arena.putTable(o.table)
	}
	*o = Overlay{arena: o.arena}
}

var seed = maphash.MakeSeed()

func tagOf(key []byte) uint64 {
	// Never 0 in the upper half would not be needed: a slot is empty by its lower half.
	return maphash.Bytes(seed, key) &^ 0xffffffff
}

// Get returns what the overlay knows of key. The item's value aliases the overlay and is valid until its next write, or
// until Release if it is frozen. For Deleted, the item's Version is that of the deletion.
func (o *Overlay) Get(key []byte) (Item, Hit) {
	p, ok := o.find(tagOf(key), key)
	if !ok {
		return Item{}, Miss
	}
	e := o.chunks[p.chunk()][p.offset():]
	if flagsOf(e)&flagDeleted != 0 {
		return Item{Version: binary.LittleEndian.Uint64(e)}, Deleted
	}
	return itemOf(e), Found
}

// Put sets key to it. Key and value are copied.
func (o *Overlay) Put(key []byte, it Item) {
	flags := uint16(0)
	if it.Expire != 0 {
		flags = flagExpire
	}
	o.set(key, it, flags)
}

// Delete records that key was deleted by version.
func (o *Overlay) Delete(key []byte, version uint64) {
	o.set(key, Item{Version: version}, flagDeleted)
}

func (o *Overlay) set(key []byte, it Item, flags uint16) {
	if o.frozen {
		panic("state: write to a frozen overlay")
	}
	if len(key) > KeyBytesMax {
		panic("state: key too long for an overlay")
	}
	if 4*(o.n+1) > 3*len(o.table) {
		o.grow()
	}
	tag := tagOf(key)
	mask := uint64(len(o.table) - 1)
	for i := (tag >> 32) & mask; ; i = (i + 1) & mask {
		s := o.table[i]
		if uint32(s) == 0 {
			p := o.add(key, it, flags, len(it.Value))
			o.table[i] = tag | uint64(p+1)
			o.n++
			o.data += len(key) + len(it.Value)
			return
		}
		if s&^0xffffffff != tag {
			continue
		}
		p := place(uint32(s) - 1)
		e := o.chunks[p.chunk()][p.offset():]
		if string(keyOf(e)) != string(key) {
			continue
		}
		o.data += len(it.Value) - int(binary.LittleEndian.Uint32(e[offValueLen:]))
		if !overwrite(e, it, flags) {
			o.table[i] = tag | uint64(o.move(e, key, it, flags)+1)
		}
		return
	}
}

// TouchMax is how many keys Touch takes at once.
const TouchMax = 16

// Touch brings what Put will want of these keys into the CPU's caches. A key waits for memory twice, for its slot and for its entry; here the
// keys wait together for the slots, and nobody for the entries. Nothing changes.
func (o *Overlay) Touch(keys [][]byte) {
	if o.n == 0 {
		return
	}
	var tags [TouchMax]uint64
	keys = keys[:min(len(keys), TouchMax)]
	for i, key := range keys {
		tags[i] = o.AheadSlot(key)
	}
	for _, tag := range tags[:len(keys)] {
		o.AheadItem(tag)
	}
}

// find returns the place of the newest entry of key.
func (o *Overlay) find(tag uint64, key []byte) (place, bool) {
	if o.n == 0 {
		return 0, false
	}
	mask := uint64(len(o.table) - 1)
	for i := (tag >> 32) & mask; ; i = (i + 1) & mask {
		s := o.table[i]
		if uint32(s) == 0 {
			return 0, false
		}
		if s&^0xffffffff != tag {
			continue
		}
		p := place(uint32(s) - 1)
		if string(keyOf(o.chunks[p.chunk()][p.offset():])) == string(key) {
			return p, true
		}
	}
}

// overwrite replaces the item of e in place if it fits.
func overwrite(e []byte, it Item, flags uint16) bool {
	was := flagsOf(e)
	if uint64(len(it.Value)) > uint64(binary.LittleEndian.Uint32(e[offValueCap:])) || flags&flagExpire&^was != 0 {
		return false
	}
	at := entryHeader + int(binary.LittleEndian.Uint16(e[offKeyLen:]))
	if was&flagExpire != 0 {
		binary.LittleEndian.PutUint64(e[at:], uint64(it.Expire))
		at += 8
	}
	binary.LittleEndian.PutUint64(e, it.Version)
	binary.LittleEndian.PutUint32(e[offValueLen:], uint32(len(it.Value)))
	binary.LittleEndian.PutUint16(e[offFlags:], was&^flagDeleted|flags)
	copy(e[at:], it.Value)
	return true
}

// move writes a larger copy of e, with room to grow, and leaves its place behind. A key moves a logarithmic number of
// times, so the chain that an iterator follows stays short.
func (o *Overlay) move(e, key []byte, it Item, flags uint16) place {
	o.dead += entrySize(e)
	p := o.add(key, it, flags|flagExpire|flagCopy, len(it.Value)+len(it.Value)/4)
	binary.LittleEndian.PutUint32(e[offValueLen:], uint32(p))
	binary.LittleEndian.PutUint16(e[offFlags:], flagsOf(e)|flagMoved)
	return p
}

// add appends an entry to the chunks.
func (o *Overlay) add(key []byte, it Item, flags uint16, valueCap int) place {
	size := entryHeader + len(key) + valueCap
	if flags&flagExpire != 0 {
		size += 8
	}
	c := len(o.chunks) - 1
	if c < 0 || cap(o.chunks[c])-len(o.chunks[c]) < size {
		c = o.addChunk(size)
	}
	at := len(o.chunks[c])
	e := o.chunks[c][at : at+size]
	o.chunks[c] = o.chunks[c][:at+size]
	binary.LittleEndian.PutUint64(e, it.Version)
	binary.LittleEndian.PutUint32(e[offValueLen:], uint32(len(it.Value)))
	binary.LittleEndian.PutUint32(e[offValueCap:], uint32(valueCap))
	binary.LittleEndian.PutUint16(e[offKeyLen:], uint16(len(key)))
	binary.LittleEndian.PutUint16(e[offFlags:], flags)
	n := entryHeader + copy(e[entryHeader:], key)
	if flags&flagExpire != 0 {
		binary.LittleEndian.PutUint64(e[n:], uint64(it.Expire))
		n += 8
	}
	copy(e[n:], it.Value)
	return place(c<<16 | at)
}

// addChunk appends a chunk with room for size bytes: a quarter to half of what the overlay holds, up to chunkBytesMax, or of the
// entry's own size. So at most a third is empty, and a recycled overlay takes few chunks.
func (o *Overlay) addChunk(size int) int {
	if len(o.chunks) == 1<<16-1 {
		panic("state: overlay over 4 GiB")
	}
	class := 0
	for class < chunkClasses && (chunkBytesMin<<class < size || class < chunkClasses-1 && chunkBytesMin<<class < o.bytes/4) {
		class++
	}
	var c []byte
	if class < chunkClasses {
		c = o.arena.chunk(class)
	} else {
		c = make([]byte, 0, size)
	}
	o.take(cap(c))
	o.chunks = append(o.chunks, c)
	return len(o.chunks) - 1
}

// take notes that it holds n more bytes.
func (o *Overlay) take(n int) {
	o.bytes += n
	o.arena.grown += n
}

// grow doubles the table. Tags are in the slots, so no entry is touched.
func (o *Overlay) grow() {
	class := 0
	for tableSlotsMin<<class <= len(o.table) {
		class++
	}
	t := o.arena.table(class)
	mask := uint64(len(t) - 1)
	for _, s := range o.table {
		if uint32(s) == 0 {
			continue
		}
		i := (s >> 32) & mask
		for uint32(t[i]) != 0 {
			i = (i + 1) & mask
		}
		t[i] = s
	}
	o.take(8 * (len(t) - len(o.table)))
	if o.table != nil {
		o.arena.putTable(o.table)
	}
	o.table = t
}

func flagsOf(e []byte) uint16 { return binary.LittleEndian.Uint16(e[offFlags:]) }

func keyOf(e []byte) []byte {
	n := int(binary.LittleEndian.Uint16(e[offKeyLen:]))
	return e[entryHeader : entryHeader+n : entryHeader+n]
}

func itemOf(e []byte) Item {
	at := entryHeader + int(binary.LittleEndian.Uint16(e[offKeyLen:]))
	it := Item{Version: binary.LittleEndian.Uint64(e)}
	if flagsOf(e)&flagExpire != 0 {
		it.Expire = int64(binary.LittleEndian.Uint64(e[at:]))
		at += 8
	}
	n := at + int(binary.LittleEndian.Uint32(e[offValueLen:]))
	it.Value = e[at:n:n]
	return it
}

// entrySize returns the bytes that the entry takes in its chunk.
func entrySize(e []byte) int {
	n := entryHeader + int(binary.LittleEndian.Uint16(e[offKeyLen:])) + int(binary.LittleEndian.Uint32(e[offValueCap:]))
	if flagsOf(e)&flagExpire != 0 {
		n += 8
	}
	return n
}
