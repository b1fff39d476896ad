package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// OpenLog opens the same log again each time: the first call makes it, a later one follows a Close.
type OpenLog func(t testing.TB, opt raftlog.Options) (*raftlog.Log, *raftlog.Recovery)

// TestLog checks what the raft log must do on any file system. fresh returns an OpenLog over a log of its own.
func TestLog(t *testing.T, fresh func(t testing.TB) OpenLog) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open OpenLog)
	}{
		{"Empty", logEmpty},
		{"Reopen", logReopen},
		{"Batches", logBatches},
		{"Ranges", logRanges},
		{"Eviction", logEviction},
		{"Specials", logSpecials},
		{"BigBatch", logBigBatch},
		{"IdleReplicas", logIdleReplicas},
		{"RecycleSteady", logRecycleSteady},
		{"ColdReadOfFreed", logColdReadOfFreed},
		{"Random", logRandom},
		{"Closed", logClosed},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, fresh(t)) })
	}
}

const logSegmentBytes = 16 << 10

func mustLog(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func flushLog(t testing.TB, log *raftlog.Log, lanes ...*raftlog.Lane) {
	t.Helper()
	for _, a := range lanes {
		a.Submit()
	}
	for {
		done, err := log.Flush()
		mustLog(t, err)
		if len(done) == 0 {
			break
		}
		for _, c := range done {
			log.Lane(c.Lane).Flushed(c)
		}
	}
	mustLog(t, log.Maintain())
}

func logRun(term, first uint64, payloads ...string) raftlog.Run {
	run := raftlog.Run{Term: term, First: first, Count: len(payloads)}
	for _, p := range payloads {
		run.Body = raftlog.AppendEntry(run.Body, engine.EntryNormal, []byte(p))
	}
	return run
}

var logKey = raftlog.Key{Shard: 7, Replica: 3}

// logBorn makes a replica with n entries of term 2, one per run, from index 2 on.
func logBorn(a *raftlog.Lane, n, size int) {
	a.Init(logKey, engine.Vote{Term: 2}, engine.LogID{Term: 1, Index: 1})
	for i := range n {
		a.Append(logKey, logRun(2, uint64(i+2), string(bytes.Repeat([]byte{byte(i)}, size))))
	}
}

func logEmpty(t *testing.T, open OpenLog) {
	for range 4 {
		log, rec := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
		if len(rec.Replicas) != 0 || rec.LastSequence != 0 {
			t.Fatalf("an empty log has %d replicas, sequence %d", len(rec.Replicas), rec.LastSequence)
		}
		if done, err := log.Flush(); len(done) != 0 || err != nil {
			t.Fatal(done, err)
		}
		if log.Lane(0).Submit() != 0 {
			t.Fatal("an empty batch has a number")
		}
		mustLog(t, log.Seal())
		if _, active := log.Segments(); active != 1 {
			t.Fatalf("restarts without writes have used %d segments", active)
		}
		mustLog(t, log.Close())
	}
}

func logReopen(t *testing.T, open OpenLog) {
	vote := engine.Vote{Term: 3, Peer: engine.Peer{Node: 9, Replica: 8}, Committed: true}
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	a := log.Lane(0)
	logBorn(a, 5, 10)
	a.SaveVote(logKey, vote)
	a.SaveCommitted(logKey, engine.LogID{Term: 2, Index: 4})
	a.Truncate(logKey, 5)
	a.Append(logKey, logRun(3, 5, "x", "y"))
	a.Purge(logKey, engine.LogID{Term: 2, Index: 2})
	flushLog(t, log, a)
	synced := log.Synced()
	mustLog(t, log.Close())

	log, rec := open(t, raftlog.Options{SegmentBytes: logSegmentBytes, SyncedHint: synced})
	got := rec.Replicas[logKey]
	if got == nil || got.Vote != vote || got.Committed.Index != 4 || got.Purged.Index != 2 || got.Last != (engine.LogID{Term: 3, Index: 6}) {
		t.Fatalf("recovered %+v", got)
	}
	if want := []engine.TermRun{{Term: 2, First: 3, Last: 4}, {Term: 3, First: 5, Last: 6}}; !slices.Equal(got.Runs, want) {
		t.Fatalf("recovered runs %v", got.Runs)
	}
	a = log.Lane(0)
	a.Adopt(logKey)
	if st := a.Stats(logKey); st.First != 3 || st.Last.Index != 6 {
		t.Fatalf("stats %+v", st)
	}
	if _, err := a.Entries(logKey, 3, 6, math.MaxInt, nil); !errors.Is(err, raftlog.ErrCold) {
		t.Fatalf("recovered entries are in the cache: %v", err)
	}
	mustLog(t, log.Close())
}

func logBatches(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	a, b := log.Lane(0), log.Lane(1)
	k := raftlog.Key{Shard: 8, Replica: 1}
	for i := range uint64(3) {
		a.SaveVote(logKey, engine.Vote{Term: i})
		if got := a.Submit(); got != i+1 {
			t.Fatalf("batch %d has number %d", i+1, got)
		}
	}
	b.SaveVote(k, engine.Vote{Term: 9})
	b.Submit()
	select {
	case <-log.Pending():
	default:
		t.Fatal("nothing is pending")
	}
	done, err := log.Flush()
	mustLog(t, err)
	if len(done) != 2 || done[0].Lane != 0 || done[0].Batch != 3 || done[1].Lane != 1 || done[1].Batch != 1 {
		t.Fatalf("completions %+v", done)
	}
	if n := log.Metrics().Syncs.Load(); n != 1 || log.Synced() != 1 {
		t.Fatalf("%d syncs for one flush, sequence %d", n, log.Synced())
	}
	mustLog(t, log.Seal())
	mustLog(t, log.Seal())
	if log.Synced() != 2 {
		t.Fatalf("two seals in a row: sequence %d", log.Synced())
	}
	mustLog(t, log.Close())
}

func logRanges(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	a := log.Lane(0)
	a.Init(logKey, engine.Vote{}, engine.LogID{Term: 1, Index: 1})
	a.Append(logKey, logRun(1, 2, "a", "b", "c", "d"))
	a.Append(logKey, logRun(2, 6, "e", "f", "g"))
	flushLog(t, log, a)
	for first := uint64(2); first <= 8; first++ {
		for last := first; last <= 8; last++ {
			for _, maxBytes := range []int{1, 6, 10, 100} {
				checkRange(t, a, first, last, maxBytes)
			}
		}
	}
	for _, first := range []uint64{0, 1, 9} {
		if _, err := a.Entries(logKey, first, 9, 100, nil); !errors.Is(err, raftlog.ErrPurged) {
			t.Fatalf("entries from %d: %v", first, err)
		}
	}
	mustLog(t, log.Close())
}

// checkRange reads a range of the entries of 3 bytes "a".."g" at 2..8.
func checkRange(t *testing.T, a *raftlog.Lane, first, last uint64, maxBytes int) {
	t.Helper()
	runs, err := a.Entries(logKey, first, last, maxBytes, nil)
	mustLog(t, err)
	next := first
	for _, run := range runs {
		if run.First != next {
			t.Fatalf("%d..%d in %d bytes: run at %d", first, last, maxBytes, run.First)
		}
		for it := raftlog.NewIter(run.Body); it.Next(); next++ {
			if it.Payload[0] != byte('a'+next-2) {
				t.Fatalf("%d..%d in %d bytes: entry %d is %q", first, last, maxBytes, next, it.Payload)
			}
		}
		if run.Last() != next-1 {
			t.Fatalf("run of %d..%d has entries up to %d", run.First, run.Last(), next-1)
		}
	}
	if want := min(last-first+1, max(1, uint64(maxBytes/3))); next-first != want {
		t.Fatalf("%d..%d in %d bytes: %d entries instead of %d", first, last, maxBytes, next-first, want)
	}
}

func logEviction(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes, CacheBytes: 2000})
	a := log.Lane(0)
	logBorn(a, 20, 500)
	if _, err := a.Entries(logKey, 2, 21, math.MaxInt, nil); err != nil {
		t.Fatalf("bodies that are not flushed were evicted: %v", err)
	}
	flushLog(t, log, a)
	if _, err := a.Entries(logKey, 2, 3, math.MaxInt, nil); !errors.Is(err, raftlog.ErrCold) {
		t.Fatalf("the cache is not bounded: %v", err)
	}
	if _, err := a.Entries(logKey, 21, 21, math.MaxInt, nil); err != nil {
		t.Fatalf("the newest entry is cold: %v", err)
	}
	c, err := a.Locate(logKey, 3, 10, math.MaxInt)
	mustLog(t, err)
	runs, err := c.Read()
	mustLog(t, err)
	if len(runs) != 8 || runs[0].First != 3 || runs[7].First != 10 || runs[7].Body[10] != 8 {
		t.Fatalf("cold read gave %d runs", len(runs))
	}
	mustLog(t, log.Close())
}

