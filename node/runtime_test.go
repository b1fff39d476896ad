package node_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// goroutines counts those of the whole process when they have settled.
func goroutines() int {
	least := runtime.NumGoroutine()
	for range 40 {
		time.Sleep(5 * time.Millisecond) // requests in progress end
		least = min(least, runtime.NumGoroutine())
	}
	return least
}

// Goroutines and connections do not depend on the number of shards.
func TestGoroutinesAndConnections(t *testing.T) {
	counts := map[int]int{}
	for _, n := range []int{10, 500} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: time.Second})
			c.Init(0, n, 3)
			write(t, c, 1, 30, "v")
			http.DefaultClient.CloseIdleConnections()
			counts[n] = goroutines()
			for i := range 3 {
				if conns, nodes := c.Node(i).Peers(); conns != 2 || nodes != 2 {
					t.Errorf("node %d has %d connections with %d nodes", i+1, conns, nodes)
				}
			}
			checkEven(t, c, 3, n)
		})
	}
	// Short-lived helpers come and go.
	if d := counts[500] - counts[10]; d > 20 || d < -20 {
		t.Errorf("goroutines: %v", counts)
	}
	t.Logf("goroutines of three nodes, by shards: %v", counts)
}

func TestHTTP(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	base := "http://" + c.Node(0).HTTPAddr()
	if code, _ := get(t, base+"/livez"); code != 200 {
		t.Errorf("livez of a waiting node: %d", code)
	}
	if code, body := get(t, base+"/readyz"); code != 503 || !strings.Contains(body, "[-] cluster") {
		t.Errorf("readyz of a waiting node: %d %s", code, body)
	}
	c.Init(0, 20, 1)
	write(t, c, 0, 10, "v")
	nodetest.Eventually(t, 5*time.Second, func() error {
		if code, body := get(t, base+"/readyz?verbose"); code != 200 || !strings.Contains(body, "[+] meta ok") || !strings.Contains(body, "[+] disk ok") {
			return fmt.Errorf("readyz: %d %s", code, body)
		}
		return nil
	})
	if code, _ := get(t, base+"/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("pprof: %d", code)
	}
	_, body := get(t, base+"/metrics")
	for _, name := range []string{"raft_leaders 21", "raft_proposals_total", "sched_log_syncs_total", "sched_log_sync_shards_total", "raft_entries_total",
		"sched_frames_total", "sched_frame_messages_total", "disk_fsync_seconds_bucket", "raft_commit_latency_seconds_count", "net_peer_connections 0",
		"shards_replicas 21", "log_syncs_total", "state_file_bytes"} {
		if !strings.Contains(body, "\nkiloraft_"+name) {
			t.Errorf("no kiloraft_%s in /metrics", name)
		}
	}
	for _, line := range strings.Split(body, "\n") {
		if strings.Contains(line, "shard=") || strings.Contains(line, "shard_id=") {
			t.Errorf("a label for the shard: %s", line)
		}
	}
}

// replica returns what node i says of its replica of a shard.
func replica(t *testing.T, c *nodetest.Cluster, i int, id engine.ShardID) (api.ReplicaStatus, error) {
	t.Helper()
	body, err := c.Node(i).Client().Call(deadline(t, 5*time.Second), c.Node(i).ID(), "", api.MethodReplicas,
		(&api.ReplicasRequest{Shards: []engine.ShardID{id}}).Append(nil))
	if err != nil {
		return api.ReplicaStatus{}, err
	}
	var page api.ReplicasPage
	if err := api.Decode(body, &page); err != nil || len(page.Replicas) != 1 {
		return api.ReplicaStatus{}, fmt.Errorf("%d replicas, %v", len(page.Replicas), err)
	}
	return page.Replicas[0], nil
}

func checksum(t *testing.T, c *nodetest.Cluster, i int, id engine.ShardID) (api.Checksum, error) {
	t.Helper()
	var out api.Checksum
	body, err := c.Node(i).Client().Call(deadline(t, 5*time.Second), c.Node(i).ID(), "", api.MethodChecksum, (&api.ChecksumRequest{Shard: id}).Append(nil))
	if err == nil {
		err = api.Decode(body, &out)
	}
	return out, err
}

// A node that was away while the others compacted their logs is brought up by snapshot, and then holds the same bytes.
func TestCatchUpBySnapshot(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		node.SetTune(cfg, func(s *scheduler.Config) {
			s.CheckpointInterval = engine.Duration(20 * time.Millisecond)
			s.CheckpointAge = engine.Duration(50 * time.Millisecond)
			s.ShardLogBytesMax, s.ShardLogEntriesKeep = 1, 1
		})
	}})
	c.Init(0, 3, 3)
	write(t, c, 0, 30, "old")
	c.Kill(2)
	for round := range 3 {
		write(t, c, 0, 200, fmt.Sprintf("new-%d", round))
	}
	// The logs of the two are purged: nobody could catch up by them.
	nodetest.Eventually(t, 10*time.Second, func() error {
		for _, id := range []engine.ShardID{2, 3, 4} {
			if st, err := replica(t, c, 0, id); err != nil || st.Persisted != st.Applied {
				return fmt.Errorf("shard %d: %+v, %v", id, st, err)
			}
		}
		return nil
	})
	c.Restart(2)
	read(t, c, 2, 200, "new-2")
	for _, id := range []engine.ShardID{2, 3, 4} {
		nodetest.Eventually(t, 20*time.Second, func() error {
			var sums [3]api.Checksum
			for i := range 3 {
				var err error
				if sums[i], err = checksum(t, c, i, id); err != nil {
					return fmt.Errorf("shard %d: %w", id, err)
				}
			}
			if sums[0] != sums[1] || sums[1] != sums[2] || sums[0].Items == 0 {
				return fmt.Errorf("shard %d: %+v", id, sums)
			}
			return nil
		})
	}
	_, text := get(t, "http://"+c.Node(2).HTTPAddr()+"/metrics")
	if strings.Contains(text, "\nkiloraft_raft_snapshots_received_total 0\n") {
		t.Error("no snapshot was received")
	}
}

func TestTransfer(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 3, 3)
	s := shards(t, c, 0)[0]
	to := s.Leader%3 + 1
	for i := range 3 { // any node takes the order
		body := (&api.TransferRequest{Shard: s.Descriptor.Shard, To: to}).Append(nil)
		nodetest.Eventually(t, 20*time.Second, func() error { // a leader that is new, or whose follower lags, says: not now
			_, err := c.Node(i).Client().Call(deadline(t, 5*time.Second), 0, "", api.MethodTransfer, body)
			if err != nil && !errors.Is(err, shard.ErrUnavailable) {
				t.Fatalf("transfer by node %d: %v", i+1, err)
			}
			return err
		})
		if got := shards(t, c, 0)[0].Leader; got != to {
			t.Errorf("node %d leads, want %d", got, to)
		}
		to = to%3 + 1
	}
}

// When a node is closed others lead its shards; see scheduler.TestStopHandsOver for how.
func TestCloseHandsOver(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: time.Second})
	c.Init(0, 30, 3)
	write(t, c, 0, 20, "v")
	c.Stop(1)
	nodetest.Eventually(t, 20*time.Second, func() error {
		for _, s := range shards(t, c, 0) {
			if s.Leader == 0 || s.Leader == 2 {
				return fmt.Errorf("shard %d is led by node %d", s.Descriptor.Shard, s.Leader)
			}
		}
		return nil
	})
	read(t, c, 0, 20, "v")
	c.Restart(1)
	read(t, c, 1, 20, "v")
}
