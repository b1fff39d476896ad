package recovery

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// Applied says what was done on one survivor.
type Applied struct {
	Node     uint64 `json:"node"`
	Shards   int    `json:"shards"`  // that go on with a replica of this node
	Already  int    `json:"already"` // of these, done by an earlier run of the plan
	Salvaged uint64 `json:"salvaged_entries"`
	Salvage  string `json:"salvage,omitempty"` // file
}

// survivor is an open data directory in which a plan is applied.
type survivor struct {
	dir     string
	plan    *Plan
	node    uint64
	db      *state.DB
	facts   node.Offline
	records map[store.Key]*state.Record
	tombs   map[store.Key]bool
	synced  uint64
}

// openSurvivor opens a data directory, which the caller holds locked, and refuses one that the plan does not name.
func openSurvivor(dir string, plan *Plan) (_ *survivor, err error) {
	if plan.Format != Format {
		return nil, refuse("the plan has format %d, this binary knows %d", plan.Format, Format)
	}
	if plan.ID != plan.hash() {
		return nil, refuse("the plan is not what was made: it was changed, or damaged on its way")
	}
	s := &survivor{dir: dir, plan: plan, records: map[store.Key]*state.Record{}, tombs: map[store.Key]bool{}}
	if s.db, err = state.Open(node.StatePath(dir), state.Options{}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.db.Close())
		}
	}()
	if s.facts, err = node.ReadOffline(s.db); err != nil {
		return nil, err
	}
	s.node = uint64(s.facts.Node)
	switch {
	case hexID(s.facts.Cluster) != plan.Cluster:
		return nil, refuse("%s belongs to cluster %s, the plan is for cluster %s", dir, hexID(s.facts.Cluster), plan.Cluster)
	case !slices.Contains(plan.Survivors, s.node):
		return nil, refuse("%s is node %d; the plan was made from nodes %s", dir, s.node, Nodes(plan.Survivors))
	case s.facts.Refused != "":
		return nil, refuse("the node in %s must not be used any more: %s", dir, s.facts.Refused)
	}
	list, err := s.db.Records()
	if err != nil {
		return nil, err
	}
	for i := range list {
		if s.records[list[i].Key] = &list[i]; list[i].Tombstone {
			delete(s.records, list[i].Key)
			s.tombs[list[i].Key] = true
		}
	}
	s.synced, err = s.db.SyncedSeq()
	return s, err
}

// Prepare checks that a directory is as the plan says, writes the salvage file, and notes that a recovery is under way: from then on the
// node does not start until Commit. Both may be repeated.
func Prepare(dir string, plan *Plan) (out Applied, err error) {
	s, err := openSurvivor(dir, plan)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.db.Close()) }()
	out.Node = s.node
	err = raftlog.Inspect(vfs.OS(), node.LogPath(dir), s.synced, func(logs map[store.Key]*raftlog.ReplicaLog) error {
		for i := range plan.Shards {
			if sp := &plan.Shards[i]; sp.Node == s.node {
				if _, err := s.look(sp, logs[sp.key()]); err != nil {
					return err
				}
			}
		}
		out.Salvage, out.Salvaged, err = s.salvage(logs)
		return err
	})
	if err != nil {
		return out, err
	}
	lost := make([]engine.NodeID, len(plan.Lost))
	for i, id := range plan.Lost {
		lost[i] = engine.NodeID(id)
	}
	return out, node.BeginRecovery(s.db, plan.ID, lost)
}

func (sp *ShardPlan) key() store.Key {
	return store.Key{Shard: engine.ShardID(sp.Shard), Replica: engine.ReplicaID(sp.Replica)}
}

// end is the last of the entries that the plan adds.
func (sp *ShardPlan) end() engine.LogID {
	return engine.LogID{Term: sp.Term, Index: sp.Last.Index + uint64(len(sp.Entries))}
}

// found is how a chosen replica was found.
type found int

const (
	foundAsPlanned  found = iota
	foundWithoutLog       // its log is to be made, or made anew: what is in it leads nowhere
	foundDone             // the plan was applied to it before
)

