package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

const manyShards = 1000

// TestThousandShards is the life of a cluster of 1,000 shards: made, filled with real files, loaded, hurt, restarted, stopped.
func TestThousandShards(t *testing.T) {
	c := start(t, 3)
	took := c.init(manyShards)
	t.Logf("cluster init --shards %d: every shard has a leader after %v", manyShards, took)
	if took > 20*time.Second {
		t.Errorf("far too long")
	}
	for _, step := range []struct {
		name string
		f    func(*testing.T, *cluster)
	}{
		{"even", even}, {"http", endpoints}, {"init again", initAgain}, {"commands", commands}, {"limits", limits}, {"garbage", garbage}, {"files", files},
		{"coalescing and connections", coalescing}, {"kill one under load", killOne}, {"kill all", killAll}, {"stop", stop},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.f(t, &cluster{Cluster: c.Cluster, t: t, kv: c.kv}) }) {
			break // what follows builds on it
		}
	}
}

// even checks that replicas and leaders are spread evenly to within 10 %.
func even(t *testing.T, c *cluster) {
	var st struct {
		Nodes  struct{ Total, Up int }
		Shards struct {
			Total       int
			WithLeader  int `json:"with_leader"`
			Unavailable int
		}
		Replicas int
	}
	c.json(&st, "cluster", "status")
	if st.Nodes.Up != 3 || st.Shards.Total != manyShards || st.Shards.WithLeader != manyShards || st.Replicas != 3*manyShards {
		t.Errorf("status %+v", st)
	}
	leaders, replicas := map[uint64]int{}, map[uint64]int{}
	var shards []struct {
		Leader   uint64
		Replicas []struct{ Node uint64 }
	}
	c.json(&shards, "shard", "ls")
	for _, s := range shards {
		leaders[s.Leader]++
		for _, r := range s.Replicas {
			replicas[r.Node]++
		}
	}
	t.Logf("leaders %v, replicas %v", leaders, replicas)
	for what, m := range map[string]map[uint64]int{"leaders": leaders, "replicas": replicas} {
		total := 0
		for _, n := range m {
			total += n
		}
		mean := float64(total) / 3
		for node, n := range m {
			if math.Abs(float64(n)-mean) > mean/10 {
				t.Errorf("%s: node %d has %d, the mean is %.0f", what, node, n, mean)
			}
		}
	}
}

// endpoints asks for what monitoring asks.
func endpoints(t *testing.T, c *cluster) {
	for path, want := range map[string]string{"/livez": "", "/readyz": "", "/readyz?verbose": "", "/metrics": "kiloraft_log_syncs_total", "/debug/pprof/": "goroutine"} {
		eventually(t, 10*time.Second, func() error {
			resp, err := http.Get("http://" + c.Nodes[0].HTTP + path)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), want) {
				return fmt.Errorf("%s: %s, %w, %s", path, resp.Status, err, shorten(string(b)))
			}
			return nil
		})
	}
}

func initAgain(t *testing.T, c *cluster) {
	var res struct{ Already bool }
	c.json(&res, "cluster", "init", "--shards", "7")
	if !res.Already {
		t.Error("made twice")
	}
	if n := len(c.shards()); n != manyShards {
		t.Errorf("%d shards", n)
	}
}

