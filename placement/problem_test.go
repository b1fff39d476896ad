package placement

import (
	"testing"
)

func TestProblems(t *testing.T) {
	p := NewProblems(nil)
	down := []Problem{{Name: "node/3/down", Text: "node 3 is down"}}
	carry := func(rec []Problem, over []string) (int, int) {
		for _, x := range rec {
			p.Recorded[x.Name] = x
		}
		for _, n := range over {
			delete(p.Recorded, n)
		}
		return len(rec), len(over)
	}
	for _, c := range []struct {
		now       int64
		list      []Problem
		rec, over int
	}{
		{1000, down, 0, 0},
		{6000, nil, 0, 0}, // a restart
		{11_000, down, 0, 0},
		{16_000, down, 0, 0},
		{21_000, down, 1, 0},
		{26_000, down, 0, 0},
	} {
		if rec, over := carry(p.Update(c.now, 10_000, c.list)); rec != c.rec || over != c.over {
			t.Errorf("at %d: %d to record, %d over", c.now, rec, over)
		}
	}
	// Another driver goes on from the record.
	x, err := DecodeProblem((&Problem{Name: "node/3/down", Text: "node 3 is down", SinceMS: 11_000}).Append(nil))
	if err != nil || x != p.Recorded["node/3/down"] {
		t.Errorf("%+v, %v", x, err)
	}
	p = NewProblems([]Problem{x})
	if rec, over := carry(p.Update(90_000, 10_000, down)); rec != 0 || over != 0 || p.Recorded["node/3/down"].SinceMS != 11_000 {
		t.Errorf("the next driver: %+v", p.Recorded)
	}
	if _, over := carry(p.Update(95_000, 10_000, nil)); over != 1 || len(p.Recorded) != 0 {
		t.Errorf("over: %+v", p.Recorded)
	}
}
