package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

// laneSeen is the newest snapshot of the links that a lane has picked up.
type laneSeen struct{ atomic.Uint64 }

// Scheduler drives the replicas of a node. Make it with New; then Start, Submit …, Stop.
type Scheduler struct {
	cfg     Config
	log     *raftlog.Log
	state   state.Store
	net     Network
	clock   Clock
	probe   Probe
	logger  *slog.Logger
	metrics Metrics

	lanes    []*Lane
	live     *liveness
	writer   writerState
	disk     diskWatch
	pace     pace
	ckpt     *checkpointer
	snaps    snapshots
	creating chan struct{} // holds a token while replicas are being made
	replicas atomic.Int64
	orphans  atomic.Int64 // of all lanes: see Lane.orphans

	leaseStart engine.Instant
	spawnFunc  func(task func())
	readJob    func(job *state.ReadJob)

	// ctx ends when the scheduler is stopped.
	ctx    context.Context
	cancel context.CancelFunc

	stopped    atomic.Bool
	clockAhead atomic.Bool // rule State8
	// clockUnknown: there are peers, and our wall clock was compared with none of theirs yet.
	clockUnknown atomic.Bool
	// wallJudged is the wall clock less the monotonic one, in ms, when they were last found to be good. A wall clock that has jumped
	// ahead since stamps nothing before it was compared with the peers'.
	wallJudged atomic.Int64
	fatalOnce  sync.Once
	run        running
}

// wallOffset is the wall clock less the monotonic one, in ms.
func (s *Scheduler) wallOffset() int64 { return s.clock.Wall() - int64(s.clock.Now())/1e6 }

// Metrics returns the counters.
func (s *Scheduler) Metrics() *Metrics { return &s.metrics }

// InflightLimit is how many writes may be taken and not answered at the moment.
func (s *Scheduler) InflightLimit() int { return int(s.pace.limit.Load()) }

// Log returns the raft log, for its counters.
func (s *Scheduler) Log() *raftlog.Log { return s.log }

// laneOf returns the lane of a shard: the same for its life in this process.
func (s *Scheduler) laneOf(id engine.ShardID) *Lane {
	if len(s.lanes) == 1 {
		return s.lanes[0]
	}
	x := uint64(id) * 0x9e3779b97f4a7c15
	return s.lanes[(x>>32)%uint64(len(s.lanes))]
}

// Lanes returns the lanes, for a runtime that calls Turn itself.
func (s *Scheduler) Lanes() []*Lane { return s.lanes }

// HasMail tells whether a turn is wanted now, and takes the token: for a runtime that calls Turn itself.
func (l *Lane) HasMail() bool {
	select {
	case <-l.box.wake:
		return true
	default:
		return false
	}
}

// Submit hands a request to its lane. req.Done is called exactly once, maybe before Submit returns.
func (s *Scheduler) Submit(req *Request) {
	err := s.admit(req)
	if err == nil {
		if s.laneOf(req.Shard).box.putRequest(req, s.cfg.MailboxMax) {
			return
		}
		err = shard.ErrOverloaded
	}
	s.refuse(req, err)
}

// SubmitAll is Submit for many requests: each lane is locked and woken once. It clears the slice.
func (s *Scheduler) SubmitAll(reqs []*Request) {
	var refused []*Request
	for i, req := range reqs {
		if err := s.admit(req); err != nil {
			req.Err, reqs[i] = err, nil
			refused = append(refused, req)
		}
	}
	for _, l := range s.lanes {
		refused = l.putRequests(reqs, refused)
	}
	for _, req := range refused {
		s.refuse(req, req.Err)
	}
}

// putRequests takes those of the lane out of reqs and into its mailbox, and appends to refused what has no room there.
func (l *Lane) putRequests(reqs, refused []*Request) []*Request {
	m, put := &l.box, false
	m.mu.Lock()
	for i, req := range reqs {
		if req == nil || l.s.laneOf(req.Shard) != l {
			continue
		}
		reqs[i] = nil // it may be answered, and used again, before the next lane's turn
		if m.full(l.s.cfg.MailboxMax) {
			req.Err = shard.ErrOverloaded
			refused = append(refused, req)
			continue
		}
		m.in.requests = append(m.in.requests, req)
		put = true
	}
	m.mu.Unlock()
	if put {
		m.ring()
	}
	return refused
}

// admit makes a request ready, and tells why the node does not take it now, if so.
func (s *Scheduler) admit(req *Request) error {
	req.Err, req.Answer, req.next, req.size, req.awaited = nil, req.Answer[:0], nil, 0, false
	req.began, req.proposed, req.applying = 0, 0, 0
	if s.stopped.Load() {
		return errStopping
	}
	if req.Kind != KindWrite {
		return nil
	}
	size := int64(len(req.Body))
	switch {
	case s.DiskFull():
		return errFull
	case s.overlaysFull(), s.metrics.Inflight.Load() >= s.pace.limit.Load(), s.metrics.InflightBytes.Load()+size > s.cfg.InflightBytesMax:
		return shard.ErrOverloaded
	}
	req.size = size
	s.metrics.Inflight.Add(1)
	s.metrics.InflightBytes.Add(size)
	return nil
}

