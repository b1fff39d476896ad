package placement

// RebalanceOver tells whether a rebalance ends with the plan that was just made for it, once its moves under way are over. No move must be
// left. Leaderships are another matter: each election unsettles them, and where nodes come and go the plan always finds some to hand over. So
// as soon as a rebalance has had as many handed over as there are shards it leaves the rest to the balance that goes on by itself.
func (o *Op) RebalanceOver(plan *Plan, shards int) bool {
	return len(plan.Moves) == 0 && (len(plan.Transfers) == 0 || o.Transfers >= uint64(shards))
}

// Count adds what a plan orders to the counters of a rebalance: moves, of which so many could be started, and transfers once no move is left.
func (o *Op) Count(plan *Plan, moves int) {
	if o.Moves += uint64(moves); len(plan.Moves) == 0 {
		o.Transfers += uint64(len(plan.Transfers))
	}
}

// KeepCounts takes over counters of the same operation that are ahead.
func (o *Op) KeepCounts(p *Op) {
	o.Moves, o.Transfers = max(o.Moves, p.Moves), max(o.Transfers, p.Transfers)
}
