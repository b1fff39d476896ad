package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// failsOnce is a store whose first transaction fails at the disk, and that works again after that.
type failsOnce struct {
	backend
	failed bool
}

func (f *failsOnce) update(n need, fn func(kvTx) error) error {
	if !f.failed {
		f.failed = true
		return &failedError{errFake}
	}
	return f.backend.update(n, fn)
}

// After a failed write nobody knows what is durable. Nothing is written any more, although the disk would take it again (rule State6).
func TestFailureIsFinal(t *testing.T) {
	var told []error
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{Failed: func(err error) { told = append(told, err) }})
	db.kv = &failsOnce{backend: db.kv}
	for range 3 {
		if err := db.NodePut("a", []byte("1")); !errors.Is(err, ErrFailed) || !errors.Is(err, errFake) {
			t.Errorf("%v", err)
		}
	}
	if len(told) != 1 {
		t.Errorf("Failed was told %d times", len(told))
	}
}

// chunksOf are the chunks of a replica with a few items.
func chunksOf(t *testing.T) [][]byte {
	t.Helper()
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.Write([]Change{{Record: r, NewTablet: true, Overlay: numbered(0, 40_000, 100)}}, 0))
	s := db.OpenSnapshot(r, r)
	var list [][]byte
	for {
		b, err := s.Next(nil)
		if errors.Is(err, io.EOF) {
			break
		}
		check(t, err)
		list = append(list, b)
	}
	if len(list) < 3 {
		t.Fatalf("%d chunks", len(list))
	}
	return list
}

// A chunk that has changed on its way is refused when it comes, whichever byte it is, and not when the stream ends: a header byte would
// make it another chunk, and gigabytes are written until then.
func TestEveryByteOfAChunkCounts(t *testing.T) {
	list := chunksOf(t)
	last := list[len(list)-1]
	if _, _, _, err := openChunk(nil, last); err != nil {
		t.Fatal(err)
	}
	for i := range last {
		for _, bit := range []byte{1, 0x80} {
			last[i] ^= bit
			if kind, seq, _, err := openChunk(nil, last); !errors.Is(err, ErrBadChunk) {
				t.Errorf("byte %d of %d changed: kind %d, sequence %d, %v", i, len(last), kind, seq, err)
			}
			last[i] ^= bit
		}
	}
}

// A chunk that is missing is found by the next one.
func TestMissingChunk(t *testing.T) {
	list := chunksOf(t)
	db := openTest(t, filepath.Join(t.TempDir(), "state"), Options{})
	tablet, err := db.AllocTablet()
	check(t, err)
	in, err := db.NewIngest(tablet)
	check(t, err)
	check(t, in.Chunk(list[0]))
	if err := in.Chunk(list[2]); !errors.Is(err, ErrBadChunk) || in.NextSeq() != 1 {
		t.Errorf("chunk 2 behind chunk 0: %v, next %d", err, in.NextSeq())
	}
	check(t, in.Abort())
}

// A file that was cut off, as by an operator or a file system without space, is an error of Open and not the end of the process: pages that bbolt reads at
// once lie behind the end of the file, but within its map.
func TestCutFileAtOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	check(t, db.Write([]Change{{Record: wholeRecord(1, 2, 1), NewTablet: true, Overlay: numbered(0, 2000, 100)}}, 0))
	check(t, db.Close())
	whole, err := os.ReadFile(path)
	check(t, err)
	page, refused := os.Getpagesize(), 0
	for size := 4 * page; size < len(whole); size += 4 * page {
		cut := filepath.Join(dir, fmt.Sprint("cut", size)) // one that Open panicked over stays locked
		check(t, os.WriteFile(cut, whole[:size], 0o600))
		db, err := Open(cut, Options{GrowBytes: 64 << 10, ReserveBytes: 1})
		if err != nil {
			refused++
			continue
		}
		check(t, db.Close())
	}
	if refused == 0 {
		t.Error("no cut was refused")
	}
}

// TestFlippedFactIsFound: what a node knows of itself (its identity, its starts, the cluster it belongs to) is not used, nor taken for missing, when a bit of it
// has changed (rule State5, FAULTS D13).
func TestFlippedFactIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	check(t, db.NodePut("name-of-the-fact", []byte("what-it-says")))
	check(t, db.Close())
	whole, err := os.ReadFile(path)
	check(t, err)
	fact := []byte(nodeUser + "name-of-the-fact")
	at := bytes.Index(whole, fact)
	if at < 0 || bytes.LastIndex(whole, fact) != at {
		t.Fatal("the fact is not in the file once")
	}
	for i := range len(fact) + crcBytes + len("what-it-says") {
		bad := bytes.Clone(whole)
		bad[at+i] ^= 4
		damaged := filepath.Join(dir, fmt.Sprint("damaged", i))
		check(t, os.WriteFile(damaged, bad, 0o600))
		if _, err := Open(damaged, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d of the fact has changed, and Open says %v", i, err)
		}
		if _, err := Verify(damaged); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d of the fact has changed, and Verify says %v", i, err)
		}
		check(t, os.Remove(damaged))
	}
}

