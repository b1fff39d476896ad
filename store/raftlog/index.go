package raftlog

import (
	"sort"

	"github.com/kiloraft/kiloraft/engine"
)

// replica is the index of one replica: what the log says of it, and where. Owned by its lane. Without entries it takes about
// 250 bytes, its place in the lane's map included.
//
// What appending and reading the newest run look at stands first, for lines of memory that were not touched for long are waited for.
type replica struct {
	key         Key
	committed   engine.LogID
	committedAt uint64 // see voteAt
	bytes       int64  // of the bodies of the live runs
	head        int32
	slot        int32 // index in Lane.list
	purgedAt    uint64
	purged      engine.LogID
	// tail is a copy of the last live run (count 0: there is none): most calls are about it alone.
	tail runRef
	// runs[head:] are the live runs, without gap, in order; their batches do not fall.
	runs []runRef
	vote engine.Vote
	// The batches with the newest vote, and above with the newest committed and purged; 0 if there is none. They pin their segments (rule Log5).
	voteAt uint64
}

// runRef is a run of live entries. Entries at or before the purged index may be in the first one.
type runRef struct {
	term, first uint64
	batch       uint64 // the batch that it was written in
	cached      uint64 // number in the cache
	off         uint32 // of the body, counted from the start of the batch's records
	size        uint32 // of the body on disk
	count       uint32 // live entries; on disk there are more behind them if flagCut
	flags       uint32
}

const (
	flagSpecial = 1 << iota
	flagCut
)

func (r *runRef) last() uint64 { return r.first + uint64(r.count) - 1 }

func (r *runRef) header() Run {
	return Run{Term: r.term, First: r.first, Count: int(r.count), Special: r.flags&flagSpecial != 0}
}

func (r *replica) live() []runRef { return r.runs[r.head:] }

// last is the newest entry, or the purged log id if there is none.
func (r *replica) last() engine.LogID {
	if r.tail.count > 0 {
		return engine.LogID{Term: r.tail.term, Index: r.tail.last()}
	}
	return r.purged
}

// setTail brings tail in line with runs.
func (r *replica) setTail() {
	r.tail = runRef{}
	if live := r.live(); len(live) > 0 {
		r.tail = live[len(live)-1]
	}
}

// run returns the i-th of live().
func (r *replica) run(i int) *runRef {
	if int(r.head)+i == len(r.runs)-1 {
		return &r.tail
	}
	return &r.runs[int(r.head)+i]
}

// find returns the position in live() of the run with this index, which must be in the log.
func (r *replica) find(index uint64) int {
	live := r.live()
	if r.tail.count > 0 && index >= r.tail.first {
		return len(live) - 1
	}
	return sort.Search(len(live), func(i int) bool { return live[i].last() >= index })
}

// push adds a run at the end. The slots of purged runs are reused, so that a log of steady length does not allocate.
func (r *replica) push(ref runRef) {
	if len(r.runs) == cap(r.runs) && int(r.head) > len(r.runs)/2 {
		n := copy(r.runs, r.live())
		r.runs, r.head = r.runs[:n], 0
	}
	r.runs = append(r.runs, ref)
	r.tail = ref
	r.bytes += int64(ref.size)
}

// minBatch is the oldest batch that holds something live of r, 0 if none does.
func (r *replica) minBatch() uint64 {
	low := uint64(0)
	add := func(batch uint64) {
		if batch != 0 && (low == 0 || batch < low) {
			low = batch
		}
	}
	add(r.voteAt)
	add(r.committedAt)
	add(r.purgedAt)
	if live := r.live(); len(live) > 0 {
		add(live[0].batch)
	}
	return low
}

// truncate forgets the entries from first on.
func (r *replica) truncate(first uint64, c *cache) {
	for {
		live := r.live()
		if len(live) == 0 {
			r.reset(c)
			return
		}
		run := &live[len(live)-1]
		if run.last() < first {
			return
		}
		if run.first < first && first > r.purged.Index+1 {
			run.count = uint32(first - run.first)
			run.flags |= flagCut
			r.tail = *run
			if body := c.get(run.cached); body != nil {
				c.replace(run.cached, body[:skipEntries(body, int(run.count))], 0)
			}
			return
		}
		r.bytes -= int64(run.size)
		c.drop(run.cached)
		r.runs = r.runs[:len(r.runs)-1]
		r.setTail()
	}
}

// purge forgets the entries up to index.
func (r *replica) purge(index uint64, c *cache) {
	for live := r.live(); len(live) > 0 && live[0].last() <= index; live = r.live() {
		r.bytes -= int64(live[0].size)
		c.drop(live[0].cached)
		r.head++
	}
	if len(r.live()) == 0 {
		r.reset(c)
	}
}

// reset forgets all entries, and the memory of all but a few.
func (r *replica) reset(c *cache) {
	for _, run := range r.live() {
		c.drop(run.cached)
	}
	r.runs, r.head, r.bytes, r.tail = r.runs[:0], 0, 0, runRef{}
	if cap(r.runs) > 16 {
		r.runs = nil
	}
}

// dropsAll tells whether a purge up to id leaves nothing: id is beyond the last entry, or the entry there is another one.
func (r *replica) dropsAll(id engine.LogID) bool {
	last := r.last()
	if id.Index > last.Index {
		return true
	}
	if id.Index <= r.purged.Index {
		return false
	}
	return r.live()[r.find(id.Index)].term != id.Term
}

// termRuns merges the live runs by term.
func (r *replica) termRuns() []engine.TermRun {
	var out []engine.TermRun
	for _, run := range r.live() {
		if n := len(out); n > 0 && out[n-1].Term == run.term {
			out[n-1].Last = run.last()
			continue
		}
		out = append(out, engine.TermRun{Term: run.term, First: max(run.first, r.purged.Index+1), Last: run.last()})
	}
	return out
}
