package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/internal/recovery"
)

// TestRecover kills three nodes with kill -9, takes two of them away for good, and makes a cluster of the one that is left: it has all
// that it had, and serves. A lost node that comes back is refused and stops; new nodes bring the replicas back.
func TestRecover(t *testing.T) {
	const shards, keys = 6, 100
	c := start(t, 3)
	c.init(shards)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	key := func(i int) []byte { return fmt.Appendf([]byte{byte(i * 7)}, "/%d", i) }
	value := func(i int) []byte { return fmt.Appendf(nil, "value %d", i) }
	for i := range keys {
		if _, err := c.kv.Put(ctx, key(i), value(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := demo.WaitEqual(ctx, c.kv, c.shards()); err != nil { // so node 1 has all of it
		t.Fatal(err)
	}
	dir := c.Nodes[0].DataDir()
	busy := c.run(nil, "debug", "recover", "--unsafe", "-y", "--lost", "2,3", "--data-dir", dir)
	if busy.code == 0 || !strings.Contains(busy.stderr, "in use") {
		t.Fatalf("recovering the directory of a live node: exit %d, %s", busy.code, busy.stderr)
	}
	for _, p := range c.Nodes {
		p.Kill()
	}
	c.kv.Close()

	var got struct{ Plan recovery.Plan }
	c.json(&got, "debug", "recover", "--lost", "2,3", "--data-dir", dir)
	plan := &got.Plan
	if len(plan.Shards) != shards+1 || plan.Untouched != 0 || len(plan.Gone) != 0 {
		t.Fatalf("%d shards lost, %d untouched, %d gone", len(plan.Shards), plan.Untouched, len(plan.Gone))
	}
	for i, s := range plan.Shards {
		if s.Shard != uint64(i+1) || s.Node != 1 || s.FirstLost != s.Last.Index+1 || s.Term <= s.Last.Term {
			t.Errorf("shard %d: %+v", i+1, s)
		}
	}
	if err := os.RemoveAll(c.Nodes[1].DataDir()); err != nil {
		t.Fatal(err)
	}
	no := c.run(strings.NewReader("yes\n"), "debug", "recover", "--unsafe", "--lost", "2,3", "--data-dir", dir)
	if no.code != 1 || !strings.Contains(no.stderr, "nothing was changed") {
		t.Fatalf("without the words: exit %d, %s", no.code, no.stderr)
	}
	yes := c.run(strings.NewReader("recover "+plan.Cluster[:8]+"\n"), "debug", "recover", "--unsafe", "--lost", "2,3", "--data-dir", dir)
	if yes.code != 0 {
		t.Fatalf("exit %d, %s", yes.code, yes.stderr)
	}
	t.Logf("%s", yes.stdout)
	for i := range plan.Shards {
		if !strings.Contains(yes.stdout, fmt.Sprintf("\n%d", plan.Shards[i].Shard)) {
			t.Errorf("the table does not name shard %d", plan.Shards[i].Shard)
		}
	}
	begin := time.Now()
	c.restart(0)
	c.kv = c.dial(c.Servers[0])
	eventually(t, 30*time.Second, func() error { return readAll(ctx, c.kv, keys, key, value) })
	t.Logf("all that the survivor had is served %v after its start", time.Since(begin))
	if _, err := c.kv.Put(ctx, []byte("after"), []byte("recovery")); err != nil {
		t.Fatal(err)
	}

	if st := c.want(0, "cluster", "status"); !strings.Contains(st, fmt.Sprintf("%d with a leader, %d under-replicated, 0 unavailable", shards, shards)) {
		t.Errorf("the status does not tell that there is one replica of each shard:\n%s", st)
	}

	// A lost node comes back: it is told, and stops for good.
	back, err := demo.Start(c.Nodes[2].Spec)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Kill()
	select {
	case <-back.Done():
	case <-time.After(30 * time.Second):
		t.Fatalf("a lost node goes on:\n%s", back.LogTail(20))
	}
	if log := back.LogTail(20); !strings.Contains(log, "given up by a recovery") {
		t.Errorf("a lost node stopped, but not because it was told so:\n%s", log)
	}

	// Two nodes with new disks take the places.
	if err := os.RemoveAll(c.Nodes[2].DataDir()); err != nil {
		t.Fatal(err)
	}
	c.restart(1)
	c.restart(2)
	eventually(t, 60*time.Second, func() error {
		for _, s := range c.shards() {
			for _, r := range s.Replicas {
				if r.Node == 2 || r.Node == 3 || r.Role != "voter" {
					return fmt.Errorf("shard %d: %+v", s.ID, s.Replicas)
				}
			}
			if len(s.Replicas) != 3 {
				return fmt.Errorf("shard %d has %+v", s.ID, s.Replicas)
			}
		}
		return nil
	})
	if err := readAll(ctx, c.kv, keys, key, value); err != nil {
		t.Fatal(err)
	}
	if err := demo.WaitEqual(ctx, c.kv, c.shards()); err != nil {
		t.Fatal(err)
	}
	t.Logf("three replicas of each shard again %v after the start", time.Since(begin))
}

func readAll(ctx context.Context, kv client.Cluster, keys int, key, value func(int) []byte) error {
	for i := range keys {
		actx, cancel := context.WithTimeout(ctx, 3*time.Second)
		got, err := kv.Get(actx, key(i))
		cancel()
		if err != nil {
			return fmt.Errorf("key %d: %w", i, err)
		}
		if !bytes.Equal(got.Value, value(i)) {
			return fmt.Errorf("key %d is %q", i, got.Value)
		}
	}
	return nil
}
