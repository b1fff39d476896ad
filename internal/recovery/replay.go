package recovery

import (
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

// replayer finds what the replicas of a stopped node will be once all that is in their logs is applied, by the very code that will
// apply it. Descriptors, memberships, splits and merges do not depend on ordinary entries, which are passed over; only of the meta shard,
// whose content matters, are they applied, in memory. Nothing is written.
type replayer struct {
	db      *state.DB
	env     shard.Env
	ans     shard.Answer
	records map[store.Key]*state.Record // and those of children that are in their parents' logs only
	byShard map[engine.ShardID]store.Key
	tombs   []store.Key
	logs    map[store.Key]*raftlog.ReplicaLog
	done    map[store.Key]*replayed
	births  map[store.Key]*Birth
}

// replayed is a replica after its replay.
type replayed struct {
	key       store.Key
	machine   *shard.Machine
	log       raftlog.ReplicaLog // what a start will take of it: without entries that lead nowhere (rule Log7)
	applied   engine.LogID       // of the record
	committed engine.LogID
	absorbed  engine.ShardID
}

func newReplayer(db *state.DB, logs map[store.Key]*raftlog.ReplicaLog) (*replayer, error) {
	p := &replayer{db: db, logs: logs, records: map[store.Key]*state.Record{}, byShard: map[engine.ShardID]store.Key{},
		done: map[store.Key]*replayed{}, births: map[store.Key]*Birth{}}
	list, err := db.Records()
	if err != nil {
		return nil, err
	}
	for i := range list {
		if rec := &list[i]; rec.Tombstone {
			p.tombs = append(p.tombs, rec.Key)
		} else {
			p.records[rec.Key], p.byShard[rec.Shard] = rec, rec.Key
		}
	}
	return p, nil
}

// buried tells whether this replica, or a later one of its shard, was removed.
func (p *replayer) buried(k store.Key) bool {
	for _, t := range p.tombs {
		if t.Shard == k.Shard && t.Replica >= k.Replica {
			return true
		}
	}
	return false
}

// all replays all replicas, also those that come into being on the way.
func (p *replayer) all() error {
	for before := -1; before != len(p.records); {
		before = len(p.records)
		keys := make([]store.Key, 0, before)
		for k := range p.records {
			keys = append(keys, k)
		}
		for _, k := range keys {
			if _, err := p.replay(k); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *replayer) replay(key store.Key) (*replayed, error) {
	if r := p.done[key]; r != nil {
		return r, nil
	}
	rec := p.records[key]
	m, err := shard.Open(&p.env, rec)
	if err != nil {
		return nil, fmt.Errorf("shard %d: %w", key.Shard, err)
	}
	r := &replayed{key: key, machine: m, applied: rec.Applied, committed: rec.Applied,
		log: raftlog.ReplicaLog{Key: key, Committed: rec.Applied, Purged: rec.Applied, Last: rec.Applied}}
	p.done[key] = r
	l := p.logs[key]
	switch {
	case l == nil:
		return r, nil
	case l.Purged.Index > rec.Applied.Index:
		return nil, fmt.Errorf("shard %d: the state has applied entry %d, but the raft log was purged up to %d: the state is older than the log (a restored copy?)",
			key.Shard, rec.Applied.Index, l.Purged.Index)
	case !l.Chains(rec.Applied):
		r.log.Vote = l.Vote
		return r, nil
	}
	r.log = *l
	if l.Committed.Index > r.committed.Index {
		r.committed = l.Committed
	}
	return r, p.entries(r, l)
}

// entries applies what is in the log behind the record, a part at a time.
func (p *replayer) entries(r *replayed, l *raftlog.ReplicaLog) error {
	const part = 1024
	for first := r.applied.Index + 1; first <= l.Last.Index; first += part {
		runs, err := l.Read(first, min(first+part-1, l.Last.Index))
		if err != nil {
			return fmt.Errorf("shard %d: %w", r.key.Shard, err)
		}
		for _, run := range runs {
			id := engine.LogID{Term: run.Term, Index: run.First}
			for it := raftlog.NewIter(run.Body); it.Next(); id.Index++ {
				if id.Index <= r.machine.Applied().Index {
					continue
				}
				if err := p.entry(r, id, it.Kind, it.Payload); err != nil {
					return fmt.Errorf("shard %d: entry %d/%d: %w", r.key.Shard, id.Term, id.Index, err)
				}
			}
		}
	}
	if r.machine.Applied() != l.Last {
		return fmt.Errorf("shard %d: the raft log ends at %v, and %v was read", r.key.Shard, l.Last, r.machine.Applied())
	}
	return nil
}

func (p *replayer) entry(r *replayed, id engine.LogID, kind engine.EntryKind, payload []byte) error {
	switch kind {
	case engine.EntryBlank:
		return r.machine.ApplyBlank(id)
	case engine.EntryNormal:
		if r.key.Shard == shard.MetaShardID {
			return p.apply(r.machine, id, payload)
		}
		return r.machine.ApplyBlank(id)
	case engine.EntryMembership:
		rd := mp.NewReader(payload)
		m := raftlog.ReadMembership(&rd)
		if err := rd.Finish(); err != nil {
			return err
		}
		return r.machine.ApplyMembership(id, &m)
	case engine.EntryBarrier:
		if len(payload) > 0 && payload[0] == byte(shard.CommandSplit) {
			return p.split(r, id, payload)
		}
		return p.mergeStep(r, id, payload)
	}
	return fmt.Errorf("%w: entry kind %d", shard.ErrUnknownCommand, kind)
}

// apply applies an ordinary entry for real.
func (p *replayer) apply(m *shard.Machine, id engine.LogID, payload []byte) error {
	err := m.Apply(id, payload, nil, &p.ans)
	if !errors.Is(err, shard.ErrCold) {
		return err
	}
	var need shard.Need
	var job state.ReadJob
	m.Collect(payload, &need)
	m.FillNeed(&need, &job)
	if p.db.RunJob(&job); job.Err != nil {
		return job.Err
	}
	return m.Apply(id, payload, &job, &p.ans)
}

// split applies a split; children that have no record yet come into being.
func (p *replayer) split(r *replayed, id engine.LogID, payload []byte) error {
	birth, err := r.machine.ApplySplit(id, payload, &p.ans)
	if err != nil || birth == nil {
		return err
	}
	r.machine.Release()
	for i := range birth.Children {
		rec := &birth.Children[i].Record
		if _, here := p.byShard[rec.Shard]; here || rec.Replica == 0 || p.buried(rec.Key) {
			continue
		}
		p.records[rec.Key], p.byShard[rec.Shard] = rec, rec.Key
		p.births[rec.Key] = &Birth{Parent: uint64(r.key.Shard), Index: id.Index, Committed: id.Index <= r.committed.Index}
	}
	return nil
}

// mergeStep applies a step of a merge. A Merge takes the replica of the other shard, as it will.
func (p *replayer) mergeStep(r *replayed, id engine.LogID, payload []byte) error {
	needs, err := r.machine.ApplyMergeStep(id, payload, &p.ans)
	if err != nil || needs == nil {
		return err
	}
	key, ok := p.byShard[needs.Other]
	if !ok {
		return fmt.Errorf("it absorbs shard %d, which has no replica here: this node waits for a snapshot and cannot be recovered from", needs.Other)
	}
	right, err := p.replay(key)
	if err != nil {
		return err
	}
	cut, ok := right.machine.Freeze()
	if !ok {
		return fmt.Errorf("shard %d is absorbed twice", needs.Other)
	}
	plan, err := r.machine.Absorb(id, payload, &cut)
	if err != nil {
		return err
	}
	r.machine.Absorbed(plan, &p.ans)
	right.absorbed = r.key.Shard
	return nil
}

// scan calls f with each item of the replica that starts with prefix.
func (p *replayer) scan(m *shard.Machine, prefix string, end []byte, f func(key, value []byte) error) error {
	q := shard.Scan{Shard: m.Key().Shard, Version: m.Desc().Version, Start: []byte(prefix), End: end}
	for {
		var job state.ReadJob
		m.FillScan(&q, &job)
		if p.db.RunJob(&job); job.Err != nil {
			return job.Err
		}
		out, _ := m.FinishScan(&q, &job, 0, nil)
		var page shard.Page
		if err := shard.DecodePage(out, &page); err != nil {
			return err
		}
		for i := range page.Entries {
			if err := f(page.Entries[i].Key, page.Entries[i].Value); err != nil {
				return err
			}
		}
		if page.Done {
			return nil
		}
		q.Start = append([]byte(nil), page.CompleteTo...)
	}
}