// refuse answers a request that no lane has seen.
func (s *Scheduler) refuse(req *Request, err error) {
	s.metrics.ProposalsRefused.Add(1)
	s.metrics.Refusals[refusalOf(err)].Add(1)
	req.Err = err
	s.finish(req)
}

// finish answers a request.
func (s *Scheduler) finish(req *Request) {
	if req.size != 0 {
		s.metrics.Inflight.Add(-1)
		s.metrics.InflightBytes.Add(-req.size)
		req.size = 0
	}
	req.Done(req)
}

// RaftFrame takes the body of a raft frame, which it keeps.
func (s *Scheduler) RaftFrame(from engine.NodeID, incarnation uint64, body []byte) {
	s.metrics.FramesReceived.Add(1)
	s.deliver(frame{from: from, incarnation: incarnation, body: body})
}

// deliver gives a frame to all lanes: each takes its own messages out of it.
func (s *Scheduler) deliver(f frame) {
	for _, l := range s.lanes {
		if !l.box.putFrame(f, s.cfg.MailboxBytesMax) {
			s.metrics.FramesOverflowed.Add(1)
		}
	}
}

// Heartbeat takes a node heartbeat, which it keeps. An error means that the peer talks nonsense: close the session.
func (s *Scheduler) Heartbeat(from engine.NodeID, incarnation uint64, body []byte) error {
	awake, err := s.live.receive(from, incarnation, body)
	if err != nil {
		return err
	}
	if len(awake) > 0 {
		s.deliver(frame{from: from, incarnation: incarnation, body: awake})
	}
	return nil
}

// PeerConnected tells that a session with a node began.
func (s *Scheduler) PeerConnected(node engine.NodeID, incarnation uint64) {
	s.live.connected(node, incarnation)
}

// PeerDisconnected tells that it ended.
func (s *Scheduler) PeerDisconnected(node engine.NodeID, incarnation uint64) {
	s.live.disconnected(node, incarnation)
}

// PeerAlive tells whether a node is alive, by its heartbeats.
func (s *Scheduler) PeerAlive(node engine.NodeID) bool { return s.live.up(node) }

func (s *Scheduler) peerUp(node engine.NodeID, incarnation uint64) {
	for _, l := range s.lanes {
		l.box.putCall(func(l *Lane) { l.peerUp(node, incarnation) })
	}
}

func (s *Scheduler) peerDown(node engine.NodeID) {
	for _, l := range s.lanes {
		l.box.putCall(func(l *Lane) { l.peerDown(node) })
	}
}

func (s *Scheduler) wakeLanes() {
	for _, l := range s.lanes {
		l.box.ring()
	}
}

// lanesHaveSeen tells whether every lane works with the links of snapshot seq, or newer ones.
func (s *Scheduler) lanesHaveSeen(seq uint64) bool {
	for _, l := range s.lanes {
		if l.linksSeq.Load() < seq {
			return false
		}
	}
	return true
}

// ages tells how long the slowest lane, and the log writer, have been at what they are doing (rule Live1).
func (s *Scheduler) ages(now engine.Instant) (lane, writer engine.Duration) {
	for _, l := range s.lanes {
		if began := l.box.busy.Load(); began != 0 {
			lane = max(lane, engine.Duration(now)-engine.Duration(began))
		}
	}
	if began := s.writer.busy.Load(); began != 0 {
		writer = max(0, engine.Duration(now)-engine.Duration(began))
	}
	return lane, writer
}

// Stuck says that a lane has been at one turn, or the log writer at one write and sync, for longer than that; else nil. It needs neither of
// them to answer.
func (s *Scheduler) Stuck(longer time.Duration) error {
	lane, writer := s.ages(s.clock.Now())
	switch {
	case time.Duration(writer) > longer:
		return fmt.Errorf("the log writer has been at one write and sync for %v: look at the disk", time.Duration(writer).Round(time.Millisecond))
	case time.Duration(lane) > longer:
		return fmt.Errorf("a lane has been at one turn for %v", time.Duration(lane).Round(time.Millisecond))
	}
	return nil
}

// fatal ends the process: what is on the disk is not known any more.
func (s *Scheduler) fatal(err error) {
	s.fatalOnce.Do(func() { s.cfg.Fatal(err) })
}

// spawn runs a task that may wait for a disk.
func (s *Scheduler) spawn(task func()) { s.spawnFunc(task) }

// resignAll makes this node give up all its leaderships.
func (s *Scheduler) resignAll() {
	for _, l := range s.lanes {
		l.box.putCall(func(l *Lane) { l.resignAll() })
	}
}
