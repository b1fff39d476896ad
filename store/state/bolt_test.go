package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
)

func openTest(t testing.TB, path string, opt Options) *DB {
	t.Helper()
	if opt.GrowBytes == 0 {
		opt.GrowBytes = 64 << 10
	}
	opt.ReserveBytes = 1
	db, err := Open(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wholeRecord(shard uint64, index uint64, tablet TabletID) Record {
	return Record{
		Key:     store.Key{Shard: engine.ShardID(shard), Replica: 1},
		Applied: engine.LogID{Term: 1, Index: index}, Extents: []Extent{{Tablet: tablet}},
	}
}

func numbered(from, to, valueBytes int) *Overlay {
	o := NewOverlay(new(Arena))
	for i := from; i < to; i++ {
		o.Put(fmt.Appendf(nil, "key-%06d", i), Item{Version: uint64(i), Value: bytes.Repeat([]byte{'v'}, valueBytes)})
	}
	o.Freeze()
	return o
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	check(t, err)
	check(t, os.WriteFile(to, b, 0o600))
}

// Each flipped bit of an item is found: by a read, by Verify, and named (rule State5).
func TestCorruptValueIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	o := NewOverlay(new(Arena))
	o.Put([]byte("some-key"), Item{Version: 5, Expire: 6, Value: []byte("THE-VALUE-TO-BE-DAMAGED")})
	o.Put([]byte("other"), Item{Value: make([]byte, 5000)}) // so that the tablet is not inline
	o.Freeze()
	check(t, db.Write([]Change{{Record: r, Overlay: o, NewTablet: true}}, 0))
	check(t, db.Close())
	if _, err := Verify(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	check(t, err)
	at := bytes.Index(b, []byte("THE-VALUE"))
	if at < 0 || bytes.LastIndex(b, []byte("THE-VALUE")) != at {
		t.Fatal("the value is not in the file once")
	}
	for _, off := range []int{-6, -3, -1, 0, 10, -crcBytes - 2 - 3} { // checksum, numbers, value, key
		bad := bytes.Clone(b)
		bad[at+off] ^= 4
		damaged := filepath.Join(dir, fmt.Sprint("damaged", off))
		check(t, os.WriteFile(damaged, bad, 0o600))
		_, err := Verify(damaged)
		var ce *CorruptError
		if !errors.As(err, &ce) || ce.Tablet != 1 {
			t.Fatalf("offset %d: Verify says %v", off, err)
		}
		db := openTest(t, damaged, Options{})
		job := &ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied}
		if db.RunJob(job); !errors.Is(job.Err, ErrCorrupt) {
			t.Fatalf("offset %d: a scan says %v", off, job.Err)
		}
		if _, err := db.Checksum(r); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("offset %d: Checksum says %v", off, err)
		}
		if off >= -crcBytes-2 {
			job.Keys = [][]byte{[]byte("some-key")}
			if db.RunJob(job); !errors.As(job.Err, &ce) || string(ce.Key) != "some-key" {
				t.Fatalf("offset %d: a read says %v", off, job.Err)
			}
		}
		check(t, db.Close())
	}
}

// Random damage anywhere in the file never crashes the reader, and never gives wrong data; but if a page says that it has fewer items than it has, the last
// of them are missed, and only Verify tells.
func TestRandomDamage(t *testing.T) {
	rng := seeded(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 500, 50), NewTablet: true}}, 0))
	want, err := db.Checksum(r)
	check(t, err)
	used := db.Stats().UsedBytes
	check(t, db.Close())
	b, err := os.ReadFile(path)
	check(t, err)
	found := 0
	for i := range 100 {
		bad := bytes.Clone(b)
		for range 1 + rng.IntN(3) {
			bad[4*4096+rng.Int64N(used-4*4096)] ^= 1 << rng.IntN(8) // not the meta pages, which bbolt checks, nor the freelist
		}
		damaged := filepath.Join(dir, fmt.Sprint("damaged", i))
		check(t, os.WriteFile(damaged, bad, 0o600))
		opt := Options{GrowBytes: 64 << 10, ReserveBytes: 1}
		db, err := Open(damaged, opt)
		if err != nil {
			found++
			continue
		}
		got, err := db.Checksum(r)
		if err != nil {
			found++
		}
		check(t, db.Close())
		if _, verr := Verify(damaged); err == nil && got != want && !errors.Is(verr, ErrCorrupt) {
			t.Errorf("damage %d was not found: %+v, %v", i, got, verr)
		}
		check(t, os.Remove(damaged))
	}
	t.Logf("%d of 100 damages lay where somebody looked", found)
}

