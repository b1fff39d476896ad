package main

import (
	"strings"
	"testing"
)

const output = `goos: linux
pkg: github.com/kiloraft/kiloraft/engine
BenchmarkWrite/single-2     100  1000 ns/op  16 B/op  0 allocs/op
BenchmarkWrite/single-2     100  1200 ns/op  16 B/op  0 allocs/op
PASS
`

func TestParseGoBench(t *testing.T) {
	got := parseGoBench(output)
	if len(got) != 3 || got[0].Name != "engine Write/single-2" || got[0].Unit != "ns/op" || got[0].median() != 1100 || got[2].Unit != "allocs/op" {
		t.Fatalf("%+v", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		what       string
		unit       string
		older, new []float64
		want       string
	}{
		{"slower, apart", "ns/op", []float64{100, 110}, []float64{130, 140}, "worse"},
		{"faster, apart", "ns/op", []float64{130, 140}, []float64{100, 110}, "better"},
		{"slower, but the ranges overlap", "ns/op", []float64{100, 135}, []float64{130, 160}, ""},
		{"apart, but within the noise", "ns/op", []float64{100, 101}, []float64{104, 105}, ""},
		{"fewer requests", "ops/s", []float64{1000, 900}, []float64{500, 600}, "worse"},
		{"more requests", "ops/s", []float64{500, 600}, []float64{1000, 900}, "better"},
		{"one allocation of twenty", "allocs/op", []float64{20, 20}, []float64{21, 21}, "worse"},
		{"the first allocation", "allocs/op", []float64{0, 0}, []float64{1, 1}, "worse"},
	} {
		if got := verdict(metric{"x", c.unit, c.older}, metric{"x", c.unit, c.new}); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestCompareCounts(t *testing.T) {
	older := []metric{{"a", "ns/op", []float64{1}}, {"gone", "ns/op", []float64{1}}}
	newer := []metric{{"a", "ns/op", []float64{2}}, {"fresh", "ns/op", []float64{1}}}
	var out strings.Builder
	n, err := compare(older, newer, false, &out)
	if err != nil || n != 1 {
		t.Fatalf("%d regressions, %v; want 1", n, err)
	}
	for _, want := range []string{"worse", "new", "gone"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestBusyMachine: times are not judged then, counts are.
func TestBusyMachine(t *testing.T) {
	older := []metric{{"a", "ns/op", []float64{1}}, {"a", "allocs/op", []float64{1}}}
	newer := []metric{{"a", "ns/op", []float64{9}}, {"a", "allocs/op", []float64{2}}}
	var out strings.Builder
	if n, err := compare(older, newer, true, &out); err != nil || n != 1 {
		t.Fatalf("%d regressions, %v; want 1:\n%s", n, err, out.String())
	}
}
