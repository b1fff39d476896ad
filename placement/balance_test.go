package placement

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// world is a cluster that does what it is told.
type world struct {
	Snapshot
	moves, transfers int
	bytes            uint64
	why              map[string]int
}

// newWorld is a balanced cluster, as init makes it.
func newWorld(t testing.TB, count, shards, zoneCount int) *world {
	t.Helper()
	in := Initial{Nodes: nodes(count), Shards: min(shards, ShardsMax), Replicas: 3, FirstShard: 2, FirstReplica: 1}
	w := &world{Snapshot: Snapshot{Replicas: 3}, why: map[string]int{}}
	for i, id := range in.Nodes {
		w.Nodes = append(w.Nodes, BalanceNode{ID: id, Zone: fmt.Sprint("z", i%zoneCount), Takes: true, Lives: true})
	}
	for len(w.Shards) < shards {
		in.Shards = min(shards-len(w.Shards), ShardsMax)
		plan, err := PlanInitial(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range plan {
			b := BalanceShard{ID: s.ID, Leader: s.Replicas[0].Node, Bytes: 1 << 20}
			for _, r := range s.Replicas {
				b.Nodes = append(b.Nodes, r.Node)
			}
			w.Shards = append(w.Shards, b)
		}
		in.FirstShard += engine.ShardID(in.Shards)
	}
	return w
}

func (w *world) byID() map[engine.ShardID]*BalanceShard {
	m := make(map[engine.ShardID]*BalanceShard, len(w.Shards))
	for i := range w.Shards {
		m[w.Shards[i].ID] = &w.Shards[i]
	}
	return m
}

// round plans once and carries it out. It returns whether there was anything to do, and how long the planning took.
func (w *world) round(t testing.TB, m map[engine.ShardID]*BalanceShard, lim Limits) (bool, time.Duration) {
	t.Helper()
	began := time.Now()
	p := MakePlan(&w.Snapshot, By{true, true, true, true}, lim)
	took := time.Since(began)
	inflight := map[engine.NodeID]int{}
	for _, mv := range p.Moves {
		s := m[mv.Shard]
		live := 0
		for i, n := range s.Nodes {
			if n == mv.To {
				t.Fatalf("%+v: already there: %v", mv, s.Nodes)
			}
			if n == mv.From {
				s.Nodes[i] = mv.To
			}
			live++
		}
		if s.Leader == mv.From {
			s.Leader = s.Nodes[0]
		}
		inflight[mv.From]++
		inflight[mv.To]++
		w.moves++
		w.bytes += mv.Bytes
		w.why[mv.Why]++
	}
	if lim.PerNodeMax > 0 {
		for id, n := range inflight {
			if n > lim.PerNodeMax && w.node(id).Lives {
				t.Fatalf("node %d is in %d moves at once", id, n)
			}
		}
	}
	for _, tr := range p.Transfers {
		s := m[tr.Shard]
		if s.Leader == tr.From {
			s.Leader = tr.To
		}
		w.transfers++
	}
	return len(p.Moves)+len(p.Transfers) > 0, took
}

func (w *world) node(id engine.NodeID) *BalanceNode {
	for i := range w.Nodes {
		if w.Nodes[i].ID == id {
			return &w.Nodes[i]
		}
	}
	return nil
}

// settle runs rounds until there is nothing to do, and again to see that it stays so.
func (w *world) settle(t testing.TB, lim Limits) (rounds int, slowest time.Duration) {
	t.Helper()
	m := w.byID()
	for {
		more, took := w.round(t, m, lim)
		slowest = max(slowest, took)
		if !more {
			return rounds, slowest
		}
		if rounds++; rounds > 5000 {
			t.Fatalf("no end after %d rounds, %d moves, %d transfers", rounds, w.moves, w.transfers)
		}
	}
}

func (w *world) check(t testing.TB, off float64) Balances {
	t.Helper()
	p := newPlanner(&w.Snapshot, Limits{})
	b := p.balances()
	for _, x := range []struct {
		name string
		b    Balance
	}{{"replicas", b.Replicas}, {"leaders", b.Leaders}} {
		if x.b.Max-x.b.Mean > max(1.01, off*x.b.Mean) || x.b.Mean-x.b.Min > max(1.01, off*x.b.Mean) {
			t.Errorf("%s: %+v, off by %.1f%%", x.name, x.b, 100*x.b.Off())
		}
	}
	for i := range w.Shards {
		zones := map[string]int{}
		for _, n := range w.Shards[i].Nodes {
			zones[w.node(n).Zone]++
		}
		if p.zoneCount >= 3 && len(zones) < 3 {
			t.Fatalf("shard %d is in zones %v", w.Shards[i].ID, zones)
		}
		if i > 20_000 {
			break // node is linear
		}
	}
	return b
}

func TestBalancedClusterStaysAsItIs(t *testing.T) {
	for _, n := range []int{3, 4, 5, 7, 20} {
		w := newWorld(t, n, 1000, 1)
		if rounds, _ := w.settle(t, Limits{}); rounds > 0 {
			t.Errorf("%d nodes: %d rounds, %v", n, rounds, w.why)
		}
	}
}

func TestJoinAndDrain(t *testing.T) {
	w := newWorld(t, 3, 1000, 1)
	for _, id := range []engine.NodeID{100, 101} {
		w.Nodes = append(w.Nodes, BalanceNode{ID: id, Zone: "z0", Takes: true, Lives: true})
	}
	lim := Limits{PerNodeMax: 8, TransfersMax: 16}
	rounds, _ := w.settle(t, lim)
	w.check(t, 0.05)
	t.Logf("3 to 5 nodes: %d moves (lower bound 1200), %d transfers, %d rounds", w.moves, w.transfers, rounds)
	if w.moves < 1150 || w.moves > 1260 {
		t.Errorf("%d moves, the lower bound is 1200", w.moves)
	}
	w.moves, w.transfers = 0, 0
	w.node(100).Takes, w.node(100).Leave = false, true
	w.node(101).Takes, w.node(101).Leave = false, true
	w.settle(t, lim)
	t.Logf("back: %d moves, %d transfers", w.moves, w.transfers)
	for i := range w.Shards {
		for _, n := range w.Shards[i].Nodes {
			if n >= 100 {
				t.Fatalf("shard %d is on drained node %d", w.Shards[i].ID, n)
			}
		}
	}
	w.Nodes = w.Nodes[:3]
	w.check(t, 0.05)
}

// Draining a node of three that hold three replicas each cannot be done, and says why.
func TestDrainStuck(t *testing.T) {
	w := newWorld(t, 3, 10, 1)
	w.Nodes[0].Takes, w.Nodes[0].Leave = false, true
	p := MakePlan(&w.Snapshot, By{}, Limits{})
	if len(p.Moves) != 0 || len(p.Stuck) != 1 {
		t.Fatalf("%+v", p)
	}
	for _, tr := range p.Transfers {
		if tr.From != w.Nodes[0].ID {
			t.Errorf("%+v", tr)
		}
	}
	if len(p.Transfers) == 0 {
		t.Error("the leaderships stay")
	}
}

func TestZones(t *testing.T) {
	w := newWorld(t, 9, 300, 3)
	w.settle(t, Limits{PerNodeMax: 4})
	w.check(t, 0.05)
	w.moves = 0
	if rounds, _ := w.settle(t, Limits{}); rounds != 0 {
		t.Errorf("not at rest: %v", w.why)
	}
}

func TestAddsWhatIsMissing(t *testing.T) {
	w := newWorld(t, 4, 40, 1)
	for i := range w.Shards {
		w.Shards[i].Nodes = w.Shards[i].Nodes[:2]
	}
	p := MakePlan(&w.Snapshot, By{}, Limits{})
	if len(p.Moves) != 40 {
		t.Fatalf("%d moves", len(p.Moves))
	}
	for _, m := range p.Moves {
		if m.From != 0 || m.To == 0 {
			t.Fatalf("%+v", m)
		}
	}
}

func TestBusyShardsAreLeftAlone(t *testing.T) {
	w := newWorld(t, 3, 90, 1)
	w.Nodes = append(w.Nodes, BalanceNode{ID: 100, Zone: "z0", Takes: true, Lives: true})
	for i := range w.Shards {
		w.Shards[i].Busy = true
	}
	if p := MakePlan(&w.Snapshot, By{true, true, true, true}, Limits{}); len(p.Moves)+len(p.Transfers) != 0 {
		t.Fatalf("%+v", p)
	}
}

func TestSizes(t *testing.T) {
	const seed = 7
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, 6, 600, 1)
	for i := range w.Shards {
		w.Shards[i].Bytes = 1 << (20 + rng.IntN(10))
	}
	before := newPlanner(&w.Snapshot, Limits{}).balances()
	rounds, _ := w.settle(t, Limits{PerNodeMax: 4})
	after := w.check(t, 0.05)
	t.Logf("sizes: off by %.1f%% before, %.1f%% after, %d moves, %d rounds", 100*before.Bytes.Off(), 100*after.Bytes.Off(), w.moves, rounds)
	if after.Bytes.Off() > 0.12 {
		t.Errorf("sizes: %+v", after.Bytes)
	}
}

