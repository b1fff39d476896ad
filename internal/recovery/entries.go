package recovery

import (
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

const metaShard = uint64(shard.MetaShardID)

// How far the allocators of the meta shard are raised above every id that a survivor has seen: what was given out by entries that are
// lost must not be given out again (rule Engine5).
var allocJump = map[placement.Alloc]uint64{placement.AllocShard: 1 << 20, placement.AllocReplica: 1 << 20, placement.AllocNode: 100, placement.AllocOp: 1 << 10}

// entries returns what is added to the chosen log, and brings After in line:
//
//   - a membership of the chosen replica alone. It is an entry like any other, so that splits, merges and memberships in front of it
//     take effect as they always do, and ConfVersion is raised by applying it.
//   - for a shard that is frozen to be absorbed: Unfreeze. The left shard's next leader finds a merge that it does not drive, and aborts it
//     (rule Merge4); the Unfreeze that it would send names a ConfVersion that has passed.
//   - for the meta shard: a write that raises the allocators.
func (p *planner) entries(sp *ShardPlan, c candidate) ([]Entry, error) {
	self := Peer{sp.Node, sp.Replica}
	m := engine.Membership{Voters: [][]engine.Peer{{self.peer()}}}
	out := []Entry{{uint8(engine.EntryMembership), raftlog.AppendMembership(nil, &m)}}
	sp.After.ConfVersion++
	sp.After.Replicas = []Member{{sp.Node, sp.Replica, shard.RoleVoter.String()}}
	if c.Frozen != 0 {
		step := shard.MergeStep{Version: sp.After.Version, ConfVersion: sp.After.ConfVersion, Other: engine.ShardID(c.Frozen)}
		out = append(out, Entry{uint8(engine.EntryBarrier), shard.AppendMergeEntry(nil, shard.CommandUnfreeze, 0, &step)})
		sp.After.Version++
	}
	if sp.Shard == metaShard {
		meta := p.reports[sp.Node].Meta
		if meta == nil {
			return nil, refuse("the report of node %d does not say what the meta shard holds", sp.Node)
		}
		w := shard.Write{Shard: shard.MetaShardID, Version: sp.After.Version}
		seen := p.seen()
		for _, what := range []placement.Alloc{placement.AllocNode, placement.AllocShard, placement.AllocReplica, placement.AllocOp} {
			next := max(meta.Alloc[string(what)], seen[what]+1) + allocJump[what]
			w.Ops = append(w.Ops, shard.Op{Kind: shard.OpPut, Key: placement.AllocKey(what), Value: placement.AppendNextID(nil, next)})
		}
		out = append(out, Entry{uint8(engine.EntryNormal), shard.AppendWriteEntry(nil, 0, shard.AppendWrite(nil, &w))})
	}
	return out, nil
}

// seen returns the highest ids that any survivor has met.
func (p *planner) seen() map[placement.Alloc]uint64 {
	out := map[placement.Alloc]uint64{}
	note := func(what placement.Alloc, id uint64) { out[what] = max(out[what], id) }
	for id := range p.lost {
		note(placement.AllocNode, id)
	}
	for _, r := range p.reports {
		note(placement.AllocNode, r.Node)
		for _, id := range r.Known {
			note(placement.AllocNode, id)
		}
		for _, t := range r.Tombstones {
			note(placement.AllocReplica, t.Replica)
			note(placement.AllocShard, t.Shard)
		}
		for i := range r.Replicas {
			rep := &r.Replicas[i]
			note(placement.AllocShard, rep.Shard)
			note(placement.AllocReplica, rep.Replica)
			for _, m := range rep.Descriptor.Replicas {
				note(placement.AllocReplica, m.Replica)
				note(placement.AllocNode, m.Node)
			}
		}
		if r.Meta != nil {
			for _, s := range r.Meta.Shards {
				note(placement.AllocShard, s.Shard)
				for _, m := range s.Replicas {
					note(placement.AllocReplica, m.Replica)
				}
			}
		}
	}
	return out
}

// metaDescriptor returns the meta shard's new descriptor, nil if it is not touched.
func (p *Plan) metaDescriptor() (*shard.Descriptor, error) {
	if len(p.Shards) == 0 || p.Shards[0].Shard != metaShard {
		return nil, nil
	}
	d := p.Shards[0].After
	out := &shard.Descriptor{Shard: shard.MetaShardID, Start: d.Start, End: d.End, Version: d.Version, ConfVersion: d.ConfVersion}
	for _, m := range d.Replicas {
		out.Replicas = append(out.Replicas, shard.ReplicaDesc{Replica: engine.ReplicaID(m.Replica), Node: engine.NodeID(m.Node), Role: shard.RoleVoter})
	}
	if err := out.Validate(); err != nil {
		return nil, fmt.Errorf("plan %s: %w", p.ID, err)
	}
	return out, nil
}