// commands walks the key-value commands and their exit codes.
func commands(t *testing.T, c *cluster) {
	c.want(3, "kv", "get", "t/a")
	c.want(0, "kv", "put", "t/a", "hello")
	if got := c.want(0, "kv", "get", "t/a"); got != "hello" {
		t.Errorf("%q", got)
	}
	raw := "raw\x00\xff\n\\x"
	if o := c.run(strings.NewReader(raw), "kv", "put", `t/\x00\\`, "-"); o.code != 0 {
		t.Errorf("%+v", o)
	}
	if got := c.want(0, "kv", "get", `t/\x00\\`); got != raw {
		t.Errorf("%q", got)
	}
	c.want(1, "kv", "cas", "t/a", "--expect", "x", "--value", "y")
	c.want(1, "kv", "cas", "t/a", "--absent", "--value", "y")
	c.want(0, "kv", "cas", "t/a", "--expect", "hello", "--value", "y")
	c.want(0, "kv", "cas", "t/b", "--absent", "--value", "b")
	if got := c.want(0, "kv", "add", "t/n", "5") + c.want(0, "kv", "add", "t/n", "-7"); got != "5\n-2\n" {
		t.Errorf("%q", got)
	}
	c.want(1, "kv", "add", "t/b", "1")
	for args, want := range map[string]string{
		"":                      "t/\\x00\\\\\traw\\x00\\xff\\x0a\\\\x\nt/a\ty\nt/b\tb\nt/n\t-2\n",
		"--keys-only --limit 2": "t/\\x00\\\\\nt/a\n", "--reverse --limit 1": "t/n\t-2\n",
	} {
		if got := c.want(0, append([]string{"kv", "scan", "--prefix", "t/"}, strings.Fields(args)...)...); got != want {
			t.Errorf("scan %s: %q, want %q", args, got, want)
		}
	}
	c.want(0, "kv", "del", "t/a", "t/nothing", "t/b", `t/\x00\\`, "t/n")
	c.want(3, "kv", "get", "t/a")
	if got := c.want(0, "kv", "scan", "--prefix", "t/"); got != "" {
		t.Errorf("%q", got)
	}
	var s struct {
		ID, Leader uint64
		Replicas   []struct{ Node uint64 }
	}
	c.json(&s, "shard", "locate", "some key")
	c.want(3, "shard", "show", "999999")
	to := s.Replicas[0].Node
	if to == s.Leader {
		to = s.Replicas[1].Node
	}
	id := strconv.FormatUint(s.ID, 10)
	c.want(0, "shard", "transfer", id, "--to", strconv.FormatUint(to, 10))
	eventually(t, 5*time.Second, func() error {
		c.json(&s, "shard", "show", id)
		if s.Leader != to {
			return fmt.Errorf("shard %s is led by %d, not %d", id, s.Leader, to)
		}
		return nil
	})
	c.want(1, "shard", "transfer", id, "--to", "99")
	c.want(3, "node", "show", "99")
	c.want(0, "node", "ls")
	if o := runBinary(t, nil, []string{"KILORAFT_SERVER=127.0.0.1:1"}, "kv", "get", "a", "--timeout", "500ms"); o.code != 4 {
		t.Errorf("nobody there: %+v", o)
	}
}

// limits sends what is over the limit: refused, clearly, and the rest goes on.
func limits(t *testing.T, c *cluster) {
	key := strings.Repeat("k", 4096)
	c.want(0, "kv", "put", key, "v")
	c.want(0, "kv", "del", key)
	for name, c := range map[string]struct {
		code int // a key is an argument, and so its fault is bad usage; a value may come from anywhere
		output
	}{
		"key":   {2, c.run(nil, "kv", "put", key+"k", "v")},
		"value": {1, c.run(strings.NewReader(strings.Repeat("v", 8<<20+1)), "kv", "put", "big", "-")},
		"empty": {2, c.run(nil, "kv", "put", "", "v")},
	} {
		o := c.output
		if o.code != c.code || !strings.HasPrefix(o.stderr, "kiloraft: ") || len(o.stderr) > 500 {
			t.Errorf("%s: exit %d, %q", name, o.code, shorten(o.stderr))
		}
	}
	big := strings.Repeat("v", 8<<20)
	if o := c.run(strings.NewReader(big), "kv", "put", "big", "-"); o.code != 0 {
		t.Errorf("a value of 8 MiB: exit %d, %q", o.code, o.stderr)
	}
	if got := c.want(0, "kv", "get", "big"); got != big {
		t.Errorf("a value of 8 MiB came back with %d bytes", len(got))
	}
	c.want(0, "kv", "del", "big")
}

