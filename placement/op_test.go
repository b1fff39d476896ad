package placement

import (
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

func TestOpRoundTrip(t *testing.T) {
	o := Op{ID: 1, Kind: OpMove, State: OpRunning, Parent: 2, Shard: 3, Other: 4, From: 5, To: 6, FromReplica: 7, Replica: 8,
		Keys: [][]byte{[]byte("k"), []byte("l")}, Parts: 9, By: []string{"size"}, Cancel: true, Why: "w", Step: "s", Done: 10, Total: 11, BytesDone: 12,
		BytesTotal: 13, StartMS: 14, UpdateMS: 15, EndMS: 16, Reason: "r", Error: "e", AdvanceMS: 17, Moves: 18, Transfers: 19}
	b := o.Append(nil)
	got, err := DecodeOp(b)
	if err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range b {
		if _, err := DecodeOp(b[:i]); err == nil {
			t.Errorf("cut at %d: no error", i)
		}
	}
}

// The time left goes by bytes where there are any, else by steps.
func TestOpLeft(t *testing.T) {
	for i, x := range []struct {
		op   Op
		want int64
	}{
		{Op{Kind: OpMove, Done: 1, Total: 4, BytesDone: 10, BytesTotal: 1000}, 990_000},
		{Op{Kind: OpMove, Done: 1, Total: 4, BytesTotal: 1000}, 0},
		{Op{Kind: OpSplit, Done: 1, Total: 4}, 30_000},
		{Op{Kind: OpDrain, Done: 900, Total: 1000, BytesDone: 500, BytesTotal: 1000}, 10_000},
		{Op{Kind: OpRebalance, Done: 3, Total: 4}, 3333},
		{Op{Kind: OpRebalance, Done: 9, Total: 10, BytesDone: 100, BytesTotal: 1000}, 90_000},
		{Op{Kind: OpRebalance, Done: 9, Total: 10, BytesTotal: 1000}, 0},
		{Op{Kind: OpRebalance}, 0},
		{Op{Kind: OpMove, Done: 4, Total: 4, BytesDone: 10, BytesTotal: 10}, 0},
	} {
		x.op.State, x.op.StartMS = OpRunning, 5000
		if got := x.op.LeftMS(15_000); got != x.want {
			t.Errorf("%d: %d ms left, want %d", i, got, x.want)
		}
		if x.op.State = OpDone; x.op.LeftMS(15_000) != 0 {
			t.Errorf("%d: it is over", i)
		}
	}
}

// play carries an operation out on a descriptor, as shard and nodes would, with a driver that forgets everything after each step.
func play(t *testing.T, o *Op, d *shard.Descriptor, leader engine.NodeID, cancelAt int) (Action, *shard.Descriptor, engine.NodeID) {
	t.Helper()
	for step := range 50 {
		if step == cancelAt {
			o.Cancel = true
		}
		fresh, err := DecodeOp(o.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		live := 0
		for _, r := range d.Replicas {
			if r.Role == shard.RoleVoter {
				live++
			}
		}
		if live < 3 {
			t.Fatalf("%d voters: %v", live, d)
		}
		v := &ShardView{Descriptor: d, Leader: leader, InStep: step > 3, Up: func(engine.NodeID) bool { return true }}
		a := fresh.Next(v)
		switch a.Kind {
		case ActDone, ActFail, ActRemove:
			return a, d, leader
		case ActTransfer:
			leader = a.To
		case ActChange:
			for _, r := range a.Replicas {
				if before, ok := d.Replica(r.Replica); r.Role == shard.RoleVoter && !(ok && before.Role == shard.RoleVoter) && !v.InStep {
					t.Fatalf("step %d: replica %d is to vote, and is not in step", step, r.Replica)
				}
			}
			next := *d
			next.ConfVersion++
			next.Replicas = a.Replicas
			if err := next.Validate(); err != nil {
				t.Fatal(err)
			}
			d = &next
		}
	}
	t.Fatal("no end")
	return Action{}, nil, 0
}

func three() *shard.Descriptor {
	d := &shard.Descriptor{Shard: 9, Version: 4, ConfVersion: 7}
	for i := 1; i <= 3; i++ {
		d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(i), Node: engine.NodeID(i), Role: shard.RoleVoter})
	}
	return d
}

func TestMoveSteps(t *testing.T) {
	for leader := engine.NodeID(1); leader <= 3; leader++ {
		o := &Op{ID: 1, Kind: OpMove, Shard: 9, From: 2, FromReplica: 2, To: 4, Replica: 10}
		a, d, l := play(t, o, three(), leader, -1)
		if a.Kind != ActRemove || a.To != 2 || a.Replica != 2 || l == 2 {
			t.Errorf("leader %d: %+v, led by %d", leader, a, l)
		}
		if r, ok := d.OnNode(4); !ok || r.Role != shard.RoleVoter || len(d.Replicas) != 3 {
			t.Errorf("leader %d: %v", leader, d)
		}
	}
}

// A cancel at any step leaves the shard either as it was or moved, with three voters.
func TestCancelAtEachStep(t *testing.T) {
	for at := range 12 {
		o := &Op{ID: 1, Kind: OpMove, Shard: 9, From: 2, FromReplica: 2, To: 4, Replica: 10}
		a, d, _ := play(t, o, three(), 2, at)
		_, moved := d.OnNode(4)
		switch {
		case len(d.Replicas) != 3:
			t.Errorf("cancelled at %d: %v", at, d)
		case moved && a.Kind != ActRemove, !moved && (a.Kind != ActDone || !a.Cancelled):
			t.Errorf("cancelled at %d: %+v, %v", at, a, d)
		}
	}
}

