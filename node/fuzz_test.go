package node

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// FuzzBodies reads anything as what nodes tell each other beside raft: read or refused, never more. What holds a text form of itself comes
// back the same.
func FuzzBodies(f *testing.F) {
	res := reservation{Members: []member{{info: nodeInfo{Addr: "a:1", Name: "n"}}}}
	h := hello{Self: nodeInfo{Addr: "a:1"}, Known: []nodeInfo{{Addr: "b:1"}}}
	f.Add(res.append(nil))
	f.Add(h.append(nil))
	f.Add((&held{Reservation: &res}).append(nil))
	f.Add((&syncRequest{First: 1, Last: 2}).append(nil))
	f.Add(appendIDs(nil, []engine.NodeID{1, 2, 300}))
	f.Add(appendLeads(nil, []scheduler.Lead{{Descriptor: &shard.Descriptor{Shard: 1}}}))
	f.Add(appendChange(nil, &scheduler.MembershipChange{Shard: 1}))
	f.Add(appendLoads(nil, 1, 2, true, []loadRow{{Shard: 3}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(a, b []byte, err error) {
			t.Helper()
			if err != nil || string(a) != string(b) {
				t.Fatalf("%x came back as %x, %v", a, b, err)
			}
		}
		if r, err := decodeReservation(b); err == nil {
			again, err := decodeReservation(r.append(nil))
			same(r.append(nil), again.append(nil), err)
		}
		if h, err := decodeHello(b); err == nil {
			again, err := decodeHello(h.append(nil))
			same(h.append(nil), again.append(nil), err)
		}
		if h, err := decodeHeld(b); err == nil {
			again, err := decodeHeld(h.append(nil))
			same(h.append(nil), again.append(nil), err)
		}
		if q, err := decodeSync(b); err == nil {
			again, err := decodeSync(q.append(nil))
			same(q.append(nil), again.append(nil), err)
		}
		if ids, err := decodeIDs[uint64](b); err == nil {
			again, err := decodeIDs[uint64](appendIDs(nil, ids))
			same(appendIDs(nil, ids), appendIDs(nil, again), err)
		}
		if ch, err := decodeChange(b); err == nil {
			again, err := decodeChange(appendChange(nil, &ch))
			same(appendChange(nil, &ch), appendChange(nil, &again), err)
		}
		_, _ = decodeLeads(1, b)
		_, _ = decodeLoads(1, b)
	})
}
