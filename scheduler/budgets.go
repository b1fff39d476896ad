package scheduler

import "github.com/kiloraft/kiloraft/internal/budget"

// Budgets are the bounds of the memory that the data on its way takes.
func (c Config) Budgets() []budget.Line {
	c.defaults()
	return []budget.Line{
		{What: "overlays: what was written since the last checkpoint", Bytes: overlaysHold * c.CheckpointBytes, Setting: "store.overlay-size",
			Then: "shards are checkpointed from a quarter on, writes refused from three quarters on, nothing applied from there"},
		{What: "writes under way", Bytes: c.InflightBytesMax, Setting: "sched.inflight-size", Then: "overloaded"},
		{What: "raft messages that wait for a lane", Bytes: int64(c.MailboxBytesMax), Per: "lane", Count: int64(c.Lanes), Setting: "sched.lanes", Then: "they are dropped, and repeated"},
	}
}