// look compares a chosen replica with the plan. l is nil if the log knows nothing of it.
func (s *survivor) look(sp *ShardPlan, l *raftlog.ReplicaLog) (found, error) {
	key := sp.key()
	rec := s.records[key]
	changed := func(what string, now, then any) error {
		return refuse("replica %v on node %d: its %s is %v, but was %v in the report: it was used since then; inspect all survivors again", key, s.node, what, now, then)
	}
	switch {
	case s.tombs[key]:
		return 0, refuse("replica %v on node %d was removed since the report was made", key, s.node)
	case rec != nil && rec.Applied.Term >= sp.Term, l != nil && l.Last.Term >= sp.Term:
		return foundDone, nil
	case rec != nil && toPos(rec.Applied) != sp.Applied:
		return 0, changed("applied entry", toPos(rec.Applied), sp.Applied)
	case l == nil || !l.Chains(sp.Applied.id()):
		if sp.Last != sp.Applied {
			return 0, changed("last entry", sp.Applied, sp.Last)
		}
		return foundWithoutLog, nil
	case toPos(l.Last) != sp.Last:
		return 0, changed("last entry", toPos(l.Last), sp.Last)
	}
	return foundAsPlanned, nil
}

// Commit adds the plan's entries to the raft log of a directory that Prepare has prepared, all in one synced frame: after a crash either
// all of them are there or none is. Then the node may start again.
func Commit(dir string, plan *Plan) (out Applied, err error) {
	s, err := openSurvivor(dir, plan)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.db.Close()) }()
	out.Node = s.node
	meta, err := plan.metaDescriptor()
	if err != nil {
		return out, err
	}
	if s.facts.Recovering != plan.ID {
		if out.Shards, out.Already, err = s.committed(); err == nil && out.Already < out.Shards {
			err = refuse("%s was not prepared for plan %s", dir, plan.ID)
		}
		return out, err
	}
	if err := s.commit(&out); err != nil {
		return out, fmt.Errorf("%s: %w", dir, err)
	}
	return out, node.EndRecovery(s.db, meta)
}

// committed counts the shards of this node's part of the plan, and those that are done.
func (s *survivor) committed() (all, done int, err error) {
	err = raftlog.Inspect(vfs.OS(), node.LogPath(s.dir), s.synced, func(logs map[store.Key]*raftlog.ReplicaLog) error {
		for i := range s.plan.Shards {
			sp := &s.plan.Shards[i]
			if sp.Node != s.node {
				continue
			}
			all++
			if how, err := s.look(sp, logs[sp.key()]); err == nil && how == foundDone {
				done++
			}
		}
		return nil
	})
	return all, done, err
}

func (s *survivor) commit(out *Applied) (err error) {
	log, rec, err := raftlog.Open(vfs.OS(), node.LogPath(s.dir), raftlog.Options{SegmentBytes: segmentBytes, SyncedHint: s.synced, MustExist: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	lane := log.Lane(0)
	for i := range s.plan.Shards {
		sp := &s.plan.Shards[i]
		if sp.Node != s.node {
			continue
		}
		out.Shards++
		l := rec.Replicas[sp.key()]
		how, err := s.look(sp, l)
		switch {
		case err != nil:
			return err
		case how == foundDone:
			out.Already++
			continue
		}
		if l != nil {
			lane.Adopt(sp.key())
		}
		if how == foundWithoutLog {
			lane.Init(sp.key(), engine.Vote{}, sp.Applied.id())
		}
		sp.append(lane)
	}
	if lane.Submit() == 0 {
		return nil
	}
	_, err = log.Flush()
	return err
}

// segmentBytes is the size of the segment in which the entries are written; a larger frame gets one of its own.
const segmentBytes = 8 << 20

// append adds the entries, with the hint that they are committed, so that all that is in the log takes effect (rule Engine8). The vote of
// their term is given to nobody: so the replica waits out what it may have promised to a leader before it was stopped (rule Engine2).
func (sp *ShardPlan) append(lane *raftlog.Lane) {
	key := sp.key()
	lane.SaveVote(key, engine.Vote{Term: sp.Term})
	var body []byte
	for _, e := range sp.Entries {
		body = raftlog.AppendEntry(body, engine.EntryKind(e.Kind), e.Payload)
	}
	lane.Append(key, raftlog.Run{Term: sp.Term, First: sp.Last.Index + 1, Count: len(sp.Entries), Special: true, Body: body})
	lane.SaveCommitted(key, sp.end())
}
