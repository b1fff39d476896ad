package node

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
)

// A picture of a cluster at rest is not drawn again; anything that it is made of, and time, ends that.
func TestCalmEnds(t *testing.T) {
	now := time.Now()
	in := pictureInputs{cluster: 3, view: 4, table: 5, living: []engine.NodeID{1, 2}}
	c := calm{now.Add(time.Second), in}
	if !c.holds(now, &in) {
		t.Fatal("it does not hold")
	}
	for name, other := range map[string]pictureInputs{
		"cluster record": {4, 4, 5, in.living}, "shards or nodes": {3, 5, 5, in.living}, "loads": {3, 4, 6, in.living}, "a node is gone": {3, 4, 5, in.living[:1]},
	} {
		if c.holds(now, &other) {
			t.Errorf("%s: it holds on", name)
		}
	}
	if c.holds(now.Add(time.Second), &in) || (&calm{}).holds(now, &pictureInputs{}) {
		t.Error("it holds for ever")
	}
}

// A cluster is at rest only if there is nothing that a later picture may act upon without hearing of a change.
func TestNothingToDo(t *testing.T) {
	d := &driver{problems: placement.NewProblems(nil)}
	rest := func() (*placement.Snapshot, *placement.Plan) {
		return &placement.Snapshot{Nodes: []placement.BalanceNode{{ID: 1, Lives: true, Takes: true}},
			Shards: []placement.BalanceShard{{ID: 1, Leader: 1, Load: 2}, {ID: 7, Leader: 1}}}, &placement.Plan{}
	}
	if snap, plan := rest(); !d.nothingToDo(snap, plan) {
		t.Fatal("a cluster at rest has something to do")
	}
	for name, change := range map[string]func(*placement.Snapshot, *placement.Plan){
		"no leader":    func(s *placement.Snapshot, _ *placement.Plan) { s.Shards[1].Leader = 0 },
		"busy":         func(s *placement.Snapshot, _ *placement.Plan) { s.Shards[1].Busy = true },
		"load":         func(s *placement.Snapshot, _ *placement.Plan) { s.Shards[1].Load = 1 },
		"moved lately": func(s *placement.Snapshot, _ *placement.Plan) { s.Shards[1].Fresh = true },
		"young node":   func(s *placement.Snapshot, _ *placement.Plan) { s.Nodes[0].Young = true },
		"leaving node": func(s *placement.Snapshot, _ *placement.Plan) { s.Nodes[0].Leave = true },
		"dead node":    func(s *placement.Snapshot, _ *placement.Plan) { s.Nodes[0].Lives = false },
		"stuck":        func(_ *placement.Snapshot, p *placement.Plan) { p.Stuck = []string{"no room"} },
		"move":         func(_ *placement.Snapshot, p *placement.Plan) { p.Moves = make([]placement.Proposal, 1) },
	} {
		snap, plan := rest()
		if change(snap, plan); d.nothingToDo(snap, plan) {
			t.Errorf("%s: nothing to do", name)
		}
	}
	d.problems.Update(0, 1000, []placement.Problem{{Name: "x"}})
	if snap, plan := rest(); d.nothingToDo(snap, plan) {
		t.Error("what has just gone wrong is not recorded")
	}
}
