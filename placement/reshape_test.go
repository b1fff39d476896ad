package placement

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

func TestChooseSplitKey(t *testing.T) {
	keys := func(pairs ...any) (list [][]byte) {
		for i := 0; i < len(pairs); i += 2 {
			for range pairs[i+1].(int) {
				list = append(list, []byte(pairs[i].(string)))
			}
		}
		return list
	}
	for _, c := range []struct {
		name     string
		samples  [][]byte
		key, hot string
		few      bool
	}{
		{"nothing", nil, "", "", true},
		{"too little", keys("m", 63), "", "", true},
		{"two halves", keys("b", 50, "c", 50), "c", "", false},
		{"even", keys("b", 25, "c", 25, "d", 25, "e", 25), "d", "", false},
		{"one key", keys("m", 100), "", "m", false},
		{"one key takes most", keys("c", 30, "m", 60, "p", 30), "", "m", false},
		{"one key takes nearly half", keys("c", 28, "m", 45, "p", 27), "m", "", false},
		{"the first key of the shard", keys("a", 45, "b", 30, "c", 25), "b", "", false},
		{"others' requests", keys("A", 500, "b", 50, "c", 50, "z", 500), "c", "", false},
	} {
		got := ChooseSplitKey([]byte("a"), []byte("z"), c.samples)
		if string(got.Key) != c.key || string(got.Hot) != c.hot || got.Few != c.few {
			t.Errorf("%s: %+v (key %q, hot %q)", c.name, got, got.Key, got.Hot)
		}
	}
}

