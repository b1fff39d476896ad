package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// ReplicaStatus is what one replica of this node was at a moment.
type ReplicaStatus struct {
	Shard      engine.ShardID
	Replica    engine.ReplicaID
	Role       engine.Role
	Term       uint64
	Leader     engine.Peer // zero if unknown
	Last       engine.LogID
	Committed  engine.LogID
	Applied    engine.LogID
	Quiesced   bool
	LeaseValid bool
	// Descriptor is the applied one, nil while the replica is uninitialised. It is immutable.
	Descriptor *shard.Descriptor
	Merge      shard.MergeState
	Keys       uint64 // estimates
	Bytes      uint64
	LogBytes   int64
	Dirty      int // bytes of overlays that no checkpoint holds yet
	Checkpoint engine.LogID
	WasMember  bool // has applied a membership that names it
	Orphan     bool // it waits for its parent to be replayed; nothing else is known of it but its name
	// Votes tells whether a membership in its log, applied or not, names it as a voter, and MemberAt which is in force there.
	Votes    bool
	MemberAt engine.LogID
	Waiting  int               // writes that wait to be applied
	Load     Load              // since the replica was opened here
	Progress []engine.Progress // leaders
}

// ask runs f on a lane and waits for what it returns. A caller that stops waiting does not stop f, so f must not write to anything of the
// caller's.
func ask[T any](ctx context.Context, s *Scheduler, l *Lane, f func(*Lane) T) (T, error) {
	var none T
	if s.stopped.Load() {
		return none, ErrStopped
	}
	done := make(chan T, 1)
	l.box.putCall(func(l *Lane) { done <- f(l) })
	select {
	case v := <-done:
		return v, nil
	case <-ctx.Done():
		return none, ctx.Err()
	case <-s.run.stop:
		return none, ErrStopped
	}
}

// Shrink lets go of the memory that the lanes keep to be quick, such as what is cached of the raft log. It is for a node that has come to rest.
func (s *Scheduler) Shrink(ctx context.Context) error {
	for _, l := range s.lanes {
		if _, err := ask(ctx, s, l, func(l *Lane) struct{} {
			l.shrink()
			return struct{}{}
		}); err != nil {
			return err
		}
	}
	return nil
}

// askError is ask for what only fails or not.
func (s *Scheduler) askError(ctx context.Context, l *Lane, f func(*Lane) error) error {
	out, err := ask(ctx, s, l, f)
	if err != nil {
		return err
	}
	return out
}

// statusPiece is how many replicas a lane tells of in one turn: more would hold it up.
const statusPiece = 1024

// Statuses returns the status of all replicas, sorted by shard.
func (s *Scheduler) Statuses(ctx context.Context) ([]ReplicaStatus, error) {
	return s.StatusesOf(ctx, 0, ^engine.ShardID(0), 0)
}

// StatusesOf returns the status of the replicas of shards from first to last, sorted by shard: of at most limit of them, 0 is all. Of
// the others it reads the ids only.
func (s *Scheduler) StatusesOf(ctx context.Context, first, last engine.ShardID, limit int) ([]ReplicaStatus, error) {
	var ids []engine.ShardID
	for _, l := range s.lanes {
		part, err := ask(ctx, s, l, func(l *Lane) (part []engine.ShardID) {
			for id := range l.byShard {
				if id >= first && id <= last {
					part = append(part, id)
				}
			}
			return part
		})
		if err != nil {
			return nil, err
		}
		ids = append(ids, part...)
	}
	slices.Sort(ids)
	if limit > 0 && len(ids) > limit {
		ids = ids[:limit]
	}
	return s.StatusesNamed(ctx, ids)
}

// StatusesNamed returns the status of the replicas of these shards, sorted by shard, also of orphans; shards without a replica here are left out.
func (s *Scheduler) StatusesNamed(ctx context.Context, ids []engine.ShardID) ([]ReplicaStatus, error) {
	ids = slices.Clone(ids) // a caller that stops waiting does not stop the lane, which still reads them
	slices.Sort(ids)
	ids = slices.Compact(ids)
	all := make([]ReplicaStatus, 0, len(ids))
	for piece := range slices.Chunk(ids, statusPiece) {
		for _, l := range s.lanes {
			part, err := ask(ctx, s, l, func(l *Lane) []ReplicaStatus { return l.statuses(piece) })
			if err != nil {
				return nil, err
			}
			all = append(all, part...)
		}
	}
	if len(s.lanes) > 1 {
		slices.SortFunc(all, func(a, b ReplicaStatus) int { return cmp.Compare(a.Shard, b.Shard) })
	}
	return all, nil
}

// Status returns the status of one shard's replica, also of an orphan, which Statuses leaves out.
func (s *Scheduler) Status(ctx context.Context, id engine.ShardID) (ReplicaStatus, error) {
	list, err := ask(ctx, s, s.laneOf(id), func(l *Lane) []ReplicaStatus { return l.statuses([]engine.ShardID{id}) })
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound)
	}
	if err != nil {
		return ReplicaStatus{}, err
	}
	return list[0], nil
}

// Replicas is how many replicas the node has.
func (s *Scheduler) Replicas() int { return int(s.replicas.Load()) }

// Transfer asks the leader of a shard, which must be this node, to hand its office to the replica on node to. It returns
// once the order was accepted; the new leader is seen in Status.
func (s *Scheduler) Transfer(ctx context.Context, id engine.ShardID, to engine.NodeID) error {
	return s.askError(ctx, s.laneOf(id), func(l *Lane) error { return l.transfer(id, to) })
}

// Checksum returns the checksum of a shard's content on this node, and the applied entry at which it was taken.
func (s *Scheduler) Checksum(ctx context.Context, id engine.ShardID) (state.Content, engine.LogID, error) {
	type result struct {
		content state.Content
		at      engine.LogID
		err     error
	}
	ch := make(chan result, 1)
	if s.stopped.Load() {
		return state.Content{}, engine.LogID{}, ErrStopped
	}
	s.laneOf(id).box.putCall(func(l *Lane) {
		l.checksum(id, 0, func(c state.Content, at engine.LogID, err error) { ch <- result{c, at, err} })
	})
	select {
	case r := <-ch:
		return r.content, r.at, r.err
	case <-ctx.Done():
		return state.Content{}, engine.LogID{}, ctx.Err()
	case <-s.run.stop:
		return state.Content{}, engine.LogID{}, ErrStopped
	}
}

// CreateOptions are options of CreateReplica.
type CreateOptions struct {
	// Campaign makes the replica stand for election at once: the designated first leader.
	Campaign bool
}

// CreateReplica makes the replica of a new shard on this node, with its initial descriptor (rule Split6). It returns
// when the replica is durable. A replica that exists already is no error.
func (s *Scheduler) CreateReplica(ctx context.Context, desc *shard.Descriptor, id engine.ReplicaID, opt CreateOptions) error {
	return s.CreateReplicas(ctx, []NewReplica{{Descriptor: desc, Replica: id, Options: opt}})
}

// NewReplica is one replica to be made by CreateReplicas.
type NewReplica struct {
	Descriptor *shard.Descriptor
	Replica    engine.ReplicaID
	Options    CreateOptions
}
