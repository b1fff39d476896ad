package node

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

const (
	// autoReshapesMax bounds the automatic splits and merges that run at a time.
	autoReshapesMax = 8
	// hotFor is how long a shard must be hot before it is split, in intervals of loadsEvery: a burst is over by then.
	hotFor = 6
	// restFor is for how many a shard that could not be split is left alone.
	restFor = 12
	// hotKeyKeep is for how many intervals a hot key is reported after it was last seen to be one.
	hotKeyKeep = 24
)

// reshaper is what the driver remembers of automatic splits and merges. It belongs to the goroutine that drives, but for what mu guards.
type reshaper struct {
	plan *placement.Reshaper
	auto map[engine.ShardID]bool // shards that automatic splits have made; nil: not read yet
	hot  map[engine.ShardID]hotKey
}

// hotKey is a key that takes most of its shard's requests: no split can help.
type hotKey struct {
	key   []byte
	share float64
	load  float64
	seen  time.Time
}

func newReshaper() reshaper {
	return reshaper{plan: placement.NewReshaper(), hot: map[engine.ShardID]hotKey{}}
}

// reshapeConfig is what the configuration says of automatic splits and merges.
func (c *Config) reshapeConfig() placement.ReshapeConfig {
	out := placement.ReshapeConfig{SplitBytes: 64 << 20, SplitLoad: 20_000, HotMS: hotFor * c.loadsEvery().Milliseconds(), MergeMS: time.Hour.Milliseconds()}
	if c.AutoSplitSize != 0 {
		out.SplitBytes = uint64(max(c.AutoSplitSize, 0))
	}
	if c.AutoSplitLoad != 0 {
		out.SplitLoad = float64(max(c.AutoSplitLoad, 0))
	}
	if c.AutoMergeAfter != 0 {
		out.MergeMS = max(c.AutoMergeAfter.Milliseconds(), 0)
	}
	return out
}

// reshape starts the splits and merges that the loads ask for.
func (d *driver) reshape(ctx context.Context, snap *placement.Snapshot, descs []*shard.Descriptor, running []placement.Op) error {
	cfg := d.c.n.cfg.reshapeConfig()
	if cfg.SplitBytes == 0 && cfg.SplitLoad == 0 && cfg.MergeMS == 0 {
		return nil
	}
	if err := d.readAuto(ctx); err != nil {
		return err
	}
	cfg.Max = autoReshapesMax
	for i := range running {
		if o := &running[i]; (o.Kind == placement.OpSplit || o.Kind == placement.OpMerge) && o.Why != "operator" {
			cfg.Max--
		}
	}
	if cfg.Max <= 0 {
		return nil
	}
	list := make([]placement.ReshapeShard, 0, len(descs))
	for i, desc := range descs {
		if desc.Shard == shard.MetaShardID {
			continue
		}
		s := &snap.Shards[i]
		list = append(list, placement.ReshapeShard{ID: desc.Shard, Start: desc.Start, End: desc.End, Bytes: s.Bytes, Load: s.Load, Busy: s.Busy,
			ByAuto: d.shape.auto[desc.Shard]})
	}
	now := time.Now()
	d.coolHotKeys(now)
	for _, p := range d.shape.plan.Plan(now.UnixMilli(), list, cfg) {
		if err := d.startReshape(ctx, &p); err != nil {
			d.c.n.log.Info("a shard cannot be reshaped now", "shard", uint64(p.Shard), "why", p.Why, "err", err)
			d.restShard(p.Shard)
		}
	}
	return nil
}

func (d *driver) restShard(id engine.ShardID) {
	d.shape.plan.Rest(time.Now().Add(restFor*d.c.n.cfg.loadsEvery()).UnixMilli(), id)
}

// startReshape records the operation for one proposal.
func (d *driver) startReshape(ctx context.Context, p *placement.Reshape) error {
	c := d.c
	o := placement.Op{Kind: placement.OpSplit, Shard: p.Shard, Parts: p.Parts, Why: p.Why}
	var err error
	switch p.Kind {
	case placement.MergeCold:
		o.Kind, o.Other = placement.OpMerge, p.Other
		err = c.checkMerge(ctx, &o)
	case placement.SplitByLoad:
		if o.Keys, err = d.halve(ctx, p.Shard); err == nil && o.Keys == nil {
			return nil
		}
		fallthrough
	default:
		if err == nil {
			err = c.checkSplit(ctx, &o)
		}
	}
	if err != nil {
		return err
	}
	err = c.createOp(ctx, &o, func() (conds []shard.Condition, ops []shard.Op, err error) {
		if o.Kind == placement.OpSplit {
			for i := range o.Keys {
				ops = append(ops, put(placement.AutoKey(o.Other+engine.ShardID(i)), []byte{1}))
			}
		}
		return nil, ops, nil
	})
	if err != nil {
		return err
	}
	if o.Kind == placement.OpSplit {
		for i := range o.Keys {
			d.shape.auto[o.Other+engine.ShardID(i)] = true
		}
	}
	c.n.log.Info("operation started", "op", o.ID, "what", o.String(), "why", o.Why)
	d.ring()
	return nil
}

// halve finds the key that halves the load of a shard; none if one key takes most of it, which is noted, or if it cannot be said.
func (d *driver) halve(ctx context.Context, id engine.ShardID) ([][]byte, error) {
	c := d.c
	row := c.living(d.table, id)
	if row == nil {
		return nil, &shard.UnavailableError{Reason: fmt.Sprintf("shard %d has no leader", id)}
	}
	body, err := c.n.call(ctx, row.Node, methodSamples, 0, appendIDs(nil, []engine.ShardID{id}))
	if err != nil {
		return nil, err
	}
	r := mp.NewReader(body)
	var samples [][]byte
	for n := r.Array(); n > 0 && r.Err() == nil; n-- {
		samples = append(samples, bytes.Clone(r.Bin()))
	}
	if err := r.Finish(); err != nil {
		return nil, malformed(err)
	}
	choice := placement.ChooseSplitKey(row.Descriptor.Start, row.Descriptor.End, samples)
	if choice.Key != nil {
		return [][]byte{choice.Key}, nil
	}
	if choice.Hot != nil {
		d.restShard(id)
		d.mu.Lock()
		d.shape.hot[id] = hotKey{key: choice.Hot, share: choice.Share, load: row.requests(), seen: time.Now()}
		d.mu.Unlock()
	}
	return nil, nil
}

// coolHotKeys forgets the keys that were not found hot for long.
func (d *driver) coolHotKeys(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, h := range d.shape.hot {
		if now.Sub(h.seen) > max(2*time.Minute, hotKeyKeep*d.c.n.cfg.loadsEvery()) {
			delete(d.shape.hot, id)
		}
	}
}

// readAuto reads once which shards automatic splits have made.
func (d *driver) readAuto(ctx context.Context) error {
	if d.shape.auto != nil {
		return nil
	}
	auto := map[engine.ShardID]bool{}
	err := d.c.meta.scan(ctx, []byte(placement.PrefixAuto), placement.PrefixEnd(placement.PrefixAuto), func(key, _ []byte) error {
		id, err := placement.KeyID(placement.PrefixAuto, key)
		auto[engine.ShardID(id)] = true
		return err
	})
	if err == nil {
		d.shape.auto = auto
	}
	return err
}
