package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// directNet hands what is sent to the other scheduler at once.
type directNet struct {
	mu    sync.RWMutex
	self  engine.NodeID
	inc   uint64
	peers map[engine.NodeID]*Scheduler
}

func (d *directNet) peer(id engine.NodeID) *Scheduler {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.peers[id]
}

func (d *directNet) SendRaft(to engine.NodeID, _ int, msgs []byte, _ bool) bool {
	s := d.peer(to)
	if s == nil {
		return false
	}
	s.RaftFrame(d.self, d.inc, slices.Clone(msgs))
	return true
}

func (d *directNet) SendHeartbeat(to engine.NodeID, body []byte) bool {
	s := d.peer(to)
	if s == nil {
		return false
	}
	body = slices.Clone(body)
	go func() { _ = s.Heartbeat(d.self, d.inc, body) }()
	return true
}

func (d *directNet) OpenSnapshot(context.Context, engine.NodeID, []byte) (SnapshotWriter, error) {
	return nil, ErrStopped
}

type testNode struct {
	s   *Scheduler
	net *directNet
	log *raftlog.Log
	db  *state.DB
}

func startNodes(t testing.TB, count, lanes int) []*testNode {
	t.Helper()
	return startPatientNodes(t, count, lanes, 0)
}

// startPatientNodes is startNodes with an election timeout of its own.
func startPatientNodes(t testing.TB, count, lanes int, timeout time.Duration) []*testNode {
	t.Helper()
	var nodes []*testNode
	for i := range count {
		log, rec, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		n := &testNode{log: log, db: state.NewMem(state.Options{}), net: &directNet{self: engine.NodeID(i + 1), inc: uint64(i + 100), peers: map[engine.NodeID]*Scheduler{}}}
		n.s, err = New(Config{Node: engine.NodeID(i + 1), Incarnation: n.net.inc, Lanes: lanes, ElectionTimeoutMin: engine.Duration(timeout), Fatal: func(err error) { t.Error(err) }},
			Deps{Log: log, Recovery: rec, State: n.db, Network: n.net})
		if err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		for _, o := range nodes {
			if o != n {
				n.net.peers[o.net.self] = o.s
			}
		}
	}
	for _, n := range nodes {
		if err := n.s.Start(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		for _, o := range nodes {
			if o != n {
				n.s.PeerConnected(o.net.self, o.net.inc)
			}
		}
	}
	return nodes
}

func stopNodes(t testing.TB, nodes []*testNode) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, n := range nodes {
		if err := n.s.Stop(ctx); err != nil {
			t.Error(err)
		}
		for _, o := range nodes {
			o.net.mu.Lock()
			delete(o.net.peers, n.net.self)
			o.net.mu.Unlock()
			o.s.PeerDisconnected(n.net.self, n.net.inc)
		}
	}
	for _, n := range nodes {
		if err := n.log.Close(); err != nil {
			t.Error(err)
		}
		if err := n.db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func testDescriptor(id engine.ShardID, nodes int) *shard.Descriptor {
	d := &shard.Descriptor{Shard: id, Start: fmt.Appendf(nil, "%05d/", id), End: fmt.Appendf(nil, "%05d0", id), Version: 1, ConfVersion: 1}
	for i := range nodes {
		d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(i + 1), Node: engine.NodeID(i + 1), Role: shard.RoleVoter})
	}
	return d
}

