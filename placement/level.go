package placement

import (
	"math"
	"slices"
)

// replicas levels the numbers of replicas: always from the fullest node to the emptiest that can take one of its shards.
func (p *planner) replicas() {
	if len(p.takers) < 2 {
		return
	}
	mean := 0.0
	for _, k := range p.takers {
		mean += float64(p.replicaN[k]) / float64(len(p.takers))
	}
	if p.within(mean, replicaTrigger, func(k int32) float64 { return float64(p.replicaN[k]) }) {
		return
	}
	high := p.sorted(func(k int32) float64 { return -float64(p.replicaN[k]) })
	for _, from := range high {
		for float64(p.replicaN[from]) > mean && p.roomFor(from) {
			if p.full() {
				return
			}
			if !p.moveFrom(from, "replicas") {
				break
			}
		}
	}
	// What is left is nodes below the mean whose source is at the mean: fill them up.
	low := p.sorted(func(k int32) float64 { return float64(p.replicaN[k]) })
	for _, to := range low {
		for float64(p.replicaN[to]) < math.Floor(mean) && p.accepts(to) {
			if p.full() || !p.fill(to, high) {
				break
			}
		}
	}
}

// within tells whether every node that takes replicas is near the mean.
func (p *planner) within(mean, trigger float64, value func(int32) float64) bool {
	tolerance := max(1, trigger*mean)
	for _, k := range p.takers {
		if math.Abs(value(k)-mean) > tolerance {
			return false
		}
	}
	return true
}

