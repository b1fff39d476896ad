package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// fullStore is a state whose disk may be full, or fail with err.
type fullStore struct {
	*state.DB
	full bool
	most int // if not 0, the data for which there is space
	err  error
	log  *raftlog.Log
	late func(seq, synced uint64) // it is told of a sequence that is not durable
}

// Write refuses no sequence that is not durable, as no state does: with such a one a node does not start after a power cut, as its log is then known to have lost something
// (rule Log3, FAULTS D4).
func (f *fullStore) Write(changes []state.Change, seq uint64) error {
	if synced := f.log.Synced(); seq > synced {
		f.late(seq, synced)
	}
	if f.err != nil {
		return f.err
	}
	size := 0
	for i := range changes {
		if o := changes[i].Overlay; o != nil {
			size += o.DataBytes()
		}
	}
	if f.full || f.most > 0 && size > f.most {
		return state.ErrNoSpace
	}
	return f.DB.Write(changes, seq)
}

// storeNode is one node with one shard of one voter, on disks that may be full.
type storeNode struct {
	t     *testing.T
	s     *Scheduler
	l     *Lane
	r     *replica
	clock *manualClock
	db    *fullStore
	full  bool // for segments of the log
	fail  bool // syncs of the log
	ended []error
	dies  bool // it is expected to end itself, into ended
}

func newStoreNode(t *testing.T) *storeNode { return newStoreNodeOf(t, 1) }

func newStoreNodeOf(t *testing.T, lanes int) *storeNode {
	return newStoreNodeWith(t, lanes, raftlog.Options{})
}

func newStoreNodeWith(t *testing.T, lanes int, opt raftlog.Options) *storeNode {
	n := &storeNode{t: t, clock: &manualClock{now: 1e9}, db: &fullStore{DB: state.NewMem(state.Options{})}}
	fs := vfs.Inject(vfs.NewMem(), func(op *vfs.Op) error {
		if n.full && op.Kind == vfs.OpAllocate {
			return unix.ENOSPC
		}
		if n.fail && op.Kind == vfs.OpDatasync {
			return unix.EIO
		}
		return nil
	})
	opt.SegmentBytes, opt.CacheBytes = 1<<20, 4<<20
	log, rec, err := raftlog.Open(fs, "log", opt)
	if err != nil {
		t.Fatal(err)
	}
	n.db.log, n.db.late = log, func(seq, synced uint64) {
		t.Errorf("the state is told that sequence %d of the log is durable, %d is", seq, synced)
	}
	fatal := func(err error) {
		if n.ended = append(n.ended, err); !n.dies {
			t.Fatal(err)
		}
	}
	n.s, err = New(Config{Node: 1, Incarnation: 1, Lanes: lanes, Fatal: fatal}, Deps{Log: log, Recovery: rec,
		State: n.db, Network: noNet{}, Clock: n.clock, Spawn: func(f func()) { f() }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.s.run.readers.Close)
	n.s.CreateReplicaAsync(NewReplica{testDescriptor(1, 1), 1, CreateOptions{Campaign: true}}, func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	})
	n.l = n.s.laneOf(1)
	n.spin(20)
	n.r = n.l.byShard[1]
	return n
}

func (n *storeNode) spin(turns int) {
	for range turns {
		spin(n.s, n.clock)
		if !n.s.MaintainLog() {
			n.t.Fatal("the log has failed")
		}
	}
}

func (n *storeNode) put(k int, size int) error {
	done := false
	req := &Request{Kind: KindWrite, Shard: 1, Body: testPut(1, k, string(make([]byte, size))), Done: func(*Request) { done = true }}
	n.s.Submit(req)
	for i := 0; !done; i++ {
		if i == 100 {
			n.t.Fatal("no answer")
		}
		n.spin(1)
	}
	return req.Err
}

// TestFullLogRefusesWrites: rule State6. Writes are refused while half a segment is left for what frees some, the process goes on,
// and so do writes once there is space.
func TestFullLogRefusesWrites(t *testing.T) {
	n := newStoreNode(t)
	n.full = true
	var err error
	for k := 0; err == nil && k < 40; k++ {
		err = n.put(k, 60_000)
	}
	if !errors.Is(err, shard.ErrUnavailable) || n.s.LogFull() || !n.s.DiskFull() {
		t.Fatalf("error %v, log full %v, disk full %v", err, n.s.LogFull(), n.s.DiskFull())
	}
	n.full = false
	n.spin(1)
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
}

// TestFullStateRefusesWrites: rule State6.
func TestFullStateRefusesWrites(t *testing.T) {
	n := newStoreNode(t)
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
	n.db.full = true
	n.l.checkpoint(n.r)
	n.s.WriteCheckpoint()
	if err := n.put(1, 10); !errors.Is(err, shard.ErrUnavailable) || !n.s.DiskFull() {
		t.Fatalf("error %v, disk full %v", err, n.s.DiskFull())
	}
	n.db.full = false
	n.s.WriteCheckpoint()
	if err := n.put(1, 10); err != nil || n.s.DiskFull() {
		t.Fatal(err)
	}
}

