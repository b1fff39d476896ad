package shard

import (
	"bytes"
	"fmt"
	"slices"
	"sort"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// Split is the body of a CommandSplit: one entry that cuts a shard, the parent, at any number of keys. It names the parent's
// exact versions and is void if either has moved when it is applied, or the parent's membership is joint (rule Split3).
type Split struct {
	Version     uint64
	ConfVersion uint64
	// Leader is the node whose leader of the parent proposes the split. If it still leads in the entry's term when it applies it, its
	// replicas lead the children in their first term, without an election; else, or if it is 0, they elect.
	Leader engine.NodeID
	// Children are in order of Start. The parent keeps what is below the first one's, each child what is up to the next one's.
	Children []SplitChild
}

// SplitChild is a shard to be born.
type SplitChild struct {
	Shard engine.ShardID
	Start []byte
	// Replicas names the child's replica for each node that has one of the parent. Roles are the parent's.
	Replicas []SplitReplica
}

// SplitReplica is the child's replica on a node.
type SplitReplica struct {
	Node    engine.NodeID
	Replica engine.ReplicaID
}

// AppendSplitEntry appends the payload of a split: kind, stamp and [version, confVersion, [[shard, start, [node, replica …]] …], leader].
// Without a leader there is no such element, as in all that was written before there was one: who does not know it must not apply the entry.
func AppendSplitEntry(b []byte, stampMs int64, s *Split) []byte {
	return AppendSplit(appendEntryHeader(b, CommandSplit, stampMs), s)
}

// AppendSplit appends the body of a split.
func AppendSplit(b []byte, s *Split) []byte {
	n := 3
	if s.Leader != 0 {
		n = 4
	}
	b = mp.AppendUint(mp.AppendUint(mp.AppendArray(b, n), s.Version), s.ConfVersion)
	b = mp.AppendArray(b, len(s.Children))
	for i := range s.Children {
		c := &s.Children[i]
		b = mp.AppendUint(mp.AppendArray(b, 3), uint64(c.Shard))
		b = mp.AppendArray(mp.AppendBin(b, c.Start), 2*len(c.Replicas))
		for _, r := range c.Replicas {
			b = mp.AppendUint(mp.AppendUint(b, uint64(r.Node)), uint64(r.Replica))
		}
	}
	if s.Leader != 0 {
		b = mp.AppendUint(b, uint64(s.Leader))
	}
	return b
}

// DecodeSplit reads the body of a split, strictly, and copies what it keeps.
func DecodeSplit(b []byte) (*Split, error) {
	r := mp.NewReader(b)
	elements := r.Array()
	if elements != 3 && elements != 4 {
		r.Fail("elements of a split")
	}
	s := &Split{Version: r.Uint(), ConfVersion: r.Uint()}
	for n := boundedArray(&r, SplitChildrenMax); n > 0 && r.Err() == nil; n-- {
		r.ArrayOf(3)
		c := SplitChild{Shard: engine.ShardID(r.Uint()), Start: copied(r.Bin())}
		m := r.Array()
		if m%2 != 0 || m > 2*DescriptorReplicasMax {
			r.Fail("replicas of a split")
		}
		for ; m > 0 && r.Err() == nil; m -= 2 {
			c.Replicas = append(c.Replicas, SplitReplica{Node: engine.NodeID(r.Uint()), Replica: engine.ReplicaID(r.Uint())})
		}
		s.Children = append(s.Children, c)
	}
	if elements == 4 {
		if s.Leader = engine.NodeID(r.Uint()); s.Leader == 0 {
			r.Fail("leader of a split")
		}
	}
	if err := r.Finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", &InvalidError{What: "malformed split"}, err)
	}
	return s, nil
}

// Base says what the store holds below a machine's overlays (rule State1). It is the replica's own record, except between a
// split and its checkpoint: until then the data of the children is the parent's, as the parent's record has it.
type Base struct {
	Key     store.Key
	Extents []state.Extent
	Applied engine.LogID
}