// bbolt panics over a freelist that is damaged as soon as it opens the file: that is corruption, and no reason to crash.
func TestDamagedFreelist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	check(t, db.Write([]Change{{Record: wholeRecord(1, 2, 1), Overlay: numbered(0, 500, 50), NewTablet: true}}, 0))
	used := db.Stats().UsedBytes
	check(t, db.Close())
	b, err := os.ReadFile(path)
	check(t, err)
	for i := int64(2 * 4096); i < used; i++ { // every page but the meta pages
		b[i] ^= 0x55
	}
	check(t, os.WriteFile(path, b, 0o600))
	if _, err := Open(path, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v", err)
	}
	again := path + "2" // the file over which it panicked stays locked
	check(t, os.WriteFile(again, b, 0o600))
	if _, err := Verify(again); !errors.Is(err, ErrCorrupt) {
		t.Errorf("verify: %v", err)
	}
}

// What lies in the file of a store that is killed between the transactions of an ingest, of a checkpoint, or of garbage
// collection, is a state that opens and verifies.
func TestKilledBetweenTransactions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 20000, 100), NewTablet: true}}, 3))
	want, err := db.Checksum(r)
	check(t, err)
	n := 0
	after := func(state string, rec Record, want Content) {
		t.Helper()
		n++
		killed := filepath.Join(dir, fmt.Sprint("killed", n))
		copyFile(t, path, killed)
		if _, err := Verify(killed); err != nil {
			t.Fatalf("%s: %v", state, err)
		}
		db := openTest(t, killed, Options{})
		if _, err := db.Records(); err != nil {
			t.Fatalf("%s: %v", state, err)
		}
		if got, err := db.Checksum(rec); err != nil || got != want {
			t.Fatalf("%s: content %+v, %v; want %+v", state, got, err, want)
		}
		for more := true; more; {
			if more, err = db.CollectGarbage(5000); err != nil {
				t.Fatalf("%s: %v", state, err)
			}
		}
		check(t, db.Close())
		rep, err := Verify(killed)
		if err != nil || rep.Unlinked != 0 || rep.Garbage != 0 || rep.Items != want.Items {
			t.Fatalf("%s: %+v, %v", state, rep, err)
		}
		check(t, os.Remove(killed))
	}
	after("created", r, want)
	in, err := db.NewIngest(2)
	check(t, err)
	sn := db.OpenSnapshot(r, r)
	for i := 0; ; i++ {
		c, err := sn.Next(nil)
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		check(t, in.Chunk(c))
		if i%8 == 0 {
			after("ingest", r, want)
		}
	}
	_, err = in.Finish()
	check(t, err)
	after("ingested", r, want)
	linked := wholeRecord(1, 3, 2)
	check(t, db.Write([]Change{{Record: linked}}, 0))
	after("linked", linked, want)
	half := linked
	half.Extents = []Extent{{Tablet: 2, Start: []byte("key-015")}}
	check(t, db.Write([]Change{{Record: half}}, 0))
	want, err = db.Checksum(half)
	check(t, err)
	for more := true; more; {
		more, err = db.CollectGarbage(4000)
		check(t, err)
		after("collecting", half, want)
	}
}