// TestBigCutHoldsNobody: a cut for which there is no space is in the way of no smaller one, whether somebody waits for that or not; writes are
// refused until it is written, too.
func TestBigCutHoldsNobody(t *testing.T) {
	n := newStoreNode(t)
	var small []*replica
	for id := engine.ShardID(2); id < 12; id++ {
		small = append(small, n.create(id))
	}
	for k := range 4 {
		if err := n.put(k, 40_000); err != nil {
			t.Fatal(err)
		}
	}
	n.db.most = 100_000
	waited := false
	n.l.checkpoint(n.r)
	n.l.whenSettled(n.r, func(*Lane) { waited = true })
	for _, r := range small {
		n.l.checkpoint(r)
	}
	for n.s.WriteCheckpoint() {
		n.spin(1)
	}
	for _, r := range small {
		if r.machine.Dirty() {
			t.Errorf("%v waits for the big one", r.key)
		}
	}
	if err := n.put(1, 10); waited || !errors.Is(err, shard.ErrUnavailable) || !n.s.CheckpointsWaiting() {
		t.Fatalf("the big one is written %v, error %v", waited, err)
	}
	n.db.most = 0
	n.l.checkpoint(small[0]) // smaller ones that come all the time do not keep it waiting
	n.s.WriteCheckpoint()
	n.spin(1)
	if err := n.put(1, 10); !waited || err != nil {
		t.Fatalf("the big one is written %v, error %v", waited, err)
	}
}

// TestUnpinLeavesCutsAlone: a replica whose checkpoint is under way is purged by it; rewriting hundreds of such logs in one
// turn would make a batch that no frame can hold (rules Log5, Log6).
func TestUnpinLeavesCutsAlone(t *testing.T) {
	n := newStoreNode(t)
	for k := range 4 {
		if err := n.put(k, 40_000); err != nil {
			t.Fatal(err)
		}
	}
	n.l.checkpoint(n.r)
	before := n.s.log.Metrics().Bytes.Load()
	n.l.unpin()
	n.spin(3)
	if wrote := n.s.log.Metrics().Bytes.Load() - before; wrote > rewriteBytesMax {
		t.Fatalf("%d bytes were rewritten", wrote)
	}
	n.s.WriteCheckpoint()
	n.spin(3)
	if st := n.l.log.Stats(n.r.key); st.Bytes > 0 {
		t.Fatalf("the log still holds %d bytes", st.Bytes)
	}
}

// TestLinkFails: a snapshot that cannot be linked leaves nothing behind that would start a later apply twice.
func TestLinkFails(t *testing.T) {
	n := newStoreNode(t)
	n.db.full = true
	tablet, _ := n.db.AllocTablet()
	in, err := n.db.NewIngest(tablet)
	if err != nil {
		t.Fatal(err)
	}
	snap := &snapshotIn{token: 1, ingest: in, record: n.r.machine.Record()}
	snap.record.Applied.Index += 10
	n.r.snapIn = snap
	n.l.linkSnapshot(n.r, snap, engine.SnapshotMeta{Last: snap.record.Applied})
	n.spin(2)
	if n.r.linking || n.r.snapIn != nil || n.r.apply.parked {
		t.Fatalf("linking %v, snapshot %v, parked %v", n.r.linking, n.r.snapIn, n.r.apply.parked)
	}
}