func (p *planner) sorted(value func(int32) float64) []int32 {
	list := slices.Clone(p.takers)
	slices.SortStableFunc(list, func(a, b int32) int {
		switch x, y := value(a), value(b); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	return list
}

// moveFrom moves one shard of node from to a node with at least two replicas fewer. Of some candidates it takes a small one
// that from does not lead.
func (p *planner) moveFrom(from int32, why string) bool {
	at := p.shardsAt(from)
	if len(at) == 0 {
		return false
	}
	best, bestTo, bestCost := int32(-1), int32(-1), math.Inf(1)
	var buf [16]int32
	for looked, tried := 0, 0; looked < len(at) && tried < 4*candidatesMax; looked++ {
		i := p.draw(from)
		if !p.touchable(i) {
			continue
		}
		tried++
		to := p.lower(p.members(i, buf[:0]), from)
		if to < 0 {
			continue
		}
		cost := float64(p.s.Shards[i].Bytes)
		if p.leader(i) == from {
			cost += 1 << 20
		}
		cost += float64(p.replicaN[to]) // rather to the emptiest
		if cost < bestCost {
			best, bestTo, bestCost = i, to, cost
		}
		if tried >= 8 && best >= 0 {
			break
		}
	}
	if best < 0 {
		return false
	}
	p.move(best, from, bestTo, why)
	return true
}

// draw returns one shard of node k after the other, in an order that mixes them: neighbours in the key space tend to have the same members
// and the same load.
func (p *planner) draw(k int32) int32 {
	at := p.at[k]
	if p.stride[k] == 0 {
		p.stride[k] = int(0.618*float64(len(at))) | 1
		for gcd(p.stride[k], len(at)) != 1 {
			p.stride[k] += 2
		}
		p.cursor[k] = int(uint64(p.s.Nodes[k].ID) * 0x9e3779b97f4a7c15 >> 40)
	}
	i := at[p.cursor[k]%len(at)]
	p.cursor[k] += p.stride[k]
	return i
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// lower returns the emptiest node with room to which a shard of from may come, if it has at least two replicas fewer.
func (p *planner) lower(members []int32, from int32) int32 {
	best := int32(-1)
	for _, k := range p.takers {
		if p.replicaN[k]+2 <= p.replicaN[from] && (best < 0 || p.replicaN[k] < p.replicaN[best]) && p.accepts(k) && p.mayCome(members, from, k) {
			best = k
		}
	}
	return best
}

// fill moves one shard to node to, from a node that has at least two more.
func (p *planner) fill(to int32, high []int32) bool {
	var buf [16]int32
	for _, from := range high {
		if p.replicaN[from] < p.replicaN[to]+2 || !p.roomFor(from) {
			continue
		}
		at := p.shardsAt(from)
		for looked := 0; looked < min(len(at), 4*candidatesMax); looked++ {
			i := p.draw(from)
			if p.touchable(i) && p.mayCome(p.members(i, buf[:0]), from, to) {
				p.move(i, from, to, "replicas")
				return true
			}
		}
	}
	return false
}

// sizes levels the bytes without touching the balance of numbers: a large shard goes to where there is less, and a smaller one of those
// that are there comes back if the numbers ask for it.
func (p *planner) sizes() {
	n := len(p.takers)
	if n < 2 {
		return
	}
	mean := 0.0
	for _, k := range p.takers {
		mean += float64(p.bytes[k]) / float64(n)
	}
	if mean < bytesFloor {
		return
	}
	counts := p.balances().Replicas
	slack := max(1, replicaTrigger*counts.Mean)
	for _, from := range p.sorted(func(k int32) float64 { return -float64(p.bytes[k]) }) {
		for float64(p.bytes[from]) > mean*(1+sizeTrigger) && p.roomFor(from) && !p.full() {
			if !p.moveBytes(from, mean, counts.Mean, slack) {
				break
			}
		}
	}
}

// moveBytes moves the shard of from that fits best into the gap to an emptier node.
func (p *planner) moveBytes(from int32, mean, count, slack float64) bool {
	var buf [16]int32
	at := p.shardsAt(from)
	for _, to := range p.sorted(func(k int32) float64 { return float64(p.bytes[k]) })[:min(8, len(p.takers))] {
		gap := float64(p.bytes[from]) - float64(p.bytes[to])
		if float64(p.bytes[to]) >= mean || !p.accepts(to) || to == from {
			continue
		}
		best := int32(-1)
		for looked := 0; looked < min(len(at), 4*candidatesMax); looked++ {
			i := p.draw(from)
			size := float64(p.s.Shards[i].Bytes)
			// At most half of the gap: the two never change places, so nothing goes to and fro.
			if size == 0 || size > gap/2 || p.s.Shards[i].Fresh || !p.touchable(i) || !p.mayCome(p.members(i, buf[:0]), from, to) {
				continue
			}
			if best < 0 || p.s.Shards[i].Bytes > p.s.Shards[best].Bytes {
				best = i
			}
		}
		if best < 0 || float64(p.s.Shards[best].Bytes) < mean/1000 {
			continue
		}
		if float64(p.replicaN[to])+1 > count+slack || float64(p.replicaN[from])-1 < count-slack {
			if !p.exchange(best, from, to) {
				continue
			}
		}
		p.move(best, from, to, "size")
		return true
	}
	return false
}

// exchange moves a shard much smaller than big from to to from, so that big may go the other way.
func (p *planner) exchange(big, from, to int32) bool {
	var buf [16]int32
	at := p.shardsAt(to)
	for looked := 0; looked < min(len(at), 4*candidatesMax); looked++ {
		i := p.draw(to)
		if p.s.Shards[i].Bytes*4 <= p.s.Shards[big].Bytes && !p.s.Shards[i].Fresh && p.touchable(i) && p.mayCome(p.members(i, buf[:0]), to, from) {
			p.move(i, to, from, "size")
			return true
		}
	}
	return false
}

// leaders levels leaderships: away from nodes that they must leave, by number, and then by load.
func (p *planner) leaders(by By) {
	p.leadersLeave()
	n := 0
	mean, load := 0.0, 0.0
	for _, k := range p.takers {
		mean += float64(p.leaderN[k])
		load += p.load[k]
		n++
	}
	if n < 2 {
		return
	}
	mean /= float64(n)
	load /= float64(n)
	if by.Leaders && !p.within(mean, leaderTrigger, func(k int32) float64 { return float64(p.leaderN[k]) }) {
		for _, from := range p.sorted(func(k int32) float64 { return -float64(p.leaderN[k]) }) {
			p.handOver(from, "leaders", func(float64) bool { return float64(p.leaderN[from]) > mean },
				func(to int32, _ float64) bool {
					return float64(p.leaderN[to]) < mean && p.leaderN[to]+2 <= p.leaderN[from]
				},
				func(a, b int32) bool { return p.leaderN[a] < p.leaderN[b] })
		}
		for _, to := range p.sorted(func(k int32) float64 { return float64(p.leaderN[k]) }) {
			p.pull(to, mean)
		}
		p.relay(mean)
	}
	if by.Load && load > loadFloor {
		slack := max(1, leaderTrigger*mean)
		for _, from := range p.sorted(func(k int32) float64 { return -p.load[k] }) {
			p.handOver(from, "load", func(l float64) bool {
				return p.load[from] > load*(1+loadTrigger) && l > 0 && float64(p.leaderN[from])-1 >= mean-slack
			},
				func(to int32, l float64) bool {
					return p.load[to]+2*l <= p.load[from] && float64(p.leaderN[to])+1 <= mean+slack
				},
				func(a, b int32) bool { return p.load[a] < p.load[b] })
		}
	}
}

// handOver transfers leaderships of node from while want says so, each to the best member that may takes it.
func (p *planner) handOver(from int32, why string, want func(load float64) bool, may func(to int32, load float64) bool, better func(a, b int32) bool) {
	var buf [16]int32
	for _, i := range p.shardsAt(from) {
		if p.transfersFull() {
			return
		}
		load := p.s.Shards[i].Load
		if p.leader(i) != from || !p.touchable(i) || why == "load" && p.s.Shards[i].Fresh || !want(load) {
			continue
		}
		best := int32(-1)
		for _, m := range p.members(i, buf[:0]) {
			if m >= 0 && m != from && p.s.Nodes[m].Takes && may(m, load) && (best < 0 || better(m, best)) {
				best = m
			}
		}
		if best >= 0 {
			p.transfer(i, from, best, why)
		}
	}
}

// pull brings leaderships to a node below the mean, from any node that leads at least two more.
func (p *planner) pull(to int32, mean float64) {
	for _, i := range p.shardsAt(to) {
		from := p.leader(i)
		switch {
		case float64(p.leaderN[to])+1 > mean || p.transfersFull():
			return
		case from >= 0 && from != to && p.s.Nodes[from].Takes && p.leaderN[from] >= p.leaderN[to]+2 && p.touchable(i):
			p.transfer(i, from, to, "leaders")
		}
	}
}

// relayBudget bounds the search of relay.
const relayBudget = 1 << 20

// relay levels what direct transfers could not: a node over the mean hands a shard to one at the mean, which hands another to one below.
func (p *planner) relay(mean float64) {
	budget := relayBudget
	for _, from := range p.takers {
		for float64(p.leaderN[from]) > mean+max(1, leaderTrigger*mean/2) {
			if p.transfersFull() || budget <= 0 || !p.relayOne(from, &budget) {
				break
			}
		}
	}
}

func (p *planner) relayOne(from int32, budget *int) bool {
	var a, b [16]int32
	for _, i := range p.shardsAt(from) {
		if p.leader(i) != from || !p.touchable(i) {
			continue
		}
		for _, mid := range p.members(i, a[:0]) {
			if mid < 0 || mid == from || !p.s.Nodes[mid].Takes {
				continue
			}
			at := p.shardsAt(mid)
			for range min(len(at), candidatesMax) {
				j := p.draw(mid)
				if *budget--; *budget <= 0 {
					return false
				}
				if j == i || p.leader(j) != mid || !p.touchable(j) {
					continue
				}
				for _, to := range p.members(j, b[:0]) {
					if to >= 0 && to != mid && to != from && p.s.Nodes[to].Takes && p.leaderN[to]+2 <= p.leaderN[from] {
						p.transfer(j, mid, to, "leaders")
						p.transfer(i, from, mid, "leaders")
						return true
					}
				}
			}
		}
	}
	return false
}

func (p *planner) transfersFull() bool {
	return p.lim.TransfersMax > 0 && len(p.plan.Transfers) >= p.lim.TransfersMax
}

// leadersLeave hands over what nodes lead that should lead nothing.
func (p *planner) leadersLeave() {
	for k := range p.s.Nodes {
		nd := &p.s.Nodes[k]
		if nd.Takes || !nd.Lives || !nd.Leave || p.leaderN[k] == 0 {
			continue
		}
		p.handOver(int32(k), "leave", func(float64) bool { return true }, func(int32, float64) bool { return true },
			func(a, b int32) bool { return p.leaderN[a] < p.leaderN[b] })
	}
}

func (p *planner) transfer(i, from, to int32, why string) {
	p.leads[i] = to
	p.leaderN[from]--
	p.leaderN[to]++
	l := p.s.Shards[i].Load
	p.load[from] -= l
	p.load[to] += l
	p.plan.Transfers = append(p.plan.Transfers, Proposal{Shard: p.s.Shards[i].ID, From: p.s.Nodes[from].ID, To: p.s.Nodes[to].ID, Leader: true, Why: why})
}
