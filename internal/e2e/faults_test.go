package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/internal/fault"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// walker kills nodes at labelled steps of what it has them do.
type walker struct {
	*cluster
	dir      string // armed fault points
	rng      *rand.Rand
	counters *demo.Counters
	audit    *audit
	base     []client.Shard // as made by init
}

// TestFaultPoints has a process die at each labelled step of split, merge and move, under traffic, starts it again, and compares all that
// there is to compare. A label that is not met fails the test. The short form takes a third of the labels, which the seed chooses; the long
// form takes all, and each twice: once the first process that meets it dies, once every one that does.
func TestFaultPoints(t *testing.T) {
	seed := seedOf(t)
	dir := t.TempDir()
	t.Setenv(fault.Env, dir)
	c := start(t, 4, "--auto-balance=false", "--auto-balance-leaders=false", "--raft-election-timeout", "500ms", "--store-log-segment-size", "1MiB")
	c.init(6)
	w := &walker{cluster: c, dir: dir, rng: rand.New(rand.NewPCG(seed, 2)), base: c.shards(), audit: newAudit(c, 3)}
	w.fill()
	w.counters = demo.StartCounters(t.Context(), c.kv, w.base, "faults", 20*time.Millisecond)
	defer w.counters.Stop()
	n := 0
	for _, kind := range []string{"split", "merge", "abort", "move"} {
		for i, label := range fault.Labels[kind] {
			if !full && i%3 != int(seed%3) {
				continue
			}
			ok := t.Run(label, func(t *testing.T) {
				n++
				c := *c
				c.t = t
				w.cluster, w.audit.c = &c, &c
				w.walk(kind, label, false)
				if full {
					w.walk(kind, label, true)
				}
			})
			if !ok {
				return
			}
		}
	}
	w.cluster, w.audit.c = c, c
	w.counters.Stop()
	all := w.audit.settled(time.Minute)
	if err := w.counters.Verify(t.Context(), c.kv); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d labels, %d acknowledged adds, %d of unknown outcome: all counters are right", n, w.counters.Acked(), w.counters.Unknown())
	w.audit.disks(all)
}

