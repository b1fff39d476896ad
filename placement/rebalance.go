package placement

// RebalanceOver tells whether a rebalance ends with the plan that was just made for it, once its moves under way are over. No move must be
// left. Leaderships are another matter: each election unsettles them, and where nodes come and go the plan always finds some to hand over. So
// as soon as a rebalance has had as many handed over as there are shards it leaves the rest to the balance that goes on by itself.
func (o *Op) RebalanceOver(plan *Plan, shards int) bool {
	return len(plan.Moves) == 0 && (len(plan.Transfers) == 0 || o.Transfers >= uint64(shards))
}

// Count adds what a plan orders to the counters of a rebalance: moves, of which so many could be started, of so many bytes, and transfers once no
// move is left.
func (o *Op) Count(plan *Plan, moves int, bytes uint64) {
	o.OrderedBytes += bytes
	if o.Moves += uint64(moves); len(plan.Moves) == 0 {
		o.Transfers += uint64(len(plan.Transfers))
	}
}

// KeepCounts takes over counters of the same operation that are ahead.
func (o *Op) KeepCounts(p *Op) {
	o.Moves, o.Transfers = max(o.Moves, p.Moves), max(o.Transfers, p.Transfers)
	o.OrderedBytes = max(o.OrderedBytes, p.OrderedBytes)
}

// Progress says how far a rebalance is: so many moves are under way, of which so many bytes are not there yet, and about so many moves, of so
// many bytes, will be ordered.
func (o *Op) Progress(moves int, bytes uint64, movesLeft int, bytesLeft uint64) {
	o.Done = max(o.Done, o.Moves-min(uint64(moves), o.Moves))
	o.Total = o.Moves + uint64(movesLeft)
	o.BytesDone = max(o.BytesDone, o.OrderedBytes-min(bytes, o.OrderedBytes))
	o.BytesTotal = max(o.BytesDone, o.OrderedBytes+bytesLeft)
}
