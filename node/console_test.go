package node_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/logs"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// What the console reads, as far as the tests look at it.
type (
	consoleShard struct {
		ID          uint64
		Start, End  string
		Leader      uint64
		ConfVersion uint64 `json:"conf_version"`
		Replicas    []struct{ Node uint64 }
		Keys, Bytes uint64
	}
	consoleShards struct {
		Shards []consoleShard
		Next   *string
	}
	consoleStatus struct {
		Node   uint64
		Nodes  struct{ Total, Up int }
		Shards struct {
			Total, Unavailable int
			WithLeader         int `json:"with_leader"`
			Under              int `json:"under_replicated"`
		}
		Replicas int
		Problems []string
	}
	consoleNode struct {
		ID                uint64
		Name, State       string
		Replicas, Leaders uint64
		Since             int64 `json:"since_ms"`
		Labels            map[string]string
	}
	consoleOp struct {
		ID                uint64
		Kind, State, What string
		Cancel            bool
	}
)

// TestConsoleTells: any node tells the same of status, nodes, shards, one shard and operations, and of a node that dies.
func TestConsoleTells(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		cfg.Logs = logs.New(io.Discard, false, slog.LevelInfo)
		node.SetLoadEvery(cfg, 100*time.Millisecond)
	}})
	if code, body := fetch(t, c, 0, "/api/status"); code != http.StatusServiceUnavailable || !strings.Contains(body, "in no cluster") {
		t.Errorf("without a cluster: %d %s", code, body)
	}
	c.Init(0, 30, 3)
	write(t, c, 0, 100, "v")
	for i := range 3 {
		var st consoleStatus
		nodetest.Eventually(t, 10*time.Second, func() error {
			getJSON(t, c, i, "/api/status", &st)
			if st.Shards.Total != 30 || st.Shards.WithLeader != 30 || st.Nodes.Up != 3 || st.Replicas != 90 || len(st.Problems) != 0 || st.Node != uint64(c.Node(i).ID()) {
				return fmt.Errorf("%+v", st)
			}
			return nil
		})
		consolePages(t, c, i)
		consoleNodes(t, c, i)
	}
	// One shard.
	var page struct {
		Shard    consoleShard
		Replicas []struct {
			Node, Last, Applied uint64
			State, Problem      string
		}
		Operations  []consoleOp
		Left, Right uint64
	}
	getJSON(t, c, 1, "/api/shard/3", &page)
	if page.Shard.ID != 3 || len(page.Replicas) != 3 || page.Left != 2 || page.Right != 4 || page.Replicas[0].Last == 0 || page.Replicas[0].Problem != "" {
		t.Errorf("%+v", page)
	}
	getJSON(t, c, 1, "/api/shard/1", &page) // the meta shard
	if page.Shard.ID != 1 || page.Left != 0 || page.Right != 0 {
		t.Errorf("%+v", page)
	}
	for path, want := range map[string]int{"/api/shard/99": 404, "/api/shard/x": 400, "/api/shard/99/events": 404, "/api/shards?from=%5C": 400, "/api/shards?limit=0": 400,
		"/api/shards?limit=16385": 400, "/api/ops?limit=-1": 400, "/console/nothing": 404} {
		if code, body := fetch(t, c, 0, path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	// An operation, told by the list and by its shard.
	op := &placement.Op{Kind: placement.OpTransfer, Shard: 3, To: 2}
	if err := c.Node(0).StartOp(deadline(t, 10*time.Second), op); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, 10*time.Second, func() error {
		var list struct{ Operations []consoleOp }
		getJSON(t, c, 2, "/api/ops", &list)
		getJSON(t, c, 2, "/api/shard/3", &page)
		if len(list.Operations) != 1 || list.Operations[0].State != "done" || len(page.Operations) != 1 || page.Operations[0].Kind != "transfer" || page.Shard.Leader != 2 {
			return fmt.Errorf("%+v, %+v", list, page)
		}
		return nil
	})
	// A node dies: said in words, by all that live, and its replica of the shard with the reason.
	c.Kill(2)
	nodetest.Eventually(t, 20*time.Second, func() error {
		var st consoleStatus
		var nodes []consoleNode
		getJSON(t, c, 0, "/api/status", &st)
		getJSON(t, c, 0, "/api/nodes", &nodes)
		getJSON(t, c, 0, "/api/shard/3", &page)
		text := strings.Join(st.Problems, "; ")
		if !strings.Contains(text, "node 3 (n3, ") || !strings.Contains(text, "since ") || st.Nodes.Up != 2 || st.Shards.Unavailable != 0 || st.Shards.Under != 30 {
			return fmt.Errorf("%+v", st)
		}
		if nodes[2].State != "down" || nodes[2].Replicas != 31 || nodes[2].Since == 0 || page.Replicas[2].Problem != "the node is down" {
			return fmt.Errorf("%+v, %+v", nodes, page.Replicas)
		}
		return nil
	})
}