// TestRotWhileOpen: what rots after the start is found when it is read: a fact, and the record with which a read compares what it is told.
func TestRotWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	db := openTest(t, path, Options{})
	r := wholeRecord(1, 2, 1)
	check(t, db.NodePut("fact", []byte("what-it-says")))
	check(t, db.Write([]Change{{Record: r, NewTablet: true}}, 0))
	rot := func(what []byte) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		check(t, err)
		b, err := io.ReadAll(f)
		check(t, err)
		at := bytes.LastIndex(b, what) // the map of the store is of the same file
		if at < 0 {
			t.Fatal("it is not in the file")
		}
		for ; at >= 0; at = bytes.LastIndex(b[:at], what) {
			last := at + len(what) - 1
			_, err = f.WriteAt([]byte{b[last] ^ 1}, int64(last))
			check(t, err)
		}
		check(t, f.Close())
	}
	rot([]byte("what-it-says"))
	if _, err := db.NodeGet("fact"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the fact: %v", err)
	}
	job := &ReadJob{Key: r.Key, Extents: r.Extents, Applied: r.Applied}
	if db.RunJob(job); job.Err != nil {
		t.Fatal(job.Err)
	}
	rot(appendHead(nil, &r))
	if db.RunJob(job); !errors.Is(job.Err, ErrCorrupt) {
		t.Errorf("the record: %v", job.Err)
	}
}

// TestShrunkPages: bbolt believes a page that says that it has fewer items than it has. Verify does not, nor does the start if it is records that are missing (FAULTS
// D12, D13).
func TestShrunkPages(t *testing.T) {
	const leaf, branch = 2, 1
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	var changes []Change
	for i := range 100 {
		r := wholeRecord(uint64(i+1), 2, TabletID(i+1))
		r.Meta = make([]byte, 100)
		changes = append(changes, Change{Record: r, NewTablet: true})
	}
	changes[0].Overlay = numbered(0, 3000, 100)
	check(t, db.Write(changes, 0))
	used := db.Stats().UsedBytes
	check(t, db.Close())
	if _, err := Verify(path); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	check(t, err)
	ro, err := openOffline(path)
	check(t, err)
	shrunk, records := 0, 0
	check(t, ro.view(func(tx kvTx) error {
		size := int(ro.db.Info().PageSize)
		for id := 2; id*size < int(used); id++ {
			p, err := tx.(*boltTx).tx.Page(id)
			if err != nil {
				return err
			}
			id += p.OverflowCount
			if p.Type != "leaf" && p.Type != "branch" || p.Count < 2 {
				continue
			}
			shrunk++
			bad := bytes.Clone(whole)
			at := (id - p.OverflowCount) * size
			if kind := binary.NativeEndian.Uint16(bad[at+8:]); kind != leaf && kind != branch {
				t.Fatalf("page %d is of kind %d", id, kind)
			}
			binary.NativeEndian.PutUint16(bad[at+10:], uint16(p.Count-1))
			damaged := filepath.Join(dir, fmt.Sprint("damaged", id))
			check(t, os.WriteFile(damaged, bad, 0o600))
			if _, err := Verify(damaged); !errors.Is(err, ErrCorrupt) {
				t.Errorf("page %d has lost one of %d items: %v", id, p.Count, err)
			}
			db, err := Open(damaged, Options{GrowBytes: 64 << 10, ReserveBytes: 1})
			if err != nil {
				continue
			}
			if list, err := db.Records(); err == nil && len(list) != len(changes) {
				t.Errorf("page %d has lost one of %d items, and %d of %d records are found", id, p.Count, len(list), len(changes))
			} else if err != nil {
				records++
			}
			check(t, db.Close())
			check(t, os.Remove(damaged))
		}
		return nil
	}))
	check(t, ro.close())
	if shrunk < 10 || records == 0 {
		t.Errorf("%d pages were shrunk, %d were found by the start", shrunk, records)
	}
}

// TestForeignItems: what is whole and is not of the form that its place asks for is damage, too.
func TestForeignItems(t *testing.T) {
	for what, fn := range map[string]func(tx *boltTx) error{
		"a number of three bytes": func(tx *boltTx) error { return putFact(tx, nodeSynced, []byte("abc")) },
		"a record of no replica": func(tx *boltTx) error {
			key := []byte("short")
			return tx.space(spaceRecords).Put(key, seal(spaceRecords, key, appendHead(nil, &Record{})))
		},
		"garbage of no tablet": func(tx *boltTx) error {
			key := []byte("short")
			return tx.space(spaceGarbage).Put(key, seal(spaceGarbage, key, nil))
		},
	} {
		path := filepath.Join(t.TempDir(), "state")
		check(t, openTest(t, path, Options{}).Close())
		tamper(t, path, fn)
		if _, err := Verify(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Verify says %v", what, err)
		}
		db := openTest(t, path, Options{})
		_, serr := db.SyncedSeq()
		_, rerr := db.Records()
		if !errors.Is(errors.Join(serr, rerr), ErrCorrupt) {
			t.Errorf("%s: %v, %v", what, serr, rerr)
		}
	}
}
