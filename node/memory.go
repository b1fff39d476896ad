package node

const (
	// restEvents is how many events of engines a node at rest has between two samples, at most: what the balancer reads, and a few writes.
	restEvents = 100
	// restSamples is for how many samples a node must have been at rest to give memory back: a pause in the load is shorter.
	restSamples = 3
)

// memory decides when a node gives back to the system what its heap has grown by: once, when it comes to rest after it has worked. The
// collector keeps as much room as there is live data, for garbage that a node at rest does not make. It costs one collection.
type memory struct {
	events uint64 // as of the last sample
	rest   int    // samples at rest since it last worked
}

// giveBack takes the count of events at a sample, and tells whether it is time.
func (m *memory) giveBack(events uint64) bool {
	if events-m.events > restEvents {
		m.rest = 0
	} else {
		m.rest++
	}
	m.events = events
	return m.rest == restSamples
}
