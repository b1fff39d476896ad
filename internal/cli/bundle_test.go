package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/internal/logs"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

// bundleOf runs debug bundle over the network and reads the archive; nil if there is none.
func bundleOf(t *testing.T, code int, servers []string) (files map[string]string, stderr string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "b.tar.gz")
	var out, errs bytes.Buffer
	got := Run(context.Background(), Env{Args: []string{"debug", "bundle", "--cpu", "0s", "--timeout", "5s", "--server", strings.Join(servers, ","), name}, Stdout: &out, Stderr: &errs})
	if got != code {
		t.Fatalf("exit %d, want %d: %s%s", got, code, out.String(), errs.String())
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, errs.String()
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, errs.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "kiloraft-bundle/")] = string(b)
	}
}

func TestBundle(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{Config: func(_ int, cfg *node.Config) {
		cfg.Logs = logs.New(io.Discard, false, slog.LevelInfo)
		cfg.Settings = func() []byte { return []byte(`[{"key": "listen"}]`) }
	}})
	// Nodes that are in no cluster tell of themselves, too.
	files, _ := bundleOf(t, 0, c.Addrs()[:1])
	if len(files) < 8 {
		t.Errorf("before init: %d files", len(files))
	}
	c.Init(0, 5, 3)
	if _, err := c.Node(1).Client().Put(context.Background(), []byte("k"), []byte("a-value-that-is-nobodys-business")); err != nil {
		t.Fatal(err)
	}
	c.Kill(2)
	files, stderr := bundleOf(t, 0, c.Addrs())
	for name, holds := range map[string]string{
		"cluster/nodes.json": `"n3"`, "cluster/shards.json": `"conf_version"`, "cluster/status.json": `"cluster_id"`, "cluster/operations.json": "[",
		"nodes/1-n1/config.json": "listen", "nodes/1-n1/version.txt": "kiloraft", "nodes/2-n2/metrics.txt": "kiloraft_raft_leaders ",
		"nodes/1-n1/log.txt": "node is up", "nodes/2-n2/replicas.jsonl": `"applied"`, "nodes/1-n1/goroutines.txt": "goroutine profile",
		"nodes/2-n2/heap.pprof": "", "nodes/2-n2/history.json": "[", "nodes/2-n2/heat.json": "", "manifest.json": "nodes/3-n3",
	} {
		if text, ok := files[name]; !ok || !strings.Contains(text, holds) {
			t.Errorf("%s: %t, %.300q", name, ok, text)
		}
	}
	if !strings.Contains(stderr, "missing: nodes/3-n3: ") {
		t.Errorf("stderr: %s", stderr)
	}
	for name, text := range files {
		if strings.Contains(text, "a-value-that-is-nobodys-business") {
			t.Errorf("%s holds a value", name)
		}
	}
	var man manifest
	if err := json.Unmarshal([]byte(files["manifest.json"]), &man); err != nil || len(man.Files) != len(files)-1 {
		t.Errorf("%v: manifest of %d files, archive of %d", err, len(man.Files), len(files))
	}
	c.Kill(0)
	c.Kill(1)
	if files, _ := bundleOf(t, exitUnavailable, c.Addrs()); files != nil {
		t.Error("a bundle of nobody")
	}
}

// TestReload: the level of the log follows the file, and a broken file changes nothing.
func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k.yaml")
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	config.AddClientFlags(flags)
	config.AddNodeFlags(flags)
	config.AddFileFlag(flags)
	if err := flags.Parse([]string{"--config", file, "--data-dir", "d"}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	l := logs.New(&out, false, slog.LevelInfo)
	a := &app{}
	for _, c := range []struct {
		text string
		want slog.Level
	}{{"log: {level: debug}", slog.LevelDebug}, {"log: {level: loud}", slog.LevelDebug}, {"log: {level: warn}", slog.LevelWarn}} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		a.reload(flags, l)
		if l.Level() != c.want {
			t.Errorf("%s: level %v, want %v; %s", c.text, l.Level(), c.want, out.String())
		}
	}
	if !strings.Contains(out.String(), "the configuration was not read again") {
		t.Errorf("nothing says that a file is broken: %s", out.String())
	}
}
