package door

import (
	"cmp"
	"slices"
)

// Held is a connection that was let in.
type Held struct {
	Host  string
	Heard int64 // when it last asked for something, on any clock
}

// Idle returns which connections to close so that others get in, the longest silent first: some of those that were last heard before. If one
// host has most of all connections, its go, however short they have been silent: who only holds connections does not keep others out.
func Idle(all []Held, before int64) []int {
	hosts, greedy := map[string]int{}, ""
	for i := range all {
		host := all[i].Host
		if hosts[host]++; 2*hosts[host] > len(all) {
			greedy = host
		}
	}
	var idle []int
	for i := range all {
		if greedy == "" && all[i].Heard < before || greedy != "" && all[i].Host == greedy {
			idle = append(idle, i)
		}
	}
	slices.SortStableFunc(idle, func(a, b int) int { return cmp.Compare(all[a].Heard, all[b].Heard) })
	return idle[:min(len(idle), 1+len(all)/100)]
}
