package state

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"
)

func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

type modelEntry struct {
	Item
	deleted bool
}

func checkOverlay(t *testing.T, o *Overlay, model map[string]modelEntry, reverse bool, start, end string) {
	t.Helper()
	if o.Len() != len(model) {
		t.Fatalf("len %d, want %d", o.Len(), len(model))
	}
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(model)), func(k string) bool { return k < start || end != "" && k >= end })
	if reverse {
		slices.Reverse(keys)
	}
	it := o.Iter([]byte(start), []byte(end), reverse)
	for i, k := range keys {
		if !it.Next() || string(it.Key()) != k {
			t.Fatalf("key %d is %q, want %q", i, it.Key(), k)
		}
		want, got := model[k], it.Item()
		if it.Deleted() != want.deleted || got.Version != want.Version {
			t.Fatalf("%q: got %v deleted %v, want %+v", k, got, it.Deleted(), want)
		}
		if !want.deleted && (got.Expire != want.Expire || !bytes.Equal(got.Value, want.Value)) {
			t.Fatalf("%q: got %v, want %v", k, got, want.Item)
		}
	}
	if it.Next() {
		t.Fatalf("one key too many: %q", it.Key())
	}
}

func TestOverlayModel(t *testing.T) {
	rng := seeded(t)
	arena := new(Arena)
	for range 20 {
		before := arena.Grown()
		o := NewOverlay(arena)
		model := make(map[string]modelEntry)
		data := 0
		space, valueMax := 1+rng.IntN(2000), 1+rng.IntN(500)
		prefix := []string{"", "a-long-common-prefix/"}[rng.IntN(2)]
		for range rng.IntN(4000) {
			key := prefix + fmt.Sprint(rng.IntN(space))
			e := modelEntry{Item: Item{Version: rng.Uint64()}}
			switch n := rng.IntN(100); {
			case n < 20:
				e.deleted = true
				o.Delete([]byte(key), e.Version)
			default:
				size := rng.IntN(valueMax)
				if n == 99 {
					size = rng.IntN(200_000)
				}
				e.Value = bytes.Repeat([]byte{byte(e.Version)}, size)
				if n < 40 {
					e.Expire = rng.Int64()
				}
				o.Put([]byte(key), e.Item)
			}
			model[key] = e
			if rng.IntN(200) == 0 {
				checkOverlay(t, o, model, rng.IntN(2) == 0, prefix+fmt.Sprint(rng.IntN(space)), "")
			}
		}
		for key, want := range model {
			data += len(key) + len(want.Value)
			it, hit := o.Get([]byte(key))
			if want.deleted != (hit == Deleted) || hit == Miss || it.Version != want.Version || !bytes.Equal(it.Value, want.Value) {
				t.Fatalf("get %q: %v %v, want %+v", key, it, hit, want)
			}
		}
		if _, hit := o.Get([]byte("absent")); hit != Miss {
			t.Fatal("found what is absent")
		}
		if o.DataBytes() != data {
			t.Fatalf("data bytes %d, want %d", o.DataBytes(), data)
		}
		if grown := arena.Grown() - before; grown != o.Bytes() {
			t.Fatalf("grown by %d bytes, it holds %d", grown, o.Bytes())
		}
		o.Freeze()
		var wg sync.WaitGroup
		for i := range 3 { // several goroutines make the order of a frozen overlay
			wg.Go(func() { checkOverlay(t, o, model, i == 0, "", "") })
		}
		wg.Wait()
		checkOverlay(t, o, model, false, prefix+"3", prefix+"7")
		o.Release()
		if o.Len() != 0 || o.Bytes() > 200 {
			t.Fatalf("released overlay: %d keys, %d bytes", o.Len(), o.Bytes())
		}
	}
}

func TestOverlayIsSmall(t *testing.T) {
	o := NewOverlay(new(Arena))
	if n := unsafe.Sizeof(*o); n > 160 {
		t.Errorf("an empty overlay takes %d bytes", n)
	}
	o.Put([]byte("a key of sixteen"), Item{Version: 1, Value: make([]byte, 128)})
	if n := o.Bytes(); n >= 1024 {
		t.Errorf("an overlay of one key takes %d bytes", n)
	}
}

