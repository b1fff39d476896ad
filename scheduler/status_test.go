package scheduler

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
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

// A turn or a sync that does not end is seen from outside.
func TestStuck(t *testing.T) {
	nodes := startNodes(t, 1, 1)
	defer stopNodes(t, nodes)
	s := nodes[0].s
	release, inside := make(chan struct{}), make(chan struct{})
	s.laneOf(1).box.putCall(func(*Lane) { close(inside); <-release })
	<-inside
	for s.Stuck(time.Millisecond) == nil {
		runtime.Gosched()
	}
	if err := s.Stuck(time.Hour); err != nil {
		t.Error(err)
	}
	close(release)
	for s.Stuck(time.Millisecond) != nil {
		runtime.Gosched()
	}
	s.writer.busy.Store(1)
	if err := s.Stuck(time.Millisecond); err == nil || !strings.Contains(err.Error(), "log writer") {
		t.Error(err)
	}
	s.writer.busy.Store(0)
}

// Statuses of a part of the shards are those shards', sorted, whatever lanes they are in.
func TestStatusesOf(t *testing.T) {
	nodes := startNodes(t, 1, 2)
	defer stopNodes(t, nodes)
	const shards = 20
	createShards(t, nodes, shards)
	for _, c := range []struct{ first, last, limit, from, to int }{
		{0, 1 << 40, 0, 1, 20}, {0, 1 << 40, 7, 1, 7}, {5, 1 << 40, 4, 5, 8}, {5, 9, 0, 5, 9}, {19, 30, 10, 19, 20}, {21, 30, 0, 1, 0},
	} {
		list, err := nodes[0].s.StatusesOf(t.Context(), engine.ShardID(c.first), engine.ShardID(c.last), c.limit)
		if err != nil || len(list) != c.to-c.from+1 {
			t.Fatalf("%+v: %d statuses, %v", c, len(list), err)
		}
		for i := range list {
			if list[i].Shard != engine.ShardID(c.from+i) || list[i].Descriptor == nil {
				t.Errorf("%+v: place %d has %+v", c, i, list[i])
			}
		}
	}
}

// Statuses of named shards are those of the replicas that the node has, sorted, each once.
func TestStatusesNamed(t *testing.T) {
	nodes := startNodes(t, 1, 2)
	defer stopNodes(t, nodes)
	createShards(t, nodes, 2*statusPiece+10)
	ask := []engine.ShardID{9999, 7, 2*statusPiece + 10, 7, 3}
	for id := range engine.ShardID(statusPiece) {
		ask = append(ask, id+100)
	}
	given := slices.Clone(ask)
	list, err := nodes[0].s.StatusesNamed(t.Context(), ask)
	if err != nil || len(list) != statusPiece+3 || !slices.Equal(ask, given) {
		t.Fatalf("%d statuses, %v", len(list), err)
	}
	for i, want := range map[int]engine.ShardID{0: 3, 1: 7, 2: 100, statusPiece + 1: statusPiece + 99, statusPiece + 2: 2*statusPiece + 10} {
		if list[i].Shard != want || list[i].Descriptor == nil {
			t.Errorf("place %d has shard %d, want %d", i, list[i].Shard, want)
		}
	}
}
