package recovery

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// ErrRefused is wrapped by every refusal: the recovery is not needed, not possible, or what it was given does not fit together.
var ErrRefused = errors.New("recovery refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// Inspect reads the data directory of a stopped node, which the caller holds locked, and changes nothing. It checks every checksum, and
// refuses a directory in which one is wrong: it is no source to recover from.
func Inspect(dir string) (*Report, error) {
	for _, p := range []string{node.StatePath(dir), node.LogPath(dir)} {
		if _, err := os.Stat(p); err != nil {
			return nil, refuse("%s is no data directory of a node: %v", dir, err)
		}
	}
	if _, err := state.Verify(node.StatePath(dir)); err != nil {
		return nil, refuse("%s is damaged: %v", dir, err)
	}
	db, err := state.OpenOffline(node.StatePath(dir))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	facts, err := node.ReadOffline(db)
	switch {
	case err != nil:
		return nil, err
	case facts.Node == 0:
		return nil, refuse("the node in %s belongs to no cluster", dir)
	case facts.Refused != "":
		return nil, refuse("the node in %s must not be used any more: %s", dir, facts.Refused)
	}
	synced, err := db.SyncedSeq()
	if err != nil {
		return nil, err
	}
	if _, err := raftlog.Verify(vfs.OS(), node.LogPath(dir), synced); err != nil {
		return nil, refuse("%s is damaged: %v", dir, err)
	}
	out := &Report{Format: Format, Cluster: hexID(facts.Cluster), Node: uint64(facts.Node), Identity: hexID(facts.Identity), Known: []uint64{},
		Recovering: facts.Recovering, Replicas: []Replica{}}
	for id := range facts.Nodes {
		out.Known = append(out.Known, uint64(id))
	}
	slices.Sort(out.Known)
	for _, id := range facts.Lost {
		out.Lost = append(out.Lost, uint64(id))
	}
	err = raftlog.Inspect(vfs.OS(), node.LogPath(dir), synced, func(logs map[store.Key]*raftlog.ReplicaLog) error {
		p, err := newReplayer(db, logs)
		if err == nil {
			err = p.all()
		}
		if err == nil {
			err = p.report(out)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return out, nil
}

// report adds the replicas and what the meta shard's holds.
func (p *replayer) report(out *Report) error {
	for key, r := range p.done {
		out.Replicas = append(out.Replicas, r.report(p.births[key]))
		if key.Shard == shard.MetaShardID {
			meta, err := p.meta(r.machine)
			if err != nil {
				return fmt.Errorf("the meta shard: %w", err)
			}
			out.Meta = meta
		}
	}
	for key, l := range p.logs {
		if here, ok := p.byShard[key.Shard]; ok && here.Replica >= key.Replica || p.buried(key) || l.Purged.Index > 0 {
			continue
		}
		out.Replicas = append(out.Replicas, Replica{Shard: uint64(key.Shard), Replica: uint64(key.Replica), Uninitialised: true, Vote: toVote(l.Vote)})
	}
	for _, t := range p.tombs {
		out.Tombstones = append(out.Tombstones, Tombstone{uint64(t.Shard), uint64(t.Replica)})
	}
	slices.SortFunc(out.Replicas, func(a, b Replica) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.Replica, b.Replica))
	})
	return nil
}

func (r *replayed) report(born *Birth) Replica {
	out := Replica{Shard: uint64(r.key.Shard), Replica: uint64(r.key.Replica), Applied: toPos(r.applied), Committed: toPos(r.committed),
		Purged: toPos(r.log.Purged), Last: toPos(r.log.Last), Vote: toVote(r.log.Vote), Descriptor: toDescriptor(r.machine.Desc()),
		Absorbed: uint64(r.absorbed), Born: born}
	for _, run := range r.log.Runs {
		out.Runs = append(out.Runs, Run{run.Term, run.First, run.Last})
	}
	if m := r.machine.Membership().Membership; m != nil {
		for _, set := range m.Voters {
			peers := []Peer{}
			for _, v := range set {
				peers = append(peers, Peer{uint64(v.Node), uint64(v.Replica)})
			}
			out.Voters = append(out.Voters, peers)
		}
	}
	if ms := r.machine.Merge(); ms.Role == shard.MergeFrozen {
		out.Frozen = uint64(ms.Other)
	}
	return out
}

// meta reads what the meta shard holds.
func (p *replayer) meta(m *shard.Machine) (*Meta, error) {
	out := &Meta{Nodes: []NodeInfo{}, Alloc: map[string]uint64{}, Shards: []ShardInfo{}}
	for prefix, f := range map[string]func(key, value []byte) error{
		placement.PrefixNode: func(_, value []byte) error {
			n, err := placement.DecodeNode(value)
			out.Nodes = append(out.Nodes, NodeInfo{uint64(n.ID), n.Name, n.Addr, n.State == placement.NodeRemoved})
			return err
		},
		placement.PrefixShard: func(_, value []byte) error {
			s, err := placement.DecodeShard(value)
			out.Shards = append(out.Shards, ShardInfo{uint64(s.Descriptor.Shard), toDescriptor(&s.Descriptor)})
			return err
		},
		placement.PrefixAlloc: func(key, value []byte) error {
			next, err := placement.DecodeNextID(value)
			out.Alloc[string(key[len(placement.PrefixAlloc):])] = next
			return err
		},
	} {
		if err := p.scan(m, prefix, placement.PrefixEnd(prefix), f); err != nil {
			return nil, err
		}
	}
	return out, nil
}
