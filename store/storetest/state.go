package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
)

// OpenState opens the same state again each time: the first call makes it, a later one follows a Close and finds what was
// written.
type OpenState func(t testing.TB, opt state.Options) state.Store

// TestState checks what every state.Store must do. fresh returns an OpenState over a state of its own.
func TestState(t *testing.T, fresh func(t testing.TB) OpenState) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, open OpenState)
	}{
		{"Facts", stateFacts},
		{"Tablets", stateTablets},
		{"Points", statePoints},
		{"Pages", statePages},
		{"Moved", stateMoved},
		{"Records", stateRecords},
		{"Refused", stateRefused},
		{"Split", stateSplit},
		{"SplitSkipsChild", stateSplitSkipsChild},
		{"Merge", stateMerge},
		{"Garbage", stateGarbage},
		{"Failed", stateFailed},
		{"Readers", stateReaders},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, fresh(t)) })
	}
	t.Run("Snapshot", func(t *testing.T) { stateSnapshot(t, fresh(t), fresh(t)) })
	t.Run("SnapshotOfEmpty", func(t *testing.T) { stateSnapshotOfEmpty(t, fresh(t)) })
	t.Run("SnapshotMoved", func(t *testing.T) { stateSnapshotMoved(t, fresh(t)) })
	t.Run("IngestInterrupted", func(t *testing.T) { stateIngestInterrupted(t, fresh(t), fresh(t)) })
	t.Run("IngestRefuses", func(t *testing.T) { stateIngestRefuses(t, fresh(t)) })
	t.Run("Shards", func(t *testing.T) { stateShards(t, fresh(t)) })
	t.Run("Model", func(t *testing.T) { stateModel(t, fresh(t)) })
}

// The small language of these tests.

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func key(shard, replica uint64) state.Key {
	return state.Key{Shard: engine.ShardID(shard), Replica: engine.ReplicaID(replica)}
}

func bound(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func extent(start, end string, tablet state.TabletID) state.Extent {
	return state.Extent{Start: bound(start), End: bound(end), Tablet: tablet}
}

func record(k state.Key, index uint64, extents ...state.Extent) state.Record {
	return state.Record{
		Key: k, Applied: engine.LogID{Term: 1, Index: index}, Extents: extents, Meta: fmt.Appendf(nil, "meta of %v", k),
		Membership: engine.MembershipAt{
			LogID:      engine.LogID{Term: 1, Index: 1},
			Membership: &engine.Membership{Voters: [][]engine.Peer{{{Node: 1, Replica: k.Replica}}}},
		},
	}
}

func tombstone(k state.Key) state.Record { return state.Record{Key: k, Tombstone: true} }

// overlay returns a frozen overlay: key, value, key, value …; the value "-" is a deletion. Versions count from 1.
func overlay(kv ...string) *state.Overlay {
	o := state.NewOverlay(new(state.Arena))
	for i := 0; i < len(kv); i += 2 {
		if kv[i+1] == "-" {
			o.Delete([]byte(kv[i]), uint64(i/2+1))
		} else {
			o.Put([]byte(kv[i]), state.Item{Version: uint64(i/2 + 1), Value: []byte(kv[i+1])})
		}
	}
	o.Freeze()
	return o
}

func alloc(t testing.TB, s state.Store) state.TabletID {
	t.Helper()
	id, err := s.AllocTablet()
	must(t, err)
	return id
}

// create writes a record with one new tablet over [start, end).
func create(t testing.TB, s state.Store, k state.Key, start, end string, o *state.Overlay) state.Record {
	t.Helper()
	r := record(k, 1, extent(start, end, alloc(t, s)))
	must(t, s.Write([]state.Change{{Record: r, Overlay: o, NewTablet: true}}, 0))
	return r
}

func get(t testing.TB, s state.Store, r state.Record, k string) (state.Item, bool) {
	t.Helper()
	job := &state.ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied, Keys: [][]byte{[]byte(k)}}
	s.RunJob(job)
	must(t, job.Err)
	return job.Points[0].Item, job.Points[0].Found
}