// A restarted node leads nothing: it gets its share back, by transfers alone.
func TestLeadersAfterRestart(t *testing.T) {
	w := newWorld(t, 5, 1000, 1)
	gone := w.Nodes[2].ID
	for i := range w.Shards {
		if s := &w.Shards[i]; s.Leader == gone {
			s.Leader = s.Nodes[1]
		}
	}
	w.settle(t, Limits{TransfersMax: 16})
	w.check(t, 0.05)
	if w.moves > 0 || w.transfers > 230 {
		t.Errorf("%d moves, %d transfers", w.moves, w.transfers)
	}
}

// Many shards on many nodes: a node is lost, ten come, a zone is hot. The plans converge, moves are near what is needed, and a round is
// quick.
func TestPlacementAtScale(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	const count, shards = 1000, 1_000_000
	w := newWorld(t, count, shards, 1)
	lim := Limits{} // as many as there are: the number of rounds is a matter of pace
	m := w.byID()
	step := func(what string, bound int) {
		w.moves, w.transfers = 0, 0
		var slowest time.Duration
		for rounds := 0; ; rounds++ {
			more, took := w.round(t, m, lim)
			slowest = max(slowest, took)
			if !more {
				t.Logf("%s: %d moves (lower bound %d, ratio %.3f), %d transfers, %d rounds, slowest %v", what, w.moves, bound,
					float64(w.moves)/float64(max(bound, 1)), w.transfers, rounds, slowest)
				break
			}
			if rounds > 50 {
				t.Fatalf("%s: no end: %d moves, %d transfers, %v", what, w.moves, w.transfers, w.why)
			}
		}
		if float64(w.moves) > 1.05*float64(bound)+float64(count) {
			t.Errorf("%s: %d moves, the lower bound is %d: %v", what, w.moves, bound, w.why)
		}
		w.check(t, 0.05)
	}
	step("balanced", 0)
	lost := w.Nodes[17].ID
	held := 0
	for i := range w.Shards {
		s := &w.Shards[i]
		for _, n := range s.Nodes {
			if n == lost {
				held++
			}
		}
		if s.Leader == lost {
			s.Leader = s.Nodes[1]
		}
	}
	w.Nodes[17].Takes, w.Nodes[17].Lives, w.Nodes[17].Leave = false, false, true
	step("a node is lost", held)
	for i := range 10 {
		w.Nodes = append(w.Nodes, BalanceNode{ID: engine.NodeID(5000 + i), Zone: "z0", Takes: true, Lives: true})
	}
	step("ten nodes come", 10*3*shards/(count+9))
	for i := range shards / 100 {
		w.Shards[i].Load = 1000 // a hundredth of the shards takes all writes, neighbours in the key space
	}
	for i := range w.Shards[:shards/100] {
		w.Shards[i].Leader = w.Shards[i].Nodes[i%3]
	}
	step("a hot zone", 0)
	b := newPlanner(&w.Snapshot, Limits{}).balances()
	t.Logf("load off by %.0f%%", 100*b.Load.Off())
}

