package raftlog_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// nullFS is a disk that does nothing, to see the cost of the log alone. Files are those of fs.
func nullFS(fs vfs.FS) vfs.FS { return nulled{fs} }

type nulled struct{ vfs.FS }
type nulledFile struct{ vfs.File }

func (n nulled) Create(name string) (vfs.File, error) {
	f, err := n.FS.Create(name)
	return nulledFile{f}, err
}
func (nulledFile) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (nulledFile) Append(p []byte, _ int64) (int, error)  { return len(p), nil }
func (nulledFile) Allocate(int64) error                   { return nil }
func (nulledFile) Datasync() error                        { return nil }

// hotLog is a log with replicas that append runs of 64 entries, one run each per flush.
type hotLog struct {
	log  *raftlog.Log
	lane *raftlog.Lane
	keys []raftlog.Key
	next uint64
	body []byte
}

const hotEntries = 64

func newHotLog(tb testing.TB, fs vfs.FS, dir string, replicas int) *hotLog {
	l, _, err := raftlog.Open(fs, dir, raftlog.Options{CacheBytes: 4 << 20})
	if err != nil {
		tb.Fatal(err)
	}
	h := &hotLog{log: l, lane: l.Lane(0), next: 2}
	for range hotEntries {
		h.body = raftlog.AppendEntry(h.body, engine.EntryNormal, make([]byte, 128))
	}
	for i := range replicas {
		k := raftlog.Key{Shard: engine.ShardID(i + 1), Replica: 1}
		h.lane.Init(k, engine.Vote{}, engine.LogID{Term: 1, Index: 1})
		h.keys = append(h.keys, k)
	}
	return h
}

func (h *hotLog) turn(tb testing.TB) {
	for _, k := range h.keys {
		h.lane.Append(k, raftlog.Run{Term: 1, First: h.next, Count: hotEntries, Body: h.body})
		h.lane.SaveCommitted(k, engine.LogID{Term: 1, Index: h.next - 1})
		h.lane.Purge(k, engine.LogID{Term: 1, Index: h.next - 1})
	}
	h.next += hotEntries
	h.lane.Submit()
	done, err := h.log.Flush()
	if err != nil {
		tb.Fatal(err)
	}
	h.lane.Flushed(done[0])
	if err := h.log.Maintain(); err != nil {
		tb.Fatal(err)
	}
}

// TestHotPathAllocations: what a flush allocates does not depend on how many entries and replicas are in it.
func TestHotPathAllocations(t *testing.T) {
	for _, replicas := range []int{1, 100} {
		h := newHotLog(t, nullFS(vfs.NewMem()), "log", replicas)
		for range 50 {
			h.turn(t)
		}
		if n := testing.AllocsPerRun(100, func() { h.turn(t) }); n > 3 {
			t.Errorf("%d replicas × %d entries: %v allocations per flush", replicas, hotEntries, n)
		}
	}
}

// TestIdleReplicaIsSmall: tens of thousands of idle replicas must not matter.
func TestIdleReplicaIsSmall(t *testing.T) {
	const replicas = 20000
	l, _, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	a := l.Lane(0)
	before := heap()
	for i := range uint64(replicas) {
		a.Init(raftlog.Key{Shard: engine.ShardID(i + 1), Replica: 1}, engine.Vote{Term: 1}, engine.LogID{Term: 1, Index: 1})
		if i%1000 == 0 {
			a.Submit()
			done, err := l.Flush()
			if err != nil {
				t.Fatal(err)
			}
			a.Flushed(done[0])
		}
	}
	if per := (heap() - before) / replicas; per > 400 {
		t.Errorf("an idle replica takes %d bytes", per)
	} else {
		t.Logf("an idle replica takes %d bytes", per)
	}
	runtime.KeepAlive(l)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkFlush(b *testing.B) {
	for _, disk := range []string{"null", "os"} {
		for _, replicas := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("disk=%s/replicas=%d", disk, replicas), func(b *testing.B) {
				fs := vfs.OS()
				if disk == "null" {
					fs = nullFS(fs)
				}
				h := newHotLog(b, fs, b.TempDir(), replicas)
				b.ReportAllocs()
				for b.Loop() {
					h.turn(b)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*replicas*hotEntries), "ns/entry")
				if err := h.log.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
