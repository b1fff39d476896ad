package node

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// Methods by which the driver learns of loads. Sent: never renumber.
const (
	methodLoads   api.Method = 81 // [book, since] → loadsAnswer: what this node leads, as far as it has changed since
	methodSamples api.Method = 82 // array with a shard → array of keys of recent requests
)

// loadRow is what a node says of a shard that it leads.
type loadRow struct {
	Shard      engine.ShardID
	Node       engine.NodeID // who says so
	Leads      bool          // it leads the shard; else nothing of the rest is set
	Term       uint64
	Keys       uint64 // estimates of what it holds
	Bytes      uint64
	Writes     float64 // per second, decaying
	Reads      float64
	Traffic    float64 // bytes per second, read and written
	Descriptor *shard.Descriptor
}

// requests are the reads and writes per second.
func (r *loadRow) requests() float64 { return r.Writes + r.Reads }

// loadBook keeps the rows of this node's leaders, and which of them changed when, so that who asks again hears of changes only: an idle
// shard costs nothing, however many there are. It is filled when somebody asks. Its methods may be called from any goroutine.
type loadBook struct {
	name   uint64 // of this life's book: a since is worth something for this one only
	smooth time.Duration

	mu     sync.Mutex
	at     time.Time // of the last collection
	seq    uint64
	rows   map[engine.ShardID]*bookRow
	active map[engine.ShardID]*bookRow // with a rate: they decay without being touched
	order  []bookMark                  // of changes, by seq; a row's newest counts
}

type bookRow struct {
	loadRow
	told loadRow // as of the last change that counts
	seq  uint64
	last scheduler.Load // counters at the last collection
	at   time.Time
}

type bookMark struct {
	seq   uint64
	shard engine.ShardID
}

func newLoadBook(name uint64, smooth time.Duration) *loadBook {
	return &loadBook{name: name, smooth: smooth, rows: map[engine.ShardID]*bookRow{}, active: map[engine.ShardID]*bookRow{}}
}

// collect takes new counters.
func (b *loadBook) collect(now time.Time, list []scheduler.News) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = now
	for i := range list {
		b.take(now, &list[i])
	}
	for id, r := range b.active {
		if r.at.Before(now) { // not asked for anything
			r.rates(now, 0, 0, 0, b.smooth)
		}
		if r.requests() < rateFloor || !r.Leads {
			r.Writes, r.Reads, r.Traffic = 0, 0, 0
			delete(b.active, id)
		}
		b.tell(r)
	}
	b.compact()
}

// rateFloor is the rate below which a shard is idle.
const rateFloor = 0.5

func (b *loadBook) take(now time.Time, l *scheduler.News) {
	r := b.rows[l.Shard]
	if r == nil {
		if !l.Leads {
			return
		}
		r = &bookRow{}
		b.rows[l.Shard] = r
	}
	fresh := !r.Leads || r.Term != l.Term || r.Descriptor == nil || !l.Leads || l.Descriptor.Version != r.Descriptor.Version
	r.Shard, r.Leads, r.Term, r.Descriptor, r.Keys, r.Bytes = l.Shard, l.Leads, l.Term, l.Descriptor, l.Keys, l.Bytes
	switch {
	case !l.Leads:
		r.loadRow = loadRow{Shard: l.Shard}
	case fresh: // the counters may be of another range, and of another life
		r.Writes, r.Reads, r.Traffic = 0, 0, 0
	default:
		d := l.Load.Sub(r.last)
		r.rates(now, float64(d.Writes), float64(d.Reads), float64(d.ReadBytes+d.WriteBytes), b.smooth)
	}
	r.last, r.at = l.Load, now
	if r.Leads {
		b.active[l.Shard] = r
	}
	b.tell(r)
}

// rates brings the rates up to now: what was asked since the last time, and less and less of what was before.
func (r *bookRow) rates(now time.Time, writes, reads, traffic float64, smooth time.Duration) {
	dt := now.Sub(r.at).Seconds()
	if dt <= 0 {
		return
	}
	weight := 1 - math.Exp(-dt/smooth.Seconds())
	r.Writes += (writes/dt - r.Writes) * weight
	r.Reads += (reads/dt - r.Reads) * weight
	r.Traffic += (traffic/dt - r.Traffic) * weight
	r.at = now
}

// tell takes note that a row has changed, if that is worth telling.
func (b *loadBook) tell(r *bookRow) {
	if r.seq != 0 && !r.changed() {
		return
	}
	b.seq++
	r.seq, r.told = b.seq, r.loadRow
	b.order = append(b.order, bookMark{b.seq, r.Shard})
}