func wantValue(t testing.TB, s state.Store, r state.Record, k, want string) {
	t.Helper()
	it, found := get(t, s, r, k)
	if want == "-" {
		if found {
			t.Fatalf("key %q holds %q, want nothing", k, it.Value)
		}
		return
	}
	if !found || string(it.Value) != want {
		t.Fatalf("key %q holds %q (found %v), want %q", k, it.Value, found, want)
	}
}

// scan returns all keys of the range, page by page, in the order of the scan.
func scan(t testing.TB, s state.Store, r state.Record, start, end string, limit int, reverse bool, overlays ...*state.Overlay) []state.KV {
	t.Helper()
	var all []state.KV
	job := &state.ReadJob{
		Key: r.Key, Extents: r.Extents, Applied: r.Applied, Start: bound(start), End: bound(end), Limit: limit, Reverse: reverse,
	}
	var page state.Page
	for {
		s.RunJob(job)
		must(t, job.Err)
		opt := state.MergeOptions{Start: job.Start, End: job.End, Limit: limit, Reverse: reverse}
		state.MergePage(&page, &job.Page, opt, overlays...)
		for _, kv := range page.Items {
			kv.Key, kv.Value = bytes.Clone(kv.Key), bytes.Clone(kv.Value)
			all = append(all, kv)
		}
		if !page.More {
			return all
		}
		if reverse {
			job.End = bytes.Clone(page.CompleteTo)
		} else {
			job.Start = bytes.Clone(page.CompleteTo)
		}
	}
}

func keysOf(kvs []state.KV) string {
	var b []byte
	for i, kv := range kvs {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(b, kv.Key...)
	}
	return string(b)
}

func wantKeys(t testing.TB, kvs []state.KV, want string) {
	t.Helper()
	if got := keysOf(kvs); got != want {
		t.Fatalf("got keys %q, want %q", got, want)
	}
}

func collect(t testing.TB, s state.Store) {
	t.Helper()
	for range 10000 {
		more, err := s.CollectGarbage(3)
		must(t, err)
		if !more {
			return
		}
	}
	t.Fatal("garbage is never collected")
}

func reopen(t testing.TB, s state.Store, open OpenState) state.Store {
	t.Helper()
	must(t, s.Close())
	return open(t, state.Options{})
}

// The cases.

func stateFacts(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	if v, err := s.NodeGet("identity"); v != nil || err != nil {
		t.Fatalf("a fact that was never put: %q, %v", v, err)
	}
	must(t, s.NodePut("identity", []byte("abc")))
	must(t, s.NodePut("empty", nil))
	must(t, s.Write(nil, 7))
	must(t, s.Write(nil, 5))
	s = reopen(t, s, open)
	defer s.Close()
	v, err := s.NodeGet("identity")
	must(t, err)
	if string(v) != "abc" {
		t.Fatalf("fact is %q", v)
	}
	if v, err := s.NodeGet("empty"); err != nil || v == nil || len(v) != 0 {
		t.Fatalf("empty fact is %v, %v", v, err)
	}
	seq, err := s.SyncedSeq()
	must(t, err)
	if seq != 7 {
		t.Fatalf("synced sequence is %d, want 7", seq)
	}
}

func stateTablets(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	seen := map[state.TabletID]bool{0: true}
	for range 3 {
		for range 5 {
			id := alloc(t, s)
			if seen[id] {
				t.Fatalf("tablet id %d was given twice", id)
			}
			seen[id] = true
		}
		s = reopen(t, s, open)
	}
	must(t, s.Close())
}

