package placement

import (
	"fmt"
	"math"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
)

// Snapshot is a picture of a cluster: all that a plan is made from.
type Snapshot struct {
	Nodes    []BalanceNode
	Shards   []BalanceShard
	Replicas int // voters that a shard should have
}

// BalanceNode is a node in a Snapshot.
type BalanceNode struct {
	ID   engine.NodeID
	Zone string
	// Takes: new replicas and leaderships may come here. Leave: what is here must go, as the node is drained, removed, or
	// down for too long. A node that is neither (down for a short while) keeps what it has and gets nothing.
	Takes bool
	Leave bool
	Lives bool // answers: its leaderships can be handed over
	// Young: it has come, or come back, a moment ago and gets nothing for balance yet.
	Young bool
	// InFlight is in how many running operations the node is.
	InFlight int
}

// BalanceShard is a shard in a Snapshot: as it will be when the operation that it is in, if any, is done.
type BalanceShard struct {
	ID     engine.ShardID
	Nodes  []engine.NodeID // that hold a voter
	Leader engine.NodeID   // 0: none known
	Bytes  uint64
	Load   float64 // reads and writes per second
	Busy   bool    // in an operation: not to be touched
	Want   int     // voters that it should have; 0: Snapshot.Replicas
	// Fresh: it was moved for balance a moment ago, and is not moved again for size or load, which are estimates that lag.
	Fresh bool
}

// By says what a plan levels. The zero value levels nothing, but still brings replicas away from where they must leave.
type By struct{ Replicas, Leaders, Size, Load bool }

// ParseBy reads a list as the command line takes it. Empty means all.
func ParseBy(names []string) (By, error) {
	if len(names) == 0 {
		return By{true, true, true, true}, nil
	}
	var by By
	for _, n := range names {
		switch n {
		case "replicas":
			by.Replicas = true
		case "leaders":
			by.Leaders = true
		case "size":
			by.Size = true
		case "load":
			by.Load = true
		default:
			return by, fmt.Errorf("%w: cannot balance by %q: want replicas, leaders, size, load", ErrBadPlan, n)
		}
	}
	return by, nil
}

// Limits bound a plan. Zero means no limit.
type Limits struct {
	MovesMax     int // of one plan
	PerNodeMax   int // operations that a node may be in at a time
	GentleMax    int // the same, for moves that only balance
	TransfersMax int // of one plan
}

// Proposal is a move (From 0: a replica is added, To 0: one is removed) or, with Leader, a transfer of leadership.
type Proposal struct {
	Shard  engine.ShardID
	From   engine.NodeID
	To     engine.NodeID
	Leader bool
	Bytes  uint64
	Why    string
}

// Balance tells how even something is spread over the nodes that take replicas.
type Balance struct {
	Min, Max, Mean float64
}

// Off is the largest distance from the mean, as a part of it.
func (b Balance) Off() float64 {
	if b.Mean == 0 {
		return 0
	}
	return max(b.Max-b.Mean, b.Mean-b.Min) / b.Mean
}

// Balances are those of one picture.
type Balances struct{ Replicas, Leaders, Bytes, Load Balance }

// Plan is what should be done.
type Plan struct {
	Moves     []Proposal
	Transfers []Proposal
	Bytes     uint64 // that the moves bring to new places
	Before    Balances
	After     Balances
	// Left is how many replicas are above the mean of their nodes after the plan: about so many moves are to follow.
	Left int
	// LeftBytes is about how much those bring to new places.
	LeftBytes uint64
	// Stuck is what a plan should contain and cannot, in words.
	Stuck []string
}

// Hysteresis: nothing is moved for balance while every node is within trigger of the mean (or within one shard of it); if
// something is, moves go on while two nodes differ by two or more. A move from a fuller to an emptier node never turns around, so
// a balanced cluster stays as it is.
const (
	replicaTrigger = 0.02
	leaderTrigger  = 0.04
	sizeTrigger    = 0.10
	loadTrigger    = 0.20
	// candidatesMax is how many shards of a node are looked at to find one that may go to another.
	candidatesMax = 64
	missesMax     = 256      // so many in a row found every node in enough operations: this round is over
	bytesFloor    = 64 << 20 // below this mean, sizes are not worth moving for
	loadFloor     = 100      // writes per second of a node
)

