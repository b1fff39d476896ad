package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// MembershipChange is a step of an operation on one shard.
type MembershipChange struct {
	Shard engine.ShardID
	// Version and ConfVersion are those of the descriptor for which the change was made: at any other the step is void, whoever
	// repeats it (rule Cluster6).
	Version     uint64
	ConfVersion uint64
	// Replicas is the membership wanted: voters and learners. If the voters differ from the present ones the change goes by way of a
	// joint membership, which the leader, or the next one, leaves by itself.
	Replicas []shard.ReplicaDesc
}

// ChangeMembership proposes a change to the leader of a shard, which must be this node. It returns when the change is in the
// leader's log; it is done when an applied descriptor says so. A void step is a MovedError with the descriptor in force.
func (s *Scheduler) ChangeMembership(ctx context.Context, ch MembershipChange) error {
	return s.askError(ctx, s.laneOf(ch.Shard), func(l *Lane) error { return l.changeMembership(&ch) })
}

// ChangeMembershipAsync is ChangeMembership for a runtime without goroutines: done is called on the lane.
func (s *Scheduler) ChangeMembershipAsync(ch MembershipChange, done func(error)) {
	s.laneOf(ch.Shard).box.putCall(func(l *Lane) { done(l.changeMembership(&ch)) })
}

func (l *Lane) changeMembership(ch *MembershipChange) error {
	r := l.byShard[ch.Shard]
	if r == nil || r.machine == nil {
		return fmt.Errorf("shard %d: %w", ch.Shard, shard.ErrShardNotFound)
	}
	if !r.eng.IsLeader() {
		l.provoke(r)
		return l.notLeader(r)
	}
	d := r.machine.Desc()
	if d.Version != ch.Version || d.ConfVersion != ch.ConfVersion {
		return &shard.MovedError{Descriptors: []shard.Descriptor{*d}}
	}
	if r.barrier || r.machine.Merge().Role != shard.MergeNone || r.machine.Applied().Term != r.eng.Status().Vote.Term { // rule Merge1
		return busyError("a split or merge of the shard is under way")
	}
	if r.machine.Membership().LogID != r.eng.Status().Membership.LogID {
		return busyError("a membership change is in progress")
	}
	target, err := targetMembership(d, ch.Replicas)
	if err != nil {
		return err
	}
	l.token++
	l.transferRefused = 0
	l.step(ch.Shard, "membership: propose")
	l.feed(r, &engine.ChangeMembership{Token: l.token, Target: *target})
	if l.transferRefused != l.token {
		return nil
	}
	switch l.refusedReason {
	case engine.ReasonInvalid:
		return busyError("a replica that is to vote has not caught up")
	case engine.ReasonNotLeader:
		return l.notLeader(r)
	}
	return busyError("the leader cannot change the membership now")
}

func busyError(reason string) error {
	return &shard.UnavailableError{RetryAfter: retryAfter, Reason: reason}
}

// targetMembership turns the wanted replicas into a membership. A node holds at most one replica of a shard, and who is there stays
// under its name (rule Engine5).
func targetMembership(d *shard.Descriptor, replicas []shard.ReplicaDesc) (*engine.Membership, error) {
	next := *d
	next.Replicas = replicas
	if err := next.Validate(); err != nil {
		return nil, err
	}
	var voters, learners []engine.Peer
	for _, r := range replicas {
		switch r.Role {
		case shard.RoleVoter:
			voters = append(voters, r.Peer())
		case shard.RoleLearner:
			learners = append(learners, r.Peer())
		default:
			return nil, &shard.InvalidError{What: fmt.Sprintf("a membership cannot be asked for with a replica that is %s", r.Role)}
		}
		if old, ok := d.OnNode(r.Node); ok && old.Replica != r.Replica {
			return nil, &shard.InvalidError{What: fmt.Sprintf("node %d holds replica %d of shard %d, %d cannot be added", r.Node, old.Replica, d.Shard, r.Replica)}
		}
		if old, ok := d.Replica(r.Replica); ok && old.Node != r.Node {
			return nil, &shard.InvalidError{What: fmt.Sprintf("replica %d of shard %d is on node %d", r.Replica, d.Shard, old.Node)}
		}
	}
	if len(voters) == 0 {
		return nil, &shard.InvalidError{What: "a membership without voters"}
	}
	return &engine.Membership{Voters: [][]engine.Peer{voters}, Learners: learners}, nil
}

// RemoveReplicaAsync is RemoveReplica for a runtime without goroutines: done is called on the lane.
func (s *Scheduler) RemoveReplicaAsync(id engine.ShardID, replica engine.ReplicaID, proof *shard.Descriptor, done func(error)) {
	s.laneOf(id).box.putCall(func(l *Lane) { l.remove(id, replica, proof, done) })
}

