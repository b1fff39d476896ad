package sim

import (
	"bytes"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/scheduler/simrt"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
)

// The operations that an operator or the balancer would give. Each step is one of those of package placement: it names the exact
// versions it was made for, is given to whoever seems to lead, and is forgotten: what comes next is decided from what is.

// moves gives one order, or cleans up as a node does; it comes again.
func (s *sim) moves() {
	if s.settling {
		return
	}
	s.c.After(between(s.rng, s.knobs.moveEvery/30, s.knobs.moveEvery), s.moves)
	if s.rng.IntN(2) == 0 {
		s.removeGone()
		return
	}
	d := s.dir.newest[s.dir.ids[s.rng.IntN(len(s.dir.ids))]]
	if s.repair(d) {
		return
	}
	switch p := s.rng.IntN(100); {
	case p < 15 && len(s.dir.ids) < 3*len(s.groups)+3:
		s.split(d)
	case p < 40:
		s.merge(d)
	case p < 45:
		s.drain()
	case p < 55:
		s.transfer(d)
	default:
		s.change(d, s.target(d))
	}
}

// leads returns the node that leads the shard of d and has applied d, or nil.
func (s *sim) leads(d *shard.Descriptor) *simrt.Node { return s.leader(d.Shard) }

func (s *sim) transfer(d *shard.Descriptor) {
	l := s.leads(d)
	if l == nil {
		return
	}
	to := s.randomNode().ID
	s.tracef("transfer shard %d from %d to %d", d.Shard, l.ID, to)
	l.Sched.TransferAsync(d.Shard, to, func(error) {})
}

// damaged tells whether a bit of a disk was flipped: its node may be lost as soon as that is noticed, and two voters cannot afford it.
func (s *sim) damaged() bool {
	for _, d := range s.disks {
		if d.flipped {
			return true
		}
	}
	return false
}

// namesLost tells whether a disk of one of the voters is gone.
func (s *sim) namesLost(replicas []shard.ReplicaDesc) bool {
	for _, r := range replicas {
		if r.Role == shard.RoleVoter && s.lost[r.Node] {
			return true
		}
	}
	return false
}

func votersOf(replicas []shard.ReplicaDesc) (n int) {
	for _, r := range replicas {
		if r.Role == shard.RoleVoter {
			n++
		}
	}
	return n
}

// change orders a change of members.
func (s *sim) change(d *shard.Descriptor, replicas []shard.ReplicaDesc) {
	l := s.leads(d)
	if l == nil || replicas == nil || votersOf(replicas) < 3 && (s.damaged() || s.namesLost(replicas)) {
		return // what is left could not elect anybody
	}
	ch := scheduler.MembershipChange{Shard: d.Shard, Version: d.Version, ConfVersion: d.ConfVersion, Replicas: replicas}
	s.crashAt("move")
	s.tracef("shard %d: change members to %+v", d.Shard, replicas)
	l.Sched.ChangeMembershipAsync(ch, func(err error) {
		if err == nil {
			s.happened("membership change")
		}
	})
}

// splitKeys are where a group may be cut: anywhere but within its pair.
var splitKeys = []string{"d", "fix/3", "fix/7", "pair/a", "q", "r1", "r2", "x/", "x/2", "x/30", "x/7"}