func statePoints(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	r := create(t, s, key(1, 1), "", "", overlay("a", "1", "b", "", "c", "3", "d", "-"))
	r.Applied.Index = 9
	o := state.NewOverlay(new(state.Arena))
	o.Put([]byte("c"), state.Item{Version: 8, Expire: 1234, Value: []byte("x")})
	o.Delete([]byte("a"), 9)
	o.Freeze()
	must(t, s.Write([]state.Change{{Record: r, Overlay: o}}, 0))
	for range 2 {
		wantValue(t, s, r, "a", "-")
		wantValue(t, s, r, "b", "")
		wantValue(t, s, r, "d", "-")
		it, _ := get(t, s, r, "c")
		if it.Version != 8 || it.Expire != 1234 || string(it.Value) != "x" {
			t.Fatalf("item is %+v", it)
		}
		s = reopen(t, s, open)
	}
	must(t, s.Close())
}

func statePages(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	defer s.Close()
	// Two shards side by side, merged into one with two extents.
	l := create(t, s, key(1, 1), "", "m", overlay("a", "1", "b", "1", "l", "1"))
	r := create(t, s, key(2, 1), "m", "", overlay("m", "1", "n", "1", "z", "1"))
	both := l
	both.Applied.Index = 2
	both.Extents = append(slices.Clone(l.Extents), r.Extents...)
	must(t, s.Write([]state.Change{{Record: both}, {Record: tombstone(r.Key)}}, 0))
	live, frozen := overlay("a", "-", "c", "2", "zz", "2"), overlay("c", "1", "m", "-", "k", "1")
	for _, limit := range []int{0, 1, 2, 3, 100} {
		wantKeys(t, scan(t, s, both, "", "", limit, false), "a b l m n z")
		wantKeys(t, scan(t, s, both, "", "", limit, true), "z n m l b a")
		wantKeys(t, scan(t, s, both, "b", "n", limit, false), "b l m")
		wantKeys(t, scan(t, s, both, "b", "n", limit, true), "m l b")
		wantKeys(t, scan(t, s, both, "x", "y", limit, true), "")
		wantKeys(t, scan(t, s, both, "", "", limit, false, live, frozen), "b c k l n z zz")
		wantKeys(t, scan(t, s, both, "", "", limit, true, live, frozen), "zz z n l k c b")
		wantKeys(t, scan(t, s, both, "b\x00", "z", limit, true, live, nil, frozen), "n l k c")
	}
	got := scan(t, s, both, "c", "d", 0, false, live, frozen)
	if len(got) != 1 || string(got[0].Value) != "2" {
		t.Fatalf("the newest overlay does not win: %+v", got)
	}
	job := &state.ReadJob{Key: both.Key, Extents: both.Extents, Applied: both.Applied, Bytes: 1}
	s.RunJob(job)
	if job.Err != nil || len(job.Page.Items) != 1 || !job.Page.More || string(job.Page.CompleteTo) != "a\x00" {
		t.Fatalf("page bounded by bytes: %+v, %v", job.Page, job.Err)
	}
}

func stateMoved(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	defer s.Close()
	r := create(t, s, key(1, 3), "b", "y", overlay("c", "1"))
	for name, change := range map[string]func(*state.ReadJob){
		"replica": func(j *state.ReadJob) { j.Key.Replica = 4 },
		"shard":   func(j *state.ReadJob) { j.Key.Shard = 2 },
		"index":   func(j *state.ReadJob) { j.Applied.Index++ },
		"term":    func(j *state.ReadJob) { j.Applied.Term++ },
		"tablet":  func(j *state.ReadJob) { j.Extents = []state.Extent{extent("b", "y", 999)} },
		"end":     func(j *state.ReadJob) { j.Extents = []state.Extent{extent("b", "x", r.Extents[0].Tablet)} },
		"none":    func(j *state.ReadJob) { j.Extents = nil },
	} {
		job := &state.ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied, Keys: [][]byte{[]byte("c")}}
		change(job)
		if s.RunJob(job); !errors.Is(job.Err, state.ErrMoved) {
			t.Errorf("%s differs: got error %v, want ErrMoved (rule State1)", name, job.Err)
		}
	}
	must(t, s.Write([]state.Change{{Record: tombstone(r.Key)}}, 0))
	job := &state.ReadJob{Key: r.Key, Applied: engine.LogID{}, Keys: [][]byte{[]byte("c")}}
	s.RunJob(job)
	wantErr(t, job.Err, state.ErrMoved)
}

