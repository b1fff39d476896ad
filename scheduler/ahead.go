package scheduler

import (
	"github.com/kiloraft/kiloraft/internal/prefetch"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// ahead reads ahead of a loop over replicas: while the loop serves one, the CPU is asked for the memory of those some places behind it. With
// thousands of shards next to nothing of a replica is in the CPU's caches when its turn comes, and an event would wait for some thirty lines,
// most of them found through another. So a replica takes some steps before it is served, each through what the one before has asked for:
//
//	         0            1                      2             3            4
//	replica ──► engine ────► leadership, queue ──► followers
//	        ──► log's index ► place in the cache ► newest run ─► key's slot ► its entry
//	                        ► machine ───────────► overlay
//
// At 10,000 shards that is a third of what a write costs. All of it is hints: nothing that is served depends on it, and a replica that changes meanwhile
// costs time at most.
type ahead struct {
	l     *Lane
	why   aheadOf
	ring  [aheadMax]aheadItem
	added int
	past  int             // so many of those added are served, or are just being
	taken [aheadSteps]int // so many have taken each step
}

type aheadItem struct {
	r       *replica
	applies bool   // it may apply its newest run
	tag     uint64 // of the first key in that; 0: not known
}

// aheadOf is what a loop serves.
type aheadOf uint8

const (
	aheadOfMessages aheadOf = iota
	aheadOfFlushes
	aheadOfProposals
	aheadOfRequests
)

// steps is how many are of use.
func (o aheadOf) steps() int {
	switch o {
	case aheadOfRequests:
		return 1 // they are only looked at
	case aheadOfProposals:
		return 3 // nothing is applied
	}
	return aheadSteps
}

const (
	// aheadMax is how many replicas are on their way: their lines fit into the first cache. aheadGroup is how many take a step
	// together, so that what one of them does wait for the others wait for as well.
	aheadMax   = 16
	aheadGroup = 4
	aheadSteps = 5
)

// begin is called before a loop.
func (a *ahead) begin(l *Lane, why aheadOf) {
	a.l, a.why, a.added, a.past, a.taken = l, why, 0, 0, [aheadSteps]int{}
}

// next is called at the start of each pass of a loop over n replicas; at tells the i-th, nil if it is not known.
func (a *ahead) next(n int, at func(i int) *replica) {
	if a.past%aheadGroup == 0 {
		for to := min(n, a.past+aheadMax); a.added < to; {
			a.add(at(a.added))
		}
	}
	a.pass()
}

// add is for a loop that does not know how many it serves: it adds up to aheadMax that it has not served, and calls pass at the start of each pass.
func (a *ahead) add(r *replica) {
	a.ring[a.added%aheadMax] = aheadItem{r: r}
	a.added++
	prefetch.Of(r)
}

// pass lets those behind take the steps that it is time for: the first when there are fourteen or less before them, the last when there are six.
func (a *ahead) pass() {
	if a.past%aheadGroup == 0 {
		for step := range a.why.steps() {
			to := min(a.past+aheadGroup+2*(aheadSteps-step), a.added)
			for ; a.taken[step] < to; a.taken[step]++ {
				if it := &a.ring[a.taken[step]%aheadMax]; it.r != nil {
					it.step(a.l, a.why, step)
				}
			}
		}
	}
	a.past++
}

// step asks for what the step before has made known.
func (it *aheadItem) step(l *Lane, why aheadOf, step int) {
	r := it.r
	m := r.machine // nil, maybe, and not the one of the step before, maybe
	switch step {
	case 0:
		prefetch.Of(r.eng)
		if why == aheadOfRequests {
			prefetch.Of(m)
			break
		}
		prefetch.Slice(r.peers, 2)
		r.index.Ahead()
	case 1:
		lead, work, runs, applied := r.eng.AheadParts()
		prefetch.Of(lead)
		prefetch.Of(work)
		prefetch.Slice(runs, 1)
		last := l.log.AheadRuns(r.index)
		it.applies = applied < last && (why == aheadOfMessages || why == aheadOfFlushes && lead != nil)
		if it.applies {
			prefetch.Of(m)
		}
	case 2:
		followers, bytes, queue, held := r.eng.AheadLists()
		prefetch.Slice(followers, 2)
		prefetch.Of(bytes)
		prefetch.Slice(queue, 1)
		prefetch.Slice(held, 1)
		if it.applies && m != nil {
			l.log.AheadBody(r.index)
			m.AheadOverlay()
		}
	case 3:
		if it.applies && m != nil {
			if entry := raftlog.NewIter(l.log.AheadBody(r.index)); entry.Next() {
				it.tag = m.AheadSlot(entry.Payload)
			}
		}
	case 4:
		if it.tag != 0 && m != nil {
			m.AheadItem(it.tag)
		}
	}
}
