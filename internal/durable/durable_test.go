package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kiloraft/kiloraft/internal/sysfail"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	for _, text := range []string{"one", "two"} {
		if err := os.WriteFile(from, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Replace(from, to); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(to); err != nil || string(b) != text {
			t.Errorf("%q, %v", b, err)
		}
	}
	if err := Replace(from, to); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := SyncDir(from); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// The new name is durable when Replace returns, or it says that it is not.
func TestReplaceSyncsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	sysfail.Test(t, syscall.EIO, func() { err = Replace(from, to) }, sysfail.Fsync)
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("on a disk that fails: %v", err)
	}
}
