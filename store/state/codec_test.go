package state

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
)

func FuzzReadRecord(f *testing.F) {
	r := wholeRecord(3, 4, 5)
	r.Meta = []byte("meta")
	r.Membership = engine.MembershipAt{LogID: engine.LogID{Term: 1, Index: 2}, Membership: &engine.Membership{
		Voters: [][]engine.Peer{{{Node: 1, Replica: 2}}}, Learners: []engine.Peer{{Node: 3, Replica: 4}},
	}}
	f.Add(AppendRecord(nil, &r))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadRecord(b)
		if err != nil {
			return
		}
		again, err := ReadRecord(AppendRecord(nil, &r))
		if err != nil || fmt.Sprint(again.Key, again.Applied, again.Meta) != fmt.Sprint(r.Key, r.Applied, r.Meta) {
			t.Fatalf("%+v is read back as %+v, %v", r, again, err)
		}
	})
}

// A stored head that anybody wrote is read or refused, never more.
func FuzzMatches(f *testing.F) {
	r := wholeRecord(3, 4, 5)
	f.Add(appendHead(nil, &r))
	f.Fuzz(func(t *testing.T, b []byte) {
		key := recordKey(store.Key{Shard: 3, Replica: 1})
		sealed := seal(spaceRecords, key, b)
		same, _ := matches(key, sealed, r.Applied, r.Extents)
		head, err := decodeHead(key, sealed)
		if err == nil && same != (head.Applied == r.Applied && equalExtents(head.Extents, r.Extents) && !head.Tombstone) {
			t.Fatalf("matches says %v of %+v", same, head)
		}
	})
}

// A stored garbage extent that anybody wrote is read or refused, never more.
func FuzzGarbage(f *testing.F) {
	e := Extent{Tablet: 7, Start: []byte("a"), End: []byte("b")}
	f.Add(garbageKey(e), []byte("b"))
	f.Fuzz(func(t *testing.T, key, b []byte) {
		_, _ = decodeGarbage(key, b)
		e, err := decodeGarbage(key, seal(spaceGarbage, key, b))
		if err == nil && !bytes.Equal(garbageKey(e), key) {
			t.Fatalf("%x is read as %+v", key, e)
		}
	})
}

func FuzzChunk(f *testing.F) {
	db := NewMem(Options{})
	r := wholeRecord(1, 2, 1)
	if err := db.Write([]Change{{Record: r, Overlay: numbered(0, 5, 5), NewTablet: true}}, 0); err != nil {
		f.Fatal(err)
	}
	sn := db.OpenSnapshot(r, r)
	for range 2 {
		c, err := sn.Next(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(c)
		_, _, raw, err := openChunk(nil, c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _, _ = openChunk(nil, b)
		in := &Ingest{db: db, sum: newSummer(), info: &unlinked{}, raw: b} // what a chunk with a good checksum may carry
		_ = in.parse()
	})
}

func TestItemRoundTrip(t *testing.T) {
	for _, it := range []Item{{}, {Version: 1<<64 - 1, Expire: -1, Value: []byte{}}, {Version: 300, Expire: 1 << 62, Value: []byte("v")}} {
		b := new(itemCodec).append([]byte("x"), 7, []byte("key"), it)[1:]
		got, err := new(itemCodec).read(7, []byte("key"), b)
		if err != nil || got.Version != it.Version || got.Expire != it.Expire || !bytes.Equal(got.Value, it.Value) {
			t.Fatalf("got %+v, %v; want %+v", got, err, it)
		}
		if _, err := new(itemCodec).read(8, []byte("key"), b); err == nil {
			t.Fatal("an item of another tablet is accepted")
		}
		if _, err := new(itemCodec).read(7, []byte("kez"), b); err == nil {
			t.Fatal("an item of another key is accepted")
		}
	}
}

// A job that is used again reads without allocating for each key.
func TestReadsDoNotAllocatePerKey(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 1000, 100), NewTablet: true}}, 0))
	job := &ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied, Limit: 500}
	page := testing.AllocsPerRun(20, func() { db.RunJob(job) })
	points := &ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied}
	for i := range 100 {
		points.Keys = append(points.Keys, fmt.Appendf(nil, "key-%06d", 10*i))
	}
	hundred := testing.AllocsPerRun(20, func() { db.RunJob(points) })
	if job.Err != nil || points.Err != nil || len(job.Page.Items) != 500 || !points.Points[99].Found {
		t.Fatal("jobs failed", job.Err, points.Err)
	}
	if page > 40 || hundred > 40 {
		t.Errorf("%v allocations for a page of 500, %v for 100 keys", page, hundred)
	}
}

// BenchmarkPoints reads 16 keys per job of 100,000 in the page cache; ns/op is per key.
func BenchmarkPoints(b *testing.B) {
	db := openTest(b, filepath.Join(b.TempDir(), "state"), Options{GrowBytes: 16 << 20})
	r := wholeRecord(1, 2, 1)
	check(b, db.Write([]Change{{Record: r, Overlay: numbered(0, 100_000, 128), NewTablet: true}}, 0))
	job := &ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied}
	for i := range 16 {
		job.Keys = append(job.Keys, fmt.Appendf(nil, "key-%06d", (i*7919)%100_000))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%16 == 0 {
			db.RunJob(job)
		}
	}
}

// BenchmarkCheckpoint writes 1,024 neighbouring keys of 128 bytes per transaction, with its syncs; ns/op is per key.
func BenchmarkCheckpoint(b *testing.B) {
	db := openTest(b, filepath.Join(b.TempDir(), "state"), Options{GrowBytes: 16 << 20})
	r := wholeRecord(1, 2, 1)
	check(b, db.Write([]Change{{Record: r, Overlay: numbered(0, 100_000, 128), NewTablet: true}}, 0))
	o := numbered(5000, 6024, 128)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%1024 == 0 {
			r.Applied.Index++
			check(b, db.Write([]Change{{Record: r, Overlay: o}}, 0))
		}
	}
}

// What lies where another thing belongs (a misdirected write, FAULTS D14) is refused, though it is whole: the checksum covers the key.
func TestMisdirectedItem(t *testing.T) {
	r := wholeRecord(3, 4, 5)
	here, there := recordKey(r.Key), recordKey(store.Key{Shard: 4, Replica: 1})
	b := seal(spaceRecords, here, appendHead(nil, &r))
	if _, err := decodeHead(here, b); err != nil {
		t.Fatal(err)
	}
	if r, err := decodeHead(there, b); err == nil {
		t.Errorf("the record of shard 3 is read as %+v", r)
	}
	if _, err := unseal(spaceGarbage, here, b); err == nil {
		t.Error("a record is taken for a garbage extent")
	}
}
