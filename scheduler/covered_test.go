package scheduler

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// newCoverer makes a shard of lane 0 whose snapshot is about to be linked, which has absorbed a parent in lane 1 and its child in lane 0.
func newCoverer(t *testing.T) (n *storeNode, left, parent *replica, child engine.ShardID) {
	t.Helper()
	n = newStoreNodeOf(t, 2)
	id := func(from engine.ShardID, lane int) engine.ShardID {
		for n.s.laneOf(from).id != lane {
			from++
		}
		return from
	}
	l := id(2, 0)
	p := id(l+1, 1)
	child = id(p+100, 0)
	return n, n.create(l), n.create(p), child
}

// split applies a split of r in the next turn of its lane.
func (n *storeNode) split(r *replica, child engine.ShardID) {
	d := r.machine.Desc()
	n.s.Split(d.Shard, &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []shard.SplitChild{{Shard: child,
		Start: append(append([]byte(nil), d.Start...), 'm'), Replicas: []shard.SplitReplica{{Node: 1, Replica: 1}}}}}, func(err error) {
		if err != nil {
			n.t.Error(err)
		}
	})
	r.lane.Turn()
	n.s.FlushLog()
}

// TestSplitCheckpointIsWhole: who waits for the split checkpoint from within the turn that applies the split hurries it. It is not written before all
// children are made: a record of the parent from behind the split without them would leave them without data, and after a start for ever unborn
// (rule Split1).
func TestSplitCheckpointIsWhole(t *testing.T) {
	n, _, parent, child := newCoverer(t)
	n.split(parent, child)
	n.s.SampleSplitKeys(parent.key.Shard, 2, func([][]byte, error) {})
	parent.lane.Turn()
	if parent.birth == nil || !parent.birth.hurry {
		t.Fatal("the split was not applied, or nobody waits for it: the test tests nothing")
	}
	n.s.WriteCheckpoint()
	if rec := n.record(parent.key); rec.Applied == parent.machine.Applied() {
		t.Error("the parent's record is behind the split before the child is made")
	}
	for range 50 {
		n.spin(1)
		n.s.WriteCheckpoint()
		n.clock.now += 1e7
	}
	r := n.s.laneOf(child).byShard[child]
	if rec := n.record(r.key); rec.Tombstone || r.birth != nil || parent.birth != nil {
		t.Fatalf("record %+v, births %v %v", rec, r.birth, parent.birth)
	}
}

// TestSplitCheckpointWaitsForSync: the split checkpoint is not written before it is durable that the split is committed (rule Split1), though all
// children are made and somebody waits for it.
func TestSplitCheckpointWaitsForSync(t *testing.T) {
	n, _, parent, child := newCoverer(t)
	n.split(parent, child)
	n.s.SampleSplitKeys(parent.key.Shard, 2, func([][]byte, error) {})
	for range 5 { // without a flush of the log
		n.clock.now += 1e6
		for _, l := range n.s.lanes {
			l.Turn()
		}
		n.s.WriteCheckpoint()
	}
	if rec := n.record(parent.key); rec.Applied == parent.machine.Applied() {
		t.Fatal("the parent's record is behind the split, and the log may not know that it is committed")
	}
	if b := parent.birth; b == nil || !b.hurry || len(b.born) != 1 {
		t.Fatalf("%+v: the split was not applied, its child not made, or nobody waits: the test tests nothing", b)
	}
	n.settle(func() bool { return parent.birth == nil })
}

// TestChildWaitsForItsVote: a message has made the child's replica before the split is applied here. The child takes its place, and its vote, only when
// that is durable and no snapshot is being linked, whose end the engine must hear of (rule Split3).
func TestChildWaitsForItsVote(t *testing.T) {
	for name, c := range map[string]struct{ begin, end func(r *replica) }{
		"vote":     {func(r *replica) { r.ioPending++ }, func(r *replica) { r.ioPending-- }},
		"link":     {func(r *replica) { r.linking = true }, func(r *replica) { r.linking = false }},
		"snapshot": {func(r *replica) { r.snapIn = &snapshotIn{} }, func(r *replica) { r.snapIn = nil }},
	} {
		n, _, parent, child := newCoverer(t)
		l := n.s.laneOf(child)
		r := l.newUninitialised(store.Key{Shard: child, Replica: 1})
		n.spin(5)
		eng := r.eng
		c.begin(r)
		n.split(parent, child)
		for range 10 {
			n.clock.now += 1e7
			n.spin(1)
		}
		if parent.birth == nil || l.byShard[child] != r || r.eng != eng || r.machine != nil {
			t.Errorf("%s: the child is made, or the split was not applied", name)
		}
		c.end(r)
		n.settle(func() bool { return parent.birth == nil && l.byShard[child].machine != nil })
	}
}

