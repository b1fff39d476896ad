package scheduler

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
	"github.com/kiloraft/kiloraft/transport/wire"
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

// goneNode is a node with replica 5 of shard 2, whose disks survive it.
type goneNode struct {
	t     *testing.T
	log   *vfs.Mem
	db    *state.DB
	clock *manualClock
	s     *Scheduler
	stray int
}

func newGoneNode(t *testing.T) *goneNode {
	n := &goneNode{t: t, log: vfs.NewMem(), db: state.NewMem(state.Options{}), clock: &manualClock{now: 1e9}}
	n.start(1)
	d := testDescriptor(2, 1)
	d.Replicas[0].Replica = 5
	n.s.CreateReplicaAsync(NewReplica{d, 5, CreateOptions{Campaign: true}}, func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	})
	n.spin()
	if n.replica() == nil {
		t.Fatal("not made")
	}
	return n
}

func (n *goneNode) start(life uint64) {
	log, found, err := raftlog.Open(n.log, "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		n.t.Fatal(err)
	}
	n.s, err = New(Config{Node: 1, Incarnation: life, Fatal: func(err error) { n.t.Fatal(err) }, OnStray: func(engine.ShardID) { n.stray++ }},
		Deps{Log: log, Recovery: found, State: n.db, Network: noNet{}, Clock: n.clock, Spawn: func(f func()) { f() }, ReadJob: func(*state.ReadJob) {}})
	if err != nil {
		n.t.Fatal(err)
	}
	n.s.PeerConnected(2, 7)
}

func (n *goneNode) spin() {
	for range 20 {
		spin(n.s, n.clock)
	}
}

func (n *goneNode) replica() *replica { return n.s.laneOf(2).byShard[2] }

// ask sends replica to of shard 2 what makes a replica that is not there: a candidate's and a leader's message, of the peer's process inc.
func (n *goneNode) ask(inc uint64, to engine.ReplicaID) {
	h := wire.Header{Shard: 2, From: 9, To: to}
	vote := engine.Vote{Term: 50, Peer: engine.Peer{Node: 2, Replica: 9}}
	n.s.RaftFrame(2, inc, wire.AppendVoteRequest(nil, h, &engine.VoteRequest{Vote: vote, LastLog: engine.LogID{Term: 49, Index: 1000}}))
	n.spin()
	vote.Committed = true
	n.s.RaftFrame(2, inc, wire.AppendAppendRequest(nil, h, &engine.AppendRequest{Vote: vote, Prev: engine.LogID{Term: 1, Index: 1}, Stream: 1, Seq: 1}, nil))
	n.spin()
}