func logSpecials(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	a := log.Lane(0)
	logBorn(a, 2, 10)
	run := raftlog.Run{Term: 4, First: 4, Count: 3, Special: true}
	run.Body = raftlog.AppendEntry(run.Body, engine.EntryBlank, nil)
	run.Body = raftlog.AppendEntry(run.Body, engine.EntryNormal, []byte("n"))
	run.Body = raftlog.AppendEntry(run.Body, engine.EntryMembership, []byte("m"))
	a.Append(logKey, run)
	flushLog(t, log, a)
	mustLog(t, log.Close())
	log, rec := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	got, err := rec.Replicas[logKey].Specials()
	mustLog(t, err)
	if len(got) != 2 || got[0].LogID != (engine.LogID{Term: 4, Index: 4}) || got[0].Kind != engine.EntryBlank ||
		got[1].LogID.Index != 6 || got[1].Kind != engine.EntryMembership || string(got[1].Payload) != "m" {
		t.Fatalf("specials %+v", got)
	}
	mustLog(t, log.Close())
}

func logBigBatch(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	a, b := log.Lane(0), log.Lane(1)
	big := string(bytes.Repeat([]byte("big"), 3*logSegmentBytes))
	logBorn(a, 1, 10)
	a.Append(logKey, logRun(2, 3, big))
	b.SaveVote(raftlog.Key{Shard: 1, Replica: 1}, engine.Vote{Term: 1})
	flushLog(t, log, a, b)
	a.Append(logKey, logRun(2, 4, "after"))
	flushLog(t, log, a)
	mustLog(t, log.Close())
	log, rec := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	runs, err := rec.Replicas[logKey].Read(3, 4)
	mustLog(t, err)
	if len(runs) != 2 || len(runs[0].Body) < len(big) || len(rec.Replicas) != 2 {
		t.Fatalf("recovered %d runs, %d replicas", len(runs), len(rec.Replicas))
	}
	mustLog(t, log.Close())
}

