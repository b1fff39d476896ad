package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// commandsOf returns the indented lines of a section of a page.
func commandsOf(t *testing.T, page, section string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n## "+section+"\n")
	if !ok {
		t.Fatalf("docs/%s has no section %q", page, section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var out []string
	for line := range strings.Lines(rest) {
		if c, ok := strings.CutPrefix(line, "    "); ok {
			out = append(out, strings.TrimSuffix(c, "\n"))
		}
	}
	return out
}

// freePorts returns ports that nobody listens on now.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}

// The commands of docs/security.md, as they stand there but for the ports. Programs that are not installed are left out.
func TestSecurityPage(t *testing.T) {
	dir := t.TempDir()
	var script strings.Builder
	fmt.Fprintf(&script, "set -euo pipefail\nPATH=%s:$PATH\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n", filepath.Dir(binary))
	n := 0
	for _, c := range commandsOf(t, "security.md", "From nothing to a secured cluster") {
		name, _, _ := strings.Cut(c, " ")
		if name == "curl" || name == "redis-cli" {
			if _, err := exec.LookPath(name); err != nil {
				t.Logf("not installed, left out: %s", c)
				continue
			}
		}
		if strings.HasSuffix(c, "&") {
			c = strings.TrimSuffix(c, "&") + fmt.Sprintf("2>node%d.log &", n)
		}
		if c == "kiloraft cluster init --shards 10" { // what a person does by hand takes longer than a node needs to start
			c = "for i in $(seq 100); do kiloraft user whoami >/dev/null 2>&1 && break; sleep 0.1; done\n" + c
		}
		script.WriteString(c + "\n")
		n++
	}
	if n < 20 {
		t.Fatalf("only %d commands", n)
	}
	var swaps []string
	ports := freePorts(t, 9)
	for i, p := range []string{"7101", "7102", "7103", "7201", "7202", "7203", "6381", "6382", "6383"} {
		swaps = append(swaps, p, ports[i])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", strings.NewReplacer(swaps...).Replace(script.String()))
	cmd.Dir, cmd.WaitDelay = dir, 5*time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := out.String()
	for _, want := range []string{"root: admin", "read:shared/, write:app/", "hello\n", "app/greeting\thello"} {
		if !strings.Contains(strings.ReplaceAll(text, "write:app/, read:shared/", "read:shared/, write:app/"), want) {
			t.Errorf("no %q", want)
		}
	}
	if err != nil || t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(dir, "node*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			t.Logf("%s:\n%s", filepath.Base(l), shorten(string(b)))
		}
		t.Fatalf("%v\n%s", err, text)
	}
	audit, err := os.ReadFile(filepath.Join(dir, "audit-n1.log"))
	if err != nil || !bytes.Contains(audit, []byte(`add user \"app\" write:\"app/\"`)) || bytes.Contains(audit, []byte("horse")) {
		t.Errorf("audit log: %v\n%s", err, audit)
	}
}
