package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kiloraft/kiloraft/internal/load"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// RestoreOptions say how to restore.
type RestoreOptions struct {
	Name     string
	Cluster  string        // the id of the target
	Force    bool          // also if the target has keys: those of the backup replace them, others stay
	Parallel int           // segments at a time
	Patience time.Duration // for one write
	Journal  string        // a file that says what is done, so that a restore can go on; empty: none
	Progress *load.Progress
}

// ErrNotEmpty tells that the target has keys.
var ErrNotEmpty = errors.New("the target cluster has keys already")

const (
	batchOps   = 256
	batchBytes = 1 << 20
)

// Restore writes a backup into a cluster. Keys that had expired when their shard was cut are left out; versions are given anew.
// Nothing is written from a chunk that is not as it was stored.
func Restore(ctx context.Context, c *router.Client, s Store, opt RestoreOptions) (*Manifest, error) {
	m, err := Load(ctx, s, opt.Name)
	if err != nil {
		return nil, err
	}
	j, err := openJournal(opt.Journal, fmt.Sprintf("kiloraft-restore %s %s %s", opt.Name, m.Begin.Format(time.RFC3339Nano), opt.Cluster))
	if err != nil {
		return nil, err
	}
	defer j.close()
	if !opt.Force && !j.goesOn {
		if err := mustBeEmpty(ctx, c); err != nil {
			return nil, err
		}
	}
	if err := j.begin(); err != nil {
		return nil, err
	}
	if opt.Progress != nil {
		opt.Progress.BytesTotal.Store(m.Totals.Raw)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, opt.Parallel))
	for i := range m.Segments {
		for k := range m.Segments[i].Chunks {
			g.Go(func() error {
				done := fmt.Sprintf("%d %d", i, k)
				seg, chunk := &m.Segments[i], &m.Segments[i].Chunks[k]
				if !j.done[done] {
					if err := restoreChunk(gctx, c, s, seg, chunk, opt.Patience); err != nil {
						return err
					}
				}
				if opt.Progress != nil {
					opt.Progress.Keys.Add(chunk.Keys)
					opt.Progress.Bytes.Add(chunk.Raw)
				}
				return j.add(done)
			})
		}
	}
	return m, g.Wait()
}

func mustBeEmpty(ctx context.Context, c *router.Client) error {
	for e, err := range c.Scan(ctx, nil, nil, router.WithLimit(1), router.KeysOnly()) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w, %q for one", ErrNotEmpty, e.Key)
	}
	return nil
}

// restoreChunk writes a chunk once all of it was checked.
func restoreChunk(ctx context.Context, c *router.Client, s Store, seg *Segment, chunk *Chunk, patience time.Duration) error {
	var ops []shard.Op
	err := getChunk(ctx, s, seg, chunk, func(kv state.KV) error {
		if kv.Expire == 0 || kv.Expire > seg.Time {
			ops = append(ops, shard.Op{Kind: shard.OpPut, Key: kv.Key, Value: kv.Value, Expire: kv.Expire})
		}
		return nil
	})
	for err == nil && len(ops) > 0 {
		n, size := 0, 0
		for n < len(ops) && n < batchOps && (n == 0 || size < batchBytes) {
			size += len(ops[n].Key) + len(ops[n].Value)
			n++
		}
		err = writeBatch(ctx, c, ops[:n], patience)
		ops = ops[n:]
	}
	return err
}

// writeBatch writes neighbours; those that are of several shards, in halves.
func writeBatch(ctx context.Context, c *router.Client, ops []shard.Op, patience time.Duration) error {
	wctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ch := make(chan error, 1)
	c.GoWrite(wctx, &shard.Write{Ops: ops}, func(_ *shard.Result, err error) { ch <- err })
	err := <-ch
	if errors.Is(err, shard.ErrCrossShard) && len(ops) > 1 {
		half := len(ops) / 2
		if err := writeBatch(ctx, c, ops[:half], patience); err != nil {
			return err
		}
		return writeBatch(ctx, c, ops[half:], patience)
	}
	if err != nil {
		return fmt.Errorf("restore of %q: %w", ops[0].Key, err)
	}
	return nil
}

// journal is a file with a line for each chunk that was written.
type journal struct {
	mu     sync.Mutex
	f      *os.File
	head   string
	goesOn bool
	done   map[string]bool // not changed after openJournal
}

func openJournal(path, head string) (*journal, error) {
	j := &journal{head: head, done: map[string]bool{}}
	if path == "" {
		return j, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	j.f = f
	sc := bufio.NewScanner(f)
	for first := true; sc.Scan(); first = false {
		if !first {
			j.done[strings.TrimSuffix(sc.Text(), ".")] = strings.HasSuffix(sc.Text(), ".") // a line that was cut off does not count
			continue
		}
		if sc.Text() != head {
			return nil, errors.Join(fmt.Errorf("journal %s is of another restore: %q, not %q", path, sc.Text(), head), f.Close())
		}
		j.goesOn = true
	}
	if err := sc.Err(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (j *journal) begin() error {
	if j.f == nil || j.goesOn {
		if j.f != nil {
			_, err := j.f.WriteString("\n") // behind a line that was cut off
			return err
		}
		return nil
	}
	_, err := j.f.WriteString(j.head + "\n")
	return err
}

func (j *journal) add(line string) error {
	if j.f == nil || j.done[line] {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err := j.f.WriteString(line + ".\n")
	return err
}

func (j *journal) close() {
	if j.f != nil {
		_ = j.f.Close() // what was lost of it is written again
	}
}