// ingest fills a fresh tablet with what the state holds of a replica.
func (n *storeNode) ingest(key store.Key) *state.Ingest {
	n.t.Helper()
	tablet, err := n.db.AllocTablet()
	if err != nil {
		n.t.Fatal(err)
	}
	in, err := n.db.NewIngest(tablet)
	if err != nil {
		n.t.Fatal(err)
	}
	stored := n.record(key)
	sn := n.db.OpenSnapshot(stored, stored)
	for {
		chunk, err := sn.Next(nil)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = in.Chunk(chunk)
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
	if _, err := in.Finish(); err != nil {
		n.t.Fatal(err)
	}
	return in
}

// coverVersion is that of the snapshots that cover links.
const coverVersion = 5

// linkCovering links a snapshot of r, shard 2, that has absorbed shard 3.
func (n *storeNode) linkCovering(r *replica) {
	n.t.Helper()
	n.cover(r, testDescriptor(3, 1).End)
	n.spin(3)
}

// cover begins to link a snapshot of r that has absorbed all up to end.
func (n *storeNode) cover(r *replica, end []byte) {
	n.t.Helper()
	in := n.ingest(r.key)
	d := testDescriptor(r.key.Shard, 1)
	d.End = end
	rec, err := shard.NewReplicaRecord(d, 1, in.Tablet())
	if err != nil {
		n.t.Fatal(err)
	}
	m, err := shard.Open(n.l.env, &rec)
	if err != nil {
		n.t.Fatal(err)
	}
	m.Desc().Version = coverVersion // nobody else holds this machine
	rec = m.Record()
	rec.Applied = r.machine.Applied()
	rec.Applied.Index += 10
	snap := &snapshotIn{token: 1, ingest: in, record: rec}
	r.snapIn = snap
	r.lane.linkSnapshot(r, snap, engine.SnapshotMeta{Last: rec.Applied})
}

// record returns what the state holds of a replica.
func (n *storeNode) record(key store.Key) state.Record {
	n.t.Helper()
	recs, err := n.db.Records()
	if err != nil {
		n.t.Fatal(err)
	}
	i := slices.IndexFunc(recs, func(rec state.Record) bool { return rec.Key == key })
	if i < 0 {
		n.t.Fatalf("no record of %v", key)
	}
	return recs[i]
}

// buried tells whether the tombstone of a replica is durable.
func (n *storeNode) buried(key store.Key) bool { return n.record(key).Tombstone }

// newCovered makes shards 2 and 3, and a snapshot of 2 that has absorbed 3 whose link fails: 3 is silent.
func newCovered(t *testing.T) (n *storeNode, left, right *replica) {
	t.Helper()
	n = newStoreNode(t)
	left, right = n.create(2), n.create(3)
	n.spin(20)
	n.db.full = true
	n.linkCovering(left)
	n.db.full = false
	if n.l.byShard[3] != nil || left.linking {
		t.Fatal("shard 3 is not silent, or the link goes on")
	}
	return n, left, right
}

// TestCoveredAfterFailedLink: a link that fails has silenced the replicas that it covers. They have no tombstone, for a start must find
// them where no snapshot comes again (rule Merge3); the next link writes it, and who waits for a removal hears of the failure.
func TestCoveredAfterFailedLink(t *testing.T) {
	n, left, r := newCovered(t)
	var got []error
	n.l.remove(3, 1, nil, func(err error) { got = append(got, err) })
	n.spin(3)
	if len(got) != 1 || !errors.Is(got[0], shard.ErrUnavailable) || n.buried(r.key) {
		t.Fatalf("a removal while its absorber waits for a snapshot: answers %v, tombstone %v", got, n.buried(r.key))
	}
	n.linkCovering(left)
	if !n.buried(r.key) || len(n.l.burials) > 0 || len(n.l.covered) > 0 {
		t.Fatalf("after the next link: tombstone %v, %d burials, %d covered", n.buried(r.key), len(n.l.burials), len(n.l.covered))
	}
}

// TestCoveredIsRemoved: where the absorber of a replica that a failed link has silenced is gone, its removal leaves a tombstone.
func TestCoveredIsRemoved(t *testing.T) {
	n, _, r := newCovered(t)
	var got []error
	n.l.remove(2, 1, nil, func(err error) { got = append(got, err) })
	n.spin(3)
	n.l.remove(3, 1, nil, func(err error) { got = append(got, err) })
	n.spin(3)
	if len(got) != 2 || got[0] != nil || got[1] != nil || !n.buried(r.key) || len(n.l.covered)+len(n.l.burials) > 0 {
		t.Fatalf("answers %v, tombstone %v, %d covered, %d burials", got, n.buried(r.key), len(n.l.covered), len(n.l.burials))
	}
}

// TestCreateBesideSnapshot: a replica is not made anew while a snapshot fills it, for the engine that waits for it must hear of it;
// nor after it was removed.
func TestCreateBesideSnapshot(t *testing.T) {
	n := newStoreNode(t)
	key := store.Key{Shard: 2, Replica: 1}
	r := n.l.newUninitialised(key)
	n.spin(3)
	r.linking = true
	eng := r.eng
	rec, err := shard.NewReplicaRecord(testDescriptor(2, 1), 1, 99)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	n.l.create(&rec, CreateOptions{}, func(error) { made++ })
	n.clock.now += 1e9
	n.spin(3)
	if made != 0 || r.eng != eng || r.machine != nil {
		t.Fatal("made while a snapshot is being linked")
	}
	r.linking = false
	n.clock.now += 1e9
	n.spin(3)
	if made != 1 || r.machine == nil {
		t.Fatal("not made")
	}

	gone := store.Key{Shard: 3, Replica: 1}
	n.l.noteRemoved(gone)
	rec3, err := shard.NewReplicaRecord(testDescriptor(3, 1), 1, 98)
	if err != nil {
		t.Fatal(err)
	}
	n.l.create(&rec3, CreateOptions{}, func(e error) { err = e })
	if !errors.Is(err, ErrExists) || n.l.byShard[3] != nil {
		t.Fatalf("a removed replica was made again: %v", err)
	}
}

// TestTombAbove: a tombstone is for its replica and those before it, in whatever order they are noted, and for no other shard.
func TestTombAbove(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := &Lane{tombs: map[engine.ShardID]engine.ReplicaID{}}
		var all []store.Key
		for range rng.IntN(8) {
			k := store.Key{Shard: engine.ShardID(rng.IntN(3)), Replica: engine.ReplicaID(1 + rng.IntN(5))}
			all = append(all, k)
			l.noteRemoved(k)
		}
		for i := range 3 * 7 {
			k := store.Key{Shard: engine.ShardID(i / 7), Replica: engine.ReplicaID(i % 7)}
			want := slices.ContainsFunc(all, func(t store.Key) bool { return t.Shard == k.Shard && t.Replica >= k.Replica })
			if got := l.tombAbove(k); got != want {
				t.Fatalf("seed %d: %v above %v: %v", seed, all, k, got)
			}
		}
	}
}

