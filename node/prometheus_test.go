package node_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node/nodetest"
)

// prometheus is a Prometheus server, of Debian's package of that name, on this machine.
type prometheus struct {
	t   *testing.T
	url string
}

var listens = regexp.MustCompile(`msg="Listening on".* address=(127\.0\.0\.1:\d+)`)

// startPrometheus has one scrape the nodes every second and evaluate the rules of deploy/.
func startPrometheus(t *testing.T, c *nodetest.Cluster, nodes int) *prometheus {
	t.Helper()
	rules, err := filepath.Abs("../deploy/prometheus/kiloraft.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for i := range nodes {
		targets = append(targets, fmt.Sprintf("%q", c.Node(i).HTTPAddr()))
	}
	dir := t.TempDir()
	config := fmt.Sprintf("global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs: [{job_name: kiloraft, static_configs: [{targets: [%s]}]}]\n",
		rules, strings.Join(targets, ", "))
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("Debian's package prometheus is needed: ", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var said strings.Builder
	for s := bufio.NewScanner(out); s.Scan(); said.WriteString(s.Text() + "\n") {
		if m := listens.FindStringSubmatch(s.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
			return &prometheus{t, "http://" + m[1]}
		}
	}
	t.Fatalf("prometheus does not listen:\n%s", &said)
	return nil
}

// get asks the HTTP interface.
func (p *prometheus) get(path string, into any) error {
	res, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s, %v: %.300s", path, res.Status, err, body)
	}
	return json.Unmarshal(body, into)
}

// series counts what an expression gives now.
func (p *prometheus) series(expr string) (int, error) {
	var a struct {
		Data struct{ Result []json.RawMessage }
	}
	err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &a)
	return len(a.Data.Result), err
}

// rule is a rule as the server tells it.
type rule struct{ Name, Type, Query, Health, LastError, State string }

func (p *prometheus) rules() (list []rule, err error) {
	var a struct {
		Data struct{ Groups []struct{ Rules []rule } }
	}
	err = p.get("/api/v1/rules", &a)
	for _, g := range a.Data.Groups {
		list = append(list, g.Rules...)
	}
	return list, err
}

// dashboard gives the expressions of the dashboard, as Grafana asks them.
func dashboard(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../deploy/grafana/kiloraft.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	fill := strings.NewReplacer("$job", "kiloraft", "$__rate_interval", "30s")
	for _, p := range d.Panels {
		for _, x := range p.Targets {
			out[fill.Replace(x.Expr)] = p.Title
		}
	}
	return out
}

// TestOnPrometheus: a real Prometheus scrapes a cluster. Every expression of the dashboard gives something, every rule is evaluated without
// an error, and the death of a node is noticed by the alerts for it.
func TestOnPrometheus(t *testing.T) {
	if os.Getenv("KILORAFT_TEST_PROM") == "" {
		t.Skip("set KILORAFT_TEST_PROM=1; needs prometheus (apt-get install prometheus)")
	}
	c := measured(t)
	p := startPrometheus(t, c, 2)
	exprs := dashboard(t)
	if len(exprs) < 30 {
		t.Fatalf("only %d expressions on the dashboard", len(exprs))
	}
	nodetest.Eventually(t, time.Minute, func() error {
		for expr, title := range exprs {
			if n, err := p.series(expr); err != nil || n == 0 {
				return fmt.Errorf("%s: %s gives %d series, %v", title, expr, n, err)
			}
		}
		return nil
	})
	nodetest.Eventually(t, time.Minute, func() error {
		list, err := p.rules()
		if err == nil && len(list) < 20 {
			err = fmt.Errorf("only %d rules", len(list))
		}
		for _, r := range list {
			if r.Health != "ok" || r.LastError != "" {
				return fmt.Errorf("%s (%s) is %s: %s", r.Name, r.Query, r.Health, r.LastError)
			}
			if n, err := p.series(r.Name); r.Type == "recording" && n == 0 {
				return fmt.Errorf("%s records nothing, %v", r.Name, err)
			}
		}
		return err
	})
	c.Kill(1) // the other one has no majority alone
	nodetest.Eventually(t, time.Minute, func() error {
		list, err := p.rules()
		quiet := map[string]bool{"NodeDown": true, "PeersDown": true, "NoLeader": true}
		for _, r := range list {
			if r.State == "pending" || r.State == "firing" {
				delete(quiet, r.Name)
			}
		}
		if err == nil && len(quiet) > 0 {
			err = fmt.Errorf("a node is dead, and these alerts are silent: %v", quiet)
		}
		return err
	})
}
