package main

import (
	"math"
	"testing"
)

func TestHistogram(t *testing.T) {
	var a, b histogram
	name := func(le string) string { return `kiloraft_raft_commit_latency_seconds_bucket{le="` + le + `"}` }
	for _, h := range []*histogram{&a, &b} {
		h.read("kiloraft_raft_commit_latency_seconds_sum", 7)
		h.read(name("1"), 10)
		h.read(name("2"), 10)
		h.read(name("+Inf"), 10)
	}
	b.read(name("1"), 50) // of a second node
	b.read(name("2"), 90)
	b.read(name("+Inf"), 100)
	d := b.minus(a)
	for q, want := range map[float64]float64{0.25: 0.5, 0.5: 1, 0.7: 1.5, 0.99: 2} {
		if got := d.quantile(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %g is %g, want %g", q, got, want)
		}
	}
	if got := a.minus(a).quantile(0.5); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
	if got := (histogram{}).plus(a).quantile(0.5); got != 0.5 {
		t.Errorf("of the first alone: %g", got)
	}
}
