package node

import (
	"bytes"
	"slices"
	"sort"
	"sync"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// view is this node's picture of the cluster: what meta says, with what its own replicas have learnt since. It answers map
// requests, routes requests, and is never the truth: every replica checks what it is asked (DESIGN 7).
type view struct {
	mu      sync.RWMutex
	shards  map[engine.ShardID]viewShard
	nodes   map[engine.NodeID]placement.NodeRecord
	sorted  []*shard.Descriptor // user shards by start key; nil: to be made
	changes uint64              // of shards and nodes, counted
}

// viewShard is what is known of one shard. They are together for there are thousands. One that was absorbed stays, but is not found, until meta has its
// dead-shard record, see core.forgetBuried: until then it may be needed to write that.
type viewShard struct {
	desc   *shard.Descriptor // immutable
	leader engine.NodeID     // as last heard; 0: unknown
}

func newView() *view {
	return &view{shards: map[engine.ShardID]viewShard{}, nodes: map[engine.NodeID]placement.NodeRecord{}}
}

// learn takes a descriptor if it is newer than the known one.
func (v *view) learn(d *shard.Descriptor) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.learnLocked(d)
}

func (v *view) learnLocked(d *shard.Descriptor) {
	if s, ok := v.shards[d.Shard]; !ok || d.Newer(s.desc) {
		s.desc = d
		v.shards[d.Shard] = s
		v.sorted = nil
		v.changes++
	}
}

// onDescriptor takes what a local replica has learnt. It is called on a lane.
func (v *view) onDescriptor(ev scheduler.DescriptorEvent) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if d := ev.Descriptor; d != nil {
		if s, ok := v.shards[d.Shard]; ok && s.desc != d && sameVersion(s.desc, d) {
			s.desc = d // the replica holds it in any case
			v.shards[d.Shard], v.sorted = s, nil
		}
		v.learnLocked(d)
	}
	v.setLeaderLocked(ev.Shard, ev.Leader)
}

// known returns what is already in memory and says the same as d, or d: thousands of shards are named in several places.
func (v *view) known(d *shard.Descriptor) *shard.Descriptor {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if old := v.shards[d.Shard].desc; old != nil && sameVersion(old, d) {
		return old
	}
	return d
}

func sameVersion(a, b *shard.Descriptor) bool {
	return a.Version == b.Version && a.ConfVersion == b.ConfVersion
}

// leader returns the last known leader of a shard.
func (v *view) leader(id engine.ShardID) engine.NodeID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s := v.shards[id]
	if s.leader != 0 {
		if _, ok := s.desc.OnNode(s.leader); !ok {
			return 0 // it led once, and its replica has moved away
		}
	}
	return s.leader
}

func (v *view) setLeader(id engine.ShardID, node engine.NodeID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.setLeaderLocked(id, node)
}

func (v *view) setLeaderLocked(id engine.ShardID, node engine.NodeID) {
	if s, ok := v.shards[id]; ok { // else it is dead, or the descriptor comes yet, and the leader is found by it
		s.leader = node
		v.shards[id] = s
	}
}

// shard returns what was last heard of a shard, though it may have been absorbed.
func (v *view) shard(id engine.ShardID) *shard.Descriptor {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.shards[id].desc
}

// find returns a shard that lives as far as is known; nil if there is none.
func (v *view) find(id engine.ShardID) *shard.Descriptor {
	d := v.shard(id)
	if d == nil {
		return nil
	}
	list := v.byStart()
	if i := sort.Search(len(list), func(i int) bool { return bytes.Compare(list[i].Start, d.Start) > 0 }); i > 0 && list[i-1].ProvesDead(d) {
		return nil
	}
	return d
}

// among returns the shards from first to last that are known, dead ones as well.
func (v *view) among(first, last engine.ShardID) (list []engine.ShardID) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for id := range v.shards {
		if first <= id && id <= last {
			list = append(list, id)
		}
	}
	return list
}

// forget drops a shard that is dead for good. A report of it that comes late is dropped when meta is looked into again; until then nobody finds it, for the shard
// that absorbed it is known.
func (v *view) forget(id engine.ShardID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.shards[id]; ok {
		delete(v.shards, id)
		v.sorted = nil
	}
}

func (v *view) addr(id engine.NodeID) string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.nodes[id].Addr
}

func (v *view) setNodes(list []placement.NodeRecord) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range list {
		if old, ok := v.nodes[n.ID]; !ok || !old.Equal(&n) {
			v.nodes[n.ID] = n
			v.changes++
		}
	}
}

// nodeList returns the nodes in order of their ids.
func (v *view) nodeList() []placement.NodeRecord {
	v.mu.RLock()
	list := make([]placement.NodeRecord, 0, len(v.nodes))
	for _, n := range v.nodes {
		list = append(list, n)
	}
	v.mu.RUnlock()
	slices.SortFunc(list, func(a, b placement.NodeRecord) int { return int(a.ID) - int(b.ID) })
	return list
}

// byStart returns the user shards by start key. Where two begin at one key, the higher Version owns it (rule Split5).
func (v *view) byStart() []*shard.Descriptor {
	v.mu.RLock()
	list := v.sorted
	v.mu.RUnlock()
	if list != nil {
		return list
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sorted != nil {
		return v.sorted
	}
	list = make([]*shard.Descriptor, 0, len(v.shards))
	for id, s := range v.shards {
		if id != shard.MetaShardID {
			list = append(list, s.desc)
		}
	}
	slices.SortFunc(list, func(a, b *shard.Descriptor) int {
		if c := bytes.Compare(a.Start, b.Start); c != 0 {
			return c
		}
		return int(a.Version) - int(b.Version)
	})
	v.sorted = withoutDead(list)
	return v.sorted
}

// withoutDead removes, from a list by start key and version, the shards whose start another one with a higher Version covers: they were absorbed
// (rule Split5). The other one begins further left, or, if what was absorbed was split off again at the same key, there.
func withoutDead(list []*shard.Descriptor) []*shard.Descriptor {
	live := list[:0]
	for _, d := range list {
		n := len(live)
		switch {
		case n > 0 && bytes.Equal(live[n-1].Start, d.Start):
			live[n-1] = d
		case n == 0 || !live[n-1].ProvesDead(d):
			live = append(live, d)
		}
	}
	return live
}

// page returns up to limit user shards in order, from the one that owns the key from on, and where the next page begins if there are more.
func (v *view) page(from []byte, limit int) (page []*shard.Descriptor, next []byte, more bool) {
	list := v.byStart()
	i := sort.Search(len(list), func(i int) bool { return bytes.Compare(list[i].Start, from) > 0 })
	if i > 0 && list[i-1].Contains(from) {
		i--
	}
	rest := list[i:]
	if len(rest) <= limit {
		return rest, nil, false
	}
	return rest[:limit], rest[limit].Start, true
}

// covering returns the user shard that owns a key; nil if none is known.
func (v *view) covering(key []byte) *shard.Descriptor {
	if list, _, _ := v.page(key, 1); len(list) > 0 && list[0].Contains(key) {
		return list[0]
	}
	return nil
}

// leading returns the user shards that node leads, by start key, and how many have a leader that is known.
func (v *view) leading(node engine.NodeID) (known int, led []*shard.Descriptor) {
	list := v.byStart()
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, d := range list {
		l := v.shards[d.Shard].leader
		if l != 0 {
			known++
		}
		if l == node {
			led = append(led, d)
		}
	}
	return known, led
}