// MakePlan is the balancer: a function of its arguments alone.
func MakePlan(s *Snapshot, by By, lim Limits) *Plan {
	p := newPlanner(s, lim)
	p.plan.Before = p.balances()
	p.leave()
	p.complete()
	p.zones()
	if lim.GentleMax > 0 {
		p.lim.PerNodeMax = lim.GentleMax
	}
	if by.Replicas {
		p.replicas()
	}
	if by.Size {
		p.sizes()
	}
	if by.Leaders || by.Load {
		p.leaders(by)
	} else {
		p.leadersLeave()
	}
	p.plan.After = p.balances()
	if by.Replicas && p.full() {
		for _, k := range p.takers {
			n := max(0, int(p.replicaN[k])-int(math.Ceil(p.plan.After.Replicas.Mean)))
			p.plan.Left += n
			p.plan.LeftBytes += p.bytes[k] / uint64(max(1, p.replicaN[k])) * uint64(n)
		}
	}
	return &p.plan
}

// Apply changes the picture as if the plan were carried out.
func (s *Snapshot) Apply(p *Plan) {
	at := make(map[engine.ShardID]*BalanceShard, len(s.Shards))
	for i := range s.Shards {
		at[s.Shards[i].ID] = &s.Shards[i]
	}
	for i := range p.Moves {
		m, sh := &p.Moves[i], at[p.Moves[i].Shard]
		sh.Nodes = slices.DeleteFunc(slices.Clone(sh.Nodes), func(n engine.NodeID) bool { return n == m.From })
		if m.To != 0 {
			sh.Nodes = append(sh.Nodes, m.To)
		}
		if sh.Leader == m.From && len(sh.Nodes) > 0 {
			sh.Leader = sh.Nodes[int(sh.ID)%len(sh.Nodes)]
		}
	}
	for i := range p.Transfers {
		at[p.Transfers[i].Shard].Leader = p.Transfers[i].To
	}
}

// planner holds the picture in arrays: a node is its place in Snapshot.Nodes.
type planner struct {
	s         *Snapshot
	lim       Limits
	plan      Plan
	index     []int32 // by node id; -1: unknown
	sparse    map[engine.NodeID]int32
	zone      []int32
	zoneCount int // with a node that takes

	replicaN []int
	leaderN  []int
	bytes    []uint64
	load     []float64
	inflight []int
	takers   []int32

	// at[n] are the shards of node n, as places in Snapshot.Shards; filled when first needed.
	at     [][]int32
	moved  map[int32][]int32 // shards that this plan moves: where they are then
	leads  map[int32]int32   // shards that this plan transfers
	cursor []int
	stride []int
}

func newPlanner(s *Snapshot, lim Limits) *planner {
	n := len(s.Nodes)
	p := &planner{s: s, lim: lim, zone: make([]int32, n), replicaN: make([]int, n), leaderN: make([]int, n), bytes: make([]uint64, n),
		load: make([]float64, n), inflight: make([]int, n), cursor: make([]int, n), stride: make([]int, n), moved: map[int32][]int32{}, leads: map[int32]int32{}}
	p.indexNodes()
	zones := map[string]int32{}
	taking := map[int32]bool{}
	for i := range s.Nodes {
		z, ok := zones[s.Nodes[i].Zone]
		if !ok {
			z = int32(len(zones))
			zones[s.Nodes[i].Zone] = z
		}
		p.zone[i] = z
		p.inflight[i] = s.Nodes[i].InFlight
		if s.Nodes[i].Takes {
			p.takers = append(p.takers, int32(i))
			taking[z] = true
		}
	}
	p.zoneCount = max(len(taking), 1)
	for i := range s.Shards {
		sh := &s.Shards[i]
		for _, id := range sh.Nodes {
			if k := p.node(id); k >= 0 {
				p.replicaN[k]++
				p.bytes[k] += sh.Bytes
			}
		}
		if k := p.node(sh.Leader); k >= 0 {
			p.leaderN[k]++
			p.load[k] += sh.Load
		}
	}
	return p
}

// indexNodes makes a dense table of the node ids if they are dense enough: there are three look-ups per shard.
func (p *planner) indexNodes() {
	top := engine.NodeID(0)
	for i := range p.s.Nodes {
		top = max(top, p.s.Nodes[i].ID)
	}
	if top > 1<<20 {
		p.sparse = map[engine.NodeID]int32{}
		for i := range p.s.Nodes {
			p.sparse[p.s.Nodes[i].ID] = int32(i)
		}
		return
	}
	p.index = make([]int32, top+1)
	for i := range p.index {
		p.index[i] = -1
	}
	for i := range p.s.Nodes {
		p.index[p.s.Nodes[i].ID] = int32(i)
	}
}

