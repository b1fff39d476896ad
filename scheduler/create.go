package scheduler

import (
	"context"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// createBatch is how many new replicas one transaction of the state makes.
const createBatch = 256

// createRetry is how long the making of a replica waits for the vote of an uninitialised one to be durable.
const createRetry = engine.Duration(1e6)

// CreateReplicas makes replicas of new shards: their records in few transactions, then their engines (rule Log7). It returns when
// they are durable. Those that exist already are left alone, so it may be called again (rule Split6).
func (s *Scheduler) CreateReplicas(ctx context.Context, list []NewReplica) error {
	for len(list) > 0 {
		n := min(len(list), createBatch)
		if err := s.createBatch(ctx, list[:n]); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (s *Scheduler) createBatch(ctx context.Context, list []NewReplica) error {
	var missing []NewReplica
	there := make([]presence, len(list))
	select { // two that make the same replica at once would give it two tablets, and the state would hold the other one than its lane
	case s.creating <- struct{}{}:
		defer func() { <-s.creating }()
	case <-ctx.Done():
		return ctx.Err()
	case <-s.run.stop:
		return ErrStopped
	}
	for _, l := range s.lanes {
		found, err := ask(ctx, s, l, func(l *Lane) []presence {
			found := make([]presence, len(list)) // zero of shards of other lanes
			for i, n := range list {
				if s.laneOf(n.Descriptor.Shard) == l {
					found[i] = l.present(n)
				}
			}
			return found
		})
		if err != nil {
			return err
		}
		for i, p := range found {
			there[i] = max(there[i], p)
		}
	}
	for i, n := range list {
		switch there[i] {
		case replicaMissing:
			missing = append(missing, n)
		case replicaOther:
			return fmt.Errorf("shard %d: %w, or its replica %d was removed", n.Descriptor.Shard, ErrExists, n.Replica)
		}
	}
	records, err := s.writeNew(missing)
	if err != nil {
		return err
	}
	results := make(chan error, len(records))
	for i := range records {
		n := missing[i]
		s.laneOf(n.Descriptor.Shard).box.putCall(func(l *Lane) {
			l.create(&records[i], n.Options, func(err error) { results <- err })
		})
	}
	for range records {
		select {
		case err := <-results:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.run.stop:
			return ErrStopped
		}
	}
	return nil
}

// writeNew writes the records of new replicas.
func (s *Scheduler) writeNew(list []NewReplica) ([]state.Record, error) {
	if len(list) == 0 {
		return nil, nil
	}
	records := make([]state.Record, 0, len(list))
	changes := make([]state.Change, 0, len(list))
	for _, n := range list {
		tablet, err := s.state.AllocTablet()
		if err != nil {
			return nil, err
		}
		rec, err := shard.NewReplicaRecord(n.Descriptor, n.Replica, tablet)
		if err != nil {
			return nil, err
		}
		records = append(records, rec)
		changes = append(changes, state.Change{Record: rec, NewTablet: true})
	}
	if err := s.state.Write(changes, s.log.Synced()); err != nil {
		return nil, fmt.Errorf("creating %d replicas: %w", len(list), err)
	}
	return records, nil
}

type presence int

const (
	replicaMissing presence = iota // or uninitialised
	replicaThere
	replicaOther
)

func (l *Lane) present(n NewReplica) presence {
	key := store.Key{Shard: n.Descriptor.Shard, Replica: n.Replica}
	r := l.byShard[key.Shard]
	switch {
	case l.tombAbove(key) || l.burying(key.Shard) || r != nil && r.key != key:
		return replicaOther
	case r != nil && r.machine != nil:
		return replicaThere
	}
	return replicaMissing
}

// create makes the replica of a record that is durable now. A message may have made it before, uninitialised: then its vote is kept, and
// that must be durable before another engine goes on with it.
func (l *Lane) create(rec *state.Record, opt CreateOptions, done func(error)) {
	old := l.byShard[rec.Shard]
	if old != nil && (old.key != rec.Key || old.machine != nil) {
		if old.key == rec.Key {
			done(nil) // made twice at the same time
			return
		}
		done(fmt.Errorf("shard %d: %w", rec.Shard, ErrExists))
		return
	}
	if l.tombAbove(rec.Key) { // removed since its record was written, which is a tombstone now
		done(fmt.Errorf("shard %d: %w: replica %d was removed", rec.Shard, ErrExists, rec.Replica))
		return
	}
	// A snapshot that is being linked fills it instead, and its engine must live to hear of that.
	if old != nil && (old.ioAt != 0 || old.ioPending > 0 || old.snapIn != nil || old.linking) {
		l.later(createRetry, func(l *Lane) { l.create(rec, opt, done) })
		return
	}
	m, err := shard.Open(l.env, rec)
	if err != nil {
		done(err)
		return
	}
	r, err := l.initialise(old, rec, m, 0)
	if err != nil {
		done(err)
		return
	}
	l.announce(r)
	l.feed(r, tickEvent)
	if opt.Campaign {
		l.feed(r, &engine.Campaign{})
	}
	done(nil)
}

// CreateReplicaAsync makes one replica and calls done on its lane: for a runtime without goroutines.
func (s *Scheduler) CreateReplicaAsync(n NewReplica, done func(error)) {
	l := s.laneOf(n.Descriptor.Shard)
	l.box.putCall(func(l *Lane) {
		switch l.present(n) {
		case replicaThere:
			done(nil)
		case replicaOther:
			done(fmt.Errorf("shard %d: %w, or its replica %d was removed", n.Descriptor.Shard, ErrExists, n.Replica))
		case replicaMissing:
			s.spawn(func() {
				records, err := s.writeNew([]NewReplica{n})
				l.box.putCall(func(l *Lane) {
					if err != nil {
						done(err)
						return
					}
					l.create(&records[0], n.Options, done)
				})
			})
		}
	})
}
