package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// What must not be destroyed: a replica that was filled by a snapshot from before the entry that adds it. It may vote already.
func TestProvesGone(t *testing.T) {
	desc := func(conf uint64, ids ...engine.ReplicaID) *shard.Descriptor {
		d := &shard.Descriptor{Shard: 2, Version: 1, ConfVersion: conf}
		for _, id := range ids {
			d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: id, Node: engine.NodeID(id % 10), Role: shard.RoleVoter})
		}
		return d
	}
	at := func(version uint64, d *shard.Descriptor) *shard.Descriptor { d.Version = version; return d }
	for _, c := range []struct {
		name    string
		d, mine *shard.Descriptor
		self    engine.ReplicaID
		before  bool
		want    bool
	}{
		{"a member", desc(3, 1, 2, 3), desc(3, 1, 2, 3), 3, false, false},
		{"removed", desc(3, 1, 2), desc(2, 1, 2, 3), 3, false, true},
		{"not yet added there", desc(2, 1, 2), desc(3, 1, 2, 3), 3, false, false},
		{"it has applied its removal", desc(3, 1, 2), desc(3, 1, 2), 3, true, true},
		{"it has applied its removal, and asks a laggard", desc(2, 1, 2), desc(3, 1, 2), 3, true, false},
		{"filled from before it was added", desc(1, 1, 2), desc(1, 1, 2), 3, false, false},
		{"filled from before it was added, and from before another change", desc(2, 1), desc(1, 1, 2), 3, false, false},
		{"never added, and another took its place", desc(2, 1, 2, 13), desc(1, 1, 2), 3, false, true},
		{"an earlier one was in its place", desc(1, 1, 2, 3), desc(1, 1, 2, 3), 13, false, false},
		// Version says nothing of members: a split or merge raises it on its own (FAULTS R11).
		{"removed, and a split that the other has not seen", desc(3, 1, 2), at(2, desc(2, 1, 2, 3)), 3, false, true},
		{"not yet added there, where a split was seen first", at(2, desc(2, 1, 2)), desc(3, 1, 2, 3), 3, false, false},
		{"it has applied its removal, and asks a laggard that has seen a split", at(2, desc(2, 1, 2)), desc(3, 1, 2), 3, true, false},
		{"it has applied its removal and a split that the other has not seen", desc(3, 1, 2), at(2, desc(3, 1, 2)), 3, true, true},
		{"another took its place, and a split that the other has not seen", desc(3, 1, 2, 13), at(2, desc(2, 1, 2)), 3, false, true},
		{"another was in its place, where a split was seen since", at(2, desc(2, 1, 2, 13)), desc(3, 1, 2), 3, false, false},
	} {
		if got := provesGone(c.d, c.mine, engine.Peer{Node: engine.NodeID(c.self % 10), Replica: c.self}, c.before); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
