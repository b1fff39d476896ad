package scheduler

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"golang.org/x/sys/unix"
)

// TestFailedSyncEndsTheProcess: fail-stop (FAULTS 2.17, D6). Nothing that the failed sync was to make durable is acknowledged.
func TestFailedSyncEndsTheProcess(t *testing.T) {
	n := newStoreNode(t)
	n.dies, n.fail = true, true
	req := &Request{Kind: KindWrite, Shard: 1, Body: testPut(1, 1, "x"), Done: func(*Request) {}}
	n.s.Submit(req)
	for range 5 {
		spin(n.s, n.clock)
	}
	if len(n.ended) == 0 || !errors.Is(n.ended[0], unix.EIO) {
		t.Errorf("it goes on: %v", n.ended)
	}
	if req.Answer != nil {
		t.Error("the write is acknowledged")
	}
}

// TestFailedCommitEndsTheProcess: rule State6. A commit that fails is not tried again either.
func TestFailedCommitEndsTheProcess(t *testing.T) {
	n := newStoreNode(t)
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
	n.dies, n.db.err = true, unix.EIO
	n.l.checkpoint(n.r)
	if n.s.WriteCheckpoint() || len(n.ended) == 0 || !errors.Is(n.ended[0], unix.EIO) {
		t.Errorf("it goes on: %v", n.ended)
	}
}

// heartbeats is one node and what a peer's heartbeats make it believe.
type heartbeats struct {
	t     *testing.T
	s     *Scheduler
	clock *manualClock
}

func newHeartbeats(t *testing.T) *heartbeats {
	s, clock := single(t, 1)
	h := &heartbeats{t, s, clock}
	s.PeerConnected(2, 7)
	return h
}

// get has a heartbeat of node 2 come in after an interval, and then a tick.
func (h *heartbeats) get(change func(*nodeHeartbeat)) {
	h.t.Helper()
	h.clock.now += engine.Instant(h.s.cfg.HeartbeatInterval)
	h.receive(change)
	h.s.Heartbeats()
}

// receive has a heartbeat of node 2 come in.
func (h *heartbeats) receive(change func(*nodeHeartbeat)) {
	h.t.Helper()
	b := nodeHeartbeat{Incarnation: 7, SentAt: h.clock.now, EchoIncarnation: 1, EchoSentAt: h.clock.now - 1e6, Promise: h.s.cfg.ElectionTimeoutMin}
	change(&b)
	if err := h.s.Heartbeat(2, 7, b.append(nil)); err != nil {
		h.t.Fatal(err)
	}
}

// TestAliveOnlyByEcho: rule Live1. Who is heard but does not hear us is not alive, and dies if it was.
func TestAliveOnlyByEcho(t *testing.T) {
	mute := func(b *nodeHeartbeat) { b.EchoIncarnation, b.EchoSentAt, b.Promise = 0, 0, 0 }
	old := func(b *nodeHeartbeat) { b.EchoIncarnation = 6 }
	well := func(*nodeHeartbeat) {}
	for name, change := range map[string]func(*nodeHeartbeat){"no echo": mute, "echo of another process": old} {
		h := newHeartbeats(t)
		for range 30 {
			if h.get(change); h.s.PeerAlive(2) {
				t.Fatalf("%s: alive", name)
			}
		}
		if h.get(well); !h.s.PeerAlive(2) {
			t.Fatal("an echo does not make it alive")
		}
		for range 30 {
			h.get(change)
		}
		if h.s.PeerAlive(2) {
			t.Errorf("%s: it is still alive", name)
		}
	}
}

// TestStuckNodeIsNotAlive: rule Live1. A node whose lane or log writer does not get on is not alive, however promptly it echoes, and is promised
// nothing.
func TestStuckNodeIsNotAlive(t *testing.T) {
	for name, change := range map[string]func(*nodeHeartbeat, engine.Duration){
		"lane":   func(b *nodeHeartbeat, d engine.Duration) { b.LaneAge = d },
		"writer": func(b *nodeHeartbeat, d engine.Duration) { b.WriterAge = d },
	} {
		h := newHeartbeats(t)
		limit := h.s.cfg.ElectionTimeoutMin
		if h.get(func(b *nodeHeartbeat) { change(b, limit) }); !h.s.PeerAlive(2) {
			t.Fatalf("%s: not alive after %d ns", name, limit)
		}
		promised := h.s.live.links.Load().nodes[2].PromisedUntil
		for range 30 {
			h.get(func(b *nodeHeartbeat) { change(b, limit+1) })
		}
		if h.s.PeerAlive(2) || h.s.live.links.Load().nodes[2].PromisedUntil != promised {
			t.Errorf("%s: it is stuck, alive %v, and promised more", name, h.s.PeerAlive(2))
		}
		if h.get(func(b *nodeHeartbeat) { change(b, 0) }); !h.s.PeerAlive(2) {
			t.Errorf("%s: it goes on, and is not alive", name)
		}
	}
}

