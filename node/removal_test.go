package node

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// The word of a driver is not enough to destroy a replica on whose acknowledgements a quorum may stand. It was, if the replica had not applied yet that it is a member:
// a driver that had asked a deposed leader could so destroy a voter.
func TestDriversWord(t *testing.T) {
	desc := &shard.Descriptor{Shard: 2, Version: 1, ConfVersion: 3}
	at := func(i uint64) engine.LogID { return engine.LogID{Term: 1, Index: i} }
	for _, c := range []struct {
		name string
		at   engine.LogID
		st   scheduler.ReplicaStatus
		want bool
	}{
		{"it holds nothing", at(9), scheduler.ReplicaStatus{}, true},
		{"it is an orphan", at(9), scheduler.ReplicaStatus{Orphan: true}, false},
		{"a learner that knows nothing of it", at(9), scheduler.ReplicaStatus{Descriptor: desc, MemberAt: at(3)}, true},
		{"it was a member", at(9), scheduler.ReplicaStatus{Descriptor: desc, WasMember: true, MemberAt: at(3)}, false},
		{"its log says that it votes", at(9), scheduler.ReplicaStatus{Descriptor: desc, Votes: true, MemberAt: at(12)}, false},
		{"its log says so, and it was removed after that", at(15), scheduler.ReplicaStatus{Descriptor: desc, Votes: true, MemberAt: at(12)}, true},
		{"its log says so in a term whose end was lost, and it was removed after that", engine.LogID{Term: 2, Index: 9}, scheduler.ReplicaStatus{Descriptor: desc, Votes: true, MemberAt: at(12)}, true},
		{"its log says so, and an older driver asks", engine.LogID{}, scheduler.ReplicaStatus{Descriptor: desc, Votes: true, MemberAt: at(12)}, false},
	} {
		q := removeRequest{Descriptor: *desc, Replica: 9, At: c.at}
		if got := q.mayGo(&c.st); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
