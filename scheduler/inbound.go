package scheduler

import (
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// receive feeds the messages of a frame to their engines. Messages of other lanes are theirs.
func (l *Lane) receive(f *frame) {
	if !l.s.live.current(f.from, f.incarnation) {
		l.s.metrics.MessagesDropped.Add(1)
		return // of a process that is gone: its answers count leases from clocks that we know nothing of
	}
	l.reader.Reset(f.body)
	l.ahead.begin(l, aheadOfMessages)
	for read, served, more := 0, 0, true; ; served++ { // what was read and not served is in inbound
		for more && read < served+aheadMax {
			m := &l.inbound[read%aheadMax]
			if more = l.reader.Next(m); more && (len(l.s.lanes) == 1 || l.s.laneOf(m.Shard) == l) {
				l.ahead.add(*l.nearAt(m.Shard))
				read++
			}
		}
		if served == read {
			break
		}
		l.ahead.pass()
		m := &l.inbound[served%aheadMax]
		l.count.received++
		l.bearUnborn()
		r := l.addressee(f.from, m)
		if r == nil {
			if m.Kind == wire.KindHeartbeat {
				l.disclaim(f.from, m)
			}
			l.s.metrics.MessagesDropped.Add(1)
			continue
		}
		if err := l.message1(r, f.from, m); err != nil {
			l.s.metrics.MessagesDropped.Add(1)
			l.s.logger.Warn("malformed raft message", "node", uint64(f.from), "err", err)
		}
	}
	if err := l.reader.Err(); err != nil {
		l.s.metrics.MessagesDropped.Add(1)
		l.s.logger.Warn("malformed raft frame", "node", uint64(f.from), "err", err)
	}
}

// addressee finds the replica that m is for. A replica that does not exist is made, uninitialised, if a candidate or a leader asks
// for it (rule Split4) and it was not removed; another replica of the shard on this node is in the way of that.
func (l *Lane) addressee(from engine.NodeID, m *wire.Message) *replica {
	r := l.replicaOf(m.Shard)
	if r != nil && r.key.Replica == m.To {
		return r
	}
	if m.Kind != wire.KindVoteRequest && m.Kind != wire.KindAppendRequest || m.To == 0 || m.Shard == 0 {
		return nil
	}
	key := store.Key{Shard: m.Shard, Replica: m.To}
	if l.tombAbove(key) || l.orphaned(m.Shard) {
		l.step(m.Shard, "remove: refused")
		return nil
	}
	switch {
	case r == nil:
	case m.To < r.key.Replica:
		return nil
	case r.machine != nil && !r.wasMember() && !r.eng.NamedVoter() && !r.linking && r.snapIn == nil:
		l.remove(m.Shard, r.key.Replica, nil, func(error) {}) // see discard; the leader asks again
		return nil
	case r.machine != nil || r.snapIn != nil || r.linking:
		l.stray(r)
		return nil
	default:
		l.discard(r)
	}
	return l.newUninitialised(key)
}

// disclaim answers a probe to a replica that is not here, and so leads nothing, or that leads, but not the one that asks. The follower
// that doubts would else keep for ever a promise that the node heartbeats go on extending (rule Live4).
func (l *Lane) disclaim(from engine.NodeID, m *wire.Message) {
	hb := &l.ev.hb
	if m.Heartbeat(from, hb) != nil || !hb.Probe {
		return
	}
	self, to := engine.Peer{Node: l.s.cfg.Node, Replica: m.To}, hb.From
	*hb = engine.Heartbeat{From: self, Vote: hb.Vote, SentAt: l.now, Resigned: true}
	o := l.out(to.Node)
	o.msgs = wire.AppendHeartbeat(o.msgs, wire.Header{Shard: m.Shard, From: self.Replica, To: to.Replica}, hb)
	l.message(o)
}

// message1 decodes one message and feeds it.
func (l *Lane) message1(r *replica, from engine.NodeID, m *wire.Message) error {
	var ev engine.Event
	var err error
	switch m.Kind {
	case wire.KindAppendRequest:
		l.inRuns, err = m.AppendRequest(from, &l.ev.appendReq, l.inRuns)
		if err == nil && l.takesNoEntries(r, &l.ev.appendReq) {
			l.s.metrics.MessagesDropped.Add(1)
			return nil
		}
		if err == nil {
			err = l.readSpecials()
		}
		ev = &l.ev.appendReq
	case wire.KindAppendResponse:
		err = m.AppendResponse(from, &l.ev.appendRes)
		if r.learner(l.ev.appendRes.From) {
			l.ev.appendRes.Waiting = false // a learner is somebody new, who waits for nothing but a snapshot (rule Split4)
		}
		if err == nil && len(l.bulk) > 0 {
			l.bulkConfirmed(r, &l.ev.appendRes)
		}
		ev = &l.ev.appendRes
	case wire.KindHeartbeat:
		err = m.Heartbeat(from, &l.ev.hb)
		if err == nil && l.ev.hb.Probe && r.stranger(l.ev.hb.From) {
			l.disclaim(from, m)
			return nil
		}
		ev = &l.ev.hb
	case wire.KindHeartbeatResponse:
		err = m.HeartbeatResponse(from, &l.ev.hbResp)
		ev = &l.ev.hbResp
	case wire.KindVoteRequest:
		err = m.VoteRequest(from, &l.ev.voteReq)
		ev = &l.ev.voteReq
	case wire.KindVoteResponse:
		err = m.VoteResponse(from, &l.ev.voteResp)
		ev = &l.ev.voteResp
	case wire.KindSnapshotResponse:
		err = m.SnapshotResponse(from, &l.ev.snapResp)
		ev = &l.ev.snapResp
	case wire.KindTimeoutNow:
		err = m.TimeoutNow(from, &l.ev.timeout)
		ev = &l.ev.timeout
	case wire.KindMergeOrder:
		var o wire.MergeOrder
		if err = m.MergeOrder(&o); err == nil {
			l.mergeMessage(r, from, &o, m.From)
		}
		return err
	default:
		return nil // of a newer version
	}
	if err != nil {
		return err
	}
	var leader engine.Peer
	var commit uint64
	switch m.Kind {
	case wire.KindHeartbeat:
		if hb := &l.ev.hb; !hb.Probe && !hb.Resigned {
			leader, commit = hb.From, hb.Commit.Index
		}
	case wire.KindAppendRequest:
		leader, commit = l.ev.appendReq.From, l.ev.appendReq.Commit.Index
	}
	l.feed(r, ev)
	if leader.Node != 0 {
		l.heard(r, leader, commit)
	}
	return nil
}

// heard notes a message of the leader, from which the staleness of reads counts (rule Cluster4): only of the leader that this replica
// follows, and only once it has applied what the message announced. A former leader, a probe or a resignation prove nothing, and a
// replica that is behind is as stale as what it holds.
func (l *Lane) heard(r *replica, leader engine.Peer, commit uint64) {
	if r.removed || r.machine == nil || r.eng.Leader() != leader {
		return
	}
	applied := r.machine.Applied().Index
	if r.aheadAt != 0 && applied >= r.ahead {
		r.heardAt, r.aheadAt = r.aheadAt, 0
	}
	switch {
	case applied >= commit:
		r.heardAt, r.aheadAt = l.now, 0
	case r.aheadAt == 0:
		r.ahead, r.aheadAt = commit, l.now
	}
}

// readSpecials fills in what the engine wants to know of the entries of an append request, and checks the bodies: they
// are about to be part of our log.
func (l *Lane) readSpecials() error {
	req := &l.ev.appendReq
	for i := range l.inRuns {
		run := &l.inRuns[i]
		count, special, err := raftlog.CountEntries(run.Body)
		if err != nil {
			return err
		}
		if count != run.Count || special != run.Special {
			return fmt.Errorf("%w: %d entries in a run of %d", wire.ErrMalformed, count, run.Count)
		}
		if !special {
			continue
		}
		index := run.First
		for it := raftlog.NewIter(run.Body); it.Next(); index++ {
			switch it.Kind {
			case engine.EntryBarrier:
				req.Barriers = append(req.Barriers, index)
			case engine.EntryMembership:
				r := mp.NewReader(it.Payload)
				m := raftlog.ReadMembership(&r)
				if err := r.Finish(); err != nil {
					return err
				}
				req.Memberships = append(req.Memberships, engine.MembershipAt{LogID: engine.LogID{Term: run.Term, Index: index}, Membership: &m})
			}
		}
	}
	return nil
}