// TestCutIsWrittenByItsLastHolder: rule State3. While a snapshot streams what is frozen, the shard is not checkpointed.
func TestCutIsWrittenByItsLastHolder(t *testing.T) {
	n := newStoreNode(t)
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
	stored := func() uint64 {
		recs, err := n.db.Records()
		if err != nil || len(recs) != 1 {
			t.Fatal(recs, err)
		}
		return recs[0].Applied.Index
	}
	before, gen := stored(), n.r.ckpt.gen
	for range 2 {
		if !n.l.hold(n.r) {
			t.Fatal("not cut")
		}
	}
	if err := n.put(2, 10); err != nil {
		t.Fatal(err)
	}
	n.l.letGo(n.r, gen)
	n.s.WriteCheckpoint()
	n.spin(2)
	if got := stored(); got != before {
		t.Fatalf("the store went from %d to %d while a snapshot reads it", before, got)
	}
	n.l.letGo(n.r, gen)
	n.s.WriteCheckpoint()
	n.spin(2)
	if got := stored(); got <= before {
		t.Error("the last holder does not write the cut")
	}
}

// TestSnapshotEndsWaiters: rule Engine6. Whoever waits for an entry that a snapshot has passed is told that its outcome is unknown.
func TestSnapshotEndsWaiters(t *testing.T) {
	n := newStoreNode(t)
	at := n.r.machine.Applied()
	var reqs []*Request
	answered := 0
	for i := range uint64(3) {
		req := &Request{Kind: KindWrite, Shard: 1, Done: func(*Request) { answered++ }}
		reqs = append(reqs, req)
		n.r.waiters.push(waiter{at.Term, at.Index + 1 + i, req})
	}
	tablet, err := n.db.AllocTablet()
	if err != nil {
		t.Fatal(err)
	}
	in, err := n.db.NewIngest(tablet)
	if err != nil {
		t.Fatal(err)
	}
	snap := &snapshotIn{token: 1, ingest: in, record: n.r.machine.Record()}
	snap.record.Applied.Index += 2
	n.r.snapIn = snap
	n.l.linkSnapshot(n.r, snap, engine.SnapshotMeta{Last: snap.record.Applied})
	n.spin(2)
	if answered != 2 || !errors.Is(reqs[0].Err, shard.ErrAmbiguous) || !errors.Is(reqs[1].Err, shard.ErrAmbiguous) {
		t.Errorf("a snapshot passed 2 of 3: %d were answered, %v, %v", answered, reqs[0].Err, reqs[1].Err)
	}
	if w := n.r.waiters.front(); w == nil || w.index != at.Index+3 {
		t.Errorf("the third waits no more: %+v", w)
	}
}

// TestMergingShardKeepsItsMembers: a change of members made for another descriptor is void. Rule Merge1: from PrepareMerge on until the end of the merge no member changes.
func TestMergingShardKeepsItsMembers(t *testing.T) {
	n := newStoreNode(t)
	r := n.create(2)
	change := func() error {
		d := r.machine.Desc()
		return n.l.changeMembership(&MembershipChange{Shard: 2, Version: d.Version, ConfVersion: d.ConfVersion,
			Replicas: append([]shard.ReplicaDesc{{Replica: 9, Node: 2, Role: shard.RoleLearner}}, d.Replicas...)})
	}
	d := r.machine.Desc()
	for _, old := range [][2]uint64{{d.Version + 1, d.ConfVersion}, {d.Version - 1, d.ConfVersion}, {d.Version, d.ConfVersion + 1}, {d.Version, d.ConfVersion - 1}} {
		err := n.l.changeMembership(&MembershipChange{Shard: 2, Version: old[0], ConfVersion: old[1],
			Replicas: append([]shard.ReplicaDesc{{Replica: 9, Node: 2, Role: shard.RoleLearner}}, d.Replicas...)})
		if !errors.Is(err, shard.ErrShardMoved) {
			t.Fatalf("a change of version %v, the shard is at %v: %v", old, d, err)
		}
	}
	step := shard.MergeStep{Version: d.Version, ConfVersion: d.ConfVersion, Other: 55, OtherVersion: 1, OtherConfVersion: 1}
	n.l.propose(r, shard.AppendMergeEntry(nil, shard.CommandPrepareMerge, n.l.wall, &step), func(err error) {
		if err != nil {
			t.Error(err)
		}
	})
	if err := change(); !errors.Is(err, shard.ErrUnavailable) {
		t.Errorf("while PrepareMerge is proposed: %v", err)
	}
	roles := map[shard.MergeRole]bool{}
	for range 300 { // it is aborted soon, as nobody drives it; and aborting it remains, for shard 55 cannot be asked
		n.spin(1)
		role := r.machine.Merge().Role
		roles[role] = true
		if role == shard.MergeNone {
			continue
		}
		if err := change(); !errors.Is(err, shard.ErrUnavailable) {
			t.Fatalf("in role %d: %v", role, err)
		}
	}
	if !roles[shard.MergePreparing] || !roles[shard.MergeAborting] {
		t.Errorf("roles met: %v", roles)
	}
}

