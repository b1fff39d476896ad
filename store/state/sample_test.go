package state

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// TestSplitKeys cuts replicas of several shapes into parts and compares the sizes of the parts.
func TestSplitKeys(t *testing.T) {
	for _, c := range []struct {
		name         string
		items, value int
		parts        int
		from, to     string
	}{
		{"small", 500, 100, 4, "", ""},
		{"pages", 40000, 200, 50, "", ""},
		{"part of a tablet", 40000, 200, 20, "k2", "k7"},
		{"large values", 200, 20000, 10, "", ""},
		{"few items", 3, 10, 10, "", ""},
		{"nothing", 0, 10, 10, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			db, err := Open(filepath.Join(t.TempDir(), "state"), Options{MapBytes: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			rng := rand.New(rand.NewPCG(1, 1))
			var a Arena
			key := func() []byte { return fmt.Appendf(nil, "k%d-%08d", rng.IntN(10), rng.IntN(1e8)) }
			tablet, err := db.AllocTablet()
			if err != nil {
				t.Fatal(err)
			}
			rec := Record{Key: Key{Shard: 7, Replica: 1}, Applied: engine.LogID{Term: 1, Index: 1}, Extents: []Extent{{Tablet: tablet}}}
			fresh := true
			put := func(n int) *Overlay {
				o := NewOverlay(&a)
				for range n {
					o.Put(key(), Item{Version: 1, Value: make([]byte, c.value)})
				}
				o.Freeze()
				return o
			}
			for left := c.items; left > 0 || fresh; left -= 10000 {
				rec.Applied.Index++
				if err := db.Write([]Change{{Record: rec, Overlay: put(max(0, min(left, 10000))), NewTablet: fresh}}, 0); err != nil {
					t.Fatal(err)
				}
				fresh = false
			}
			if c.from != "" { // others hold the rest
				low, high := rec, rec
				low.Key, high.Key = Key{Shard: 8, Replica: 1}, Key{Shard: 9, Replica: 1}
				low.Extents = []Extent{{End: []byte(c.from), Tablet: tablet}}
				high.Extents = []Extent{{Start: []byte(c.to), Tablet: tablet}}
				rec.Extents = []Extent{{Start: []byte(c.from), End: []byte(c.to), Tablet: tablet}}
				rec.Applied.Index++
				if err := db.Write([]Change{{Record: rec}, {Record: low}, {Record: high}}, 0); err != nil {
					t.Fatal(err)
				}
			}
			frozen := put(c.items / 20)
			began := time.Now()
			keys, err := db.SplitKeys(rec, c.parts, frozen.Samples(nil, 1000))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d keys in %v", len(keys), time.Since(began))
			last := []byte(c.from)
			for _, k := range keys {
				if bytes.Compare(k, last) <= 0 || !rec.Extents[0].Contains(k) {
					t.Fatalf("%q after %q", k, last)
				}
				last = k
			}
			if c.items < 4*c.parts {
				if len(keys) > c.items {
					t.Fatalf("%d keys", len(keys))
				}
				return
			}
			if len(keys) != c.parts-1 {
				t.Fatalf("%d keys for %d parts", len(keys), c.parts)
			}
			sizes := make([]int, c.parts)
			total := 0
			w := newWalker(db, &rec, []*Overlay{frozen})
			for {
				items, more, err := w.step()
				if err != nil {
					t.Fatal(err)
				}
				for _, it := range items {
					i := 0
					for i < len(keys) && bytes.Compare(it.Key, keys[i]) >= 0 {
						i++
					}
					sizes[i] += len(it.Value)
					total += len(it.Value)
				}
				if !more {
					break
				}
			}
			for i, n := range sizes {
				if share := float64(n) * float64(c.parts) / float64(total); share < 0.5 || share > 1.7 {
					t.Errorf("part %d holds %.2f of an equal share", i, share)
				}
			}
		})
	}
}

// TestOverlaySamples compares the samples of an overlay, whose entries fill its chunks, moved, and were deleted, with what it holds.
func TestOverlaySamples(t *testing.T) {
	var a Arena
	o := NewOverlay(&a)
	value := make([]byte, 70000)
	for i := range 20000 {
		// header 20, key 12, value 32: a power of two, so that chunks end with an entry
		o.Put(fmt.Appendf(nil, "k%011d", i), Item{Version: 1, Value: value[:32]})
	}
	for i := 0; i < 20000; i += 7 {
		o.Put(fmt.Appendf(nil, "k%011d", i), Item{Version: 2, Value: value[:100]})
	}
	for i := 0; i < 20000; i += 11 {
		o.Delete(fmt.Appendf(nil, "k%011d", i), 3)
	}
	o.Put([]byte("large"), Item{Version: 4, Value: value})
	want, total := map[string]uint64{}, uint64(0)
	for it := o.Iter(nil, nil, false); it.Next(); {
		if !it.Deleted() {
			want[string(it.Key())] = uint64(len(it.Key()) + len(it.Item().Value))
			if it.Key()[0] == 'k' {
				total += want[string(it.Key())]
			}
		}
	}
	all := o.Samples(nil, 1<<20)
	if len(all) != len(want) {
		t.Errorf("%d samples of %d keys", len(all), len(want))
	}
	for _, x := range all {
		if want[string(x.Key)] != x.Bytes {
			t.Fatalf("%q: %d bytes, want %d", x.Key, x.Bytes, want[string(x.Key)])
		}
	}
	some, sum := o.Samples(nil, 1000), uint64(0)
	for _, x := range some {
		if x.Key[0] == 'k' {
			sum += x.Bytes
		}
	}
	if len(some) < 700 || len(some) > 1100 || sum < total*8/10 || sum > total*12/10 {
		t.Errorf("%d samples for %d bytes of %d", len(some), sum, total)
	}
}
