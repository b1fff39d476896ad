package scheduler

import (
	"testing"
	"unsafe"
)

// TestReplicaSize: a node has thousands of idle replicas, so what only few of them need at a time is apart from them. 448 is a size that
// the allocator has; the next is 480.
func TestReplicaSize(t *testing.T) {
	if size := unsafe.Sizeof(replica{}); size > 448 {
		t.Errorf("a replica takes %d bytes", size)
	}
}

// TestLaneShrink: a lane that was once busy with all its replicas keeps no room for that when it is at rest, and loses nothing that waits.
func TestLaneShrink(t *testing.T) {
	l := newHeartbeats(t).s.lanes[0]
	r := &replica{}
	lists := []*[]*replica{&l.stirred, &l.news.touched, &l.timers.heap}
	for _, list := range lists {
		*list = append(make([]*replica, 0, 10_000), r)
	}
	l.shrink()
	for i, list := range lists {
		if len(*list) != 1 || (*list)[0] != r || cap(*list) > 16 {
			t.Errorf("list %d has %d of room for %d", i, cap(*list), len(*list))
		}
	}
}
