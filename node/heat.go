package node

import (
	"bytes"
	"slices"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
)

// The bounds of the heat that a node remembers: an hour, in slots, and in each of them so many key ranges. Ranges end in keys of which
// only the first heatKeyMax bytes are kept.
const (
	heatSlot      = 30 * time.Second
	heatSlots     = 120
	heatRangesMax = 256
	heatKeyMax    = 64
)

// heatRange is what was asked for in a range of keys. An empty End is the end of the key space.
type heatRange struct {
	Start  []byte `json:"start"`
	End    []byte `json:"end"`
	Reads  uint64 `json:"reads"`
	Writes uint64 `json:"writes"`
	Bytes  uint64 `json:"bytes"` // read and written
}

func (r *heatRange) add(o *heatRange) {
	r.End = o.End
	r.Reads += o.Reads
	r.Writes += o.Writes
	r.Bytes += o.Bytes
}

func (r *heatRange) weight() uint64 { return r.Reads + r.Writes }

// heatSlotOf is what happened on one node in one slot. Ranges that are not there were cold.
type heatSlotOf struct {
	At     int64       `json:"at"` // when it began, Unix seconds, a multiple of heatSlot
	Ranges []heatRange `json:"ranges"`
}

// heat remembers which key ranges this node was asked for. It costs nothing per request: it compares the counters of the replicas.
type heat struct {
	mu    sync.Mutex
	slots []heatSlotOf // oldest first, at most heatSlots
	last  map[store.Key]scheduler.Load
}

// sample notes what was counted since the last sample as the slot that ends at now.
func (h *heat) sample(now time.Time, loads []scheduler.ReplicaLoad) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last := make(map[store.Key]scheduler.Load, len(loads))
	var ranges []heatRange
	for i := range loads {
		l := &loads[i]
		key := store.Key{Shard: l.Shard, Replica: l.Replica}
		last[key] = l.Load
		d := l.Load.Sub(h.last[key])
		if d == (scheduler.Load{}) || l.Shard == shard.MetaShardID {
			continue
		}
		ranges = append(ranges, heatRange{Start: clip(l.Descriptor.Start), End: clip(l.Descriptor.End), Reads: d.Reads, Writes: d.Writes,
			Bytes: d.ReadBytes + d.WriteBytes})
	}
	h.last = last
	slices.SortFunc(ranges, func(a, b heatRange) int { return bytes.Compare(a.Start, b.Start) })
	slot := heatSlotOf{At: now.Add(-heatSlot).Truncate(heatSlot).Unix(), Ranges: mergeCold(ranges, heatRangesMax)}
	if n := len(h.slots); n > 0 && h.slots[n-1].At >= slot.At { // the clock was set back: the order of slots is what counts
		slot.At = h.slots[n-1].At + int64(heatSlot/time.Second)
	}
	if len(h.slots) == heatSlots {
		h.slots = slices.Delete(h.slots, 0, 1)
	}
	h.slots = append(h.slots, slot)
}

// recall returns what is remembered. The ranges are immutable.
func (h *heat) recall() []heatSlotOf {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.slots)
}

func clip(key []byte) []byte {
	return bytes.Clone(key[:min(len(key), heatKeyMax)])
}

// mergeCold joins neighbours until at most limit are left: those that together have less than a share of the heat. Of two neighbours in the
// result the first and the beginning of the second are above the share, so there are less than limit.
func mergeCold(ranges []heatRange, limit int) []heatRange {
	if len(ranges) <= limit {
		return ranges
	}
	total := uint64(0)
	for i := range ranges {
		total += ranges[i].weight()
	}
	share := 2*total/uint64(limit-1) + 1
	out := ranges[:0]
	for i := range ranges {
		r := ranges[i]
		if n := len(out); n > 0 && out[n-1].weight()+r.weight() < share {
			out[n-1].add(&r)
			continue
		}
		out = append(out, r)
	}
	return slices.Clone(out)
}

