package state

import (
	"bytes"
	"errors"
	"fmt"
)

// Records returns all records, sorted by key. The first call checks the partition of every tablet (rule State4) and removes
// tablets that nothing names: snapshots that were not linked before the process ended.
func (db *DB) Records() ([]Record, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.load(); err != nil {
		return nil, err
	}
	var records []Record
	err := db.kv.view(func(tx kvTx) (err error) {
		records, err = readRecords(tx, true)
		return err
	})
	return records, err
}

func readRecords(tx kvTx, meta bool) ([]Record, error) {
	var records []Record
	c := tx.space(spaceRecords).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r, err := decodeHead(k, v)
		if err != nil {
			return nil, err
		}
		if meta {
			m, err := unseal(spaceMeta, k, tx.space(spaceMeta).Get(k))
			if err != nil {
				return nil, fmt.Errorf("replica %v: %w", r.Key, err)
			}
			r.Meta = bytes.Clone(m)
		}
		records = append(records, r)
	}
	return records, nil
}

// checkMetas checks that each Meta has its record: bbolt does not notice that a page has lost its last items, and what a record names, that is not there, would
// be removed as if it belonged to nobody.
func checkMetas(tx kvTx, records []Record) error {
	c, n := tx.space(spaceMeta).Cursor(), 0
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if n >= len(records) || !bytes.Equal(k, recordKey(records[n].Key)) {
			return &CorruptError{Key: bytes.Clone(k), What: "the record of this replica is missing"}
		}
		n++
	}
	if n < len(records) {
		return &CorruptError{Key: recordKey(records[n].Key), What: "the meta of this replica is missing"}
	}
	return nil
}

func readGarbage(tx kvTx) ([]Extent, error) {
	var garbage []Extent
	c := tx.space(spaceGarbage).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		e, err := decodeGarbage(k, v)
		if err != nil {
			return nil, err
		}
		garbage = append(garbage, e)
	}
	return garbage, nil
}

// partition is what load finds.
type partition struct {
	live     liveTablets
	garbage  int
	unlinked []TabletID
}

// load checks the partition once, before anything else is done with tablets. db.mu is held.
func (db *DB) load() error {
	if db.loaded {
		return nil
	}
	var p partition
	err := db.kv.view(func(tx kvTx) (err error) {
		p, err = checkPartition(tx, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("check state: %w", err)
	}
	if len(p.unlinked) > 0 {
		db.log.Info("removing tablets of snapshots that were not linked", "count", len(p.unlinked))
		db.dead = p.unlinked
		if err := db.removeDead(); err != nil && !errors.Is(err, ErrNoSpace) { // a full disk keeps no node from starting
			return fmt.Errorf("remove unlinked tablets: %w", err)
		}
	}
	db.live = p.live
	db.garbageN.Store(int64(p.garbage))
	db.liveTabletsN.Store(int64(p.live.n))
	db.loaded = true
	return nil
}

// checkPartition checks that no two extents overlap, live or garbage, that their tablets exist, and that between them lies
// nothing. Tablets in which nothing is named are unlinked; skip leaves some out of all this.
func checkPartition(tx kvTx, skip map[TabletID]*unlinked) (partition, error) {
	var p partition
	records, err := readRecords(tx, false)
	if err != nil {
		return p, err
	}
	all, err := readGarbage(tx)
	if err != nil {
		return p, err
	}
	if err := checkMetas(tx, records); err != nil {
		return p, err
	}
	p.garbage = len(all)
	for i := range records {
		if err := checkExtents(records[i].Extents); err != nil {
			return p, fmt.Errorf("replica %v: %w", records[i].Key, err)
		}
		for _, e := range records[i].Extents {
			p.live.add(e.Tablet)
		}
		all = append(all, records[i].Extents...)
	}
	if err := normalize(all); err != nil {
		return p, err
	}
	named := make(map[TabletID]bool)
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Tablet == all[0].Tablet {
			n++
		}
		named[all[0].Tablet] = true
		if err := checkGaps(tx, all[:n]); err != nil {
			return p, err
		}
		all = all[n:]
	}
	err = tx.tablets(func(t TabletID) error {
		if !named[t] && skip[t] == nil {
			p.unlinked = append(p.unlinked, t)
		}
		return nil
	})
	return p, err
}

// checkGaps checks that the tablet of these extents, which are normal, has no key outside of them.
func checkGaps(tx kvTx, extents []Extent) error {
	t := extents[0].Tablet
	b, ok := tx.tablet(t)
	if !ok {
		return fmt.Errorf("%w: %w: tablet %d does not exist", ErrCorrupt, ErrExtents, t)
	}
	c := b.Cursor()
	at := []byte{}
	for _, e := range extents {
		k, _ := seek(c, at)
		if k != nil && bytes.Compare(k, e.Start) < 0 {
			return fmt.Errorf("%w: %w: tablet %d: key %q before %s belongs to nobody", ErrCorrupt, ErrExtents, t, k, extentString(e))
		}
		if len(e.End) == 0 {
			return nil
		}
		at = e.End
	}
	if k, _ := seek(c, at); k != nil {
		return fmt.Errorf("%w: %w: tablet %d: key %q belongs to nobody", ErrCorrupt, ErrExtents, t, k)
	}
	return nil
}

func seek(c kvCursor, at []byte) (key, value []byte) {
	if len(at) == 0 {
		return c.First()
	}
	return c.Seek(at)
}
