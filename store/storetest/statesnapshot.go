package storetest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
)

// fill returns a frozen overlay of n keys with values of some length, a few of them large.
func fill(rng *rand.Rand, n int) *state.Overlay {
	o := state.NewOverlay(new(state.Arena))
	for i := range n {
		v := make([]byte, rng.IntN(300))
		if i == n/2 {
			v = make([]byte, 1<<20)
		}
		for j := range v {
			v[j] = byte(rng.Uint32())
		}
		o.Put(fmt.Appendf(nil, "key-%06d", rng.IntN(10*n)), state.Item{Version: uint64(i), Expire: int64(i % 3), Value: v})
	}
	o.Freeze()
	return o
}

func stateSnapshot(t *testing.T, openFrom, openTo OpenState) {
	rng := rand.New(rand.NewPCG(1, 2))
	from, to := openFrom(t, state.Options{}), openTo(t, state.Options{})
	defer from.Close()
	r := create(t, from, key(1, 1), "", "", fill(rng, 5000))
	newer, older := overlay("key-", "new", "key-000001", "-", "zzz", "last"), fill(rng, 500)
	cut := r
	cut.Applied, cut.Extents = engine.LogID{Term: 2, Index: 50}, nil
	want, err := from.Checksum(r, newer, older)
	must(t, err)

	sn := from.OpenSnapshot(r, cut, newer, older)
	all := chunks(t, sn)
	if sn.Content() != want {
		t.Fatalf("snapshot has %+v, the checksum says %+v", sn.Content(), want)
	}
	in, err := to.NewIngest(alloc(t, to))
	must(t, err)
	for i, c := range all {
		must(t, in.Chunk(c))
		if i%3 == 0 {
			must(t, in.Chunk(c)) // sent again
		}
	}
	got, err := in.Finish()
	must(t, err)
	if got != want {
		t.Fatalf("ingested %+v, want %+v", got, want)
	}
	rec, ok := in.Record()
	if !ok || rec.Applied != cut.Applied || string(rec.Meta) != string(r.Meta) || rec.Key != r.Key {
		t.Fatalf("record of the snapshot is %+v", rec)
	}
	rec.Key.Replica = 2
	narrow := rec
	narrow.Extents = []state.Extent{extent("l", "", in.Tablet())}
	wantErr(t, to.Write([]state.Change{{Record: narrow}}, 0), state.ErrExtents)
	rec.Extents = []state.Extent{extent("", "", in.Tablet())}
	must(t, to.Write([]state.Change{{Record: rec}}, 0))
	must(t, in.Abort()) // too late: it is linked
	to = reopen(t, to, openTo)
	defer to.Close()
	_, err = to.Records()
	must(t, err)
	got, err = to.Checksum(rec)
	must(t, err)
	if got != want {
		t.Fatalf("after the link the content is %+v, want %+v", got, want)
	}
	wantKeys(t, scan(t, to, rec, "", "key-0", 0, false), "key-")
	wantKeys(t, scan(t, to, rec, "l", "", 0, false), "zzz")
}

func stateSnapshotOfEmpty(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	defer s.Close()
	r := create(t, s, key(1, 1), "a", "b", nil)
	in, err := s.NewIngest(alloc(t, s))
	must(t, err)
	for _, c := range chunks(t, s.OpenSnapshot(r, r)) {
		must(t, in.Chunk(c))
	}
	_, err = in.Finish()
	must(t, err)
	// The new extent replaces the old one, which becomes garbage.
	r.Applied.Index = 10
	r.Extents = []state.Extent{extent("a", "b", in.Tablet())}
	must(t, s.Write([]state.Change{{Record: r}}, 0))
	if s.Stats().GarbageRanges != 1 {
		t.Fatal("the replaced extent is no garbage")
	}
	collect(t, s)
}

func stateSnapshotMoved(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	defer s.Close()
	r := create(t, s, key(1, 1), "", "", fill(rand.New(rand.NewPCG(3, 4)), 5000))
	sn := s.OpenSnapshot(r, r)
	_, err := sn.Next(nil)
	must(t, err)
	newer := r
	newer.Applied.Index = 10
	must(t, s.Write([]state.Change{{Record: newer, Overlay: overlay("key-5", "x")}}, 0))
	for err == nil {
		_, err = sn.Next(nil)
	}
	wantErr(t, err, state.ErrMoved) // rule State3
	_, err = s.Checksum(r)
	wantErr(t, err, state.ErrMoved)
}