// TestBuriedEndsWaiters: a backup that waits for the cut of a shard hears of it when the shard is absorbed, and gives its slot back.
func TestBuriedEndsWaiters(t *testing.T) {
	n := newStoreNode(t)
	r := n.r
	if err := n.put(0, 10); err != nil {
		t.Fatal(err)
	}
	if !n.l.hold(r) {
		t.Fatal("it cannot be cut")
	}
	if err := n.put(1, 10); err != nil {
		t.Fatal(err)
	}
	var got error
	answers := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n.l.cutFor(&Cut{s: n.s, lane: n.l, ctx: ctx, stop: cancel}, 1, func(err error) { got = err; answers++ })
	n.spin(2)
	if answers != 0 {
		t.Fatalf("an older cut was given out, or refused: %v", got)
	}
	n.l.buried(r)
	if n.spin(2); answers != 1 || !errors.Is(got, shard.ErrShardNotFound) {
		t.Fatalf("%d answers, %v", answers, got)
	}
}

// TestQuietNodesSayLess: while no shard has anything to say, a peer gets a heartbeat at quietInterval only; a shard that has ends that at
// once, and so does a peer that is owed a promise.
func TestQuietNodesSayLess(t *testing.T) {
	h := newHeartbeats(t)
	well := func(*nodeHeartbeat) {}
	sent := func(rounds int, change func(*nodeHeartbeat), each func()) uint64 {
		before := h.s.metrics.HeartbeatsSent.Load()
		for range rounds {
			each()
			h.get(change)
			spin(h.s, h.clock) // lanes see the links
		}
		return h.s.metrics.HeartbeatsSent.Load() - before
	}
	nothing := func() {}
	sent(30, well, nothing)
	if n := sent(30, well, nothing); n != 10 {
		t.Errorf("%d heartbeats in 30 intervals without a word, not 10", n)
	}
	if n := sent(30, well, func() { h.s.metrics.Frames.Add(1) }); n != 30 {
		t.Errorf("%d heartbeats in 30 intervals with frames, not 30", n)
	}
	sent(30, well, nothing)
	if n := sent(3, well, func() { h.s.live.ride(2, []byte{0}, 1) }); n != 3 {
		t.Errorf("%d heartbeats in 3 intervals with those of awake shards, not 3", n)
	}
	sent(30, well, nothing)
	stuck := func(b *nodeHeartbeat) { b.LaneAge = h.s.cfg.ElectionTimeoutMin + 1 }
	if n := sent(5, stuck, nothing); n != 5 {
		t.Errorf("%d heartbeats in 5 intervals to a peer that is stuck, not 5", n)
	}
}

// TestQuietNodeDies: a peer that falls silent while nothing is said is down a little later than otherwise, and not before its promise
// has ended.
func TestQuietNodeDies(t *testing.T) {
	h := newHeartbeats(t)
	for range 60 {
		h.get(func(*nodeHeartbeat) {})
		spin(h.s, h.clock)
	}
	promised := h.s.live.links.Load().nodes[2].PromisedUntil
	last := h.clock.now
	for h.s.PeerAlive(2) && h.clock.now < last+60e9 {
		h.clock.now += engine.Instant(h.s.cfg.HeartbeatInterval)
		h.s.Heartbeats()
	}
	most := h.s.cfg.ElectionTimeoutMin + 2*h.s.live.quietInterval() + h.s.cfg.HeartbeatInterval
	if d := engine.Duration(h.clock.now - last); h.clock.now < promised || d > most {
		t.Errorf("down after %d ns; the promise to it ended after %d, and %d is the most", d, promised-last, most)
	}
}

