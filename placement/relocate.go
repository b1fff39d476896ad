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

// Relocations returns the moves that bring the replicas of right to the nodes of left, in order of nodes. A learner of right that an
// earlier driver has left on one of them goes on as the replica that comes. Nil: they are on the same nodes.
func Relocations(left, right *shard.Descriptor) []Relocation {
	var comes, goes []shard.ReplicaDesc
	for _, l := range left.Replicas {
		if r, ok := right.OnNode(l.Node); !ok {
			comes = append(comes, shard.ReplicaDesc{Node: l.Node})
		} else if r.Role == shard.RoleLearner && l.Role != shard.RoleLearner {
			comes = append(comes, r)
		}
	}
	for _, r := range right.Replicas {
		if _, ok := left.OnNode(r.Node); !ok {
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