// TestRemovedStaysAway: no late message, and no late snapshot, brings a removed replica back, nor one before it, in this life of the node or in the
// next one (rule Cluster5; FAULTS R6, R7, R9). A later one is made.
func TestRemovedStaysAway(t *testing.T) {
	n := newGoneNode(t)
	snap := &snapshotIn{from: engine.Peer{Node: 2, Replica: 9}, record: n.replica().machine.Record()}
	tablet, err := n.db.AllocTablet()
	if err != nil {
		t.Fatal(err)
	}
	if snap.ingest, err = n.db.NewIngest(tablet); err != nil {
		t.Fatal(err)
	}
	n.s.laneOf(2).remove(2, 5, nil, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	for life := range uint64(3) {
		if life > 0 {
			n.start(life + 1)
		}
		n.spin()
		for to := engine.ReplicaID(4); to <= 5; to++ {
			if n.ask(7, to); n.replica() != nil {
				t.Fatalf("life %d: a message to replica %d has made %v", life, to, n.replica().key)
			}
			if n.s.laneOf(2).snapshotArrived(store.Key{Shard: 2, Replica: to}, 7, snap) || n.replica() != nil {
				t.Fatalf("life %d: a snapshot for replica %d is taken", life, to)
			}
		}
	}
	if n.ask(6, 6); n.replica() != nil {
		t.Fatal("a message of a process that is gone has made a replica")
	}
	if n.ask(7, 6); n.replica() == nil || n.replica().key.Replica != 6 {
		t.Fatal("the next replica is not made")
	}
}

// TestLaterReplicaNeedsProof: a message for a later replica of the shard ends none that holds data. The node is told of it, and looks for proof
// (rule Cluster5).
func TestLaterReplicaNeedsProof(t *testing.T) {
	n := newGoneNode(t)
	r := n.replica()
	n.ask(7, 6)
	if n.replica() != r || r.removed || n.stray == 0 {
		t.Errorf("replica %v, told %d times", n.replica(), n.stray)
	}
	n.stray = 0
	n.ask(7, 4)
	if n.replica() != r || r.removed || n.stray != 0 {
		t.Errorf("a message for an earlier one: replica %v, told %d times", n.replica(), n.stray)
	}
}

// TestLaterReplicaAndVoter: a message for a later replica ends one that a snapshot has filled and that never was a member; not one that votes as its log says: others may
// count on what it has acknowledged.
func TestLaterReplicaAndVoter(t *testing.T) {
	for _, votes := range []bool{false, true} {
		n := &goneNode{t: t, log: vfs.NewMem(), db: state.NewMem(state.Options{}), clock: &manualClock{now: 1e9}}
		tablet, err := n.db.AllocTablet()
		if err != nil {
			t.Fatal(err)
		}
		d := testDescriptor(2, 1)
		d.Replicas[0] = shard.ReplicaDesc{Replica: 9, Node: 2, Role: shard.RoleVoter}
		rec, err := shard.NewReplicaRecord(d, 9, tablet)
		if err != nil {
			t.Fatal(err)
		}
		rec.Key.Replica = 5
		if err := n.db.Write([]state.Change{{Record: rec, NewTablet: true}}, 0); err != nil {
			t.Fatal(err)
		}
		n.start(1)
		n.spin()
		r := n.replica()
		if r == nil || r.machine == nil || r.wasMember() {
			t.Fatalf("%+v", r)
		}
		if votes {
			m := engine.Membership{Voters: [][]engine.Peer{{{Node: 2, Replica: 9}, r.self()}}}
			body := raftlog.AppendEntry(nil, engine.EntryMembership, raftlog.AppendMembership(nil, &m))
			run := wire.Run{Term: 40, First: 2, Count: 1, Special: true, Body: body}
			req := engine.AppendRequest{Vote: engine.Vote{Term: 40, Peer: engine.Peer{Node: 2, Replica: 9}, Committed: true}, Prev: engine.LogID{Term: 1, Index: 1}, Stream: 1, Seq: 1}
			n.s.RaftFrame(2, 7, wire.AppendAppendRequest(nil, wire.Header{Shard: 2, From: 9, To: 5}, &req, []wire.Run{run}))
			n.spin()
		}
		if r.eng.NamedVoter() != votes {
			t.Fatalf("its log: %+v", r.eng.Status())
		}
		if n.ask(7, 6); r.removed == votes || votes && n.stray == 0 {
			t.Errorf("votes %v: removed %v, told %d times", votes, r.removed, n.stray)
		}
	}
}

// TestFrozenIsRemoved: a replica that is frozen for a merge is kept for its absorber, which is here, whatever proves that it is not a member any more;
// unless its shard's descriptor has changed since: a frozen shard changes nothing, so that merge was given up, and nobody needs the replica (rules Merge1,
// Merge2, Cluster5).
func TestFrozenIsRemoved(t *testing.T) {
	for name, c := range map[string]struct {
		change func(d *shard.Descriptor)
		want   bool
	}{
		"no proof":            {nil, false},
		"as frozen":           {func(*shard.Descriptor) {}, false},
		"older":               {func(d *shard.Descriptor) { d.Version--; d.ConfVersion-- }, false},
		"another shard":       {func(d *shard.Descriptor) { d.Shard++; d.Version++ }, false},
		"later version":       {func(d *shard.Descriptor) { d.Version++ }, true},
		"later membership":    {func(d *shard.Descriptor) { d.ConfVersion++ }, true},
		"removed, then alone": {func(d *shard.Descriptor) { d.Version += 3; d.ConfVersion += 2 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newStoreNode(t)
			n.create(2)
			r := n.create(3)
			n.spin(5)
			d := *r.machine.Desc()
			n.l.proposeMerge(r, shard.CommandFreeze, &shard.MergeStep{Version: d.Version, ConfVersion: d.ConfVersion, Other: 2})
			n.settle(func() bool { return r.machine.Merge().Role == shard.MergeFrozen })
			var proof *shard.Descriptor
			if c.change != nil {
				proof = &d
				c.change(proof)
			}
			var got []error
			n.l.remove(3, 1, proof, func(err error) { got = append(got, err) })
			n.spin(5)
			if len(got) != 1 || (got[0] == nil) != c.want || n.buried(r.key) != c.want || !c.want && !errors.Is(got[0], shard.ErrUnavailable) {
				t.Fatalf("answers %v, tombstone %v", got, n.buried(r.key))
			}
		})
	}
}

// TestFrozenIsGone is TestFrozenIsRemoved by the way of a node that is shown an applied descriptor which does not name its replica.
func TestFrozenIsGone(t *testing.T) {
	n := newStoreNode(t)
	n.create(2)
	r := n.create(3)
	n.spin(5)
	d := *r.machine.Desc()
	n.l.proposeMerge(r, shard.CommandFreeze, &shard.MergeStep{Version: d.Version, ConfVersion: d.ConfVersion, Other: 2})
	n.settle(func() bool { return r.machine.Merge().Role == shard.MergeFrozen })
	d.Version, d.ConfVersion = d.Version+1, d.ConfVersion+1
	d.Replicas = []shard.ReplicaDesc{{Replica: 9, Node: 1, Role: shard.RoleLearner}, {Replica: 8, Node: 2, Role: shard.RoleVoter}}
	n.s.RemoveGoneAsync(&d, func(gone engine.ReplicaID, err error) {
		if gone != 1 || err != nil {
			t.Errorf("replica %d: %v", gone, err)
		}
	})
	n.spin(5)
	if !n.buried(r.key) {
		t.Fatal("it is still there")
	}
}