func stateRecords(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	r := record(key(5, 6), 77, extent("a", "b", alloc(t, s)))
	r.Previous = r.Membership
	r.Membership = engine.MembershipAt{
		LogID: engine.LogID{Term: 3, Index: 70},
		Membership: &engine.Membership{
			Voters:   [][]engine.Peer{{{Node: 1, Replica: 2}, {Node: 3, Replica: 4}}, {{Node: 5, Replica: 6}}},
			Learners: []engine.Peer{{Node: 7, Replica: 8}},
		},
	}
	r.Meta = bytes.Repeat([]byte("m"), 20000)
	must(t, s.Write([]state.Change{{Record: r, NewTablet: true}, {Record: tombstone(key(5, 2))}}, 0))
	s = reopen(t, s, open)
	defer s.Close()
	got, err := s.Records()
	must(t, err)
	if len(got) != 2 || !got[0].Tombstone || got[0].Key != key(5, 2) {
		t.Fatalf("got %d records: %+v", len(got), got)
	}
	if a, b := fmt.Sprintf("%+v", dump(got[1])), fmt.Sprintf("%+v", dump(r)); a != b {
		t.Fatalf("record is\n%s\nwant\n%s", a, b)
	}
}

// dump makes a record comparable as text.
func dump(r state.Record) any {
	return []any{r.Key, r.Applied, r.Extents, r.Tombstone, string(r.Meta), r.Membership.LogID, *r.Membership.Membership,
		r.Previous.LogID, *r.Previous.Membership}
}

func stateRefused(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	r := create(t, s, key(1, 3), "", "m", overlay("c", "1"))
	r2 := create(t, s, key(2, 1), "m", "", nil)
	tab, tab2 := r.Extents[0].Tablet, r2.Extents[0].Tablet

	older := r
	older.Applied = engine.LogID{Term: 1, Index: 0}
	refused := func(want error, c ...state.Change) {
		t.Helper()
		wantErr(t, s.Write(c, 99), want)
	}
	refused(state.ErrStale, state.Change{Record: older})
	refused(state.ErrStale, state.Change{Record: r, Overlay: overlay("c", "2")})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, extent("", "m", tab2))})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, extent("", "z", tab))})
	refused(state.ErrExtents, state.Change{Record: record(key(9, 1), 2, extent("a", "b", tab))})
	refused(state.ErrExtents, state.Change{Record: record(key(9, 1), 2, extent("", "", 4321))})
	refused(state.ErrExtents, state.Change{Record: record(key(9, 1), 2, extent("", "", tab)), NewTablet: true})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, extent("g", "m", tab), extent("a", "b", tab))})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, extent("g", "g", tab))})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, r.Extents...), DropExtents: []state.Extent{extent("a", "b", tab)}})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, r.Extents...), Overlay: overlay("x", "outside")})
	refused(state.ErrExtents, state.Change{Record: state.Record{Key: r.Key, Tombstone: true, Extents: r.Extents}})
	refused(state.ErrExtents, state.Change{Record: record(r.Key, 2, r.Extents...)}, // both want it
		state.Change{Record: record(key(2, 1), 2, extent("a", "b", tab))})

	// Nothing of all that left a trace.
	wantValue(t, s, r, "c", "1")
	if seq, _ := s.SyncedSeq(); seq != 0 {
		t.Fatal("a refused write stored the synced sequence")
	}
	// No replica that was removed, and no older one, comes back.
	must(t, s.Write([]state.Change{{Record: tombstone(r.Key)}}, 0))
	id := alloc(t, s)
	refused(state.ErrTombstoned, state.Change{Record: record(r.Key, 100, extent("", "", id)), NewTablet: true})
	refused(state.ErrTombstoned, state.Change{Record: record(key(1, 2), 100, extent("", "", id)), NewTablet: true})
	must(t, s.Write([]state.Change{{Record: tombstone(r.Key)}}, 0))
	must(t, s.Write([]state.Change{{Record: record(key(1, 4), 100, extent("", "", id)), NewTablet: true}}, 0))
	s = reopen(t, s, open)
	defer s.Close()
	refused(state.ErrTombstoned, state.Change{Record: record(key(1, 3), 1000)})
	if _, err := s.Records(); err != nil {
		t.Fatal(err)
	}
}