// Birth is what applying a split makes on this node: the change that the split checkpoint writes for the parent, and the children. They
// become durable in one transaction (rule Split1).
type Birth struct {
	Parent   state.Change
	Children []Child
	Leader   engine.NodeID // as in Split
	// Base and Frozen are what the parent and all children lie upon until then. Frozen may be nil.
	Base   Base
	Frozen *state.Overlay
}

// Child is the replica of a new shard on this node. Record.Replica is 0 if the split names none for it.
type Child struct {
	Desc   *Descriptor
	Record state.Record
	born   Machine // as Open would make it of Record, but for sessions that it shares
}

// CheckSplit tells why a split would be void if it were applied now; nil if it would not.
func (m *Machine) CheckSplit(s *Split) error {
	switch {
	case m.key.Shard == MetaShardID:
		return invalid("the meta shard never splits")
	case m.mergeRole() != MergeNone: // rule Merge1
		return &VoidError{What: "split of a shard that is being merged", Now: *m.desc}
	case s.Version != m.desc.Version || s.ConfVersion != m.desc.ConfVersion:
		return &VoidError{What: fmt.Sprintf("split of version %d.%d", s.Version, s.ConfVersion), Now: *m.desc}
	case len(s.Children) == 0 || len(s.Children) > SplitChildrenMax:
		return invalid("a split into %d children", len(s.Children))
	}
	if m.joint() {
		return &VoidError{What: "split while the membership is joint", Now: *m.desc}
	}
	seen := make(map[engine.ShardID]bool, len(s.Children))
	prev := m.desc.Start
	for i := range s.Children {
		c := &s.Children[i]
		switch {
		case len(c.Start) > KeyBytesMax:
			return &TooLargeError{What: "key", Size: uint64(len(c.Start)), Max: KeyBytesMax}
		case bytes.Compare(c.Start, prev) <= 0 || !m.desc.Contains(c.Start):
			return invalid("split key %q is not inside of [%q, %q), or not above the one before", c.Start, m.desc.Start, m.desc.End)
		case c.Shard <= MetaShardID || c.Shard == m.key.Shard || seen[c.Shard]:
			return invalid("split names shard %d twice, or a shard that it must not", c.Shard)
		}
		if err := m.checkChildReplicas(c); err != nil {
			return err
		}
		seen[c.Shard] = true
		prev = c.Start
	}
	return nil
}

func (m *Machine) checkChildReplicas(c *SplitChild) error {
	if len(c.Replicas) != len(m.desc.Replicas) {
		return invalid("child %d has %d replicas, its parent %d", c.Shard, len(c.Replicas), len(m.desc.Replicas))
	}
	for i, r := range c.Replicas {
		if _, ok := m.desc.OnNode(r.Node); !ok || r.Replica == 0 {
			return invalid("child %d: replica %d on node %d", c.Shard, r.Replica, r.Node)
		}
		for _, o := range c.Replicas[:i] {
			if o.Node == r.Node || o.Replica == r.Replica {
				return invalid("child %d names a node or replica twice", c.Shard)
			}
		}
	}
	return nil
}

// ApplySplit applies the split entry id: in the data it moves nothing. If it is void it has no effect: then the birth is nil and
// ans.Refused says why. Nothing may be frozen: the machine stays frozen from here until Release, after the split checkpoint.
func (m *Machine) ApplySplit(id engine.LogID, payload []byte, ans *Answer) (*Birth, error) {
	if err := m.next(id); err != nil {
		return nil, err
	}
	kind, stamp, body, err := SplitEntry(payload)
	var s *Split
	if err == nil && kind == CommandSplit {
		if s, err = DecodeSplit(body); err != nil {
			err = fmt.Errorf("%w: %w", ErrUnknownCommand, err)
		}
	} else if err == nil {
		err = fmt.Errorf("%w: command %d is no split", ErrUnknownCommand, kind)
	}
	if err != nil {
		return nil, m.stop(id, err)
	}
	ans.Reset()
	if m.mergeRole() != MergeFrozen {
		m.passTime(stamp)
	}
	m.applied = id
	if err := m.CheckSplit(s); err != nil {
		ans.Refused = err
		return nil, nil
	}
	if m.freezing {
		panic("shard: split of a machine that is frozen")
	}
	return m.split(s), nil
}

