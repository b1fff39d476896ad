package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/load"
)

// Tour is what the guided tour measured.
type Tour struct {
	Nodes         int     `json:"nodes"`
	Shards        int     `json:"shards"`
	InitS         float64 `json:"init_s"`
	Data          string  `json:"data"`
	Files         int64   `json:"files"`
	Bytes         int64   `json:"bytes"`
	ImportS       float64 `json:"import_s"`
	ReadBackS     float64 `json:"read_back_s"`
	TakeOverP50S  float64 `json:"take_over_p50_s"`
	TakeOverLastS float64 `json:"take_over_last_s"`
	CatchUpS      float64 `json:"catch_up_s"`
	Adds          int64   `json:"adds"`
	AddsUnknown   int64   `json:"adds_unknown"`
	SplitS        float64 `json:"split_s"`
	MoveS         float64 `json:"move_s"`
	RestartAllS   float64 `json:"restart_all_s"`
}

type guide struct {
	Options
	c      *Cluster
	kv     client.Cluster
	shards []client.Shard
	want   map[string][sha256.Size]byte // key → hash of its value
	tour   Tour
	step   int
}

// RunTour is the guided tour. It fails at the first thing that does not hold.
func RunTour(ctx context.Context, o Options) (tour Tour, err error) {
	if o.Nodes < 3 {
		return tour, fmt.Errorf("%w: the tour kills a node and needs three", client.ErrInvalid)
	}
	g := &guide{Options: o, tour: Tour{Nodes: o.Nodes, Shards: o.Shards}}
	o.Args = append(slices.Clone(o.Args), "--auto-balance=false") // what moves is what the tour moves
	g.Options = o
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	g.say("Start %d node processes and make a cluster of %d shards", o.Nodes, o.Shards)
	if g.c, err = StartCluster(ctx, o); err != nil {
		return g.tour, err
	}
	defer func() {
		if g.kv != nil {
			g.kv.Close()
		}
		if err != nil {
			g.c.KillAll()
			fmt.Fprintf(o.Out, "The nodes were killed; their data and logs are in %s\n", g.c.Dir)
		}
	}()
	for _, step := range []func(context.Context) error{g.initialize, g.loadData, g.readBack, g.killOne, g.reshape, g.killAll, g.stop} {
		if err := step(ctx); err != nil {
			return g.tour, errors.Join(fmt.Errorf("step %d: %w", g.step, err), g.c.Unexpected())
		}
	}
	return g.tour, nil
}

func (g *guide) say(format string, args ...any) {
	g.step++
	fmt.Fprintf(g.Out, "\n%d. %s\n", g.step, fmt.Sprintf(format, args...))
}

func (g *guide) note(format string, args ...any) { fmt.Fprintf(g.Out, "   "+format+"\n", args...) }

func (g *guide) initialize(ctx context.Context) (err error) {
	if g.kv, err = g.c.Dial(ctx, g.c.Servers); err != nil {
		return err
	}
	_, took, err := initialize(ctx, g.kv, g.Options)
	if err != nil {
		return err
	}
	g.tour.InitS = took.Seconds()
	if g.shards, err = g.kv.Shards(ctx, 0); err != nil {
		return err
	}
	g.note("every shard has a leader after %.2f s", took.Seconds())
	nodes, err := g.kv.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		g.note("%s  %s  leads %d, holds %d replicas", n.Name, n.Address, n.Leaders, n.Replicas)
	}
	return nil
}

// findData chooses a directory of real files: the Go tree if there is one.
func findData(dir string) string {
	if dir != "" {
		return dir
	}
	if out, err := exec.Command("go", "env", "GOROOT").Output(); err == nil {
		src := filepath.Join(strings.TrimSpace(string(out)), "src")
		if st, err := os.Stat(src); err == nil && st.IsDir() {
			return src
		}
	}
	for _, d := range []string{"/usr/share/doc", "/usr/include", "/etc"} {
		if st, err := os.Stat(d); err == nil && st.IsDir() {
			return d
		}
	}
	return "."
}

func (g *guide) loadData(ctx context.Context) error {
	dir := findData(g.Data)
	g.say("Load real files: %s", dir)
	g.tour.Data = dir
	kv, err := g.c.Dial(ctx, g.c.Servers[:1])
	if err != nil {
		return err
	}
	defer kv.Close()
	r, err := load.Import(ctx, kv, dir, nil, load.ImportOptions{Format: load.Dir, Prefix: []byte("files/"), Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	g.tour.Files, g.tour.Bytes, g.tour.ImportS = r.Keys, r.Bytes, r.DurationS
	g.note("%d files, %d bytes in %.1f s through one node (%d skipped: not regular, not readable, or too large)", r.Keys, r.Bytes, r.DurationS, r.RejectedTotal)
	g.want, err = hashTree(dir, "files/", r.Keys)
	return err
}

// hashTree hashes what the loader should have stored; n is how many files it said it stored.
func hashTree(dir, prefix string, n int64) (map[string][sha256.Size]byte, error) {
	want := make(map[string][sha256.Size]byte)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err != nil || info.Size() > 8<<20 {
			return nil
		}
		if b, err := root.ReadFile(path); err == nil {
			want[prefix+filepath.ToSlash(path)] = sha256.Sum256(b)
		}
		return nil
	})
	if err == nil && int64(len(want)) != n {
		err = fmt.Errorf("%s holds %d files, %d were stored: does it change?", dir, len(want), n)
	}
	return want, err
}

