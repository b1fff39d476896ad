package node

import (
	"github.com/kiloraft/kiloraft/internal/budget"
	"github.com/kiloraft/kiloraft/internal/door"
	"github.com/kiloraft/kiloraft/internal/resp"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/transport"
)

// Budgets are the bounds of the memory that a node with this configuration takes, beside what its shards are. They are listed in docs/sizing.md.
func (c *Config) Budgets() []budget.Line {
	data := scheduler.Config{Lanes: c.Lanes, CheckpointBytes: c.OverlayBytesMax, InflightBytesMax: c.InflightBytesMax}
	log := raftlog.Options{SegmentBytes: c.LogSegmentBytes, CacheBytes: c.LogCacheBytes}
	lines := data.Budgets()
	lines = append(lines, log.Budgets(max(1, c.Lanes))...)
	lines = append(lines, transport.Limits{}.Budgets()...)
	lines = append(lines, resp.Config{}.Budgets()...)
	return append(lines,
		budget.Line{What: "HTTP: header and buffers", Bytes: httpHeaderMax + httpBuffers, Per: "connection", Count: httpConnsMax, Then: "the longest idle connection is closed, or the new one"},
		budget.Line{What: "the kernel: what a client has sent and the node has not read, and what it has no room for", Bytes: 2 * (door.SocketInMax + door.SocketUnsentMax), Per: "connection",
			Then: "the client sends no more, and the node writes no more", Within: true})
}