func createShards(t testing.TB, nodes []*testNode, count int) {
	t.Helper()
	for _, campaign := range []bool{false, true} { // who is to lead comes last, when all whom it asks for votes are there
		for i, n := range nodes {
			var list []NewReplica
			for id := 1; id <= count; id++ {
				if (id%len(nodes) == i) == campaign {
					list = append(list, NewReplica{testDescriptor(engine.ShardID(id), len(nodes)), engine.ReplicaID(i + 1), CreateOptions{Campaign: campaign}})
				}
			}
			if err := n.s.CreateReplicas(context.Background(), list); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// submit sends a request to whoever leads, until it is served.
func submit(t testing.TB, nodes []*testNode, kind Kind, id engine.ShardID, body []byte) []byte {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; ; i++ {
		done := make(chan struct{})
		req := &Request{Kind: kind, Shard: id, Body: body, Done: func(*Request) { close(done) }}
		nodes[i%len(nodes)].s.Submit(req)
		<-done
		if req.Err == nil {
			return req.Answer
		}
		if time.Now().After(deadline) {
			t.Fatalf("shard %d: %v", id, req.Err)
		}
		if i%len(nodes) == len(nodes)-1 {
			time.Sleep(time.Millisecond)
		}
	}
}

func testPut(id engine.ShardID, k int, v string) []byte {
	return shard.AppendWrite(nil, &shard.Write{Shard: id, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: fmt.Appendf(nil, "%05d/%d", id, k), Value: []byte(v)}}})
}

func TestGoroutines(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, lanes := range []int{1, 3} {
		nodes := startNodes(t, 3, lanes)
		const shards = 50
		createShards(t, nodes, shards)
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for id := engine.ShardID(1); id <= shards; id++ {
					submit(t, nodes, KindWrite, id, testPut(id, w, fmt.Sprint("v", w)))
				}
			})
		}
		wg.Wait()
		for id := engine.ShardID(1); id <= shards; id++ {
			q := shard.Scan{Shard: id, Version: 1, Start: fmt.Appendf(nil, "%05d/", id), End: fmt.Appendf(nil, "%05d0", id)}
			var p shard.Page
			if err := shard.DecodePage(submit(t, nodes, KindScan, id, shard.AppendScan(nil, &q)), &p); err != nil {
				t.Fatal(err)
			}
			if len(p.Entries) != 4 || !p.Done {
				t.Fatalf("shard %d: %d entries, done %v", id, len(p.Entries), p.Done)
			}
		}
		list, err := nodes[0].s.Statuses(context.Background())
		if err != nil || len(list) != shards {
			t.Fatalf("%d statuses, %v", len(list), err)
		}
		if _, _, err := nodes[0].s.Checksum(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		stopNodes(t, nodes)
	}
}

// TestConditionalCold checks that applies that need values from the store suspend and resume, in order.
func TestConditionalCold(t *testing.T) {
	defer goleak.VerifyNone(t)
	nodes := startNodes(t, 1, 1)
	createShards(t, nodes, 1)
	submit(t, nodes, KindWrite, 1, testPut(1, 1, "5"))
	for i := range 20 {
		if i%5 == 0 {
			if _, _, err := nodes[0].s.Checksum(context.Background(), 1); err != nil { // cuts and writes
				t.Fatal(err)
			}
		}
		w := shard.Write{Shard: 1, Version: 1, Ops: []shard.Op{{Kind: shard.OpAdd, Key: []byte("00001/1"), Delta: 1}}}
		var res shard.Result
		if err := shard.DecodeResult(submit(t, nodes, KindWrite, 1, shard.AppendWrite(nil, &w)), &res); err != nil {
			t.Fatal(err)
		}
		if res.Outcome != shard.OutcomeApplied || res.Values[0] != int64(6+i) {
			t.Fatalf("add %d: %+v", i, res)
		}
	}
	stopNodes(t, nodes)
}

// manualClock moves when it is told to.
type manualClock struct{ now engine.Instant }

func (c *manualClock) Now() engine.Instant { return c.now }
func (c *manualClock) Wall() int64         { return int64(c.now / 1e6) }

type noNet struct{}

func (noNet) SendRaft(engine.NodeID, int, []byte, bool) bool { return true }
func (noNet) SendHeartbeat(engine.NodeID, []byte) bool       { return true }
func (noNet) OpenSnapshot(context.Context, engine.NodeID, []byte) (SnapshotWriter, error) {
	return nil, ErrStopped
}