func (r *bookRow) changed() bool {
	t := &r.told
	if r.Leads != t.Leads || r.Term != t.Term || r.Descriptor != t.Descriptor {
		return true
	}
	return differ(r.requests(), t.requests(), 1) || differ(r.Traffic, t.Traffic, 1024) || differ(float64(r.Bytes), float64(t.Bytes), 64<<10)
}

// differ tells whether a value is further from what was told than a tenth, or has become nothing.
func differ(now, told, least float64) bool {
	return now == 0 && told != 0 || math.Abs(now-told) > max(least, 0.1*told)
}

// forget drops a shard that is dead for good.
func (b *loadBook) forget(id engine.ShardID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.rows, id)
	delete(b.active, id)
}

// compact forgets changes that newer ones have overtaken.
func (b *loadBook) compact() {
	if len(b.order) <= 2*len(b.rows)+1024 {
		return
	}
	b.order = slices.DeleteFunc(b.order, func(m bookMark) bool {
		r := b.rows[m.shard]
		return r == nil || r.seq != m.seq
	})
}

// since returns the rows that have changed after seq. all: seq is not of this book, and the rows are those of all that is led.
func (b *loadBook) since(name, seq uint64) (list []loadRow, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if all = name != b.name || seq == 0 || seq > b.seq; all {
		for _, r := range b.rows {
			if r.Leads {
				list = append(list, r.told)
			}
		}
		return list, true
	}
	i := sort.Search(len(b.order), func(i int) bool { return b.order[i].seq > seq })
	for _, m := range b.order[i:] {
		if r := b.rows[m.shard]; r != nil && r.seq == m.seq {
			list = append(list, r.told)
		}
	}
	return list, false
}

// loadsEvery is how often the driver asks for loads, and how long they are good for: two that ask at once get the same.
func (c *Config) loadsEvery() time.Duration {
	if c.loadEvery > 0 {
		return c.loadEvery
	}
	return 5 * time.Second
}

// smoothing of rates, in intervals of loadsEvery: what was asked so long ago counts for a third.
const smoothing = 4

// serveLoads tells what this node leads, as far as it has changed.
func (c *core) serveLoads(ctx context.Context, body []byte) ([]byte, error) {
	q, err := decodeIDs[uint64](body)
	if err != nil || len(q) != 2 {
		return nil, malformed(err)
	}
	b := c.book
	if err := c.collectLoads(ctx, q[1] == 0 || q[0] != b.name); err != nil {
		return nil, err
	}
	rows, all := b.since(q[0], q[1])
	b.mu.Lock()
	seq := b.seq
	b.mu.Unlock()
	return appendLoads(nil, b.name, seq, all, rows), nil
}

// collectLoads brings the book up to date, if it is not, or all of it is wanted.
func (c *core) collectLoads(ctx context.Context, all bool) error {
	b, now := c.book, time.Now()
	b.mu.Lock()
	due := b.at.IsZero() || now.Sub(b.at) >= c.n.cfg.loadsEvery()/2
	b.mu.Unlock()
	c.collecting.Lock()
	defer c.collecting.Unlock()
	if !due && !all {
		return nil
	}
	list, err := c.sched.News(ctx, all)
	if err == nil {
		b.collect(now, list)
	}
	return err
}

func appendLoads(b []byte, name, seq uint64, all bool, rows []loadRow) []byte {
	b = mp.AppendUint(mp.AppendUint(mp.AppendArray(b, 4), name), seq)
	b = mp.AppendArray(mp.AppendBool(b, all), len(rows))
	for i := range rows {
		r := &rows[i]
		if !r.Leads {
			b = mp.AppendUint(mp.AppendArray(b, 1), uint64(r.Shard))
			continue
		}
		b = mp.AppendUint(mp.AppendArray(b, 8), uint64(r.Shard))
		for _, v := range [...]uint64{r.Term, r.Keys, r.Bytes, uint64(math.Ceil(r.Writes)), uint64(math.Ceil(r.Reads)), uint64(math.Ceil(r.Traffic))} {
			b = mp.AppendUint(b, v)
		}
		b = shard.AppendDescriptor(b, r.Descriptor)
	}
	return b
}

// loadsAnswer is what a node has told.
type loadsAnswer struct {
	Book, Seq uint64
	All       bool
	Rows      []loadRow
}

