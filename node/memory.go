package node

import "runtime/metrics"

const (
	// restEvents is how many events of engines a node at rest has between two samples, at most: what the balancer reads, and a few writes.
	restEvents = 100
	// restSamples is for how many samples a node must have been at rest to give memory back: a pause in the load is shorter.
	restSamples = 3
	// restGrowth is by how much the heap of a node at rest may have grown since it gave memory back, beside an eighth, in bytes: what the balancer
	// draws its pictures with, mostly.
	restGrowth = 4 << 20
)

// memory decides when a node gives back to the system what its heap has grown by: when it comes to rest after it has worked, and later at
// rest when the heap has grown by an eighth. The collector keeps as much room as there is live data, for garbage that a node at rest does not
// make. Each time costs one collection.
type memory struct {
	events uint64 // as of the last sample
	rest   int    // samples at rest since it last worked
	given  bool   // since then
	floor  uint64 // bytes of the heap one sample after memory was given back; 0: not known yet
}

// giveBack takes the count of events and the bytes of the heap at a sample, and tells whether it is time.
func (m *memory) giveBack(events, heap uint64) bool {
	if events-m.events > restEvents {
		*m = memory{events: events}
		return false
	}
	m.events = events
	if m.rest++; m.rest < restSamples {
		return false
	}
	switch {
	case !m.given:
		m.given = true
		return true
	case m.floor == 0:
		m.floor = max(heap, 1)
	case heap > m.floor+m.floor/8+restGrowth:
		m.floor = 0
		return true
	}
	return false
}

// heapBytes is how much memory of the system the heap has, in bytes: live objects, garbage, and what is free but was not given back.
func heapBytes() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64() + s[2].Value.Uint64()
}