// fill writes something that a snapshot has to carry.
func (w *walker) fill() {
	w.t.Helper()
	value := make([]byte, 4<<10)
	for i := range 60 {
		for _, s := range w.base {
			key, _ := client.KeyIn(s, fmt.Sprintf("fill/%02d", i))
			if _, err := w.kv.Put(w.t.Context(), key, value); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// walk has the first process that meets the label die, or every one.
func (w *walker) walk(kind, label string, every bool) {
	t := w.t
	begin := time.Now()
	files := []string{filepath.Join(w.dir, label)}
	if every {
		files = nil
		for _, p := range w.Nodes {
			files = append(files, filepath.Join(w.dir, label+"@"+strconv.Itoa(p.PID())))
		}
	}
	for _, f := range files {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if strings.HasSuffix(label, placement.StepCatchUp) {
		kind = "late move"
	}
	for try := 0; !w.provoke(kind); try++ {
		if try == 10 || time.Since(begin) > time.Minute {
			for _, f := range files {
				os.Remove(f)
			}
			t.Fatal("never met")
		}
	}
	met := time.Since(begin)
	if every {
		time.Sleep(150 * time.Millisecond) // the others have their chance
	}
	for _, f := range files {
		os.Remove(f)
	}
	dead := w.dead()
	for _, i := range dead {
		w.Nodes[i].Kill() // so that it counts as wanted
	}
	for _, i := range dead {
		w.restart(i)
	}
	w.quiet(time.Minute)
	w.audit.settled(30 * time.Second)
	w.counters.Mark()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := w.counters.WaitWritable(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("met after %v by the nodes with the indexes %v; whole again after %v", met.Round(time.Millisecond), dead, time.Since(begin).Round(time.Millisecond))
}

// dead gives the indexes of the nodes whose process has ended.
func (w *walker) dead() (list []int) {
	for i, p := range w.Nodes {
		select {
		case <-p.Done():
			list = append(list, i)
		default:
		}
	}
	return list
}

// provoke does what leads to the labels of a kind, and waits for a death, or for the end of the operation without one.
func (w *walker) provoke(kind string) (met bool) {
	t := w.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if kind == "merge" || kind == "abort" {
		w.prepareMerge(ctx)
	}
	spec := w.spec(ctx, kind)
	admin := w.admin()
	var resume func()
	switch kind {
	case "abort":
		admin, resume = w.hinder(ctx, &spec)
		defer resume()
	case "late move":
		admin, resume = w.delay(ctx, &spec)
		defer resume()
	}
	started := make(chan client.Op, 1)
	go func() {
		o, err := admin.StartOp(ctx, spec)
		if err != nil && ctx.Err() == nil && !errors.Is(err, client.ErrUnknown) && !errors.Is(err, client.ErrUnavailable) {
			t.Errorf("%+v: %v", spec, err)
		}
		started <- o
	}()
	var op client.Op
	for {
		if len(w.dead()) > 0 {
			if started != nil {
				cancel()
				<-started
			}
			return true
		}
		select {
		case op = <-started:
			started = nil
		case <-ctx.Done():
			if started != nil {
				<-started
			}
			return false
		case <-time.After(10 * time.Millisecond):
		}
		if op.ID == 0 {
			continue
		}
		octx, ocancel := context.WithTimeout(ctx, 300*time.Millisecond) // too many may be dead to answer
		now, err := admin.Op(octx, op.ID)
		ocancel()
		if err == nil && now.Over() {
			// What follows the operation, such as the cleaning of what has moved away, has its time.
			for begin := time.Now(); time.Since(begin) < time.Second; time.Sleep(10 * time.Millisecond) {
				if len(w.dead()) > 0 {
					return true
				}
			}
			return false
		}
	}
}

// spec chooses an operation of a kind.
func (w *walker) spec(ctx context.Context, kind string) client.OpSpec {
	t := w.t
	t.Helper()
	list := w.shards()
	switch kind {
	case "split":
		s := list[w.rng.IntN(len(list))]
		key, ok := client.KeyIn(s, fmt.Sprintf("m%08x", w.rng.Uint32()))
		if !ok {
			t.Fatalf("shard %d is too narrow", s.ID)
		}
		return client.OpSpec{Kind: "split", Shard: s.ID, Keys: [][]byte{key}}
	case "merge", "abort":
		i := w.pair(list)
		if i < 0 {
			t.Fatal("no two neighbours are on the same nodes")
		}
		return client.OpSpec{Kind: "merge", Shard: list[i].ID, Other: list[i+1].ID}
	}
	s := list[w.rng.IntN(len(list))]
	from := s.Replicas[w.rng.IntN(len(s.Replicas))].Node
	return client.OpSpec{Kind: "move", Shard: s.ID, From: from, To: w.without(ctx, s)}
}

// without names a node that holds no replica of s.
func (w *walker) without(ctx context.Context, s client.Shard) uint64 {
	w.t.Helper()
	for _, n := range w.nodes(ctx) {
		if !slices.ContainsFunc(s.Replicas, func(r client.Replica) bool { return r.Node == n.ID }) {
			return n.ID
		}
	}
	w.t.Fatalf("every node holds a replica of shard %d", s.ID)
	return 0
}

func nodesOf(s client.Shard) []uint64 {
	var list []uint64
	for _, r := range s.Replicas {
		list = append(list, r.Node)
	}
	slices.Sort(list)
	return list
}

// pair finds two neighbours that may merge: the left one's index, or -1.
func (w *walker) pair(list []client.Shard) int {
	var may []int
	for i := range len(list) - 1 {
		if slices.Equal(nodesOf(list[i]), nodesOf(list[i+1])) {
			may = append(may, i)
		}
	}
	if len(may) == 0 {
		return -1
	}
	return may[w.rng.IntN(len(may))]
}

// prepareMerge splits a shard if no two neighbours may merge.
func (w *walker) prepareMerge(ctx context.Context) {
	w.t.Helper()
	if w.pair(w.shards()) >= 0 {
		return
	}
	o, err := w.admin().StartOp(ctx, w.spec(ctx, "split"))
	if err != nil {
		w.t.Fatal(err)
	}
	for !o.Over() {
		if o, err = w.admin().Op(ctx, o.ID); err != nil {
			w.t.Fatal(err)
		}
	}
}

// hinder stops a node that holds replicas of two shards to be merged, and leads neither: a merge that begins before the others notice cannot
// be decided, and is given up. The merge is to be ordered by admin. resume lets the node go on; it does so by itself after a while.
func (w *walker) hinder(ctx context.Context, merge *client.OpSpec) (admin client.Admin, resume func()) {
	t := w.t
	t.Helper()
	var left, right, meta client.Shard
	eventually(t, 10*time.Second, func() (err error) {
		for id, s := range map[uint64]*client.Shard{merge.Shard: &left, merge.Other: &right, uint64(shard.MetaShardID): &meta} {
			if *s, err = w.kv.Shard(ctx, id); err != nil || s.Leader == 0 {
				return fmt.Errorf("shard %d has no leader: %v", id, err)
			}
		}
		if left.Leader != right.Leader {
			return w.kv.Transfer(ctx, right.ID, left.Leader)
		}
		return nil
	})
	for _, n := range w.nodes(ctx) {
		if n.ID != left.Leader && n.ID != meta.Leader && slices.Contains(nodesOf(left), n.ID) {
			return w.pause(ctx, n.ID, left.Leader)
		}
	}
	panic("of two followers one does not lead the meta shard")
}

// delay stops the node that a move is to fill: else its learner has often caught up before the driver looks. The move is to be ordered by admin.
func (w *walker) delay(ctx context.Context, move *client.OpSpec) (admin client.Admin, resume func()) {
	w.t.Helper()
	var meta client.Shard
	eventually(w.t, 10*time.Second, func() (err error) {
		if meta, err = w.kv.Shard(ctx, uint64(shard.MetaShardID)); err == nil && meta.Leader == 0 {
			return errors.New("the meta shard has no leader")
		}
		return err
	})
	for move.To == meta.Leader { // which drives the move
		*move = w.spec(ctx, "move")
	}
	return w.pause(ctx, move.To, meta.Leader)
}

func (w *walker) nodes(ctx context.Context) []client.Node {
	w.t.Helper()
	nodes, err := w.kv.Nodes(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return nodes
}

// pause stops a node until resume, or for a while, and gives a connection to another one.
func (w *walker) pause(ctx context.Context, stopped, asked uint64) (admin client.Admin, resume func()) {
	t := w.t
	t.Helper()
	nodes := w.nodes(ctx)
	kv := w.dial(nodes[slices.IndexFunc(nodes, func(n client.Node) bool { return n.ID == asked })].Address)
	name := nodes[slices.IndexFunc(nodes, func(n client.Node) bool { return n.ID == stopped })].Name
	p := w.Nodes[slices.IndexFunc(w.Nodes, func(p *demo.Process) bool { return p.Name == name })]
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(1500*time.Millisecond, func() { _ = p.Signal(syscall.SIGCONT) })
	return kv.(client.Admin), func() { _ = errors.Join(p.Signal(syscall.SIGCONT), kv.Close()) }
}