// A balanced cluster whose loads and sizes vary, as measured ones do, has no operation for an hour.
func TestBalancedClusterRestsForAnHour(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, n := range []int{3, 5, 9} {
		w := newWorld(t, n, 900, n)
		base := make([]float64, len(w.Shards))
		for i := range base {
			base[i] = 20 * rng.Float64()
		}
		vary := func() {
			for i := range w.Shards {
				w.Shards[i].Load = base[i] * (0.7 + 0.6*rng.Float64())
				w.Shards[i].Bytes = uint64(base[i] * float64(1<<20) * (0.95 + 0.1*rng.Float64()))
			}
		}
		m := w.byID()
		lim := Limits{MovesMax: 32, PerNodeMax: 8, GentleMax: 2, TransfersMax: 16}
		for range 200 { // to rest
			vary()
			w.round(t, m, lim)
		}
		w.moves, w.transfers = 0, 0
		for range time.Hour / (5 * time.Second) {
			vary()
			w.round(t, m, lim)
		}
		if w.moves+w.transfers > 0 {
			t.Errorf("%d nodes: %d moves, %d transfers in an hour: %v", n, w.moves, w.transfers, w.why)
		}
	}
}

// A node that has just come gets what must leave others, and nothing for balance until it is settled; then gently.
func TestYoungNodes(t *testing.T) {
	w := newWorld(t, 3, 300, 1)
	w.Nodes = append(w.Nodes, BalanceNode{ID: 100, Zone: "z0", Takes: true, Lives: true, Young: true})
	by := By{true, true, true, true}
	lim := Limits{PerNodeMax: 8, GentleMax: 2}
	if p := MakePlan(&w.Snapshot, by, lim); len(p.Moves) != 0 {
		t.Errorf("%d moves to a young node", len(p.Moves))
	}
	w.Nodes[3].Young = false
	if p := MakePlan(&w.Snapshot, by, lim); len(p.Moves) != 2 {
		t.Errorf("%d moves at once for balance, want 2", len(p.Moves))
	}
	w.Nodes[3].Young = true
	w.Nodes[0].Takes, w.Nodes[0].Leave = false, true
	if p := MakePlan(&w.Snapshot, by, lim); len(p.Moves) != 8 {
		t.Errorf("%d moves at once away from a node that is drained, want 8", len(p.Moves))
	}
}