// split cuts a shard at some keys, which may be outside of it by the time the order comes to it.
func (s *sim) split(d *shard.Descriptor) {
	l := s.leads(d)
	if l == nil {
		return
	}
	sp := &shard.Split{Version: d.Version, ConfVersion: d.ConfVersion}
	want := 1 + s.rng.IntN(3)
	for _, name := range splitKeys {
		k := key(group(d.Start), name)
		if len(sp.Children) == want || s.rng.IntN(2) == 0 || !d.Contains(k) || bytes.Equal(k, d.Start) {
			continue
		}
		s.nextShard++
		c := shard.SplitChild{Shard: s.nextShard, Start: k}
		for _, r := range d.Replicas {
			s.nextID++
			c.Replicas = append(c.Replicas, shard.SplitReplica{Node: r.Node, Replica: s.nextID})
		}
		sp.Children = append(sp.Children, c)
	}
	if len(sp.Children) == 0 {
		return
	}
	s.crashAt("split")
	s.tracef("split shard %d.%d into %d", d.Shard, d.Version, len(sp.Children)+1)
	l.Sched.Split(d.Shard, sp, func(err error) {
		s.tracef("split of shard %d.%d: %v", d.Shard, d.Version, err)
		if err == nil {
			s.happened("split")
		}
	})
}

// merge merges a shard with its right neighbour, whose replicas it brings to the same nodes before.
func (s *sim) merge(d *shard.Descriptor) {
	r := owner(s.dir.groupOf(group(d.Start)), d.End)
	if _, end := groupRange(group(d.Start)); bytes.Equal(d.End, end) || r == nil || !bytes.Equal(r.Start, d.End) {
		return
	}
	want := map[engine.NodeID]bool{}
	for _, x := range d.Replicas {
		if x.Role != shard.RoleVoter {
			return
		}
		want[x.Node] = true
	}
	if next := s.step(r, want); next != nil {
		s.change(r, next)
		return
	}
	l := s.leads(d)
	if l == nil {
		return
	}
	s.crashAt("merge")
	s.tracef("merge shard %d.%d with %d.%d", d.Shard, d.Version, r.Shard, r.Version)
	l.Sched.Merge(scheduler.MergeSpec{Left: d.Shard, Right: r.Shard, LeftVersion: d.Version, LeftConfVersion: d.ConfVersion,
		RightVersion: r.Version, RightConfVersion: r.ConfVersion}, func(err error) {
		s.tracef("merge of shard %d.%d with %d.%d: %v", d.Shard, d.Version, r.Shard, r.Version, err)
		if err == nil {
			s.happened("merge")
		}
	})
}

// drain has a node emptied for a while.
func (s *sim) drain() {
	if s.draining != 0 || len(s.c.Nodes) < 4 {
		return
	}
	n := s.randomNode()
	s.draining = n.ID
	s.tracef("drain node %d", n.ID)
	s.happened("drain")
	s.c.After(between(s.rng, s.knobs.moveEvery, 20*s.knobs.moveEvery), func() { s.draining = 0 })
}

// repair moves a replica away from a node that is lost or drained, and tells whether there was one.
func (s *sim) repair(d *shard.Descriptor) bool {
	bad := func(id engine.NodeID) bool { return s.lost[id] || id == s.draining }
	want := map[engine.NodeID]bool{}
	wrong := false
	for _, r := range d.Replicas {
		if bad(r.Node) {
			wrong = true
		} else if r.Role == shard.RoleVoter {
			want[r.Node] = true
		}
	}
	if !wrong {
		return false
	}
	for _, r := range d.Replicas { // a learner that is there already
		if r.Role == shard.RoleLearner && !bad(r.Node) && len(want) < 3 {
			want[r.Node] = true
		}
	}
	for _, i := range s.rng.Perm(len(s.c.Nodes)) {
		if n := s.c.Nodes[i]; len(want) < 3 && n.Up && !bad(n.ID) {
			want[n.ID] = true
		}
	}
	next := s.step(d, want)
	if next == nil {
		return false
	}
	s.change(d, next)
	return true
}

