package scheduler

import (
	"sync/atomic"

	"github.com/kiloraft/kiloraft/engine"
)

// A node that takes more writes than it can do lets them wait, each longer than the one before, until clients give up and ask again: then it
// works for nobody. So how many may be under way follows what is done:
//
//	writes take less than half of waitMax ──► the bound grows, up to Config.InflightMax
//	they take longer ──► it is what is done within waitMax, inflightMin at least
//
// What is refused at once (ErrOverloaded) costs little, and the client asks again after a pause that grows.

const (
	// waitMax is what a write may take: a quarter of what a client waits for an answer before it asks again (router.Config.AttemptTimeout), for
	// what it waits on the way here and back is not seen here.
	waitMax = engine.Duration(500e6)
	// inflightMin is what a node always takes: a few writes that wait for something else are no sign of too many.
	inflightMin = 1024
	// paceMemory is over how long the rate of writes is averaged.
	paceMemory = 400e6
)

// pace bounds the writes under way. limit is for all; the rest is Heartbeats's.
type pace struct {
	limit atomic.Int64

	at         engine.Instant // when it was last looked
	count, sum uint64         // of CommitLatency then
	rate       float64        // writes per nanosecond
}

// adjust looks at what was answered since it last looked: count and sum are those of all answered writes, and of the nanoseconds that they took.
func (p *pace) adjust(now engine.Instant, count, sum uint64, most int) {
	n, took, dt := count-p.count, sum-p.sum, float64(now-p.at)
	first := p.at == 0
	p.at, p.count, p.sum = now, count, sum
	if first || n == 0 || dt <= 0 { // nothing was answered: that tells nothing of what can be done
		return
	}
	p.rate += (float64(n)/dt - p.rate) * min(1, dt/paceMemory)
	limit := p.limit.Load()
	if took/n < uint64(waitMax)/2 {
		limit += limit / 4
	} else {
		limit = max(int64(p.rate*float64(waitMax)), inflightMin)
	}
	p.limit.Store(min(limit, int64(most)))
}