// single makes one node with shards of one voter each, driven by hand.
func single(t testing.TB, shards int) (*Scheduler, *manualClock) {
	t.Helper()
	log, rec, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	clock := &manualClock{now: 1e9}
	s, err := New(Config{Node: 1, Incarnation: 1, Fatal: func(err error) { t.Fatal(err) }}, Deps{Log: log, Recovery: rec,
		State: state.NewMem(state.Options{}), Network: noNet{}, Clock: clock, Spawn: func(f func()) { f() }, ReadJob: func(*state.ReadJob) {}})
	if err != nil {
		t.Fatal(err)
	}
	for id := 1; id <= shards; id++ {
		s.CreateReplicaAsync(NewReplica{testDescriptor(engine.ShardID(id), 1), 1, CreateOptions{Campaign: true}}, func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	for range 20 {
		spin(s, clock)
	}
	return s, clock
}

func spin(s *Scheduler, clock *manualClock) {
	clock.now += 1e5
	for _, l := range s.lanes {
		l.Turn()
	}
	select {
	case <-s.log.Pending():
		s.FlushLog()
	default:
	}
}

// batch makes one write per shard, to be submitted again and again.
func batch(shards, perShard int, done func(*Request)) []*Request {
	var list []*Request
	for id := 1; id <= shards; id++ {
		for k := range perShard {
			list = append(list, &Request{Kind: KindWrite, Shard: engine.ShardID(id), Body: testPut(engine.ShardID(id), k, "0123456789012345678901234567890123456789"), Done: done})
		}
	}
	return list
}

func TestAllocsPerProposal(t *testing.T) {
	s, clock := single(t, 16)
	answered := 0
	list := batch(16, 16, func(r *Request) {
		answered++
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	})
	round := func() {
		for _, r := range list {
			s.Submit(r)
		}
		for range 4 {
			spin(s, clock)
		}
	}
	for range 50 {
		round()
	}
	before := answered
	per := testing.AllocsPerRun(50, round) / float64(len(list))
	if answered-before != 51*len(list) {
		t.Fatalf("%d of %d answered", answered-before, 51*len(list))
	}
	t.Logf("%.3f allocations per write", per)
	if per > 0.25 {
		t.Fatalf("%.3f allocations per write", per)
	}
}

func BenchmarkTurn(b *testing.B) {
	for _, per := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("shards=64/per=%d", per), func(b *testing.B) {
			s, clock := single(b, 64)
			list := batch(64, per, func(r *Request) {
				if r.Err != nil {
					b.Fatal(r.Err)
				}
			})
			b.ReportAllocs()
			for n := 0; n < b.N; n += len(list) {
				for _, r := range list {
					s.Submit(r)
				}
				for range 3 {
					spin(s, clock)
				}
			}
		})
	}
}

func TestRemoveReplica(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx := context.Background()
	nodes := startNodes(t, 1, 1)
	createShards(t, nodes, 2)
	submit(t, nodes, KindWrite, 1, testPut(1, 1, "x"))
	if err := nodes[0].s.RemoveReplica(ctx, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].s.Status(ctx, 1); !errors.Is(err, shard.ErrShardNotFound) {
		t.Fatalf("status of a removed replica: %v", err)
	}
	if err := nodes[0].s.CreateReplica(ctx, testDescriptor(1, 1), 1, CreateOptions{}); !errors.Is(err, ErrExists) {
		t.Fatalf("creating it again: %v", err)
	}
	submit(t, nodes, KindWrite, 2, testPut(2, 1, "x"))
	stopNodes(t, nodes)
}

// tapNet keeps the raft messages that are sent.
type tapNet struct {
	noNet
	msgs []byte
}

func (n *tapNet) SendRaft(_ engine.NodeID, _ int, msgs []byte, _ bool) bool {
	n.msgs = append(n.msgs, msgs...)
	return true
}

