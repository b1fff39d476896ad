package raftlog

import "github.com/kiloraft/kiloraft/internal/prefetch"

// The methods of this file ask the CPU for what appending to the log of one replica and reading its newest run will look at (see package prefetch).
// Each follows what the one before has asked for, so some time should lie between them. Nothing changes.

// Ahead is the first.
func (ix Index) Ahead() { prefetch.Of(ix.r) }

// AheadRuns is the second. It returns the index of the newest entry.
func (a *Lane) AheadRuns(ix Index) (last uint64) {
	r := ix.r
	if r == nil {
		return 0
	}
	if n := len(r.runs); n < cap(r.runs) {
		prefetch.Of(&r.runs[:n+1][n])
	}
	if c := &a.cache; r.tail.count > 0 && r.tail.cached >= c.first && r.tail.cached < c.next {
		prefetch.Of(c.at(r.tail.cached))
	}
	return r.last().Index
}

// AheadBody is the third. It returns the body of the newest run, nil if it is not cached.
func (a *Lane) AheadBody(ix Index) []byte {
	if ix.r == nil || ix.r.tail.count == 0 {
		return nil
	}
	body := a.cache.get(ix.r.tail.cached)
	prefetch.Slice(body, aheadBytes)
	return body
}

// aheadBytes is how much of a body is asked for: behind that the CPU sees by itself where it goes.
const aheadBytes = 192
