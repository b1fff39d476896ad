package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kiloraft/kiloraft/internal/backup"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

// meeting is a store in which backups wait for each other before they store their manifests.
type meeting struct {
	backup.Store
	both *sync.WaitGroup
}

func (m *meeting) PutNew(ctx context.Context, name string, data []byte) error {
	m.both.Done()
	m.both.Wait()
	return m.Store.PutNew(ctx, name, data)
}

// TestSameName makes two backups of one name at a time: one succeeds, the other is refused, and what is there is the one's.
func TestSameName(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 2, 1)
	cl := c.Node(0).Client()
	put(t, cl, key(0), "value")
	dir := t.TempDir()
	for _, name := range []string{dir, bucketURL(t, "prefix")} {
		s, err := backup.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		m := &meeting{Store: s, both: new(sync.WaitGroup)}
		m.both.Add(2)
		var made [2]*backup.Manifest
		var errs [2]error
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { made[i], errs[i] = backup.Create(within(t), cl, m, create("one", "")) })
		}
		wg.Wait()
		won := 0
		if errs[0] != nil {
			won = 1
		}
		if err := errs[1-won]; errs[won] != nil || !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "backup one was made by somebody else meanwhile") {
			t.Fatalf("%s: %v", name, errs)
		}
		there, err := backup.Load(within(t), s, "one")
		if err != nil {
			t.Fatal(err)
		}
		if !there.Begin.Equal(made[won].Begin) {
			t.Errorf("%s: the manifest is that of %v, want %v", name, there.Begin, made[won].Begin)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", ".partial-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestPutNew: what is there stays as it is.
func TestPutNew(t *testing.T) {
	dir := t.TempDir()
	s, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutNew(within(t), "a/b", []byte("first")); err != nil {
		t.Fatal(err)
	}
	if err := s.PutNew(within(t), "a/b", []byte("second")); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if b, err := s.Get(within(t), "a/b", 10); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "a")); err != nil || len(entries) != 1 {
		t.Errorf("%s, %v", fmt.Sprint(entries), err)
	}
}