// A key that grows moves a logarithmic number of times, and what it leaves is counted.
func TestOverlayGrowingValue(t *testing.T) {
	o := NewOverlay(new(Arena))
	o.Put([]byte("k"), Item{Value: []byte("x")})
	o.Iter(nil, nil, false) // the order exists before the moves
	for n := range 10_000 {
		o.Put([]byte("k"), Item{Version: uint64(n), Value: make([]byte, n)})
	}
	if o.Len() != 1 || o.DataBytes() != 1+9999 {
		t.Fatalf("len %d, data bytes %d", o.Len(), o.DataBytes())
	}
	if o.DeadBytes() == 0 || o.DeadBytes() > 60_000 {
		t.Fatalf("dead bytes %d", o.DeadBytes())
	}
	it := o.Iter(nil, nil, false)
	if !it.Next() || len(it.Item().Value) != 9999 || it.Next() {
		t.Fatal("the iterator lost the moved entry")
	}
}

// Touch looks at what is there and what is not, and allocates nothing.
func TestOverlayTouch(t *testing.T) {
	o := NewOverlay(new(Arena))
	var keys [][]byte
	for i := range 3 * TouchMax {
		keys = append(keys, fmt.Appendf(nil, "key %d", i))
	}
	o.Touch(keys)
	for i, size := range []int{0, 1, 200, chunkBytesMax, 2 * chunkBytesMax} { // entries at the end of a chunk, and with chunks of their own
		o.Put(keys[i], Item{Version: 1, Value: make([]byte, size)})
		o.Touch(keys)
		o.Delete(keys[i+5], 2)
	}
	if n := testing.AllocsPerRun(100, func() { o.Touch(keys); o.Touch(nil) }); n != 0 {
		t.Errorf("%.0f allocations", n)
	}
	for i := range 5 {
		if _, hit := o.Get(keys[i]); hit != Found {
			t.Errorf("%s: %v", keys[i], hit)
		}
		if _, hit := o.Get(keys[i+5]); hit != Deleted {
			t.Errorf("%s: %v", keys[i+5], hit)
		}
	}
}

func TestOverlayDoesNotAllocate(t *testing.T) {
	arena := new(Arena)
	keys := make([][]byte, 2000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%012d", i)
	}
	value := make([]byte, 128)
	o := NewOverlay(arena)
	for _, k := range keys {
		o.Put(k, Item{Version: 1, Value: value})
	}
	check := func(name string, most float64, fn func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, fn); n > most {
			t.Errorf("%s: %v allocations, want at most %v", name, n, most)
		}
	}
	i := 0
	next := func() []byte { i++; return keys[i%len(keys)] }
	check("update", 0, func() { o.Put(next(), Item{Version: 2, Value: value}) })
	check("get", 0, func() { o.Get(next()) })
	check("delete and put", 0, func() { k := next(); o.Delete(k, 3); o.Put(k, Item{Version: 4, Value: value}) })
	o.Iter(nil, nil, false)
	check("iterate", 0, func() {
		for it := o.Iter(keys[500], keys[600], true); it.Next(); {
		}
	})
	check("fill a recycled overlay", 16, func() { // the list of chunks and no more
		o.Release()
		for _, k := range keys {
			o.Put(k, Item{Version: 1, Value: value})
		}
	})
}

func TestArenaIsBounded(t *testing.T) {
	arena := &Arena{IdleBytesMax: 100_000}
	o := NewOverlay(arena)
	for i := range 10_000 {
		o.Put(fmt.Append(nil, i), Item{Value: make([]byte, 100)})
	}
	o.Release()
	if arena.IdleBytes() > 100_000 || arena.IdleBytes() == 0 {
		t.Fatalf("%d bytes idle", arena.IdleBytes())
	}
}