// files sends a real source tree in through one node and out through another.
func files(t *testing.T, c *cluster) {
	root, parts := sourceTree(t)
	begin := time.Now()
	for _, part := range parts {
		args := []string{"kv", "import", "--format", "dir", "--server", c.Servers[0], "-o", "json", "--prefix", prefixOf(part)}
		var r struct {
			Keys          int
			RejectedTotal int `json:"rejected_total"`
		}
		if err := json.Unmarshal([]byte(c.want(0, append(args, filepath.Join(root, part))...)), &r); err != nil || r.Keys < 50 || r.RejectedTotal != 0 {
			t.Errorf("%s: %+v, %v", part, r, err)
		}
	}
	t.Logf("imported in %v", time.Since(begin))
	c.exportAndCompare(c.Servers[1])
}

// prefixOf keeps the files apart from what other steps write.
func prefixOf(part string) string { return filepath.ToSlash(filepath.Join("src", part)) + "/" }

func (c *cluster) exportAndCompare(server string) {
	c.t.Helper()
	root, parts := sourceTree(c.t)
	out := c.t.TempDir()
	begin, n := time.Now(), 0
	for _, part := range parts {
		c.want(0, "kv", "export", "--format", "dir", "--server", server, "--prefix", prefixOf(part), out)
		n += sameTree(c.t, filepath.Join(root, part), filepath.Join(out, prefixOf(part)))
	}
	c.t.Logf("exported and compared %d files in %v", n, time.Since(begin))
	if full && n < 10_000 {
		c.t.Errorf("only %d files", n)
	}
}

// coalescing puts 1,024 writes in flight over all shards and looks at what the disk and the network saw, and at what a node consists of.
func coalescing(t *testing.T, c *cluster) {
	before := make([]map[string]float64, len(c.Nodes))
	for i, p := range c.Nodes {
		before[i] = metrics(t, p)
	}
	type result struct {
		out  string
		code int
	}
	done := make(chan result, 1)
	go func() {
		o := c.run(nil, "bench", "write", "--inflight", "1024", "--duration", "5s", "-o", "json")
		done <- result{o.stdout, o.code}
	}()
	time.Sleep(2 * time.Second)
	c.oneConnectionPerPair()
	c.measureSize(manyShards)
	r := <-done
	if r.code != 0 {
		t.Fatalf("bench: exit %d, %s", r.code, r.out)
	}
	var b struct {
		OpsPerS float64 `json:"ops_per_s"`
		Errors  int
		P50     float64 `json:"p50_us"`
		P99     float64 `json:"p99_us"`
	}
	if err := json.Unmarshal([]byte(r.out), &b); err != nil || b.Errors != 0 {
		t.Errorf("bench: %v, %s", err, r.out)
	}
	t.Logf("1,024 writes in flight over %d shards: %.0f/s, p50 %.1f ms, p99 %.1f ms", manyShards, b.OpsPerS, b.P50/1000, b.P99/1000)
	for i, p := range c.Nodes {
		m := metrics(t, p)
		d := func(name string) float64 { return m[name] - before[i][name] }
		syncs, frames := d("kiloraft_sched_log_syncs_total"), d("kiloraft_sched_frames_total")
		perSync := d("kiloraft_sched_log_sync_shards_total") / syncs
		perFrame := d("kiloraft_sched_frame_messages_total") / frames
		t.Logf("%s: %.0f syncs, %.1f shards and %.1f entries a sync, %.0f frames, %.1f messages a frame", p.Name, syncs, perSync,
			d("kiloraft_log_entries_total")/syncs, frames, perFrame)
		if perSync < 8 || perFrame < 4 {
			t.Errorf("%s does not coalesce: %.1f shards a sync, %.1f messages a frame", p.Name, perSync, perFrame)
		}
	}
}

// sizes holds the largest numbers of goroutines and threads of a node that were seen, by the number of shards.
var sizes = map[int][2]float64{}