func (p *planner) node(id engine.NodeID) int32 {
	switch {
	case id == 0:
		return -1
	case p.sparse != nil:
		if k, ok := p.sparse[id]; ok {
			return k
		}
		return -1
	case int(id) < len(p.index):
		return p.index[id]
	}
	return -1
}

// members returns the nodes of a shard, as this plan leaves it.
func (p *planner) members(i int32, buf []int32) []int32 {
	if m, ok := p.moved[i]; ok {
		return append(buf, m...)
	}
	for _, id := range p.s.Shards[i].Nodes {
		buf = append(buf, p.node(id))
	}
	return buf
}

func (p *planner) leader(i int32) int32 {
	if l, ok := p.leads[i]; ok {
		return l
	}
	return p.node(p.s.Shards[i].Leader)
}

// shardsAt returns the shards of a node, without those that this plan brings there or takes away.
func (p *planner) shardsAt(n int32) []int32 {
	if p.at == nil {
		p.at = make([][]int32, len(p.s.Nodes))
		for k := range p.at {
			p.at[k] = make([]int32, 0, p.replicaN[k]+8)
		}
		for i := range p.s.Shards {
			for _, id := range p.s.Shards[i].Nodes {
				if k := p.node(id); k >= 0 {
					p.at[k] = append(p.at[k], int32(i))
				}
			}
		}
	}
	return p.at[n]
}

func (p *planner) balances() Balances {
	var b Balances
	n := len(p.takers)
	if n == 0 {
		return b
	}
	of := func(value func(k int32) float64) Balance {
		out := Balance{Min: math.Inf(1)}
		for _, k := range p.takers {
			v := value(k)
			out.Min, out.Max = min(out.Min, v), max(out.Max, v)
			out.Mean += v / float64(n)
		}
		return out
	}
	b.Replicas = of(func(k int32) float64 { return float64(p.replicaN[k]) })
	b.Leaders = of(func(k int32) float64 { return float64(p.leaderN[k]) })
	b.Bytes = of(func(k int32) float64 { return float64(p.bytes[k]) })
	b.Load = of(func(k int32) float64 { return p.load[k] })
	return b
}

// roomFor tells whether one more move may involve node k (-1: none).
func (p *planner) roomFor(k int32) bool {
	return k < 0 || p.lim.PerNodeMax == 0 || !p.s.Nodes[k].Lives || p.inflight[k] < p.lim.PerNodeMax
}

// accepts tells whether node k may get a replica for balance now.
func (p *planner) accepts(k int32) bool { return !p.s.Nodes[k].Young && p.roomFor(k) }

func (p *planner) full() bool { return p.lim.MovesMax > 0 && len(p.plan.Moves) >= p.lim.MovesMax }

// mayCome tells whether a replica of a shard may come to node k while the one on node from (-1: none) goes: one replica per node, and no
// zone holds more of them than it must.
func (p *planner) mayCome(members []int32, from, k int32) bool {
	same := 1
	for _, m := range members {
		if m == k {
			return false
		}
		if m != from && m >= 0 && p.zone[m] == p.zone[k] {
			same++
		}
	}
	count := len(members)
	if from < 0 {
		count++
	}
	return same <= (count+p.zoneCount-1)/p.zoneCount
}

// move notes a move of shard i; from or to may be -1.
func (p *planner) move(i, from, to int32, why string) {
	sh := &p.s.Shards[i]
	pr := Proposal{Shard: sh.ID, Bytes: sh.Bytes, Why: why}
	members := p.members(i, nil)
	if from >= 0 {
		pr.From = p.s.Nodes[from].ID
		p.replicaN[from]--
		p.bytes[from] -= min(sh.Bytes, p.bytes[from])
		p.inflight[from]++
		members = slices.DeleteFunc(members, func(k int32) bool { return k == from })
	}
	if to >= 0 {
		pr.To = p.s.Nodes[to].ID
		p.replicaN[to]++
		p.bytes[to] += sh.Bytes
		p.inflight[to]++
		members = append(members, to)
		p.plan.Bytes += sh.Bytes
	} else {
		pr.Bytes = 0
	}
	p.moved[i] = members
	p.plan.Moves = append(p.plan.Moves, pr)
	if from >= 0 && p.leader(i) == from { // somebody else leads it then
		p.leaderN[from]--
		p.load[from] -= sh.Load
		next := int32(-1)
		for _, m := range members {
			if m >= 0 && p.s.Nodes[m].Takes && (next < 0 || p.leaderN[m] < p.leaderN[next]) {
				next = m
			}
		}
		p.leads[i] = next
		if next >= 0 {
			p.leaderN[next]++
			p.load[next] += sh.Load
		}
	}
}