func stateSplit(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	p := create(t, s, key(1, 1), "", "", overlay("a", "1", "g", "1", "p", "1", "z", "1"))
	tab := p.Extents[0].Tablet
	// One transaction: the parent's frozen overlay, its record, the children (rule Split2).
	parent := record(p.Key, 5, extent("", "g", tab))
	c1 := record(key(2, 1), 1, extent("g", "p", tab))
	c2 := record(key(3, 1), 1, extent("p", "", tab))
	o := overlay("b", "2", "g", "2", "h", "2", "z", "-", "y", "2")
	must(t, s.Write([]state.Change{{Record: parent, Overlay: o}, {Record: c1}, {Record: c2}}, 0))
	for range 2 {
		wantKeys(t, scan(t, s, parent, "", "", 0, false), "a b")
		wantKeys(t, scan(t, s, c1, "", "", 0, false), "g h")
		wantKeys(t, scan(t, s, c2, "", "", 0, true), "y p")
		wantValue(t, s, c1, "g", "2")
		wantValue(t, s, c1, "p", "-") // another shard's
		if s.Stats().GarbageRanges != 0 {
			t.Fatal("a split makes no garbage")
		}
		s = reopen(t, s, open)
		_, err := s.Records()
		must(t, err)
	}
	must(t, s.Close())
}

// A child that is tombstoned or exists is skipped, and its half of the extent is freed (rule Split3).
func stateSplitSkipsChild(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	p := create(t, s, key(1, 1), "", "", overlay("a", "1", "g", "1"))
	parent := record(p.Key, 5, extent("", "g", p.Extents[0].Tablet))
	must(t, s.Write([]state.Change{{Record: parent, Overlay: overlay("b", "2", "h", "2")}}, 0))
	wantKeys(t, scan(t, s, parent, "", "", 0, false), "a b")
	if s.Stats().GarbageRanges != 1 {
		t.Fatalf("%d garbage extents, want 1", s.Stats().GarbageRanges)
	}
	// Nobody takes a garbage extent (rule State4).
	wantErr(t, s.Write([]state.Change{{Record: record(key(2, 1), 1, extent("g", "", p.Extents[0].Tablet))}}, 0), state.ErrExtents)
	s = reopen(t, s, open)
	defer s.Close()
	collect(t, s)
	_, err := s.Records()
	must(t, err)
	wantKeys(t, scan(t, s, parent, "", "", 0, false), "a b")
}

func stateMerge(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	l := create(t, s, key(1, 1), "", "m", overlay("a", "1", "b", "1"))
	r := create(t, s, key(2, 7), "m", "", overlay("m", "1", "n", "1"))
	merged := record(l.Key, 9, l.Extents[0], r.Extents[0])
	// One transaction: both overlays, L with both extents, R's tombstone (rule Merge3).
	must(t, s.Write([]state.Change{
		{Record: merged, Overlay: overlay("b", "2", "n", "2")},
		{Record: tombstone(r.Key), Overlay: overlay("m", "-", "o", "1")},
	}, 0))
	for range 2 {
		wantKeys(t, scan(t, s, merged, "", "", 0, false), "a b n o")
		if s.Stats().GarbageRanges != 0 {
			t.Fatal("a merge makes no garbage")
		}
		s = reopen(t, s, open)
		_, err := s.Records()
		must(t, err)
	}
	must(t, s.Close())
}

