package scheduler

import (
	"context"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// Load counts what one replica has served since it was opened here: requests, and the bytes of keys and values that they brought or
// were answered with. Who wants rates compares two counts.
type Load struct {
	Reads      uint64
	Writes     uint64 // taken by the leader
	ReadBytes  uint64
	WriteBytes uint64
}

// Sub returns what was counted since earlier. A replica that was opened anew began at 0: then all of it.
func (l Load) Sub(earlier Load) Load {
	if l.Reads < earlier.Reads || l.Writes < earlier.Writes {
		return l
	}
	return Load{l.Reads - earlier.Reads, l.Writes - earlier.Writes, l.ReadBytes - earlier.ReadBytes, l.WriteBytes - earlier.WriteBytes}
}

// Add adds other to l.
func (l *Load) Add(other Load) {
	l.Reads += other.Reads
	l.Writes += other.Writes
	l.ReadBytes += other.ReadBytes
	l.WriteBytes += other.WriteBytes
}

// ReplicaLoad is the load of one replica of this node.
type ReplicaLoad struct {
	Shard      engine.ShardID
	Replica    engine.ReplicaID
	Descriptor *shard.Descriptor // immutable
	IsLeader   bool
	Load       Load
}

// Loads returns the loads of the replicas that have served anything, in no order.
func (s *Scheduler) Loads(ctx context.Context) ([]ReplicaLoad, error) {
	var all []ReplicaLoad
	for _, l := range s.lanes {
		part, err := ask(ctx, s, l, func(l *Lane) (part []ReplicaLoad) {
			for _, r := range l.list {
				if r.machine != nil && r.load != (Load{}) {
					part = append(part, ReplicaLoad{r.key.Shard, r.key.Replica, r.machine.Desc(), r.eng.IsLeader(), r.load})
				}
			}
			return part
		})
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return all, nil
}

// Survey is what all replicas of this node are, summed up.
type Survey struct {
	Leaders       int
	Leaderless    int // replicas that know no leader
	Awake         int // replicas that do not sleep
	Uninitialised int
	Waiting       int    // writes that wait to be applied
	LagEntries    uint64 // committed and not applied, as far as known here
	LagEntriesMax uint64 // of one replica
	// UnderReplicated are the shards led here with a voter on a node that is not alive.
	UnderReplicated int
}

func (a *Survey) add(b *Survey) {
	a.Leaders += b.Leaders
	a.Leaderless += b.Leaderless
	a.Awake += b.Awake
	a.Uninitialised += b.Uninitialised
	a.Waiting += b.Waiting
	a.LagEntries += b.LagEntries
	a.LagEntriesMax = max(a.LagEntriesMax, b.LagEntriesMax)
	a.UnderReplicated += b.UnderReplicated
}

// Survey sums up the replicas of this node.
func (s *Scheduler) Survey(ctx context.Context) (Survey, error) {
	var all Survey
	for _, l := range s.lanes {
		part, err := ask(ctx, s, l, (*Lane).survey)
		if err != nil {
			return Survey{}, err
		}
		all.add(&part)
	}
	return all, nil
}

func (l *Lane) survey() (out Survey) {
	nodes := l.s.live.links.Load().nodes
	for _, r := range l.list {
		if !r.eng.Quiesced() {
			out.Awake++
		}
		if r.machine == nil {
			out.Uninitialised++
			continue
		}
		if r.eng.Leader().Node == 0 {
			out.Leaderless++
		}
		out.Waiting += r.waiters.len()
		if c, a := r.eng.Committed().Index, r.machine.Applied().Index; c > a {
			out.LagEntries += c - a
			out.LagEntriesMax = max(out.LagEntriesMax, c-a)
		}
		if !r.eng.IsLeader() {
			continue
		}
		out.Leaders++
		for _, p := range r.otherVoters() {
			if !nodes[p.peer.Node].Up {
				out.UnderReplicated++
				break
			}
		}
	}
	return out
}

// Queued returns how many requests wait for the lanes.
func (s *Scheduler) Queued() int {
	n := 0
	for _, l := range s.lanes {
		n += l.box.queued()
	}
	return n
}

// LaneCount returns how many lanes there are.
func (s *Scheduler) LaneCount() int { return len(s.lanes) }