// split divides everything but the data.
func (m *Machine) split(s *Split) *Birth {
	n := len(s.Children)
	b := &Birth{Base: m.below(), Children: make([]Child, n), Leader: s.Leader}
	m.base, m.freezing, m.frozenAt, m.shared = &b.Base, true, m.applied, true
	m.frozen, m.live = m.live, nil
	if m.frozen != nil {
		m.frozen.Freeze()
	}
	b.Frozen = m.frozen
	starts := make([][]byte, n)
	for i := range s.Children {
		starts[i] = s.Children[i].Start
	}
	tables := m.sessions.partition(starts)
	shared := encodeShared(&m.sessions)
	share := m.estimate.share(n + 1)
	node := engine.NodeID(0)
	if self, ok := m.desc.Replica(m.key.Replica); ok {
		node = self.Node
	}
	end := m.desc.End
	rest := m.extents
	born := make([]*Descriptor, n)
	var table []byte
	for i := n - 1; i >= 0; i-- {
		c := &s.Children[i]
		d := m.childDesc(c, end)
		born[i] = d
		end = c.Start
		var extents []state.Extent
		rest, extents = cutExtents(rest, c.Start)
		child := Machine{key: store.Key{Shard: c.Shard}, applied: bornAt, extents: extents, counter: m.counter, time: m.time,
			sessions: tables[i+1], estimate: share.clone(),
			membership: engine.MembershipAt{LogID: bornAt, Membership: MembershipOf(d)}}
		child.setDesc(d)
		if here, ok := d.OnNode(node); ok {
			child.key.Replica = here.Replica
		}
		table = shared.appendPart(table[:0], &child.sessions)
		b.Children[i] = Child{Desc: d, Record: child.record(table), born: child}
	}
	d := *m.desc
	d.Version++
	d.End = end
	m.setDesc(&d)
	m.extents, m.sessions, m.estimate = rest, tables[0], share
	m.setGone(append(born, m.gone()...))
	b.Parent = state.Change{Record: m.Record(), Overlay: m.frozen}
	return b
}

// childDesc makes the descriptor of a child: the parent's replicas under other ids.
func (m *Machine) childDesc(c *SplitChild, end []byte) *Descriptor {
	d := &Descriptor{Shard: c.Shard, Start: c.Start, End: end, Version: m.desc.Version + 1, ConfVersion: m.desc.ConfVersion,
		Replicas: make([]ReplicaDesc, 0, len(c.Replicas))}
	for _, r := range c.Replicas {
		p, _ := m.desc.OnNode(r.Node)
		d.Replicas = append(d.Replicas, ReplicaDesc{Replica: r.Replica, Node: r.Node, Role: p.Role})
	}
	slices.SortFunc(d.Replicas, func(a, b ReplicaDesc) int {
		if a.Replica < b.Replica {
			return -1
		}
		return 1
	})
	return d
}

// OpenChild makes the machine of a child that is not in the store yet: it reads what lies below in the parent's place, and is frozen
// until Release, after the split checkpoint. It is called once for each child.
func OpenChild(env *Env, c *Child, b *Birth) *Machine {
	m := c.born
	m.env, m.base, m.frozen = env, &b.Base, b.Frozen
	m.freezing, m.frozenAt, m.shared, m.borrowed = true, m.applied, true, true
	return &m
}

// cutExtents divides a record's extents at key.
func cutExtents(list []state.Extent, key []byte) (left, right []state.Extent) {
	for _, e := range list {
		switch {
		case len(e.End) > 0 && bytes.Compare(e.End, key) <= 0:
			left = append(left, e)
		case bytes.Compare(e.Start, key) >= 0:
			right = append(right, e)
		default:
			l, r := e, e
			l.End, r.Start = key, key
			left, right = append(left, l), append(right, r)
		}
	}
	return left, right
}

