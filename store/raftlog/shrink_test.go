package raftlog_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// TestShrink: what a lane has shrunk from memory is read from the segments; what is on no disk yet stays, and it goes on as before.
func TestShrink(t *testing.T) {
	l, _, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	a, k := l.Lane(0), raftlog.Key{Shard: 1, Replica: 1}
	a.Init(k, engine.Vote{}, engine.LogID{Term: 1, Index: 1})
	body := func(i uint64) []byte {
		return raftlog.AppendEntry(nil, engine.EntryNormal, bytes.Repeat([]byte{byte(i)}, 2000))
	}
	next := uint64(2)
	add := func(n int) {
		for range n {
			a.Append(k, raftlog.Run{Term: 1, First: next, Count: 1, Body: body(next)})
			next++
		}
		a.Submit()
	}
	flush := func() {
		done, err := l.Flush()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range done {
			a.Flushed(c)
		}
	}
	check := func(first, last uint64, cold bool) {
		t.Helper()
		runs, err := a.Entries(k, first, last, 16<<20, nil)
		if cold != errors.Is(err, raftlog.ErrCold) {
			t.Fatalf("entries %d to %d: %d runs, %v", first, last, len(runs), err)
		}
		if cold {
			read, err := a.Locate(k, first, last, 16<<20)
			if err != nil {
				t.Fatal(err)
			}
			if runs, err = read.Read(); err != nil {
				t.Fatal(err)
			}
		}
		for i := first; i <= last; i++ {
			if run := runs[i-first]; run.First != i || !bytes.Equal(run.Body, body(i)) {
				t.Fatalf("entry %d is in %+v", i, run)
			}
		}
	}
	add(300)
	flush()
	add(100) // not flushed
	a.Shrink()
	check(2, 301, true)
	check(302, 401, false)
	flush()
	add(500)
	check(302, 901, false)
	a.Shrink()
	check(2, 401, true)
	check(402, 901, false)
	flush()
	a.Shrink()
	check(2, 901, true)
	before := int64(heap())
	add(3000)
	flush()
	full := int64(heap()) - before
	a.Shrink()
	if kept := int64(heap()) - before; kept > full/10 {
		t.Errorf("%d bytes of %d are kept", kept, full)
	}
}
