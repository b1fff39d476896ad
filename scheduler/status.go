package scheduler

import (
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
	WasMember  bool              // has applied a membership that names it
	Waiting    int               // writes that wait to be applied
	Load       Load              // since the replica was opened here
	Progress   []engine.Progress // leaders
}

// call runs f on a lane and waits for it.
func (s *Scheduler) call(ctx context.Context, l *Lane, f func(*Lane)) error {
	if s.stopped.Load() {
		return ErrStopped
	}
	done := make(chan struct{})
	l.box.putCall(func(l *Lane) { f(l); close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.run.stop:
		return ErrStopped
	}
}

// Statuses returns the status of all replicas, sorted by shard.
func (s *Scheduler) Statuses(ctx context.Context) ([]ReplicaStatus, error) {
	var all []ReplicaStatus
	for _, l := range s.lanes {
		var part []ReplicaStatus
		if err := s.call(ctx, l, func(l *Lane) {
			for _, r := range l.list {
				part = append(part, l.status(r))
			}
		}); err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	slices.SortFunc(all, func(a, b ReplicaStatus) int {
		if a.Shard < b.Shard {
			return -1
		}
		return 1
	})
	return all, nil
}

// Status returns the status of one shard's replica.
func (s *Scheduler) Status(ctx context.Context, id engine.ShardID) (ReplicaStatus, error) {
	var st ReplicaStatus
	found := false
	err := s.call(ctx, s.laneOf(id), func(l *Lane) {
		if r := l.byShard[id]; r != nil {
			st, found = l.status(r), true
		}
	})
	if err == nil && !found {
		err = fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound)
	}
	return st, err
}

// Replicas is how many replicas the node has.
func (s *Scheduler) Replicas() int { return int(s.replicas.Load()) }

// Transfer asks the leader of a shard, which must be this node, to hand its office to the replica on node to. It returns
// once the order was accepted; the new leader is seen in Status.
func (s *Scheduler) Transfer(ctx context.Context, id engine.ShardID, to engine.NodeID) error {
	var out error
	err := s.call(ctx, s.laneOf(id), func(l *Lane) { out = l.transfer(id, to) })
	if err != nil {
		return err
	}
	return out
}

// Checksum returns the checksum of a shard's content on this node, and the applied entry at which it was taken.
func (s *Scheduler) Checksum(ctx context.Context, id engine.ShardID) (state.Content, engine.LogID, error) {
	type result struct {
		content state.Content
		at      engine.LogID
		err     error
	}
	ch := make(chan result, 1)
	err := s.call(ctx, s.laneOf(id), func(l *Lane) {
		l.checksum(id, 0, func(c state.Content, at engine.LogID, err error) { ch <- result{c, at, err} })
	})
	if err != nil {
		return state.Content{}, engine.LogID{}, err
	}
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