// TestQuietNodeWakes: who waits longer than usual for the next tick is told of a shard that has something for it.
func TestQuietNodeWakes(t *testing.T) {
	h := newHeartbeats(t)
	for range 60 {
		h.get(func(*nodeHeartbeat) {})
		spin(h.s, h.clock)
	}
	if wait := h.s.Heartbeats(); wait <= h.s.cfg.HeartbeatInterval {
		t.Fatalf("the next tick is wanted in %d ns although nothing is said", wait)
	}
	h.s.live.ride(2, []byte{0}, 1)
	select {
	case <-h.s.live.wake:
	default:
		t.Error("it sleeps on")
	}
	if wait := h.s.Heartbeats(); wait != h.s.cfg.HeartbeatInterval {
		t.Errorf("the next tick is wanted in %d ns", wait)
	}
}

// TestQuietNodesWakeTogether: a heartbeat that comes when half of the own interval is over brings the next tick forward, and that tick sends;
// one that comes earlier does not.
func TestQuietNodesWakeTogether(t *testing.T) {
	for _, late := range []bool{false, true} {
		h := newHeartbeats(t)
		for range 60 {
			h.get(func(*nodeHeartbeat) {})
			spin(h.s, h.clock)
		}
		h.clock.now += engine.Instant(h.s.live.quietInterval())
		wait := h.s.Heartbeats()
		select {
		case <-h.s.live.wake: // of a heartbeat before
		default:
		}
		if late {
			h.clock.now += engine.Instant(wait)/2 + 1
		} else {
			h.clock.now += engine.Instant(wait)/2 - 1
		}
		sent := h.s.metrics.HeartbeatsSent.Load()
		h.receive(func(*nodeHeartbeat) {})
		woken := false
		select {
		case <-h.s.live.wake:
			woken = true
		default:
		}
		if woken != late {
			t.Errorf("woken %v, with half of the interval over: %v", woken, late)
		}
		if wait = h.s.Heartbeats(); late && wait != h.s.live.quietInterval() {
			t.Errorf("the next tick is wanted in %d ns", wait)
		}
		if n := h.s.metrics.HeartbeatsSent.Load() - sent; (n > 0) != late {
			t.Errorf("%d heartbeats sent, with half of the interval over: %v", n, late)
		}
	}
}

// TestLinkAllowsForDrift: what a link grants counts from the sending of the heartbeat that was echoed, less the drift between two clocks; what it promises
// from when theirs came; and after one of them has lapsed it is another one (rule Engine2; FAULTS C2, C3).
func TestLinkAllowsForDrift(t *testing.T) {
	h := newHeartbeats(t)
	cfg := &h.s.cfg
	const promise = engine.Duration(3e9)
	get := func(echo, promise engine.Duration) engine.Link {
		h.get(func(b *nodeHeartbeat) {
			b.EchoSentAt, b.Promise = h.clock.now-engine.Instant(echo), promise
		})
		return h.s.live.links.Load().nodes[2]
	}
	first := get(70e6, promise)
	if want := h.clock.now - 70e6 + engine.Instant(promise-cfg.ClockDriftMax); first.GrantedUntil != want {
		t.Errorf("granted until %d, want %d", first.GrantedUntil, want)
	}
	if want := h.clock.now + engine.Instant(cfg.ElectionTimeoutMin); first.PromisedUntil != want {
		t.Errorf("promised until %d, want %d", first.PromisedUntil, want)
	}
	late := get(900e6, promise) // an echo that was on its way for long takes nothing back
	if late.GrantedUntil != first.GrantedUntil || late.GrantEpoch != first.GrantEpoch || late.PromiseEpoch != first.PromiseEpoch {
		t.Errorf("a late echo: %+v, was %+v", late, first)
	}
	h.clock.now = first.GrantedUntil + 1
	if lapsed := get(0, promise); lapsed.GrantEpoch != first.GrantEpoch+1 || lapsed.PromiseEpoch != first.PromiseEpoch+1 {
		t.Errorf("both have lapsed: %+v, was %+v", lapsed, first)
	}
}