func stateGarbage(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	o := state.NewOverlay(new(state.Arena))
	for i := range 100 {
		o.Put(fmt.Appendf(nil, "k%03d", i), state.Item{Version: 1, Value: []byte("v")})
	}
	o.Freeze()
	r := create(t, s, key(1, 1), "", "", o)
	tab := r.Extents[0].Tablet
	r2 := record(key(1, 1), 2, extent("k020", "k040", tab), extent("k060", "", tab))
	must(t, s.Write([]state.Change{{Record: r2, DropExtents: []state.Extent{extent("", "k020", tab)}}}, 0))
	for range 3 { // cleaning goes on after a crash
		more, err := s.CollectGarbage(5)
		must(t, err)
		if !more {
			t.Fatal("40 keys went in steps of 5")
		}
		s = reopen(t, s, open)
		_, err = s.Records()
		must(t, err)
	}
	collect(t, s)
	if n := len(scan(t, s, r2, "", "", 0, false)); n != 60 {
		t.Fatalf("%d keys are left, want 60", n)
	}
	must(t, s.Write([]state.Change{{Record: tombstone(r.Key)}}, 0))
	s = reopen(t, s, open)
	collect(t, s)
	if st := s.Stats(); st.GarbageRanges != 0 || st.Tablets != 0 {
		t.Fatalf("stats after collection: %+v", st)
	}
	s = reopen(t, s, open)
	defer s.Close()
	_, err := s.Records()
	must(t, err)
}

func stateFailed(t *testing.T, open OpenState) {
	boom := errors.New("boom")
	var fail error
	var told []error
	s := open(t, state.Options{Fault: func() error { return fail }, Failed: func(err error) { told = append(told, err) }})
	r := create(t, s, key(1, 1), "", "", overlay("a", "1"))
	fail = boom
	r2 := r
	r2.Applied.Index = 2
	err := s.Write([]state.Change{{Record: r2, Overlay: overlay("a", "2")}}, 0)
	wantErr(t, err, state.ErrFailed)
	wantErr(t, err, boom)
	fail = nil // it stays failed (rule State6)
	wantErr(t, s.Write([]state.Change{{Record: r2}}, 0), state.ErrFailed)
	wantErr(t, s.NodePut("x", nil), state.ErrFailed)
	if len(told) != 1 || !errors.Is(told[0], boom) {
		t.Fatalf("told of %v", told)
	}
	s = reopen(t, s, open)
	defer s.Close()
	wantValue(t, s, r, "a", "1")
}

func stateReaders(t *testing.T, open OpenState) {
	s := open(t, state.Options{})
	defer s.Close()
	r := create(t, s, key(1, 1), "", "", overlay("a", "1", "b", "2"))
	pool := state.NewReaders(s, 3)
	done := make(chan *state.ReadJob, 100)
	for i := range 100 {
		k := "a"
		if i%2 == 1 {
			k = "b"
		}
		pool.Submit(&state.ReadJob{
			Key: r.Key, Extents: r.Extents, Applied: r.Applied, Keys: [][]byte{[]byte(k)},
			Done: func(j *state.ReadJob) { done <- j },
		})
	}
	for range 100 {
		j := <-done
		must(t, j.Err)
		if want := map[string]string{"a": "1", "b": "2"}[string(j.Keys[0])]; string(j.Points[0].Value) != want {
			t.Fatalf("read %q at %q", j.Points[0].Value, j.Keys[0])
		}
	}
	pool.Close()
	job := &state.ReadJob{Done: func(j *state.ReadJob) { done <- j }}
	pool.Submit(job)
	wantErr(t, (<-done).Err, state.ErrClosed)
}

// chunks reads a snapshot to its end.
func chunks(t testing.TB, sn *state.Snapshot) [][]byte {
	t.Helper()
	var all [][]byte
	for {
		b, err := sn.Next(nil)
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		if len(b) > state.ChunkBytesMax {
			t.Fatalf("a chunk of %d bytes", len(b))
		}
		all = append(all, b)
	}
}
