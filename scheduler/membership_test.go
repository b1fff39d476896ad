package scheduler

import (
	"errors"
	"strings"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// TestMembershipStepIsForWhatIs: a change is made for one descriptor, keeps who is there under its name, and is void when it comes again (rules
// Cluster6, Engine5; FAULTS M5).
func TestMembershipStepIsForWhatIs(t *testing.T) {
	n := newStoreNode(t)
	r := n.create(2)
	voter := shard.ReplicaDesc{Replica: 1, Node: 1, Role: shard.RoleVoter}
	learner := shard.ReplicaDesc{Replica: 9, Node: 2, Role: shard.RoleLearner}
	change := func(version, conf uint64, replicas ...shard.ReplicaDesc) error {
		return n.l.changeMembership(&MembershipChange{Shard: 2, Version: version, ConfVersion: conf, Replicas: replicas})
	}
	for _, c := range []struct {
		what    string
		version uint64
		want    error
		list    []shard.ReplicaDesc
	}{
		{"of an older version", 0, shard.ErrShardMoved, []shard.ReplicaDesc{voter, learner}},
		{"another replica on a node", 1, shard.ErrInvalid, []shard.ReplicaDesc{{Replica: 9, Node: 1, Role: shard.RoleVoter}}},
		{"a replica on another node", 1, shard.ErrInvalid, []shard.ReplicaDesc{{Replica: 1, Node: 2, Role: shard.RoleVoter}}},
		{"two on a node", 1, shard.ErrInvalid, []shard.ReplicaDesc{voter, {Replica: 9, Node: 1, Role: shard.RoleLearner}}},
		{"one twice", 1, shard.ErrInvalid, []shard.ReplicaDesc{voter, voter}},
		{"no voter", 1, shard.ErrInvalid, []shard.ReplicaDesc{learner}},
	} {
		if err := change(c.version, 1, c.list...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}

	// What is committed and not applied is not in the descriptor that a step is compared with.
	r.linking = true // parks what is to be applied
	if err := change(1, 1, voter, learner); err != nil {
		t.Fatal(err)
	}
	n.spin(3)
	if st := r.eng.Status(); st.Committed != st.Membership.LogID || r.machine.Desc().ConfVersion != 1 {
		t.Fatalf("not committed, or applied already: %+v", st)
	}
	if err := change(1, 1, voter); !errors.Is(err, shard.ErrUnavailable) || !strings.Contains(err.Error(), "in progress") {
		t.Errorf("while a change is not applied: %v", err)
	}
	r.linking = false
	n.l.resume(r, r.apply.gen, nil)
	if n.spin(2); r.machine.Desc().ConfVersion != 2 {
		t.Fatalf("%v", r.machine.Desc())
	}
	for _, conf := range []uint64{1, 3} {
		if err := change(1, conf, voter, learner); !errors.Is(err, shard.ErrShardMoved) {
			t.Errorf("again, for configuration %d: %v", conf, err)
		}
	}

	// A leader that has not applied its own blank entry may know an older descriptor than the shard has.
	if err := change(1, 2, voter); err != nil {
		t.Fatal(err)
	}
	n.spin(3)
	r.linking = true
	n.l.feed(r, resignEvent)
	for i := 0; !r.eng.IsLeader() || r.eng.Status().Committed.Term != r.eng.Status().Vote.Term; i++ {
		if i == 100 {
			t.Fatalf("not elected again: %+v", r.eng.Status())
		}
		n.clock.now += 1e9
		n.spin(1)
	}
	if err := change(1, r.machine.Desc().ConfVersion, voter, learner); !errors.Is(err, shard.ErrUnavailable) {
		t.Errorf("before its own entry is applied: %v", err)
	}
}

// TestRecoveredMembership: the newest membership in the log is in force after a restart, joint or not, and the one before it comes back if that is
// cut off (FAULTS M2, M6).
func TestRecoveredMembership(t *testing.T) {
	at := func(index uint64, voters ...[]engine.Peer) (engine.MembershipAt, raftlog.Special) {
		m := &engine.Membership{Voters: voters}
		id := engine.LogID{Term: 3, Index: index}
		return engine.MembershipAt{LogID: id, Membership: m}, raftlog.Special{LogID: id, Kind: engine.EntryMembership, Payload: raftlog.AppendMembership(nil, m)}
	}
	old, fresh := []engine.Peer{{Node: 1, Replica: 1}, {Node: 2, Replica: 2}}, []engine.Peer{{Node: 1, Replica: 1}, {Node: 3, Replica: 3}}
	applied, _ := at(4, old)
	_, covered := at(3, fresh)
	joint, first := at(7, old, fresh)
	after, second := at(9, fresh)
	barrier := raftlog.Special{LogID: engine.LogID{Term: 3, Index: 8}, Kind: engine.EntryBarrier}
	for _, c := range []struct {
		specials       []raftlog.Special
		newest, before engine.MembershipAt
	}{
		{[]raftlog.Special{covered, first}, joint, applied},
		{[]raftlog.Special{covered, first, barrier, second}, after, joint},
	} {
		out := engine.Recovered{Applied: engine.LogID{Term: 3, Index: 5}, Membership: applied}
		if err := addSpecials(&out, c.specials); err != nil {
			t.Fatal(err)
		}
		same := func(a, b engine.MembershipAt) bool {
			return a.LogID == b.LogID && string(raftlog.AppendMembership(nil, a.Membership)) == string(raftlog.AppendMembership(nil, b.Membership))
		}
		if !same(out.Membership, c.newest) || !same(out.Previous, c.before) {
			t.Errorf("%d entries: %+v before %+v, want %+v before %+v", len(c.specials), out.Previous, out.Membership, c.before, c.newest)
		}
	}
}
