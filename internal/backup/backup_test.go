package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/kiloraft/kiloraft/internal/backup"
	"github.com/kiloraft/kiloraft/internal/sysfail"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router"
)

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func key(i int) []byte { return fmt.Appendf(nil, "%c/%05d", byte(i*37), i) }

func create(name, parent string) backup.CreateOptions {
	return backup.CreateOptions{Name: name, Parent: parent, Parallel: 2, Patience: 30 * time.Second}
}

// content is all that a cluster has.
func content(t *testing.T, c *router.Client) map[string]string {
	t.Helper()
	out := map[string]string{}
	for e, err := range c.Scan(within(t), nil, nil) {
		if err != nil {
			t.Fatal(err)
		}
		out[string(e.Key)] = string(e.Value)
	}
	return out
}

func put(t *testing.T, c *router.Client, k []byte, v string, opts ...router.WriteOption) {
	t.Helper()
	if _, err := c.Put(within(t), k, []byte(v), opts...); err != nil {
		t.Fatal(err)
	}
}

// TestBackupUnderTraffic backs a cluster up while counters rise and shards split and merge, and restores it into one of another size.
func TestBackupUnderTraffic(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 5, 3)
	cl := c.Node(0).Client()
	for i := range 300 {
		put(t, cl, key(i), strings.Repeat("v", i*7))
	}
	far := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	put(t, cl, []byte("expires"), "later", router.WithExpireAt(far))

	var acked, begun [8]atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	counter := func(w int) []byte { return fmt.Appendf(nil, "%ccounter", byte(w*32+1)) }
	for w := range acked {
		wg.Go(func() {
			for !stop.Load() {
				begun[w].Add(1)
				if _, err := c.Node(w%3).Client().Add(within(t), counter(w), 1); err != nil {
					t.Errorf("add: %v", err)
					return
				}
				acked[w].Add(1)
			}
		})
	}
	reshaped := 0
	wg.Go(func() { reshaped = reshape(c, &stop) })
	nodetest.Eventually(t, 30*time.Second, func() error {
		for w := range acked {
			if acked[w].Load() == 0 {
				return errors.New("a counter has not begun")
			}
		}
		return nil
	})
	var s backup.Store
	s, err := backup.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var low, high [8]int64
	for n := range 4 { // some of them while shards are split and merged
		for w := range acked {
			low[w] = acked[w].Load()
		}
		m, err := backup.Create(within(t), cl, s, create(fmt.Sprint("b", n), ""))
		if err != nil {
			t.Fatal(err)
		}
		for w := range begun {
			high[w] = begun[w].Load()
		}
		t.Logf("%d segments, %d keys, %d chunks, %d new", len(m.Segments), m.Totals.Keys, m.Totals.Chunks, m.Totals.NewChunks)
		if _, err := backup.Verify(within(t), s, m.Name, 2, nil); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if t.Logf("%d splits and merges", reshaped); reshaped == 0 {
		t.Error("no shard was split or merged: the test tests nothing")
	}

	to := nodetest.Start(t, 1, nodetest.Options{})
	to.Init(0, 3, 1)
	tcl := to.Node(0).Client()
	opt := backup.RestoreOptions{Name: "b3", Parallel: 4, Patience: 30 * time.Second}
	if _, err := backup.Restore(within(t), tcl, s, opt); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Restore(within(t), tcl, s, opt); !errors.Is(err, backup.ErrNotEmpty) {
		t.Fatalf("restore into a cluster with keys: %v", err)
	}
	got := content(t, tcl)
	for i := range 300 {
		if v, ok := got[string(key(i))]; !ok || v != strings.Repeat("v", i*7) {
			t.Fatalf("key %q: %d bytes, there %v", key(i), len(v), ok)
		}
	}
	for w := range low {
		var n int64
		if _, err := fmt.Sscan(got[string(counter(w))], &n); err != nil || n < low[w] || n > high[w] {
			t.Errorf("counter %d is %d (%v), want %d to %d: what it was between begin and end", w, n, err, low[w], high[w])
		}
	}
	if len(got) != 300+1+len(low) {
		t.Errorf("%d keys, want %d", len(got), 300+1+len(low))
	}
	e, err := tcl.Get(within(t), []byte("expires"))
	if err != nil || e.Expire != far.UnixMilli() {
		t.Errorf("expiry %d (%v), want %d", e.Expire, err, far.UnixMilli())
	}
}

