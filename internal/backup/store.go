package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kiloraft/kiloraft/internal/durable"
)

// Store keeps files by name. A name has letters, digits, and "/", ".", "-" and "_" in it. It is used by many goroutines.
type Store interface {
	// Put stores a file, durably and as a whole or not at all.
	Put(ctx context.Context, name string, data []byte) error
	// PutNew is Put, but leaves a file alone that is there: fs.ErrExist. Of several at a time one succeeds.
	PutNew(ctx context.Context, name string, data []byte) error
	// Get returns a file of at most max bytes; fs.ErrNotExist if there is none.
	Get(ctx context.Context, name string, max int64) ([]byte, error)
	// Size returns how long a file is; fs.ErrNotExist if there is none.
	Size(ctx context.Context, name string) (int64, error)
	// List returns the names that begin with a prefix that ends in "/", sorted.
	List(ctx context.Context, prefix string) ([]string, error)
}

// Open opens the store that a user named: s3://BUCKET/PREFIX, see openS3, or a directory, which is made when something is put there.
func Open(name string) (Store, error) {
	switch {
	case strings.HasPrefix(name, "s3://"):
		return openS3(name)
	case name == "" || strings.Contains(name, "://"):
		return nil, fmt.Errorf("store %q: want a directory or s3://BUCKET/PREFIX", name)
	}
	return directory(name), nil
}

// directory is a Store below a directory.
type directory string

func (d directory) path(name string) string {
	return filepath.Join(string(d), filepath.FromSlash(name))
}

// Put implements Store.
func (d directory) Put(_ context.Context, name string, data []byte) error {
	return d.put(name, data, os.Rename)
}

// PutNew implements Store.
func (d directory) PutNew(_ context.Context, name string, data []byte) error {
	return d.put(name, data, func(from, to string) error {
		err := os.Link(from, to) // unlike Rename it never replaces
		if err == nil || errors.Is(err, fs.ErrExist) {
			return errors.Join(err, os.Remove(from))
		}
		return os.Rename(from, to) // a file system without links: the last of several wins
	})
}

// put writes a file under a name of its own and has finish give it the right one.
func (d directory) put(name string, data []byte, finish func(from, to string) error) error {
	path := d.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".partial-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := finish(f.Name(), path); err != nil {
		_ = os.Remove(f.Name()) // if finish has not
		return err
	}
	// The entries of the directories up to the root, which this may have made.
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if err := durable.SyncDir(dir); err != nil || dir == filepath.Clean(string(d)) || dir == filepath.Dir(dir) {
			return err
		}
	}
}

// Get implements Store.
func (d directory) Get(ctx context.Context, name string, max int64) ([]byte, error) {
	n, err := d.Size(ctx, name)
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fmt.Errorf("%s: %d bytes, at most %d are expected", d.path(name), n, max)
	}
	return os.ReadFile(d.path(name))
}

// Size implements Store.
func (d directory) Size(_ context.Context, name string) (int64, error) {
	st, err := os.Stat(d.path(name))
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// List implements Store.
func (d directory) List(_ context.Context, prefix string) ([]string, error) {
	entries, err := os.ReadDir(d.path(prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, prefix+e.Name())
		}
	}
	slices.Sort(out)
	return out, err
}
