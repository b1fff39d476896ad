package scheduler

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

// promiseKey is where the state keeps the longest promise that this node has ever made (rule Engine2).
const promiseKey = "promise"

// New makes a scheduler and its replicas from what log and state hold. Nothing moves before Start, or before a runtime calls
// Turn.
func New(cfg Config, deps Deps) (*Scheduler, error) {
	cfg.defaults()
	s := &Scheduler{cfg: cfg, log: deps.Log, state: deps.State, net: deps.Network, clock: deps.Clock, probe: deps.Probe, logger: cfg.Logger}
	if s.clock == nil {
		s.clock = SystemClock{}
	}
	s.run.stop = make(chan struct{})
	s.creating = make(chan struct{}, 1)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.spawnFunc, s.readJob = deps.Spawn, deps.ReadJob
	if s.spawnFunc == nil {
		s.spawnFunc = s.spawnGoroutine
	}
	if s.readJob == nil {
		s.run.readers = state.NewReaders(s.state, cfg.Readers)
		s.readJob = s.run.readers.Submit
	}
	s.wallJudged.Store(s.wallOffset())
	s.pace.limit.Store(int64(cfg.InflightMax))
	s.live = newLiveness(s)
	s.ckpt = newCheckpointer(s)
	if err := s.startLease(); err != nil {
		return nil, err
	}
	for i := range cfg.Lanes {
		s.lanes = append(s.lanes, newLane(s, i))
	}
	if err := s.recover(deps.Recovery); err != nil {
		return nil, err
	}
	return s, nil
}

// startLease finds how long after this start no replica may vote, for a restarted voter has forgotten its promises; and stores the
// longest promise before it is made (rule Engine2).
func (s *Scheduler) startLease() error {
	b, err := s.state.NodeGet(promiseKey)
	if err != nil {
		return err
	}
	var longest engine.Duration
	if len(b) == 8 {
		longest = engine.Duration(binary.BigEndian.Uint64(b))
		s.leaseStart = s.clock.Now() + engine.Instant(longest)
	}
	if s.cfg.ElectionTimeoutMin <= longest {
		return nil
	}
	return s.state.NodePut(promiseKey, binary.BigEndian.AppendUint64(nil, uint64(s.cfg.ElectionTimeoutMin)))
}

// recover makes the replicas.
func (s *Scheduler) recover(rec *raftlog.Recovery) error {
	records, err := s.state.Records()
	if err != nil {
		return fmt.Errorf("reading the replica records: %w", err)
	}
	logs := map[store.Key]*raftlog.ReplicaLog{}
	if rec != nil {
		for k, v := range rec.Replicas {
			logs[k] = v
		}
	}
	for i := range records {
		r := &records[i]
		rl := logs[r.Key]
		delete(logs, r.Key)
		l := s.laneOf(r.Shard)
		if r.Tombstone {
			l.noteRemoved(r.Key)
			if rl != nil {
				l.log.Adopt(r.Key)
				l.log.Drop(r.Key)
			}
			continue
		}
		if err := l.recoverReplica(r, rl); err != nil {
			return err
		}
	}
	keys := make([]store.Key, 0, len(logs))
	for k := range logs {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, store.Key.Compare)
	for _, k := range keys {
		if err := s.laneOf(k.Shard).recoverLog(logs[k]); err != nil {
			return err
		}
	}
	for _, l := range s.lanes {
		l.log.Submit()
	}
	return nil
}