// TestSplitBesideLaterReplica: a child is not made in the place of a later replica of its shard, by which it was replaced before the split was applied
// here (rule Split3; FAULTS R8). The split is carried out nevertheless.
func TestSplitBesideLaterReplica(t *testing.T) {
	n, _, parent, child := newCoverer(t)
	l := n.s.laneOf(child)
	later := l.newUninitialised(store.Key{Shard: child, Replica: 2})
	n.spin(3)
	n.split(parent, child)
	n.settle(func() bool { return parent.machine.Desc().Version > 1 && parent.birth == nil })
	if r := l.byShard[child]; r != later || r.machine != nil {
		t.Errorf("%v is here, not %v", r.key, later.key)
	}
	recs, err := n.db.Records()
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range recs {
		if rec.Shard == child {
			t.Errorf("the state holds %v, tombstone %v", rec.Key, rec.Tombstone)
		}
	}
}

// TestChildOfCovered: a replica that a link covers bears a child just when the link comes to it, in a lane that the link has gone by. The child
// is covered as well.
func TestChildOfCovered(t *testing.T) {
	n, left, parent, child := newCoverer(t)
	n.split(parent, child)
	n.cover(left, parent.machine.Desc().End)
	for range 200 {
		n.spin(1)
		n.s.WriteCheckpoint()
		n.clock.now += 1e7
	}
	for _, id := range []engine.ShardID{parent.key.Shard, child} {
		if n.s.laneOf(id).byShard[id] != nil || !n.buried(store.Key{Shard: id, Replica: 1}) {
			t.Errorf("shard %d outlives its absorber's snapshot", id)
		}
	}
	if left.linking || left.machine.Desc().Version != coverVersion {
		t.Error("the snapshot was not linked")
	}
}

// TestOrphansAreAwaited: a link waits while a replica of any lane may still bear an orphan, which it would not see.
func TestOrphansAreAwaited(t *testing.T) {
	n, left, parent, child := newCoverer(t)
	n.s.laneOf(child).orphans[child] = &orphan{log: &raftlog.ReplicaLog{Key: store.Key{Shard: child, Replica: 1}}}
	n.s.orphans.Add(1)
	parent.replayTo = parent.machine.Applied().Index + 1
	n.cover(left, left.machine.Desc().End) // not the parent
	n.spin(50)
	if !left.linking {
		t.Fatal("linked while a parent is being replayed")
	}
	parent.replayTo = 0
	for range 50 {
		n.spin(1)
		n.clock.now += 1e6
	}
	if left.linking || left.machine.Desc().Version != coverVersion {
		t.Fatal("not linked")
	}
}

// TestOrphanIsInTheWay: a later replica of a shard is not made beside an orphan, which is still to be born; and its absorber, or what it absorbs, is
// not judged as if it were not here (rules Log7, Cluster5).
func TestOrphanIsInTheWay(t *testing.T) {
	n := newStoreNode(t)
	key := store.Key{Shard: 2, Replica: 1}
	n.l.orphans[2] = &orphan{log: &raftlog.ReplicaLog{Key: key}}
	n.s.orphans.Add(1)
	m := &wire.Message{Header: wire.Header{Shard: 2, From: 3, To: 9}, Kind: wire.KindVoteRequest}
	if r := n.l.addressee(3, m); r != nil {
		t.Fatalf("replica %v was made", r.key)
	}
	var got error
	absorbed := n.create(3)
	n.l.unlessAbsorbed(2, absorbed, func(err error) { got = err }, func() { t.Error("removed while its absorber is an orphan") })
	n.spin(3)
	if !errors.Is(got, shard.ErrUnavailable) {
		t.Fatal(got)
	}
	n.l.takeOrphan(key)
	if r := n.l.addressee(3, m); r == nil || r.key.Replica != 9 {
		t.Fatal("the later replica is not made when the orphan is gone")
	}
}

// TestRemovedLeavesNoIngest: a snapshot that waits for a replica which goes away is removed from the state.
func TestRemovedLeavesNoIngest(t *testing.T) {
	n := newStoreNode(t)
	r := n.create(2)
	in := n.ingest(r.key)
	r.snapIn = &snapshotIn{token: 1, ingest: in, record: r.machine.Record()}
	n.l.drop(r)
	n.spin(3)
	if _, err := in.Finish(); err == nil {
		t.Fatal("its tablet stays")
	}
}

// TestAbsorberHasPassed: a replica that its absorber, here, needs no more can be removed: it was born, or filled, after the absorber had got all from
// elsewhere (rule Cluster5).
func TestAbsorberHasPassed(t *testing.T) {
	n, left, r := newCovered(t)
	n.linkCovering(left)
	for _, c := range []struct {
		version uint64
		want    bool
	}{{coverVersion - 1, true}, {coverVersion, false}} {
		rec, err := shard.NewReplicaRecord(testDescriptor(3, 1), 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		m, err := shard.Open(n.l.env, &rec)
		if err != nil {
			t.Fatal(err)
		}
		m.Desc().Version = c.version
		went := false
		n.l.unlessAbsorbed(2, &replica{key: r.key, machine: m}, func(error) {}, func() { went = true })
		if n.spin(3); went != c.want {
			t.Errorf("version %d under %d: goes %v", c.version, coverVersion, went)
		}
	}
}
