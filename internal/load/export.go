package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/durable"
	"github.com/kiloraft/kiloraft/internal/escape"
)

// ExportOptions say how to export.
type ExportOptions struct {
	Format   Format
	Prefix   []byte        // only keys that begin with it; they are written whole
	Timeout  time.Duration // of the wait for the next key; 0: none
	Progress *Progress
	alive    func() // called for each key
}

// PrefixEnd gives the end of the range of keys that begin with prefix; empty means unbounded.
func PrefixEnd(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

// Export writes all keys in order to path: a file, "-" (out), or for Dir a directory. A file appears under its name only
// when it is complete. The report is valid also with an error.
func Export(ctx context.Context, kv client.KV, path string, out io.Writer, opt ExportOptions) (Report, error) {
	t := newTally(opt.Progress)
	ctx, progress, stop := client.IdleTimeout(ctx, opt.Timeout)
	defer stop()
	opt.alive = progress
	var err error
	switch {
	case opt.Format == Dir && path == "-":
		err = fmt.Errorf("%w: dir writes a directory, not standard output", client.ErrInvalid)
	case opt.Format == Dir:
		err = exportDir(ctx, kv, path, opt, t)
	case path == "-":
		err = exportLines(ctx, kv, out, opt, t)
	default:
		err = exportFile(ctx, kv, path, opt, t)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return t.report(), err
}

func exportLines(ctx context.Context, kv client.KV, out io.Writer, opt ExportOptions, t *tally) error {
	encode := appendTSV
	if opt.Format == JSONL {
		encode = appendJSONL
	}
	w := bufio.NewWriterSize(out, 1<<20)
	var buf []byte
	for it, err := range kv.Scan(ctx, client.Range{Start: opt.Prefix, End: PrefixEnd(opt.Prefix)}) {
		if err != nil {
			return errors.Join(err, w.Flush())
		}
		opt.alive()
		buf = encode(buf[:0], it.Key, it.Value)
		if _, err := w.Write(buf); err != nil {
			return err
		}
		t.done(it.Key, it.Value)
	}
	return w.Flush()
}

func exportFile(ctx context.Context, kv client.KV, path string, opt ExportOptions, t *tally) (err error) {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return exportDevice(ctx, kv, path, opt, t) // a pipe or /dev/null: nothing to rename
	}
	tmp := path + ".partial"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = exportLines(ctx, kv, f, opt, t)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return durable.Replace(tmp, path)
}

func exportDevice(ctx context.Context, kv client.KV, path string, opt ExportOptions, t *tally) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(exportLines(ctx, kv, f, opt, t), f.Close())
}

// exportDir writes one file per key below dir. It is sequential on purpose: of "a" and "a/b" the one that comes first in key order
// wins, always.
func exportDir(ctx context.Context, kv client.KV, dir string, opt ExportOptions, t *tally) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	made := map[string]bool{".": true}
	for it, err := range kv.Scan(ctx, client.Range{Start: opt.Prefix, End: PrefixEnd(opt.Prefix)}) {
		if err != nil {
			return err
		}
		opt.alive()
		if err := writeBelow(root, made, it); err != nil {
			t.reject(escape.String(it.Key), err)
			continue
		}
		t.done(it.Key, it.Value)
	}
	return nil
}

// checkPath tells why a key cannot be a file below a directory.
func checkPath(key string) error {
	switch {
	case key == "":
		return errors.New("an empty key is no path")
	case strings.HasPrefix(key, "/"):
		return errors.New("an absolute path")
	case strings.IndexByte(key, 0) >= 0:
		return errors.New("a NUL byte in the path")
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return fmt.Errorf("not a clean path: part %q", part)
		case len(part) > 255:
			return fmt.Errorf("a part of %d bytes, file names have at most 255", len(part))
		}
	}
	return nil
}

func writeBelow(root *os.Root, made map[string]bool, it client.Item) error {
	key := string(it.Key)
	if err := checkPath(key); err != nil {
		return err
	}
	if parent := path.Dir(key); !made[parent] {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return fmt.Errorf("folder: %w", err)
		}
		made[parent] = true
	}
	// What is there already is replaced, not written through: a link must not lead the bytes elsewhere.
	if st, err := root.Lstat(key); err == nil && !st.IsDir() {
		if err := root.Remove(key); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(key, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(it.Value)
	return errors.Join(err, f.Close())
}
