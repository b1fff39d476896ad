package router

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// Map is the range map: which shard owns a user key, where its replicas are, and who probably leads it. The meta shard stands
// beside it. What the map says may be out of date; the shards themselves know.
type Map struct {
	mu     sync.RWMutex
	pieces []piece // sorted by start, without overlap; may have gaps
	// prefixes are the first bytes of the starts of pieces: most of a search needs nothing else, and they lie close together.
	prefixes []uint64
	// gaps is how many pieces have keys behind them that belong to none: with none of these the end of a piece need not be looked at.
	gaps int
	// shards holds the newest descriptor known of every shard, also of those that own nothing any more: an older one that
	// arrives late must not bring back its old range.
	shards  map[engine.ShardID]*shard.Descriptor
	leaders map[engine.ShardID]engine.NodeID
	addrs   map[engine.NodeID]string
}

// piece is a range and who owns it: all of a descriptor's range, or what newer ones leave of it.
type piece struct {
	start, end []byte // an empty end is plus infinity
	desc       *shard.Descriptor
}

func (p *piece) contains(key []byte) bool {
	return bytes.Compare(key, p.start) >= 0 && (len(p.end) == 0 || bytes.Compare(key, p.end) < 0)
}

// NewMap returns an empty map.
func NewMap() *Map {
	return &Map{shards: map[engine.ShardID]*shard.Descriptor{}, leaders: map[engine.ShardID]engine.NodeID{}, addrs: map[engine.NodeID]string{}}
}

// Route is where a request goes.
type Route struct {
	Desc *shard.Descriptor
	// Start and End are the part of the descriptor's range that, as far as the map knows, is still its own.
	Start, End []byte
	Leader     engine.NodeID // a hint; 0 unknown
}

// Contains tells whether key is in the route's range.
func (r *Route) Contains(key []byte) bool {
	p := piece{start: r.Start, end: r.End}
	return p.contains(key)
}

// Lookup returns the owner of a user key.
func (m *Map) Lookup(key []byte) (Route, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i := m.after(key) - 1
	if i < 0 || m.gaps > 0 && !m.pieces[i].contains(key) {
		return Route{}, false
	}
	return m.route(&m.pieces[i]), true
}

// LookupBefore returns the owner of the keys just below end; an empty end is plus infinity.
func (m *Map) LookupBefore(end []byte) (Route, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i := len(m.pieces) - 1
	if len(end) > 0 {
		i, _ = slices.BinarySearchFunc(m.pieces, end, func(p piece, k []byte) int { return bytes.Compare(p.start, k) })
		i-- // the last that starts below end
	}
	if i < 0 {
		return Route{}, false
	}
	p := &m.pieces[i]
	if len(p.end) > 0 && (len(end) == 0 || bytes.Compare(p.end, end) < 0) {
		return Route{}, false
	}
	return m.route(p), true
}

// Shard returns the route to a shard by its id.
func (m *Map) Shard(id engine.ShardID) (Route, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := m.shards[id]
	if d == nil {
		return Route{}, false
	}
	return Route{Desc: d, Start: d.Start, End: d.End, Leader: m.leaders[id]}, true
}

// after returns the index of the first piece that starts after key.
func (m *Map) after(key []byte) int {
	prefix := prefixOf(key)
	lo, hi := 0, len(m.prefixes)
	for lo < hi {
		i := int(uint(lo+hi) >> 1)
		if p := m.prefixes[i]; p < prefix || p == prefix && bytes.Compare(m.pieces[i].start, key) <= 0 {
			lo = i + 1
		} else {
			hi = i
		}
	}
	return lo
}

// prefixOf returns the first bytes of a key as a number: of two keys the lower one's is never higher.
func prefixOf(key []byte) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var b [8]byte
	copy(b[:], key)
	return binary.BigEndian.Uint64(b[:])
}

func (m *Map) route(p *piece) Route {
	return Route{Desc: p.desc, Start: p.start, End: p.end, Leader: m.leaders[p.desc.Shard]}
}

// Update takes descriptors in, and tells whether any of them was news.
func (m *Map) Update(descs ...shard.Descriptor) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	news := false
	for i := range descs {
		d := &descs[i]
		if d.Shard == 0 || d.Validate() != nil {
			continue
		}
		if old := m.shards[d.Shard]; old != nil && !d.Newer(old) {
			continue
		}
		m.insert(d.Clone())
		news = true
	}
	return news
}