// RemoveGone removes this node's replica of d.Shard if d proves that it is not a member any more (rule Cluster5): d was applied by a
// replica of the shard. It tells whether it did. An uninitialised replica has applied nothing, and may be named by a later
// descriptor than d: it stays.
func (s *Scheduler) RemoveGone(ctx context.Context, d *shard.Descriptor) (bool, error) {
	gone, err := ask(ctx, s, s.laneOf(d.Shard), func(l *Lane) engine.ReplicaID { return l.gone(d) })
	if err != nil || gone == 0 {
		return false, err
	}
	s.logger.Info("a replica was removed from its shard", "shard", uint64(d.Shard), "replica", uint64(gone), "conf_version", d.ConfVersion)
	return true, s.RemoveReplica(ctx, d.Shard, gone, d)
}

// RemoveGoneAsync is RemoveGone for a runtime without goroutines: done is called on the lane.
func (s *Scheduler) RemoveGoneAsync(d *shard.Descriptor, done func(gone engine.ReplicaID, err error)) {
	s.laneOf(d.Shard).box.putCall(func(l *Lane) {
		gone := l.gone(d)
		if gone == 0 {
			done(0, nil)
			return
		}
		l.remove(d.Shard, gone, d, func(err error) { done(gone, err) })
	})
}

// gone returns the replica of d.Shard that is here, if d proves that it was removed; else 0.
func (l *Lane) gone(d *shard.Descriptor) engine.ReplicaID {
	r := l.byShard[d.Shard]
	if o := l.orphans[d.Shard]; r == nil && o != nil { // it was a member when its shard was born: before that there is no descriptor
		if _, named := d.Replica(o.log.Key.Replica); !named {
			return o.log.Key.Replica
		}
	}
	if r == nil || r.machine == nil {
		return 0
	}
	m := r.machine
	before := m.Previous().Membership
	if provesGone(d, m.Desc(), r.self(), before != nil && before.Contains(r.self())) {
		return r.key.Replica
	}
	return 0
}

// provesGone tells whether d, the descriptor of a replica of the same shard, proves that self, which has applied mine, was removed. before
// tells whether the membership before that of mine had named it. The memberships are compared by ConfVersion alone, whatever Version
// says (FAULTS R11).
//
// That d does not name self is not enough: the snapshot that filled self may be from before the entry that added it, and then neither
// names it while it is being added, or even votes. So self must have been a member as of what it has applied, or
// have applied its own removal; or d names a later replica on its node, which nobody would add while self is there.
func provesGone(d, mine *shard.Descriptor, self engine.Peer, before bool) bool {
	if _, named := d.Replica(self.Replica); named {
		return false
	}
	if other, ok := d.OnNode(self.Node); ok && other.Replica > self.Replica && d.ConfVersion >= mine.ConfVersion {
		return true
	}
	if _, named := mine.Replica(self.Replica); named {
		return d.ConfVersion > mine.ConfVersion
	}
	return before && d.ConfVersion >= mine.ConfVersion
}

// wasMember tells whether the replica has applied a membership that names it: the newest, or the one before, from which the newest has
// removed it.
func (r *replica) wasMember() bool {
	if _, ok := r.machine.Desc().Replica(r.key.Replica); ok {
		return true
	}
	m := r.machine.Previous().Membership
	return m != nil && m.Contains(r.self())
}

// discard forgets an uninitialised replica on the word of a leader that names a later one on this node: replica ids grow, a node has
// one replica of a shard at most, and a membership is proposed only after the one before it is committed; so the earlier
// one was removed, or never was a member. It holds nothing but a vote that nobody counts.
func (l *Lane) discard(r *replica) {
	l.drop(r)
	l.log.Drop(r.key)
}

// stray tells the node that a message came for a later replica than the one that is here: that one was probably removed. It looks for
// proof.
func (l *Lane) stray(r *replica) {
	if f := l.s.cfg.OnStray; f != nil {
		f(r.key.Shard)
	}
}

// silent tells the node of a replica that may never become more than a name.
func (l *Lane) silent(id engine.ShardID) {
	if f := l.s.cfg.OnSilent; f != nil {
		f(id)
	}
}

// Lead is what a leader knows of its shard.
type Lead struct {
	Descriptor *shard.Descriptor // immutable
	Replica    engine.ReplicaID  // the leader's own
	Term       uint64
	Committed  uint64
	// Changing: a membership change is not applied yet, or a split or merge is under way. One that was ordered and waits for a shard to settle, which has no end
	// while a disk is full, does not count: any change of the membership makes it void.
	Changing bool
	MemberAt engine.LogID // the entry of the membership that Descriptor shows
	Keys     uint64
	Bytes    uint64
	Writes   uint64 // so far: its growth is the load
	Progress []engine.Progress
	// SnapshotSent is how many bytes of the snapshots under way were sent, and SnapshotNote why the last one was not.
	SnapshotSent uint64
	SnapshotNote string
}

// LeadsOf lists those of the named shards that this node leads. It is a linearizable read of each (rule Engine4): a leader that was deposed and has
// not heard of it does not answer, and what is told of its shard was not older than that when LeadsOf was called.
func (s *Scheduler) LeadsOf(ctx context.Context, shards ...engine.ShardID) ([]Lead, error) {
	done := make(chan []Lead, len(shards))
	for _, id := range shards {
		if s.stopped.Load() {
			return nil, ErrStopped
		}
		s.LeadAsync(id, func(part []Lead) { done <- part })
	}
	var out []Lead
	for range shards {
		select {
		case part := <-done:
			out = append(out, part...)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.run.stop:
			return nil, ErrStopped
		}
	}
	return out, nil
}

