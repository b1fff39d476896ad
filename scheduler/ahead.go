package scheduler

import (
	"github.com/kiloraft/kiloraft/internal/prefetch"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// ahead reads ahead of a loop over replicas: while the loop serves one, the CPU is asked for the memory of those some places behind it. With
// thousands of shards next to nothing of a replica is in the CPU's caches when its turn comes, and an event would wait for some thirty lines,
// most of them found through another. So a replica takes some steps before it is served, each through what the one before has asked for:
//
//	         0            1                    2              3           4
//	replica ──► engine ──► leadership, queue ─► followers
//	        ──► log index ► place in the cache ► newest run ──► key's slot ─► its entry
//	        ──► machine ──► overlay
//
// At 10,000 shards that is a third of what a write costs. All of it is hints: nothing that is served depends on it, and a replica that changes meanwhile
// costs time at most.
type ahead struct {
	l     *Lane
	steps int
	ring  [aheadMax]aheadItem
	added int
	past  int             // so many of those added are served, or are just being
	taken [aheadSteps]int // so many have taken each step
}

type aheadItem struct {
	r   *replica
	tag uint64 // of the key that will be applied next, most likely; 0: not known
}

const (
	// aheadMax is how many replicas are on their way: their lines fit into the first cache. aheadGroup is how many take a step
	// together, so that what one of them does wait for the others wait for as well.
	aheadMax   = 16
	aheadGroup = 4
	aheadSteps = 5

	aheadAll     = aheadSteps // for an event of any kind
	aheadPropose = 3          // for a proposal, with which nothing is applied
	aheadRequest = 1          // to look at a request
)

// begin is called before a loop that wants so many steps taken.
func (a *ahead) begin(l *Lane, steps int) {
	a.l, a.steps, a.added, a.past, a.taken = l, steps, 0, 0, [aheadSteps]int{}
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
		for step := range a.steps {
			to := min(a.past+aheadGroup+2*(aheadSteps-step), a.added)
			for ; a.taken[step] < to; a.taken[step]++ {
				if it := &a.ring[a.taken[step]%aheadMax]; it.r != nil {
					it.step(a.l, step)
				}
			}
		}
	}
	a.past++
}

// step asks for what the step before has made known.
func (it *aheadItem) step(l *Lane, step int) {
	r := it.r
	switch step {
	case 0:
		prefetch.Of(r.eng)
		prefetch.Of(r.machine)
		prefetch.Slice(r.peers, 2)
		r.index.Ahead()
	case 1:
		lead, work, runs := r.eng.AheadParts()
		prefetch.Of(lead)
		prefetch.Of(work)
		prefetch.Slice(runs, 1)
		l.log.AheadRuns(r.index)
		if r.machine != nil {
			r.machine.AheadOverlay()
		}
	case 2:
		followers, bytes, queue, held := r.eng.AheadLists()
		prefetch.Slice(followers, 2)
		prefetch.Of(bytes)
		prefetch.Slice(queue, 1)
		prefetch.Slice(held, 1)
		l.log.AheadBody(r.index)
	case 3:
		if entry := raftlog.NewIter(l.log.AheadBody(r.index)); r.machine != nil && entry.Next() {
			it.tag = r.machine.AheadSlot(entry.Payload)
		}
	case 4:
		if r.machine != nil && it.tag != 0 {
			r.machine.AheadItem(it.tag)
		}
	}
}