// measureSize looks at how many goroutines and threads the nodes have under load, and compares that with clusters of other numbers of
// shards that were measured before.
func (c *cluster) measureSize(shards int) {
	c.t.Helper()
	size := [2]float64{}
	for _, p := range c.Nodes {
		size[0] = max(size[0], metrics(c.t, p)["go_goroutines"])
		size[1] = max(size[1], float64(threads(c.t, p)))
	}
	c.t.Logf("a node with %d shards has up to %.0f goroutines and %.0f threads", shards, size[0], size[1])
	sizes[shards] = size
	for n, other := range sizes {
		if math.Abs(other[0]-size[0]) > 40 || math.Abs(other[1]-size[1]) > 12 {
			c.t.Errorf("with %d shards: %v goroutines and threads, with %d: %v", shards, size, n, other)
		}
	}
}

// oneConnectionPerPair checks that two nodes share exactly one TCP connection.
func (c *cluster) oneConnectionPerPair() {
	c.t.Helper()
	for i := range c.Nodes {
		for j := range i {
			eventually(c.t, 3*time.Second, func() error {
				if n := connections(c.t, c.Nodes[i], c.Nodes[j]); n != 1 {
					return fmt.Errorf("%s and %s have %d connections", c.Nodes[i].Name, c.Nodes[j].Name, n)
				}
				return nil
			})
		}
	}
}

// killOne kills a node under a load of counters in every shard.
func killOne(t *testing.T, c *cluster) {
	shards := c.shards()
	counters := demo.StartCounters(t.Context(), c.kv, shards, "kill", 200*time.Millisecond)
	defer counters.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	counters.Mark()
	if _, err := counters.WaitWritable(ctx); err != nil {
		t.Fatal(err)
	}
	counters.Mark()
	c.Nodes[2].Kill()
	over, err := counters.WaitWritable(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("take-over of %d shards: half after %v, 99%% after %v, all after %v", over.Shards, over.P50, over.P99, over.Last)
	if over.Last > 10*time.Second {
		t.Errorf("shard %d took no writes for %v", over.LastShard, over.Last)
	}
	c.restart(2)
	time.Sleep(time.Second) // writes go on while it catches up
	counters.Stop()
	begin := time.Now()
	if err := demo.WaitEqual(ctx, c.kv, shards); err != nil {
		t.Fatal(err)
	}
	t.Logf("all replicas are equal %v after the load ended", time.Since(begin))
	if err := counters.Verify(ctx, c.kv); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d acknowledged adds, %d of unknown outcome: all counters are right", counters.Acked(), counters.Unknown())
	c.oneConnectionPerPair()
	var sums []struct {
		Checksum string
		Applied  uint64
	}
	c.json(&sums, "shard", "checksum", strconv.FormatUint(shards[len(shards)/2].ID, 10))
	if len(sums) != 3 || sums[0] != sums[1] || sums[1] != sums[2] {
		t.Errorf("checksums %+v", sums)
	}
}

// killAll kills all processes at once and reads everything again.
func killAll(t *testing.T, c *cluster) {
	c.KillAll()
	begin := time.Now()
	for i := range c.Nodes {
		c.restart(i)
	}
	c.want(0, "kv", "put", "after", "restart")
	t.Logf("first write %v after the restart of all began", time.Since(begin))
	c.exportAndCompare(c.Servers[0])
	eventually(t, 20*time.Second, func() error {
		if o := c.run(nil, "cluster", "status"); o.code != 0 {
			return fmt.Errorf("exit %d: %s", o.code, shorten(o.stdout+o.stderr))
		}
		return nil
	})
}

// stop stops all nodes by SIGTERM; they must exit 0, and what they leave must be whole.
func stop(t *testing.T, c *cluster) {
	begin := time.Now()
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", time.Since(begin))
	for _, p := range c.Nodes {
		var v struct {
			OK       bool
			Problems []string
			Log      struct{ Sealed bool }
		}
		c.json(&v, "debug", "verify", "--data-dir", p.DataDir())
		if !v.OK || !v.Log.Sealed {
			t.Errorf("%s: %+v", p.Name, v)
		}
	}
}
