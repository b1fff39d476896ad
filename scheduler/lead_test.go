package scheduler

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// TestLeadTellsOfPending: while a split is proposed and not decided the leader says so. Who cancels it would else be told that it is cancelled, and it
// happens after that.
func TestLeadTellsOfPending(t *testing.T) {
	n := newStoreNode(t)
	r := n.create(2)
	ask := func() (lead Lead) {
		answered := false
		n.s.LeadAsync(2, func(part []Lead) {
			if answered = true; len(part) == 1 {
				lead = part[0]
			}
		})
		r.lane.Turn()
		if !answered || lead.Descriptor == nil {
			t.Fatal("no answer")
		}
		return lead
	}
	if lead := ask(); lead.Changing {
		t.Fatalf("%+v", lead)
	}
	d := r.machine.Desc()
	n.s.Split(2, &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{{Shard: 50,
		Start: append(append([]byte(nil), d.Start...), 'm'), Replicas: []shard.SplitReplica{{Node: 1, Replica: 1}}}}}, func(error) {})
	if lead := ask(); !lead.Changing || lead.Descriptor != d { // proposed in this turn, and not durable
		t.Fatalf("%+v", lead)
	}
	n.spin(5)
	if lead := ask(); lead.Changing || lead.Descriptor == d {
		t.Fatalf("%+v", lead)
	}
}

// TestLeadTellsOfOrdered: a split or a merge that was ordered, and waits for a shard to settle, may still happen; so the leader says so until it
// is proposed or refused. Who cancels it would else be told that it is cancelled, and it happens after that.
func TestLeadTellsOfOrdered(t *testing.T) {
	n := newStoreNode(t)
	left := n.create(2)
	n.create(3)
	changing := func(id engine.ShardID) (changing bool) {
		answered := false
		n.s.LeadAsync(id, func(part []Lead) { answered, changing = len(part) == 1, len(part) == 1 && part[0].Changing })
		if left.lane.Turn(); !answered {
			t.Fatal("no answer")
		}
		return changing
	}
	settled := func(r *replica) {
		r.linking = false
		r.lane.runAfter(r)
	}
	var got []error
	note := func(err error) { got = append(got, err) }

	left.linking = true
	n.s.Merge(MergeSpec{Left: 2, Right: 3, LeftVersion: 77}, note)
	n.spin(3)
	if len(got) != 0 || !changing(2) {
		t.Errorf("merge: answered %v while the shard settles; changing %v", got, changing(2))
	}
	n.s.Merge(MergeSpec{Left: 2, Right: 3, LeftVersion: 77}, func(err error) { // the same again does not wait, too
		if !errors.Is(err, shard.ErrUnavailable) {
			t.Errorf("a second order: %v", err)
		}
	})
	n.spin(3)
	if left.ordered != 1 {
		t.Errorf("%d orders wait", left.ordered)
	}
	settled(left)
	n.spin(3)
	if len(got) != 1 || got[0] == nil || left.ordered != 0 || changing(2) {
		t.Errorf("merge: %v after the shard has settled; %d ordered", got, left.ordered)
	}

	d := left.machine.Desc()
	left.linking = true
	got = nil
	n.s.Split(2, &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{{Shard: 50,
		Start: append(append([]byte(nil), d.Start...), 'm'), Replicas: []shard.SplitReplica{{Node: 1, Replica: 1}}}}}, note)
	n.spin(3)
	if len(got) != 0 || !changing(2) {
		t.Errorf("split: answered %v while the shard settles; changing %v", got, changing(2))
	}
	settled(left)
	n.spin(8)
	if len(got) != 1 || got[0] != nil || left.ordered != 0 || changing(2) || left.machine.Desc().Version == d.Version {
		t.Errorf("split: %v after the shard has settled; %d ordered, %v", got, left.ordered, left.machine.Desc())
	}
}
