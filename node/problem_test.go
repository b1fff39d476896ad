package node

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/placement"
)

// Every problem has its own since: its record's, its own, or that of its first being noticed; what is over is forgotten.
func TestProblemsSince(t *testing.T) {
	var n noticed
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	look := func(now int64, recorded map[string]placement.Problem, names ...string) (list []int64) {
		var found []placement.Problem
		for _, name := range names {
			found = append(found, placement.Problem{Name: name})
		}
		n.since(at(now), recorded, found)
		for _, p := range found {
			list = append(list, p.SinceMS/1000)
		}
		return list
	}
	want := func(what string, got []int64, want ...int64) {
		t.Helper()
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: since %v, want %v", what, got, want)
			}
		}
	}
	want("first", look(100, nil, "a", "b"), 100, 100)
	want("later", look(110, map[string]placement.Problem{"b": {SinceMS: 90_000}}, "a", "b", "c"), 100, 90, 110)
	want("gone", look(120, nil, "c"), 110)
	want("again", look(130, nil, "a", "c"), 130, 110)
	for text, with := range map[string]string{
		"node 3 is down; wait":       "node 3 is down since 1970-01-01T00:01:40Z (20s); wait",
		"shard 2 has no leader":      "shard 2 has no leader, since 1970-01-01T00:01:40Z (20s)",
		"1 shard is on what is down": "1 shard is on what is down since 1970-01-01T00:01:40Z (20s)",
	} {
		if got := withSince(placement.Problem{Text: text, SinceMS: 100_000}, at(120)); got != with {
			t.Errorf("%q, want %q", got, with)
		}
	}
}

// An operation that nobody has asked for is given up when it stands still, not while bytes arrive: those of a merge's relocation, too. That it
// stands still outlives its driver.
func TestStandsStill(t *testing.T) {
	d := &driver{active: map[uint64]*drivenOp{}}
	a := &drivenOp{op: placement.Op{ID: 7, Kind: placement.OpMerge, Why: "cold"}}
	d.active[7] = a
	old := time.Now().Add(-2 * giveUpAfter)
	step := func(what string, advanced bool, sent uint64, moves, still bool) {
		t.Helper()
		a.since = old
		before := a.sent
		d.progressed(7, sent)
		if got := d.moves(a, advanced, before); got != moves || a.standsStill() != still {
			t.Errorf("%s: it moves: %v, it stands still: %v", what, got, a.standsStill())
		}
	}
	step("nothing has happened", false, 0, false, true)
	step("bytes arrive", false, 10, true, false)
	step("more arrive", false, 20, true, false)
	step("none arrive", false, 20, false, true)
	step("a snapshot began anew", false, 5, false, true)
	step("the next step", true, 5, true, false)
	step("the next replica", false, 3, true, false)
	// Another driver takes over.
	a = &drivenOp{op: placement.Op{ID: 7, Kind: placement.OpMerge, Why: "cold", AdvanceMS: old.UnixMilli()}}
	if d.moves(a, false, 0) || !a.standsStill() {
		t.Error("it stood still before, and does not now")
	}
	for _, o := range []placement.Op{{Kind: placement.OpMerge, Why: "operator"}, {Kind: placement.OpDrain}, {Kind: placement.OpRebalance}} {
		if (&drivenOp{op: o, since: old}).standsStill() {
			t.Errorf("%s would be given up", &o)
		}
	}
}