func TestNoSpace(t *testing.T) {
	free := int64(1 << 30)
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{FreeBytes: func() (int64, error) { return free, nil }})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, NewTablet: true}}, 0))
	free = 1000
	r.Applied.Index++
	big := Change{Record: r, Overlay: numbered(0, 100, 10_000)}
	if err := db.Write([]Change{big}, 0); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("got %v, want ErrNoSpace", err)
	}
	free = 1 << 30 // not sticky: nothing was begun
	check(t, db.Write([]Change{big}, 0))
	st := db.Stats()
	if st.FileBytes < st.UsedBytes || st.UsedBytes < 1_000_000 {
		t.Fatalf("stats %+v", st)
	}
}

// The file grows in whole steps and only behind what the reserve allows, so a commit never extends it itself.
func TestReserveCoversCommits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, NewTablet: true}}, 0))
	rng := seeded(t)
	for range 40 {
		reserved := db.Stats().FileBytes
		o := NewOverlay(new(Arena))
		for range rng.IntN(500) {
			o.Put(fmt.Append(nil, rng.IntN(20000)), Item{Value: make([]byte, rng.IntN(1+rng.IntN(3000)))})
		}
		o.Freeze()
		r.Applied.Index++
		c := []Change{{Record: r, Overlay: o}}
		high := db.kv.(*boltKV).highest(needOf(c))
		check(t, db.Write(c, 0))
		if used := db.Stats().UsedBytes; used > high {
			t.Fatalf("%d bytes used, %d foreseen for %d keys of %d bytes", used, high, o.Len(), o.DataBytes())
		}
		info, err := os.Stat(path)
		check(t, err)
		if size := info.Size(); size != db.Stats().FileBytes || size < reserved {
			t.Fatalf("file has %d bytes, stats say %d", size, db.Stats().FileBytes)
		}
	}
}

// The map grows while jobs are read all the time, and readers are paused for it (rule State2).
func TestMapGrowsUnderReaders(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{MapBytes: 64 << 10})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 10, 10), NewTablet: true}}, 0))
	pool := NewReaders(db, 2)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	other := wholeRecord(2, 2, 2)
	check(t, db.Write([]Change{{Record: other, NewTablet: true}}, 0))
	for range 2 {
		wg.Go(func() {
			done := make(chan *ReadJob, 1)
			job := &ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied, Done: func(j *ReadJob) { done <- j }}
			for {
				select {
				case <-stop:
					return
				default:
				}
				pool.Submit(job)
				if <-done; job.Err != nil || len(job.Page.Items) != 10 {
					t.Errorf("read: %d items, %v", len(job.Page.Items), job.Err)
					return
				}
			}
		})
	}
	for i := range 20 {
		other.Applied.Index++
		check(t, db.Write([]Change{{Record: other, Overlay: numbered(i*1000, i*1000+1000, 100)}}, 0))
	}
	close(stop)
	wg.Wait()
	pool.Close()
	st := db.Stats()
	if st.Pauses == 0 || st.Pauses == st.Writes || st.MapBytes < st.UsedBytes {
		t.Fatalf("stats %+v", st)
	}
}

// No read holds a transaction longer than its one page (rules State1, State3): a snapshot, a checksum, a job that stand still in the middle keep
// no writer waiting for the map to grow, and no page of the file from being used again.
func TestNoReadHoldsATransaction(t *testing.T) {
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{MapBytes: 64 << 20})
	r, other := wholeRecord(1, 2, 1), wholeRecord(2, 2, 2)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 5000, 200), NewTablet: true}, {Record: other, NewTablet: true}}, 0))
	sn := db.OpenSnapshot(r, r)
	free := func(what string) {
		t.Helper()
		kv := db.kv.(*boltKV)
		if !kv.pause.TryLock() {
			t.Fatalf("%s holds the map", what)
		}
		kv.pause.Unlock()
	}
	next := func() {
		t.Helper()
		if _, err := sn.Next(nil); err != nil {
			t.Fatal(err)
		}
	}
	free("an open snapshot")
	next()
	free("a snapshot in the middle")
	jobs := []*ReadJob{{Key: r.Key, Extents: r.Extents, Applied: r.Applied, Limit: 3}, {Key: r.Key, Extents: r.Extents, Applied: r.Applied, Keys: [][]byte{[]byte("k")}}}
	db.RunJobs(jobs)
	for _, j := range jobs {
		check(t, j.Err)
	}
	if !jobs[0].Page.More {
		t.Fatal("the page is the whole: the test tests nothing")
	}
	free("a job that was run")
	if _, err := db.Checksum(r); err != nil {
		t.Fatal(err)
	}
	free("a checksum")
	churn := func() int64 {
		for range 30 {
			other.Applied.Index++
			check(t, db.Write([]Change{{Record: other, Overlay: numbered(0, 1000, 200)}}, 0))
		}
		return int64(db.Stats().UsedBytes)
	}
	before := churn() // while the snapshot stands still
	if after := churn(); after > before+before/4 {
		t.Errorf("the file grew from %d to %d bytes for the same keys, while a snapshot stands still", before, after)
	}
	next()
}

