package load

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

// bytesInFlightMax bounds what was read and not yet acknowledged.
const bytesInFlightMax = 64 << 20

// ImportOptions say how to import.
type ImportOptions struct {
	Format   Format
	Prefix   []byte        // put before every key
	Inflight int           // writes at a time; 0: 256
	Timeout  time.Duration // of one write; 0: none
	Progress *Progress
}

type record struct {
	where      string
	key, value []byte
}

// Import reads path ("-": in) and writes what it holds to kv. The report is valid also with an error.
func Import(ctx context.Context, kv client.KV, path string, in io.Reader, opt ImportOptions) (Report, error) {
	t := newTally(opt.Progress)
	im := &importer{kv: kv, opt: opt, tally: t, budget: newBudget(bytesInFlightMax)}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	im.cancel = cancel
	stopBudget := context.AfterFunc(ctx, im.budget.close)
	defer stopBudget()
	im.startWorkers(ctx)
	err := im.read(ctx, path, in)
	for _, w := range im.workers {
		close(w)
	}
	im.wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return t.report(), err
}

type importer struct {
	kv      client.KV
	opt     ImportOptions
	tally   *tally
	budget  *budget
	workers []chan record
	seed    maphash.Seed
	wg      sync.WaitGroup
	cancel  context.CancelCauseFunc
}

func (im *importer) startWorkers(ctx context.Context) {
	n := im.opt.Inflight
	if n <= 0 {
		n = 256
	}
	im.seed = maphash.MakeSeed()
	im.workers = make([]chan record, n)
	for i := range im.workers {
		im.workers[i] = make(chan record, 16)
		im.wg.Go(func() { im.work(ctx, im.workers[i]) })
	}
}

// work writes what one worker was given, in order. After a failure it only drains.
func (im *importer) work(ctx context.Context, records <-chan record) {
	for r := range records {
		if ctx.Err() == nil {
			im.write(ctx, r)
		}
		im.budget.give(len(r.key) + len(r.value))
	}
}

func (im *importer) write(ctx context.Context, r record) {
	wctx := ctx
	if im.opt.Timeout > 0 {
		var cancel context.CancelFunc
		wctx, cancel = context.WithTimeout(ctx, im.opt.Timeout)
		defer cancel()
	}
	_, err := im.kv.Put(wctx, r.key, r.value)
	switch {
	case err == nil:
		im.tally.done(r.key, r.value)
	case errors.Is(err, client.ErrInvalid):
		im.tally.reject(r.where, err)
	default:
		im.cancel(fmt.Errorf("%s: %w", r.where, err))
	}
}

// send routes a record to the worker of its key. It copies nothing: key and value belong to the record.
func (im *importer) send(ctx context.Context, r record) error {
	if len(im.opt.Prefix) > 0 {
		r.key = append(append(make([]byte, 0, len(im.opt.Prefix)+len(r.key)), im.opt.Prefix...), r.key...)
	}
	im.budget.take(len(r.key) + len(r.value))
	w := maphash.Bytes(im.seed, r.key) % uint64(len(im.workers))
	select {
	case im.workers[w] <- r:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (im *importer) read(ctx context.Context, path string, in io.Reader) error {
	if im.opt.Format == Dir {
		if path == "-" {
			return fmt.Errorf("%w: dir reads a directory, not standard input", client.ErrInvalid)
		}
		return im.readDir(ctx, path)
	}
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			im.tally.p.BytesTotal.Store(st.Size())
		}
		in = f
	}
	return im.readLines(ctx, in)
}

func (im *importer) readLines(ctx context.Context, in io.Reader) error {
	parse := parseTSV
	if im.opt.Format == JSONL {
		parse = parseJSONL
	}
	lines := newLineReader(in)
	for n := 1; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		line, err := lines.next()
		if err == io.EOF {
			return nil
		}
		where := "line " + strconv.Itoa(n)
		if err != nil && err != errLineTooLong {
			return fmt.Errorf("%s: %w", where, err)
		}
		if err == nil && len(line) == 0 {
			continue
		}
		r := record{where: where}
		if err == nil {
			r.key, r.value, err = parse(line)
		}
		if err != nil {
			im.tally.reject(where, err)
			continue
		}
		if err := im.send(ctx, r); err != nil {
			return err
		}
	}
}

// valueBytesMax saves reading a file that no cluster takes; the exact limit is the cluster's.
const valueBytesMax = 8 << 20

func (im *importer) readDir(ctx context.Context, dir string) error {
	if st, err := os.Stat(dir); err != nil {
		return err
	} else if !st.IsDir() {
		return fmt.Errorf("%w: %s is no directory", client.ErrInvalid, dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if im.opt.Progress != nil {
		im.tally.p.BytesTotal.Store(treeSize(ctx, root))
	}
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			im.tally.reject(path, err)
			return nil
		case d.IsDir():
			return nil
		}
		value, err := readRegular(root, path, d)
		if err != nil {
			im.tally.reject(path, err)
			return nil
		}
		return im.send(ctx, record{where: path, key: []byte(filepath.ToSlash(path)), value: value})
	})
}

// treeSize adds up what there is to read, for a progress bar; what it cannot see does not count.
func treeSize(ctx context.Context, root *os.Root) (sum int64) {
	_ = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ctx.Err()
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return ctx.Err()
	})
	return sum
}

func readRegular(root *os.Root, path string, d fs.DirEntry) ([]byte, error) {
	if !d.Type().IsRegular() {
		return nil, fmt.Errorf("not a regular file (%s)", d.Type())
	}
	info, err := d.Info()
	if err != nil {
		return nil, err
	}
	if info.Size() > valueBytesMax {
		return nil, fmt.Errorf("file of %d bytes, values have at most %d", info.Size(), valueBytesMax)
	}
	return root.ReadFile(path)
}

// budget is a counting semaphore of bytes. One record larger than all of it may pass alone.
type budget struct {
	mu     sync.Mutex
	cond   *sync.Cond
	used   int // guarded by mu
	max    int
	closed bool // guarded by mu: take no longer waits
}

func newBudget(max int) *budget {
	b := &budget{max: max}
	b.cond = sync.NewCond(&b.mu)
	return b
}

func (b *budget) take(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.used > 0 && b.used+n > b.max && !b.closed {
		b.cond.Wait()
	}
	b.used += n
}

func (b *budget) give(n int) {
	b.mu.Lock()
	b.used -= n
	b.mu.Unlock()
	b.cond.Broadcast()
}

func (b *budget) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cond.Broadcast()
}
