package state

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/internal/fault"
)

// CollectGarbage removes about budget keys of garbage in one transaction, fewer if there is no space for so many, and tells whether more is
// left. A tablet without live extents goes as a whole: bbolt frees its pages without touching what is in them.
func (db *DB) CollectGarbage(budget int) (more bool, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.load(); err != nil {
		return false, err
	}
	if err := db.removeDead(); err != nil {
		return false, fmt.Errorf("collect garbage: %w", err)
	}
	if db.garbageN.Load() == 0 {
		return false, nil
	}
	fault.At("garbage: collect")
	left, err := db.collect1(budget)
	for errors.Is(err, ErrNoSpace) && budget > 1 {
		budget /= 4
		left, err = db.collect1(budget)
	}
	if err != nil {
		return false, fmt.Errorf("collect garbage: %w", err)
	}
	fault.At("garbage: collected")
	db.garbageN.Store(left)
	return left > 0, nil
}

func (db *DB) collect1(budget int) (left int64, err error) {
	err = db.update(need{keys: budget + 8, bytes: 4096, urgent: true}, func(tx kvTx) error {
		garbage, err := readGarbage(tx)
		if err != nil {
			return err
		}
		left, err = db.collect(tx, garbage, budget)
		return err
	})
	return left, err
}

// removeDead removes the tablets of snapshots that were given up. db.mu is held.
func (db *DB) removeDead() error {
	if len(db.dead) == 0 {
		return nil
	}
	err := db.update(need{keys: 2 * len(db.dead), urgent: true}, func(tx kvTx) error {
		for _, t := range db.dead {
			if err := tx.deleteTablet(t); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		db.dead = nil
	}
	return err
}

// collect returns how many garbage extents are left.
func (db *DB) collect(tx kvTx, garbage []Extent, budget int) (int64, error) {
	left := int64(len(garbage))
	for i := 0; i < len(garbage) && budget > 0; {
		n := 1
		for i+n < len(garbage) && garbage[i+n].Tablet == garbage[i].Tablet {
			n++
		}
		dead := garbage[i : i+n]
		if !db.live.has(dead[0].Tablet) {
			if err := dropTablet(tx, dead); err != nil {
				return left, err
			}
			left -= int64(n)
			budget--
			i += n
			continue
		}
		used, done, err := clearExtent(tx, garbage[i], budget)
		if err != nil {
			return left, err
		}
		budget -= used
		if !done {
			return left, nil
		}
		left--
		i++
	}
	return left, nil
}

// dropTablet removes a tablet of which all extents are garbage.
func dropTablet(tx kvTx, dead []Extent) error {
	for _, e := range dead {
		if err := tx.space(spaceGarbage).Delete(garbageKey(e)); err != nil {
			return err
		}
	}
	if _, ok := tx.tablet(dead[0].Tablet); !ok {
		return nil
	}
	return tx.deleteTablet(dead[0].Tablet)
}

// clearExtent deletes up to budget keys of e. When none is left the extent is forgotten, else what is left stays garbage.
func clearExtent(tx kvTx, e Extent, budget int) (used int, done bool, err error) {
	b, ok := tx.tablet(e.Tablet)
	if !ok {
		return 0, false, fmt.Errorf("%w: tablet %d of a garbage extent does not exist", ErrCorrupt, e.Tablet)
	}
	var keys [][]byte // deleting moves the cursor
	c := b.Cursor()
	k, _ := seek(c, e.Start)
	for ; k != nil && e.Contains(k) && len(keys) < budget; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	done = k == nil || !e.Contains(k)
	rest := e
	if !done {
		rest.Start = bytes.Clone(k)
	}
	for _, key := range keys {
		if err := b.Delete(key); err != nil {
			return 0, false, err
		}
	}
	g := tx.space(spaceGarbage)
	if err := g.Delete(garbageKey(e)); err != nil {
		return 0, false, err
	}
	if !done {
		key := garbageKey(rest)
		err = g.Put(key, seal(spaceGarbage, key, rest.End))
	}
	return len(keys) + 1, done, err
}
