package backup

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/load"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// CreateOptions say how to back up.
type CreateOptions struct {
	Name     string
	Parent   string        // a backup in the same store; segments of shards that applied nothing since are taken from it
	Parallel int           // shards at a time
	Patience time.Duration // for how long a shard may refuse to be read
	Progress *load.Progress
}

// Create makes a backup. If it fails there is none; begun again under the same name it does not store again what it had stored.
func Create(ctx context.Context, c *router.Client, s Store, opt CreateOptions) (*Manifest, error) {
	if err := CheckName(opt.Name); err != nil {
		return nil, err
	}
	if _, err := s.Size(ctx, manifestName(opt.Name)); err == nil {
		return nil, fmt.Errorf("backup %s exists in this store: choose another name", opt.Name)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b := &creator{c: c, s: s, opt: opt, unchanged: map[place]*Segment{}}
	if opt.Parent != "" {
		parent, err := Load(ctx, s, opt.Parent)
		if err != nil {
			return nil, err
		}
		b.take(parent)
	}
	m := &Manifest{Format: format, Name: opt.Name, Parent: opt.Parent, Begin: time.Now().UTC()}
	if err := c.LoadMap(ctx); err != nil {
		return nil, err
	}
	parts, err := b.readAll(ctx)
	if err != nil {
		return nil, err
	}
	m.End = time.Now().UTC()
	for _, p := range parts {
		m.Segments = append(m.Segments, p.segments...)
		m.Totals.NewChunks += p.newChunks
		m.Totals.NewStored += p.newStored
		if m.Cluster == "" {
			m.Cluster = p.cluster
		}
		if m.Cluster != p.cluster {
			return nil, fmt.Errorf("the servers are of two clusters, %s and %s", m.Cluster, p.cluster)
		}
	}
	m.sumUp()
	if err := m.checkTiles(); err != nil {
		return nil, err
	}
	data, err := m.encode()
	if err != nil {
		return nil, err
	}
	return m, b.finish(ctx, m.Name, data)
}

// finish stores the manifest, unless another backup of this name was finished meanwhile.
func (b *creator) finish(ctx context.Context, name string, manifest []byte) error {
	err := b.s.PutNew(ctx, manifestName(name), manifest)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if there, e := b.s.Get(ctx, manifestName(name), manifestBytesMax); e == nil && bytes.Equal(there, manifest) {
		return nil // it is this one: the store has taken it, and its answer was lost
	}
	return fmt.Errorf("backup %s was made by somebody else meanwhile, and this one is dropped: choose another name (%w)", name, err)
}

func (m *Manifest) sumUp() {
	for i := range m.Segments {
		if m.Segments[i].Reused {
			m.Totals.Reused++
		}
		for _, c := range m.Segments[i].Chunks {
			m.Totals.Keys += c.Keys
			m.Totals.Raw += c.Raw
			m.Totals.Stored += c.Stored
			m.Totals.Chunks++
		}
	}
}

// creator makes one backup.
type creator struct {
	c         *router.Client
	s         Store
	opt       CreateOptions
	cluster   string             // of the parent
	unchanged map[place]*Segment // of the parent
}

// place is what a shard had applied when a segment of it was read: if it is the same, so is the content.
type place struct {
	shard, term, index   uint64
	start, end, from, to string
}

func (s *Segment) place() place {
	return place{s.Shard, s.Term, s.Index, string(s.ShardStart), string(s.ShardEnd), string(s.Start), string(s.End)}
}

func (b *creator) take(parent *Manifest) {
	b.cluster = parent.Cluster
	for i := range parent.Segments {
		b.unchanged[parent.Segments[i].place()] = &parent.Segments[i]
	}
}

// part is the range of one shard as the map had it at the begin, which is read in one segment, or in several if it was split since.
type part struct {
	start, end []byte
	segments   []Segment
	cluster    string

	newChunks, newStored int64
}

func (b *creator) readAll(ctx context.Context) ([]*part, error) {
	var parts []*part
	for from := []byte(nil); ; {
		r, ok := b.c.Map().Lookup(from)
		if !ok {
			return nil, fmt.Errorf("%w: no shard is known to hold %q", shard.ErrUnavailable, from)
		}
		parts = append(parts, &part{start: from, end: r.End})
		if len(r.End) == 0 {
			break
		}
		from = r.End
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, b.opt.Parallel))
	for _, p := range parts {
		g.Go(func() error { return b.readPart(ctx, p) })
	}
	return parts, g.Wait()
}