// After the file fails, nothing is written any more (rule State6).
func TestFailedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, NewTablet: true}}, 0))
	b := db.kv.(*boltKV)
	check(t, b.file.Close())
	r.Applied.Index++
	err := db.Write([]Change{{Record: r, Overlay: numbered(0, 10, 10)}}, 0)
	if !errors.Is(err, ErrFailed) {
		t.Fatalf("got %v, want ErrFailed", err)
	}
	if err := db.NodePut("a", nil); !errors.Is(err, ErrFailed) {
		t.Fatalf("got %v, want ErrFailed", err)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	openTest(t, path, Options{})
	if _, err := Open(path, Options{LockTimeout: 1}); !errors.Is(err, ErrLocked) {
		t.Fatalf("got %v, want ErrLocked", err)
	}
	if _, err := Verify(path); !errors.Is(err, ErrLocked) {
		t.Fatalf("got %v, want ErrLocked", err)
	}
}

// tamper changes the file behind the store's back.
func tamper(t *testing.T, path string, fn func(tx *boltTx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	check(t, err)
	check(t, db.Update(func(tx *bolt.Tx) error { return fn(&boltTx{tx: tx}) }))
	check(t, db.Close())
}

// A partition that does not hold is found at start (rule State4).
func TestPartitionIsChecked(t *testing.T) {
	putRecord := func(tx *boltTx, r Record) error {
		key := recordKey(r.Key)
		return errors.Join(tx.space(spaceRecords).Put(key, seal(spaceRecords, key, appendHead(nil, &r))),
			tx.space(spaceMeta).Put(key, seal(spaceMeta, key, nil)))
	}
	for name, fn := range map[string]func(tx *boltTx) error{
		"live extents overlap": func(tx *boltTx) error {
			return putRecord(tx, Record{Key: store.Key{Shard: 2, Replica: 1}, Extents: []Extent{{Start: []byte("x"), Tablet: 1}}})
		},
		"live and garbage overlap": func(tx *boltTx) error {
			key := garbageKey(Extent{Tablet: 1, Start: []byte("a")})
			return tx.space(spaceGarbage).Put(key, seal(spaceGarbage, key, []byte("b")))
		},
		"tablet missing": func(tx *boltTx) error { return tx.deleteTablet(1) },
		"key before the extent": func(tx *boltTx) error {
			b, _ := tx.tablet(2)
			return b.Put([]byte("a"), new(itemCodec).append(nil, 2, []byte("a"), Item{}))
		},
		"key behind the extent": func(tx *boltTx) error {
			b, _ := tx.tablet(2)
			return b.Put([]byte("x"), new(itemCodec).append(nil, 2, []byte("x"), Item{}))
		},
		"record damaged": func(tx *boltTx) error {
			key := recordKey(store.Key{Shard: 1, Replica: 1})
			b := bytes.Clone(tx.space(spaceRecords).Get(key))
			b[len(b)-1] ^= 1
			return tx.space(spaceRecords).Put(key, b)
		},
		"meta lost": func(tx *boltTx) error {
			return tx.space(spaceMeta).Delete(recordKey(store.Key{Shard: 1, Replica: 1}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			db := openTest(t, path, Options{})
			narrow := wholeRecord(3, 2, 2)
			narrow.Extents[0].Start, narrow.Extents[0].End = []byte("k"), []byte("l")
			check(t, db.Write([]Change{{Record: wholeRecord(1, 2, 1), NewTablet: true},
				{Record: narrow, Overlay: numbered(0, 10, 10), NewTablet: true}}, 0))
			check(t, db.Close())
			tamper(t, path, fn)
			if _, err := Verify(path); !errors.Is(err, ErrExtents) && !errors.Is(err, ErrCorrupt) {
				t.Errorf("Verify says %v", err)
			}
			db = openTest(t, path, Options{})
			if _, err := db.Records(); !errors.Is(err, ErrExtents) && !errors.Is(err, ErrCorrupt) {
				t.Errorf("Records says %v", err)
			}
		})
	}
}

func TestFutureFormatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	check(t, openTest(t, path, Options{}).Close())
	tamper(t, path, func(tx *boltTx) error { return putNumber(tx, nodeFormat, formatVersion+1) })
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "format") {
		t.Fatalf("got %v", err)
	}
}

