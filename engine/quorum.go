package engine

// quorumValue tells the highest value that a majority of every voter set has reached: commit indexes, read rounds,
// leases and liveness are all this one question. It sorts afresh each time; there is no order to be kept up to date.
func quorumValue(m *Membership, value func(Peer) uint64) uint64 {
	least := ^uint64(0)
	for _, set := range m.Voters {
		var buf [16]uint64
		values := buf[:0]
		for _, p := range set {
			values = append(values, value(p))
		}
		least = min(least, majorityValue(values))
	}
	return least
}

// majorityValue tells the highest value that more than half of values have reached. It reorders values.
func majorityValue(values []uint64) uint64 {
	if len(values) == 0 {
		return ^uint64(0) // an empty set has no objection
	}
	for i := 1; i < len(values); i++ { // insertion sort, descending: sets are tiny
		for j := i; j > 0 && values[j] > values[j-1]; j-- {
			values[j], values[j-1] = values[j-1], values[j]
		}
	}
	return values[len(values)/2]
}

// hasQuorum tells whether yes holds for a majority of every voter set.
func hasQuorum(m *Membership, yes func(Peer) bool) bool {
	return quorumValue(m, func(p Peer) uint64 {
		if yes(p) {
			return 1
		}
		return 0
	}) > 0
}

// IsVoter tells whether p is in one of the voter sets.
func (m *Membership) IsVoter(p Peer) bool {
	for _, set := range m.Voters {
		if containsPeer(set, p) {
			return true
		}
	}
	return false
}

// Contains tells whether p is a voter or a learner.
func (m *Membership) Contains(p Peer) bool { return m.IsVoter(p) || containsPeer(m.Learners, p) }

// onlyVoter tells whether p alone is every quorum.
func (m *Membership) onlyVoter(p Peer) bool {
	for _, set := range m.Voters {
		if len(set) != 1 || set[0] != p {
			return false
		}
	}
	return true
}

// appendPeers appends everybody in m, each once.
func (m *Membership) appendPeers(buf []Peer) []Peer {
	start := len(buf)
	add := func(set []Peer) {
		for _, p := range set {
			if !containsPeer(buf[start:], p) {
				buf = append(buf, p)
			}
		}
	}
	for _, set := range m.Voters {
		add(set)
	}
	add(m.Learners)
	return buf
}

func containsPeer(set []Peer, p Peer) bool {
	for _, q := range set {
		if q == p {
			return true
		}
	}
	return false
}
