package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/cli"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
)

var (
	binary string // the program under test
	full   = os.Getenv("KILORAFT_E2E") == "full"
)

// flooderVar says that this process is one that floods: the name of the flood and the addresses of the node, or how much processor time it
// should waste.
const flooderVar = "KILORAFT_E2E_FLOODER"

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "kiloraft-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if os.Getenv(flooderVar) != "" {
		return m.Run() // this process is part of a test, and runs no nodes
	}
	binary = filepath.Join(dir, "kiloraft")
	build := exec.Command("go", "build", "-o", binary, "../../cmd/kiloraft")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the binary:", err)
		return 1
	}
	return m.Run()
}

// cluster is a set of node processes and a client of them.
type cluster struct {
	*demo.Cluster
	t  *testing.T
	kv client.Cluster
}

// start starts nodes that wait for a cluster to be made.
func start(t *testing.T, nodes int, args ...string) *cluster {
	t.Helper()
	return startIn(t, t.TempDir(), nodes, args...)
}

// startIn does so in a directory: node i, from 1, has its data in n<i>.
func startIn(t *testing.T, dir string, nodes int, args ...string) *cluster {
	t.Helper()
	return startWith(t, demo.Options{Nodes: nodes, Dir: dir, Args: args})
}

// startWith starts the nodes that the options say, of the program under test, at free ports.
func startWith(t *testing.T, o demo.Options) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	o.Binary, o.BasePort = binary, -1
	dc, err := demo.StartCluster(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Cluster: dc, t: t}
	t.Cleanup(c.end)
	c.kv = c.dial()
	return c
}

// end kills what is left, and shows the logs of a failed test.
func (c *cluster) end() {
	if c.kv != nil {
		c.kv.Close()
	}
	if err := c.Unexpected(); err != nil {
		c.t.Error(err)
	}
	c.KillAll()
	if c.Links != nil {
		c.Links.Close()
	}
	if c.t.Failed() {
		for _, p := range c.Nodes {
			c.t.Logf("%s:\n%s", p.LogFile(), p.LogTail(15))
		}
	}
}

// dial connects to the servers given, or to all.
func (c *cluster) dial(servers ...string) client.Cluster {
	c.t.Helper()
	if len(servers) == 0 {
		servers = c.Servers
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	kv, err := cli.Dial(ctx, servers)
	if err != nil {
		c.t.Fatal(err)
	}
	return kv
}

// init makes the cluster by the command line, and gives the time that took.
func (c *cluster) init(shards int) time.Duration {
	c.t.Helper()
	begin := time.Now()
	c.want(0, "cluster", "init", "--shards", strconv.Itoa(shards))
	return time.Since(begin)
}

func (c *cluster) shards() []client.Shard {
	c.t.Helper()
	s, err := c.kv.Shards(c.t.Context(), 0)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// restart starts a node that was killed or stopped.
func (c *cluster) restart(i int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 60*time.Second)
	defer cancel()
	if err := c.Restart(ctx, i); err != nil {
		c.t.Fatal(err)
	}
}

type output struct {
	code           int
	stdout, stderr string
}

// run runs the binary with stdin and the servers of the cluster in the environment.
func (c *cluster) run(stdin io.Reader, args ...string) output {
	c.t.Helper()
	return runBinary(c.t, stdin, []string{"KILORAFT_SERVER=" + strings.Join(c.Servers, ",")}, args...)
}

func runBinary(t *testing.T, stdin io.Reader, env []string, args ...string) output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", args, err)
	}
	if exit != nil && exit.ExitCode() < 0 {
		t.Fatalf("%v: %v\n%s", args, err, errs.String())
	}
	return output{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// want runs a command and checks its exit code; it gives stdout.
func (c *cluster) want(code int, args ...string) string {
	c.t.Helper()
	o := c.run(nil, args...)
	if o.code != code {
		c.t.Fatalf("%v: exit %d, want %d\n%s\n%s", args, o.code, code, shorten(o.stdout), shorten(o.stderr))
	}
	return o.stdout
}

func (c *cluster) json(into any, args ...string) {
	c.t.Helper()
	out := c.want(0, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		c.t.Fatalf("%v: %v in %s", args, err, shorten(out))
	}
}

func shorten(s string) string {
	if len(s) > 2000 {
		return s[:2000] + " …"
	}
	return s
}

// metrics reads /metrics of a node: name with labels → value, and name alone → sum over labels.
func metrics(t *testing.T, p *demo.Process) map[string]float64 {
	t.Helper()
	resp, err := http.Get("http://" + p.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			continue
		}
		name := line[:i]
		m[name] = v
		if base, _, ok := strings.Cut(name, "{"); ok {
			m[base] += v
		}
	}
	return m
}

// eventually waits until f gives nil.
func eventually(t *testing.T, d time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", d, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// sourceTree gives the directories of Go's source tree that the test loads: a part, or with KILORAFT_E2E=full all of it.
func sourceTree(t *testing.T) (root string, parts []string) {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(strings.TrimSpace(string(out)), "src")
	if full {
		return root, []string{"."}
	}
	return root, []string{"net", "go", "encoding"}
}

// sameTree compares two directories byte by byte, in both directions, and gives the number of files.
func sameTree(t *testing.T, a, b string) (files int) {
	t.Helper()
	list := func(dir string) map[string]bool {
		m := map[string]bool{}
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				rel, _ := filepath.Rel(dir, path)
				m[rel] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	la, lb := list(a), list(b)
	for f := range lb {
		if !la[f] {
			t.Errorf("%s has %s, %s has not", b, f, a)
		}
	}
	for f := range la {
		x, err1 := os.ReadFile(filepath.Join(a, f))
		y, err2 := os.ReadFile(filepath.Join(b, f))
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
		} else if !bytes.Equal(x, y) {
			t.Errorf("%s differs: %d and %d bytes", f, len(x), len(y))
		}
	}
	return len(la)
}
