package raftlog_test

import (
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// appendEntries appends entries of size bytes to the log of k, which has none, one frame each.
func appendEntries(t *testing.T, l *raftlog.Log, k raftlog.Key, entries, size int) {
	t.Helper()
	a := l.Lane(0)
	for i := range uint64(entries) {
		a.Append(k, raftlog.Run{Term: 1, First: i + 1, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, size))})
		flushLane(t, l, a)
	}
}

// flushLane writes what was added to a, and maintains the log. Only ErrNoSpace may come of that.
func flushLane(t *testing.T, l *raftlog.Log, a *raftlog.Lane) {
	t.Helper()
	a.Submit()
	done, err := l.Flush()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range done {
		a.Flushed(c)
	}
	if err := l.Maintain(); err != nil && !errors.Is(err, raftlog.ErrNoSpace) {
		t.Fatal(err)
	}
}

// TestRewriteOverSegments: a replica with more than a segment is rewritten, in one frame of a segment of its own, once that is allocated; and
// the segments before go.
func TestRewriteOverSegments(t *testing.T) {
	l, mem, _ := faulty(t, vfs.OpAllocate, false)
	k := raftlog.Key{Shard: 5, Replica: 1}
	a := l.Lane(0)
	appendEntries(t, l, k, 9, segmentBytes/4)
	if err := a.Rewrite(k, nil); !errors.Is(err, raftlog.ErrNoSpace) {
		t.Fatalf("it is rewritten before there is room for it: %v", err)
	}
	select {
	case <-l.Pending():
	default:
		t.Fatal("nobody is told to make room")
	}
	if err := l.Maintain(); err != nil {
		t.Fatal(err)
	}
	if err := a.Rewrite(k, nil); err != nil {
		t.Fatal(err)
	}
	flushLane(t, l, a)
	for range 2 {
		a.Pinned(nil, 0)
		a.SaveVote(k, engine.Vote{Term: 7})
		flushLane(t, l, a)
	}
	if oldest, active := l.Segments(); active-oldest > 1 {
		t.Fatalf("segments %d to %d", oldest, active)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rec, err := reopen(mem, 0)
	if err != nil || rec.Replicas[k].Last.Index != 9 || rec.Replicas[k].Purged.Index != 0 || rec.Replicas[k].Vote.Term != 7 {
		t.Fatalf("recovered %+v, %v", rec.Replicas[k], err)
	}
}

// TestRewriteLeavesRoom: while there is no space a rewrite, big or small and on whatever lane, leaves a part of the last segment to what
// may free some: a batch that does not fit would be in the way of all others.
func TestRewriteLeavesRoom(t *testing.T) {
	l, _, fail := faulty(t, vfs.OpAllocate, false)
	const replicas = 12
	a, b := l.Lane(0), l.Lane(1)
	for i := range uint64(replicas) {
		lane := a
		if i%2 == 1 {
			lane = b
		}
		lane.Append(raftlog.Key{Shard: engine.ShardID(i), Replica: 1},
			raftlog.Run{Term: 1, First: 1, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, segmentBytes/20))})
	}
	flushLane2 := func() error {
		a.Submit()
		b.Submit()
		done, err := l.Flush()
		for _, c := range done {
			l.Lane(c.Lane).Flushed(c)
		}
		return err
	}
	if err := flushLane2(); err != nil {
		t.Fatal(err)
	}
	if err := l.Maintain(); err != nil { // the second segment
		t.Fatal(err)
	}
	*fail = unix.ENOSPC
	for i := range 3 { // past half of it
		a.SaveVote(raftlog.Key{Shard: 99, Replica: 1}, engine.Vote{Term: uint64(i)})
		a.Append(raftlog.Key{Shard: 99, Replica: 1}, raftlog.Run{Term: 1, First: uint64(i) + 1, Count: 1,
			Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, segmentBytes/6))})
		if err := flushLane2(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Maintain(); !errors.Is(err, raftlog.ErrNoSpace) || !l.Metrics().OutOfSpace.Load() {
		t.Fatalf("there is space: %v", err)
	}
	rewritten, refused := 0, 0
	for i := range uint64(replicas) {
		lane := a
		if i%2 == 1 {
			lane = b
		}
		switch err := lane.Rewrite(raftlog.Key{Shard: engine.ShardID(i), Replica: 1}, nil); {
		case err == nil:
			rewritten++
		case errors.Is(err, raftlog.ErrNoSpace):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if rewritten == 0 || refused == 0 {
		t.Fatalf("%d were rewritten, %d refused", rewritten, refused)
	}
	if err := flushLane2(); err != nil {
		t.Fatalf("%d rewrites: %v", rewritten, err)
	}
	a.SaveVote(raftlog.Key{Shard: 99, Replica: 1}, engine.Vote{Term: 8})
	if err := flushLane2(); err != nil {
		t.Fatalf("a vote behind %d rewrites: %v", rewritten, err)
	}
}

// TestBigRewriteWithoutSpace: that there is no space for a big rewrite refuses nothing else, and the log goes on.
func TestBigRewriteWithoutSpace(t *testing.T) {
	l, _, fail := faulty(t, vfs.OpAllocate, false)
	k := raftlog.Key{Shard: 5, Replica: 1}
	a := l.Lane(0)
	appendEntries(t, l, k, 9, segmentBytes/4)
	*fail = unix.ENOSPC
	for range 3 {
		if err := a.Rewrite(k, nil); !errors.Is(err, raftlog.ErrNoSpace) {
			t.Fatalf("it is rewritten, and there is no room for it: %v", err)
		}
		a.SaveVote(k, engine.Vote{Term: 7})
		flushLane(t, l, a)
	}
	if l.Metrics().OutOfSpace.Load() {
		t.Fatal("writes are refused although a segment is ready")
	}
}
