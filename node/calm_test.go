package node

import (
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
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

// The balancer reads meta when it draws a picture. The load that this makes is not what the next one is drawn for; anything else that is told of meta, or
// of another shard, is.
func TestOwnLoadIsNoChange(t *testing.T) {
	desc := func(version uint64) *shard.Descriptor {
		return &shard.Descriptor{Shard: shard.MetaShardID, Version: version}
	}
	row := loadRow{Shard: shard.MetaShardID, Node: 1, Leads: true, Term: 3, Reads: 5, Descriptor: desc(1)}
	for name, c := range map[string]struct {
		change  func(*loadRow)
		counted bool
	}{
		"nothing":        {func(*loadRow) {}, false},
		"load":           {func(r *loadRow) { r.Reads, r.Writes, r.Traffic, r.Keys = 90, 9, 999, 9 }, false},
		"term":           {func(r *loadRow) { r.Term++ }, true},
		"leader":         {func(r *loadRow) { r.Node = 2 }, true},
		"leads no more":  {func(r *loadRow) { r.Leads, r.Descriptor = false, nil }, true},
		"descriptor":     {func(r *loadRow) { r.Descriptor = desc(2) }, true},
		"another shard":  {func(r *loadRow) { r.Shard++ }, true},
		"shard and load": {func(r *loadRow) { r.Shard++; r.Reads = 90 }, true},
	} {
		table := newLoadTable()
		table.take(1, &loadsAnswer{Rows: []loadRow{row}})
		before, r := table.changes, row
		if before != 1 {
			t.Fatalf("%d changes after the first row", before)
		}
		c.change(&r)
		table.take(r.Node, &loadsAnswer{Rows: []loadRow{r}})
		if got := table.changes != before; got != c.counted {
			t.Errorf("%s: counted %v", name, got)
		}
	}
	table := newLoadTable()
	table.take(1, &loadsAnswer{Rows: []loadRow{row}})
	table.take(1, &loadsAnswer{All: true, Rows: []loadRow{row}})
	if table.changes != 2 {
		t.Errorf("%d changes after all rows came anew", table.changes)
	}
}

// Nodes that are read again from meta, and are what they were, are no change.
func TestSameNodesAreNoChange(t *testing.T) {
	n := placement.NodeRecord{ID: 1, Name: "a", Addr: "x:1", HTTP: "x:2", State: placement.NodeUp, Labels: map[string]string{"zone": "a"}}
	v := newView()
	v.setNodes([]placement.NodeRecord{n})
	before := v.changes
	same := n
	same.Labels = map[string]string{"zone": "a"}
	if v.setNodes([]placement.NodeRecord{same}); v.changes != before {
		t.Error("the same node is a change")
	}
	for i, change := range []func(*placement.NodeRecord){
		func(n *placement.NodeRecord) { n.ID = 2 }, func(n *placement.NodeRecord) { n.Identity[0]++ }, func(n *placement.NodeRecord) { n.Name = "b" },
		func(n *placement.NodeRecord) { n.Addr = "y:1" }, func(n *placement.NodeRecord) { n.HTTP = "" },
		func(n *placement.NodeRecord) { n.State = placement.NodeDraining }, func(n *placement.NodeRecord) { n.Labels = nil },
	} {
		other := n
		change(&other)
		before := v.changes
		if v.setNodes([]placement.NodeRecord{other}); v.changes == before {
			t.Errorf("change %d is not counted", i)
		}
		v.setNodes([]placement.NodeRecord{n})
	}
}