func TestMoveFails(t *testing.T) {
	up := func(engine.NodeID) bool { return true }
	o := &Op{Kind: OpMove, Shard: 9, From: 2, FromReplica: 77, To: 4, Replica: 10}
	if a := o.Next(&ShardView{Descriptor: three(), Leader: 1, Up: up}); a.Kind != ActFail {
		t.Errorf("the replica is gone: %+v", a)
	}
	o = &Op{Kind: OpMove, Shard: 9, From: 2, FromReplica: 2, To: 3, Replica: 10}
	if a := o.Next(&ShardView{Descriptor: three(), Leader: 1, Up: up}); a.Kind != ActFail {
		t.Errorf("the node has one: %+v", a)
	}
	o = &Op{Kind: OpMove, Shard: 9, From: 2, FromReplica: 2, To: 4, Replica: 10}
	if a := o.Next(&ShardView{Descriptor: three(), Leader: 1, Up: func(n engine.NodeID) bool { return n != 4 }}); a.Kind != ActWait || a.Reason == "" {
		t.Errorf("the node is down: %+v", a)
	}
	d := three()
	d.Replicas[0].Role = shard.RoleOutgoing
	if a := o.Next(&ShardView{Descriptor: d, Leader: 1, Up: up}); a.Kind != ActWait {
		t.Errorf("joint: %+v", a)
	}
}

func TestTransferSteps(t *testing.T) {
	o := &Op{Kind: OpTransfer, Shard: 9, To: 3}
	a, _, l := play(t, o, three(), 1, -1)
	if a.Kind != ActDone || l != 3 {
		t.Errorf("%+v, led by %d", a, l)
	}
	o = &Op{Kind: OpTransfer, Shard: 9, To: 8}
	if a, _, _ := play(t, o, three(), 1, -1); a.Kind != ActFail {
		t.Errorf("%+v", a)
	}
}

// An operation that waits says for what.
func TestCatchUpSaysWhy(t *testing.T) {
	o := Op{Kind: OpMove, Shard: 2, From: 1, FromReplica: 10, To: 4, Replica: 20}
	d := &shard.Descriptor{Shard: 2, Replicas: []shard.ReplicaDesc{{Replica: 10, Node: 1, Role: shard.RoleVoter}, {Replica: 20, Node: 4, Role: shard.RoleLearner}}}
	for _, c := range []struct {
		v    ShardView
		want string
	}{
		{ShardView{Match: 7, Committed: 9, State: "by the log"}, "the replica on node 4 catches up (by the log): entry 7 of 9"},
		{ShardView{Sent: 2 << 20, Bytes: 64 << 20}, "the replica on node 4 catches up by a snapshot: 2048 KiB sent, the shard holds about 65536 KiB"},
		{ShardView{Note: "waits for a snapshot slot on node 1, 8 of 8 are taken, by shard 5 to node 3, …"},
			"the replica on node 4 catches up: waits for a snapshot slot on node 1, 8 of 8 are taken, by shard 5 to node 3, …"},
	} {
		c.v.Descriptor, c.v.Up = d, func(engine.NodeID) bool { return true }
		if act := o.Next(&c.v); act.Kind != ActWait || act.Reason != c.want {
			t.Errorf("%+v: %q", act, act.Reason)
		}
	}
}

// TestMoveToRemovedNode: the node that is to get a replica is removed from the cluster in the middle of a move. The move does not wait for it for ever:
// it takes the learner back and fails. What is decided is carried out.
func TestMoveToRemovedNode(t *testing.T) {
	d := func(replicas ...shard.ReplicaDesc) *shard.Descriptor {
		return &shard.Descriptor{Shard: 2, Version: 1, ConfVersion: 5, Replicas: append([]shard.ReplicaDesc{
			{Replica: 1, Node: 1, Role: shard.RoleVoter}, {Replica: 2, Node: 2, Role: shard.RoleVoter}}, replicas...)}
	}
	from := shard.ReplicaDesc{Replica: 3, Node: 3, Role: shard.RoleVoter}
	to := func(role shard.Role) shard.ReplicaDesc { return shard.ReplicaDesc{Replica: 9, Node: 4, Role: role} }
	for _, c := range []struct {
		name string
		desc *shard.Descriptor
		want ActionKind
	}{
		{"before anything", d(from), ActFail},
		{"a learner", d(from, to(shard.RoleLearner)), ActChange},
		{"it votes already", d(to(shard.RoleVoter)), ActRemove},
	} {
		o := Op{Kind: OpMove, Shard: 2, From: 3, To: 4, FromReplica: 3, Replica: 9}
		act := o.Next(&ShardView{Descriptor: c.desc, Leader: 1, InStep: true, Up: func(id engine.NodeID) bool { return id != 4 },
			Gone: func(id engine.NodeID) bool { return id == 4 }})
		if act.Kind != c.want {
			t.Errorf("%s: %+v", c.name, act)
		}
		for _, r := range act.Replicas {
			if r.Node == 4 {
				t.Errorf("%s: %+v", c.name, act)
			}
		}
	}
}
