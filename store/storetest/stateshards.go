package storetest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/store/state"
)

// keyspace is a line of adjacent shards over the keys 000 to 999, as one node might hold them, with what each must contain.
type keyspace struct {
	t      *testing.T
	rng    *rand.Rand
	s      state.Store
	next   uint64 // shard id
	shards []*spaceShard
}

type spaceShard struct {
	rec        state.Record
	start, end string
	items      map[string]string
}

// stateShards runs random checkpoints, splits, merges, removals and snapshots over adjacent shards, with garbage collection and
// restarts in between, and compares every shard with a map.
func stateShards(t *testing.T, open OpenState) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	k := &keyspace{t: t, rng: rand.New(rand.NewPCG(seed, 0)), s: open(t, state.Options{})}
	defer func() { k.s.Close() }()
	k.shards = []*spaceShard{k.create("", "")}
	for range 300 {
		i := k.rng.IntN(len(k.shards))
		switch p := k.rng.IntN(100); {
		case p < 40:
			k.checkpoint(k.shards[i])
		case p < 55 && len(k.shards) < 30:
			k.split(i)
		case p < 68 && i+1 < len(k.shards):
			k.merge(i)
		case p < 75:
			k.remove(i)
		case p < 85:
			k.snapshot(k.shards[i])
		case p < 95:
			_, err := k.s.CollectGarbage(1 + k.rng.IntN(50))
			must(t, err)
		default:
			k.s = reopen(t, k.s, open)
			_, err := k.s.Records()
			must(t, err)
		}
	}
	for _, sh := range k.shards {
		k.verify(sh)
	}
	collect(t, k.s)
	k.s = reopen(t, k.s, open)
	_, err := k.s.Records()
	must(t, err)
	for _, sh := range k.shards {
		k.verify(sh)
	}
}

func (k *keyspace) create(start, end string) *spaceShard {
	k.next++
	rec := create(k.t, k.s, key(k.next, 1), start, end, nil)
	return &spaceShard{rec: rec, start: start, end: end, items: make(map[string]string)}
}

// writes makes random changes in the shard's range, to its model and as an overlay.
func (k *keyspace) writes(sh *spaceShard) *state.Overlay {
	var kv []string
	for range k.rng.IntN(60) {
		key := fmt.Sprintf("%03d", k.rng.IntN(1000))
		if key < sh.start || sh.end != "" && key >= sh.end {
			continue
		}
		value := "-"
		if k.rng.IntN(3) > 0 {
			value = fmt.Sprint(k.rng.IntN(1000))
			sh.items[key] = value
		} else {
			delete(sh.items, key)
		}
		kv = append(kv, key, value)
	}
	return overlay(kv...)
}

func (k *keyspace) checkpoint(sh *spaceShard) {
	o := k.writes(sh)
	sh.rec.Applied.Index++
	must(k.t, k.s.Write([]state.Change{{Record: sh.rec, Overlay: o}}, 0))
}

// cut divides extents at key.
func cut(list []state.Extent, key string) (left, right []state.Extent) {
	for _, e := range list {
		switch {
		case len(e.End) != 0 && string(e.End) <= key:
			left = append(left, e)
		case string(e.Start) >= key:
			right = append(right, e)
		default:
			l, r := e, e
			l.End, r.Start = []byte(key), []byte(key)
			left, right = append(left, l), append(right, r)
		}
	}
	return left, right
}

func (k *keyspace) split(i int) {
	p := k.shards[i]
	at := fmt.Sprintf("%03d", k.rng.IntN(1000))
	if at <= p.start || p.end != "" && at >= p.end {
		return
	}
	o := k.writes(p) // frozen at the split: it has keys of both
	left, right := cut(p.rec.Extents, at)
	k.next++
	c := &spaceShard{rec: record(key(k.next, 1), 1, right...), start: at, end: p.end, items: make(map[string]string)}
	for key, value := range p.items {
		if key >= at {
			c.items[key] = value
			delete(p.items, key)
		}
	}
	p.rec.Applied.Index++
	p.rec.Extents, p.end = left, at
	changes := []state.Change{{Record: p.rec, Overlay: o}}
	if k.rng.IntN(5) == 0 { // the child is tombstoned here: its half is freed
		must(k.t, k.s.Write(changes, 0))
		c = k.create(c.start, c.end)
	} else {
		must(k.t, k.s.Write(append(changes, state.Change{Record: c.rec}), 0))
	}
	k.shards = slices.Insert(k.shards, i+1, c)
}

func (k *keyspace) merge(i int) {
	l, r := k.shards[i], k.shards[i+1]
	changes := []state.Change{{Overlay: k.writes(l)}, {Overlay: k.writes(r), Record: tombstone(r.rec.Key)}}
	l.rec.Applied.Index++
	l.rec.Extents = append(slices.Clone(l.rec.Extents), r.rec.Extents...)
	l.end = r.end
	for key, value := range r.items {
		l.items[key] = value
	}
	changes[0].Record = l.rec
	must(k.t, k.s.Write(changes, 0))
	k.shards = slices.Delete(k.shards, i+1, i+2)
}

func (k *keyspace) remove(i int) {
	sh := k.shards[i]
	must(k.t, k.s.Write([]state.Change{{Record: tombstone(sh.rec.Key)}}, 0))
	k.shards[i] = k.create(sh.start, sh.end)
}

// snapshot replaces the shard's extents by a tablet that came as a snapshot of itself, newer by an overlay.
func (k *keyspace) snapshot(sh *spaceShard) {
	o := k.writes(sh)
	newer := sh.rec
	newer.Applied.Index++
	in, err := k.s.NewIngest(alloc(k.t, k.s))
	must(k.t, err)
	for _, c := range chunks(k.t, k.s.OpenSnapshot(sh.rec, newer, o)) {
		must(k.t, in.Chunk(c))
	}
	_, err = in.Finish()
	must(k.t, err)
	if k.rng.IntN(3) == 0 {
		must(k.t, in.Abort())
		must(k.t, k.s.Write([]state.Change{{Record: newer, Overlay: o}}, 0))
	} else {
		newer.Extents = []state.Extent{extent(sh.start, sh.end, in.Tablet())}
		must(k.t, k.s.Write([]state.Change{{Record: newer}}, 0))
	}
	sh.rec = newer
	k.verify(sh)
}

func (k *keyspace) verify(sh *spaceShard) {
	k.t.Helper()
	got := scan(k.t, k.s, sh.rec, "", "", 1+k.rng.IntN(50), k.rng.IntN(2) == 0)
	if len(got) != len(sh.items) {
		k.t.Fatalf("shard %v: %d items, want %d", sh.rec.Key, len(got), len(sh.items))
	}
	for _, kv := range got {
		if want, ok := sh.items[string(kv.Key)]; !ok || want != string(kv.Value) {
			k.t.Fatalf("shard %v: key %q holds %q, want %q (%v)", sh.rec.Key, kv.Key, kv.Value, want, ok)
		}
	}
}
