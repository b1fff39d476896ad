package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Write applies the changes in one transaction (see Store and Change).
func (db *DB) Write(changes []Change, syncedSeq uint64) error {
	for i := range changes {
		if o := changes[i].Overlay; o != nil && !o.frozen {
			panic("state: Write of an overlay that is not frozen")
		}
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.load(); err != nil {
		return err
	}
	var w write
	err := db.update(needOf(changes), func(tx kvTx) error {
		w = write{db: db, tx: tx, changes: changes}
		return w.run(syncedSeq)
	})
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	w.committed()
	return nil
}

func needOf(changes []Change) need {
	n := need{keys: 2, bytes: 64}
	for i := range changes {
		c := &changes[i]
		n.urgent = n.urgent || c.Record.Tombstone // frees space in the end
		n.keys += 4 + 2*len(c.Record.Extents)
		n.bytes += 512 + len(c.Record.Meta)
		if c.Overlay != nil {
			n.keys += c.Overlay.Len()
			n.bytes += c.Overlay.DataBytes() + c.Overlay.Len()*itemOverhead
		}
	}
	return n
}

// write is one Write in its transaction. First everything is checked and planned, then it is put.
type write struct {
	db      *DB
	tx      kvTx
	changes []Change
	old     []Record // what was stored, by change

	before, after []Extent // normal: what the records held and will hold, if that changes
	garbage       []Extent
	linked        []TabletID // tablets that were unlinked
	created       map[TabletID]bool
}

func (w *write) run(syncedSeq uint64) error {
	w.old = make([]Record, len(w.changes))
	moved := false
	seen := make(map[Key]bool, len(w.changes))
	for i := range w.changes {
		k := w.changes[i].Record.Key
		if seen[k] {
			return fmt.Errorf("replica %v: changed twice in one write", k)
		}
		seen[k] = true
		if err := w.check(i); err != nil {
			return err
		}
		c := &w.changes[i]
		moved = moved || c.NewTablet || len(c.DropExtents) > 0 || !equalExtents(w.old[i].Extents, c.Record.Extents)
	}
	if moved {
		if err := w.plan(); err != nil {
			return err
		}
	}
	for i := range w.changes {
		if err := w.putRecord(&w.changes[i].Record); err != nil {
			return err
		}
	}
	for i := range w.changes {
		if err := w.putOverlay(i); err != nil {
			return err
		}
	}
	seq, err := getNumber(w.tx, nodeSynced)
	if err != nil || seq >= syncedSeq {
		return err
	}
	return putNumber(w.tx, nodeSynced, syncedSeq)
}

// check compares change i with the stored records of its shard.
func (w *write) check(i int) error {
	r := &w.changes[i].Record
	if err := checkExtents(r.Extents); err != nil {
		return fmt.Errorf("replica %v: %w", r.Key, err)
	}
	if r.Tombstone && len(r.Extents) > 0 {
		return fmt.Errorf("replica %v: %w: a tombstone has none", r.Key, ErrExtents)
	}
	c := w.tx.space(spaceRecords).Cursor()
	shard := binary.BigEndian.AppendUint64(nil, uint64(r.Shard))
	for k, v := c.Seek(shard); bytes.HasPrefix(k, shard); k, v = c.Next() {
		s, err := decodeHead(k, v)
		if err != nil {
			return err
		}
		if s.Tombstone && s.Replica >= r.Replica && !r.Tombstone {
			return fmt.Errorf("replica %v: %w: tombstone of %v", r.Key, ErrTombstoned, s.Key)
		}
		if s.Replica != r.Replica {
			continue
		}
		if r.Applied.Less(s.Applied) && !r.Tombstone {
			return fmt.Errorf("replica %v: %w: %v after %v", r.Key, ErrStale, r.Applied, s.Applied)
		}
		if o := w.changes[i].Overlay; r.Applied == s.Applied && o != nil && o.n > 0 && !r.Tombstone {
			// Readers tell the data of before from that of after by Applied (rule State1).
			return fmt.Errorf("replica %v: %w: data changes and %v does not", r.Key, ErrStale, r.Applied)
		}
		w.old[i] = s
	}
	return nil
}

// plan finds what the changes do to tablets and their partition (rule State4).
func (w *write) plan() error {
	var drop []Extent
	for i := range w.changes {
		w.before = append(w.before, w.old[i].Extents...)
		w.after = append(w.after, w.changes[i].Record.Extents...)
		drop = append(drop, w.changes[i].DropExtents...)
	}
	for _, list := range [][]Extent{w.before, w.after, drop} {
		if err := normalize(list); err != nil {
			return err
		}
	}
	w.garbage = subtract(w.before, w.after)
	w.created = make(map[TabletID]bool)
	if x := subtract(drop, w.garbage); len(x) > 0 {
		return fmt.Errorf("%w: can not drop %s", ErrExtents, extentString(x[0]))
	}
	for i := range w.changes {
		if w.changes[i].NewTablet {
			if err := w.create(w.changes[i].Record.Extents); err != nil {
				return err
			}
		}
	}
	for _, e := range subtract(w.after, w.before) {
		if err := w.gain(e); err != nil {
			return err
		}
	}
	g := w.tx.space(spaceGarbage)
	for _, e := range w.garbage {
		key := garbageKey(e)
		if err := g.Put(key, seal(spaceGarbage, key, e.End)); err != nil {
			return err
		}
	}
	return nil
}

// create makes the tablets that the extents of a change with NewTablet name.
func (w *write) create(extents []Extent) error {
	for _, e := range extents {
		if w.created[e.Tablet] {
			continue
		}
		if _, ok := w.tx.tablet(e.Tablet); ok || e.Tablet == 0 {
			return fmt.Errorf("%w: new tablet %d exists", ErrExtents, e.Tablet)
		}
		if _, err := w.tx.createTablet(e.Tablet); err != nil {
			return err
		}
		w.created[e.Tablet] = true
	}
	return nil
}

// gain checks that nobody owns e, which no record of this write held before.
func (w *write) gain(e Extent) error {
	if w.created[e.Tablet] {
		return nil
	}
	u := w.db.unlinked[e.Tablet]
	if u == nil {
		return fmt.Errorf("%w: %s belongs to somebody else", ErrExtents, extentString(e))
	}
	if !u.finished {
		return fmt.Errorf("%w: tablet %d is not complete", ErrExtents, e.Tablet)
	}
	if u.any && (!holds(w.after, e.Tablet, u.first) || !holds(w.after, e.Tablet, u.last)) {
		return fmt.Errorf("%w: tablet %d holds %q to %q, not all in %s", ErrExtents, e.Tablet, u.first, u.last, extentString(e))
	}
	w.linked = append(w.linked, e.Tablet)
	return nil
}

func (w *write) putRecord(r *Record) error {
	key := recordKey(r.Key)
	if err := w.tx.space(spaceRecords).Put(key, seal(spaceRecords, key, appendHead(nil, r))); err != nil {
		return err
	}
	return w.tx.space(spaceMeta).Put(key, seal(spaceMeta, key, r.Meta))
}

// putOverlay applies the overlay of change i, in key order.
func (w *write) putOverlay(i int) error {
	o := w.changes[i].Overlay
	if o == nil || o.n == 0 {
		return nil
	}
	var (
		tablet TabletID
		bucket kvBucket
	)
	for it := o.Iter(nil, nil, false); it.Next(); {
		key := it.Key()
		t, ok, err := w.place(i, key)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if t != tablet || bucket == nil {
			if bucket, ok = w.tx.tablet(t); !ok {
				return fmt.Errorf("%w: tablet %d of replica %v does not exist", ErrCorrupt, t, w.changes[i].Record.Key)
			}
			tablet = t
		}
		if err := w.putEntry(bucket, tablet, &it); err != nil {
			return err
		}
	}
	return nil
}

func (w *write) putEntry(bucket kvBucket, tablet TabletID, it *Iter) error {
	key := it.Key()
	if it.Deleted() {
		return bucket.Delete(key)
	}
	item := it.Item()
	return bucket.Put(key, w.db.items.append(w.db.buf.take(itemOverhead+len(item.Value)), tablet, key, item))
}

// place tells in which tablet an overlay's key belongs; false if its range is garbage now. Records of different shards may
// cover the same key in different tablets, so a key goes only where its own replica held it.
func (w *write) place(i int, key []byte) (TabletID, bool, error) {
	if e, ok := find(w.changes[i].Record.Extents, key); ok {
		return e.Tablet, true, nil
	}
	if e, ok := find(w.old[i].Extents, key); ok {
		return e.Tablet, holds(w.after, e.Tablet, key), nil
	}
	return 0, false, fmt.Errorf("replica %v: %w: key %q is in none", w.changes[i].Record.Key, ErrExtents, key)
}

// committed brings what the DB knows up to date.
func (w *write) committed() {
	db := w.db
	for _, e := range w.before {
		db.live.remove(e.Tablet)
	}
	for _, e := range w.after {
		db.live.add(e.Tablet)
	}
	for _, t := range w.linked {
		delete(db.unlinked, t)
	}
	db.garbageN.Add(int64(len(w.garbage)))
	db.liveTabletsN.Store(int64(db.live.n))
}