// partition divides the table at the starts of the children (rule Cluster1); the first part is the parent's. Every part keeps all
// sessions, for what they say of sequences that are never sent again, and shares those of which it has no row; rows go where a key with
// their prefix may be, which may be several parts.
func (t *sessions) partition(starts [][]byte) []sessions {
	parts := make([]sessions, len(starts)+1)
	bare := t.withoutRows()
	for i := range parts {
		parts[i] = sessions{floor: t.floor, list: slices.Clone(bare.list)}
	}
	for j, s := range t.list {
		for k := range s.rows {
			first, last := rowParts(&s.rows[k], starts)
			for i := first; i <= last; i++ {
				p := parts[i].own(j)
				p.rows = append(p.rows, s.rows[k])
				parts[i].rows++
			}
		}
	}
	return parts
}

// withoutRows returns the table without rows, its sessions shared.
func (t *sessions) withoutRows() sessions {
	bare := sessions{floor: t.floor}
	all := make([]session, len(t.list))
	for j, s := range t.list {
		all[j] = session{id: s.id, lowest: s.lowest, shared: true}
		bare.list = append(bare.list, &all[j])
	}
	return bare
}

// encodedShared is a table without rows as appendSessions encodes it, and where each of its sessions begins and the last one ends.
type encodedShared struct {
	bytes []byte
	at    []int
}

func encodeShared(t *sessions) *encodedShared {
	bare := t.withoutRows()
	e := &encodedShared{bytes: appendSessions(nil, &bare), at: make([]int, len(bare.list)+1)}
	at := len(e.bytes)
	e.at[len(bare.list)] = at
	for i := len(bare.list) - 1; i >= 0; i-- {
		at -= len(appendSession(nil, bare.list[i]))
		e.at[i] = at
	}
	return e
}

// appendPart encodes a part that partition has just made: most of its sessions are as the others have them.
func (e *encodedShared) appendPart(b []byte, part *sessions) []byte {
	from := 0
	for i, s := range part.list {
		if !s.shared {
			b = appendSession(append(b, e.bytes[from:e.at[i]]...), s)
			from = e.at[i+1]
		}
	}
	return append(b, e.bytes[from:]...)
}

// rowParts tells in which parts the first key of a row may lie: its prefix is padded with zeros, or cut.
func rowParts(r *row, starts [][]byte) (first, last int) {
	low := bytes.TrimRight(r.prefix[:], "\x00")
	first = sort.Search(len(starts), func(i int) bool { return bytes.Compare(starts[i], low) > 0 })
	high := r.prefix
	for i := len(high) - 1; ; i-- {
		if i < 0 {
			return first, len(starts) // all ones: no key is above
		}
		if high[i]++; high[i] != 0 {
			break
		}
	}
	last = sort.Search(len(starts), func(i int) bool { return bytes.Compare(starts[i], high[:]) >= 0 })
	return first, max(first, last)
}

// share returns the n-th part: where the keys are is not known.
func (e *estimate) share(n int) estimate {
	s := e.clone()
	s.live, s.puts, s.bytes = e.live/int64(n), e.puts/uint64(n), e.bytes/uint64(n)
	return s
}

func (e *estimate) clone() estimate {
	c := *e
	if e.sketch != nil {
		sketch := *e.sketch
		c.sketch = &sketch
	}
	return c
}

// leftAt returns the descriptor of the shard to which key has left, as far as this life of the machine has seen that; nil if it has not.
func (m *Machine) leftAt(key []byte) *Descriptor {
	left := m.gone()
	i := sort.Search(len(left), func(i int) bool { return bytes.Compare(left[i].Start, key) > 0 }) - 1
	if i < 0 || !left[i].Contains(key) {
		return nil
	}
	return left[i]
}

// HasLeft tells whether this life of the machine has seen a split that made all these shards.
func (m *Machine) HasLeft(ids []engine.ShardID) bool {
	left := m.gone()
	known := make(map[engine.ShardID]bool, len(left))
	for _, d := range left {
		known[d.Shard] = true
	}
	for _, id := range ids {
		if !known[id] {
			return false
		}
	}
	return true
}
