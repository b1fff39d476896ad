package engine

import "fmt"

// termRuns is all that the engine keeps of the log: the last id that is not in it any more, and one row per run of entries
// of one term. A shard sees few terms between two purges, so this is a handful of rows however long the log is.
//
//	purged {2,9}   runs {2,10..14} {5,15..90}      last {5,90}
type termRuns struct {
	purged LogID
	// runs follow purged and each other without gap; terms grow strictly.
	runs []TermRun
}

func (l *termRuns) last() LogID {
	if n := len(l.runs); n > 0 {
		return LogID{l.runs[n-1].Term, l.runs[n-1].Last}
	}
	return l.purged
}

func (l *termRuns) lastIndex() uint64 {
	if n := len(l.runs); n > 0 {
		return l.runs[n-1].Last
	}
	return l.purged.Index
}

// term tells the term of the entry at index; false if it was purged or is not there yet. The purged id itself is known.
func (l *termRuns) term(index uint64) (uint64, bool) {
	if index == l.purged.Index {
		return l.purged.Term, true
	}
	if index < l.purged.Index {
		return 0, false
	}
	for i := len(l.runs) - 1; i >= 0; i-- { // almost always the last row
		if r := l.runs[i]; index >= r.First {
			return r.Term, index <= r.Last
		}
	}
	return 0, false
}

// id is the log id at an index that must be known.
func (l *termRuns) id(index uint64) LogID {
	t, ok := l.term(index)
	if !ok {
		panic(fmt.Sprintf("engine: no entry at %d (purged %v, last %v)", index, l.purged, l.last()))
	}
	return LogID{t, index}
}

func (l *termRuns) append(term, first, last uint64) {
	if first != l.lastIndex()+1 || last < first || term < l.last().Term {
		panic(fmt.Sprintf("engine: append {%d, %d..%d} behind %v", term, first, last, l.last()))
	}
	if n := len(l.runs); n > 0 && l.runs[n-1].Term == term {
		l.runs[n-1].Last = last
		return
	}
	l.runs = append(l.runs, TermRun{term, first, last})
}

// truncate forgets all entries from first on.
func (l *termRuns) truncate(first uint64) {
	for n := len(l.runs); n > 0; n = len(l.runs) {
		r := &l.runs[n-1]
		if r.Last < first {
			return
		}
		if r.First < first {
			r.Last = first - 1
			return
		}
		l.runs = l.runs[:n-1]
	}
}

// purge forgets all entries up to id, which may lie beyond the last one: then the log is empty and goes on behind id.
func (l *termRuns) purge(id LogID) {
	if id.Index <= l.purged.Index {
		return
	}
	l.purged = id
	n := 0
	for _, r := range l.runs {
		if r.Last <= id.Index {
			continue
		}
		r.First = max(r.First, id.Index+1)
		l.runs[n] = r
		n++
	}
	l.runs = l.runs[:n]
}

// differs tells the first index of run at which this log has another term or nothing; zero if it has all of the run.
// Indexes up to the purged one are taken as equal: they are committed.
func (l *termRuns) differs(run TermRun) uint64 {
	i := max(run.First, l.purged.Index+1)
	for _, r := range l.runs {
		if i > run.Last {
			return 0
		}
		if i < r.First || i > r.Last {
			continue
		}
		if r.Term != run.Term {
			return i
		}
		i = r.Last + 1
	}
	if i > run.Last {
		return 0
	}
	return i
}

// lastNotAbove tells the last known entry at or before index whose term is at most term: the place at which two logs may
// agree when they do not at index. It never goes below the purged id.
func (l *termRuns) lastNotAbove(index, term uint64) LogID {
	for i := len(l.runs) - 1; i >= 0; i-- {
		if r := l.runs[i]; r.First <= index && r.Term <= term {
			return LogID{r.Term, min(index, r.Last)}
		}
	}
	return l.purged
}