func TestReshaperTable(t *testing.T) {
	cfg := ReshapeConfig{SplitBytes: 64 << 20, SplitLoad: 1000, HotMS: 30_000, MergeMS: 600_000}
	shard := func(id engine.ShardID, mib uint64, load float64) ReshapeShard {
		return ReshapeShard{ID: id, Start: []byte{byte(id)}, End: []byte{byte(id + 1)}, Bytes: mib << 20, Load: load, ByAuto: true}
	}
	for _, c := range []struct {
		name   string
		shards []ReshapeShard
		change func(*ReshapeShard, *ReshapeConfig)
		want   string // after an hour of the same
	}{
		{"at the limit", []ReshapeShard{shard(2, 64, 0)}, nil, ""},
		{"over it", []ReshapeShard{shard(2, 65, 0)}, nil, "split 2 into 3"},
		{"far over it", []ReshapeShard{shard(2, 1000, 0)}, nil, "split 2 into 32"},
		{"busy", []ReshapeShard{shard(2, 65, 0)}, func(s *ReshapeShard, _ *ReshapeConfig) { s.Busy = true }, ""},
		{"off", []ReshapeShard{shard(2, 65, 9000)}, func(_ *ReshapeShard, c *ReshapeConfig) { *c = ReshapeConfig{} }, ""},
		{"hot", []ReshapeShard{shard(2, 1, 1001)}, nil, "split 2 by load"},
		{"warm", []ReshapeShard{shard(2, 1, 1000)}, nil, ""},
		{"small and cold", []ReshapeShard{shard(2, 8, 100), shard(3, 8, 100)}, nil, "merge 2 3"},
		{"not small enough", []ReshapeShard{shard(2, 9, 0), shard(3, 8, 0)}, nil, ""},
		{"not cold enough", []ReshapeShard{shard(2, 1, 126), shard(3, 1, 126)}, nil, ""},
		{"no neighbours", []ReshapeShard{shard(2, 1, 0), shard(4, 1, 0)}, nil, ""},
		{"an operator's", []ReshapeShard{shard(2, 1, 0), shard(3, 1, 0)}, func(s *ReshapeShard, _ *ReshapeConfig) { s.ByAuto = false }, ""},
		{"merge off", []ReshapeShard{shard(2, 1, 0), shard(3, 1, 0)}, func(_ *ReshapeShard, c *ReshapeConfig) { c.MergeMS = 0 }, ""},
		{"three in a row", []ReshapeShard{shard(2, 1, 0), shard(3, 1, 0), shard(4, 1, 0)}, nil, "merge 2 3"},
	} {
		cfg := cfg
		if c.change != nil {
			c.change(&c.shards[len(c.shards)-1], &cfg)
		}
		r := NewReshaper()
		var got string
		for now := int64(0); now <= 3_600_000; now += 5000 {
			if now < 30_000 && len(r.Plan(now, c.shards, ReshapeConfig{SplitLoad: cfg.SplitLoad, HotMS: cfg.HotMS, MergeMS: cfg.MergeMS})) > 0 {
				t.Errorf("%s: something at once", c.name)
			}
			for _, p := range r.Plan(now, c.shards, cfg) {
				s := map[ReshapeKind]string{SplitBySize: fmt.Sprintf("split %d into %d", p.Shard, p.Parts),
					SplitByLoad: fmt.Sprintf("split %d by load", p.Shard), MergeCold: fmt.Sprintf("merge %d %d", p.Shard, p.Other)}[p.Kind]
				if got == "" {
					got = s
				}
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// A shard that cannot be split is left alone for a while, and asked about again.
func TestReshaperRests(t *testing.T) {
	cfg := ReshapeConfig{SplitLoad: 10, HotMS: 10_000}
	r, asked := NewReshaper(), 0
	for now := int64(0); now < 600_000; now += 5000 {
		for _, p := range r.Plan(now, []ReshapeShard{{ID: 2, Load: 100}}, cfg) {
			asked++
			r.Rest(now+60_000, p.Shard)
		}
	}
	if asked < 8 || asked > 11 {
		t.Errorf("asked %d times in ten minutes", asked)
	}
}

// keyspace is a cluster on simulated time whose key space has a density of bytes and of load, in cells.
type keyspace struct {
	bytes, load []float64
	shards      []ReshapeShard // Start holds the cell, as two bytes
	next        engine.ShardID
	splits      int
	merges      int
	refused     int
}

func cellKey(c int) []byte { return []byte{byte(c >> 8), byte(c)} }
func cellOf(k []byte) int  { return int(k[0])<<8 | int(k[1]) }

func newKeyspace(cells int) *keyspace {
	w := &keyspace{bytes: make([]float64, cells), load: make([]float64, cells), next: 3}
	w.shards = []ReshapeShard{{ID: 2, Start: cellKey(0), End: cellKey(cells)}}
	return w
}

// step measures, plans and carries out.
func (w *keyspace) step(now int64, r *Reshaper, cfg ReshapeConfig, rng *rand.Rand) int {
	for i := range w.shards {
		s := &w.shards[i]
		b, l := 0.0, 0.0
		for c := cellOf(s.Start); c < cellOf(s.End); c++ {
			b, l = b+w.bytes[c], l+w.load[c]
		}
		s.Bytes, s.Load = uint64(b*(0.95+0.1*rng.Float64())), l*(0.8+0.4*rng.Float64()) // estimates
	}
	plan := r.Plan(now, w.shards, cfg)
	for _, p := range plan {
		w.carry(now, r, p, rng)
	}
	return len(plan)
}

func (w *keyspace) carry(now int64, r *Reshaper, p Reshape, rng *rand.Rand) {
	i := 0
	for w.shards[i].ID != p.Shard {
		i++
	}
	s := &w.shards[i]
	from, to := cellOf(s.Start), cellOf(s.End)
	var cuts []int
	switch p.Kind {
	case MergeCold:
		s.End = w.shards[i+1].End
		w.shards = append(w.shards[:i+1], w.shards[i+2:]...)
		w.merges++
		return
	case SplitBySize:
		sum, part := 0.0, float64(s.Bytes)/float64(p.Parts)
		for c := from; c < to-1; c++ {
			if sum += w.bytes[c]; sum >= part*float64(len(cuts)+1) && len(cuts) < int(p.Parts)-1 {
				cuts = append(cuts, c+1)
			}
		}
	case SplitByLoad:
		var samples [][]byte
		for len(samples) < 200 && s.Load > 0 {
			c := from + rng.IntN(to-from)
			if rng.Float64()*1000 < w.load[c] {
				samples = append(samples, cellKey(c))
			}
		}
		choice := ChooseSplitKey(s.Start, s.End, samples)
		if choice.Key == nil {
			w.refused++
			r.Rest(now+60_000, s.ID)
			return
		}
		cuts = []int{cellOf(choice.Key)}
	}
	w.splits++
	var made []ReshapeShard
	for j, c := range cuts {
		end := s.End
		if j+1 < len(cuts) {
			end = cellKey(cuts[j+1])
		}
		made = append(made, ReshapeShard{ID: w.next, Start: cellKey(c), End: end, ByAuto: true})
		w.next++
	}
	s.End = cellKey(cuts[0])
	rest := append(made, w.shards[i+1:]...)
	w.shards = append(w.shards[:i+1], rest...)
}

// Data grows, load comes and goes: shards follow, and come to rest. What is noise changes nothing for an hour.
func TestReshaperOnSimulatedTime(t *testing.T) {
	const seed = 3
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	cfg := ReshapeConfig{SplitBytes: 64 << 20, SplitLoad: 2500, HotMS: 30_000, MergeMS: 600_000}
	w, r, now := newKeyspace(4096), NewReshaper(), int64(0)
	run := func(d time.Duration) (ops int) {
		for end := now + d.Milliseconds(); now < end; now += 5000 {
			ops += w.step(now, r, cfg, rng)
		}
		return ops
	}
	if ops := run(time.Hour); ops != 0 {
		t.Errorf("an idle, empty shard: %d operations", ops)
	}
	for i := range w.bytes {
		w.bytes[i] = 1 << 20 // 4 GiB
	}
	run(10 * time.Minute)
	bySize := len(w.shards)
	if bySize < 64 || bySize > 200 {
		t.Errorf("4 GiB are in %d shards", bySize)
	}
	if ops := run(time.Hour); ops != 0 {
		t.Errorf("at rest with data: %d operations in an hour", ops)
	}
	for i := range 400 {
		w.load[i] = 300 // 120,000 requests per second in a tenth of the key space
	}
	run(20 * time.Minute)
	t.Logf("by size %d shards, with load %d; %d splits, %d merges", bySize, len(w.shards), w.splits, w.merges)
	if len(w.shards) < bySize+8 {
		t.Errorf("the load did not split: %d shards, %d before", len(w.shards), bySize)
	}
	for i := range w.shards {
		if w.shards[i].Load > 2*cfg.SplitLoad {
			t.Errorf("shard %d still has %.0f requests per second", w.shards[i].ID, w.shards[i].Load)
		}
	}
	if ops := run(time.Hour); ops != 0 {
		t.Errorf("at rest under load: %d operations in an hour", ops)
	}
	w.load[3000] = 50_000 // a single hot key
	before := len(w.shards)
	run(10 * time.Minute)
	if len(w.shards) > before+2 || w.refused == 0 {
		t.Errorf("a hot key: %d shards, %d before, refused %d times", len(w.shards), before, w.refused)
	}
	clear(w.load)
	clear(w.bytes)
	run(6 * time.Hour)
	if len(w.shards) != 1 {
		t.Errorf("empty and cold again, and there are still %d shards", len(w.shards))
	}
	if ops := run(time.Hour); ops != 0 {
		t.Errorf("at rest in the end: %d operations in an hour", ops)
	}
	for i := range w.shards[1:] {
		if !bytes.Equal(w.shards[i].End, w.shards[i+1].Start) {
			t.Fatalf("a gap between %+v and %+v", w.shards[i], w.shards[i+1])
		}
	}
}

// A million shards, none of which needs anything, cost little.
func TestReshaperAtScale(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	shards := make([]ReshapeShard, 1_000_000)
	for i := range shards {
		shards[i] = ReshapeShard{ID: engine.ShardID(i + 2), Start: cellKey(i)[:], End: cellKey(i + 1), Bytes: 20 << 20, ByAuto: i%2 == 0}
	}
	r := NewReshaper()
	began := time.Now()
	if p := r.Plan(1, shards, ReshapeConfig{SplitBytes: 64 << 20, SplitLoad: 1000, MergeMS: 1000}); len(p) != 0 {
		t.Errorf("%d proposals", len(p))
	}
	t.Logf("a round over a million shards: %v", time.Since(began))
}