// step is the next step that brings the voters to the wanted nodes; nil if there is none, or a change is under way.
func (s *sim) step(d *shard.Descriptor, want map[engine.NodeID]bool) []shard.ReplicaDesc {
	out := append([]shard.ReplicaDesc(nil), d.Replicas...)
	voters, learner, surplus := 0, -1, -1
	for i, r := range out {
		switch {
		case r.Role == shard.RoleLearner:
			learner = i
		case r.Role != shard.RoleVoter:
			return nil
		default:
			voters++
			if !want[r.Node] {
				surplus = i
			}
		}
	}
	switch {
	case learner >= 0 && !want[out[learner].Node]:
		return append(out[:learner], out[learner+1:]...)
	case learner >= 0:
		out[learner].Role = shard.RoleVoter
		if surplus >= 0 && voters >= len(want) {
			out = append(out[:surplus], out[surplus+1:]...)
		}
		return out
	}
	for _, n := range s.c.Nodes {
		if _, there := d.OnNode(n.ID); !there && want[n.ID] {
			s.nextID++
			return append(out, shard.ReplicaDesc{Replica: s.nextID, Node: n.ID, Role: shard.RoleLearner})
		}
	}
	if surplus >= 0 {
		return append(out[:surplus], out[surplus+1:]...)
	}
	return nil
}

// target draws the next step from what is: a learner for a node that has none, a learner to vote in somebody's place, or one away.
func (s *sim) target(d *shard.Descriptor) []shard.ReplicaDesc {
	out := append([]shard.ReplicaDesc(nil), d.Replicas...)
	voters, learner := 0, -1
	for i, r := range d.Replicas {
		if r.Role == shard.RoleLearner {
			learner = i
		} else {
			voters++
		}
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
			if _, there := d.OnNode(node); !there && !s.lost[node] && node != s.draining {
				s.nextID++
				return append(out, shard.ReplicaDesc{Replica: s.nextID, Node: node, Role: shard.RoleLearner})
			}
		}
	}
	return out
}

// removeGone shows a node applied descriptors of the shards of which it has replicas, which may be old ones: it destroys its replica if
// that proves that it was removed (rule Cluster5).
func (s *sim) removeGone() {
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, k := range s.check.present(n) {
			if list := s.dir.older[k.Shard]; len(list) > 0 {
				d := list[s.rng.IntN(len(list))]
				if s.settling {
					d = list[len(list)-1]
				}
				s.removeIfGone(n, place{n.ID, k}, d)
			}
		}
		s.removeDead(n)
	}
}

// removeDead has a node ask after its replicas of absorbed shards: each goes, unless one of its absorber, or of that one's, is here, which
// takes it over (rules Merge3, Cluster5).
func (s *sim) removeDead(n *simrt.Node) {
	here := map[engine.ShardID]bool{}
	list := n.Statuses()
	for _, st := range list {
		here[st.Shard] = st.Descriptor != nil
	}
	for _, st := range list {
		by, dead := s.dir.dead[st.Shard]
		for dead && !here[by] {
			next, deadToo := s.dir.dead[by]
			if !deadToo {
				break
			}
			by = next
		}
		if !dead || here[by] {
			continue
		}
		at, life := place{n.ID, store.Key{Shard: st.Shard, Replica: st.Replica}}, n.Life()
		n.Sched.RemoveReplicaAsync(st.Shard, st.Replica, nil, func(err error) {
			if err == nil && n.Life() == life {
				s.tracef("node %d: removed replica %d of shard %d, which was absorbed", n.ID, at.key.Replica, at.key.Shard)
				s.happened("replica of an absorbed shard removed")
				s.check.gone[at] = true
			}
		})
	}
}

func (s *sim) removeIfGone(n *simrt.Node, at place, d *shard.Descriptor) {
	life := n.Life()
	n.Sched.RemoveGoneAsync(d, func(gone engine.ReplicaID, err error) {
		if gone == at.key.Replica && err == nil && n.Life() == life {
			s.tracef("node %d: removed replica %d of shard %d", n.ID, gone, at.key.Shard)
			s.happened("replica removed")
			if now := s.dir.newest[d.Shard]; now != nil {
				if _, ok := now.Replica(gone); ok {
					s.fail("node %d: replica %d was removed, it is a member of %v", n.ID, gone, now)
				}
			}
			s.check.gone[at] = true
		}
	})
}
