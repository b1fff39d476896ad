package raftlog_test

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// TestNear: who says where a replica's index is gets what who does not say it gets, also when the replica was dropped, when it was made again, and
// when the call is about another one.
func TestNear(t *testing.T) {
	l, _, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	a := l.Lane(0)
	one, two := raftlog.Key{Shard: 1, Replica: 1}, raftlog.Key{Shard: 2, Replica: 1}
	var at1, at2 raftlog.Index
	want := func(k raftlog.Key, first, last uint64) {
		t.Helper()
		for _, near := range []func(){
			func() { a.Near(&at1, one) },
			func() { a.Near(&at2, two) },
			func() {},
		} {
			near()
			if s := a.Stats(k); s.First != first || s.Last.Index != last {
				t.Fatalf("%v: %+v, want %d to %d", k, s, first, last)
			}
		}
	}
	add := func(k raftlog.Key, index uint64) {
		body := raftlog.AppendEntry(nil, engine.EntryNormal, []byte("x"))
		a.Append(k, raftlog.Run{Term: 1, First: index, Count: 1, Body: body})
	}
	want(one, 1, 0)
	want(two, 1, 0)
	for _, k := range []raftlog.Key{one, two} {
		a.Init(k, engine.Vote{}, engine.LogID{Term: 1, Index: uint64(k.Shard)})
	}
	want(one, 2, 1)
	want(two, 3, 2)
	a.Near(&at1, one)
	add(two, 3)
	add(one, 2)
	a.Near(&at2, two)
	add(one, 3)
	want(one, 2, 3)
	want(two, 3, 3)
	a.Near(&at1, one)
	a.Drop(one)
	want(one, 1, 0)
	want(two, 3, 3)
	a.Near(&at1, one)
	a.Init(one, engine.Vote{}, engine.LogID{Term: 1, Index: 7})
	a.Near(&at1, one)
	add(one, 8)
	want(one, 8, 8)
	want(two, 3, 3)
}
