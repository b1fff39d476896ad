package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/kiloraft/kiloraft/internal/load"
	"github.com/kiloraft/kiloraft/store/state"
)

// Verify reads everything that a backup names again and checks it: that the segments tile the key space, that every chunk has its checksum,
// size and number of keys, and that the keys are in order and in their segment. It goes on after a problem; the error joins up to problemsMax.
func Verify(ctx context.Context, s Store, name string, parallel int, p *load.Progress) (*Manifest, error) {
	m, err := Load(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if p != nil {
		p.BytesTotal.Store(m.Totals.Raw)
	}
	var mu sync.Mutex
	var bad []error
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, parallel))
	for i := range m.Segments {
		seg := &m.Segments[i]
		g.Go(func() error {
			err := verifySegment(gctx, s, seg, p)
			if err == nil || !errors.Is(err, ErrCorrupt) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if bad = append(bad, fmt.Errorf("segment from %q to %q: %w", seg.Start, seg.End, err)); len(bad) >= problemsMax {
				return errors.New("too many problems")
			}
			return nil
		})
	}
	err = g.Wait()
	return m, errors.Join(append(bad, err)...)
}

const problemsMax = 20

func verifySegment(ctx context.Context, s Store, seg *Segment, p *load.Progress) error {
	var last []byte
	for i := range seg.Chunks {
		c := &seg.Chunks[i]
		first := true
		err := getChunk(ctx, s, seg, c, func(kv state.KV) error {
			if first && last != nil && string(kv.Key) <= string(last) {
				return fmt.Errorf("%w: %s: key %q is not behind the chunk before", ErrCorrupt, chunkName(c.SHA256), kv.Key)
			}
			first, last = false, kv.Key
			return nil
		})
		if err != nil {
			return err
		}
		if p != nil {
			p.Keys.Add(c.Keys)
			p.Bytes.Add(c.Raw)
		}
	}
	return nil
}
