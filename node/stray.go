package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// strays are the replicas of this node that may have been removed from their shards while it could not hear of it: those that know no
// leader, and those for whose successor a message came. Nobody sends to a replica that was removed, and nobody answers it, so it must
// ask: meta is read for these replicas alone, and says whether there is proof (rule Cluster5). A healthy cluster has none, however
// many shards sleep.
type strays struct {
	c    *core
	wake chan struct{}

	mu sync.Mutex
	at map[engine.ShardID]*stray
}

// stray is when to ask next, and how long to wait after that.
type stray struct {
	next time.Time
	wait time.Duration
}

const (
	// strayPatience is for how many election timeouts a replica may know no leader before meta is asked: elections end sooner.
	strayPatience = 4
	// strayWaitMax bounds the pause between two questions about one replica.
	strayWaitMax = time.Minute
	// silentPatience is for how many election timeouts a replica may be no more than a name before meta is asked: it is filled by a snapshot or
	// by its parent's split until then.
	silentPatience = 20
	// straysAtOnce bounds one question: three keys each, within shard.ReadKeysMax.
	straysAtOnce = 300
)

func newStrays(c *core) *strays {
	return &strays{c: c, wake: make(chan struct{}, 1), at: map[engine.ShardID]*stray{}}
}

func (s *strays) patience() time.Duration { return strayPatience * s.c.n.cfg.ElectionTimeout }

// onDescriptor takes note of who knows a leader and who does not. It is called on a lane and does not block.
func (s *strays) onDescriptor(ev scheduler.DescriptorEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ev.Leader != 0 {
		delete(s.at, ev.Shard)
		return
	}
	s.noteLocked(ev.Shard, s.patience())
}

// onStray takes note that a replica here was probably removed. It is called on a lane and does not block.
func (s *strays) onStray(id engine.ShardID) { s.note(id, 0) }

// onSilent takes note of a replica that may never become more than a name, as a learner whose addition was undone. It is called on a lane and does
// not block.
func (s *strays) onSilent(id engine.ShardID) { s.note(id, silentPatience*s.c.n.cfg.ElectionTimeout) }

// note has meta asked about a replica in a while, unless it is to be already.
func (s *strays) note(id engine.ShardID, in time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(id, in)
}

