package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/ports"
)

// block is a fenced block of commands of a page: "sh" holds what a reader pastes, "console" what one sees: commands behind "$ ", and their output.
type block struct {
	line  int
	lang  string
	lines []string
}

const notRun = "<!-- not run: "

// blocksOf gives the blocks of a page that are to be run: all but those below a line `<!-- not run: REASON -->`.
func blocksOf(t *testing.T, page string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var b *block
	reason := ""
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimLeft(line, " ") // blocks of lists are indented
		switch {
		case b == nil && strings.HasPrefix(line, notRun):
			if reason = strings.TrimSuffix(strings.TrimPrefix(line, notRun), " -->"); len(reason) < 8 {
				t.Errorf("%s:%d: why is it not run?", page, i+1)
			}
		case b == nil && (line == "```sh" || line == "```console"):
			b = &block{line: i + 1, lang: line[3:]}
		case b != nil && line == "```":
			if reason == "" {
				blocks = append(blocks, *b)
			}
			b, reason = nil, ""
		case b != nil:
			b.lines = append(b.lines, line)
		case line != "":
			reason = ""
		}
	}
	return blocks
}

var exitLine = regexp.MustCompile(`^\(exit (\d+)\)$`)

// script gives what bash is to run. Lines whose program is not installed are left out.
func (b *block) script(t *testing.T) string {
	var out []string
	for i, line := range b.lines {
		command, shown := line, b.lang == "console"
		if shown {
			var ok bool
			if command, ok = strings.CutPrefix(line, "$ "); !ok {
				continue
			}
		}
		name, _, _ := strings.Cut(command, " ")
		if slices.Contains([]string{"curl", "jq", "redis-cli"}, name) {
			if _, err := exec.LookPath(name); err != nil {
				t.Logf("not installed, left out: %s", command)
				continue
			}
		}
		want := "0"
		for _, next := range b.lines[i+1:] {
			if !shown || strings.HasPrefix(next, "$ ") {
				break
			}
			if m := exitLine.FindStringSubmatch(next); m != nil {
				want = m[1]
			}
		}
		if want != "0" {
			command = fmt.Sprintf("rc=0; %s || rc=$?; [ $rc = %s ]", command, want)
		}
		out = append(out, command)
	}
	return strings.Join(out, "\n") + "\n"
}

// headers gives the headers of tables that the block shows: lines of words in capitals.
func (b *block) headers() (out []string) {
	for _, line := range b.lines {
		if header.MatchString(line) && b.lang == "console" {
			out = append(out, strings.Join(strings.Fields(line), " "))
		}
	}
	return out
}

var (
	header = regexp.MustCompile(`^[A-Z_/-]{2,}( +[A-Z_/-]+)+$`)
	port   = regexp.MustCompile(`(127\.0\.0\.1:|-p )(\d{4,5})\b`)
)

// ownPorts replaces the ports of a page by free ones, the same by the same.
func ownPorts(t *testing.T, script string, known map[string]string) string {
	t.Helper()
	var missing []string
	for _, m := range port.FindAllStringSubmatch(script, -1) {
		if known[m[2]] == "" && !slices.Contains(missing, m[2]) {
			missing = append(missing, m[2])
		}
	}
	free, err := ports.Free(len(missing))
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range missing {
		_, known[p], _ = net.SplitHostPort(free[i])
	}
	return port.ReplaceAllStringFunc(script, func(s string) string {
		m := port.FindStringSubmatch(s)
		return m[1] + known[m[2]]
	})
}

// shown is what a page's commands print, beside exit codes and the headers of tables: that they did what they are for.
var shown = map[string][]string{
	"README.md":     {"\nhello"},
	"quickstart.md": {"greeting\thi"},
	"security.md":   {"root: admin", "\nhello", "app/greeting\thello\n", `add user \"app\" write:\"app/\"`},
}

// TestDocs runs the commands of each page, in order, in an empty directory, as they stand there but for the ports. A page that starts no nodes
// of its own finds a cluster of three in KILORAFT_SERVER.
func TestDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, page := range append(pages, "../../README.md") {
		blocks := blocksOf(t, page)
		if len(blocks) == 0 {
			continue
		}
		ran++
		t.Run(filepath.Base(page), func(t *testing.T) { runPage(t, filepath.Base(page), blocks) })
	}
	if ran < 5 {
		t.Errorf("only %d pages with commands", ran)
	}
}

func runPage(t *testing.T, page string, blocks []block) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(bin, "kiloraft")); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, b := range blocks {
		script.WriteString(b.script(t))
	}
	known := map[string]string{}
	env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if !strings.Contains(script.String(), "kiloraft serve ") {
		c := start(t, 3)
		c.init(8)
		env = append(env, "KILORAFT_SERVER="+strings.Join(c.Servers, ","))
		for i, p := range c.Nodes {
			_, known[fmt.Sprint(7201+i)], _ = net.SplitHostPort(p.HTTP)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// The nodes that a page starts are the jobs of this shell.
	prelude := "set -xeuo pipefail\ntrap '{ kill $(jobs -p) || true; wait || true; } 2>/dev/null' EXIT\n"
	cmd := exec.CommandContext(ctx, "bash", "-c", prelude+ownPorts(t, script.String(), known))
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, env, 5*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with the nodes
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	for _, text := range shown[page] {
		if err == nil && !strings.Contains(out.String(), text) {
			t.Errorf("no %q", text)
		}
	}
	said := strings.Join(strings.Fields(out.String()), " ")
	for _, b := range blocks {
		for _, h := range b.headers() {
			if err == nil && !strings.Contains(said, h) {
				t.Errorf("line %d shows a table %q, which was not seen", b.line, h)
			}
		}
	}
	if err != nil || t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			t.Logf("%s:\n%s", filepath.Base(l), b[max(0, len(b)-2000):])
		}
		t.Fatalf("%v\n%s", err, &out)
	}
}

var indented = regexp.MustCompile(`(?m)^ {4,}(\$ )?(bin/)?(kiloraft|curl|redis-cli) .*$`)

// Commands stand in fenced blocks, where TestDocs finds them.
func TestDocsAreFenced(t *testing.T) {
	pages, _ := filepath.Glob("../../docs/*.md")
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range indented.FindAllString(string(text), -1) {
			t.Errorf("%s: a command outside of a block ```sh or ```console: %s", page, line)
		}
	}
}