// TestGarbageIsCollected: rule State4, by the goroutines of a scheduler.
func TestGarbageIsCollected(t *testing.T) {
	log, rec, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	db := state.NewMem(state.Options{})
	s, err := New(Config{Node: 1, Incarnation: 1, CheckpointInterval: 1e6, Fatal: func(err error) { t.Error(err) }},
		Deps{Log: log, Recovery: rec, State: db, Network: noNet{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateReplicas(ctx, []NewReplica{{testDescriptor(1, 1), 1, CreateOptions{}}}); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveReplica(ctx, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	for db.Stats().GarbageRanges > 0 {
		select {
		case <-ctx.Done():
			t.Fatal("garbage stays for ever")
		case <-time.After(time.Millisecond):
		}
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestReadOfLargeColdValues: a read brings no more into memory than its answer holds, however many keys it names.
func TestReadOfLargeColdValues(t *testing.T) {
	n := newStoreNode(t)
	var keys [][]byte
	for k := range 6 {
		if err := n.put(k, 3<<20); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, fmt.Appendf(nil, "%05d/%d", 1, k))
	}
	n.l.checkpoint(n.r)
	n.s.WriteCheckpoint()
	n.spin(3)
	var jobs []*state.ReadJob
	n.s.readJob = func(job *state.ReadJob) {
		jobs = append(jobs, job)
		n.db.RunJob(job)
		job.Done(job)
	}
	for len(keys) > 0 {
		done := false
		req := &Request{Kind: KindRead, Shard: 1, Body: shard.AppendRead(nil, &shard.Read{Shard: 1, Version: 1, Keys: keys}), Done: func(*Request) { done = true }}
		n.s.Submit(req)
		for i := 0; !done && i < 100; i++ {
			n.spin(1)
		}
		entries, err := shard.DecodeAnswer(req.Answer, keys, nil)
		if req.Err != nil || err != nil || !done || len(entries) == 0 {
			t.Fatal(req.Err, err, done, entries)
		}
		for _, e := range entries {
			if len(e.Value) != 3<<20 {
				t.Fatalf("%d bytes", len(e.Value))
			}
		}
		keys = keys[len(entries):]
	}
	for _, job := range jobs {
		if len(job.Points) > 2 {
			t.Fatalf("%d values of 3 MiB in one job", len(job.Points))
		}
	}
}

// TestNeedIsTheJobs: what a lane collects for the next entries must not change the keys of a job that a reader has, or that was read: their
// values would be taken for those of others (rule State1).
func TestNeedIsTheJobs(t *testing.T) {
	n := newStoreNode(t)
	var job *state.ReadJob
	n.s.readJob = func(j *state.ReadJob) { job = j }
	fetch := func(keys ...string) {
		t.Helper()
		var need shard.Need
		for _, k := range keys {
			n.r.machine.Collect(shard.AppendWriteEntry(nil, 1, shard.AppendWrite(nil, &shard.Write{Shard: 1, Version: 1,
				Ops: []shard.Op{{Kind: shard.OpAdd, Key: []byte(k), Delta: 1}}})), &need)
		}
		n.l.submitNeed(n.r, &need)
	}
	fetch("00001/a", "00001/b")
	first := job
	fetch("00001/c")
	if got := string(first.Keys[0]); got != "00001/a" || n.r.apply.job != nil {
		t.Fatalf("the job's key is %q, an earlier job %v", got, n.r.apply.job)
	}
}

// TestFullLogFreesItself: on a full disk the log makes room of its own oldest segments, though nobody may write (rules Log5, State6).
func TestFullLogFreesItself(t *testing.T) {
	n := newStoreNode(t)
	for k := range 30 {
		if err := n.put(k, 60_000); err != nil {
			t.Fatal(err)
		}
	}
	n.full = true
	var err error
	for k := 0; err == nil && k < 40; k++ {
		err = n.put(k, 60_000)
	}
	if oldest, active := n.s.log.Segments(); !errors.Is(err, shard.ErrUnavailable) || oldest == active {
		t.Fatalf("error %v, segments %d to %d", err, oldest, active)
	}
	for range 5 {
		n.s.LookForCheckpoints()
		n.spin(2)
		for n.s.WriteCheckpoint() {
			n.spin(3)
		}
	}
	if err := n.put(1, 10); err != nil {
		oldest, active := n.s.log.Segments()
		t.Fatalf("still refused: %v, segments %d to %d", err, oldest, active)
	}
}

// TestFullLogOfFollower: entries of leaders elsewhere do not take the room that the log needs to free its oldest segments, and so does not
// need more than it has to go on (rules Log5, State6).
func TestFullLogOfFollower(t *testing.T) {
	n := newStoreNode(t)
	for k := range 30 {
		if err := n.put(k, 60_000); err != nil {
			t.Fatal(err)
		}
	}
	n.full = true
	r := n.follower(2, 40)
	if n.s.LogFull() || !n.s.DiskFull() {
		t.Errorf("log full %v, disk full %v", n.s.LogFull(), n.s.DiskFull())
	}
	last := n.l.log.Stats(r.key).Last
	n.offerEntry(r, last, engine.LogID{Term: 2, Index: last.Index + 1}, engine.EntryBlank, nil)
	n.spin(2)
	if now := n.l.log.Stats(r.key).Last; now.Index != last.Index+1 {
		t.Errorf("what no client has written is not taken, behind %v", last)
	}
	for range 10 {
		n.s.LookForCheckpoints()
		n.spin(2)
		for n.s.WriteCheckpoint() {
			n.spin(3)
		}
	}
	if oldest, active := n.s.log.Segments(); n.s.DiskFull() || oldest == 1 {
		t.Fatalf("still full, segments %d to %d", oldest, active)
	}
	last = n.l.log.Stats(r.key).Last
	n.offer(r, last, engine.LogID{Term: 2, Index: last.Index + 1}, 60_000)
	n.spin(2)
	if now := n.l.log.Stats(r.key).Last; now.Index != last.Index+1 {
		t.Fatalf("it takes nothing now, behind %v", last)
	}
}

// TestFullLogFreesBeforeItWaits: a batch finds no space, and the log has not yet said that its oldest segments are needed no more.
func TestFullLogFreesBeforeItWaits(t *testing.T) {
	n := newStoreNode(t)
	for k := range 22 {
		if err := n.put(k, 60_000); err != nil {
			t.Fatal(err)
		}
	}
	n.r.purgeAll = true
	n.l.checkpoint(n.r)
	n.full = true
	for n.s.WriteCheckpoint() {
	}
	spin(n.s, n.clock)
	n.l.log.Pinned(nil, 0)
	if oldest, active := n.s.log.Segments(); oldest == active {
		t.Fatalf("segments %d to %d: the test tests nothing", oldest, active)
	}
	done := false
	n.s.Submit(&Request{Kind: KindWrite, Shard: 1, Body: testPut(1, 1, string(make([]byte, 900_000))), Done: func(*Request) { done = true }})
	for range 20 {
		spin(n.s, n.clock)
		if n.s.LogFull() { // as the log writer does
			n.s.FlushLog()
		}
	}
	if !done {
		oldest, active := n.s.log.Segments()
		t.Fatalf("no answer; log full %v, segments %d to %d", n.s.LogFull(), oldest, active)
	}
}

// TestSlowStateRefusesWrites: what waits in memory for the store is bounded (FAULTS D16, trap 30).
func TestSlowStateRefusesWrites(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.CheckpointBytes = 100_000
	var err error
	for k := 0; err == nil && k < 100; k++ {
		err = n.put(k, 20_000)
		n.s.LookForCheckpoints()
		n.spin(1)
	}
	if !errors.Is(err, shard.ErrOverloaded) {
		t.Fatalf("error %v", err)
	}
	for n.s.WriteCheckpoint() {
		n.spin(2)
		n.s.LookForCheckpoints()
		n.spin(2)
	}
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
}

// TestHeldApplyGoesOn: what is not applied while the overlays hold too much is applied as soon as checkpoints have made room, with no snapshot
// from anywhere.
func TestHeldApplyGoesOn(t *testing.T) {
	n := newStoreNode(t)
	for k := range 10 {
		if err := n.put(k, 60_000); err != nil {
			t.Fatal(err)
		}
	}
	answers := 0
	n.s.Submit(&Request{Kind: KindWrite, Shard: 1, Body: testPut(1, 10, "v"), Done: func(r *Request) {
		if answers++; r.Err != nil {
			t.Error(r.Err)
		}
	}})
	n.l.Turn() // it is accepted, and not durable yet
	n.s.cfg.CheckpointBytes = 100_000
	n.spin(5)
	if answers != 0 || n.s.metrics.AppliesHeld.Load() != 1 {
		t.Fatalf("%d answers, held %d times", answers, n.s.metrics.AppliesHeld.Load())
	}
	n.s.LookForCheckpoints()
	n.spin(2)
	for n.s.WriteCheckpoint() {
		n.spin(2)
	}
	n.spin(2)
	if answers != 1 || n.r.held {
		t.Fatalf("there is room again: %d answers, held %v", answers, n.r.held)
	}
}

// TestVoteOfNextReplica: replica 1 is being removed, replica 2 of the shard has voted on this node already, and the crash comes before
// the tombstone of 1. The vote of 2 must survive, whoever stands in its way (rule Log7).
func TestVoteOfNextReplica(t *testing.T) {
	mem := vfs.NewMem()
	db := state.NewMem(state.Options{})
	tablet, _ := db.AllocTablet()
	d := testDescriptor(1, 1)
	rec, err := shard.NewReplicaRecord(d, 1, tablet)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Write([]state.Change{{Record: rec, NewTablet: true}}, 0); err != nil {
		t.Fatal(err)
	}
	log, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	key := store.Key{Shard: 1, Replica: 2}
	vote := engine.Vote{Term: 7, Peer: engine.Peer{Node: 3, Replica: 3}}
	log.Lane(0).Init(store.Key{Shard: 1, Replica: 1}, engine.Vote{}, rec.Applied)
	log.Lane(0).Init(key, engine.Vote{}, engine.LogID{})
	log.Lane(0).SaveVote(key, vote)
	log.Lane(0).Submit()
	if _, err := log.Flush(); err != nil {
		t.Fatal(err)
	}
	for life := range 2 {
		log, found, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		clock := &manualClock{now: 1e9}
		s, err := New(Config{Node: 1, Incarnation: uint64(life + 1), Fatal: func(err error) { t.Fatal(err) }}, Deps{Log: log, Recovery: found,
			State: db, Network: noNet{}, Clock: clock, Spawn: func(f func()) { f() }, ReadJob: func(*state.ReadJob) {}})
		if err != nil {
			t.Fatal(err)
		}
		l := s.lanes[0]
		for range 5 {
			l.unpin()
			spin(s, clock)
		}
		if life == 0 {
			continue
		}
		l.remove(1, 1, nil, func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		})
		for range 20 {
			s.WriteCheckpoint()
			clock.now += 1e7
			spin(s, clock)
		}
		if got := l.newUninitialised(key).eng.Status().Vote; got != vote {
			t.Fatalf("vote %+v, was %+v", got, vote)
		}
	}
}

// TestSyncedSequenceIsStored: the state knows of the log before the first checkpoint, so that a log that is lost is noticed (rule Log3).
func TestSyncedSequenceIsStored(t *testing.T) {
	n := newStoreNode(t)
	if n.s.WriteCheckpoint() {
		t.Fatal("there was a checkpoint to write")
	}
	if seq, err := n.db.SyncedSeq(); err != nil || seq == 0 || seq > n.s.log.Synced() {
		t.Fatalf("sequence %d of %d, %v", seq, n.s.log.Synced(), err)
	}
}

// create makes another shard of one voter.
func (n *storeNode) create(id engine.ShardID) *replica {
	n.s.CreateReplicaAsync(NewReplica{testDescriptor(id, 1), 1, CreateOptions{Campaign: true}}, func(err error) {
		if err != nil {
			n.t.Fatal(err)
		}
	})
	n.spin(20)
	return n.s.laneOf(id).byShard[id]
}

// fill makes the log go through its segments, with checkpoints.
func (n *storeNode) fill() {
	for k := range 100 {
		if err := n.put(k, 60_000); err != nil {
			n.t.Fatal(err)
		}
		n.s.LookForCheckpoints()
		n.spin(2)
		for n.s.WriteCheckpoint() {
			n.spin(2)
		}
	}
}

// TestStoppedReplicaPinsNothing: what a replica cannot apply it keeps, but the segments of the others go (rules Log5, Log6).
func TestStoppedReplicaPinsNothing(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.LogSegmentsMax = 2
	r := n.create(2)
	for k := range 2 {
		n.s.Submit(&Request{Kind: KindWrite, Shard: 2, Body: testPut(2, k, string(make([]byte, 60_000))), Done: func(*Request) {}})
	}
	n.spin(1)
	var ans shard.Answer
	applied := r.machine.Applied()
	if err := r.machine.Apply(engine.LogID{Term: applied.Term, Index: applied.Index + 1}, []byte{0xff}, nil, &ans); err == nil {
		t.Fatal("it understands everything")
	}
	n.spin(5)
	if !r.stopped {
		t.Fatal("it goes on")
	}
	n.fill()
	if oldest, active := n.s.log.Segments(); active < 5 || active-oldest > 3 {
		t.Fatalf("segments %d to %d", oldest, active)
	}
	if st := n.l.log.Stats(r.key); st.Bytes < 120_000 {
		t.Fatalf("%d bytes of the stopped replica are left", st.Bytes)
	}
	req := &engine.AppendRequest{Runs: make([]engine.TermRun, 1)}
	if n.l.takesNoEntries(r, req) {
		t.Fatal("it takes nothing, and has room")
	}
	n.s.cfg.ShardLogBytesMax = 100_000
	if !n.l.takesNoEntries(r, req) {
		t.Fatal("it takes entries without bound")
	}
}

// TestRemovedTwiceAtOnce: who asks for a removal while its tombstone is being written is not told that it is done before it is (rule Log7).
func TestRemovedTwiceAtOnce(t *testing.T) {
	n := newStoreNode(t)
	r := n.create(2)
	n.db.full = true
	n.l.remove(2, 1, nil, func(error) {})
	n.spin(3)
	var got []error
	n.l.remove(2, 1, nil, func(err error) { got = append(got, err) })
	if n.spin(3); len(got) > 0 {
		t.Fatalf("answered %v before the tombstone is durable", got)
	}
	n.db.full = false
	n.clock.now += 2e9
	n.spin(3)
	n.clock.now += 2e9
	n.spin(3)
	recs, err := n.db.Records()
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(recs, func(rec state.Record) bool { return rec.Key == r.key }); i < 0 || !recs[i].Tombstone || len(got) != 1 || got[0] != nil {
		t.Fatalf("records %v, answers %v", recs, got)
	}
	n.l.remove(2, 1, nil, func(err error) { got = append(got, err) })
	if len(got) != 2 || got[1] != nil || len(n.l.burials) > 0 {
		t.Fatalf("answers %v, %d burials", got, len(n.l.burials))
	}
}

// TestNextReplicaWaitsForBurial: the next replica of a shard has no record beside that of a removed one whose tombstone waits for space: a
// crash would leave both alive, and the node could not start.
func TestNextReplicaWaitsForBurial(t *testing.T) {
	n := newStoreNode(t)
	old := n.create(2)
	n.spin(20)
	next := store.Key{Shard: 2, Replica: 2}
	in := n.ingest(old.key)
	n.db.full = true
	n.l.remove(2, 1, nil, func(error) {})
	n.spin(3)
	n.db.full = false // and the tombstone is tried again in a while
	if got := n.l.present(NewReplica{Descriptor: testDescriptor(2, 1), Replica: 2}); got != replicaOther {
		t.Fatalf("presence %v: it would be made", got)
	}
	r := n.l.newUninitialised(next)
	d := testDescriptor(2, 1)
	d.Replicas[0].Replica = 2
	rec, err := shard.NewReplicaRecord(d, 2, in.Tablet())
	if err != nil {
		t.Fatal(err)
	}
	rec.Applied.Index += 10
	r.snapIn = &snapshotIn{token: 1, ingest: in, record: rec}
	n.l.linkSnapshot(r, r.snapIn, engine.SnapshotMeta{Last: rec.Applied})
	alive := func() (list []store.Key) {
		recs, err := n.db.Records()
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			if rec.Shard == 2 && !rec.Tombstone {
				list = append(list, rec.Key)
			}
		}
		return list
	}
	for range 300 {
		if n.spin(1); len(alive()) > 1 {
			t.Fatalf("%v are alive in the state", alive())
		}
		n.clock.now += 1e7
	}
	if list := alive(); len(list) != 1 || list[0] != next {
		t.Fatalf("in the end %v are alive in the state", list)
	}
}

// TestTombstoneWaitsForSpace: a removal that meets a full disk is written when there is space, and the log let go then.
func TestTombstoneWaitsForSpace(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.LogSegmentsMax = 2
	r := n.create(2)
	n.db.full = true
	answers := 0
	n.l.remove(2, 1, nil, func(err error) {
		if answers++; !errors.Is(err, state.ErrNoSpace) {
			t.Fatal(err)
		}
	})
	n.spin(3)
	n.db.full = false
	n.clock.now += 2e9
	n.spin(3)
	n.clock.now += 2e9
	n.spin(3)
	recs, err := n.db.Records()
	if err != nil {
		t.Fatal(err)
	}
	buried := false
	for i := range recs {
		buried = buried || recs[i].Key == r.key && recs[i].Tombstone
	}
	if !buried || answers != 1 {
		t.Fatalf("tombstone %v, %d answers", buried, answers)
	}
	n.fill()
	if oldest, active := n.s.log.Segments(); active < 5 || active-oldest > 3 {
		t.Fatalf("segments %d to %d", oldest, active)
	}
}

// TestBusyReplicaPinsNothing: a replica that is written all the time is dirty whenever somebody looks; its vote must go with the rest of
// it, or the first segment stays for ever (rule Log5).
func TestBusyReplicaPinsNothing(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.LogSegmentsMax = 2
	n.fill()
	if oldest, active := n.s.log.Segments(); active < 5 || active-oldest > 3 {
		t.Fatalf("segments %d to %d", oldest, active)
	}
}

// TestSnapshotIsNotStarved: two snapshots are abandoned because the shard is written too fast; for the third one its writes wait
// (rule State3).
func TestSnapshotIsNotStarved(t *testing.T) {
	n := newStoreNode(t)
	n.s.cfg.CheckpointShard = 50_000
	for attempt := range 3 {
		if !n.l.hold(n.r) {
			t.Fatal("no cut")
		}
		gen, cancelled := n.r.ckpt.gen, false
		n.r.ckpt.cut.streams = append(n.r.ckpt.cut.streams, func() { cancelled = true })
		var err error
		for k := 0; k < 8 && err == nil; k++ {
			err = n.put(k, 50_000)
			n.s.LookForCheckpoints()
			n.spin(2)
		}
		if last := attempt == 2; cancelled == last || errors.Is(err, shard.ErrOverloaded) != last {
			t.Fatalf("attempt %d: abandoned %v, write %v", attempt, cancelled, err)
		}
		n.l.letGo(n.r, gen)
		for n.s.WriteCheckpoint() {
			n.spin(2)
		}
	}
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
}

// slowStore lets a write go on when it is told to.
type slowStore struct {
	*state.DB
	entered, release chan struct{}
}

func (s *slowStore) Write(changes []state.Change, seq uint64) error {
	s.entered <- struct{}{}
	<-s.release
	return s.DB.Write(changes, seq)
}

// TestCreateTwiceAtOnce: whoever makes a replica that another one is just making finds it made. Else it would have two tablets: one that
// its record names, and one that its lane works with.
func TestCreateTwiceAtOnce(t *testing.T) {
	log, rec, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	db := &slowStore{state.NewMem(state.Options{}), make(chan struct{}, 64), make(chan struct{})}
	s, err := New(Config{Node: 1, Incarnation: 1, CheckpointInterval: engine.Duration(time.Hour), Fatal: func(err error) { t.Error(err) }},
		Deps{Log: log, Recovery: rec, State: db, Network: noNet{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	create := func() { errs <- s.CreateReplicas(ctx, []NewReplica{{testDescriptor(1, 1), 1, CreateOptions{}}}) }
	go create()
	<-db.entered
	go create()
	select {
	case <-db.entered:
		t.Error("two records are written for one replica")
		db.release <- struct{}{}
	case <-time.After(20 * time.Millisecond): // the other one waits, or comes too late to harm
	}
	close(db.release)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestStateOlderThanLog: a state that was put back from a backup lacks what the log was purged of, and is refused (FAULTS D18). One that is as new as the log is
// not.
func TestStateOlderThanLog(t *testing.T) {
	for _, purged := range []uint64{0, 1} { // beyond what the state has applied
		mem, db := vfs.NewMem(), state.NewMem(state.Options{})
		tablet, _ := db.AllocTablet()
		rec, err := shard.NewReplicaRecord(testDescriptor(1, 1), 1, tablet)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Write([]state.Change{{Record: rec, NewTablet: true}}, 0); err != nil {
			t.Fatal(err)
		}
		log, _, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		at := rec.Applied
		at.Index += purged
		log.Lane(0).Init(rec.Key, engine.Vote{Term: at.Term}, at)
		log.Lane(0).Submit()
		if _, err := log.Flush(); err != nil {
			t.Fatal(err)
		}
		log, found, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		_, err = New(Config{Node: 1, Incarnation: 1, Fatal: func(err error) { t.Fatal(err) }}, Deps{Log: log, Recovery: found,
			State: db, Network: noNet{}, Clock: &manualClock{now: 1e9}, Spawn: func(f func()) { f() }, ReadJob: func(*state.ReadJob) {}})
		if older := purged > 0; older != (err != nil) || older && !strings.Contains(err.Error(), "older than the log") {
			t.Errorf("the log was purged %d entries beyond the state: %v", purged, err)
		}
	}
}

// TestLogIsKeptUntilTheTombstone: a removed replica's log goes only when its tombstone is durable: until then a start finds the replica, and without its vote and entries it
// would be another one under its name (rule Log7; FAULTS D4).
func TestLogIsKeptUntilTheTombstone(t *testing.T) {
	n := newStoreNode(t)
	r := n.create(2)
	n.s.Submit(&Request{Kind: KindWrite, Shard: 2, Body: testPut(2, 1, "x"), Done: func(req *Request) {
		if req.Err != nil {
			t.Error(req.Err)
		}
	}})
	n.spin(5)
	key := r.key
	before := n.l.log.Stats(key)
	n.db.full = true
	var answers []error
	n.s.RemoveReplicaAsync(2, 1, nil, func(err error) { answers = append(answers, err) })
	n.spin(5)
	if now := n.l.log.Stats(key); before.Last.Index == 0 || now != before || n.buried(key) || len(answers) != 1 || !errors.Is(answers[0], state.ErrNoSpace) {
		t.Fatalf("without a tombstone the log has %+v, had %+v; answers %v", now, before, answers)
	}
	n.db.full = false
	n.clock.now += engine.Instant(buryRetry)
	n.spin(5)
	if now := n.l.log.Stats(key); now.Last.Index != 0 || !n.buried(key) {
		t.Errorf("with a tombstone, or not (%v), the log has %+v", n.buried(key), now)
	}
}
