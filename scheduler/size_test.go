package scheduler

import (
	"testing"
	"unsafe"
)

// TestReplicaSize: a node has thousands of idle replicas, so what only few of them need at a time is apart from them. The allocator rounds up
// to 896, and then to 1,024.
func TestReplicaSize(t *testing.T) {
	if size := unsafe.Sizeof(replica{}); size > 896 {
		t.Errorf("a replica takes %d bytes", size)
	}
}
