package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// loadsOf are replicas of shards of equal ranges, shard i+10 with load[i].
func loadsOf(load ...scheduler.Load) []scheduler.ReplicaLoad {
	var out []scheduler.ReplicaLoad
	for i, l := range load {
		d := &shard.Descriptor{Shard: engine.ShardID(i + 10), Start: fmt.Appendf(nil, "%06d", i), End: fmt.Appendf(nil, "%06d", i+1)}
		if i == 0 {
			d.Start = nil
		}
		if i == len(load)-1 {
			d.End = nil
		}
		out = append(out, scheduler.ReplicaLoad{Shard: d.Shard, Replica: 1, Descriptor: d, Load: l})
	}
	return out
}

func sums(m *HeatMap) (reads, writes, size uint64) {
	for row := range m.At {
		for i := range m.Ranges {
			reads, writes, size = reads+m.Reads[row][i], writes+m.Writes[row][i], size+m.Bytes[row][i]
		}
	}
	return
}

// TestHeat: slots hold what was counted between two samples, and a map of two nodes holds all of it at the right keys.
func TestHeat(t *testing.T) {
	var a, b heat
	at := time.Unix(3000, 0)
	a.sample(at, loadsOf(scheduler.Load{Writes: 5, WriteBytes: 50}, scheduler.Load{}, scheduler.Load{Reads: 7, ReadBytes: 70}))
	a.sample(at.Add(heatSlot), loadsOf(scheduler.Load{Writes: 6, WriteBytes: 60}, scheduler.Load{}, scheduler.Load{Reads: 7, ReadBytes: 70}))
	b.sample(at.Add(2*heatSlot), loadsOf(scheduler.Load{}, scheduler.Load{Reads: 3, ReadBytes: 9}, scheduler.Load{}))
	m := newHeatMap([][]heatSlotOf{a.recall(), b.recall()})
	if want := []int64{2970, 3000, 3030}; !slices.Equal(m.At, want) {
		t.Fatalf("slots %v, want %v", m.At, want)
	}
	want := []KeyRange{{"", "000001"}, {"000001", "000002"}, {"000002", ""}}
	if !slices.Equal(m.Ranges, want) {
		t.Fatalf("ranges %v, want %v", m.Ranges, want)
	}
	if m.Writes[0][0] != 5 || m.Writes[1][0] != 1 || m.Reads[0][2] != 7 || m.Reads[1][2] != 0 || m.Reads[2][1] != 3 || m.Bytes[1][0] != 10 {
		t.Errorf("%+v", m)
	}
	// A replica that was opened anew counts from 0.
	a.sample(at.Add(2*heatSlot), loadsOf(scheduler.Load{Writes: 2}, scheduler.Load{}, scheduler.Load{}))
	if got := a.recall()[2].Ranges; len(got) != 1 || got[0].Writes != 2 {
		t.Errorf("after a restart: %+v", got)
	}
}

// TestHeatIsBounded: whatever the shards do for however long, the memory and the answer are bounded, and no request is lost from the sums.
func TestHeatIsBounded(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var h heat
	load := make([]scheduler.Load, 10_000)
	at := time.Unix(30_000, 0)
	for slot := range heatSlots + 5 {
		for range 3000 {
			i := rng.IntN(len(load))
			if rng.IntN(2) == 0 {
				i = rng.IntN(20) * 500 // some are hot
			}
			n := uint64(rng.IntN(100))
			load[i].Add(scheduler.Load{Reads: n, Writes: 1, ReadBytes: 10 * n})
		}
		h.sample(at.Add(time.Duration(slot)*heatSlot), loadsOf(load...))
	}
	slots := h.recall()
	if len(slots) != heatSlots {
		t.Errorf("%d slots", len(slots))
	}
	var reads, writes uint64
	for _, s := range slots {
		if len(s.Ranges) > heatRangesMax {
			t.Fatalf("%d ranges in a slot", len(s.Ranges))
		}
		for i, r := range s.Ranges {
			reads, writes = reads+r.Reads, writes+r.Writes
			if i > 0 && bytes.Compare(s.Ranges[i-1].End, r.Start) > 0 {
				t.Fatalf("ranges overlap: %q, %q", s.Ranges[i-1].End, r.Start)
			}
		}
	}
	if writes != heatSlots*3000 {
		t.Errorf("%d writes, want %d", writes, heatSlots*3000)
	}
	m := newHeatMap([][]heatSlotOf{slots, slots})
	gotReads, gotWrites, _ := sums(m)
	if len(m.Ranges) > heatRangesMax || len(m.Ranges) < heatRangesMax/8 || len(m.At) != heatSlots || gotReads != 2*reads || gotWrites != 2*writes {
		t.Errorf("%d ranges, %d slots, %d reads of %d, %d writes of %d", len(m.Ranges), len(m.At), gotReads, 2*reads, gotWrites, 2*writes)
	}
}

func TestHistory(t *testing.T) {
	var h history
	var sync scheduler.Histogram
	at := time.Unix(1000, 0)
	h.sample(&reading{at: at, writes: 100, lanes: 2})
	for range 100 {
		sync.Observe(3_000_000)
	}
	h.sample(&reading{at: at.Add(historyStep), writes: 150, syncs: 100, busy: uint64(historyStep), lanes: 2, cpu: historyStep / 2, sync: sync.Read()})
	h.sample(&reading{at: at.Add(historyStep)}) // no time has passed
	got := h.recall()
	if len(got) != 1 {
		t.Fatalf("%d samples", len(got))
	}
	s := got[0]
	if s.Writes != 5 || s.Syncs != 10 || s.LanesBusy != 0.5 || s.CPU != 0.5 || s.SyncP99 < 0.002 || s.SyncP99 > 0.0042 || s.CommitP99 != 0 {
		t.Errorf("%+v", s)
	}
	for i := range historyMax + 10 {
		h.sample(&reading{at: at.Add(time.Duration(i+2) * historyStep)})
	}
	if n := len(h.recall()); n != historyMax {
		t.Errorf("%d samples are kept", n)
	}
}

// A node that has just started has an empty history, not none: JSON shows [].
func TestHistoryIsNeverNull(t *testing.T) {
	if b, err := json.Marshal(new(history).recall()); err != nil || string(b) != "[]" {
		t.Errorf("%s, %v", b, err)
	}
}