// TestPeerThatComesAndGoes: a node whose session ends is down when no promise to it can still stand, also while nothing is said; one that comes as another process is down at
// once; and neither what waited for the session before nor the end of an older one counts for the next (rules Live1, Engine2; FAULTS N8).
func TestPeerThatComesAndGoes(t *testing.T) {
	h := newHeartbeats(t)
	well := func(*nodeHeartbeat) {}
	patience := engine.Instant(h.s.cfg.ElectionTimeoutMin + h.s.cfg.HeartbeatInterval)
	for range 3 {
		for range 60 { // so that it may be silent for longer
			h.get(well)
			spin(h.s, h.clock)
		}
		if h.s.PeerDisconnected(2, 6); !h.s.PeerAlive(2) || !h.s.live.reachable(2) {
			t.Fatal("the session of a process that is gone has ended, and this one's is forgotten")
		}
		h.s.live.ride(2, []byte{0}, 1)
		h.s.PeerDisconnected(2, 7)
		if h.s.live.reachable(2) {
			t.Fatal("reachable without a session")
		}
		ended := h.clock.now
		for _, c := range []struct {
			at    engine.Instant
			alive bool
		}{{ended + patience, true}, {ended + patience + 1, false}} {
			h.clock.now = c.at
			if h.s.Heartbeats(); h.s.PeerAlive(2) != c.alive || h.s.metrics.PeersUp.Load() == 1 != c.alive {
				t.Fatalf("%d ns after the end of the session: alive %v, %d peers up", c.at-ended, h.s.PeerAlive(2), h.s.metrics.PeersUp.Load())
			}
		}
		said := h.s.metrics.HeartbeatMessages.Load()
		if h.s.PeerConnected(2, 7); h.s.metrics.HeartbeatMessages.Load() != said || h.s.PeerAlive(2) {
			t.Fatalf("a new session: %d heartbeats of shards were sent that waited for the one before, alive %v", h.s.metrics.HeartbeatMessages.Load()-said, h.s.PeerAlive(2))
		}
	}
	h.get(well)
	was := h.s.live.links.Load().nodes[2]
	h.s.PeerConnected(2, 8)
	now := h.s.live.links.Load().nodes[2]
	if !was.Up || now.Up || h.s.metrics.PeersUp.Load() != 0 || now.GrantEpoch == was.GrantEpoch || now.PromiseEpoch == was.PromiseEpoch || now.GrantedUntil != 0 || now.PromisedUntil != 0 {
		t.Errorf("another process: %+v, was %+v, %d peers up", now, was, h.s.metrics.PeersUp.Load())
	}
}

// saidNet keeps what is sent to the other node.
type saidNet struct {
	noNet
	raft   [][]byte
	beats  []nodeHeartbeat
	broken error
}

func (n *saidNet) SendRaft(_ engine.NodeID, _ int, msgs []byte, _ bool) bool {
	n.raft = append(n.raft, bytes.Clone(msgs))
	return true
}

func (n *saidNet) SendHeartbeat(_ engine.NodeID, frame []byte) bool {
	var b nodeHeartbeat
	if err := b.decode(bytes.Clone(frame)); err != nil {
		n.broken = err
	}
	n.beats = append(n.beats, b)
	return true
}

// TestAwakeShardsRide: the heartbeats of shards that are awake go in the node's, those of many shards in one; what is over its bound goes with the raft frames, and nothing is
// kept for a node without a session (rule Live6; FAULTS N16).
func TestAwakeShardsRide(t *testing.T) {
	h := newHeartbeats(t)
	h.get(func(*nodeHeartbeat) {})
	net := &saidNet{}
	h.s.net = net
	l := h.s.lanes[0]
	say := func(shards, size int) {
		o := &outbox{node: 2}
		for range shards {
			o.awake = append(o.awake, make([]byte, size)...)
			o.awakeCount++
		}
		l.dirty(o)
		l.sendAll()
	}
	for range 3 {
		say(100, 20)
	}
	h.get(func(*nodeHeartbeat) {})
	if len(net.raft) != 0 || len(net.beats) != 1 || len(net.beats[0].Awake) != 3*100*20 || net.broken != nil {
		t.Fatalf("%d raft frames, %d heartbeats, %v", len(net.raft), len(net.beats), net.broken)
	}
	say(1, awakeBytesMax-10)
	say(1, 20)
	if len(net.raft) != 1 || len(net.raft[0]) != 20 {
		t.Errorf("over the bound: %d raft frames", len(net.raft))
	}
	h.s.PeerDisconnected(2, 7)
	if say(1, 20); len(net.raft) != 1 || len(h.s.live.peers[2].awake) != 0 {
		t.Errorf("without a session: %d raft frames, %d bytes are kept", len(net.raft), len(h.s.live.peers[2].awake))
	}
}