// recoverReplica makes one replica from its record and its log. Its entries are kept only if they chain from what the record has
// applied (rule Log7).
func (l *Lane) recoverReplica(rec *state.Record, rl *raftlog.ReplicaLog) error {
	m, err := shard.Open(l.env, rec)
	if err != nil {
		return fmt.Errorf("shard %d: %w", rec.Shard, err)
	}
	out := engine.Recovered{Applied: rec.Applied, Purged: rec.Applied, Committed: rec.Applied, Membership: rec.Membership,
		Previous: rec.Previous, Incarnation: l.s.cfg.Incarnation}
	switch {
	case rl != nil && rl.Purged.Index > rec.Applied.Index:
		return fmt.Errorf("shard %d: the state has applied entry %d, but the raft log was purged up to %d: the state is older than the log (a restored copy?)",
			rec.Shard, rec.Applied.Index, rl.Purged.Index)
	case rl == nil:
		out.Vote = bornIn(rec.Applied.Term, engine.Vote{})
		l.log.Init(rec.Key, out.Vote, rec.Applied)
	case !rl.Chains(rec.Applied):
		l.log.Adopt(rec.Key)
		out.Vote = bornIn(rec.Applied.Term, rl.Vote)
		l.log.Init(rec.Key, out.Vote, rec.Applied)
	default:
		l.log.Adopt(rec.Key)
		out.Vote, out.Purged, out.Runs, out.Committed = bornIn(rec.Applied.Term, rl.Vote), rl.Purged, rl.Runs, rl.Committed
		specials, err := rl.Specials()
		if err == nil {
			err = addSpecials(&out, specials)
		}
		if err != nil {
			return fmt.Errorf("shard %d: %w", rec.Shard, err)
		}
	}
	r := l.newReplica(rec.Key, out)
	r.machine, r.replayTo = m, out.Committed.Index
	if err := l.add(r); err != nil {
		return err
	}
	l.noteMerging(r)
	l.announce(r)
	return nil
}

// addSpecials finds the memberships and barriers among the entries behind applied.
func addSpecials(out *engine.Recovered, specials []raftlog.Special) error {
	for _, sp := range specials {
		if sp.LogID.Index <= out.Applied.Index {
			continue
		}
		switch sp.Kind {
		case engine.EntryBarrier:
			out.Barriers = append(out.Barriers, sp.LogID.Index)
		case engine.EntryMembership:
			rd := mp.NewReader(sp.Payload)
			m := raftlog.ReadMembership(&rd)
			if err := rd.Finish(); err != nil {
				return fmt.Errorf("membership at entry %d: %w", sp.LogID.Index, err)
			}
			out.Previous = out.Membership
			out.Membership = engine.MembershipAt{LogID: sp.LogID, Membership: &m}
		}
	}
	return nil
}

// orphan is what the log holds of a replica that has no record (yet).
type orphan struct {
	log      *raftlog.ReplicaLog
	specials []raftlog.Special
}

// recoverLog takes what the log knows of a replica without a record. One that was never initialised is made again, for its vote must be
// kept (rule Split3). One that was is the child of a split whose checkpoint was not written: it is silent until its parent has been
// replayed (rule Log7). A replica that was removed, or is older than the one of its shard that is here, is never asked again and
// forgotten. A younger one is not: the crash came between its first vote and the tombstone of the one that is here, or that is an orphan; its vote
// waits for it.
func (l *Lane) recoverLog(rl *raftlog.ReplicaLog) error {
	l.log.Adopt(rl.Key)
	here := l.byShard[rl.Key.Shard]
	if l.tombAbove(rl.Key) || here != nil && here.key.Replica > rl.Key.Replica {
		l.log.Drop(rl.Key)
		return nil
	}
	if here != nil || l.orphaned(rl.Key.Shard) {
		l.log.Init(rl.Key, rl.Vote, engine.LogID{})
		l.votes[rl.Key] = rl.Vote
		return nil
	}
	if rl.Purged.Index > 0 {
		specials, err := rl.Specials()
		if err != nil {
			return fmt.Errorf("shard %d: %w", rl.Key.Shard, err)
		}
		l.orphans[rl.Key.Shard] = &orphan{rl, specials}
		l.s.orphans.Add(1)
		l.silent(rl.Key.Shard)
		l.s.logger.Info("replica waits for its parent to be replayed", "shard", uint64(rl.Key.Shard), "replica", uint64(rl.Key.Replica))
		return nil
	}
	l.log.Init(rl.Key, rl.Vote, engine.LogID{})
	r := l.newReplica(rl.Key, engine.Recovered{Vote: rl.Vote, Incarnation: l.s.cfg.Incarnation})
	l.silent(rl.Key.Shard)
	return l.add(r)
}

