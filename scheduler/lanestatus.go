package scheduler

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// status copies what r is now.
func (l *Lane) status(r *replica) ReplicaStatus {
	st := r.eng.Status()
	log := l.log.Stats(r.key)
	out := ReplicaStatus{
		Shard: r.key.Shard, Replica: r.key.Replica, Role: st.Role, Term: st.Vote.Term, Leader: st.Leader, Last: st.Last,
		Committed: st.Committed, Applied: st.Applied, Quiesced: st.Quiesced, LeaseValid: r.eng.LeaseValid(l.now),
		LogBytes: log.Bytes, Waiting: r.waiters.len(), Load: r.load, Progress: r.eng.Progress(nil),
		Votes: r.eng.NamedVoter(), MemberAt: st.Membership.LogID,
	}
	if m := r.machine; m != nil {
		out.Descriptor, out.Merge = m.Desc(), m.Merge()
		out.WasMember = r.wasMember()
		out.Keys, out.Bytes = m.Estimate()
		out.Dirty = m.LiveBytes() + m.FrozenBytes()
		out.Checkpoint = m.Persisted()
	}
	return out
}

// statuses returns the status of those shards that have a replica in this lane.
func (l *Lane) statuses(ids []engine.ShardID) (out []ReplicaStatus) {
	for _, id := range ids {
		switch r := l.byShard[id]; {
		case r != nil:
			out = append(out, l.status(r))
		case l.orphaned(id):
			out = append(out, ReplicaStatus{Shard: id, Replica: l.orphans[id].log.Key.Replica, Orphan: true})
		}
	}
	return out
}

// transfer orders the leader of a shard to hand over to the replica on node to.
func (l *Lane) transfer(id engine.ShardID, to engine.NodeID) error {
	r := l.byShard[id]
	if r == nil || r.machine == nil {
		return fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound)
	}
	if !r.eng.IsLeader() {
		return l.notLeader(r)
	}
	if to == l.s.cfg.Node {
		return nil
	}
	if l.s.live.diskBad(to) {
		return &shard.UnavailableError{RetryAfter: retryAfter, Reason: fmt.Sprintf("the disk of node %d is slow or full", to)}
	}
	for _, p := range r.otherVoters() {
		if p.peer.Node == to {
			l.token++
			l.transferRefused = 0
			l.feed(r, &engine.TransferLeader{Token: l.token, To: p.peer})
			if l.transferRefused == l.token {
				return &shard.UnavailableError{RetryAfter: retryAfter, Reason: "the leader cannot hand over now"}
			}
			return nil
		}
	}
	return &shard.InvalidError{What: fmt.Sprintf("node %d has no voter of shard %d", to, id)}
}

// checksumTries is how often a checksum is begun again because a checkpoint came in between.
const checksumTries = 5

// checksum cuts the shard and computes the checksum of its content as of the cut, off the lane; the cut then becomes a checkpoint.
func (l *Lane) checksum(id engine.ShardID, tries int, done func(state.Content, engine.LogID, error)) {
	r := l.byShard[id]
	if r == nil || r.machine == nil {
		done(state.Content{}, engine.LogID{}, fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound))
		return
	}
	if !l.hold(r) {
		l.whenSettled(r, func(l *Lane) { l.checksum(id, tries, done) })
		return
	}
	gen := r.ckpt.gen
	base, at, frozen := r.ckpt.cut.base, r.ckpt.cut.change.Record.Applied, frozenOf(r)
	l.s.spawn(func() {
		content, err := l.s.state.Checksum(base, frozen...)
		l.box.putCall(func(l *Lane) {
			l.letGo(r, gen)
			if errors.Is(err, state.ErrMoved) && tries < checksumTries {
				l.checksum(id, tries+1, done)
				return
			}
			done(content, at, err)
		})
	})
}

// explainPanic says which shard a lane was at when it panicked: the process ends, loudly (FAULTS P12).
func (l *Lane) explainPanic() {
	p := recover()
	if p == nil {
		return
	}
	id := engine.ShardID(0)
	if l.current != nil {
		id = l.current.key.Shard
	}
	l.s.logger.Error("panic in a lane", "lane", l.id, "shard", uint64(id), "panic", p, "stack", string(debug.Stack()))
	l.s.fatal(fmt.Errorf("lane %d, shard %d: panic: %v\n%s", l.id, id, p, debug.Stack()))
}

// Statuses returns the statuses of the lane's replicas. It must be called by whoever calls Turn.
func (l *Lane) Statuses() []ReplicaStatus {
	out := make([]ReplicaStatus, 0, len(l.list))
	for _, r := range l.list {
		out = append(out, l.status(r))
	}
	return out
}

// Leads tells whether this node leads a shard and may serve reads. It must be called by whoever calls Turn.
func (s *Scheduler) Leads(id engine.ShardID) bool {
	r := s.laneOf(id).byShard[id]
	return r != nil && r.eng.LeaseValid(s.clock.Now())
}

// ChecksumAsync is Checksum for a runtime without goroutines: done is called on the lane.
func (s *Scheduler) ChecksumAsync(id engine.ShardID, done func(state.Content, engine.LogID, error)) {
	s.laneOf(id).box.putCall(func(l *Lane) { l.checksum(id, 0, done) })
}

// TransferAsync is Transfer for a runtime without goroutines: done is called on the lane.
func (s *Scheduler) TransferAsync(id engine.ShardID, to engine.NodeID, done func(error)) {
	s.laneOf(id).box.putCall(func(l *Lane) { done(l.transfer(id, to)) })
}

// Pinned returns replicas that keep the oldest segment of the raft log. It must be called by whoever calls Turn.
func (l *Lane) Pinned() []store.Key { return l.log.Pinned(nil, unpinMax) }