// logIdleReplicas: thousands of idle replicas pin the oldest segment with their votes, and are rewritten in batches.
func logIdleReplicas(t *testing.T, open OpenLog) {
	const replicas = 3000
	opt := raftlog.Options{SegmentBytes: 64 << 10}
	log, _ := open(t, opt)
	a := log.Lane(0)
	for i := range uint64(replicas) {
		a.Init(raftlog.Key{Shard: engine.ShardID(i), Replica: 1}, engine.Vote{Term: i}, engine.LogID{Term: 1, Index: 1})
	}
	flushLog(t, log, a)
	for round := range 100 {
		for i := range 4 {
			k := raftlog.Key{Shard: engine.ShardID(i), Replica: 1}
			a.Append(k, logRun(1, uint64(round+2), string(make([]byte, 4000))))
			a.Purge(k, engine.LogID{Term: 1, Index: uint64(round + 2)})
		}
		flushLog(t, log, a)
		if oldest, active := log.Segments(); active-oldest > 3 {
			for _, k := range a.Pinned(nil, 10000) {
				mustLog(t, a.Rewrite(k, nil))
			}
			flushLog(t, log, a)
			a.Pinned(nil, 0)
			flushLog(t, log, a)
		}
	}
	if oldest, active := log.Segments(); oldest < 4 || active-oldest > 4 {
		t.Fatalf("segments %d to %d: idle replicas hold the log", oldest, active)
	}
	mustLog(t, log.Close())
	log, rec := open(t, opt)
	for i := range uint64(replicas) {
		r := rec.Replicas[raftlog.Key{Shard: engine.ShardID(i), Replica: 1}]
		if r == nil || r.Vote.Term != i || r.Purged.Index == 0 {
			t.Fatalf("replica %d recovered as %+v", i, r)
		}
	}
	mustLog(t, log.Close())
}

