package placement

import (
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// Relocation is one move of a replica of the right shard of a merge: both shards must be on the same nodes. It has the fields of an
// operation that moves, see Op.
type Relocation struct {
	From        engine.NodeID // 0: none goes
	FromReplica engine.ReplicaID
	To          engine.NodeID // 0: none comes
	// Replica is the one that is on node To already as a learner; 0: a new one is needed.
	Replica engine.ReplicaID
}

// WithoutLearners returns the voters of a shard, and whether it has learners besides. Of a shard that only the present operation has, they are what a driver that
// came too late has added: nobody wants them.
func WithoutLearners(d *shard.Descriptor) (voters []shard.ReplicaDesc, learners bool) {
	for _, r := range d.Replicas {
		if r.Role != shard.RoleLearner {
			voters = append(voters, r)
		}
	}
	return voters, len(voters) < len(d.Replicas)
}

// Relocations returns the moves that bring the replicas of right to the nodes of left's voters, in order of nodes. A learner of right that an
// earlier driver has left on one of them goes on as the replica that comes; those of left are to be removed, see WithoutLearners. Nil: they are on the same nodes.
func Relocations(left, right *shard.Descriptor) []Relocation {
	var comes, goes []shard.ReplicaDesc
	stay, _ := WithoutLearners(left)
	for _, l := range stay {
		if r, ok := right.OnNode(l.Node); !ok {
			comes = append(comes, shard.ReplicaDesc{Node: l.Node})
		} else if r.Role == shard.RoleLearner {
			comes = append(comes, r)
		}
	}
	for _, r := range right.Replicas {
		if !slices.ContainsFunc(stay, func(l shard.ReplicaDesc) bool { return l.Node == r.Node }) {
			goes = append(goes, r)
		}
	}
	byNode := func(a, b shard.ReplicaDesc) int { return int(a.Node) - int(b.Node) }
	slices.SortFunc(comes, byNode)
	slices.SortFunc(goes, byNode)
	list := make([]Relocation, max(len(comes), len(goes)))
	for i := range list {
		if i < len(comes) {
			list[i].To, list[i].Replica = comes[i].Node, comes[i].Replica
		}
		if i < len(goes) {
			list[i].From, list[i].FromReplica = goes[i].Node, goes[i].Replica
		}
	}
	return list
}

// Relocation returns the move of a merge that is under way, as an operation of its own; false if there is none.
func (o *Op) Relocation() (Op, bool) {
	if o.Kind != OpMerge || o.From == 0 && o.To == 0 {
		return Op{}, false
	}
	return Op{ID: o.ID, Kind: OpMove, State: OpRunning, Shard: o.Other, From: o.From, To: o.To, FromReplica: o.FromReplica, Replica: o.Replica,
		Cancel: o.Cancel, Why: o.Why}, true
}

// Relocate sets the move of a merge that is under way; the zero value: none.
func (o *Op) Relocate(r Relocation) {
	o.From, o.FromReplica, o.To, o.Replica = r.From, r.FromReplica, r.To, r.Replica
}