func TestDump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	check(t, db.NodePut("identity", []byte("xyz")))
	r := wholeRecord(1, 7, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 3, 5), NewTablet: true}}, 42))
	r.Extents = []Extent{{Tablet: 1, Start: []byte("key-000001")}}
	r.Meta = []byte("1234")
	check(t, db.Write([]Change{{Record: r}, {Record: Record{Key: store.Key{Shard: 5, Replica: 6}, Tombstone: true}}}, 42))
	check(t, db.Close())
	var out bytes.Buffer
	check(t, Dump(path, &out, true))
	for _, want := range []string{
		"fact i/synced 42\n", "fact u/identity 3 bytes\n", "record 1/1 applied 1/7 meta 4 bytes\n",
		"  extent tablet 1 [\"key-000001\", +inf)\n", "garbage tablet 1 [\"\", \"key-000001\")\n", "tombstone 5/6 applied 0/0\n",
		"  item tablet 1 \"key-000002\" version 2 expire 0 value 5 bytes\n", "tablet 1 items 3 bytes 45 corrupt 0\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
	if _, err := Verify(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Verify of an absent file: %v", err)
	}
}

// A page of the map that can not be read is an error of the read, and the process lives (the file is cut here; a medium that
// fails gives the same signal).
func TestMapFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 5000, 100), NewTablet: true}}, 0))
	check(t, os.Truncate(path, 4*4096))
	pool := NewReaders(db, 1)
	done := make(chan *ReadJob, 2)
	for range 2 { // in one transaction perhaps: each fails on its own
		pool.Submit(&ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied, Done: func(j *ReadJob) { done <- j }})
	}
	for range 2 {
		if j := <-done; !errors.Is(j.Err, ErrCorrupt) {
			t.Fatalf("got %v, want ErrCorrupt", j.Err)
		}
	}
	pool.Close()
	if err := db.Write([]Change{{Record: Record{Key: r.Key, Tombstone: true}}}, 0); err == nil {
		t.Fatal("a write succeeded")
	}
}

// The newer meta page is damaged: the store opens as of the transaction before, which is whole.
func TestDamagedMetaPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, Overlay: numbered(0, 50, 100), NewTablet: true}}, 0))
	want, err := db.Checksum(r)
	check(t, err)
	newer := r
	newer.Applied.Index++
	check(t, db.Write([]Change{{Record: newer, Overlay: numbered(0, 5, 10)}}, 0))
	last := 0
	check(t, db.kv.view(func(tx kvTx) error { last = tx.(*boltTx).tx.ID() % 2; return nil }))
	check(t, db.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	_, err = f.WriteAt([]byte{0xff, 0xff}, int64(last*4096+60))
	check(t, errors.Join(err, f.Close()))
	db = openTest(t, path, Options{})
	if got, err := db.Checksum(r); err != nil || got != want {
		t.Fatalf("content %+v, %v; want %+v", got, err, want)
	}
}
