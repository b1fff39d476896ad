package state

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestLiveTablets: it counts as a map does, and keeps nothing of what is gone.
func TestLiveTablets(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	ids := []TabletID{0, 1, 2, 63, 64, 65, 127, 128, 5000, math.MaxUint64}
	var l liveTablets
	naive := map[TabletID]int{}
	check := func() {
		t.Helper()
		if l.n != len(naive) {
			t.Fatalf("%d tablets, want %d", l.n, len(naive))
		}
		for _, id := range ids {
			if l.has(id) != (naive[id] > 0) {
				t.Fatalf("tablet %d: %v, with %d extents", id, l.has(id), naive[id])
			}
		}
	}
	remove := func(id TabletID) {
		l.remove(id)
		if naive[id]--; naive[id] == 0 {
			delete(naive, id)
		}
	}
	check()
	for range 2000 {
		id := ids[rnd.IntN(len(ids))]
		if naive[id] > 0 && rnd.IntN(2) == 0 {
			remove(id)
		} else {
			l.add(id)
			naive[id]++
		}
		check()
	}
	for _, id := range ids {
		for naive[id] > 0 {
			remove(id)
			check()
		}
	}
	if len(l.some) != 0 || len(l.more) != 0 {
		t.Errorf("left: %v, %v", l.some, l.more)
	}
}
