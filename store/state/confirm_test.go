package state

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fakeMeta is a file of two pages that notes what is done to it.
type fakeMeta struct {
	pages [16]byte
	did   []string
	fail  string // what fails
}

var errFake = errors.New("fake")

func (f *fakeMeta) do(what string) error {
	if f.did = append(f.did, what); f.fail == what {
		return errFake
	}
	return nil
}

func (f *fakeMeta) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, f.pages[off:]), f.do("read")
}

func (f *fakeMeta) WriteAt(p []byte, off int64) (int, error) {
	if !bytes.Equal(p, f.pages[off:int(off)+len(p)]) {
		return 0, errors.New("another page is written")
	}
	f.pages[off] = 'w'
	return len(p), f.do("write")
}

func (f *fakeMeta) Sync() error { return f.do("sync") }

// The meta page of the newest transaction may be in the system's memory alone, when the process that wrote it was killed before its sync, or stopped because that
// failed. It is written again as it is and synced before the state is used; if that fails, the state does not open.
func TestMetaPageIsConfirmed(t *testing.T) {
	for tx, place := range map[int]int{6: 0, 7: 8} {
		f := &fakeMeta{pages: [16]byte{0: 'a', 1: 'b', 8: 'c', 9: 'd'}}
		if err := confirmMeta(f, 8, tx); err != nil {
			t.Fatal(err)
		}
		if len(f.did) != 3 || f.did[0] != "read" || f.did[1] != "write" || f.did[2] != "sync" || f.pages[place] != 'w' || f.pages[8-place] == 'w' {
			t.Errorf("transaction %d: %v, pages %q", tx, f.did, f.pages)
		}
	}
	for _, what := range []string{"read", "write", "sync"} {
		if err := confirmMeta(&fakeMeta{fail: what}, 8, 1); !errors.Is(err, errFake) {
			t.Errorf("%s failed: %v", what, err)
		}
	}

	// Open does it, also where it has nothing to write for itself: the file's time of change tells.
	path := filepath.Join(t.TempDir(), "state")
	if err := openTest(t, path, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1e9, 0)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := openTest(t, path, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || !info.ModTime().After(old) {
		t.Errorf("nothing was written by Open: %v, %v", info.ModTime(), err)
	}
	if !bytes.Equal(before, after) {
		t.Error("Open has changed the file")
	}
}
