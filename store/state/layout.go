package state

import (
	"encoding/binary"
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"
)

// A page of bbolt is a header, a table of items, and what the items hold, in their order and without gaps; a page of several pages' length is no longer than it
// must be. bbolt believes what the header and the table say: if there are too few items the last ones are not there for it, and nothing tells.
//
//	page:   id u64 │ kind u16 │ count u16 │ overflow u32 │ count items │ key value key value …
//	leaf:   flags u32 │ begin u32 │ key bytes u32 │ value bytes u32
//	branch: begin u32 │ key bytes u32 │ page u64
//
// All in the byte order of the machine; begin counts from the item. The value of a bucket is the page of its root and a number, u64 each; if the page is 0
// the root itself follows.
const (
	pageHeaderBytes = 16
	pageItemBytes   = 16
	pageKindBranch  = 1
	pageItemBucket  = 1
	pageFirst       = 2 // behind the meta pages, which have checksums
)

// layout is what is known of the pages of a file.
type layout struct {
	high  uint64          // pages before it are there
	named map[uint64]bool // a page has one place in the tree: one that had two, or was below itself, would be followed for ever
}

// verifyLayout checks this of all pages that are in use.
func verifyLayout(tx *bolt.Tx) error {
	f, err := os.Open(tx.DB().Path())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	size := tx.DB().Info().PageSize
	high := int(tx.Size()) / size
	l := &layout{high: uint64(high), named: map[uint64]bool{}}
	if err := l.name(uint64(tx.Cursor().Bucket().Root())); err != nil {
		return fmt.Errorf("%w: root: %w", ErrCorrupt, err)
	}
	var b []byte
	for id := pageFirst; id < high; {
		p, err := tx.Page(id)
		if err != nil {
			return err
		}
		n := 1
		switch p.Type {
		case "leaf", "branch":
			if n += p.OverflowCount; n > high-id {
				return fmt.Errorf("%w: page %d: %d pages long, and the last one is %d", ErrCorrupt, id, n, high-1)
			}
			b = append(b[:0], make([]byte, n*size)...)
			if _, err := f.ReadAt(b, int64(id)*int64(size)); err != nil {
				return fmt.Errorf("page %d: %w", id, err)
			}
			end, err := l.page(b)
			if err == nil && (end+size-1)/size != n {
				err = fmt.Errorf("%d bytes of %d pages are used", end, n)
			}
			if err != nil {
				return fmt.Errorf("%w: page %d: %w", ErrCorrupt, id, err)
			}
		case "freelist":
			n += p.OverflowCount
		}
		id += n
	}
	return nil
}

// page checks one page, and returns where it ends.
func (l *layout) page(b []byte) (int, error) {
	word := func(b []byte, i int) int { return int(binary.NativeEndian.Uint32(b[4*i:])) }
	if len(b) < pageHeaderBytes {
		return 0, fmt.Errorf("%d bytes are no page", len(b))
	}
	kind, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	end := pageHeaderBytes + count*pageItemBytes
	if end > len(b) {
		return 0, fmt.Errorf("%d items do not fit", count)
	}
	for i := range count {
		at := pageHeaderBytes + i*pageItemBytes
		it := b[at : at+pageItemBytes]
		flags, begin, keyBytes, valueBytes := word(it, 0), word(it, 1), word(it, 2), word(it, 3)
		if kind == pageKindBranch {
			flags, begin, keyBytes, valueBytes = 0, word(it, 0), word(it, 1), 0
			if err := l.name(binary.NativeEndian.Uint64(it[8:])); err != nil {
				return 0, fmt.Errorf("item %d of %d: %w", i, count, err)
			}
		}
		if at+begin != end || keyBytes+valueBytes > len(b)-end {
			return 0, fmt.Errorf("item %d of %d: %d bytes at %d; the one before it ends at %d, the page at %d", i, count, keyBytes+valueBytes, at+begin, end, len(b))
		}
		end += keyBytes + valueBytes
		if flags&pageItemBucket == 0 {
			continue
		}
		if err := l.bucket(b[end-valueBytes : end]); err != nil {
			return 0, fmt.Errorf("item %d of %d, a bucket: %w", i, count, err)
		}
	}
	return end, nil
}

func (l *layout) bucket(value []byte) error {
	const headerBytes = 16
	if len(value) < headerBytes {
		return fmt.Errorf("%d bytes", len(value))
	}
	root := binary.NativeEndian.Uint64(value)
	if root != 0 {
		return l.name(root)
	}
	end, err := l.page(value[headerBytes:])
	if err == nil && headerBytes+end != len(value) {
		err = fmt.Errorf("%d bytes of %d are used", headerBytes+end, len(value))
	}
	return err
}

func (l *layout) name(id uint64) error {
	switch {
	case id < pageFirst || id >= l.high:
		return fmt.Errorf("page %d is none of %d to %d", id, pageFirst, l.high-1)
	case l.named[id]:
		return fmt.Errorf("page %d is named twice", id)
	}
	l.named[id] = true
	return nil
}