// logRecycleSteady: a log whose replicas move on frees its segments by itself.
func logRecycleSteady(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	a := log.Lane(0)
	logBorn(a, 0, 0)
	for i := uint64(2); i < 200; i++ {
		a.Append(logKey, logRun(2, i, string(make([]byte, 1000))))
		a.SaveVote(logKey, engine.Vote{Term: 2})
		a.SaveCommitted(logKey, engine.LogID{Term: 2, Index: i - 1})
		if i > 5 {
			a.Purge(logKey, engine.LogID{Term: 2, Index: i - 4})
		}
		flushLog(t, log, a)
		if oldest, active := log.Segments(); active-oldest > 3 {
			t.Fatalf("entry %d: segments %d to %d are kept", i, oldest, active)
		}
	}
	if log.Metrics().SegmentsFreed.Load() < 10 {
		t.Fatal("no segments were freed")
	}
	mustLog(t, log.Close())
	log, rec := open(t, raftlog.Options{SegmentBytes: logSegmentBytes})
	if r := rec.Replicas[logKey]; r.Last.Index != 199 || r.Purged.Index != 195 {
		t.Fatalf("recovered %+v", r)
	}
	mustLog(t, log.Close())
}

func logColdReadOfFreed(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes, CacheBytes: 1})
	a := log.Lane(0)
	logBorn(a, 3, 1000)
	flushLog(t, log, a)
	c, err := a.Locate(logKey, 2, 2, 1)
	mustLog(t, err)
	_, err = c.Read()
	mustLog(t, err)
	for i := uint64(5); i < 60; i++ {
		a.Append(logKey, logRun(2, i, string(make([]byte, 1000))))
		a.SaveVote(logKey, engine.Vote{Term: 2})
		a.SaveCommitted(logKey, engine.LogID{Term: 2, Index: i - 1})
		a.Purge(logKey, engine.LogID{Term: 2, Index: i - 1})
		flushLog(t, log, a)
	}
	if _, err := c.Read(); !errors.Is(err, raftlog.ErrMoved) {
		t.Fatalf("read of a freed segment: %v", err)
	}
	if _, err := a.Locate(logKey, 2, 2, 1); !errors.Is(err, raftlog.ErrPurged) {
		t.Fatalf("locate of purged entries: %v", err)
	}
	mustLog(t, log.Close())
}

func logRandom(t *testing.T, open OpenLog) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	d := NewLogDriver(rand.New(rand.NewPCG(seed, 0)), 3)
	for life := range 4 {
		log, rec := open(t, raftlog.Options{SegmentBytes: logSegmentBytes, CacheBytes: 4 << 10})
		if err := d.Attach(log, rec); err != nil {
			t.Fatalf("seed %d, life %d: %v", seed, life, err)
		}
		for i := range 300 {
			if err := d.Step(); err != nil {
				t.Fatalf("seed %d, life %d, step %d: %v", seed, life, i, err)
			}
			if i%20 == 0 {
				if err := d.CheckReads(); err != nil {
					t.Fatalf("seed %d, life %d, step %d: %v", seed, life, i, err)
				}
			}
		}
		mustLog(t, d.Flush())
		mustLog(t, log.Close())
	}
}

func logClosed(t *testing.T, open OpenLog) {
	log, _ := open(t, raftlog.Options{SegmentBytes: logSegmentBytes, Background: true})
	mustLog(t, log.Close())
	mustLog(t, log.Close())
	for i, err := range []error{log.Seal(), log.Maintain(), func() error { _, err := log.Flush(); return err }()} {
		if !errors.Is(err, raftlog.ErrClosed) {
			t.Fatal(fmt.Sprint("call ", i, " after Close: ", err))
		}
	}
}
