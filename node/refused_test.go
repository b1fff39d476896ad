package node

import (
	"errors"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// A move whose replica leads has the leadership handed to each of the others in turn, until one takes it. It once asked the same node for ever, and a drain with it.
func TestLeadershipIsOfferedInTurn(t *testing.T) {
	d := newDriver(&core{view: newView(), node: 1})
	desc := &shard.Descriptor{Shard: 2, Version: 1, ConfVersion: 3}
	for i := range engine.NodeID(4) {
		desc.Replicas = append(desc.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(10 + i), Node: 1 + i, Role: shard.RoleVoter})
	}
	o := placement.Op{ID: 7, Kind: placement.OpMove, State: placement.OpRunning, Shard: 2, From: 1, FromReplica: 10}
	d.active[o.ID] = &drivenOp{op: o}
	var asked []engine.NodeID
	for range 7 {
		v := d.viewOf(&o, &lead{Lead: scheduler.Lead{Descriptor: desc}, Node: 1})
		v.Up = func(engine.NodeID) bool { return true }
		act := o.Next(v)
		if act.Kind != placement.ActTransfer {
			t.Fatalf("%+v", act)
		}
		asked = append(asked, act.To)
		d.refuses(o.ID, act.To)
	}
	for i := range 5 {
		if three := slices.Compact(slices.Sorted(slices.Values(asked[i : i+3]))); len(three) != 3 {
			t.Errorf("asked were %v", asked)
			break
		}
	}
}

// An act that fails is no advance. It once was: an order that failed each time was given a hundred times a second, and an operation that nobody had asked for was never given up.
func TestFailedActIsNoAdvance(t *testing.T) {
	tr, err := transport.New(transport.Config{ClusterID: transport.ID{1}, Node: 1, Identity: transport.ID{2}, Incarnations: []uint64{1}, AdvertiseAddr: "here"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	d := newDriver(&core{view: newView(), node: 1, n: &Node{tr: tr}})
	o := placement.Op{ID: 7, Kind: placement.OpTransfer, State: placement.OpRunning, Shard: 2, To: 3}
	d.active[o.ID] = &drivenOp{op: o}
	l := &lead{Lead: scheduler.Lead{Descriptor: &shard.Descriptor{Shard: 2, Version: 1}}, Node: 2} // to which there is no connection
	advanced, err := d.take(t.Context(), &o, l, placement.Action{Kind: placement.ActTransfer, To: 3})
	if !errors.Is(err, transport.ErrNotConnected) || advanced || o.State != placement.OpRunning {
		t.Fatalf("it advanced: %v, %v, %s", advanced, err, o.State)
	}
}
