package sim

import (
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// An aim makes what is rare in a run frequent: by what a seed draws, and by what is done at the labelled steps of operations. A run with an aim is
// a busy one of ten seconds. The rest is drawn as ever, so that what the aim brings about meets everything else.
type aim struct {
	name   string
	knobs  func(*knobs)
	faults []int // every other fault is one of these, by their number in faults
	step   func(s *sim, node engine.NodeID, step string)
}

var aims = []aim{
	// A leader is cut off with a change of members that nobody else has: it is rolled back.
	{"members", func(k *knobs) {
		k.moveEvery, k.span, k.shards = 60*time.Millisecond, 15*time.Second, 4
	}, nil, func(s *sim, node engine.NodeID, step string) {
		if step == "membership: propose" && s.rng.IntN(2) == 0 {
			s.isolate(node, 6*s.knobs.electionTimeout)
		}
	}},
	// Leaders are cut off under load, and logs are short: what their clients wait for is passed by the snapshots that they need when they are back.
	{"passed", func(k *knobs) {
		k.shards, k.clients, k.think, k.valueMax = 3, 13, 2*time.Millisecond, 3000
		k.config.ShardLogEntriesKeep, k.config.ShardLogBytesMax = 1, 1<<10
		k.config.CheckpointAge, k.config.CheckpointShard = engine.Duration(200*time.Millisecond), 1<<10
	}, []int{9}, nil},
	// Nodes crash in the middle of splits and merges.
	{"reshaping", func(k *knobs) {
		k.moveEvery = 100 * time.Millisecond
		k.config.CheckpointAge = engine.Duration(10 * time.Second)
	}, nil, func(s *sim, node engine.NodeID, step string) {
		switch step {
		case "split: child made", "split: born", "split: checkpoint", "merge: prepared", "merge: frozen", "merge: applying":
			if s.doomed == 0 && s.rng.IntN(6) == 0 {
				s.doomed = node
			}
		}
	}},
	// Segments are small and values large, so that a full disk is met, and reads go past caches that checkpoints empty.
	{"space", func(k *knobs) {
		k.segmentBytes, k.cacheBytes, k.valueMax = 64<<10, 4<<10, 3000
		k.think, k.faultEvery = 2*time.Millisecond, k.electionTimeout/2
		k.config.CheckpointAge = engine.Duration(200 * time.Millisecond)
		k.config.CheckpointShard = 1 << 10
		k.config.CheckpointTxBytes = 1
	}, []int{5, 20}, nil},
	{"lost-disk", func(k *knobs) { k.loseDisk, k.lose = true, "all" }, nil, nil},
	{"rot", func(k *knobs) { k.loseDisk, k.lose = true, "bit" }, nil, nil},
	{"clocks", func(k *knobs) { k.wildClocks = true }, []int{8}, nil},
}

func aimOf(name string) *aim {
	for i := range aims {
		if aims[i].name == name {
			return &aims[i]
		}
	}
	return nil
}

// apply changes what the seed has drawn.
func (a *aim) apply(k *knobs) {
	k.span, k.moves, k.wildClocks, k.loseDisk = 10*time.Second, true, false, false
	k.electionTimeout = 200 * time.Millisecond
	k.faultEvery = min(k.faultEvery, 2*k.electionTimeout)
	k.config.ElectionTimeoutMin, k.config.HeartbeatInterval = engine.Duration(k.electionTimeout), engine.Duration(k.electionTimeout/10)
	a.knobs(k)
}

// isolate cuts a node off from all others for a while.
func (s *sim) isolate(id engine.NodeID, d time.Duration) {
	if s.settling {
		return
	}
	s.tracef("isolate %d", id)
	s.happened("isolation")
	s.c.Isolate(id, true)
	s.c.After(d, func() { s.c.Isolate(id, false) })
}