func (g *guide) readBack(ctx context.Context) error {
	g.say("Read everything back through another node and compare every byte")
	start := time.Now()
	if err := g.compare(ctx, g.c.Servers[1:2]); err != nil {
		return err
	}
	g.tour.ReadBackS = time.Since(start).Seconds()
	g.note("%d files are the same, in %.1f s", len(g.want), g.tour.ReadBackS)
	return nil
}

func (g *guide) compare(ctx context.Context, servers []string) error {
	kv, err := g.c.Dial(ctx, servers)
	if err != nil {
		return err
	}
	defer kv.Close()
	prefix := []byte("files/")
	n := 0
	for it, err := range kv.Scan(ctx, client.Range{Start: prefix, End: load.PrefixEnd(prefix)}) {
		if err != nil {
			return err
		}
		if want, ok := g.want[string(it.Key)]; !ok || want != sha256.Sum256(it.Value) {
			return fmt.Errorf("key %q came back different", it.Key)
		}
		n++
	}
	if n != len(g.want) {
		return fmt.Errorf("%d of %d files came back", n, len(g.want))
	}
	return nil
}

// killOne kills a node under load, shows the take-over, restarts the node and checks that nothing was lost or done twice.
func (g *guide) killOne(ctx context.Context) error {
	g.say("Add to a counter in each of the %d shards, and kill -9 a node", g.Shards)
	counters := StartCounters(ctx, g.kv, g.shards, fmt.Sprintf("%08x", rand.Uint32()), 200*time.Millisecond)
	defer counters.Stop()
	counters.Mark()
	warm, cancelWarm := context.WithTimeout(ctx, 30*time.Second)
	defer cancelWarm()
	if _, err := counters.WaitWritable(warm); err != nil {
		return err
	}
	victim := len(g.c.Nodes) - 1
	counters.Mark()
	g.c.Nodes[victim].Kill()
	g.note("node %s is dead", g.c.Nodes[victim].Name)
	waitCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	t, err := counters.WaitWritable(waitCtx)
	if err != nil {
		return err
	}
	g.tour.TakeOverP50S, g.tour.TakeOverLastS = t.P50.Seconds(), t.Last.Seconds()
	g.note("every shard takes writes again: half of them after %.2f s, the last after %.2f s", t.P50.Seconds(), t.Last.Seconds())

	g.say("Restart it under load, let it catch up, and compare all replicas")
	start := time.Now()
	if err := g.c.Restart(ctx, victim); err != nil {
		return err
	}
	time.Sleep(time.Second) // writes go on while it catches up
	counters.Stop()
	if err := WaitEqual(ctx, g.kv, g.shards); err != nil {
		return err
	}
	g.tour.CatchUpS = time.Since(start).Seconds()
	g.note("the replicas of all %d shards have the same content at the same log position, %.1f s after the restart", len(g.shards), g.tour.CatchUpS)
	if err := counters.Verify(ctx, g.kv); err != nil {
		return err
	}
	g.tour.Adds, g.tour.AddsUnknown = counters.Acked(), counters.Unknown()
	g.note("the counters show exactly the %d adds that were acknowledged: none lost, none done twice", g.tour.Adds)
	return nil
}

func (g *guide) killAll(ctx context.Context) error {
	g.say("kill -9 all nodes at once, restart them, and read the files again")
	g.c.KillAll()
	start := time.Now()
	for i := range g.c.Nodes {
		if err := g.c.Restart(ctx, i); err != nil {
			return err
		}
	}
	if err := g.compare(ctx, g.c.Servers[:1]); err != nil {
		return err
	}
	g.tour.RestartAllS = time.Since(start).Seconds()
	g.note("all %d files are there, %.1f s after the restart", len(g.want), g.tour.RestartAllS)
	return nil
}

func (g *guide) stop(ctx context.Context) error {
	g.say("Stop the nodes")
	if err := g.c.Stop(ctx); err != nil {
		return err
	}
	g.note("all exited 0")
	return nil
}

// WaitEqual waits until the replicas of every shard have applied the same log position and have the same checksum there. Replicas that
// differ at the same position are an error at once.
func WaitEqual(ctx context.Context, kv client.Cluster, shards []client.Shard) error {
	for _, s := range shards {
		for {
			equal, err := replicasEqual(ctx, kv, s.ID, len(s.Replicas))
			if err != nil && !errors.Is(err, client.ErrUnavailable) {
				return err
			}
			if equal {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("shard %d: the replicas do not become equal: %w, %v", s.ID, ctx.Err(), err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

func replicasEqual(ctx context.Context, kv client.Cluster, id uint64, replicas int) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	sums, err := kv.Checksums(ctx, id)
	if err != nil {
		return false, err
	}
	at := map[[2]uint64]client.Checksum{}
	good := 0
	for _, c := range sums {
		if c.Err != "" {
			continue
		}
		good++
		pos := [2]uint64{c.Term, c.Applied}
		if other, ok := at[pos]; ok && other.Checksum != c.Checksum {
			return false, fmt.Errorf("shard %d: nodes %d and %d differ at log position %d/%d: %016x and %016x", id, other.Node, c.Node, c.Term,
				c.Applied, other.Checksum, c.Checksum)
		}
		at[pos] = c
	}
	return good == replicas && len(at) == 1, nil
}
