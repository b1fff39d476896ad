package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// methodRates ([shard] → [reads, writes, bytes, key, share]: what is asked of a shard, by its leader) is for who looks at one shard. Sent: never
// renumber.
const methodRates api.Method = 83

// serveRates tells what is asked of a shard that this node leads.
func (c *core) serveRates(ctx context.Context, body []byte) ([]byte, error) {
	ids, err := decodeIDs[engine.ShardID](body)
	if err != nil || len(ids) != 1 {
		return nil, malformed(fmt.Errorf("rates: %w", err))
	}
	if err := c.collectLoads(ctx, false); err != nil {
		return nil, err
	}
	row, ok := c.book.row(ids[0])
	if !ok {
		return nil, &shard.NotLeaderError{}
	}
	rates := api.Rates{Reads: uint64(math.Ceil(row.Reads)), Writes: uint64(math.Ceil(row.Writes)), Bytes: uint64(math.Ceil(row.Traffic))}
	if row.requests() >= 1 { // else what was asked last says nothing about now
		keys, err := c.sched.LoadSamples(ctx, ids[0])
		if err != nil {
			return nil, err
		}
		choice := placement.ChooseSplitKey(row.Descriptor.Start, row.Descriptor.End, keys)
		rates.HotKey, rates.HotPercent = choice.Hot, uint64(100*choice.Share)
	}
	b := mp.AppendArray(nil, 5)
	for _, v := range [...]uint64{rates.Reads, rates.Writes, rates.Bytes} {
		b = mp.AppendUint(b, v)
	}
	return mp.AppendUint(mp.AppendBin(b, rates.HotKey), rates.HotPercent), nil
}

// row returns what the book has of a shard that this node leads.
func (b *loadBook) row(id engine.ShardID) (loadRow, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rows[id]
	if r == nil || !r.Leads {
		return loadRow{}, false
	}
	return r.loadRow, true
}

// rates asks the leader of a shard what is asked of it; nil if it does not say.
func (c *core) rates(ctx context.Context, id engine.ShardID, leader engine.NodeID) *api.Rates {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	body, err := c.n.call(ctx, leader, methodRates, 0, appendIDs(nil, []engine.ShardID{id}))
	if err == nil {
		r := mp.NewReader(body)
		more := r.ArrayMin(5)
		rates := &api.Rates{Reads: r.Uint(), Writes: r.Uint(), Bytes: r.Uint(), HotKey: bytes.Clone(r.Bin()), HotPercent: r.Uint()}
		r.Skip(more)
		if err = r.Finish(); err == nil {
			return rates
		}
	}
	if !errors.Is(err, shard.ErrNotLeader) {
		c.n.log.Debug("a leader does not tell what is asked of its shard", "shard", uint64(id), "node", uint64(leader), "err", err)
	}
	return nil
}
