package scheduler

import (
	"context"
	"errors"
	"testing"
)

// Who stops waiting for a lane gets an error, and the lane's answer, which comes later, touches nothing of his (under the race detector).
func TestStatusGivenUp(t *testing.T) {
	nodes := startNodes(t, 1, 1)
	defer stopNodes(t, nodes)
	s := nodes[0].s
	createShards(t, nodes, 1)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		s.laneOf(1).box.putCall(func(*Lane) { <-ctx.Done() })
		go cancel()
		if st, err := s.Status(ctx, 1); err != nil && (!errors.Is(err, context.Canceled) || st.Shard != 0) {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if st, err := s.Status(t.Context(), 1); err != nil || st.Shard != 1 {
		t.Errorf("%+v, %v", st, err)
	}
}
