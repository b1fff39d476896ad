package shard

import (
	"math/rand/v2"
	"testing"
)

// TestContains: the short way to tell whether a key is here says nothing else than the bounds.
func TestContains(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	key := func(least int) []byte { // of few bytes, so that many are alike
		b := make([]byte, least+rng.IntN(12-least))
		for i := range b {
			b[i] = []byte{0, 0, 0, 1, 0xff, 0xff}[rng.IntN(6)]
		}
		return b
	}
	var m Machine
	short := 0
	for range 200_000 {
		d := &Descriptor{Start: key(0), End: key(0)}
		if rng.IntN(2) == 0 { // neighbours
			d.End = append(append([]byte(nil), d.Start...), key(1)...)
		}
		m.setDesc(d)
		k := key(0)
		if rng.IntN(2) == 0 { // it begins like one of the bounds
			bound := [][]byte{d.Start, d.End}[rng.IntN(2)]
			k = append(append([]byte(nil), bound[:rng.IntN(len(bound)+1)]...), k...)
		}
		got, want := m.contains(k), d.Contains(k)
		if got != want {
			t.Fatalf("[%x, %x) contains %x: %v, want %v (%x)", d.Start, d.End, k, got, want, m.within)
		}
		if m.desc = nil; want && len(k) >= 8 && m.within[0] <= prefix64(k) && prefix64(k) < m.within[1] {
			short++
			if !m.contains(k) {
				t.Fatalf("%x of %x", k, m.within)
			}
		}
	}
	if short < 1000 {
		t.Errorf("the short way was taken %d times", short)
	}
}