func TestSubtract(t *testing.T) {
	rng := seeded(t)
	random := func() []Extent { // normal, over two tablets with bounds 'a' to 'p'
		var list []Extent
		for tab := TabletID(1); tab <= 2; tab++ {
			for at := rng.IntN(4); at < 15; at += rng.IntN(4) {
				end := at + 1 + rng.IntN(4)
				e := Extent{Start: []byte{byte('a' + at)}, End: []byte{byte('a' + end)}, Tablet: tab}
				if end > 15 {
					e.End = nil
				}
				if at == 0 {
					e.Start = nil
				}
				list = append(list, e)
				at = end
			}
		}
		return list
	}
	for range 2000 {
		a, b := random(), random()
		got := subtract(a, b)
		if err := normalize(got); err != nil {
			t.Fatal(err)
		}
		for tab := TabletID(1); tab <= 2; tab++ {
			for c := byte('a'); c < 'a'+20; c++ {
				k := []byte{c}
				if want := holds(a, tab, k) && !holds(b, tab, k); holds(got, tab, k) != want {
					t.Fatalf("%v minus %v is %v: wrong at %c in %d", a, b, got, c, tab)
				}
			}
		}
	}
}

func benchKeys(n int) [][]byte {
	rng := rand.New(rand.NewPCG(1, 1))
	keys := make([][]byte, n)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "%016x", rng.Uint64())
	}
	return keys
}

// The benchmarks use one shard of 10,000 random 16-byte keys with 128-byte values; they say nothing of cache misses over
// thousands of shards.
const benchN = 10_000

func BenchmarkInsert(b *testing.B) {
	keys, value := benchKeys(benchN), make([]byte, 128)
	b.Run("overlay", func(b *testing.B) {
		b.ReportAllocs()
		o := NewOverlay(new(Arena))
		for i := 0; b.Loop(); i++ {
			if i%benchN == 0 {
				o.Release()
			}
			o.Put(keys[i%benchN], Item{Version: uint64(i), Value: value})
		}
	})
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		m := make(map[string]Item)
		for i := 0; b.Loop(); i++ {
			if i%benchN == 0 {
				m = make(map[string]Item)
			}
			m[string(keys[i%benchN])] = Item{Version: uint64(i), Value: bytes.Clone(value)}
		}
	})
}

func BenchmarkUpdate(b *testing.B) {
	keys, value := benchKeys(benchN), make([]byte, 128)
	b.Run("overlay", func(b *testing.B) {
		b.ReportAllocs()
		o := NewOverlay(new(Arena))
		for i := 0; b.Loop(); i++ {
			o.Put(keys[i*7%benchN], Item{Version: uint64(i), Value: value})
		}
	})
	b.Run("map", func(b *testing.B) {
		b.ReportAllocs()
		m := make(map[string]Item)
		for i := 0; b.Loop(); i++ {
			m[string(keys[i*7%benchN])] = Item{Version: uint64(i), Value: bytes.Clone(value)}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	keys := benchKeys(2 * benchN)
	o, m := NewOverlay(new(Arena)), make(map[string]Item)
	for _, k := range keys[:benchN] {
		o.Put(k, Item{Value: make([]byte, 128)})
		m[string(k)] = Item{Value: make([]byte, 128)}
	}
	for name, at := range map[string]int{"hit": 0, "miss": benchN} {
		b.Run("overlay/"+name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				o.Get(keys[at+i*7%benchN])
			}
		})
		b.Run("map/"+name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				_ = m[string(keys[at+i*7%benchN])]
			}
		})
	}
}

// BenchmarkOrder makes the order of 10,000 keys; ns/op is per key.
func BenchmarkOrder(b *testing.B) {
	keys := benchKeys(benchN)
	o := NewOverlay(new(Arena))
	for _, k := range keys {
		o.Put(k, Item{Value: make([]byte, 128)})
	}
	for i := 0; b.Loop(); i++ {
		if i%benchN == 0 {
			o.index, o.mark = o.index[:0], 0
			o.order()
		}
	}
}