// interrupted is a store that fails after some puts.
type interrupted struct {
	backup.Store
	left atomic.Int64
	puts atomic.Int64
}

func (s *interrupted) Put(ctx context.Context, name string, data []byte) error {
	if s.left.Add(-1) < 0 {
		return errors.New("the plug is pulled")
	}
	s.puts.Add(1)
	return s.Store.Put(ctx, name, data)
}

func (s *interrupted) Get(ctx context.Context, name string, max int64) ([]byte, error) {
	if strings.HasPrefix(name, "chunks/") && s.left.Add(-1) < 0 {
		return nil, errors.New("the plug is pulled")
	}
	return s.Store.Get(ctx, name, max)
}

// bucketURL names a prefix in a bucket of an S3 service that lives as long as the test, and lets the test in.
func bucketURL(t *testing.T, prefix string) string {
	server := httptest.NewServer(gofakes3.New(s3mem.New(), gofakes3.WithAutoBucket(true)).Server())
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "somebody")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "something secret")
	return "s3://bucket/" + prefix + "?region=us-east-1&endpoint=" + server.URL
}

// TestInterruptedAndIncremental makes a backup in two attempts and a child of it, in S3, and restores in two attempts.
func TestInterruptedAndIncremental(t *testing.T) {
	s3, err := backup.Open(bucketURL(t, "some/prefix"))
	if err != nil {
		t.Fatal(err)
	}
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 6, 1)
	cl := c.Node(0).Client()
	for i := range 64 {
		put(t, cl, key(i), fmt.Sprint("value ", i))
	}
	s := &interrupted{Store: s3}
	s.left.Store(3)
	if _, err := backup.Create(within(t), cl, s, create("one", "")); err == nil {
		t.Fatal("a store that fails went unnoticed")
	}
	if names, err := backup.Names(within(t), s3); err != nil || len(names) != 0 {
		t.Fatalf("names %v, %v: a backup that failed must not be there", names, err)
	}
	s.left.Store(1 << 30)
	one, err := backup.Create(within(t), cl, s, create("one", ""))
	if err != nil {
		t.Fatal(err)
	}
	if one.Totals.Chunks <= 3 || one.Totals.NewChunks != one.Totals.Chunks-3 {
		t.Fatalf("%d chunks, %d new: want more than 3, of which 3 are from the first attempt", one.Totals.Chunks, one.Totals.NewChunks)
	}
	put(t, cl, key(0), "changed")
	two, err := backup.Create(within(t), cl, s, create("two", "one"))
	if err != nil {
		t.Fatal(err)
	}
	if two.Totals.Reused != 5 || two.Totals.NewChunks != 1 {
		t.Errorf("%d segments reused, %d chunks new: want 5 and 1", two.Totals.Reused, two.Totals.NewChunks)
	}
	if names, err := backup.Names(within(t), s3); err != nil || fmt.Sprint(names) != "[one two]" {
		t.Errorf("names %v, %v", names, err)
	}
	if _, err := backup.Verify(within(t), s3, "two", 2, nil); err != nil {
		t.Error(err)
	}
	want := content(t, cl)

	to := nodetest.Start(t, 1, nodetest.Options{})
	to.Init(0, 2, 1)
	opt := backup.RestoreOptions{Name: "two", Parallel: 1, Patience: 30 * time.Second, Journal: filepath.Join(t.TempDir(), "journal")}
	s.left.Store(2)
	if _, err := backup.Restore(within(t), to.Node(0).Client(), s, opt); err == nil {
		t.Fatal("a store that fails went unnoticed")
	}
	s.left.Store(two.Totals.Chunks - 2) // so the two that were restored are not read again
	if _, err := backup.Restore(within(t), to.Node(0).Client(), s, opt); err != nil {
		t.Fatal(err)
	}
	if got := content(t, to.Node(0).Client()); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("restored %d keys, want the %d of the source", len(got), len(want))
	}
	opt.Cluster = "another"
	if _, err := backup.Restore(within(t), to.Node(0).Client(), s, opt); err == nil {
		t.Error("the journal of another restore was taken")
	}
}