// consolePages reads all shards in pages of 7.
func consolePages(t *testing.T, c *nodetest.Cluster, i int) {
	t.Helper()
	var all []consoleShard
	keys := uint64(0)
	for from := ""; ; {
		var page consoleShards
		getJSON(t, c, i, "/api/shards?limit=7&from="+url.QueryEscape(from), &page)
		for _, s := range page.Shards {
			if s.Leader == 0 || len(s.Replicas) != 3 || len(all) > 0 && all[len(all)-1].End != s.Start {
				t.Errorf("shard %d: %+v", s.ID, s)
			}
			all, keys = append(all, s), keys+s.Keys
		}
		if page.Next == nil {
			break
		}
		from = *page.Next
	}
	if len(all) != 30 || all[0].Start != "" || all[29].End != "" || keys == 0 {
		t.Errorf("%d shards with %d keys", len(all), keys)
	}
}

func consoleNodes(t *testing.T, c *nodetest.Cluster, i int) {
	t.Helper()
	var nodes []consoleNode
	getJSON(t, c, i, "/api/nodes", &nodes)
	leaders := uint64(0)
	for j, n := range nodes {
		if n.Name != fmt.Sprintf("n%d", j+1) || n.State != "up" || n.Replicas != 31 || n.Labels == nil {
			t.Errorf("%+v", n)
		}
		leaders += n.Leaders
	}
	if len(nodes) != 3 || leaders != 31 {
		t.Errorf("%d leaders on %d nodes", leaders, len(nodes))
	}
}

func fetch(t *testing.T, c *nodetest.Cluster, i int, path string) (int, string) {
	t.Helper()
	res, err := http.Get("http://" + c.Node(i).HTTPAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// TestConsoleShowsBytes: keys are told so that the page can show them as text: printable, and nothing lost.
func TestConsoleShowsBytes(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{Config: func(_ int, cfg *node.Config) { cfg.Name = "<b>n</b>" }})
	c.Init(0, 1, 1)
	keys := [][]byte{[]byte("\x00\x01"), []byte("<script>alert(1)</script>"), []byte("\\x00"), []byte("\xff\xfe"), []byte("\u202eevil")}
	op := &placement.Op{Kind: placement.OpSplit, Shard: 2, Keys: keys}
	if err := c.Node(0).StartOp(deadline(t, 10*time.Second), op); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{`\x00\x01`: true, "<script>alert(1)</script>": true, `\\x00`: true, `\xff\xfe`: true, `\xe2\x80\xaeevil`: true}
	nodetest.Eventually(t, 10*time.Second, func() error {
		code, body := fetch(t, c, 0, "/api/shards")
		if code != http.StatusOK || strings.Contains(body, "<") {
			return fmt.Errorf("%d %s", code, body) // JSON has < as \u003c: even who takes it for HTML sees no markup
		}
		var page consoleShards
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			return err
		}
		found := 0
		for _, s := range page.Shards {
			if want[s.Start] {
				found++
			}
		}
		if found != len(want) {
			return fmt.Errorf("%d of the keys in %s", found, body)
		}
		return nil
	})
}

