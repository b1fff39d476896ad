package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// newMerging makes what newCoverer does, has the parent split and merged with its child again, and returns when the transaction of the merge waits to
// be written.
func newMerging(t *testing.T) (n *storeNode, left, parent, right *replica) {
	t.Helper()
	n, left, parent, child := newCoverer(t)
	n.split(parent, child)
	n.settle(func() bool { return n.s.laneOf(child).byShard[child] != nil && parent.birth == nil })
	right = n.s.laneOf(child).byShard[child]
	l, r := parent.machine.Desc(), right.machine.Desc()
	n.s.Merge(MergeSpec{Left: l.Shard, Right: r.Shard, LeftVersion: l.Version, LeftConfVersion: l.ConfVersion, RightVersion: r.Version,
		RightConfVersion: r.ConfVersion}, func(error) {})
	for i := 0; parent.merge == nil || !parent.merge.writing; i++ {
		if i == 100 {
			t.Fatal("the merge does not get on")
		}
		n.clock.now += 1e6
		n.spin(1)
	}
	return n, left, parent, right
}

// settle writes checkpoints until cond is true.
func (n *storeNode) settle(cond func() bool) {
	n.t.Helper()
	for i := 0; !cond(); i++ {
		if i == 200 {
			n.t.Fatal("it does not settle")
		}
		n.spin(1)
		n.s.WriteCheckpoint()
		n.clock.now += 1e7
	}
}

// TestCoveredWhileMerging: the cut of the right shard is in the transaction of the merge. A snapshot that covers both shards waits for it, and does not have
// the cut written again, on its own.
func TestCoveredWhileMerging(t *testing.T) {
	n, left, parent, right := newMerging(t)
	n.cover(left, right.machine.Desc().End)
	n.spin(2)
	n.settle(func() bool { return !left.linking })
	n.spin(3)
	if left.machine.Desc().Version != coverVersion || !n.buried(parent.key) || !n.buried(right.key) {
		t.Errorf("version %d, buried %v %v", left.machine.Desc().Version, n.buried(parent.key), n.buried(right.key))
	}
}

// TestMergeIsCold: a Merge that is written, and has to be read from the log again to be made visible, has not settled yet.
func TestMergeIsCold(t *testing.T) {
	n, _, parent, _ := newMerging(t)
	other := parent.key.Shard + 1
	for n.s.laneOf(other) != parent.lane {
		other++
	}
	n.create(other)
	for k := range 8 { // more than the lane's cache of the log holds
		done := false
		n.s.Submit(&Request{Kind: KindWrite, Shard: other, Body: testPut(other, k%4, string(make([]byte, 1_000_000))), Done: func(req *Request) {
			if done = true; req.Err != nil {
				t.Fatal(req.Err)
			}
		}})
		for !done {
			n.spin(1)
		}
	}
	n.s.WriteCheckpoint()
	asked := false
	parent.lane.box.putCall(func(l *Lane) {
		if parent.merge == nil {
			t.Error("the Merge was in the cache: the test tests nothing")
		}
		l.checksum(parent.key.Shard, 0, func(state.Content, engine.LogID, error) { asked = true })
	})
	n.settle(func() bool { return parent.merge == nil && asked })
}

// TestMergeRightStuck: a Merge whose right shard has a replica here that never comes as far as its Freeze asks for a snapshot, as one does that has none
// (rule Merge3).
func TestMergeRightStuck(t *testing.T) {
	n, _, parent, child := newCoverer(t)
	n.split(parent, child)
	n.settle(func() bool { return n.s.laneOf(child).byShard[child] != nil && parent.birth == nil })
	right := n.s.laneOf(child).byShard[child]
	n.spin(5)
	right.stopped = true
	freeze := right.eng.Status().Last
	freeze.Index += 2
	mg := &absorb{left: parent, at: parent.machine.Applied(), needs: &shard.MergeStep{Other: child, Freeze: freeze}, since: parent.lane.now}
	parent.merge = mg
	right.lane.box.putCall(func(l *Lane) { l.handRight(mg) })
	for i := 0; !parent.wantSnapshot; i++ {
		if i == 100 {
			t.Fatal("it waits for ever")
		}
		n.clock.now += 1e8
		n.spin(1)
	}
}

// TestMergeTakesNoOldCut: a cut of the right shard from before its Freeze, which a snapshot of it still reads, is not what the left one absorbs: it is
// written, and another is made (rule Merge3).
func TestMergeTakesNoOldCut(t *testing.T) {
	n, _, parent, child := newCoverer(t)
	n.split(parent, child)
	n.settle(func() bool { return n.s.laneOf(child).byShard[child] != nil && parent.birth == nil })
	right := n.s.laneOf(child).byShard[child]
	if !right.lane.hold(right) {
		t.Fatal("not cut")
	}
	old := right.ckpt.cut.change.Record.Applied
	l, r := parent.machine.Desc(), right.machine.Desc()
	n.s.Merge(MergeSpec{Left: l.Shard, Right: r.Shard, LeftVersion: l.Version, LeftConfVersion: l.ConfVersion, RightVersion: r.Version,
		RightConfVersion: r.ConfVersion}, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	n.settle(func() bool { return n.buried(right.key) && parent.merge == nil })
	n.spin(3)
	if err := parent.machine.Stopped(); err != nil || !parent.machine.Desc().Contains(r.Start) {
		t.Fatalf("%v, %v", parent.machine.Desc(), err)
	}
	if got := n.record(right.key).Applied; got.Index <= old.Index {
		t.Errorf("the right one was absorbed as of %v, its cut from before the freeze was of %v", got, old)
	}
}
