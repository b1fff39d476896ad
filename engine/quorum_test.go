package engine

import (
	"math/rand/v2"
	"testing"
)

// naive tries every value: it is reached if, in each set, more than half have reached it.
func naive(m *Membership, value func(Peer) uint64) uint64 {
	best := uint64(0)
	for v := uint64(0); v <= 12; v++ {
		ok := true
		for _, set := range m.Voters {
			n := 0
			for _, p := range set {
				if value(p) >= v {
					n++
				}
			}
			ok = ok && 2*n > len(set)
		}
		if ok {
			best = v
		}
	}
	return best
}

func TestQuorumAgainstNaive(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for i := 0; i < 20000; i++ {
		m := &Membership{}
		for s := 0; s <= rng.IntN(2); s++ {
			var set []Peer
			for n := 1; n <= 1+rng.IntN(7); n++ {
				set = append(set, peer(1+rng.IntN(3)*8+n)) // sets overlap
			}
			m.Voters = append(m.Voters, set)
		}
		values := map[Peer]uint64{}
		for _, p := range m.appendPeers(nil) {
			values[p] = uint64(rng.IntN(12))
		}
		value := func(p Peer) uint64 { return values[p] }
		if got, want := quorumValue(m, value), naive(m, value); got != want {
			t.Fatalf("%v %v: %d, want %d", memb(m), values, got, want)
		}
		least := uint64(rng.IntN(12))
		if got, want := hasQuorum(m, func(p Peer) bool { return values[p] >= least }), naive(m, value) >= least; got != want {
			t.Fatalf("%v %v: hasQuorum(%d) %v", memb(m), values, least, got)
		}
	}
}

// TestQuorumMatch: what a leader takes for committed is what its membership says, also where it does not look at it.
func TestQuorumMatch(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	plain := 0
	for range 20000 {
		m := &Membership{}
		for s := 0; s <= rng.IntN(2); s++ {
			var set []Peer
			for n := 1; n <= 1+rng.IntN(5); n++ {
				set = append(set, peer(1+rng.IntN(3)*8+n))
			}
			m.Voters = append(m.Voters, set)
		}
		for n := range rng.IntN(3) {
			m.Learners = append(m.Learners, peer(50+n))
		}
		all := m.appendPeers(nil)
		e := &Engine{cfg: Config{}.WithDefaults(), self: all[rng.IntN(len(all))], memb: MembershipAt{Membership: m}, lead: &leadership{}}
		if rng.IntN(8) == 0 {
			e.self = peer(99)
		}
		e.rebuildStreams()
		e.io.flushed = uint64(rng.IntN(12))
		values := map[Peer]uint64{e.self: e.io.flushed}
		for i := range e.lead.followers {
			f := &e.lead.followers[i]
			f.match = uint64(rng.IntN(12))
			values[f.peer] = f.match
		}
		if e.lead.plain != nil {
			plain++
		}
		if got, want := e.quorumMatch(), naive(m, func(p Peer) uint64 { return values[p] }); got != want {
			t.Fatalf("%v of %v: %v: %d, want %d", e.self, memb(m), values, got, want)
		}
	}
	if plain < 1000 {
		t.Errorf("%d plain memberships", plain)
	}
}

func TestQuorumAllocatesNothing(t *testing.T) {
	m := &Membership{Voters: [][]Peer{{peer(1), peer(2), peer(3)}, {peer(2), peer(3), peer(4)}}}
	e := &Engine{}
	if n := testing.AllocsPerRun(100, func() {
		quorumValue(m, func(p Peer) uint64 { return uint64(p.Node) + e.applied.Index })
	}); n != 0 {
		t.Fatal(n)
	}
}

func TestVoteSupersedes(t *testing.T) {
	a, b := peer(1), peer(2)
	order := []Vote{{}, {Term: 1}, {1, a, false}, {1, b, true}, {2, a, false}}
	for i, v := range order {
		for j, w := range order {
			if got := v.supersedes(w); got != (i > j) {
				t.Errorf("%v supersedes %v: %v", v, w, got)
			}
		}
	}
	if (Vote{1, b, false}).supersedes(Vote{1, a, false}) || (Vote{1, b, true}).supersedes(Vote{1, a, true}) {
		t.Error("a vote is given once in a term")
	}
}
