package e2e

import (
	"context"
	"fmt"
	"io"
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

// A person at the demo's prompt kills, pauses and starts nodes, and sees what comes of it.
func TestDemoPrompt(t *testing.T) {
	in, keyboard := io.Pipe()
	var out screen
	done := make(chan error, 1)
	go func() {
		done <- demo.Run(context.Background(), demo.Options{Binary: binary, Nodes: 3, Shards: 6, Dir: t.TempDir(), BasePort: -1, In: in, Out: &out,
			Dial: func(ctx context.Context, servers []string) (client.Cluster, error) { return cli.Dial(ctx, servers) }})
	}()
	see := func(text string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !strings.Contains(out.String(), text); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no %q:\n%s", text, &out)
			}
		}
	}
	see("Or here:")
	for _, x := range []struct{ line, want string }{
		{"nonsense", "kill n1"}, {"kill n9", `no node is called "n9"`}, {"start n1", "n1 runs"}, {"kill n2", "n2 was killed"}, {"pause 3", "n3 stands still"},
		{"resume n3", "n3 goes on"}, {"start n2", "n2 is back"}, {"stop n1", "n1 handed its leaderships over"}, {"status", "shards 6"}, {"start n1", "n1 is back"}, {"nodes", "leaders"},
	} {
		if _, err := fmt.Fprintln(keyboard, x.line); err != nil {
			t.Fatal(err)
		}
		see(x.want)
	}
	_, _ = fmt.Fprintln(keyboard, "quit")
	if err := <-done; err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	keyboard.Close()
	if strings.Contains(out.String(), "has ended") {
		t.Errorf("an end that was asked for is reported:\n%s", &out)
	}
}
