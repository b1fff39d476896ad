package scheduler

import (
	"testing"
	"unsafe"
)

// TestReplicaSize: a node has thousands of idle replicas, so what only few of them need at a time is apart from them. The allocator adds
// 8 bytes to what is larger than 512 and has pointers, and rounds up to 576, 640 and so on; a replica of up to 512 takes just that.
func TestReplicaSize(t *testing.T) {
	if size := unsafe.Sizeof(replica{}); size > 512 {
		t.Errorf("a replica takes %d bytes", size)
	}
}
