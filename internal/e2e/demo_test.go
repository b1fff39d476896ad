package e2e

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/cli"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/demo"
)

// screen is what a person sees.
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

// person is somebody at the demo's prompt.
type person struct {
	t        *testing.T
	keyboard *io.PipeWriter
	screen   screen
	done     chan error
}

// startDemo runs `kiloraft demo` until the person quits.
func startDemo(t *testing.T) *person {
	in, keyboard := io.Pipe()
	p := &person{t: t, keyboard: keyboard, done: make(chan error, 1)}
	o := demo.Options{Binary: binary, Nodes: 3, Shards: 6, Dir: t.TempDir(), BasePort: -1, In: in, Out: &p.screen,
		Dial: func(ctx context.Context, servers []string) (client.Cluster, error) { return cli.Dial(ctx, servers) }}
	go func() { p.done <- demo.Run(context.Background(), o) }()
	p.see(0, "Or here:")
	return p
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
	p := startDemo(t)
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