// A follower that doubts a leader which was removed from its node must learn that, or its promise lasts as long as the link.
func TestProbeOfMissingReplica(t *testing.T) {
	s, clock := single(t, 1)
	net := &tapNet{}
	s.net = net
	s.PeerConnected(2, 7)
	vote := engine.Vote{Term: 5, Peer: engine.Peer{Node: 1, Replica: 8}, Committed: true}
	for _, id := range []engine.ShardID{1, 9} { // another replica of the shard is here, or none
		net.msgs = nil
		h := wire.Header{Shard: id, From: 6, To: 8}
		body := wire.AppendHeartbeat(nil, h, &engine.Heartbeat{Vote: vote, SentAt: 1, Quiesce: true})
		s.RaftFrame(2, 7, wire.AppendHeartbeat(body, h, &engine.Heartbeat{Vote: vote, SentAt: 1, Probe: true}))
		spin(s, clock)
		var m wire.Message
		var r wire.Reader
		var got []engine.Heartbeat
		for r.Reset(net.msgs); r.Next(&m); {
			var hb engine.Heartbeat
			if m.Kind != wire.KindHeartbeat || m.Shard != id || m.To != 6 {
				t.Fatalf("sent %+v", m)
			}
			if err := m.Heartbeat(1, &hb); err != nil {
				t.Fatal(err)
			}
			got = append(got, hb)
		}
		if len(got) != 1 || !got[0].Resigned || got[0].Vote != vote || got[0].From != vote.Peer {
			t.Errorf("shard %d: answered %+v", id, got)
		}
	}
}

// A replica that goes away while a sweep is half through must not hide another one from it (rule Live3).
func TestSweepMissesNobody(t *testing.T) {
	s, _ := single(t, 5)
	l := s.lanes[0]
	all := append([]*replica(nil), l.list...)
	seen := map[*replica]int{}
	l.startSweep(func(l *Lane, r *replica) bool {
		seen[r]++
		if len(seen) == 3 && seen[all[0]] == 1 && !all[0].removed {
			l.drop(all[0])
		}
		return true
	})
	l.sweep()
	for i, r := range all {
		if seen[r] != 1 {
			t.Errorf("replica %d was seen %d times", i, seen[r])
		}
	}
	for i, r := range l.list {
		if int(r.listed) != i || r.removed {
			t.Errorf("place %d holds one of place %d", i, r.listed)
		}
	}
}

// A node that comes or goes is told to all replicas, some in each turn: neither the lane nor a narrow link is taken up by it (rules Live3, Live5; FAULTS N16).
func TestSweepIsPaced(t *testing.T) {
	for _, fed := range []bool{false, true} {
		l := &Lane{list: make([]*replica, 5*sweepReplicas)}
		looked, most := 0, sweepReplicas
		if fed {
			most = sweepEvents
		}
		l.startSweep(func(*Lane, *replica) bool { looked++; return fed })
		for len(l.sweeps) > 0 {
			before := looked
			if l.sweep(); looked-before > most || looked == before {
				t.Fatalf("fed %v: %d replicas in one turn, at most %d", fed, looked-before, most)
			}
		}
		if looked != len(l.list) {
			t.Errorf("fed %v: %d replicas of %d", fed, looked, len(l.list))
		}
	}
}

// A request that comes while the scheduler stops is answered, once, wherever it meets the end (FAULTS P10).
func TestSubmitWhileStopping(t *testing.T) {
	s, _ := single(t, 1)
	answers := 0
	req := &Request{Kind: KindRead, Shard: 1, Done: func(*Request) { answers++ }}
	if err := s.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.stopped.Store(false) // Submit has looked at it before
	s.Submit(req)
	if answers != 1 || req.Err == nil {
		t.Errorf("%d answers, %v", answers, req.Err)
	}
}