func (s *strays) noteLocked(id engine.ShardID, in time.Duration) {
	if s.at[id] != nil {
		return
	}
	s.at[id] = &stray{next: time.Now().Add(in), wait: s.patience()}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// hasten has meta asked about a replica at once, although it was asked a while ago: what it knows has changed since.
func (s *strays) hasten(id engine.ShardID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.at[id]; x != nil {
		x.next, x.wait = time.Now(), s.patience()
	}
	s.noteLocked(id, 0)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *strays) forget(id engine.ShardID) {
	s.mu.Lock()
	delete(s.at, id)
	s.mu.Unlock()
}

// due returns the replicas to ask about now, and whether there are others to come back for.
func (s *strays) due(now time.Time) (list []engine.ShardID, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.at {
		if x.next.After(now) {
			continue
		}
		if len(list) == straysAtOnce {
			break
		}
		x.next = now.Add(x.wait)
		x.wait = min(2*x.wait, strayWaitMax)
		list = append(list, id)
	}
	return list, len(s.at) > 0
}

// loop asks until the node stops. It sleeps while there is no stray.
func (s *strays) loop() {
	ctx := s.c.n.ctx
	for {
		list, any := s.due(time.Now())
		if len(list) > 0 {
			actx, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := s.ask(actx, list); err != nil && ctx.Err() == nil {
				s.c.n.log.Info("cannot find out whether replicas without a leader were removed", "replicas", len(list), "err", err)
			}
			cancel()
		}
		var tick <-chan time.Time
		if any {
			tick = time.After(s.c.n.cfg.ElectionTimeout)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-tick:
		}
	}
}

// ask reads what meta knows of shards, and removes the replicas of this node that were removed from them.
func (s *strays) ask(ctx context.Context, list []engine.ShardID) error {
	keys := make([][]byte, 0, 3*len(list))
	for _, id := range list {
		keys = append(keys, placement.ShardKey(id), placement.DeadKey(id), placement.ShardLockKey(id))
	}
	entries, err := s.c.meta.getMany(ctx, keys)
	if err != nil {
		return err
	}
	var errs []error
	for i, id := range list {
		errs = append(errs, s.judge(ctx, id, &entries[3*i], &entries[3*i+1], entries[3*i+2].Exists()))
	}
	return errors.Join(errs...)
}

// judge removes the replica of a shard that is here if the shard's record, or that of its death, proves that it should not be. busy: an operation has
// the shard.
func (s *strays) judge(ctx context.Context, id engine.ShardID, rec, dead *shard.Entry, busy bool) error {
	c := s.c
	st, err := c.sched.Status(ctx, id)
	if errors.Is(err, shard.ErrShardNotFound) {
		s.forget(id)
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case rec.Version != 0:
		r, err := placement.DecodeShard(rec.Value)
		if err != nil {
			return err
		}
		c.reports.inMeta(&r.Descriptor)
		c.view.learn(&r.Descriptor)
		if st.Descriptor != nil || st.Orphan {
			if err := c.removeGone(ctx, &r.Descriptor); err != nil || st.WasMember || st.Orphan {
				return err
			}
		}
		if busy {
			return nil // which may be about to make it a member
		}
		return c.removeUnnamed(ctx, id, st.Replica)
	case dead.Version != 0:
		return c.removeDead(ctx, id, st.Replica, dead.Value)
	}
	return nil // unknown means wait and ask
}

// removeGone removes this node's replica if d proves that it is not a member any more (rule Cluster5).
func (c *core) removeGone(ctx context.Context, d *shard.Descriptor) error {
	gone, err := c.sched.RemoveGone(ctx, d)
	if err != nil {
		return fmt.Errorf("shard %d: removing a replica: %w", d.Shard, err)
	}
	if gone {
		c.strays.forget(d.Shard)
		c.view.learn(d)
		if c.view.leader(d.Shard) == c.node {
			c.view.setLeader(d.Shard, 0)
		}
	}
	return nil
}

// removeUnnamed removes a replica that has never been a member, as far as it knows, if the shard's leader does not name it: it holds nothing, or a snapshot
// from before the entry that added it, which was undone. No operation has had the shard before the leader was asked,
// and a later one gives its replica another name: so it never becomes a member. It is not needed for what it has voted either, for it never votes again;
// nor for entries that it has acknowledged as a voter, if the membership without it is behind the one that its log has (mayGo).
func (c *core) removeUnnamed(ctx context.Context, id engine.ShardID, replica engine.ReplicaID) error {
	l, err := c.findLead(ctx, id)
	if err != nil {
		return err
	}
	if _, named := l.Descriptor.Replica(replica); named || l.Changing {
		return nil
	}
	st, err := c.sched.Status(ctx, id)
	if errors.Is(err, shard.ErrShardNotFound) { // it was gone already
		c.strays.forget(id)
		return nil
	}
	q := removeRequest{Descriptor: *l.Descriptor, Replica: replica, At: l.MemberAt}
	if err != nil || st.Replica != replica || !q.mayGo(&st) {
		return err
	}
	if err := c.sched.RemoveReplica(ctx, id, replica, l.Descriptor); err != nil {
		return fmt.Errorf("shard %d: removing a replica that nobody names: %w", id, err)
	}
	c.n.log.Info("a replica that nobody names was removed", "shard", uint64(id), "replica", uint64(replica))
	c.strays.forget(id)
	return nil
}

// removeDead removes this node's replica of a shard that was absorbed, unless a replica of its absorber is here, or of that one's, that has not
// passed the Merge: that takes the data over when it applies it, and removes the replica itself (rules Merge3, Cluster5). One that is uninitialised
// applies nothing: it gets a snapshot, which holds the data, or is a stray too. Each absorber begins further left than the shard, so there is a last
// one; a thousand shards that were merged from right to left have a thousand.
func (c *core) removeDead(ctx context.Context, id engine.ShardID, replica engine.ReplicaID, dead []byte) error {
	for {
		absorber, version, err := placement.DecodeDead(dead)
		if err != nil {
			return err
		}
		st, err := c.sched.Status(ctx, absorber)
		if err != nil && !errors.Is(err, shard.ErrShardNotFound) {
			return err
		}
		here := err == nil && st.Descriptor != nil
		if st.Orphan || here && st.Descriptor.Version < version {
			return nil // wait
		}
		if !here {
			value, found, err := c.meta.get(ctx, placement.DeadKey(absorber))
			if err != nil {
				return err
			}
			if found != 0 {
				dead = value
				continue
			}
		}
		if err := c.sched.RemoveReplica(ctx, id, replica, nil); err != nil {
			return fmt.Errorf("shard %d, which shard %d absorbed: removing a replica: %w", id, absorber, err)
		}
		c.n.log.Info("a replica of an absorbed shard was removed", "shard", uint64(id), "replica", uint64(replica), "absorber", uint64(absorber))
		c.strays.forget(id)
		return nil
	}
}

// sweepGone compares this node's replicas of the shards of q with what meta knows, in bulk: a sleeping zombie never asks by itself (rule
// Cluster5). inMeta are those of them that have a record.
func (c *core) sweepGone(ctx context.Context, q *syncRequest, inMeta map[engine.ShardID]bool) error {
	list, err := c.sched.StatusesOf(ctx, q.First, q.Last, 0)
	if err != nil {
		return err
	}
	var errs []error
	for i := range list {
		st := &list[i]
		c.reports.mu.Lock()
		d := c.reports.meta[st.Shard]
		c.reports.mu.Unlock()
		switch {
		case d == nil, !inMeta[st.Shard]:
			c.strays.hasten(st.Shard) // dead, or not reported yet; also uninitialised ones, which announce nothing
		case st.Descriptor == nil: // see onSilent
		default:
			if _, member := d.Replica(st.Replica); !member && d.ConfVersion >= st.Descriptor.ConfVersion {
				errs = append(errs, c.removeGone(ctx, d))
				if !st.WasMember {
					c.strays.onSilent(st.Shard) // its leader knows whether it is to become one
				}
			}
		}
	}
	return errors.Join(errs...)
}