func stateIngestInterrupted(t *testing.T, openFrom, openTo OpenState) {
	from, to := openFrom(t, state.Options{}), openTo(t, state.Options{})
	defer from.Close()
	r := create(t, from, key(1, 1), "", "", fill(rand.New(rand.NewPCG(5, 6)), 12000))
	all := chunks(t, from.OpenSnapshot(r, r))
	keep := create(t, to, key(7, 1), "", "", overlay("a", "1"))
	for i, n := range []int{0, 1, len(all) / 2, len(all)} {
		in, err := to.NewIngest(alloc(t, to))
		must(t, err)
		for _, c := range all[:n] {
			must(t, in.Chunk(c))
		}
		early := record(key(uint64(200+i), 1), 5, extent("", "", in.Tablet()))
		wantErr(t, to.Write([]state.Change{{Record: early}}, 0), state.ErrExtents) // not finished
		if _, err := in.Finish(); (err == nil) != (n == len(all)) {
			t.Fatalf("finish after %d of %d chunks: %v", n, len(all), err)
		}
		if n == 1 {
			must(t, in.Abort())
			must(t, in.Abort())
			continue
		}
		to = reopen(t, to, openTo) // a crash: nobody linked it
		_, err = to.Records()
		must(t, err)
		rec := record(key(uint64(100+i), 2), 5, extent("", "", in.Tablet()))
		wantErr(t, to.Write([]state.Change{{Record: rec}}, 0), state.ErrExtents)
		must(t, to.Write([]state.Change{{Record: rec, NewTablet: true}}, 0)) // it is gone, so it can be made
		wantKeys(t, scan(t, to, rec, "", "", 0, false), "")
	}
	must(t, to.Write([]state.Change{{Record: record(key(7, 1), 5, keep.Extents...)}}, 0))
	defer to.Close()
	keep.Applied.Index = 5
	wantValue(t, to, keep, "a", "1")
}

func stateIngestRefuses(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	defer s.Close()
	r := create(t, s, key(1, 1), "", "", fill(rand.New(rand.NewPCG(7, 8)), 3000))
	all := chunks(t, s.OpenSnapshot(r, r))
	try := func(name string, cs ...[]byte) {
		t.Helper()
		in, err := s.NewIngest(alloc(t, s))
		must(t, err)
		for _, c := range cs {
			if err = in.Chunk(c); err != nil {
				break
			}
		}
		if err == nil {
			_, err = in.Finish()
		}
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantErr(t, err, state.ErrBadChunk)
		}
		must(t, in.Abort())
	}
	n := len(all)
	try("empty chunk", []byte{})
	try("no end", all[:n-1]...)
	try("gap", slices.Concat(all[:1], all[2:])...)
	try("end alone", all[n-1])
	a, b := create(t, s, key(2, 1), "", "", overlay("k", "1")), create(t, s, key(3, 1), "", "", overlay("k", "2"))
	ca, cb := chunks(t, s.OpenSnapshot(a, a)), chunks(t, s.OpenSnapshot(b, b))
	try("end of another snapshot", ca[0], cb[1])
	try("behind the end", slices.Concat(all, all[n-1:])[1:]...)
	rng := rand.New(rand.NewPCG(9, 10))
	for range 30 {
		i := rng.IntN(n)
		bad := bytes.Clone(all[i])
		at := rng.IntN(len(bad))
		bad[at] ^= 1 << rng.IntN(8)
		cs := slices.Clone(all)
		cs[i] = bad
		try(fmt.Sprintf("chunk %d, byte %d flipped", i, at), cs...)
		cs[i] = all[i][:at]
		try(fmt.Sprintf("chunk %d cut at %d", i, at), cs...)
	}
}

// model is what stateModel expects of a shard.
type model struct {
	rec    state.Record
	items  map[string]state.Item
	live   *state.Overlay
	frozen *state.Overlay // being checkpointed
	target state.Record   // its record
}

