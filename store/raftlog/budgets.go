package raftlog

import "github.com/kiloraft/kiloraft/internal/budget"

// Budgets are the bounds of the memory that the log takes.
func (o Options) Budgets(lanes int) []budget.Line {
	_ = o.defaults() // what it refuses is no budget
	return []budget.Line{
		{What: "recent log entries, for followers", Bytes: o.CacheBytes, Per: "lane", Count: int64(lanes), Setting: "store.log-cache-size", Then: "the oldest are read from the disk"},
		{What: "buffers of the log", Bytes: buffersBytesMax, Then: "they are made anew"},
	}
}
