package raftlog

import (
	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// AppendMembership appends m as msgpack: [voter sets, learners], a set being an array of [node, replica].
func AppendMembership(b []byte, m *engine.Membership) []byte {
	b = mp.AppendArray(b, 2)
	b = mp.AppendArray(b, len(m.Voters))
	for _, set := range m.Voters {
		b = appendPeers(b, set)
	}
	return appendPeers(b, m.Learners)
}

func appendPeers(b []byte, peers []engine.Peer) []byte {
	b = mp.AppendArray(b, len(peers))
	for _, p := range peers {
		b = mp.AppendArray(b, 2)
		b = mp.AppendUint(b, uint64(p.Node))
		b = mp.AppendUint(b, uint64(p.Replica))
	}
	return b
}

// ReadMembership reads what AppendMembership wrote. Errors stay in r.
func ReadMembership(r *mp.Reader) engine.Membership {
	var m engine.Membership
	more := r.ArrayMin(2)
	sets := r.Array()
	if sets > 2 {
		r.Fail("membership of more than two voter sets")
		return m
	}
	for range sets {
		m.Voters = append(m.Voters, readPeers(r))
	}
	m.Learners = readPeers(r)
	r.Skip(more)
	return m
}

func readPeers(r *mp.Reader) []engine.Peer {
	n := r.Array()
	if n == 0 {
		return nil
	}
	// A peer takes at least three bytes, so this asks for a small multiple of the input at most.
	peers := make([]engine.Peer, 0, min(n, r.Len()/3+1))
	for ; n > 0 && r.Err() == nil; n-- {
		r.ArrayOf(2)
		peers = append(peers, engine.Peer{Node: engine.NodeID(r.Uint()), Replica: engine.ReplicaID(r.Uint())})
	}
	return peers
}