// LeadAsync is LeadsOf of one shard for a runtime without goroutines: done is called on the lane.
func (s *Scheduler) LeadAsync(id engine.ShardID, done func([]Lead)) {
	s.laneOf(id).box.putCall(func(l *Lane) { l.askLead(id, done) })
}

// askLead calls done with what the leader of a shard knows, when that is confirmed; with nothing if it is not this node.
func (l *Lane) askLead(id engine.ShardID, done func([]Lead)) {
	r := l.byShard[id]
	if r == nil || r.machine == nil || !r.eng.IsLeader() {
		done(nil)
		return
	}
	l.read(r, &Request{Kind: kindLead, Shard: id, began: l.now, awaited: true, Done: func(req *Request) {
		part, _ := req.User.([]Lead)
		done(part)
	}})
}

// lead is what r, which leads and is initialised, knows of its shard.
func (l *Lane) lead(r *replica) Lead {
	st := r.eng.Status()
	lead := Lead{Descriptor: r.machine.Desc(), Replica: r.key.Replica, Term: st.Vote.Term, Committed: st.Committed.Index, Writes: r.machine.Writes(),
		Changing: r.machine.Membership().LogID != st.Membership.LogID || r.barrier || r.machine.Merge().Role != shard.MergeNone, MemberAt: r.machine.Membership().LogID}
	lead.Keys, lead.Bytes = r.machine.Estimate()
	lead.Progress = r.eng.Progress(nil)
	lead.SnapshotSent = l.s.snaps.sent(r.key.Shard)
	if r.snapNote != nil {
		lead.SnapshotNote = *r.snapNote
	}
	return lead
}

// Evacuate orders the leaders of this node to hand over to voters on living nodes that are not among avoid, spread over them. It
// returns how many shards this node still leads that others could; call it until there are none.
func (s *Scheduler) Evacuate(ctx context.Context, avoid []engine.NodeID) (left int, err error) {
	for _, l := range s.lanes {
		n, err := ask(ctx, s, l, func(l *Lane) int { return l.evacuate(avoid) })
		if err != nil {
			return left, err
		}
		left += n
	}
	return left, nil
}

// EvacuateAsync is Evacuate for a runtime without goroutines: done is called on a lane.
func (s *Scheduler) EvacuateAsync(avoid []engine.NodeID, done func(left int)) {
	left, waiting := 0, len(s.lanes)
	for _, l := range s.lanes {
		l.box.putCall(func(l *Lane) {
			left += l.evacuate(avoid)
			if waiting--; waiting == 0 {
				done(left)
			}
		})
	}
}

func (l *Lane) evacuate(avoid []engine.NodeID) int {
	left := 0
	for _, r := range l.list {
		if !r.eng.IsLeader() || len(r.peers) == 0 {
			continue
		}
		if to := l.heir(r, avoid); to != (engine.Peer{}) {
			left++
			l.token++
			l.feed(r, &engine.TransferLeader{Token: l.token, To: to}) // refused while one is under way
		}
	}
	return left
}

// heir returns the voter to which r, which leads, may hand over; zero if there is none. One that is behind, or whose disk is bad, is the last choice: it may never have
// all of the log, and until the order is given up clients are refused.
func (l *Lane) heir(r *replica, avoid []engine.NodeID) (last engine.Peer) {
	start := int(uint64(r.key.Shard) * 0x9e3779b97f4a7c15 >> 33)
	need := r.eng.Status().Last.Index
	progress := r.eng.Progress(nil)
	voters := r.otherVoters()
	for i := range voters {
		p := &voters[(start+i)%len(voters)]
		if !l.s.live.reachable(p.peer.Node) || slices.Contains(avoid, p.peer.Node) {
			continue
		}
		if !l.s.live.diskBad(p.peer.Node) && slices.ContainsFunc(progress, func(f engine.Progress) bool {
			return f.Peer == p.peer && f.Match.Index+uint64(l.s.cfg.EntriesPerMessage) >= need
		}) {
			return p.peer
		}
		if last == (engine.Peer{}) {
			last = p.peer
		}
	}
	return last
}

// garbageBudget is how many keys one transaction of the cleaning removes.
const garbageBudget = 1024

// CollectGarbage cleans a little of what removed and replaced replicas have left (rule State4), and tells whether there is more.
func (s *Scheduler) CollectGarbage() bool {
	more, err := s.state.CollectGarbage(garbageBudget)
	switch {
	case err == nil:
		return more
	case errors.Is(err, state.ErrNoSpace), errors.Is(err, state.ErrClosed):
	default:
		s.fatal(fmt.Errorf("cleaning the state: %w", err))
	}
	return false
}

// collectGarbage cleans what there is, unless checkpoints wait or the scheduler stops.
func (s *Scheduler) collectGarbage() {
	for !s.CheckpointsWaiting() && s.CollectGarbage() {
		select {
		case <-s.run.stop:
			return
		case <-time.After(s.cfg.CheckpointPause):
		}
	}
}
