package raftlog

import (
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

func TestSmoke(t *testing.T) {
	for _, fs := range []vfs.FS{vfs.NewMem(), vfs.OS()} {
		dir := t.TempDir()
		for life := range 5 {
			l, rec, err := Open(fs, dir, Options{SegmentBytes: 16384})
			if err != nil {
				t.Fatal(err)
			}
			k := Key{Shard: 1, Replica: 2}
			a := l.Lane(0)
			next := uint64(2)
			if life == 0 {
				a.Init(k, engine.Vote{Term: 1}, engine.LogID{Term: 1, Index: 1})
			} else {
				a.Adopt(k)
				next = rec.Replicas[k].Last.Index + 1
				if next != uint64(2+20*life) {
					t.Fatal(next, life)
				}
				runs, err := rec.Replicas[k].Read(2, next-1)
				if err != nil || len(runs) != 20*life {
					t.Fatal(len(runs), err)
				}
			}
			for range 20 {
				body := AppendEntry(nil, engine.EntryNormal, make([]byte, 500))
				a.Append(k, Run{Term: 1, First: next, Count: 1, Body: body})
				next++
				a.Submit()
				done, err := l.Flush()
				if err != nil {
					t.Fatal(err)
				}
				a.Flushed(done[0])
				if err := l.Maintain(); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := Verify(fs, dir, 0)
			if err != nil || r.Entries != uint64(20*(life+1)) {
				t.Fatal(r, err)
			}
		}
	}
}