func (b *creator) readPart(ctx context.Context, p *part) error {
	at := p.start
	refusing := time.Now()
	for {
		seg, err := b.readSegment(ctx, p, at)
		if err == nil {
			p.segments = append(p.segments, *seg)
			refusing = time.Now()
			if at = seg.End; len(at) == 0 || bytes.Equal(at, p.end) {
				return nil
			}
			continue
		}
		if ctx.Err() != nil || !passing(err) || time.Since(refusing) > b.opt.Patience {
			return fmt.Errorf("backup from key %q on: %w", at, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
		if err := b.c.Refresh(ctx, at); err != nil && ctx.Err() != nil {
			return err
		}
	}
}

// passing tells whether an error may go away: the shard has moved, split or been abandoned for its writes.
func passing(err error) bool {
	return !errors.Is(err, shard.ErrDenied) && !errors.Is(err, shard.ErrInvalid) && !errors.Is(err, errStore)
}

var errStore = errors.New("backup store")

// readSegment reads the shard that owns key at, up to the end of p.
func (b *creator) readSegment(ctx context.Context, p *part, at []byte) (*Segment, error) {
	r, ok := b.c.Map().Lookup(at)
	if !ok {
		return nil, fmt.Errorf("%w: no shard is known to hold %q", shard.ErrUnavailable, at)
	}
	node, page, err := b.openCut(ctx, &r, at)
	if err != nil {
		return nil, err
	}
	cut := &cutReader{b: b, node: node, id: page.Cut, shard: r.Desc.Shard}
	defer cut.close()
	seg, err := describe(page, p, at)
	if err != nil {
		return nil, err
	}
	p.cluster = hex.EncodeToString(page.Cluster[:])
	if old := b.unchanged[seg.place()]; old != nil && b.cluster == p.cluster {
		if there, err := hasChunks(ctx, b.s, old); err != nil {
			return nil, fmt.Errorf("%w: %w", errStore, err)
		} else if there {
			seg.Reused, seg.Chunks, seg.Checksum = true, old.Chunks, old.Checksum
			return seg, nil
		}
	}
	return seg, b.copyCut(ctx, cut, p, seg)
}

// openCut asks the leader, as far as it is known, and then the other replicas.
func (b *creator) openCut(ctx context.Context, r *router.Route, at []byte) (engine.NodeID, *api.CutPage, error) {
	nodes := []engine.NodeID{r.Leader}
	for _, rep := range r.Desc.Replicas {
		if rep.Node != r.Leader {
			nodes = append(nodes, rep.Node)
		}
	}
	var errs []error
	for _, n := range nodes {
		if n == 0 {
			continue
		}
		page, err := b.call(ctx, n, &api.CutRequest{Shard: r.Desc.Shard, Version: r.Desc.Version, Key: at})
		if err == nil {
			b.c.Map().HintLeader(r.Desc.Shard, n)
			return n, page, nil
		}
		if errs = append(errs, fmt.Errorf("node %d: %w", n, err)); !passing(err) {
			return 0, nil, err
		}
	}
	return 0, nil, errors.Join(append(errs, shard.ErrUnavailable)...)
}

// callTimeout bounds one request.
const callTimeout = 10 * time.Second

func (b *creator) call(ctx context.Context, node engine.NodeID, q *api.CutRequest) (*api.CutPage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := b.c.Call(ctx, node, "", api.MethodCut, q.Append(nil))
	if err != nil {
		return nil, err
	}
	page := new(api.CutPage)
	return page, api.Decode(body, page)
}

// describe says what was cut, and which part of it is wanted.
func describe(page *api.CutPage, p *part, at []byte) (*Segment, error) {
	rec, err := state.ReadRecord(page.Record)
	if err != nil {
		return nil, err
	}
	m, err := shard.Open(nil, &rec)
	if err != nil {
		return nil, err
	}
	d := m.Desc()
	if bytes.Compare(at, d.Start) < 0 || len(d.End) > 0 && bytes.Compare(at, d.End) >= 0 {
		return nil, fmt.Errorf("%w: shard %d has no %q any more", shard.ErrUnavailable, d.Shard, at)
	}
	end := p.end
	if len(d.End) > 0 && (len(end) == 0 || bytes.Compare(d.End, end) < 0) {
		end = d.End
	}
	return &Segment{Start: at, End: end, Shard: uint64(d.Shard), ShardStart: d.Start, ShardEnd: d.End, Version: d.Version, ConfVersion: d.ConfVersion,
		Term: rec.Applied.Term, Index: rec.Applied.Index, Time: m.Time(), Chunks: []Chunk{}}, nil
}

// cutReader reads the pages of a cut.
type cutReader struct {
	b     *creator
	node  engine.NodeID
	id    uint64
	shard engine.ShardID
	page  uint64
}

func (r *cutReader) next(ctx context.Context) (*api.CutPage, error) {
	r.page++
	q := &api.CutRequest{Shard: r.shard, Cut: r.id, Page: r.page}
	page, err := r.b.call(ctx, r.node, q)
	if send := (*router.SendError)(nil); errors.As(err, &send) { // the page is still there
		page, err = r.b.call(ctx, r.node, q)
	}
	return page, err
}

// close lets the cut go; if that is lost, the node does it by itself after a while.
func (r *cutReader) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = r.b.call(ctx, r.node, &api.CutRequest{Shard: r.shard, Cut: r.id, Close: true})
}

// copyCut stores what seg has of a cut. The whole cut is read and its checksum compared with the node's.
func (b *creator) copyCut(ctx context.Context, cut *cutReader, p *part, seg *Segment) error {
	sum := state.NewSummer()
	var raw []byte
	keys := int64(0)
	flush := func() error {
		if len(raw) == 0 {
			return nil
		}
		c, stored, err := putChunk(ctx, b.s, raw, keys)
		if err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
		if seg.Chunks = append(seg.Chunks, c); stored {
			p.newChunks++
			p.newStored += c.Stored
		}
		if b.opt.Progress != nil {
			b.opt.Progress.Keys.Add(keys)
			b.opt.Progress.Bytes.Add(c.Raw)
		}
		raw, keys = raw[:0], 0
		return nil
	}
	for {
		page, err := cut.next(ctx)
		if err != nil {
			return err
		}
		for items := page.Items; len(items) > 0; {
			kv, n, err := state.ReadKV(items)
			if err != nil {
				return err
			}
			sum.Add(kv)
			if bytes.Compare(kv.Key, seg.Start) >= 0 && (len(seg.End) == 0 || bytes.Compare(kv.Key, seg.End) < 0) {
				raw = append(raw, items[:n]...)
				if keys++; chunkEnds(len(raw), kv.Key) {
					if err := flush(); err != nil {
						return err
					}
				}
			}
			items = items[n:]
		}
		if page.Last {
			want := state.Content{Items: page.Count, Bytes: page.Bytes, Checksum: page.Sum}
			if got := sum.Content(); got != want {
				return fmt.Errorf("%w: shard %d at node %d: read %+v, the node has %+v", shard.ErrUnavailable, seg.Shard, cut.node, got, want)
			}
			seg.Checksum = page.Sum
			return flush()
		}
	}
}