func (m *model) overlays() []*state.Overlay { return []*state.Overlay{m.live, m.frozen} }

// stateModel runs random writes, freezes, checkpoints, crashes, point reads and scans against a map.
func stateModel(t *testing.T, open OpenState) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := open(t, state.Options{})
	defer func() { s.Close() }()
	arena := new(state.Arena)
	var shards []*model
	for i := range 3 {
		m := &model{items: make(map[string]state.Item), live: state.NewOverlay(arena)}
		m.rec = create(t, s, key(uint64(i+1), 1), "", "", nil)
		shards = append(shards, m)
	}
	for range 3000 {
		m := shards[rng.IntN(len(shards))]
		switch p := rng.IntN(100); {
		case p < 60:
			m.write(rng)
		case p < 70:
			m.read(t, s, rng)
		case p < 80:
			m.scan(t, s, rng)
		case p < 88 && m.frozen == nil:
			m.live.Freeze()
			m.frozen, m.target = m.live, m.rec
			m.target.Applied.Index++
			m.live = state.NewOverlay(arena)
		case p < 96 && m.frozen != nil:
			must(t, s.Write([]state.Change{{Record: m.target, Overlay: m.frozen}}, 0))
			m.frozen.Release()
			m.rec, m.frozen = m.target, nil
		case p == 99 && rng.IntN(4) == 0: // a restart keeps what is in overlays here: the log would bring it back
			s = reopen(t, s, open)
			_, err := s.Records()
			must(t, err)
		}
	}
}

func modelKey(rng *rand.Rand) string { return fmt.Sprintf("%03d", rng.IntN(300)) }

func (m *model) write(rng *rand.Rand) {
	k := modelKey(rng)
	version := rng.Uint64()
	if rng.IntN(3) == 0 {
		delete(m.items, k)
		m.live.Delete([]byte(k), version)
		return
	}
	it := state.Item{Version: version, Value: make([]byte, rng.IntN(40))}
	if rng.IntN(50) == 0 {
		it.Value = make([]byte, rng.IntN(100000))
	}
	if rng.IntN(4) == 0 {
		it.Expire = rng.Int64()
	}
	for i := range it.Value {
		it.Value[i] = byte(version >> (i % 8))
	}
	m.items[k] = it
	m.live.Put([]byte(k), it)
}

func (m *model) read(t *testing.T, s state.Store, rng *rand.Rand) {
	k := modelKey(rng)
	want, exists := m.items[k]
	for _, o := range m.overlays() {
		if o == nil {
			continue
		}
		if it, hit := o.Get([]byte(k)); hit != state.Miss {
			if (hit == state.Found) != exists || exists && !same(it, want) {
				t.Fatalf("overlay says %v %v of %q", it, hit, k)
			}
			return
		}
	}
	if it, found := get(t, s, m.rec, k); found != exists || found && !same(it, want) {
		t.Fatalf("store says %v %v of %q", it, found, k)
	}
}

func (m *model) scan(t *testing.T, s state.Store, rng *rand.Rand) {
	start, end := modelKey(rng), modelKey(rng)
	if rng.IntN(4) == 0 {
		start = ""
	}
	if rng.IntN(4) == 0 {
		end = ""
	}
	reverse := rng.IntN(2) == 0
	got := scan(t, s, m.rec, start, end, rng.IntN(20), reverse, m.overlays()...)
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(m.items)), func(k string) bool { return k < start || end != "" && k >= end })
	if reverse {
		slices.Reverse(keys)
	}
	if len(got) != len(keys) {
		t.Fatalf("scan [%q, %q) reverse %v: %d items, want %d", start, end, reverse, len(got), len(keys))
	}
	for i, k := range keys {
		if string(got[i].Key) != k || !same(got[i].Item, m.items[k]) {
			t.Fatalf("scan [%q, %q) reverse %v: item %d is %q, want %q", start, end, reverse, i, got[i].Key, k)
		}
	}
}

func same(a, b state.Item) bool {
	return a.Version == b.Version && a.Expire == b.Expire && bytes.Equal(a.Value, b.Value)
}
