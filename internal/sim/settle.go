package sim

import (
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// settle ends all faults, and requires that everything comes to rest in bounded time.
func (s *sim) settle() {
	s.settling, s.stopping = true, true
	s.settled.id, s.settled.at = s.nextID, s.c.Now()+engine.Instant(20*s.knobs.electionTimeout)
	for _, n := range s.c.Nodes {
		if n.Up {
			m := n.Sched.Metrics()
			s.sometimes["apply waits for the store"] += int(m.AppliesSuspended.Load())
			s.sometimes["log read from segments"] += int(m.LogColdReads.Load())
			s.sometimes["snapshot broken off"] += int(m.SnapshotsFailed.Load())
			s.sometimes["read again after a checkpoint"] += int(m.ReadsMoved.Load())
		}
	}
	s.tracef("the faults end")
	s.goodNetwork()
	for _, n := range s.c.Nodes {
		*s.disk(n.ID) = disk{flipped: s.disk(n.ID).flipped}
		n.SyncTime = 0
		if !s.lost[n.ID] {
			s.c.Isolate(n.ID, false)
			n.SetClock(1, 0)
		}
	}
	s.stepAt, s.draining = "", 0
	for _, n := range s.c.Nodes {
		s.restart(n)
	}
	// Start leases, the longest back-off, an election, and the slowest repair: a snapshot that waits for its turn.
	bound := engine.Instant(60*s.knobs.electionTimeout + 20*time.Second)
	end := s.c.Now() + bound
	if !s.until(end, func() bool { return s.leaderless() == 0 }) {
		s.report(s.leaderless())
		s.fail("%v after the faults ended shard %d has no leader", time.Duration(bound), s.leaderless())
	}
	if !s.until(end, s.clientsDone) {
		s.fail("%v after the faults ended a client waits: %s", time.Duration(bound), s.waiting())
	}
	var behind engine.ShardID
	next := s.c.Now()
	if !s.until(end, func() bool {
		if s.c.Now() < next {
			return false
		}
		next = s.c.Now() + engine.Instant(100*time.Millisecond)
		s.removeGone()
		s.tidy()
		behind = s.behind()
		return behind == 0
	}) {
		s.report(behind)
		s.fail("%v after the faults ended the replicas of shard %d are not the same", time.Duration(bound), behind)
	}
	s.compare()
	if s.knobs.config.QuiesceAfter > 0 {
		next = 0
		if !s.until(s.c.Now()+bound, func() bool {
			if s.c.Now() < next {
				return false
			}
			next = s.c.Now() + engine.Instant(100*time.Millisecond)
			return s.awake() == 0
		}) {
			s.report(s.awake())
			s.fail("shard %d does not fall asleep", s.awake())
		}
		s.happened("all asleep")
	}
}

func (s *sim) report(id engine.ShardID) {
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			if st.Shard == id {
				s.tracef("node %d: %+v", n.ID, st)
			}
		}
	}
}

// behind returns a shard whose members have not all applied the same, or whose change of members is not over.
func (s *sim) behind() engine.ShardID {
	newest := s.dir.newest
	byShard := map[engine.ShardID]map[engine.NodeID]scheduler.ReplicaStatus{}
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			if byShard[st.Shard] == nil {
				byShard[st.Shard] = map[engine.NodeID]scheduler.ReplicaStatus{}
			}
			byShard[st.Shard][n.ID] = st
		}
	}
	for _, id := range s.dir.ids {
		l := s.leader(id)
		if l == nil || newest[id] == nil {
			return id
		}
		lead := byShard[id][l.ID]
		for _, r := range newest[id].Replicas {
			if s.lost[r.Node] {
				return id
			}
			st, ok := byShard[id][r.Node]
			if !ok || st.Waiting > 0 || st.Replica != r.Replica || st.Applied != lead.Last || st.Descriptor == nil || st.Descriptor.ConfVersion != newest[id].ConfVersion {
				return id
			}
		}
		if lead.Merge.Role != shard.MergeNone {
			return id
		}
		for node, st := range byShard[id] { // who is not a member any more goes away
			if d, ok := newest[id].OnNode(node); !ok || d.Replica != st.Replica {
				return id
			}
		}
	}
	for id := range byShard { // and so does who is of a shard that is no more
		if newest[id] == nil {
			return id
		}
	}
	return 0
}

// tidy does what the drivers of operations and the nodes do, when the faults are over.
func (s *sim) tidy() {
	for _, id := range s.dir.ids {
		s.repair(s.dir.newest[id])
	}
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			d := s.dir.newest[st.Shard]
			if d != nil && (st.Descriptor == nil || !st.WasMember) && st.Replica <= s.settled.id && s.c.Now() > s.settled.at {
				// The driver's word: it has added this replica, and seen it removed, or its addition undone.
				if _, named := d.Replica(st.Replica); !named {
					n.Sched.RemoveReplicaAsync(st.Shard, st.Replica, d, func(error) {})
				}
			}
		}
	}
}

// awake returns a shard of which a member does not sleep. A learner whose addition was undone waits for ever, and is no member.
func (s *sim) awake() engine.ShardID {
	newest := s.dir.newest
	for _, n := range s.c.Nodes {
		if !n.Up {
			continue
		}
		for _, st := range n.Statuses() {
			if d := newest[st.Shard]; !st.Quiesced && d != nil && len(d.Replicas) > 1 { // a lone voter has nobody to sleep with, and no timer
				if r, member := d.Replica(st.Replica); member && r.Role == shard.RoleVoter { // an awake learner does nothing either
					return st.Shard
				}
			}
		}
	}
	return 0
}

// compare requires that all replicas of a shard hold the same.
func (s *sim) compare() {
	for _, id := range s.dir.ids {
		var want state.Content
		var at engine.LogID
		first := engine.NodeID(0)
		for _, n := range s.c.Nodes {
			d := s.dir.newest[id]
			if _, member := d.OnNode(n.ID); !n.Up || !member {
				continue
			}
			for try := 0; ; try++ {
				var got state.Content
				var gotAt engine.LogID
				var err error
				done := false
				n.Sched.ChecksumAsync(id, func(c state.Content, l engine.LogID, e error) { got, gotAt, err, done = c, l, e, true })
				if !s.until(s.c.Now()+10e9, func() bool { return done }) || err != nil {
					s.fail("shard %d, node %d: no checksum: %v", id, n.ID, err)
				}
				if first == 0 {
					want, at, first = got, gotAt, n.ID
				}
				if gotAt == at {
					if got != want {
						s.fail("shard %d at %v: node %d holds %+v, node %d %+v", id, at, n.ID, got, first, want)
					}
					break
				}
				if try > 20 {
					s.fail("shard %d: node %d is at %v, node %d at %v", id, n.ID, gotAt, first, at)
				}
				s.until(s.c.Now()+100e6, func() bool { return false })
				if gotAt.Index > at.Index { // a time entry came in between
					want, at, first = got, gotAt, n.ID
				}
			}
		}
	}
}
