package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// smallDisk opens a store in a new file on a disk with room for size bytes.
func smallDisk(t *testing.T, path string, size int64) *DB {
	return openTest(t, path, Options{GrowBytes: 1 << 20, FreeBytes: func() (int64, error) {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		return size - info.Size(), nil
	}})
}

// fill writes to the replica of r until there is no space for so much any more.
func fill(t *testing.T, db *DB, r *Record, values int) {
	t.Helper()
	for {
		r.Applied.Index++
		err := db.Write([]Change{{Record: *r, Overlay: numbered(int(r.Applied.Index)*values, int(r.Applied.Index+1)*values, 1000)}}, 0)
		if errors.Is(err, ErrNoSpace) {
			r.Applied.Index--
			return
		}
		check(t, err)
	}
}

// TestUrgentOnFullDisk: on a disk on which the store itself has taken all that there is, small transactions that make room, or without which
// a node does not start, go through; and what they have freed in the file is used, by whatever fits there (rule State6, FAULTS D8).
func TestUrgentOnFullDisk(t *testing.T) {
	for _, values := range []int{1, 10, 1000} {
		t.Run(fmt.Sprint(values), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			db := smallDisk(t, path, 8<<20)
			a, b := wholeRecord(1, 2, 1), wholeRecord(2, 2, 2)
			check(t, db.Write([]Change{{Record: a, NewTablet: true}, {Record: b, NewTablet: true}}, 0))
			fill(t, db, &a, 100)
			fill(t, db, &a, values)
			for i := range 20 {
				check(t, db.NodePut("start", fmt.Append(nil, i)))
			}
			a.Tombstone, a.Extents = true, nil
			check(t, db.Write([]Change{{Record: a}}, 0))
			for more := true; more; {
				var err error
				more, err = db.CollectGarbage(1024)
				check(t, err)
			}
			if n := tabletsOf(t, db); n != 1 {
				t.Errorf("%d tablets are left", n)
			}
			size := db.Stats().FileBytes
			fill(t, db, &b, 100)
			if got, err := db.Checksum(b); err != nil || got.Bytes < 3<<20 {
				t.Errorf("of what was removed %d bytes were filled again, %v", got.Bytes, err)
			}
			if now := db.Stats().FileBytes; now != size {
				t.Errorf("the file has grown from %d to %d bytes", size, now)
			}
			check(t, db.Close())
			if rep, err := Verify(path); err != nil || rep.Tablets != 1 {
				t.Errorf("%+v, %v", rep, err)
			}
			db = smallDisk(t, path, 8<<20)
			b.Applied.Index++
			if err := db.Write([]Change{{Record: b, Overlay: numbered(1e5, 1e5+1000, 1000)}}, 0); !errors.Is(err, ErrNoSpace) {
				t.Errorf("it goes on without end: %v", err)
			}
		})
	}
}

// TestAbortOnFullDisk: a snapshot that was given up goes when there is space, not with the next start; and a start does not need space.
func TestAbortOnFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	free := int64(1 << 30)
	opt := Options{GrowBytes: 4096, FreeBytes: func() (int64, error) { return free, nil }}
	db := openTest(t, path, opt)
	r := wholeRecord(1, 2, 1)
	r.Extents[0].Tablet = 1 << 20
	check(t, db.Write([]Change{{Record: r, NewTablet: true, Overlay: numbered(0, 2000, 1000)}}, 0))
	for _, restart := range []bool{false, true} {
		free = 1 << 30
		tablet, err := db.AllocTablet()
		check(t, err)
		in, err := db.NewIngest(tablet)
		check(t, err)
		chunk, err := db.OpenSnapshot(r, r).Next(nil)
		check(t, err)
		check(t, in.Chunk(chunk))
		free = -1 << 30 // as if the file had no room left, either
		check(t, in.Abort())
		check(t, in.Abort())
		if restart {
			check(t, db.Close())
			db = openTest(t, path, opt)
			if _, err := db.Records(); err != nil {
				t.Fatalf("a start on a full disk: %v", err)
			}
		}
		free = 1 << 30
		for more := true; more; {
			more, err = db.CollectGarbage(1024)
			check(t, err)
		}
		if n := tabletsOf(t, db); n != 1 {
			t.Errorf("restart %v: %d tablets", restart, n)
		}
	}
}

func tabletsOf(t *testing.T, db *DB) (n int) {
	t.Helper()
	check(t, db.kv.view(func(tx kvTx) error {
		return tx.tablets(func(TabletID) error { n++; return nil })
	}))
	return n
}