// lateClock lets time pass while it is being read.
type lateClock struct {
	*manualClock
	after func()
}

func (c *lateClock) Now() engine.Instant {
	now := c.now
	if f := c.after; f != nil {
		c.after = nil
		f()
	}
	return now
}

// TestTurnIsNotOlderThanItsMail: a lane that is frozen between two steps of its turn judges no message by a clock that it has read before that came: a
// vote could be given that a promise forbids (rule Engine2; FAULTS C3).
func TestTurnIsNotOlderThanItsMail(t *testing.T) {
	s, manual := single(t, 1)
	clock := &lateClock{manualClock: manual}
	s.clock = clock
	ran := false
	clock.after = func() { // the clock was read; before the next step a second passes, and mail comes
		clock.now += 1e9
		came := clock.now
		s.lanes[0].box.putCall(func(l *Lane) {
			if ran = true; l.now < came {
				t.Errorf("it is %d for the lane, and its mail came at %d", l.now, came)
			}
		})
	}
	for range 2 {
		s.lanes[0].Turn()
	}
	if !ran {
		t.Fatal("the mail was not taken")
	}
}

// TestUnknownClockStampsNothing: from the first session with a peer on a node stamps nothing until it has compared its clock with one (rule State8).
func TestUnknownClockStampsNothing(t *testing.T) {
	s, clock := single(t, 1)
	r := s.lanes[0].byShard[1]
	put := func(expire int64) (err error) {
		done := false
		w := &shard.Write{Shard: 1, Version: 1, Ops: []shard.Op{{Kind: shard.OpPut, Key: []byte("00001/k"), Expire: expire}}}
		req := &Request{Kind: KindWrite, Shard: 1, Body: shard.AppendWrite(nil, w), Done: func(r *Request) { done, err = true, r.Err }}
		s.Submit(req)
		for range 50 {
			spin(s, clock)
		}
		if !done {
			t.Fatal("no answer")
		}
		return err
	}
	if err := put(-1000); err != nil {
		t.Fatalf("alone: %v", err)
	}
	s.PeerConnected(2, 7)
	clock.now += 60e9
	before := r.machine.Time()
	if err := put(-1000); !errors.Is(err, shard.ErrUnavailable) {
		t.Errorf("a time to live counts from an unknown clock: %v", err)
	}
	if err := put(0); err != nil || r.machine.Time() != before {
		t.Errorf("the time of the shard went from %d to %d, %v", before, r.machine.Time(), err)
	}
	h := nodeHeartbeat{Incarnation: 7, SentAt: 1, Wall: clock.Wall(), EchoIncarnation: 1, EchoSentAt: clock.now}
	if err := s.Heartbeat(2, 7, h.append(nil)); err != nil {
		t.Fatal(err)
	}
	s.Heartbeats()
	if err := put(-1000); err != nil || r.machine.Time() == before {
		t.Errorf("when the clocks are compared: %v, the time of the shard is %d", err, r.machine.Time())
	}
}

// TestFastClockIsCompared: a clock that runs so fast that every peer is down by the next tick is compared with theirs all the same, when they come up
// (rule State8).
func TestFastClockIsCompared(t *testing.T) {
	h := newHeartbeats(t)
	bound := int64(h.s.cfg.ClockAheadMax / 1e6)
	for i, ahead := range []int64{0, bound - 1000, bound + 1000, 2 * bound, 0} {
		h.clock.now += 10 * engine.Instant(h.s.cfg.ElectionTimeoutMin)
		h.s.Heartbeats()
		if h.s.live.reachable(2) {
			t.Fatal("the peer is up at a tick: the test tests nothing")
		}
		b := nodeHeartbeat{Incarnation: 7, SentAt: h.clock.now, Wall: h.clock.Wall() - ahead, EchoIncarnation: 1, EchoSentAt: h.clock.now - 1e6, Promise: h.s.cfg.ElectionTimeoutMin}
		if err := h.s.Heartbeat(2, 7, b.append(nil)); err != nil {
			t.Fatal(err)
		}
		if !h.s.live.reachable(2) {
			t.Fatal("the peer is not up: the test tests nothing")
		}
		if got := h.s.clockAhead.Load(); got != (ahead > bound) {
			t.Errorf("%d: %d ms ahead of the peer, ahead is %v", i, ahead, got)
		}
	}
}
