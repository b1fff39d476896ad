package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestDamagedTree: pages that lie in two places, below themselves, or nowhere, and such as are longer than what is in them, are corruption for Verify, which
// follows none of them (FAULTS D12).
func TestDamagedTree(t *testing.T) {
	const branch, overflowAt, childAt = 1, 12, pageHeaderBytes + 8
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	db := openTest(t, path, Options{})
	check(t, db.Write([]Change{{Record: wholeRecord(1, 2, 1), NewTablet: true, Overlay: numbered(0, 3000, 100)}}, 0))
	used := int(db.Stats().UsedBytes)
	check(t, db.Close())
	whole, err := os.ReadFile(path)
	check(t, err)
	size, at := os.Getpagesize(), 0
	for p := pageFirst * size; p < used; p += size {
		if binary.NativeEndian.Uint16(whole[p+8:]) == branch && binary.NativeEndian.Uint16(whole[p+10:]) > 1 {
			at = p
		}
	}
	if at == 0 {
		t.Fatal("there is no branch page")
	}
	put := func(off int, v uint64) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint64(b[at+off:], v) }
	}
	for what, spoil := range map[string]func(b []byte){
		"it is below itself":      put(childAt, uint64(at/size)),
		"its child has two":       put(childAt, binary.NativeEndian.Uint64(whole[at+childAt+pageItemBytes:])),
		"its child is not there":  put(childAt, uint64(used/size)+100),
		"its child is far away":   put(childAt, 1<<50),
		"its child is a meta":     put(childAt, 1),
		"it is longer than it is": func(b []byte) { binary.NativeEndian.PutUint32(b[at+overflowAt:], 1) },
		"it has no end":           func(b []byte) { binary.NativeEndian.PutUint32(b[at+overflowAt:], 1<<30) },
	} {
		bad := bytes.Clone(whole)
		spoil(bad)
		damaged := filepath.Join(dir, "damaged")
		check(t, os.WriteFile(damaged, bad, 0o600))
		if _, err := Verify(damaged); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		check(t, os.Remove(damaged))
	}
}

// leafPage makes a page with items; flags are those of all.
func leafPage(flags uint32, items ...string) []byte {
	b := make([]byte, pageHeaderBytes+len(items)*pageItemBytes)
	binary.NativeEndian.PutUint16(b[8:], 2)
	binary.NativeEndian.PutUint16(b[10:], uint16(len(items)))
	for i, value := range items {
		it := b[pageHeaderBytes+i*pageItemBytes:]
		binary.NativeEndian.PutUint32(it, flags)
		binary.NativeEndian.PutUint32(it[4:], uint32(len(b)-pageHeaderBytes-i*pageItemBytes))
		binary.NativeEndian.PutUint32(it[8:], 3)
		binary.NativeEndian.PutUint32(it[12:], uint32(len(value)))
		b = append(append(b, "key"...), value...)
	}
	return b
}

// TestLayout: no byte of a table of items can change without notice, in a page or in a bucket that is kept within another one's.
func TestLayout(t *testing.T) {
	inline := append(make([]byte, 16), leafPage(0, "value", "other")...)
	for what, page := range map[string][]byte{"a page": leafPage(0, "value", "", "other"), "a bucket": leafPage(pageItemBucket, string(inline))} {
		try := func(b []byte) error {
			end, err := (&layout{high: 100, named: map[uint64]bool{}}).page(b)
			if err == nil && end != len(b) {
				err = fmt.Errorf("it ends at %d of %d", end, len(b))
			}
			return err
		}
		if err := try(page); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		table := pageHeaderBytes + 3*pageItemBytes
		if what == "a bucket" {
			table = pageHeaderBytes + pageItemBytes + 3 + 16 + pageHeaderBytes + 2*pageItemBytes
		}
		for i := 10; i < table; i++ {
			if inKey := what == "a bucket" && i >= 32 && i <= 35; inKey || i >= 12 && i < 16 {
				continue // its key, a root that may be, and the overflow, which verifyLayout looks at
			}
			bad := bytes.Clone(page)
			bad[i] ^= 0x10
			err := try(bad)
			// Of flags only one bit counts; a bucket's number and the name and overflow of a page within it say nothing.
			quiet := i >= pageHeaderBytes && (i-pageHeaderBytes)%pageItemBytes < 4 && (what == "a page" || i < 20)
			if what == "a bucket" && i >= 43 {
				in := i - 51
				quiet = in < 10 || in >= 12 && in < 16 || in >= 16 && (in-16)%pageItemBytes < 4
			}
			if (err == nil) != quiet {
				t.Errorf("%s: byte %d of %d: %v", what, i, len(page), err)
			}
		}
		for n := range len(page) {
			if try(page[:n]) == nil {
				t.Errorf("%s: the first %d of %d bytes are one", what, n, len(page))
			}
		}
	}
}