// TestConsoleActs: actions are for administrators who have shown who they are, are checked, and are in the audit log.
func TestConsoleActs(t *testing.T) {
	s := startSecured(t, 3, 4)
	do := func(who, path, body string) (int, string) {
		t.Helper()
		code, text, _ := s.request("POST", path, who, func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(body))
		})
		return code, text
	}
	started := func(code int, text string) (o consoleOp) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &o); err != nil || code != http.StatusOK || o.ID == 0 {
			t.Fatalf("%d %s %v", code, text, err)
		}
		return o
	}
	transfer := `{"kind":"transfer","shard":3,"to":%d}`
	for _, to := range []int{1, 2} {
		s.over(started(do("admin", "/api/ops", fmt.Sprintf(transfer, to))).ID)
	}
	for who, want := range map[string]int{"nobody": 401, "reader": 403, "writer": 403} {
		for _, path := range []string{"/api/ops", "/api/ops/1/cancel", "/api/nodes/1/undrain"} {
			if code, text := do(who, path, fmt.Sprintf(transfer, 1)); code != want {
				t.Errorf("%s as %s: %d %s", path, who, code, text)
			}
		}
	}
	for body, want := range map[string]int{"": 400, "[]": 400, `{"kind":"burn"}`: 400, `{"kind":"transfer","shard":77,"to":1}`: 404, `{"kind":"transfer","shard":3,"to":1,"x":1}`: 400,
		`{"kind":"move","shard":3,"from":1,"to":2}`: 400, `{"kind":"split","shard":3,"keys":["\\"]}`: 400, strings.Repeat(" ", 2<<20): 400} {
		if code, text := do("admin", "/api/ops", body); code != want {
			t.Errorf("%.60s: %d %s", body, code, text)
		}
	}
	for path, want := range map[string]int{"/api/ops/99/cancel": 404, "/api/ops/x/cancel": 400, "/api/nodes/99/undrain": 404, "/api/nodes/x/undrain": 400} {
		if code, text := do("admin", path, "{}"); code != want {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	// A drain that cannot end: cancelled, and the node takes replicas again.
	drain := started(do("admin", "/api/ops", `{"kind":"drain","from":3}`))
	if o := started(do("admin", fmt.Sprintf("/api/ops/%d/cancel", drain.ID), "{}")); !o.Cancel {
		t.Errorf("%+v", o)
	}
	if code, text := do("admin", "/api/nodes/3/undrain", "{}"); code != http.StatusOK {
		t.Errorf("undrain: %d %s", code, text)
	}
	audit, err := os.ReadFile(s.audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`"door":"http","action":"operation 1 (transfer shard 3 to node 1)","result":"done"`, `"action":"cancel operation 99","result":"failed`,
		fmt.Sprintf(`"action":"cancel operation %d","result":"done"`, drain.ID), `"action":"POST /api/ops","result":"denied"`} {
		if !bytes.Contains(audit, []byte(line)) {
			t.Errorf("the audit log lacks %s:\n%s", line, audit)
		}
	}
}

// TestConsoleReshapes: what an administrator asks the console for is done: split at a key and into parts, merge, move.
func TestConsoleReshapes(t *testing.T) {
	s := startSecured(t, 3, 2)
	added := s.Node(s.Add()).ID()
	write(t, s.Cluster, 0, 300, "v")
	nodetest.Eventually(t, 20*time.Second, func() error { // else there is nowhere to move to
		for _, n := range s.get("/api/nodes") {
			if n["id"] == float64(added) && n["state"] == "up" {
				return nil
			}
		}
		return errors.New("the new node is not up")
	})
	do := func(format string, args ...any) {
		t.Helper()
		body := fmt.Sprintf(format, args...)
		var o consoleOp
		code, text, _ := s.request("POST", "/api/ops", "admin", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(body)) })
		if err := json.Unmarshal([]byte(text), &o); err != nil || code != http.StatusOK || o.ID == 0 {
			t.Fatalf("%s: %d %s %v", body, code, text, err)
		}
		s.over(o.ID)
	}
	starts := func(want ...string) (list []*shard.Descriptor) {
		t.Helper()
		nodetest.Eventually(t, 20*time.Second, func() error {
			var got []string
			list, _ = s.Node(0).Ranges(t.Context())
			for _, d := range list {
				got = append(got, string(d.Start))
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("shards begin at %q, want %q", got, want)
			}
			return nil
		})
		return list
	}
	left := starts("", "\x80")[0].Shard
	do(`{"kind":"split","shard":%d,"keys":["\\x10","a/b"]}`, left)
	list := starts("", "\x10", "a/b", "\x80")
	do(`{"kind":"merge","shard":%d,"other":%d}`, left, list[1].Shard)
	list = starts("", "a/b", "\x80")
	holder := list[1]
	if !holder.Contains(key(0)) {
		holder = list[0]
	}
	do(`{"kind":"split","shard":%d,"parts":2}`, holder.Shard)
	nodetest.Eventually(t, 20*time.Second, func() error {
		if list, _ = s.Node(0).Ranges(t.Context()); len(list) != 4 {
			return fmt.Errorf("%d shards, want 4", len(list))
		}
		return nil
	})
	do(`{"kind":"move","shard":%d,"from":1,"to":%d}`, holder.Shard, added)
	nodetest.Eventually(t, 20*time.Second, func() error {
		list, _ := s.Node(0).Ranges(t.Context())
		for _, d := range list {
			on := func(n engine.NodeID) bool {
				return slices.ContainsFunc(d.Replicas, func(r shard.ReplicaDesc) bool { return r.Node == n })
			}
			if d.Shard == holder.Shard && on(added) && !on(1) && len(d.Replicas) == 3 {
				return nil
			}
		}
		return errors.New("the replica was not moved")
	})
	read(t, s.Cluster, 1, 300, "v")
	audit, err := os.ReadFile(s.audit)
	if err != nil || bytes.Count(audit, []byte(`"door":"http","action":"operation `)) != 4 {
		t.Errorf("the audit log has not four actions: %v\n%s", err, audit)
	}
}

// get reads a list of objects as the administrator.
func (s *secured) get(path string) (list []map[string]any) {
	s.t.Helper()
	code, text, _ := s.request("GET", path, "admin")
	if err := json.Unmarshal([]byte(text), &list); err != nil || code != http.StatusOK {
		s.t.Fatalf("%s: %d %s %v", path, code, text, err)
	}
	return list
}

// TestConsoleChangesNothingUnasked: on a cluster without certificates, where nobody can show who they are, the console looks only.
func TestConsoleChangesNothingUnasked(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	for _, path := range []string{"/api/ops", "/api/ops/1/cancel", "/api/nodes/1/undrain"} {
		res, err := http.Post("http://"+c.Node(0).HTTPAddr()+path, "application/json", strings.NewReader(`{"kind":"split","shard":2,"parts":2}`))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden || !strings.Contains(string(b), "not authenticated") {
			t.Errorf("%s: %s %s", path, res.Status, b)
		}
	}
}
