package sim

import (
	"bytes"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// route finds the shard that a call must go to, by what the client knows; if that does not suffice it asks the directory.
func (c *client) route(k *call) *shard.Descriptor {
	list := c.routes[k.id]
	if list == nil || c.s.rng.IntN(50) == 0 {
		list = c.s.dir.groupOf(k.id)
	}
	d := ownerOf(k, list)
	if d == nil {
		list = c.s.dir.groupOf(k.id)
		d = ownerOf(k, list)
	}
	if d == nil {
		c.s.fail("nobody owns the keys of group %d: %v", k.id, list)
	}
	c.routes[k.id] = list
	return d
}

// ownerOf finds the owner of a call's first key.
func ownerOf(k *call, list []*shard.Descriptor) *shard.Descriptor {
	switch {
	case len(k.read.Keys) > 0:
		return owner(list, k.read.Keys[0])
	case len(k.write.Ops) > 0:
		return owner(list, k.write.Ops[0].Key)
	case !k.scan.Reverse:
		return owner(list, k.scan.Start)
	}
	var best *shard.Descriptor // of what is just below the end
	for _, d := range list {
		if bytes.Compare(d.Start, k.scan.End) < 0 && bytes.Compare(d.End, k.scan.End) >= 0 && (best == nil || d.Version > best.Version) {
			best = d
		}
	}
	return best
}

// moved takes the news that a key is elsewhere. Such an attempt has had no effect; a write in a session whose keys are not all in one shard
// never has one (rule Cluster1).
func (c *client) moved(k *call, e *shard.MovedError) {
	c.s.happened("moved")
	if c.s.opt.Trace {
		c.s.tracef("client %d: %v moved: %v", c.id, k.to, e.Descriptors)
	}
	for i := range e.Descriptors {
		c.hear(k.id, &e.Descriptors[i])
	}
	last := k.write.Ops
	split := false // the write has keys in several shards
	if len(last) > 0 {
		first := owner(c.routes[k.id], last[0].Key)
		for i := range last {
			inside := first == nil || first.Contains(last[i].Key)
			if last[i].Kind == shard.OpDeleteRange {
				inside = first == nil || first.ContainsRange(last[i].Key, last[i].End)
			}
			split = split || !inside
		}
	}
	switch {
	case e.NotApplied && len(last) == 1 && last[0].Kind != shard.OpDeleteRange:
		c.s.fail("group %d: a write of one key was cut: %v", k.id, e)
	case e.NotApplied || split && k.session == nil:
		c.s.happened("write across shards refused")
		k.op, k.op2 = nil, nil
		c.finish(k, e, nil)
	default:
		c.retry(k, 0)
	}
}

// hear takes a descriptor from an answer.
func (c *client) hear(id engine.ShardID, d *shard.Descriptor) {
	list := append([]*shard.Descriptor(nil), c.routes[id]...)
	for i, old := range list {
		if old.Shard == d.Shard {
			if d.Newer(old) {
				list[i] = d.Clone()
			}
			c.routes[id] = list
			return
		}
	}
	c.routes[id] = append(list, d.Clone())
}