// HeatMap is the heat of key ranges over time, of one node or of all. Reads, Writes and Bytes have a row per slot with a value per range.
type HeatMap struct {
	SlotSeconds int        `json:"slot_seconds"`
	At          []int64    `json:"at"`     // when each slot began, Unix seconds, without gaps
	Ranges      []KeyRange `json:"ranges"` // at most 256, in order, from the first key to the last
	Reads       [][]uint64 `json:"reads"`
	Writes      [][]uint64 `json:"writes"`
	Bytes       [][]uint64 `json:"bytes"`
	Missing     []string   `json:"missing"` // nodes that did not answer
}

// KeyRange is a range of keys, unprintable bytes as \xNN. Keys of more than 64 bytes are cut; an empty End is the end of the key space.
type KeyRange struct {
	Start string `json:"start"`
	End   string `json:"end"`
}

// newHeatMap puts the slots of nodes together.
func newHeatMap(nodes [][]heatSlotOf) *HeatMap {
	m := &HeatMap{SlotSeconds: int(heatSlot / time.Second), At: []int64{}, Reads: [][]uint64{}, Writes: [][]uint64{}, Bytes: [][]uint64{}, Missing: []string{}}
	axis := heatAxis(nodes)
	for i, start := range axis {
		r := KeyRange{Start: escape.String(start)}
		if i+1 < len(axis) {
			r.End = escape.String(axis[i+1])
		}
		m.Ranges = append(m.Ranges, r)
	}
	m.addSlots(nodes)
	if len(m.At) == 0 {
		return m
	}
	for _, slots := range nodes {
		for i := range slots {
			if row := int(slots[i].At-m.At[0]) / m.SlotSeconds; row >= 0 && row < len(m.At) {
				for j := range slots[i].Ranges {
					m.add(row, axis, &slots[i].Ranges[j])
				}
			}
		}
	}
	return m
}

// addSlots makes the rows: the last heatSlots up to the newest.
func (m *HeatMap) addSlots(nodes [][]heatSlotOf) {
	first, newest := int64(0), int64(0)
	for _, slots := range nodes {
		for i := range slots {
			newest = max(newest, slots[i].At)
			if first == 0 || slots[i].At < first {
				first = slots[i].At
			}
		}
	}
	if newest == 0 {
		return
	}
	step := int64(m.SlotSeconds)
	for at := max(first, newest-(heatSlots-1)*step); at <= newest; at += step {
		m.At = append(m.At, at)
		m.Reads = append(m.Reads, make([]uint64, len(m.Ranges)))
		m.Writes = append(m.Writes, make([]uint64, len(m.Ranges)))
		m.Bytes = append(m.Bytes, make([]uint64, len(m.Ranges)))
	}
}

// heatAxis chooses where the ranges of a map begin, the first at the first key: where ranges of the slots begin, with cold neighbours joined.
func heatAxis(nodes [][]heatSlotOf) [][]byte {
	var all []heatRange
	for _, slots := range nodes {
		for i := range slots {
			all = append(all, slots[i].Ranges...)
		}
	}
	slices.SortFunc(all, func(a, b heatRange) int { return bytes.Compare(a.Start, b.Start) })
	starts := []heatRange{{}} // the weight of all that begins at the same key
	for i := range all {
		if n := len(starts); bytes.Equal(starts[n-1].Start, all[i].Start) {
			starts[n-1].add(&all[i])
		} else {
			starts = append(starts, all[i])
		}
	}
	axis := [][]byte{}
	for _, r := range mergeCold(starts, heatRangesMax) {
		axis = append(axis, r.Start)
	}
	return axis
}

// add spreads r evenly over the ranges that it covers.
func (m *HeatMap) add(row int, axis [][]byte, r *heatRange) {
	first, found := slices.BinarySearchFunc(axis, r.Start, bytes.Compare)
	if !found {
		first--
	}
	end := len(axis)
	if len(r.End) > 0 {
		end, _ = slices.BinarySearchFunc(axis, r.End, bytes.Compare)
	}
	end = max(end, first+1)
	n := uint64(end - first)
	for i := first; i < end; i++ {
		k := uint64(i - first)
		m.Reads[row][i] += share(r.Reads, n, k)
		m.Writes[row][i] += share(r.Writes, n, k)
		m.Bytes[row][i] += share(r.Bytes, n, k)
	}
}

// share returns the k-th of n parts of v: together they are v.
func share(v, n, k uint64) uint64 {
	part := v / n
	if k < v%n {
		part++
	}
	return part
}
