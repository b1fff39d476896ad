package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

// rising is a load of keys whose values are numbers that rise by one, each written by one writer.
type rising struct {
	t            *testing.T
	kv           client.Cluster
	ctx          context.Context
	cancel       context.CancelFunc
	wg           sync.WaitGroup
	begun, acked [8]atomic.Int64
}

func risingKey(i int) []byte { return fmt.Appendf(nil, "%c/rising", byte('0'+i*40/8)) }

func startRising(t *testing.T, kv client.Cluster) *rising {
	l := &rising{t: t, kv: kv}
	l.ctx, l.cancel = context.WithCancel(t.Context())
	for i := range l.begun {
		l.wg.Go(func() { l.write(i) })
	}
	return l
}

func (l *rising) write(i int) {
	for n := int64(1); l.ctx.Err() == nil; n++ {
		l.begun[i].Store(n)
		for { // a shard that moves may answer late: the same number again changes nothing
			ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), 30*time.Second)
			_, err := l.kv.Put(ctx, risingKey(i), fmt.Append(nil, n))
			cancel()
			if err == nil {
				break
			}
			if l.ctx.Err() != nil {
				return
			}
		}
		l.acked[i].Store(n)
		time.Sleep(5 * time.Millisecond) // the pace of the load
	}
}

func (l *rising) stop() {
	l.cancel()
	l.wg.Wait()
}

func numbers(list *[8]atomic.Int64) (out [8]int64) {
	for i := range list {
		out[i] = list[i].Load()
	}
	return out
}

// reshaper splits shards and moves replicas, one at a time.
type reshaper struct {
	c             *cluster
	rng           *rand.Rand
	splits, moves atomic.Int64
}

func (r *reshaper) run(ctx context.Context) {
	for ctx.Err() == nil {
		list, err := r.c.kv.Shards(ctx, 0)
		if err != nil || len(list) == 0 {
			continue
		}
		s := list[r.rng.IntN(len(list))]
		if key, ok := client.KeyIn(s, fmt.Sprintf("m%08x", r.rng.Uint32())); ok && len(list) < 40 && r.splits.Load() <= r.moves.Load() {
			if r.op(ctx, client.OpSpec{Kind: "split", Shard: s.ID, Keys: [][]byte{key}}) {
				r.splits.Add(1)
			}
		} else if to := r.without(ctx, s); to != 0 && len(s.Replicas) > 0 {
			if r.op(ctx, client.OpSpec{Kind: "move", Shard: s.ID, From: s.Replicas[0].Node, To: to}) {
				r.moves.Add(1)
			}
		}
	}
}

func (r *reshaper) without(ctx context.Context, s client.Shard) uint64 {
	nodes, _ := r.c.kv.Nodes(ctx)
	for _, n := range nodes {
		if !slices.ContainsFunc(s.Replicas, func(x client.Replica) bool { return x.Node == n.ID }) {
			return n.ID
		}
	}
	return 0
}

// op tells whether an operation was done.
func (r *reshaper) op(ctx context.Context, spec client.OpSpec) bool {
	admin := r.c.kv.(client.Admin)
	o, err := admin.StartOp(ctx, spec)
	for ; err == nil && !o.Over() && ctx.Err() == nil; o, err = admin.Op(ctx, o.ID) {
		time.Sleep(20 * time.Millisecond) // the pace of asking
	}
	return err == nil && o.State == "done"
}

// export writes all keys into a file and returns its lines by key.
func (c *cluster) export(file string) map[string]string {
	c.t.Helper()
	c.want(0, "kv", "export", "--format", "tsv", "--timeout", "60s", file)
	b, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		out[k] = v
	}
	return out
}

