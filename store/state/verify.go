package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Report is what Verify found.
type Report struct {
	Records    int
	Tombstones int
	Tablets    int
	Unlinked   int // tablets that nothing names; the next start removes them
	Garbage    int // garbage extents
	Items      uint64
	Bytes      uint64
	SyncedSeq  uint64
}

// errorsMax bounds how many errors of one kind Verify collects.
const errorsMax = 20

// openOffline opens the file of a stopped node for reading.
func openOffline(path string) (*boltKV, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	db, err := boltOpen(path, &bolt.Options{
		ReadOnly: true, Timeout: 100 * time.Millisecond, NoStatistics: true, PreLoadFreelist: true,
		FreelistType: bolt.FreelistMapType,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	b := &boltKV{db: db}
	err = b.view(func(tx kvTx) error {
		t := tx.(*boltTx).tx
		for _, name := range []string{"n", "r", "m", "g", "t"} {
			if t.Bucket([]byte(name)) == nil {
				return fmt.Errorf("open state %s: %w: no bucket %q", path, ErrCorrupt, name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return b, nil
}

// Verify checks the file of a stopped node: bbolt's own structure, every checksum (rule State5), every record, and the
// partition of every tablet (rule State4). It writes nothing. The error joins all that it found.
func Verify(path string) (Report, error) {
	b, err := openOffline(path)
	if err != nil {
		return Report{}, err
	}
	// What bbolt reads of a tree that is none may have no end, and its own check runs on a goroutine of its own, where a fault ends the process.
	if err := b.view(func(tx kvTx) error { return verifyLayout(tx.(*boltTx).tx) }); err != nil {
		return Report{}, errors.Join(fmt.Errorf("verify state %s: %w", path, err), b.close())
	}
	var r Report
	var found []error
	for _, step := range []func(*boltTx, *Report) []error{verifyPages, verifyRecords, verifyFacts, verifyItems} {
		err := b.view(func(tx kvTx) error {
			found = append(found, step(tx.(*boltTx), &r)...)
			return nil
		})
		if err != nil { // it panicked
			found = append(found, err)
		}
	}
	found = append(found, b.close())
	if err := errors.Join(found...); err != nil {
		return r, fmt.Errorf("verify state %s: %w", path, err)
	}
	return r, nil
}

func verifyPages(tx *boltTx, _ *Report) (found []error) {
	for err := range tx.tx.Check() {
		if len(found) < errorsMax {
			found = append(found, fmt.Errorf("%w: %w", ErrCorrupt, err))
		}
	}
	return found
}

func verifyRecords(tx *boltTx, r *Report) []error {
	records, err := readRecords(tx, true)
	if err != nil {
		return []error{err}
	}
	for i := range records {
		r.Records++
		if records[i].Tombstone {
			r.Tombstones++
		}
	}
	p, err := checkPartition(tx, nil)
	if err != nil {
		return []error{err}
	}
	r.Garbage, r.Unlinked = p.garbage, len(p.unlinked)
	return nil
}

func verifyFacts(tx *boltTx, r *Report) []error {
	found := checkFacts(tx)
	format, err := getNumber(tx, nodeFormat)
	if err == nil {
		err = readable(format)
	}
	var serr error
	r.SyncedSeq, serr = getNumber(tx, nodeSynced)
	return append(found, err, serr)
}

func verifyItems(tx *boltTx, r *Report) (found []error) {
	var codec itemCodec
	err := tx.tablets(func(t TabletID) error {
		r.Tablets++
		b, ok := tx.tablet(t)
		if !ok {
			return &CorruptError{Key: tabletKey(t), What: "tablet is not a bucket"}
		}
		c := b.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			it, err := codec.read(t, k, v)
			if err != nil {
				if len(found) < errorsMax {
					found = append(found, err)
				}
				continue
			}
			r.Items++
			r.Bytes += uint64(len(k) + len(it.Value))
		}
		return nil
	})
	return append(found, err)
}

// Dump writes what the file of a stopped node holds, as text, one line for each record, garbage extent and tablet, and with
// items one for each item. It goes on behind what it can not read, and says so in its place.
func Dump(path string, out io.Writer, items bool) error {
	b, err := openOffline(path)
	if err != nil {
		return err
	}
	err = b.view(func(tx kvTx) error { return dump(tx.(*boltTx), out, items) })
	return errors.Join(err, b.close())
}

func dump(tx *boltTx, out io.Writer, items bool) error {
	w := &lineWriter{out: out}
	c := tx.space(spaceNode).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		b, err := unseal(spaceNode, k, v)
		if len(b) == 8 && k[0] == 'i' {
			w.line("fact %s %d%s", k, binary.BigEndian.Uint64(b), problem(err))
		} else {
			w.line("fact %s %d bytes%s", k, len(b), problem(err))
		}
	}
	c = tx.space(spaceRecords).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r, err := decodeHead(k, v)
		if r.Tombstone {
			w.line("tombstone %v applied %d/%d%s", r.Key, r.Applied.Term, r.Applied.Index, problem(err))
			continue
		}
		m := tx.space(spaceMeta).Get(k)
		_, merr := unseal(spaceMeta, k, m)
		w.line("record %v applied %d/%d meta %d bytes%s", r.Key, r.Applied.Term, r.Applied.Index, max(len(m)-crcBytes, 0),
			problem(errors.Join(err, merr)))
		for _, e := range r.Extents {
			w.line("  extent %s", extentString(e))
		}
	}
	c = tx.space(spaceGarbage).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		e, err := decodeGarbage(k, v)
		w.line("garbage %s%s", extentString(e), problem(err))
	}
	return errors.Join(w.err, tx.tablets(func(t TabletID) error {
		dumpTablet(tx, w, t, items)
		return w.err
	}))
}

func dumpTablet(tx *boltTx, w *lineWriter, t TabletID, items bool) {
	b, _ := tx.tablet(t)
	n, size, bad := 0, 0, 0
	var codec itemCodec
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		it, err := codec.read(t, k, v)
		if err != nil {
			bad++
		}
		n++
		size += len(k) + len(it.Value)
		if items {
			w.line("  item tablet %d %q version %d expire %d value %d bytes%s", t, k, it.Version, it.Expire, len(it.Value), problem(err))
		}
	}
	w.line("tablet %d items %d bytes %d corrupt %d", t, n, size, bad)
}

func problem(err error) string {
	if err == nil {
		return ""
	}
	return " PROBLEM: " + err.Error()
}

// lineWriter writes lines until the first error.
type lineWriter struct {
	out io.Writer
	err error
}

func (w *lineWriter) line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format+"\n", args...)
	}
}

// OpenOffline opens the file of a stopped node for reading: Records, NodeGet, SyncedSeq and jobs work, and what writes fails. It does
// not check the partition of the tablets; Verify does.
func OpenOffline(path string) (*DB, error) {
	b, err := openOffline(path)
	if err != nil {
		return nil, err
	}
	db := newDB(b, Options{Logger: slog.New(slog.DiscardHandler)})
	db.loaded = true
	return db, nil
}