// takeOrphan returns the orphan of this name, which is none from now on; nil if there is none.
func (l *Lane) takeOrphan(key store.Key) *orphan {
	o := l.orphans[key.Shard]
	if o == nil || o.log.Key != key {
		return nil
	}
	delete(l.orphans, key.Shard)
	l.s.orphans.Add(-1)
	return o
}

// replaying tells whether r may be the parent of an orphan, of which it has not replayed the birth yet: then neither a snapshot nor a
// removal may come in between, or the child would be silent for ever (rule Log7). That the split is committed is in its log before, or with,
// anything of the child (rule Split1). A Merge that it meets before was not applied in the former life, so nothing behind that was.
func (l *Lane) replaying(r *replica) bool {
	return l.s.orphans.Load() > 0 && r.machine != nil && !r.stopped && r.merge == nil && r.machine.Applied().Index < r.replayTo
}

// bearing tells whether a replica of this lane may still bear orphans, which a link would not see: they may be covered by it.
func (l *Lane) bearing() bool {
	return l.s.orphans.Load() > 0 && slices.ContainsFunc(l.list, func(r *replica) bool {
		return l.replaying(r) || r.birth != nil && r.birth.parent == r
	})
}

// orphaned tells whether an orphan of the shard is here. It is in the way of any other replica of the shard, as it will be when it is born: if it
// was removed from its shard, that is found out then.
func (l *Lane) orphaned(id engine.ShardID) bool { return l.orphans[id] != nil }

// takeVote returns the vote that waits for a replica.
func (l *Lane) takeVote(key store.Key) engine.Vote {
	vote := l.votes[key]
	delete(l.votes, key)
	return vote
}

// unpinVote lets the log go on without the place of a vote that waits: no replica answers for it.
func (l *Lane) unpinVote(key store.Key) {
	if _, waits := l.votes[key]; !waits {
		return
	}
	if l.tombAbove(key) {
		delete(l.votes, key)
		l.log.Drop(key)
		return
	}
	_ = l.log.Rewrite(key, nil) // it has no entries that could be cold
}

// tombAbove tells whether this replica of the shard, or a later one, was removed.
func (l *Lane) tombAbove(k store.Key) bool {
	last, ok := l.tombs[k.Shard]
	return ok && last >= k.Replica
}

// noteRemoved notes that a replica was removed for good.
func (l *Lane) noteRemoved(k store.Key) {
	l.tombs[k.Shard] = max(l.tombs[k.Shard], k.Replica)
}

// newUninitialised makes a replica of which nothing is known but its name (rule Split4).
func (l *Lane) newUninitialised(key store.Key) *replica {
	vote := l.takeVote(key)
	l.log.Init(key, vote, engine.LogID{})
	r := l.newReplica(key, engine.Recovered{Vote: vote, Incarnation: l.s.cfg.Incarnation})
	if l.add(r) != nil {
		return nil
	}
	l.silent(key.Shard)
	return r
}

// newReplica makes a replica with its engine. Its first tick starts it.
func (l *Lane) newReplica(key store.Key, rec engine.Recovered) *replica {
	r := &replica{key: key, timerAt: -1, lane: l, bornAt: l.now}
	l.startEngine(r, rec)
	return r
}

func (l *Lane) startEngine(r *replica, rec engine.Recovered) {
	// The seed is the same on all nodes: by it the replicas of a shard agree who campaigns first (rule Live5). The engine mixes in node and
	// incarnation where it rolls dice.
	r.eng = engine.New(l.engines, r.self(), uint64(r.key.Shard)*0x9e3779b97f4a7c15, rec)
	r.peers, r.voters, r.memberAt = nil, 0, engine.LogID{}
	r.refreshPeers()
	l.timers.set(r, r.eng.Deadline())
}
