package node

import (
	"runtime/debug"
	"testing"
)

// Memory is given back once each time that the node comes to rest, not in a pause, and not under load; and at rest when the heap has grown.
func TestGiveBack(t *testing.T) {
	var m memory
	events, heap, times := uint64(0), uint64(80<<20), 0
	run := func(samples int, each uint64) {
		for range samples {
			if events += each; m.giveBack(events, heap) {
				times++
			}
		}
	}
	run(10, 1000)
	run(restSamples-1, 3)
	run(10, 1000)
	if times != 0 {
		t.Fatalf("given back %d times under load", times)
	}
	run(100, 3)
	if times != 1 {
		t.Fatalf("given back %d times at rest", times)
	}
	heap += 10<<20 + restGrowth
	run(100, 3)
	if times != 1 {
		t.Fatalf("given back %d times after the heap has grown by an eighth and %d bytes", times, restGrowth)
	}
	heap++
	run(1, 3)
	if times != 2 {
		t.Fatalf("given back %d times after it has grown by one byte more", times)
	}
	run(100, 3) // what it has now is the floor
	if times != 2 {
		t.Fatalf("given back %d times where collecting does not help", times)
	}
	run(1, 1000)
	run(100, restEvents)
	if times != 3 {
		t.Fatalf("given back %d times after two loads", times)
	}
}

var ballast []byte

// What the heap has of the system's memory counts garbage and free memory, until it is given back.
func TestHeapBytes(t *testing.T) {
	const size = 64 << 20
	debug.FreeOSMemory()
	before := heapBytes()
	ballast = make([]byte, size)
	if got := heapBytes(); got < before+size/2 {
		t.Errorf("%d bytes before, %d with %d more", before, got, size)
	}
	ballast = nil
	if got := heapBytes(); got < before+size/2 {
		t.Errorf("%d bytes before, %d with %d bytes of garbage", before, got, size)
	}
	debug.FreeOSMemory()
	if got := heapBytes(); got > before+size/2 {
		t.Errorf("%d bytes before, %d after giving back", before, got)
	}
}
