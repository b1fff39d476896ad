package scheduler

import (
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
