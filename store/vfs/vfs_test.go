package vfs_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, fs vfs.FS, name string, content string) vfs.File {
	t.Helper()
	f, err := fs.Create(name)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, err)
	return f
}

func content(t *testing.T, fs vfs.FS, name string) string {
	t.Helper()
	f, err := fs.Open(name)
	must(t, err)
	n, err := f.Size()
	must(t, err)
	b := make([]byte, n)
	if n > 0 {
		_, err = f.ReadAt(b, 0)
		must(t, err)
	}
	must(t, f.Close())
	return string(b)
}

// TestSameOnBoth runs one script on both file systems.
func TestSameOnBoth(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"os": vfs.OS(), "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a", "b")
			must(t, fs.MkdirAll(dir))
			x, y := filepath.Join(dir, "x"), filepath.Join(dir, "y")
			f := create(t, fs, x, "hello")
			if _, err := fs.Create(x); err == nil {
				t.Fatal("created twice")
			}
			must(t, f.Allocate(2000))
			must(t, f.Datasync())
			if got := content(t, fs, x); got != string(make([]byte, 2000)) {
				t.Fatalf("allocated: %q", got)
			}
			must(t, f.Truncate(3))
			if n, err := f.ReadAt(make([]byte, 4), 0); n != 3 || err == nil {
				t.Fatalf("read past the end: %d, %v", n, err)
			}
			must(t, fs.Rename(x, y))
			must(t, fs.SyncDir(dir))
			if names, err := fs.List(dir); err != nil || !slices.Equal(names, []string{"y"}) {
				t.Fatal(names, err)
			}
			must(t, f.Close())
			if _, err := f.WriteAt([]byte("x"), 0); err == nil {
				t.Fatal("wrote to a closed file")
			}
			must(t, fs.Remove(y))
			if _, err := fs.Open(y); err == nil {
				t.Fatal("opened a removed file")
			}
		})
	}
}

func TestCrashLosesWhatIsNotSynced(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("d"))
	f := create(t, m, "d/kept", "synced")
	must(t, f.Datasync())
	must(t, m.SyncDir("d"))
	create(t, m, "d/unnamed", "x")
	_, err := f.WriteAt([]byte("LOST"), 0)
	must(t, err)
	must(t, m.Rename("d/kept", "d/renamed"))
	r := rand.New(rand.NewPCG(1, 1))
	after := m.Crash(r, vfs.CrashPolicy{})
	if names, _ := after.List("d"); !slices.Equal(names, []string{"kept"}) {
		t.Fatalf("names after a crash: %v", names)
	}
	if got := content(t, after, "d/kept"); got != "synced" {
		t.Fatalf("content after a crash: %q", got)
	}
	all := m.Crash(r, vfs.CrashPolicy{KeepWrite: 1, KeepDir: 1})
	if names, _ := all.List("d"); !slices.Equal(names, []string{"renamed", "unnamed"}) || content(t, all, "d/renamed") != "LOSTed" {
		t.Fatalf("a crash that keeps everything leaves %v", names)
	}
	if got := content(t, m, "d/renamed"); got != "LOSTed" {
		t.Fatalf("the crash has changed the original: %q", got)
	}
}

func TestCrashTearsAtSectors(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("d"))
	f := create(t, m, "d/f", "")
	must(t, f.Allocate(16*vfs.SectorSize))
	must(t, f.Datasync())
	must(t, m.SyncDir("d"))
	_, err := f.WriteAt(bytes.Repeat([]byte{1}, 10*vfs.SectorSize), 100)
	must(t, err)
	torn := 0
	for s := range uint64(20) {
		got := content(t, m.Crash(rand.New(rand.NewPCG(s, 0)), vfs.CrashPolicy{TearWrite: 1}), "d/f")
		kept := 0
		for off := 0; off < len(got); off += vfs.SectorSize {
			n := bytes.Count([]byte(got[off:off+vfs.SectorSize]), []byte{1})
			if n != 0 && n != vfs.SectorSize && off != 0 && off != 10*vfs.SectorSize {
				t.Fatalf("seed %d: half a sector at %d", s, off)
			}
			kept += min(n, 1)
		}
		if kept > 0 && kept < 11 {
			torn++
		}
	}
	if torn < 10 {
		t.Fatalf("only %d of 20 writes were torn", torn)
	}
}

func TestInject(t *testing.T) {
	m := vfs.NewMem()
	var kinds []vfs.OpKind
	fail := vfs.OpKind(0)
	fs := vfs.Inject(m, func(op *vfs.Op) error {
		kinds = append(kinds, op.Kind)
		if op.Kind == fail {
			op.Size /= 2
			return unix.EIO
		}
		return nil
	})
	must(t, fs.MkdirAll("d"))
	f := create(t, fs, "d/f", "12345678")
	fail = vfs.OpWrite
	if n, err := f.WriteAt([]byte("abcdefgh"), 0); n != 4 || !errors.Is(err, unix.EIO) {
		t.Fatalf("short write: %d, %v", n, err)
	}
	if got := content(t, m, "d/f"); got != "abcd5678" {
		t.Fatalf("short write left %q", got)
	}
	if want := []vfs.OpKind{vfs.OpMkdir, vfs.OpCreate, vfs.OpWrite, vfs.OpWrite}; !slices.Equal(kinds, want) {
		t.Fatalf("operations %v", kinds)
	}
}
