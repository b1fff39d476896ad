package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Sample is a key with about how many bytes lie from it up to the next sampled key.
type Sample struct {
	Key   []byte
	Bytes uint64
}

// Samples appends about max of the overlay's keys, all if there are no more. The keys are copies, so that the overlay may change or be
// released meanwhile. They are in no order; what was deleted is not among them.
func (o *Overlay) Samples(list []Sample, max int) []Sample {
	every, n := uint64(o.n/max+1), uint64(0)
	for c := range o.chunks {
		for at, next := 0, 0; at < len(o.chunks[c]); at = next {
			e := o.chunks[c][at:]
			next = at + entrySize(e)
			if flagsOf(e)&flagCopy != 0 {
				continue
			}
			if n++; n*0x9e3779b97f4a7c15>>32%every != 0 { // mixed, as keys may come in a rhythm
				continue
			}
			if e = o.newest(place(c<<16 | at)); flagsOf(e)&flagDeleted == 0 {
				key := keyOf(e)
				list = append(list, Sample{bytes.Clone(key), every * uint64(len(key)+len(itemOf(e).Value))})
			}
		}
	}
	return list
}

// samplesPerPart is how many samples a part should at least be made of, else items are counted instead of pages.
const samplesPerPart = 16

// SplitKeys returns up to parts-1 keys that cut the content of a replica into parts of about the same size: rec as in the store, and
// samples of its overlays. It looks at the inner pages of the trees, and at the items only of small ones. What an overlay
// overwrites is counted twice.
func (db *DB) SplitKeys(rec Record, parts int, overlays []Sample) ([][]byte, error) {
	var list []Sample
	err := db.kv.view(func(tx kvTx) error {
		job := ReadJob{Key: rec.Key, Extents: rec.Extents, Applied: rec.Applied}
		if err := job.verify(tx); err != nil {
			return err
		}
		for _, e := range rec.Extents {
			b, ok := tx.tablet(e.Tablet)
			if !ok {
				return fmt.Errorf("%w: tablet %d does not exist", ErrCorrupt, e.Tablet)
			}
			part, err := samplePages(b, e)
			if err != nil {
				return err
			}
			if len(part) < samplesPerPart*parts {
				part = sampleItems(b, e)
			}
			list = append(list, part...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sample replica %v: %w", rec.Key, err)
	}
	for _, x := range overlays {
		if _, ok := find(rec.Extents, x.Key); ok {
			list = append(list, x)
		}
	}
	slices.SortStableFunc(list, func(a, b Sample) int { return bytes.Compare(a.Key, b.Key) })
	return cutSamples(list, parts, rec.Extents), nil
}

// cutSamples chooses the keys at which equal parts of the bytes end.
func cutSamples(list []Sample, parts int, extents []Extent) [][]byte {
	total, sum := uint64(0), uint64(0)
	for i := range list {
		total += list[i].Bytes
	}
	var keys [][]byte
	if len(extents) == 0 || total == 0 {
		return nil
	}
	last := extents[0].Start
	for i := range list {
		// Parts that end before this key: as many as total*n/parts <= sum allows.
		if n := uint64(len(keys)) + 1; n < uint64(parts) && sum >= total/uint64(parts)*n && bytes.Compare(list[i].Key, last) > 0 {
			keys = append(keys, list[i].Key)
			last = list[i].Key
		}
		sum += list[i].Bytes
	}
	return keys
}

func sampleItems(b kvBucket, e Extent) []Sample {
	var list []Sample
	c := b.Cursor()
	for k, v := seek(c, e.Start); k != nil && e.Contains(k); k, v = c.Next() {
		list = append(list, Sample{bytes.Clone(k), uint64(len(k) + len(v))})
	}
	return list
}

// samplePages returns the first key of every leaf page of e, as the inner pages name them. None if the backend has no pages.
func samplePages(b kvBucket, e Extent) ([]Sample, error) {
	bb, ok := b.(boltBucket)
	if !ok || bb.kv == nil || bb.kv.file == nil || bb.Root() == 0 { // without a page of its own it is small
		return nil, nil
	}
	s := pageSampler{kv: bb.kv, e: e}
	err := s.page(uint64(bb.Root()), nil, 0)
	return s.list, err
}

// pageSampler reads pages as bbolt writes them: header id 8, flags 2, count 2, overflow 4; in an inner page for each child: position 4 of
// the key, from here, its size 4, page 8. The pages of a tree do not change while a transaction that sees it is open.
type pageSampler struct {
	kv   *boltKV
	e    Extent
	list []Sample
	bufs [pageDepthMax][]byte
}

const (
	pageHeader     = 16
	pageElement    = 16
	pageInner      = 1
	pageDepthMax   = 32
	pageLeafProbes = 8 // leaves of an inner page that are looked at for their size
)

var errPage = errors.New("unexpected page")

// head reads the header of a page.
func (s *pageSampler) head(id uint64) (inner bool, count int, overflow int64, err error) {
	var h [pageHeader]byte
	if _, err := s.kv.file.ReadAt(h[:], int64(id)*s.kv.pageSize); err != nil {
		return false, 0, 0, err
	}
	if binary.NativeEndian.Uint64(h[:]) != id {
		return false, 0, 0, &CorruptError{What: fmt.Sprintf("page %d", id)}
	}
	return binary.NativeEndian.Uint16(h[8:])&pageInner != 0, int(binary.NativeEndian.Uint16(h[10:])), int64(binary.NativeEndian.Uint32(h[12:])), nil
}

// page adds the leaves below a page whose first key is key.
func (s *pageSampler) page(id uint64, key []byte, depth int) error {
	inner, count, overflow, err := s.head(id)
	if err != nil {
		return err
	}
	if !inner {
		s.add(key, uint64(overflow+1)*uint64(s.kv.pageSize))
		return nil
	}
	if depth == pageDepthMax {
		return errPage
	}
	size := int((overflow + 1) * s.kv.pageSize)
	s.bufs[depth] = slices.Grow(s.bufs[depth][:0], size)[:size]
	p := s.bufs[depth]
	if _, err := s.kv.file.ReadAt(p, int64(id)*s.kv.pageSize); err != nil {
		return err
	}
	kids, err := children(p, count)
	if err != nil || len(kids) == 0 {
		return cmp.Or(err, errPage)
	}
	kids = s.within(kids)
	leaves, err := s.leaves(kids)
	if err != nil || leaves {
		return err
	}
	for _, k := range kids {
		if err := s.page(k.id, k.key, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// leaves adds the children if they are leaves, which they all are or none is; sizes are those of a few of them.
func (s *pageSampler) leaves(kids []pageChild) (bool, error) {
	probes, pages := 0, int64(0)
	for i := 0; i < len(kids); i += max(1, len(kids)/pageLeafProbes) {
		inner, _, overflow, err := s.head(kids[i].id)
		if err != nil || inner {
			return false, err
		}
		probes++
		pages += overflow + 1
	}
	if probes == 0 {
		return true, nil
	}
	for _, k := range kids {
		s.add(k.key, uint64(pages*s.kv.pageSize)/uint64(probes))
	}
	return true, nil
}

func (s *pageSampler) add(key []byte, size uint64) {
	if s.e.Contains(key) {
		s.list = append(s.list, Sample{bytes.Clone(key), size})
	}
}

// within drops the children that hold nothing of the extent.
func (s *pageSampler) within(kids []pageChild) []pageChild {
	from, to := 0, len(kids)
	for from+1 < to && bytes.Compare(kids[from+1].key, s.e.Start) <= 0 {
		from++
	}
	for to > from && len(s.e.End) > 0 && bytes.Compare(kids[to-1].key, s.e.End) >= 0 {
		to--
	}
	return kids[from:to]
}

type pageChild struct {
	key []byte
	id  uint64
}

func children(p []byte, count int) ([]pageChild, error) {
	if pageHeader+count*pageElement > len(p) {
		return nil, errPage
	}
	kids := make([]pageChild, count)
	for i := range kids {
		at := pageHeader + i*pageElement
		pos := at + int(binary.NativeEndian.Uint32(p[at:]))
		end := pos + int(binary.NativeEndian.Uint32(p[at+4:]))
		if pos < at || end < pos || end > len(p) {
			return nil, errPage
		}
		kids[i] = pageChild{key: p[pos:end], id: binary.NativeEndian.Uint64(p[at+8:])}
	}
	return kids, nil
}
