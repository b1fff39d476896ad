package placement

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
)

// Bounds of an initial plan.
const (
	ShardsMax   = 100_000
	ReplicasMax = 9
)

// Errors of PlanInitial. They are the caller's mistakes, but for ErrTooFewNodes, which more nodes cure.
var (
	// ErrTooFewNodes: a shard needs as many nodes as it has replicas.
	ErrTooFewNodes = errors.New("too few nodes")
	// ErrBadPlan: a number of shards or replicas out of bounds.
	ErrBadPlan = errors.New("bad plan")
)

// InitialShard is a shard of a new cluster: the key range from Start up to, not including, End (empty: plus infinity), and its
// replicas. The first of them leads at first.
type InitialShard struct {
	ID       engine.ShardID
	Start    []byte
	End      []byte
	Replicas []InitialReplica
}

// InitialReplica is one replica of an InitialShard.
type InitialReplica struct {
	Node    engine.NodeID
	Replica engine.ReplicaID
}

// Initial is what an initial plan is made from. First ids come from the allocator.
type Initial struct {
	Nodes        []engine.NodeID
	Shards       int
	Replicas     int // per shard
	FirstShard   engine.ShardID
	FirstReplica engine.ReplicaID
}

// Validate tells whether a plan can be made.
func (in *Initial) Validate() error {
	switch {
	case in.Shards < 1 || in.Shards > ShardsMax:
		return fmt.Errorf("%w: %d shards: must be 1 to %d", ErrBadPlan, in.Shards, ShardsMax)
	case in.Replicas < 1 || in.Replicas > ReplicasMax:
		return fmt.Errorf("%w: %d replicas: must be 1 to %d", ErrBadPlan, in.Replicas, ReplicasMax)
	case in.Replicas > len(in.Nodes):
		return fmt.Errorf("%w: %d replicas of each shard need %d nodes, and there are %d", ErrTooFewNodes, in.Replicas, in.Replicas, len(in.Nodes))
	}
	seen := map[engine.NodeID]bool{}
	for _, n := range in.Nodes {
		if seen[n] {
			return fmt.Errorf("%w: node %d twice", ErrBadPlan, n)
		}
		seen[n] = true
	}
	return nil
}

// PlanInitial cuts the user key space into shards evenly by the first bytes and spreads replicas and leaders: the numbers of
// leaders of any two nodes differ by at most one, and so do the numbers of replicas.
//
// Leaders go round robin. The followers of a round (as many shards as there are nodes) sit at the same distances from their leaders, which is
// exact; the distances change from round to round, so that the shards of a dead node have their followers everywhere. The
// last, partial round is levelled greedily.
func PlanInitial(in Initial) ([]InitialShard, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	n := len(in.Nodes)
	splits := SplitKeys(in.Shards)
	shards := make([]InitialShard, in.Shards)
	replica := in.FirstReplica
	full := in.Shards / n * n
	rest := partialRound(n, in.Shards-full, in.Replicas-1, full/n)
	offsets := make([]int, 0, in.Replicas-1)
	for i := range shards {
		if i%n == 0 {
			offsets = roundOffsets(offsets[:0], n, in.Replicas-1, i/n)
		}
		members := append(make([]int, 0, in.Replicas), i%n)
		if i < full {
			for _, o := range offsets {
				members = append(members, (i+o)%n)
			}
		} else {
			members = rest[i-full]
		}
		s := InitialShard{ID: in.FirstShard + engine.ShardID(i), Replicas: make([]InitialReplica, len(members))}
		for j, m := range members {
			s.Replicas[j] = InitialReplica{Node: in.Nodes[m], Replica: replica}
			replica++
		}
		if i > 0 {
			s.Start = splits[i-1]
		}
		if i < len(splits) {
			s.End = splits[i]
		}
		shards[i] = s
	}
	return shards, nil
}

// roundOffsets returns count different distances from 1 to n-1, other ones in each round. Starting points and strides are rotated;
// a stride that is no divisor of n-1's cycle might meet a distance twice, so it walks on to the next free one.
func roundOffsets(offsets []int, n, count, round int) []int {
	if count == 0 {
		return offsets
	}
	m := n - 1
	taken := make([]bool, m)
	at, stride := round%m, 1+round/m%m
	for range count {
		for taken[at] {
			at = (at + 1) % m
		}
		taken[at] = true
		offsets = append(offsets, at+1)
		at = (at + stride) % m
	}
	return offsets
}

// partialRound places the last shards, fewer than there are nodes; the first of each leads, and shard i is led by node i. Followers go to the
// least loaded node, at equal load to the next one after the leader and a rotation; then single followers move from
// the most to the least loaded node until no two nodes differ by more than one.
func partialRound(n, shards, followers, rotation int) [][]int {
	load := make([]int, n)
	for i := range shards {
		load[i] = 1
	}
	round := make([][]int, shards)
	for i := range round {
		round[i] = append(make([]int, 0, followers+1), i)
		for range followers {
			best := -1
			for k := range n {
				m := (i + 1 + rotation + k) % n
				if !slices.Contains(round[i], m) && (best < 0 || load[m] < load[best]) {
					best = m
				}
			}
			load[best]++
			round[i] = append(round[i], best)
		}
	}
	for level(round, load) {
	}
	return round
}

// level moves one follower from a most loaded node to a least loaded one, and tells whether it found one to move.
func level(round [][]int, load []int) bool {
	hi, lo := slices.Max(load), slices.Min(load)
	if hi-lo <= 1 {
		return false
	}
	from, to := slices.Index(load, hi), slices.Index(load, lo)
	for _, members := range round {
		if j := slices.Index(members, from); j > 0 && !slices.Contains(members, to) {
			members[j] = to
			load[from]--
			load[to]++
			return true
		}
	}
	return false
}

// SplitKeys returns the n-1 keys that cut the user key space into n ranges of about equal size, counted in values of the first
// bytes. They are as short as keeps the sizes within some 6 %.
func SplitKeys(n int) [][]byte {
	width := 3
	switch {
	case n <= 16 || n <= 256 && 256%n == 0:
		width = 1
	case n <= 4096:
		width = 2
	}
	space := uint64(1) << (8 * width)
	keys := make([][]byte, 0, max(n-1, 0))
	for i := 1; i < n; i++ {
		v := uint64(i) * space / uint64(n)
		key := make([]byte, width)
		for j := range key {
			key[j] = byte(v >> (8 * (width - 1 - j)))
		}
		keys = append(keys, bytes.TrimRight(key, "\x00"))
	}
	return keys
}
