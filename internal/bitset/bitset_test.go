package bitset

import (
	"math"
	"testing"
)

func TestSet(t *testing.T) {
	s := Set[uint64]{}
	in := []uint64{0, 1, 63, 64, 1000, math.MaxUint64}
	out := []uint64{2, 62, 65, 128, 999, 1001, math.MaxUint64 - 1}
	want := func(n int) {
		t.Helper()
		for i, id := range in {
			if s.Has(id) != (i < n) {
				t.Errorf("with the first %d of %v: %d is in it: %v", n, in, id, s.Has(id))
			}
		}
		for _, id := range out {
			if s.Has(id) {
				t.Errorf("%d is in it", id)
			}
		}
	}
	for i, id := range in {
		want(i)
		s.Add(id)
		s.Add(id)
	}
	for i := len(in); i > 0; i-- {
		want(i)
		s.Remove(in[i-1])
		s.Remove(in[i-1])
	}
	want(0)
	if len(s) != 0 {
		t.Errorf("%d entries are kept of an empty set", len(s))
	}
}
