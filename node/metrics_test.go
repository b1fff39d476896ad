package node_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

var rewrite = flag.Bool("rewrite", false, "write docs/metrics.md anew")

// family is what /metrics says of one metric.
type family struct {
	name, help, kind string
	labels           []string
	series           int
}

var sampleLine = regexp.MustCompile(`^([a-zA-Z0-9_]+)(?:\{(.*)\})? `)
var labelName = regexp.MustCompile(`([a-zA-Z_]+)="`)

// scrape reads /metrics of node i, which is sorted by name.
func scrape(t *testing.T, c *nodetest.Cluster, i int) (families []*family, size int) {
	t.Helper()
	text := httpGet(t, c, i, "/metrics")
	var f *family
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			f = &family{name: name, help: help}
			families = append(families, f)
		} else if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			_, f.kind, _ = strings.Cut(rest, " ")
		} else if m := sampleLine.FindStringSubmatch(line); m != nil {
			f.series++
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				if l[1] != "le" && !slices.Contains(f.labels, l[1]) {
					f.labels = append(f.labels, l[1])
				}
			}
		} else {
			t.Fatalf("a line that is none: %q", line)
		}
	}
	return families, len(text)
}

func httpGet(t *testing.T, c *nodetest.Cluster, i int, path string) string {
	t.Helper()
	res, err := http.Get("http://" + c.Node(i).HTTPAddr() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, res.Status, err)
	}
	return string(b)
}

// measured is a cluster in which every metric has a value.
func measured(t *testing.T) *nodetest.Cluster {
	t.Helper()
	c := nodetest.Start(t, 2, nodetest.Options{Config: func(_ int, cfg *node.Config) { cfg.Redis = "127.0.0.1:0" }})
	c.Init(0, 4, 2)
	write(t, c, 0, 20, "v")
	conn, err := net.Dial("tcp", c.Node(0).RedisAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "PING\r\n")
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "+PONG\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return c
}

// labelsKnown are the labels that metrics may have, and how many values each may have.
var labelsKnown = map[string]int{"cmd": 200, "reason": 10, "stage": 10, "kind": 10, "peer": 100, "version": 1}

// TestMetrics: names follow the rules, docs/metrics.md lists them all, and what the alerts, the recording rules and the dashboard ask for
// is there.
func TestMetrics(t *testing.T) {
	families, _ := scrape(t, measured(t), 0)
	var own []*family
	for _, f := range families {
		if strings.HasPrefix(f.name, "go_") || strings.HasPrefix(f.name, "process_") || strings.HasPrefix(f.name, "promhttp_") {
			continue
		}
		own = append(own, f)
		if !regexp.MustCompile(`^kiloraft_[a-z0-9_]+$`).MatchString(f.name) || f.help == "" {
			t.Errorf("%s: name or help (%q)", f.name, f.help)
		}
		if (f.kind == "counter") != strings.HasSuffix(f.name, "_total") {
			t.Errorf("%s is a %s", f.name, f.kind)
		}
		for _, l := range f.labels {
			if _, ok := labelsKnown[l]; !ok {
				t.Errorf("%s has a label %q", f.name, l)
			}
		}
	}
	want := metricsPage(own)
	const path = "../docs/metrics.md"
	if *rewrite {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("docs/metrics.md is out of date (%v): go test ./node -run 'TestMetrics$' -rewrite", err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.name] = true
		if f.kind == "histogram" {
			names[f.name+"_bucket"], names[f.name+"_sum"], names[f.name+"_count"] = true, true, true
		}
	}
	for _, file := range []string{"../deploy/prometheus/kiloraft.rules.yml", "../deploy/grafana/kiloraft.json"} {
		uses(t, file, names)
	}
}

// metricsPage is docs/metrics.md.
func metricsPage(list []*family) string {
	var b strings.Builder
	b.WriteString(`# Metrics

Every node answers ` + "`GET /metrics`" + ` (` + "`serve --http`" + `) in the format of Prometheus. This page is made from the code.

- No metric has a label for the shard, so a scrape stays small with any number of shards. Which shards are hot is told by ` + "`GET /api/heat`" + `.
- Counters begin at 0 with the process. Sums over nodes make sense, except where a line says "of one".
- Histograms have one bucket per power of two. There are no native histograms: the text format does not carry them, and a request
  here adds to an array with a place per power of two, without a lock or a map. A factor of two is what the alerts and the dashboard need.
- Beside these there are the ` + "`go_*` and `process_*`" + ` metrics of the Prometheus client.
- Metrics of members of a cluster are absent while a node waits for one; those of Redis clients while there is no ` + "`--redis`" + ` address.
- Alerts and recording rules: ` + "`deploy/prometheus/kiloraft.rules.yml`" + `; dashboard: ` + "`deploy/grafana/kiloraft.json`" + `; what to do when an alert
  fires: [operations](operations.md#alerts).

| Metric | Type | Labels | What it is |
|---|---|---|---|
`)
	for _, f := range list {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.kind, strings.Join(f.labels, ", "), strings.ReplaceAll(f.help, "|", "\\|"))
	}
	return b.String()
}

var metricName = regexp.MustCompile(`\b(?:kiloraft|go|process)_[a-z0-9_]+\b`)

// uses checks that every metric that a file names exists, and that every anchor of its links into the documentation does.
func uses(t *testing.T, file string, names map[string]bool) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := metricName.FindAllString(string(text), -1)
	if len(found) < 10 {
		t.Errorf("%s names %d metrics", file, len(found))
	}
	for _, name := range found {
		if !names[name] {
			t.Errorf("%s: no node has %s", file, name)
		}
	}
	if strings.HasSuffix(file, ".json") && !json.Valid(text) {
		t.Errorf("%s is no JSON", file)
	}
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`docs/operations\.md#([a-z0-9-]+)`).FindAllStringSubmatch(string(text), -1) {
		heading := regexp.MustCompile(`(?mi)^#+ ` + m[1] + `$`)
		if !heading.Match(page) {
			t.Errorf("%s: docs/operations.md has no heading %q", file, m[1])
		}
	}
}

// TestMetricsCardinality: a scrape does not grow with the number of shards.
func TestMetricsCardinality(t *testing.T) {
	shards := 10_000
	if testing.Short() {
		shards = 1000
	}
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, shards, 1)
	write(t, c, 0, 100, "v")
	families, size := scrape(t, c, 0)
	series := 0
	for _, f := range families {
		series += f.series
	}
	t.Logf("%d shards: %d metrics, %d series, %d bytes", shards, len(families), series, size)
	if size >= 128<<10 || series >= shards/2 || series >= 1000 { // one per shard would be more, also with -short
		t.Errorf("%d shards: %d series, %d bytes", shards, series, size)
	}
	if n := c.Node(0).Sched().Replicas(); n < shards {
		t.Errorf("only %d replicas", n)
	}
}

// TestRulesWithPromtool has promtool, of Debian's package prometheus, check rules and metrics.
func TestRulesWithPromtool(t *testing.T) {
	if os.Getenv("KILORAFT_TEST_PROM") == "" {
		t.Skip("set KILORAFT_TEST_PROM=1; needs promtool (apt-get install prometheus)")
	}
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", "../deploy/prometheus/kiloraft.rules.yml"},
		{"check", "config", "--syntax-only", "../deploy/prometheus/prometheus.yml"},
		{"test", "rules", "../deploy/prometheus/kiloraft.rules_test.yml"},
	} {
		out, err := exec.Command("promtool", args...).CombinedOutput()
		if err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
		t.Logf("%s", out)
	}
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(httpGet(t, measured(t), 0, "/metrics"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