// touchable tells whether a plan may move shard i: nobody else does, and it was not moved in this plan.
func (p *planner) touchable(i int32) bool {
	if p.s.Shards[i].Busy {
		return false
	}
	_, moved := p.moved[i]
	return !moved
}

// emptiest returns the node with the fewest replicas to which a replica of the shard may come, -1 if there is none. blocked tells
// that there is one, but it is in enough operations already.
func (p *planner) emptiest(members []int32, from int32) (best int32, blocked bool) {
	best = -1
	for _, k := range p.takers {
		if best >= 0 && p.replicaN[k] >= p.replicaN[best] || !p.mayCome(members, from, k) {
			continue
		}
		if !p.roomFor(k) {
			blocked = true
			continue
		}
		best = k
	}
	return best, blocked
}

// leave brings replicas away from nodes that they must leave.
func (p *planner) leave() {
	must := false
	for i := range p.s.Nodes {
		must = must || p.s.Nodes[i].Leave && p.replicaN[i] > 0
	}
	if !must {
		return
	}
	nowhere := map[int32]int{}
	misses := 0
	for i := range p.s.Shards {
		if p.full() || misses > missesMax {
			break
		}
		if !p.touchable(int32(i)) {
			continue
		}
		for _, id := range p.s.Shards[i].Nodes {
			from := p.node(id)
			if from < 0 || !p.s.Nodes[from].Leave || !p.roomFor(from) {
				continue
			}
			members := p.members(int32(i), nil)
			to, blocked := p.emptiest(members, from)
			switch {
			case to >= 0:
				p.move(int32(i), from, to, "leave")
				misses = 0
			case blocked:
				misses++
			default:
				nowhere[from]++
			}
			break // one change of a shard at a time
		}
	}
	for k := range p.s.Nodes {
		if n := nowhere[int32(k)]; n > 0 {
			p.plan.Stuck = append(p.plan.Stuck, fmt.Sprintf("%s cannot leave node %d: no other node may take more (nodes that take replicas: %d, in %s)",
				Count(n, "replica", ""), p.s.Nodes[k].ID, len(p.takers), Count(p.zoneCount, "zone", "")))
		}
	}
}

// complete gives shards the number of voters that they should have.
func (p *planner) complete() {
	few := 0
	for i := range p.s.Shards {
		sh := &p.s.Shards[i]
		want := sh.Want
		if want == 0 {
			want = p.s.Replicas
		}
		if want == 0 || len(sh.Nodes) == want || len(sh.Nodes) == 0 || p.full() || !p.touchable(int32(i)) {
			continue
		}
		members := p.members(int32(i), nil)
		if len(members) < want {
			to, blocked := p.emptiest(members, -1)
			switch {
			case to >= 0:
				p.move(int32(i), -1, to, "complete")
			case !blocked:
				few++
			}
			continue
		}
		fullest := int32(-1)
		for _, k := range members {
			if k >= 0 && k != p.leader(int32(i)) && (fullest < 0 || p.replicaN[k] > p.replicaN[fullest]) {
				fullest = k
			}
		}
		if fullest >= 0 && p.roomFor(fullest) {
			p.move(int32(i), fullest, -1, "too many replicas")
		}
	}
	if few > 0 {
		p.plan.Stuck = append(p.plan.Stuck, fmt.Sprintf("%s too few replicas, and no node may take one (nodes that take replicas: %d)", Count(few, "shard has", "shards have"), len(p.takers)))
	}
}

// zones spreads the replicas of each shard over zones, where there are enough.
func (p *planner) zones() {
	if p.zoneCount < 2 {
		return
	}
	var buf [16]int32
	for i := range p.s.Shards {
		if p.full() {
			return
		}
		members := p.members(int32(i), buf[:0])
		most := (len(members) + p.zoneCount - 1) / p.zoneCount
		for _, k := range members {
			same := 0
			for _, m := range members {
				if k >= 0 && m >= 0 && p.zone[m] == p.zone[k] {
					same++
				}
			}
			if same <= most || !p.touchable(int32(i)) || !p.roomFor(k) {
				continue
			}
			if to, _ := p.emptiest(members, k); to >= 0 && p.zone[to] != p.zone[k] {
				p.move(int32(i), k, to, "zones")
			}
			break
		}
	}
}
