package scheduler

import (
	"context"
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// RemoveReplica destroys a replica of this node for good: it leaves a durable tombstone, so that no late message brings it back. The
// caller has positive evidence that the replica was removed from its shard, or that the shard is dead (rule Cluster5). proof is what a replica of the
// shard has applied, if that is the evidence; else nil. A replica that is not there is no error.
func (s *Scheduler) RemoveReplica(ctx context.Context, id engine.ShardID, replica engine.ReplicaID, proof *shard.Descriptor) error {
	l := s.laneOf(id)
	done := make(chan error, 1)
	l.box.putCall(func(l *Lane) { l.remove(id, replica, proof, func(err error) { done <- err }) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.run.stop:
		return ErrStopped
	}
}

// remove silences the replica, then writes the tombstone, off the lane, then drops its log (rule Log7).
func (l *Lane) remove(id engine.ShardID, replica engine.ReplicaID, proof *shard.Descriptor, done func(error)) {
	r := l.byShard[id]
	if r == nil || r.key.Replica != replica {
		key := store.Key{Shard: id, Replica: replica}
		if list, pending := l.burials[key]; pending { // it is silent, but its tombstone is not durable yet
			l.burials[key] = append(list, done)
			return
		}
		if c, ok := l.covered[key]; ok { // silent, too, but its tombstone is that link's to write
			l.unlessAbsorbed(c.by, c.r, done, func() { l.removeCovered(c, proof, done) })
			return
		}
		if o := l.takeOrphan(key); o != nil { // else its parent, once replayed, would bring it back
			l.entomb(key, nil, o.log.Purged, done)
			return
		}
		done(nil)
		return
	}
	if r.machine != nil && l.settling(r) || r.snapIn != nil || l.replaying(r) {
		l.whenSettled(r, func(l *Lane) { l.later(createRetry, func(l *Lane) { l.remove(id, replica, proof, done) }) })
		return
	}
	if r.machine != nil && r.machine.Merge().Role == shard.MergeFrozen && !provesUnfrozen(proof, r.machine.Desc()) {
		l.unlessAbsorbed(r.machine.Merge().Other, r, done, func() {
			if r.removed || l.settling(r) { // its tombstone may not be durable yet
				l.remove(id, replica, proof, done)
				return
			}
			l.removeNow(r, done)
		})
		return
	}
	l.removeNow(r, done)
}

// provesUnfrozen tells whether d, which a replica of the same shard has applied, proves that the merge for which a replica is frozen at the descriptor
// frozen was given up. A frozen shard applies nothing that changes its descriptor but Unfreeze, which follows on AbortMerge alone (rules Merge1, Merge2): nobody
// will absorb what is frozen there.
func provesUnfrozen(d, frozen *shard.Descriptor) bool {
	return d != nil && d.Shard == frozen.Shard && (d.Version > frozen.Version || d.ConfVersion > frozen.ConfVersion)
}

// unlessAbsorbed goes on with then, unless the replica that will absorb r is here, or an orphan: its Merge, or the snapshot that it gets instead,
// needs r (rules Merge3, Cluster5). One that has passed the Merge needs it no more: it was filled from elsewhere before r was made.
func (l *Lane) unlessAbsorbed(absorber engine.ShardID, r *replica, done func(error), then func()) {
	desc := r.machine.Desc()
	l.s.laneOf(absorber).box.putCall(func(other *Lane) {
		a := other.byShard[absorber]
		here := a != nil && a.machine != nil && !a.machine.Desc().ProvesDead(desc) || other.orphaned(absorber)
		l.box.putCall(func(*Lane) {
			if here {
				done(busyError(fmt.Sprintf("shard %d is being merged into shard %d", r.key.Shard, absorber)))
				return
			}
			then()
		})
	})
}

// removeCovered gives a replica its tombstone that a link has silenced, and failed, and no other will write.
func (l *Lane) removeCovered(c covered, proof *shard.Descriptor, done func(error)) {
	_, waits := l.covered[c.r.key]
	if _, pending := l.burials[c.r.key]; pending || !waits {
		l.remove(c.r.key.Shard, c.r.key.Replica, proof, done) // a link has taken it meanwhile
		return
	}
	delete(l.covered, c.r.key)
	l.entomb(c.r.key, c.r.machine, c.r.machine.Applied(), done)
}

func (l *Lane) removeNow(r *replica, done func(error)) {
	applied := r.eng.Status().Applied
	l.dropRequests(r, shard.ErrShardNotFound, shard.ErrAmbiguous)
	l.drop(r)
	l.entomb(r.key, r.machine, applied, done)
}

// entomb gives a replica that is silent, and has applied so much, its tombstone.
func (l *Lane) entomb(key store.Key, m *shard.Machine, applied engine.LogID, done func(error)) {
	l.noteRemoved(key)
	l.burials[key] = []func(error){done}
	l.bury(key, m, state.Change{Record: shard.TombstoneRecord(key, applied)})
}

// buryRetry is how long a tombstone waits for space.
const buryRetry = engine.Duration(1e9)

// bury writes the tombstone of a replica that is silent already. On a full disk it tries again and again, for until then the replica's log
// must be kept, and a start brings it back; whoever waits hears of each attempt.
func (l *Lane) bury(key store.Key, m *shard.Machine, change state.Change) {
	l.s.spawn(func() {
		l.s.step(key.Shard, "remove: tombstone")
		err := l.s.state.Write([]state.Change{change}, l.s.log.Synced())
		if err == nil {
			l.s.step(key.Shard, "remove: tombstone written")
		}
		l.box.putCall(func(l *Lane) {
			switch {
			case err == nil:
				l.gravestone(key)
				l.log.Drop(key)
				l.step(key.Shard, "remove: log dropped")
				if m != nil {
					m.Close()
				}
			case errors.Is(err, state.ErrClosed):
			case errors.Is(err, state.ErrNoSpace):
				l.later(buryRetry, func(l *Lane) { l.bury(key, m, change) })
			default:
				l.s.fatal(fmt.Errorf("shard %d: removing replica %d: %w", key.Shard, key.Replica, err))
			}
			l.answerBurial(key, err)
		})
	})
}

// burying tells whether a removed replica of the shard still has its record: another one may not have one beside it, for after a crash
// both would be alive.
func (l *Lane) burying(id engine.ShardID) bool {
	_, pending := l.burials[store.Key{Shard: id, Replica: l.tombs[id]}]
	return pending
}

// answerBurial tells those who wait for the tombstone of a replica how its writing went. Until it is durable more may come.
func (l *Lane) answerBurial(key store.Key, err error) {
	list := l.burials[key]
	if l.burials[key] = nil; err == nil {
		delete(l.burials, key)
	}
	for _, done := range list {
		done(err)
	}
}

// gravestone tells the probe that the tombstone of a replica is durable.
func (l *Lane) gravestone(k store.Key) {
	if l.s.probe != nil {
		l.s.probe.Removed(k)
	}
}