// TestStopAnswersEverybody: a write whose outcome is not known when the scheduler stops is ambiguous, and what a mailbox holds that no turn will take
// is refused: nobody waits for ever (FAULTS P10).
func TestStopAnswersEverybody(t *testing.T) {
	n := newStoreNodeOf(t, 2)
	var ids [2]engine.ShardID // by lane
	for id := engine.ShardID(2); ids[0] == 0 || ids[1] == 0; id++ {
		ids[n.s.laneOf(id).id] = id
	}
	n.create(ids[0]).linking = true // parks what is to be applied
	n.create(ids[1])
	refused, ambiguous := 0, 0
	late := &Request{Kind: KindWrite, Shard: ids[1], Body: testPut(ids[1], 1, "v"), Done: func(*Request) { refused++ }}
	write := &Request{Kind: KindWrite, Shard: ids[0], Body: testPut(ids[0], 1, "v"), Done: func(*Request) {
		ambiguous++
		if !n.s.lanes[1].box.putRequest(late, 1) { // the last turn of that lane is over
			t.Error("the mailbox is closed already: the test tests nothing")
		}
	}}
	n.s.Submit(write)
	n.spin(3)
	if ambiguous != 0 {
		t.Fatalf("answered already: %v", write.Err)
	}
	if err := n.s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ambiguous != 1 || !errors.Is(write.Err, shard.ErrAmbiguous) {
		t.Errorf("a write that is not applied: %d answers, %v", ambiguous, write.Err)
	}
	if refused != 1 || !errors.Is(late.Err, shard.ErrUnavailable) {
		t.Errorf("a write that nobody has taken: %d answers, %v", refused, late.Err)
	}
}

// TestStopHandsOver: a node that stops leaves no shard without a leader, as the first of a rolling restart or the last (FAULTS P11). Nobody is elected here
// but by order, or when a shard is made.
func TestStopHandsOver(t *testing.T) {
	const shards = 12
	nodes := startPatientNodes(t, 3, 2, time.Hour)
	createShards(t, nodes, shards)
	for id := engine.ShardID(1); id <= shards; id++ {
		submit(t, nodes, KindWrite, id, testPut(id, 1, "v"))
	}
	stopNodes(t, nodes[:1])
	for id := engine.ShardID(1); id <= shards; id++ {
		submit(t, nodes[1:], KindWrite, id, testPut(id, 2, "v"))
	}
	hurry, cancel := context.WithCancel(t.Context())
	cancel()
	for _, n := range nodes[1:] {
		if err := n.s.Stop(hurry); err != nil {
			t.Error(err)
		}
	}
	stopNodes(t, nodes[1:])
}

// Stale reads count from what the leader has said and this replica has applied, not from any message (rule Cluster4).
func TestHeardOfTheLeader(t *testing.T) {
	s, clock := single(t, 1)
	s.CreateReplicaAsync(NewReplica{testDescriptor(7, 3), 1, CreateOptions{}}, func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	for range 5 {
		spin(s, clock)
	}
	s.PeerConnected(2, 7)
	vote := engine.Vote{Term: 5, Peer: engine.Peer{Node: 2, Replica: 2}, Committed: true}
	r := s.lanes[0].byShard[7]
	for i, c := range []struct {
		hb    engine.Heartbeat
		heard bool
	}{
		{engine.Heartbeat{Vote: vote, SentAt: 1, Probe: true}, false},
		{engine.Heartbeat{Vote: vote, SentAt: 1, Resigned: true}, false},
		{engine.Heartbeat{Vote: vote, SentAt: 1, Commit: engine.LogID{Term: 5, Index: 9}}, false},
		{engine.Heartbeat{Vote: vote, SentAt: 2, Commit: engine.LogID{Term: 1, Index: 1}}, true},
	} {
		r.heardAt = 0
		s.RaftFrame(2, 7, wire.AppendHeartbeat(nil, wire.Header{Shard: 7, From: 2, To: 1}, &c.hb))
		spin(s, clock)
		if got := r.heardAt != 0; got != c.heard {
			t.Errorf("message %d: heard %v", i, got)
		}
	}
}