// TestBackup backs a cluster up under traffic while its shards split and move, and restores it into a cluster of another size, of which the first
// attempt is killed. Then what was written until the traffic stopped.
func TestBackup(t *testing.T) {
	from := start(t, 4)
	from.init(5)
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	var lines bytes.Buffer
	for i := range 3000 {
		fmt.Fprintf(&lines, "%c/fixed/%05d\t%s\n", byte('0'+i*40/3000), i, strings.Repeat(fmt.Sprint(i, " "), 50))
	}
	if o := from.run(&lines, "kv", "import", "-"); o.code != 0 {
		t.Fatal(o)
	}
	fixed := from.export(filepath.Join(dir, "fixed"))
	if len(fixed) != 3000 {
		t.Fatalf("%d keys", len(fixed))
	}

	load := startRising(t, from.kv)
	defer load.stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const seed = 7
	r := &reshaper{c: from, rng: rand.New(rand.NewPCG(seed, seed))}
	var wg sync.WaitGroup
	wg.Go(func() { r.run(ctx) })
	defer wg.Wait()
	defer cancel()
	var low, high [8]int64
	name, parent := "", []string{}
	for n := 0; n < 2 || r.splits.Load() == 0 || r.moves.Load() == 0; n++ {
		if n == 100 {
			t.Fatalf("after %d backups %d splits and %d moves", n, r.splits.Load(), r.moves.Load())
		}
		low, name = numbers(&load.acked), fmt.Sprint("b", n)
		from.want(0, append([]string{"backup", "create", store, "--name", name}, parent...)...)
		high = numbers(&load.begun)
		parent = []string{"--parent", name}
		time.Sleep(100 * time.Millisecond) // so that there are not too many of them
	}
	t.Logf("%s: %d splits and %d moves", name, r.splits.Load(), r.moves.Load())
	cancel()
	wg.Wait()
	load.stop()
	from.want(0, append([]string{"backup", "create", store, "--name", "last"}, parent...)...)
	last := from.export(filepath.Join(dir, "last"))
	from.KillAll()
	for _, n := range []string{name, "last"} { // no cluster is asked
		if o := runBinary(t, nil, nil, "backup", "verify", store, n); o.code != 0 {
			t.Fatalf("verify %s: %+v", n, o)
		}
	}

	to := start(t, 5)
	to.init(12)
	journal := filepath.Join(dir, "journal")
	restore := []string{"backup", "restore", store, name, "--journal", journal, "--parallel", "1"}
	to.interrupt(journal, restore...)
	to.want(0, restore...)
	got := to.export(filepath.Join(dir, "restored"))
	if len(got) != len(last) {
		t.Errorf("%d keys, want %d", len(got), len(last))
	}
	for k, v := range fixed {
		if got[k] != v {
			t.Fatalf("key %q is %q, want %q", k, got[k], v)
		}
	}
	for i := range low {
		var n int64
		if _, err := fmt.Sscan(got[string(risingKey(i))], &n); err != nil || n < low[i] || n > high[i] {
			t.Errorf("%s is %d (%v), want %d to %d: what it was between begin and end of the backup", risingKey(i), n, err, low[i], high[i])
		}
	}
	if o := to.run(nil, "backup", "restore", store, "last"); o.code == 0 || !strings.Contains(o.stderr, "has keys already") {
		t.Errorf("restore into a cluster with keys: %+v", o)
	}
	to.want(0, "backup", "restore", store, "last", "--force")
	to.export(filepath.Join(dir, "again"))
	a, err1 := os.ReadFile(filepath.Join(dir, "last"))
	b, err2 := os.ReadFile(filepath.Join(dir, "again"))
	if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the restored cluster exports something else than the source (%v)", err)
	}
}

// interrupt starts a restore and kills it once its journal says that something was done, unless it ends before.
func (c *cluster) interrupt(journal string, args ...string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "KILORAFT_SERVER="+strings.Join(c.Servers, ","))
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if b, _ := os.ReadFile(journal); bytes.Count(b, []byte(".\n")) > 0 {
			_ = cmd.Process.Kill()
			<-ended
			c.t.Logf("killed a restore that had written %d chunks", bytes.Count(b, []byte(".\n")))
			return
		}
		select {
		case err := <-ended:
			if err != nil {
				c.t.Fatalf("restore: %v", err)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}
