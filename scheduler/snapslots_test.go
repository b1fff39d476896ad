package scheduler

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

// Who finds no slot is told who has them; a slot is free again when its snapshot is over.
func TestSnapshotSlots(t *testing.T) {
	var s snapshots
	var list []*outgoing
	for i := range 6 {
		if !acquire(&s.out, 6) {
			t.Fatal("no slot")
		}
		o := &outgoing{shard: engine.ShardID(i + 2), to: 3}
		o.sent.Store(uint64(100 * i))
		s.begin(o)
		list = append(list, o)
	}
	if acquire(&s.out, 6) {
		t.Fatal("a seventh slot of six")
	}
	want := "waits for a snapshot slot on node 1, 6 of 6 are taken, by shard 2 to node 3, shard 3 to node 3, shard 4 to node 3, shard 5 to node 3, …"
	if got := s.taken(1, 6); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if n := s.sent(5); n != 300 {
		t.Errorf("%d bytes sent of shard 5", n)
	}
	s.end(list[0])
	if !acquire(&s.out, 6) {
		t.Error("no slot although one was given back")
	}
}
