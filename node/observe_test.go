package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/logs"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// TestObserve: any node tells the heat and the history of all, says who is missing, and lets its log be read and turned up.
func TestObserve(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		cfg.Logs = logs.New(&lockedBuffer{}, false, slog.LevelInfo)
		cfg.Settings = func() []byte { return []byte("[]\n") }
		node.SetUnobserved(cfg) // else a full minute that comes meanwhile takes a slot and its share of the writes
	}})
	for i := range 3 {
		c.Node(i).Observe(time.Now())
	}
	c.Init(0, 16, 3)
	write(t, c, 0, 300, "v")
	at := time.Now().Add(time.Hour).Truncate(time.Minute)
	for i := range 3 {
		c.Node(i).Observe(at)
	}
	var m node.HeatMap
	getJSON(t, c, 1, "/api/heat", &m)
	total := uint64(0)
	for _, row := range m.Writes {
		for _, n := range row {
			total += n
		}
	}
	if total < 300 || len(m.Ranges) < 4 || len(m.At) != 1 || len(m.Missing) != 0 {
		t.Errorf("%d writes in %d ranges and %d slots, missing %q", total, len(m.Ranges), len(m.At), m.Missing)
	}
	var h node.History
	getJSON(t, c, 2, "/api/history", &h)
	if len(h.Nodes) != 3 || len(h.Missing) != 0 {
		t.Fatalf("%+v", h)
	}
	for _, n := range h.Nodes {
		if last := n.Samples[len(n.Samples)-1]; last.Replicas != 17 || last.MemoryBytes == 0 || last.Goroutines == 0 || last.DiskSize == 0 {
			t.Errorf("node %d: %+v", n.Node, last)
		}
	}
	text := httpGet(t, c, 0, "/debug/log")
	if !strings.Contains(text, "node is up") {
		t.Errorf("log:\n%s", text)
	}
	setLevel(t, c, "debug", http.StatusOK)
	setLevel(t, c, "loud", http.StatusBadRequest)
	if text := httpGet(t, c, 0, "/debug/log"); !strings.Contains(text, `action="set the log level to debug"`) {
		t.Error("the audit log does not tell who changed the level of the log")
	}
	c.Kill(2)
	getJSON(t, c, 0, "/api/heat", &m)
	if len(m.Missing) != 1 || !strings.HasPrefix(m.Missing[0], "node 3 (n3): ") {
		t.Errorf("missing %q", m.Missing)
	}
}

// TestHTTPClientThatDoesNotRead asks on and on without reading an answer: its connection ends, and does not stay for ever.
func TestHTTPClientThatDoesNotRead(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{Config: func(_ int, cfg *node.Config) { node.SetHTTPWriteMax(cfg, 100*time.Millisecond) }})
	conn, err := net.Dial("tcp", c.Node(0).HTTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(30 * time.Second))
	requests := []byte(strings.Repeat("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 1000))
	for {
		_, err := conn.Write(requests)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the node waits for a client that does not read")
		}
		if err != nil {
			return
		}
	}
}

func setLevel(t *testing.T, c *nodetest.Cluster, level string, want int) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, "http://"+c.Node(0).HTTPAddr()+"/debug/log?level="+level, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != want {
		t.Errorf("level %s: %s", level, res.Status)
	}
}

func getJSON(t *testing.T, c *nodetest.Cluster, i int, path string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(httpGet(t, c, i, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// TestInspect: every inspection is answered, and unknown ones are refused.
func TestInspect(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	for round := range 2 {
		for what, holds := range map[string]string{"config": "[]", "version": "kiloraft", "metrics": "kiloraft_net_dials_total", "log": "", "goroutines": "goroutine profile",
			"heap": "", "cpu": "", "replicas": "", "heat": "", "history": ""} {
			b, err := c.Node(0).Inspect(context.Background(), what)
			if err != nil || !bytes.Contains(b, []byte(holds)) || round == 1 && what == "replicas" && bytes.Count(b, []byte("\n")) != 4 {
				t.Errorf("%s: %v, %.200q", what, err, b)
			}
		}
		if round == 0 {
			c.Init(0, 3, 1)
		}
	}
	if _, err := c.Node(0).Inspect(context.Background(), "passwords"); err == nil {
		t.Error("an unknown inspection was answered")
	}
}
