package state

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// walkBytes is how much a step of a walker reads in one transaction.
const walkBytes = 128 << 10

// walker reads the whole content of a replica, frozen overlays merged in, in order and in steps. Each step has a transaction
// of its own and checks the record in it, so pages are reused behind it, and yet all steps see the same content (rule State3).
type walker struct {
	store  Store
	job    ReadJob
	frozen []*Overlay
	page   Page
	opt    MergeOptions
	end    bool
}

func newWalker(s Store, rec *Record, frozen []*Overlay) *walker {
	w := &walker{store: s, frozen: frozen}
	w.job = ReadJob{Key: rec.Key, Extents: rec.Extents, Applied: rec.Applied, Bytes: walkBytes}
	w.opt.Bytes = walkBytes
	if n := len(rec.Extents); n > 0 {
		w.opt.Start, w.opt.End = rec.Extents[0].Start, rec.Extents[n-1].End
	}
	return w
}

// step returns the next items, valid until the next step, and whether there may be more.
func (w *walker) step() (items []KV, more bool, err error) {
	if w.end {
		return nil, false, nil
	}
	w.job.Start, w.job.End = w.opt.Start, w.opt.End
	w.store.RunJob(&w.job)
	if w.job.Err != nil {
		return nil, false, w.job.Err
	}
	MergePage(&w.page, &w.job.Page, w.opt, w.frozen...)
	w.end = !w.page.More
	w.opt.Start = append([]byte(nil), w.page.CompleteTo...)
	return w.page.Items, w.page.More, nil
}

// summer adds up a Content.
type summer struct {
	content Content
	hash    *xxhash.Digest
	head    [28]byte
}

func newSummer() *summer { return &summer{hash: xxhash.New()} }

func (s *summer) add(key []byte, it Item) {
	binary.LittleEndian.PutUint32(s.head[:], uint32(len(key)))
	binary.LittleEndian.PutUint64(s.head[4:], it.Version)
	binary.LittleEndian.PutUint64(s.head[12:], uint64(it.Expire))
	binary.LittleEndian.PutUint64(s.head[20:], uint64(len(it.Value)))
	_, _ = s.hash.Write(s.head[:])
	_, _ = s.hash.Write(key)
	_, _ = s.hash.Write(it.Value)
	s.content.Items++
	s.content.Bytes += uint64(len(key) + len(it.Value))
}

func (s *summer) sum() Content {
	s.content.Checksum = s.hash.Sum64()
	return s.content
}

// Checksum reads the replica's content, as in the store and its frozen overlays, newest first, and returns what it adds up
// to. It is for goroutines other than a lane, and fails with ErrMoved if the replica is checkpointed meanwhile.
func (db *DB) Checksum(rec Record, frozen ...*Overlay) (Content, error) {
	return ChecksumOf(db, rec, frozen...)
}

// ChecksumOf is Checksum over any Store.
func ChecksumOf(s Store, rec Record, frozen ...*Overlay) (Content, error) {
	w := newWalker(s, &rec, frozen)
	sum := newSummer()
	for more := true; more; {
		var items []KV
		var err error
		if items, more, err = w.step(); err != nil {
			return Content{}, err
		}
		for i := range items {
			sum.add(items[i].Key, items[i].Item)
		}
	}
	return sum.sum(), nil
}
