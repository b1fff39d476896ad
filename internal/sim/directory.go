package sim

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
)

// directory is what the meta shard would know: of each shard the newest descriptor that any replica has applied, and which shards are no
// more. What it learns must fit together, always.
type directory struct {
	s      *sim
	newest map[engine.ShardID]*shard.Descriptor
	// older are the last descriptors of each shard, for those who come late.
	older map[engine.ShardID][]*shard.Descriptor
	known map[epoch]*shard.Descriptor
	dead  map[engine.ShardID]engine.ShardID // by whom it was absorbed
	ids   []engine.ShardID                  // the living, sorted
}

type epoch struct {
	shard                engine.ShardID
	version, confVersion uint64
}

func newDirectory(s *sim) *directory {
	return &directory{s: s, newest: map[engine.ShardID]*shard.Descriptor{}, older: map[engine.ShardID][]*shard.Descriptor{},
		known: map[epoch]*shard.Descriptor{}, dead: map[engine.ShardID]engine.ShardID{}}
}

// olderMax is how many descriptors are kept of each shard.
const olderMax = 4

// learn takes what a replica has applied: all that one entry has changed, in one go (rule Split5).
func (d *directory) learn(node engine.NodeID, events []scheduler.DescriptorEvent) {
	changed := false
	if len(events) > 1 && events[1].Absorber == 0 {
		d.s.check.bornAgain(node, events[1:])
	}
	for i := range events {
		changed = d.learnOne(node, &events[i]) || changed
	}
	if changed {
		d.tile(group(events[0].Descriptor.Start))
	}
}

func (d *directory) learnOne(node engine.NodeID, ev *scheduler.DescriptorEvent) bool {
	now := ev.Descriptor
	if ev.Absorber != 0 {
		if by, ok := d.dead[now.Shard]; ok {
			if by != ev.Absorber {
				d.s.fail("shard %d was absorbed by %d and by %d", now.Shard, by, ev.Absorber)
			}
			return false
		}
		d.dead[now.Shard] = ev.Absorber
		delete(d.newest, now.Shard)
		d.sort()
		return true
	}
	e := epoch{now.Shard, now.Version, now.ConfVersion}
	if was := d.known[e]; was != nil && !sameDescriptor(was, now) {
		d.s.fail("node %d: shard %d at %d.%d is %v, elsewhere it was %v", node, now.Shard, now.Version, now.ConfVersion, now, was)
	} else if was != nil {
		return false
	}
	d.known[e] = now
	if _, dead := d.dead[now.Shard]; dead {
		return false
	}
	old := d.newest[now.Shard]
	if old != nil && !now.Newer(old) {
		return false
	}
	if old != nil && (now.Version < old.Version || now.ConfVersion < old.ConfVersion || !bytes.Equal(now.Start, old.Start)) {
		d.s.fail("node %d: shard %d goes from %v to %v", node, now.Shard, old, now)
	}
	for _, r := range now.Replicas {
		if d.s.check.gone[place{r.Node, store.Key{Shard: now.Shard, Replica: r.Replica}}] {
			d.s.fail("node %d: %v names replica %d, which was removed", node, now, r.Replica)
		}
	}
	d.newest[now.Shard] = now
	d.older[now.Shard] = append(d.older[now.Shard], now)
	if n := len(d.older[now.Shard]); n > olderMax {
		d.older[now.Shard] = d.older[now.Shard][n-olderMax:]
	}
	if old == nil {
		d.sort()
	}
	return old == nil || old.Version != now.Version
}

func (d *directory) sort() {
	d.ids = d.ids[:0]
	for id := range d.newest {
		d.ids = append(d.ids, id)
	}
	slices.Sort(d.ids)
}

func sameDescriptor(a, b *shard.Descriptor) bool {
	return bytes.Equal(a.Start, b.Start) && bytes.Equal(a.End, b.End) && slices.Equal(a.Replicas, b.Replicas)
}

// group is the first shard of a range of keys: see sim.groups.
func group(key []byte) engine.ShardID {
	var id engine.ShardID
	if _, err := fmt.Sscanf(string(key), "s%05d/", &id); err != nil {
		panic(err)
	}
	return id
}

// groupOf lists the living shards of a group in order of their keys.
func (d *directory) groupOf(id engine.ShardID) []*shard.Descriptor {
	var out []*shard.Descriptor
	start, end := groupRange(id)
	for _, x := range d.ids {
		if t := d.newest[x]; bytes.Compare(t.Start, start) >= 0 && bytes.Compare(t.Start, end) < 0 {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *shard.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	return out
}

func groupRange(id engine.ShardID) (start, end []byte) {
	return fmt.Appendf(nil, "s%05d/", id), fmt.Appendf(nil, "s%05d0", id)
}

// owner is the shard of highest version that covers a key (rule Split5).
func owner(list []*shard.Descriptor, key []byte) *shard.Descriptor {
	var best *shard.Descriptor
	for _, t := range list {
		if t.Contains(key) && (best == nil || t.Version > best.Version) {
			best = t
		}
	}
	return best
}

// tile requires that each key of a group has exactly one owner.
func (d *directory) tile(id engine.ShardID) {
	list := d.groupOf(id)
	pos, end := groupRange(id)
	for bytes.Compare(pos, end) < 0 {
		o := owner(list, pos)
		if o == nil {
			d.s.fail("nobody owns %q: %v", pos, list)
		}
		next := o.End
		for _, t := range list {
			if t != o && t.Version == o.Version && t.Contains(pos) {
				d.s.fail("%v and %v both own %q", t, o, pos)
			}
			if t.Version > o.Version && bytes.Compare(t.Start, pos) > 0 && bytes.Compare(t.Start, next) < 0 {
				next = t.Start
			}
		}
		pos = next
	}
}
