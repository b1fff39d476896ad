package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/internal/cli"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/transport"
)

// screen is what a person, or a test, sees of a process.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) has(text string) bool { return strings.Contains(s.String(), text) }

// person is somebody at the demo's prompt.
type person struct {
	t        *testing.T
	keyboard *io.PipeWriter
	screen   screen
	done     chan error
}

// startDemo runs `kiloraft demo` until the person quits.
func startDemo(t *testing.T, tls bool) *person {
	in, keyboard := io.Pipe()
	p := &person{t: t, keyboard: keyboard, done: make(chan error, 1)}
	o := demo.Options{Binary: binary, Nodes: 3, Shards: 6, Dir: t.TempDir(), BasePort: -1, In: in, Out: &p.screen, Dial: dialAs, TLS: tls}
	go func() { p.done <- demo.Run(context.Background(), o) }()
	p.see(0, "Or here:")
	return p
}

// dialAs connects with certificates, if there are any.
func dialAs(ctx context.Context, servers []string, as certs.Names) (client.Cluster, error) {
	var cfg transport.ClientConfig
	if as.CA != "" {
		files, err := certs.Open(as.CA, as.Cert, as.Key, certs.Options{})
		if err != nil {
			return nil, err
		}
		cfg.TLS = files
	}
	return cli.DialAs(ctx, servers, cfg)
}

// enter types a line, and gives where its answer begins.
func (p *person) enter(line string) (from int) {
	p.t.Helper()
	from = len(p.screen.String())
	if _, err := fmt.Fprintln(p.keyboard, line); err != nil {
		p.t.Fatal(err)
	}
	return from
}

// see waits until the screen shows a text behind a place.
func (p *person) see(from int, text string) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(p.screen.String()[from:], text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("no %q:\n%s", text, &p.screen)
		}
	}
}

// status asks for the status until it shows all the texts at once.
func (p *person) status(texts ...string) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		from := p.enter("status")
		p.see(from, "> ")
		said := p.screen.String()[from:]
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(said, text) }) {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("the status never shows %q:\n%s", texts, &p.screen)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *person) quit() {
	p.t.Helper()
	p.enter("quit")
	if err := <-p.done; err != nil {
		p.t.Fatalf("%v\n%s", err, &p.screen)
	}
	p.keyboard.Close()
}

// A person at the demo's prompt kills, pauses, starts and separates nodes, and sees what comes of it.
func TestDemoPrompt(t *testing.T) {
	p := startDemo(t, false)
	for _, x := range []struct{ line, want string }{
		{"nonsense", "kill n1"}, {"kill n9", `no node is called "n9"`}, {"start n1", "n1 runs"}, {"kill n2", "n2 was killed"}, {"pause 3", "n3 stands still"},
		{"resume n3", "n3 goes on"}, {"start n2", "n2 is back"}, {"stop n1", "n1 handed its leaderships over"}, {"status", "shards 6"}, {"start n1", "n1 is back"}, {"nodes", "leaders"},
		{"partition n1 n2 n3", "all nodes are on one side"}, {"partition 1|1", "n1 is named twice"}, {"heal", "nothing is cut"},
		{"partition 3", "no connection between n3 and n1 n2"},
	} {
		p.see(p.enter(x.line), x.want)
	}
	p.status("n3: nodes 1 of 3 up", "n1 n2: nodes 2 of 3 up; shards 6, 6 with a leader")
	p.see(p.enter("partition n1|n2|n3"), "no connection between n1 and n2 and n3")
	p.status("n1: nodes 1 of 3 up; shards 6, 0 with a leader", "n2: nodes 1 of 3 up; shards 6, 0 with a leader")
	p.see(p.enter("heal"), "all nodes reach each other again")
	p.status("nodes 3 of 3 up; shards 6, 6 with a leader, 0 under-replicated, 0 unavailable")
	p.quit()
	if strings.Contains(p.screen.String(), "has ended") {
		t.Errorf("an end that was asked for is reported:\n%s", &p.screen)
	}
}

// With certificates the prompt does the same, but for what it does not offer.
func TestDemoPromptTLS(t *testing.T) {
	p := startDemo(t, true)
	for _, x := range []struct{ line, want string }{
		{"partition n3", "links cannot be cut"}, {"heal", "links cannot be cut"}, {"kill n2", "n2 was killed"}, {"start n2", "n2 is back"}, {"nodes", "leaders"},
	} {
		p.see(p.enter(x.line), x.want)
	}
	p.status("nodes 3 of 3 up; shards 6, 6 with a leader, 0 under-replicated, 0 unavailable")
	p.quit()
	if strings.Contains(p.screen.String(), "partition n3 ") {
		t.Errorf("the help offers what there is not:\n%s", &p.screen)
	}
}

// TestDemo runs the demo as a user does, with the commands that it prints as they are printed: one node is killed, as the text invites to,
// and ^C then stops the others, removes the data and succeeds.
func TestDemo(t *testing.T) {
	t.Run("plain", func(t *testing.T) { tryDemo(t) })
	t.Run("tls", func(t *testing.T) { tryDemo(t, "--tls") })
}

var pidOfN2 = regexp.MustCompile(`(?m)^  n2 .* pid (\d+)$`)

func tryDemo(t *testing.T, args ...string) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tmp := t.TempDir()
	var seen screen
	cmd := exec.CommandContext(ctx, binary, append([]string{"demo", "--shards", "20", "--base-port", "0"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = &seen, &seen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	see := func(text string) {
		t.Helper()
		for !strings.Contains(seen.String(), text) {
			select {
			case err := <-ended:
				t.Fatalf("ended without %q: %v\n%s", text, err, &seen)
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	see("^C stops everything")
	pasteDemo(ctx, t, seen.String())
	m := pidOfN2.FindStringSubmatch(seen.String())
	if m == nil || !strings.Contains(seen.String(), "20 shards on 3 nodes") {
		t.Fatalf("no pid of n2, or no number of shards:\n%s", &seen)
	}
	if pid, err := strconv.Atoi(m[1]); err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Fatalf("kill %s: %v", m[1], err)
	}
	see("node n2 has ended (signal: killed)")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("%v\n%s", err, &seen)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v in its temporary directory, %v", left, err)
	}
}

// pasteDemo runs what the demo says is to be tried, but for what goes on until someone stops it, asks on a terminal, or kills a node.
func pasteDemo(ctx context.Context, t *testing.T, said string) {
	t.Helper()
	_, said, _ = strings.Cut(said, "Things to try in another terminal:\n")
	said, _, _ = strings.Cut(said, "\n\n")
	var script strings.Builder
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		switch {
		case strings.Contains(line, " top"), strings.Contains(line, " passwd "), strings.HasPrefix(line, "kill "):
			continue
		case strings.Contains(line, " bench "):
			line += " --duration 1s"
		}
		script.WriteString(line + "\n")
	}
	script.WriteString(": the end\n")
	out, err := exec.CommandContext(ctx, "bash", "-xeuo", "pipefail", "-c", script.String()).CombinedOutput()
	for _, w := range []string{"\nhello", "imported 10000 keys", ": the end"} {
		if err != nil || !strings.Contains(string(out), w) {
			t.Fatalf("%v, want %q\n%s", err, w, out)
		}
	}
}
