package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
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
