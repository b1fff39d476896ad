package state

import "math/bits"

// Sizes of an overlay's memory. A chunk of class c has chunkBytesMin << c bytes, a table of class c has tableSlotsMin << c
// slots. Chunks of one overlay grow with it up to chunkBytesMax; a larger entry has a chunk of its own.
const (
	chunkBytesMin  = 256
	chunkBytesMax  = 64 << 10
	chunkClasses   = 9
	tableSlotsMin  = 8
	tableClasses   = 24
	arenaBytesIdle = 64 << 20 // default bound of what an Arena keeps for reuse
)

// Arena recycles the memory of the overlays of one lane. It is owned by the lane: no method may run concurrently with
// another. The zero value is ready to use.
type Arena struct {
	// IdleBytesMax bounds what is kept for reuse; the rest is left to the garbage collector. 0 means 64 MiB.
	IdleBytesMax int

	idle   int // bytes in chunks and tables below
	grown  int // see Grown
	chunks [chunkClasses][][]byte
	tables [tableClasses][][]uint64
}

// Grown returns by how many bytes the overlays have grown, ever: by how much a number of writes have made them grow is told by the difference,
// without a look at any of them.
func (a *Arena) Grown() int { return a.grown }

// IdleBytes returns how much memory waits for reuse.
func (a *Arena) IdleBytes() int { return a.idle }

// Shrink leaves all that waits for reuse to the garbage collector.
func (a *Arena) Shrink() { *a = Arena{IdleBytesMax: a.IdleBytesMax, grown: a.grown} }

// chunk returns an empty chunk of chunkBytesMin<<class bytes.
func (a *Arena) chunk(class int) []byte {
	if n := len(a.chunks[class]); n > 0 {
		c := a.chunks[class][n-1]
		a.chunks[class] = a.chunks[class][:n-1]
		a.idle -= cap(c)
		return c
	}
	return make([]byte, 0, chunkBytesMin<<class)
}

// table returns a zeroed table of tableSlotsMin<<class slots.
func (a *Arena) table(class int) []uint64 {
	if class < tableClasses {
		if n := len(a.tables[class]); n > 0 {
			t := a.tables[class][n-1]
			a.tables[class] = a.tables[class][:n-1]
			a.idle -= 8 * len(t)
			clear(t)
			return t
		}
	}
	return make([]uint64, tableSlotsMin<<class)
}

func (a *Arena) room(n int) bool {
	limit := a.IdleBytesMax
	if limit == 0 {
		limit = arenaBytesIdle
	}
	return a.idle+n <= limit
}

func (a *Arena) putChunk(c []byte) {
	class := bits.Len(uint(cap(c)/chunkBytesMin)) - 1
	if class < 0 || class >= chunkClasses || cap(c) != chunkBytesMin<<class || !a.room(cap(c)) {
		return
	}
	a.chunks[class] = append(a.chunks[class], c[:0])
	a.idle += cap(c)
}

func (a *Arena) putTable(t []uint64) {
	class := bits.Len(uint(len(t)/tableSlotsMin)) - 1
	if class < 0 || class >= tableClasses || !a.room(8*len(t)) {
		return
	}
	a.tables[class] = append(a.tables[class], t)
	a.idle += 8 * len(t)
}
