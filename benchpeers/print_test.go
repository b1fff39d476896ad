package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sampleReport has two rounds; dragonboat did not come up in the second.
func sampleReport() *report {
	r := &report{Settings: settings{Rounds: 2}}
	add := func(round int, peer string, perS float64, failure string) {
		r.Samples = append(r.Samples, sample{Round: round, Peer: peer, Shards: 48, Load: "write", Inflight: 64, OpsPerS: perS, Error: failure})
	}
	add(1, "kiloraft", 300, "")
	add(1, "dragonboat", 100, "")
	add(2, "kiloraft", 500, "")
	add(2, "dragonboat", 0, "start: no port")
	r.Samples = append(r.Samples, sample{Round: 1, Peer: "kiloraft", Shards: 48, Load: "idle", StartS: 2, ReplicaBytes: 4096})
	return r
}

func TestPrint(t *testing.T) {
	var out strings.Builder
	if err := sampleReport().print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"400 (300…500)", "3.00", "start: no port", "4.0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestRatiosWithinARound: a round without one of the two has no ratio.
func TestRatiosWithinARound(t *testing.T) {
	rows := sampleReport().rows()
	got := ratios(rows[0], rows[1], func(s sample) float64 { return s.OpsPerS })
	if len(got) != 1 || got[0] != 3 {
		t.Fatalf("ratios %v, want one, 3", got)
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"-shards 0", "-rows scan:1", "-rows write", "-rows write:0", "-rounds 0", "what"} {
		if _, _, err := parse(strings.Fields(bad)); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	s, _, err := parse(strings.Fields("-shards 1,10 -rows mixed90:64 -duration 2s"))
	if err != nil || len(s.Shards) != 2 || s.Loads[0] != (load{Name: "mixed90", Inflight: 64, Duration: 2 * time.Second}) {
		t.Fatalf("%+v, %v", s, err)
	}
}

// TestAbsentBinary: what cannot be started is in the rows.
func TestAbsentBinary(t *testing.T) {
	s, _, err := parse(strings.Fields("-bin /does/not/exist -peers kiloraft-tcp -shards 1 -rows write:1,read:1 -rounds 1"))
	if err != nil {
		t.Fatal(err)
	}
	r := measure(t.Context(), s)
	if len(r.Samples) != 3 {
		t.Fatalf("%d samples, want 3", len(r.Samples))
	}
	for _, x := range r.Samples {
		if !strings.Contains(x.Error, "/does/not/exist") {
			t.Errorf("%s: error %q", x.Load, x.Error)
		}
	}
}

func TestPlot(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "r.json"), filepath.Join(dir, "r.svg")
	if err := os.WriteFile(from, []byte(`{"samples":[{"peer":"kiloraft","shards":10,"load":"idle","start_s":1.5},{"peer":"kiloraft","shards":1000,"load":"idle","start_s":3}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := plotFiles([]string{from}, to); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "<circle"); n != 2 {
		t.Errorf("%d points, want 2:\n%s", n, b)
	}
	if !strings.Contains(string(b), "not measured") {
		t.Error("a panel without values does not say so")
	}
}
