package scheduler

import (
	"bytes"
	"errors"
	"testing"

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

// TestWaitingOrderIsVoidAfterChange: a split or a merge that was ordered, and waits for a checkpoint for which there is no space, is made void by a change of the membership to what
// it is. Who cancels it makes that change; it once waited for the order, and so for space.
func TestWaitingOrderIsVoidAfterChange(t *testing.T) {
	n := newStoreNode(t)
	left := n.create(2)
	right := n.create(3)
	changing := func() (changing bool) {
		answered := false
		n.s.LeadAsync(2, func(part []Lead) { answered, changing = len(part) == 1, len(part) == 1 && part[0].Changing })
		if left.lane.Turn(); !answered {
			t.Fatal("no answer")
		}
		return changing
	}
	for _, c := range []struct {
		what  string
		waits *replica // for a checkpoint
		order func(d *shard.Descriptor, done func(error))
	}{
		{"a split", left, func(d *shard.Descriptor, done func(error)) {
			n.s.Split(2, &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{{Shard: 50,
				Start: append(bytes.Clone(d.Start), 'm'), Replicas: []shard.SplitReplica{{Node: 1, Replica: 1}}}}}, done)
		}},
		{"a merge", left, func(d *shard.Descriptor, done func(error)) {
			n.s.Merge(MergeSpec{Left: 2, Right: 3, LeftVersion: d.Version, LeftConfVersion: d.ConfVersion, RightVersion: 1, RightConfVersion: 1}, done)
		}},
		{"a merge with a large right shard", right, func(d *shard.Descriptor, done func(error)) {
			n.s.Merge(MergeSpec{Left: 2, Right: 3, LeftVersion: d.Version, LeftConfVersion: d.ConfVersion, RightVersion: 1, RightConfVersion: 1}, done)
		}},
	} {
		for k := range 6 {
			n.s.Submit(&Request{Kind: KindWrite, Shard: c.waits.key.Shard, Body: testPut(c.waits.key.Shard, k, string(make([]byte, 60_000))), Done: func(req *Request) {
				if req.Err != nil {
					t.Fatal(req.Err)
				}
			}})
			n.spin(5)
		}
		n.db.full = true
		if c.waits == left {
			left.lane.checkpoint(left)
			n.s.WriteCheckpoint()
		} // else it is asked for when the merge is
		d := left.machine.Desc()
		var got []error
		c.order(d, func(err error) { got = append(got, err) })
		n.spin(3)
		if len(got) != 0 || left.ordered != 1 || changing() {
			t.Errorf("%s: answered %v; %d ordered; changing %v", c.what, got, left.ordered, changing())
		}
		c.order(d, func(err error) { // the same again does not wait, too
			if !errors.Is(err, shard.ErrUnavailable) {
				t.Errorf("%s, ordered again: %v", c.what, err)
			}
		})
		n.spin(3)
		if err := n.s.laneOf(2).changeMembership(&MembershipChange{Shard: 2, Version: d.Version, ConfVersion: d.ConfVersion, Replicas: d.Replicas}); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		n.spin(3)
		if now := left.machine.Desc(); !now.Newer(d) || changing() || len(got) != 0 || left.ordered != 1 {
			t.Errorf("%s, with the membership changed to what it is: %v, changing %v, answered %v", c.what, now, changing(), got)
		}
		n.db.full = false
		for n.s.WriteCheckpoint() {
			n.spin(3)
		}
		n.spin(8)
		if now := left.machine.Desc(); len(got) != 1 || !errors.Is(got[0], shard.ErrVoid) || left.ordered != 0 || now.Version != d.Version || changing() {
			t.Errorf("%s, when there is space: %v; %d ordered; %v", c.what, got, left.ordered, now)
		}
	}
}