func (m *Map) insert(d *shard.Descriptor) {
	old := m.shards[d.Shard]
	m.shards[d.Shard] = d
	if l := m.leaders[d.Shard]; l != 0 {
		if _, ok := d.OnNode(l); !ok {
			delete(m.leaders, d.Shard)
		}
	}
	if d.Shard == shard.MetaShardID {
		return // its keys are no user keys
	}
	if old != nil && old.Version == d.Version { // only its replicas changed
		for i := range m.pieces {
			if m.pieces[i].desc == old {
				m.pieces[i].desc = d
			}
		}
		return
	}
	if m.fill(d, old) {
		return
	}
	mine := []piece{{start: d.Start, end: d.End, desc: d}}
	kept := make([]piece, 0, len(m.pieces)+2)
	for _, p := range m.pieces {
		switch {
		case p.desc.Shard == d.Shard:
			// replaced
		case p.desc.Version >= d.Version:
			kept = append(kept, p)
			mine = cut(mine, p.start, p.end)
		default:
			kept = append(kept, cut([]piece{p}, d.Start, d.End)...)
		}
	}
	m.pieces = append(kept, mine...)
	slices.SortFunc(m.pieces, func(a, b piece) int { return bytes.Compare(a.start, b.start) })
	m.prefixes, m.gaps = m.prefixes[:0], 0
	for i := range m.pieces {
		m.prefixes = append(m.prefixes, prefixOf(m.pieces[i].start))
		m.gaps += m.gapBehind(i)
	}
}

// gapBehind is 1 if the keys behind piece i belong to none, else 0.
func (m *Map) gapBehind(i int) int {
	if end := m.pieces[i].end; i+1 < len(m.pieces) && !bytes.Equal(end, m.pieces[i+1].start) || i+1 == len(m.pieces) && len(end) > 0 {
		return 1
	}
	return 0
}

// cut returns what [start, end) leaves of the pieces.
func cut(pieces []piece, start, end []byte) []piece {
	var out []piece
	for _, p := range pieces {
		if len(p.end) > 0 && bytes.Compare(p.end, start) <= 0 || len(end) > 0 && bytes.Compare(end, p.start) <= 0 {
			out = append(out, p)
			continue
		}
		if bytes.Compare(p.start, start) < 0 {
			out = append(out, piece{start: p.start, end: start, desc: p.desc})
		}
		if len(end) > 0 && (len(p.end) == 0 || bytes.Compare(end, p.end) < 0) {
			out = append(out, piece{start: end, end: p.end, desc: p.desc})
		}
	}
	return out
}

// fill is the fast way for a map that is being filled: a shard that is new and overlaps nothing.
func (m *Map) fill(d, old *shard.Descriptor) bool {
	if old != nil {
		return false
	}
	i := m.after(d.Start)
	if i > 0 && (len(m.pieces[i-1].end) == 0 || bytes.Compare(m.pieces[i-1].end, d.Start) > 0) {
		return false
	}
	if i < len(m.pieces) && (len(d.End) == 0 || bytes.Compare(d.End, m.pieces[i].start) > 0) {
		return false
	}
	if i > 0 {
		m.gaps -= m.gapBehind(i - 1)
	}
	m.pieces = slices.Insert(m.pieces, i, piece{start: d.Start, end: d.End, desc: d})
	if m.gaps += m.gapBehind(i); i > 0 {
		m.gaps += m.gapBehind(i - 1)
	}
	m.prefixes = slices.Insert(m.prefixes, i, prefixOf(d.Start))
	return true
}

// SetLeader notes who leads a shard; 0 forgets it.
func (m *Map) SetLeader(id engine.ShardID, node engine.NodeID) {
	m.mu.RLock()
	same := m.leaders[id] == node
	m.mu.RUnlock()
	if same {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if node == 0 {
		delete(m.leaders, id)
	} else {
		m.leaders[id] = node
	}
}

// HintLeader notes who leads a shard if nothing is known of it: hearsay.
func (m *Map) HintLeader(id engine.ShardID, node engine.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if node == 0 || m.leaders[id] != 0 {
		return
	}
	if d := m.shards[id]; d != nil {
		if _, ok := d.OnNode(node); !ok {
			return // it led once, and has moved away
		}
	}
	m.leaders[id] = node
}

// ForgetLeader forgets that node leads the shard, if the map says so.
func (m *Map) ForgetLeader(id engine.ShardID, node engine.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaders[id] == node {
		delete(m.leaders, id)
	}
}

// SetAddr notes where a node is reached.
func (m *Map) SetAddr(node engine.NodeID, addr string) {
	if node == 0 || addr == "" {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addrs[node] = addr
}

// Addr returns where a node is reached, empty if unknown.
func (m *Map) Addr(node engine.NodeID) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.addrs[node]
}

// Nodes returns the nodes whose addresses are known, in order.
func (m *Map) Nodes() []engine.NodeID {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]engine.NodeID, 0, len(m.addrs))
	for n := range m.addrs {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// Page returns up to limit routes to user shards that end after from, in order, and whether there are more.
func (m *Map) Page(from []byte, limit int) (routes []Route, more bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i := max(m.after(from)-1, 0)
	for ; i < len(m.pieces); i++ {
		p := &m.pieces[i]
		if len(p.end) > 0 && bytes.Compare(p.end, from) <= 0 {
			continue
		}
		if len(routes) == limit {
			return routes, true
		}
		routes = append(routes, m.route(p))
	}
	return routes, false
}

// Len returns the number of user shards that own something.
func (m *Map) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	seen := map[engine.ShardID]bool{}
	for i := range m.pieces {
		seen[m.pieces[i].desc.Shard] = true
	}
	return len(seen)
}
