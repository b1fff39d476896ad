package placement

import (
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

func TestRelocations(t *testing.T) {
	voters := func(first engine.ReplicaID, nodes ...engine.NodeID) *shard.Descriptor {
		d := &shard.Descriptor{}
		for i, n := range nodes {
			d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: first + engine.ReplicaID(i), Node: n, Role: shard.RoleVoter})
		}
		return d
	}
	learner := voters(20, 3, 4, 5)
	learner.Replicas = append(learner.Replicas, shard.ReplicaDesc{Replica: 30, Node: 1, Role: shard.RoleLearner})
	stray := voters(20, 1, 2, 3)
	stray.Replicas = append(stray.Replicas, shard.ReplicaDesc{Replica: 30, Node: 9, Role: shard.RoleLearner})
	odd := voters(10, 1, 2, 3)
	odd.Replicas = append(odd.Replicas, shard.ReplicaDesc{Replica: 30, Node: 9, Role: shard.RoleLearner})
	for _, c := range []struct {
		name        string
		left, right *shard.Descriptor
		want        []Relocation
	}{
		{"the same nodes", voters(10, 1, 2, 3), voters(20, 3, 1, 2), nil},
		{"one differs", voters(10, 1, 2, 3), voters(20, 4, 1, 2), []Relocation{{From: 4, FromReplica: 20, To: 3}}},
		{"all differ", voters(10, 3, 2, 1), voters(20, 4, 5, 6), []Relocation{{4, 20, 1, 0}, {5, 21, 2, 0}, {6, 22, 3, 0}}},
		{"the right one lacks one", voters(10, 1, 2, 3), voters(20, 1, 2), []Relocation{{To: 3}}},
		{"the right one has one too many", voters(10, 1, 2, 3), voters(20, 1, 2, 3, 4), []Relocation{{From: 4, FromReplica: 23}}},
		{"a driver died after the learner came", voters(10, 1, 4, 5), learner, []Relocation{{3, 20, 1, 30}}},
		{"a learner where none should be", voters(10, 1, 2, 3), stray, []Relocation{{From: 9, FromReplica: 30}}},
		{"the left one has a learner", odd, voters(20, 1, 2, 3), nil},
		{"both have it", odd, stray, []Relocation{{From: 9, FromReplica: 30}}},
		{"and the right one a voter there", odd, voters(20, 1, 2, 9), []Relocation{{From: 9, FromReplica: 22, To: 3}}},
	} {
		if got := Relocations(c.left, c.right); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// Relocations come to an end, and never take a voter away before another has come.
func TestRelocationsConverge(t *testing.T) {
	left := &shard.Descriptor{Version: 1, ConfVersion: 1}
	right := &shard.Descriptor{Version: 1, ConfVersion: 1}
	for i := range 3 {
		left.Replicas = append(left.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(i + 1), Node: engine.NodeID(i + 1), Role: shard.RoleVoter})
		right.Replicas = append(right.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(i + 11), Node: engine.NodeID(i + 3), Role: shard.RoleVoter})
	}
	next := engine.ReplicaID(100)
	o := Op{Kind: OpMerge, Shard: 2, Other: 3}
	for steps := 0; ; steps++ {
		if steps > 40 {
			t.Fatal("no end")
		}
		mv, under := o.Relocation()
		if !under {
			list := Relocations(left, right)
			if len(list) == 0 {
				break
			}
			if list[0].Replica == 0 {
				list[0].Replica = next
				next++
			}
			o.Relocate(list[0])
			continue
		}
		act := mv.Next(&ShardView{Descriptor: right, Leader: right.Replicas[0].Node, InStep: true, Up: func(engine.NodeID) bool { return true }})
		switch act.Kind {
		case ActChange:
			right.Replicas = act.Replicas
			right.ConfVersion++
		case ActTransfer:
			for i, r := range right.Replicas {
				if r.Node == act.To {
					right.Replicas[0], right.Replicas[i] = right.Replicas[i], right.Replicas[0]
				}
			}
		case ActRemove, ActDone:
			o.Relocate(Relocation{})
		default:
			t.Fatalf("%+v", act)
		}
		if n := len(voters(right)); n < 3 {
			t.Fatalf("%d voters", n)
		}
	}
	for _, l := range left.Replicas {
		if r, ok := right.OnNode(l.Node); !ok || r.Role != shard.RoleVoter {
			t.Errorf("no voter on node %d", l.Node)
		}
	}
}
