package sim

import (
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/scheduler/simrt"
	"github.com/kiloraft/kiloraft/shard"
)

// moves changes the members of a shard, one step, and cleans up as a node does; it comes again.
func (s *sim) moves() {
	if s.settling {
		return
	}
	s.c.After(between(s.rng, 20*time.Millisecond, 600*time.Millisecond), s.moves)
	if s.rng.IntN(2) == 0 {
		s.removeGone()
		return
	}
	id := s.shards[s.rng.IntN(len(s.shards))]
	l := s.leader(id)
	if l == nil {
		return
	}
	d := s.descriptor(l, id)
	if d == nil {
		return
	}
	ch := scheduler.MembershipChange{Shard: id, Version: d.Version, ConfVersion: d.ConfVersion, Replicas: s.target(d)}
	s.tracef("shard %d: change members to %+v", id, ch.Replicas)
	l.Sched.ChangeMembershipAsync(ch, func(err error) {
		if err == nil {
			s.happened("membership change")
		}
	})
}

func (s *sim) descriptor(n *simrt.Node, id engine.ShardID) *shard.Descriptor {
	for _, st := range n.Statuses() {
		if st.Shard == id {
			return st.Descriptor
		}
	}
	return nil
}

// target draws the next step from what is: a learner for a node that has none, a learner to vote in somebody's place, or one away.
func (s *sim) target(d *shard.Descriptor) []shard.ReplicaDesc {
	var out []shard.ReplicaDesc
	voters, learner := 0, -1
	for i, r := range d.Replicas {
		if r.Role == shard.RoleLearner {
			learner = i
		} else {
			voters++
		}
		out = append(out, r)
	}
	switch {
	case learner >= 0 && s.rng.IntN(4) > 0:
		out[learner].Role = shard.RoleVoter
		if voters >= 3 && s.rng.IntN(4) > 0 {
			for try := 0; try < 10; try++ {
				if i := s.rng.IntN(len(out)); i != learner && out[i].Role == shard.RoleVoter {
					return append(out[:i], out[i+1:]...)
				}
			}
		}
	case learner >= 0:
		return append(out[:learner], out[learner+1:]...)
	case voters > 3 || voters == 3 && s.rng.IntN(6) == 0:
		i := s.rng.IntN(len(out))
		if s.rng.IntN(3) == 0 {
			out[i].Role = shard.RoleLearner
			return out
		}
		return append(out[:i], out[i+1:]...)
	default:
		for _, k := range s.rng.Perm(len(s.c.Nodes)) {
			node := s.c.Nodes[k].ID
			if _, there := d.OnNode(node); !there && node != s.lost {
				s.nextID++
				return append(out, shard.ReplicaDesc{Replica: s.nextID, Node: node, Role: shard.RoleLearner})
			}
		}
	}
	return out
}

// removeGone shows every node the applied descriptor of another, which may be an old one: it destroys its replica if that proves that
// it was removed (rule Cluster5).
func (s *sim) removeGone() {
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			o := s.randomNode()
			if !o.Up || st.Descriptor == nil {
				continue
			}
			d := s.descriptor(o, st.Shard)
			if d == nil {
				continue
			}
			life := n.Life()
			at := place{n.ID, keyOf(st)}
			n.Sched.RemoveGoneAsync(d, func(gone engine.ReplicaID, err error) {
				if gone == at.key.Replica && err == nil && n.Life() == life {
					s.tracef("node %d: removed replica %d of shard %d", n.ID, gone, at.key.Shard)
					s.happened("replica removed")
					s.check.gone[at] = true
				}
			})
		}
	}
}

// newestDescriptors are, of each shard, the applied one with the highest ConfVersion.
func (s *sim) newestDescriptors() map[engine.ShardID]*shard.Descriptor {
	newest := map[engine.ShardID]*shard.Descriptor{}
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			if d := newest[st.Shard]; st.Descriptor != nil && (d == nil || d.ConfVersion < st.Descriptor.ConfVersion) {
				newest[st.Shard] = st.Descriptor
			}
		}
	}
	return newest
}
