package node

import (
	"cmp"
	"context"
	"io"
	"slices"

	"github.com/kiloraft/kiloraft/internal/escape"
)

// hottestMax is how many shards Now names.
const hottestMax = 20

// Now is what a node is doing, for who watches it.
type Now struct {
	// Sample is the newest of the history; nil in the first seconds.
	Sample *Sample `json:"sample"`
	// Hottest are the shards led here that are asked for most, the busiest first.
	Hottest []HotShard `json:"hottest"`
}

// HotShard is the load of a shard, per second.
type HotShard struct {
	Shard  uint64  `json:"shard"`
	Start  string  `json:"start"` // unprintable bytes as \xNN
	Reads  float64 `json:"reads"`
	Writes float64 `json:"writes"`
	Bytes  float64 `json:"bytes"` // read and written
}

func writeNow(n *Node, ctx context.Context, _ uint64, w io.Writer) error {
	now := Now{Sample: n.history.newest(), Hottest: []HotShard{}}
	if c := n.core.Load(); c != nil {
		if err := c.collectLoads(ctx, false); err != nil {
			return err
		}
		now.Hottest = c.book.hottest(hottestMax)
	}
	return writeJSON(w, &now)
}

// newest returns the last sample, or nil.
func (h *history) newest() *Sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.samples) == 0 {
		return nil
	}
	s := h.samples[len(h.samples)-1]
	return &s
}

// hottest returns the shards with most requests per second; it looks at those only that have any.
func (b *loadBook) hottest(most int) []HotShard {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*bookRow, 0, len(b.active))
	for _, r := range b.active {
		if r.requests() >= rateFloor {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(x, y *bookRow) int {
		return cmp.Or(cmp.Compare(y.requests(), x.requests()), cmp.Compare(x.Shard, y.Shard))
	})
	out := []HotShard{}
	for _, r := range list[:min(most, len(list))] {
		out = append(out, HotShard{uint64(r.Shard), escape.String(r.Descriptor.Start), r.Reads, r.Writes, r.Traffic})
	}
	return out
}