func decodeLoads(node engine.NodeID, b []byte) (*loadsAnswer, error) {
	r := mp.NewReader(b)
	more := r.ArrayMin(4)
	a := &loadsAnswer{Book: r.Uint(), Seq: r.Uint(), All: r.Bool()}
	for n := r.Array(); n > 0 && r.Err() == nil; n-- {
		fields := r.ArrayMin(1)
		row := loadRow{Shard: engine.ShardID(r.Uint()), Node: node}
		if fields >= 7 {
			row.Leads, row.Term, row.Keys, row.Bytes = true, r.Uint(), r.Uint(), r.Uint()
			row.Writes, row.Reads, row.Traffic = float64(r.Uint()), float64(r.Uint()), float64(r.Uint())
			d := shard.ReadDescriptor(&r)
			row.Descriptor = &d
			fields -= 7
		}
		r.Skip(fields)
		a.Rows = append(a.Rows, row)
	}
	r.Skip(more)
	if err := r.Finish(); err != nil {
		return nil, malformed(err)
	}
	return a, nil
}

// loadTable is what all nodes have told: who leads which shard, and its load. Not for several goroutines at once.
type loadTable struct {
	rows map[engine.ShardID]*loadRow
	seen map[engine.NodeID]tableMark
	// changes counts the answers that told of a change.
	changes uint64
}

type tableMark struct{ book, seq uint64 }

func newLoadTable() *loadTable {
	return &loadTable{rows: map[engine.ShardID]*loadRow{}, seen: map[engine.NodeID]tableMark{}}
}

// take notes what a node has told.
func (t *loadTable) take(node engine.NodeID, a *loadsAnswer) {
	if a.All {
		for id, r := range t.rows {
			if r.Node == node {
				delete(t.rows, id)
			}
		}
	}
	t.seen[node] = tableMark{a.Book, a.Seq}
	changed := a.All
	for i := range a.Rows {
		r := &a.Rows[i]
		old := t.rows[r.Shard]
		changed = changed || !r.onlyOwnLoad(old)
		switch {
		case r.Leads && (old == nil || r.Term >= old.Term):
			t.rows[r.Shard] = r
		case !r.Leads && old != nil && old.Node == node:
			delete(t.rows, r.Shard)
		}
	}
	if changed {
		t.changes++
	}
}

// onlyOwnLoad tells whether nothing but the load of the meta shard has changed since old: the balancer reads meta when it draws a picture, and
// that must not be why it draws the next one.
func (r *loadRow) onlyOwnLoad(old *loadRow) bool {
	return r.Shard == shard.MetaShardID && old != nil && r.Leads == old.Leads && r.Node == old.Node && r.Term == old.Term && r.Leads && !r.Descriptor.Newer(old.Descriptor)
}

// askLoads asks all living nodes for what has changed since the table was last filled.
func (c *core) askLoads(ctx context.Context, t *loadTable) {
	ids := c.nodeIDs()
	answers := make([]*loadsAnswer, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		if !c.alive(id) {
			continue
		}
		mark := t.seen[id]
		wg.Add(1)
		go func() { // bounded by the number of nodes, and by the time
			defer wg.Done()
			actx, cancel := context.WithTimeout(ctx, 2*askMax)
			defer cancel()
			body, err := c.n.call(actx, id, methodLoads, 0, appendIDs(nil, []uint64{mark.book, mark.seq}))
			if err == nil {
				answers[i], err = decodeLoads(id, body)
			}
			if err != nil {
				c.n.log.Debug("a node does not tell its loads", "node", uint64(id), "err", err)
			}
		}()
	}
	wg.Wait()
	for i, id := range ids {
		if answers[i] != nil {
			t.take(id, answers[i])
			for j := range answers[i].Rows {
				if r := &answers[i].Rows[j]; r.Leads && t.rows[r.Shard] == r {
					c.view.learn(r.Descriptor)
					c.view.setLeader(r.Shard, r.Node)
					r.Descriptor = c.view.known(r.Descriptor)
				}
			}
		}
	}
}

// living returns the row of a shard, nil if its leader is not known to live.
func (c *core) living(t *loadTable, id engine.ShardID) *loadRow {
	r := t.rows[id]
	if r == nil || !c.alive(r.Node) {
		return nil
	}
	return r
}

func (c *core) serveSamples(ctx context.Context, body []byte) ([]byte, error) {
	ids, err := decodeIDs[engine.ShardID](body)
	if err != nil || len(ids) != 1 {
		return nil, malformed(fmt.Errorf("samples: %w", err))
	}
	keys, err := c.sched.LoadSamples(ctx, ids[0])
	if err != nil {
		return nil, err
	}
	b := mp.AppendArray(nil, len(keys))
	for _, k := range keys {
		b = mp.AppendBin(b, k)
	}
	return b, nil
}
