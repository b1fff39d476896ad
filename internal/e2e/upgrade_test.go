package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// buildNext builds the program as the next release will be: its highest protocol version, and the version of its state's file, are one higher.
func buildNext(t *testing.T) string {
	t.Helper()
	next := filepath.Join(t.TempDir(), "kiloraft-next")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "kiloraft_next", "-o", next, "../../cmd/kiloraft").CombinedOutput(); err != nil {
		t.Fatalf("building the next version: %v\n%s", err, out)
	}
	return next
}

// logged returns what the processes of a node have logged from off on.
func logged(t *testing.T, p *demo.Process, off int64) string {
	t.Helper()
	b, err := os.ReadFile(p.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(b[min(off, int64(len(b))):])
}

// TestUpgrade replaces the program of one node after the other by the next version, under a load whose outcome is judged (FAULTS R25). Old and new
// speak the old protocol with each other, the new ones the new one among themselves. The way back is refused, with the reason.
func TestUpgrade(t *testing.T) {
	next := buildNext(t)
	c := start(t, 3)
	c.init(8)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seedOf(t))
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
	old := c.Nodes[0].Binary
	for i := range c.Nodes {
		p := c.Nodes[i]
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		err := p.Stop(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		size := int64(len(logged(t, p, 0)))
		p.Spec.Binary = next
		c.restart(i)
		c.writable(load, "upgraded: "+p.Name)
		// Sessions with the upgraded are of version 2, those with the others of version 1.
		versions := map[string]int{"version=1": 2 - i, "version=2": i}
		eventually(t, 30*time.Second, func() error {
			for v, least := range versions {
				peers := 0
				for _, line := range strings.Split(logged(t, c.Nodes[i], size), "\n") {
					if strings.Contains(line, "peer connected") && strings.Contains(line, v) {
						peers++
					}
				}
				if peers < least || least == 0 && peers > 0 {
					return fmt.Errorf("%s: %d sessions with %s, want %d", p.Name, peers, v, least)
				}
			}
			return nil
		})
	}
	load.stop()
	a.settled(time.Minute)
	load.verify()

	// Back to the old version: its program does not know the file.
	p := c.Nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, old, "serve", "--data-dir", p.DataDir(), "--listen", p.Addr, "--http", p.HTTP, "--name", p.Name)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "a newer version of kiloraft wrote it") {
		t.Errorf("the old version on a directory of the new: %v\n%s", err, out.String())
	}
	c.restart(0)
	a.settled(time.Minute)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range c.Nodes {
		if out, err := exec.CommandContext(t.Context(), next, "debug", "verify", "--data-dir", p.DataDir()).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", p.Name, err, out)
		}
	}
}