// TestCorruption damages every file of a backup in turn: each is found.
func TestCorruption(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 3, 1)
	for i := range 64 {
		put(t, c.Node(0).Client(), key(i), fmt.Sprint("value ", i))
	}
	dir := t.TempDir()
	s, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Create(within(t), c.Node(0).Client(), s, create("one", "")); err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		was, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		flipped := bytes.Clone(was)
		flipped[len(was)/2] ^= 4
		for what, b := range map[string][]byte{"a flipped bit": flipped, "a cut": was[:len(was)-1], "nothing": {}} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				return err
			}
			if _, err := backup.Verify(within(t), s, "one", 2, nil); !errors.Is(err, backup.ErrCorrupt) {
				t.Errorf("%s in %s: %v", what, path, err)
			}
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		if _, err := backup.Verify(within(t), s, "one", 2, nil); err == nil {
			t.Errorf("%s is missing, and verify is content", path)
		}
		return os.WriteFile(path, was, 0o600)
	})
	if err != nil || files != 4 {
		t.Fatalf("%d files, %v: want 4", files, err)
	}
	if _, err := backup.Verify(within(t), s, "one", 2, nil); err != nil {
		t.Error(err)
	}
}

// TestParent makes backups whose parent lacks a file, is damaged, or is of another cluster: none of them is taken at its word.
func TestParent(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 3, 1)
	cl := c.Node(0).Client()
	for i := range 64 {
		put(t, cl, key(i), fmt.Sprint("value ", i))
	}
	dir := t.TempDir()
	s, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	one, err := backup.Create(within(t), cl, s, create("one", ""))
	if err != nil {
		t.Fatal(err)
	}
	file := func(i int) string {
		sum := one.Segments[i].Chunks[0].SHA256
		return filepath.Join(dir, "chunks", sum[:2], sum+".zst")
	}
	if err := errors.Join(os.Remove(file(0)), os.Truncate(file(1), 10)); err != nil {
		t.Fatal(err)
	}
	two, err := backup.Create(within(t), cl, s, create("two", "one"))
	if err != nil {
		t.Fatal(err)
	}
	if two.Totals.Reused != 1 || two.Totals.NewChunks != 2 {
		t.Errorf("%d segments reused, %d chunks new: want 1 and 2", two.Totals.Reused, two.Totals.NewChunks)
	}
	if _, err := backup.Verify(within(t), s, "two", 1, nil); err != nil {
		t.Error(err)
	}

	other := nodetest.Start(t, 1, nodetest.Options{})
	other.Init(0, 3, 1)
	for i := range 64 {
		put(t, other.Node(0).Client(), key(i), fmt.Sprint("another ", i))
	}
	foreign, err := backup.Create(within(t), other.Node(0).Client(), s, create("foreign", "two"))
	if err != nil || foreign.Totals.Reused != 0 {
		t.Errorf("%+v, %v: want nothing reused of another cluster", foreign, err)
	}

	manifest := filepath.Join(dir, "manifests", "two.json")
	b, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	body, _, _ := bytes.Cut(b, []byte("\nsha256 "))
	body = append(bytes.Replace(body, []byte(one.Segments[0].Chunks[0].SHA256), []byte("../../../../../../../../etc/passwd"), 1), '\n')
	if err := os.WriteFile(manifest, fmt.Appendf(body, "sha256 %x\n", sha256.Sum256(body)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Verify(within(t), s, "two", 1, nil); !errors.Is(err, backup.ErrCorrupt) {
		t.Errorf("a path for a chunk: %v", err)
	}
	for name, parent := range map[string]string{"three": "two", "four": "missing", "five": "../two"} {
		if _, err := backup.Create(within(t), cl, s, create(name, parent)); err == nil {
			t.Errorf("a backup with the parent %s was made", parent)
		}
	}
	if names, err := backup.Names(within(t), s); err != nil || fmt.Sprint(names) != "[foreign one two]" {
		t.Errorf("names %v, %v", names, err)
	}
}

// What is not durable does not take the place of what was there (FAULTS D20).
func TestUnsyncedFileReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "below", "file")
	store, err := backup.Open(filepath.Dir(filepath.Dir(path)))
	if err == nil {
		err = store.Put(t.Context(), "below/file", []byte("old"))
	}
	if err != nil {
		t.Fatal(err)
	}
	sysfail.Test(t, syscall.EIO, func() { err = store.Put(t.Context(), "below/file", []byte("new")) }, sysfail.Fsync)
	b, rerr := os.ReadFile(path)
	if !errors.Is(err, syscall.EIO) || rerr != nil || string(b) != "old" {
		t.Errorf("on a disk that fails: %v; there is %q, %v", err, b, rerr)
	}
}
