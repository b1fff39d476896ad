package raftlog

// cache holds the recent bodies of a lane, oldest evicted first. A body has a number, and the numbers in use are consecutive,
// so the cache is a ring and looking up a body is an index calculation.
type cache struct {
	ring     []slot // its length is a power of two
	first    uint64 // number of the oldest body held; numbers begin at 1
	next     uint64 // number of the next body
	bytes    int64
	bytesMax int64
}

type slot struct {
	body  []byte // nil: dropped
	batch uint64 // not evicted before this batch is flushed: its position is not known until then
}

// slotBytes is what a slot is counted beside its body.
const slotBytes = 64

// ringMin is the least length of a ring.
const ringMin = 64

func newCache(bytesMax int64) cache {
	return cache{ring: make([]slot, ringMin), first: 1, next: 1, bytesMax: bytesMax}
}

func (c *cache) at(id uint64) *slot { return &c.ring[id&uint64(len(c.ring)-1)] }

func (c *cache) put(body []byte, batch, flushed uint64) uint64 {
	c.evict(flushed)
	if c.next-c.first == uint64(len(c.ring)) {
		c.resize(2 * len(c.ring))
	}
	id := c.next
	*c.at(id) = slot{body: body, batch: batch}
	c.next++
	c.bytes += int64(len(body)) + slotBytes
	return id
}

func (c *cache) resize(n int) {
	old := *c
	c.ring = make([]slot, n)
	for id := c.first; id < c.next; id++ {
		*c.at(id) = *old.at(id)
	}
}

// get returns the body of id, nil if it is not held any more.
func (c *cache) get(id uint64) []byte {
	if id < c.first || id >= c.next {
		return nil
	}
	return c.at(id).body
}

// replace exchanges the body of id for a part of it, to be kept until batch is flushed.
func (c *cache) replace(id uint64, body []byte, batch uint64) {
	s := c.at(id)
	c.bytes += int64(len(body)) - int64(len(s.body))
	s.body = body
	s.batch = max(s.batch, batch)
}

func (c *cache) drop(id uint64) {
	if c.get(id) == nil {
		return
	}
	s := c.at(id)
	c.bytes -= int64(len(s.body)) + slotBytes
	s.body = nil
	c.skipDropped()
}

func (c *cache) skipDropped() {
	for c.first < c.next && c.at(c.first).body == nil {
		c.first++
	}
}

// shrink drops all that is flushed.
func (c *cache) shrink(flushed uint64) {
	for c.first < c.next && c.at(c.first).batch <= flushed {
		c.drop(c.first)
	}
	n := ringMin
	for uint64(n) < c.next-c.first {
		n *= 2
	}
	if n < len(c.ring) {
		c.resize(n)
	}
}

func (c *cache) evict(flushed uint64) {
	for c.bytes > c.bytesMax && c.first < c.next && c.at(c.first).batch <= flushed {
		c.drop(c.first)
	}
}
