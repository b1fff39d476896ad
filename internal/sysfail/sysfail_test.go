package sysfail

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var syncing, creating, reading error
	try := func() {
		syncing = f.Sync()
		_, creating = os.Create(path + "2")
		_, reading = os.ReadFile(path)
	}
	for _, c := range []struct {
		calls         []Call
		sync, created bool // they fail
	}{
		{[]Call{Fsync}, true, false}, {[]Call{OpenWrite}, false, true}, {[]Call{Fdatasync, Fsync, Fallocate, OpenWrite}, true, true},
		{[]Call{Fdatasync, Fallocate}, false, false}, {nil, false, false},
	} {
		err := Do(syscall.EIO, try, c.calls...)
		if errors.Is(err, ErrUnsupported) {
			t.Skip(err)
		}
		if err != nil || reading != nil || errors.Is(syncing, syscall.EIO) != c.sync || errors.Is(creating, syscall.EIO) != c.created {
			t.Errorf("%v: sync %v, create %v, read %v, %v", c.calls, syncing, creating, reading, err)
		}
		if err := f.Sync(); err != nil {
			t.Errorf("%v: another thread's sync: %v", c.calls, err)
		}
	}
}
