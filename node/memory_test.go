package node

import "testing"

// Memory is given back once each time that the node comes to rest, not in a pause, and not under load.
func TestGiveBackOnce(t *testing.T) {
	var m memory
	events, times := uint64(0), 0
	run := func(samples int, each uint64) {
		for range samples {
			if events += each; m.giveBack(events) {
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
	run(1, 1000)
	run(100, restEvents)
	if times != 2 {
		t.Fatalf("given back %d times after two loads", times)
	}
}
