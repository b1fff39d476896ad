package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

// top shows nodes, what they do, and the shard that is asked for; a node that is gone is named, and the rest is shown.
func TestTop(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 5, 3)
	look := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := Run(context.Background(), Env{Args: append(args, "--timeout", "5s", "--server", strings.Join(c.Addrs(), ",")), Stdout: &out, Stderr: &errs})
		return code, out.String(), errs.String()
	}
	var v topView
	nodetest.Eventually(t, 30*time.Second, func() error {
		for range 50 {
			if _, err := c.Node(1).Client().Put(t.Context(), []byte("hot"), []byte("v")); err != nil {
				return err
			}
		}
		code, out, errs := look("top", "--once", "-o", "json")
		if code != 0 {
			return fmt.Errorf("exit %d: %s", code, errs)
		}
		v = topView{}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			return err
		}
		if len(v.Nodes) != 3 || len(v.Hottest) == 0 || v.Hottest[0].Writes <= 0 || len(v.Missing) != 0 {
			return fmt.Errorf("%+v", v)
		}
		return nil
	})
	c.Kill(2)
	nodetest.Eventually(t, 30*time.Second, func() error {
		code, out, errs := look("top", "--once")
		if code != 0 || !strings.Contains(out, "nodes 2 of 3 up") || !strings.Contains(out, "problem: node 3") || !strings.Contains(out, "LEADERS") {
			return fmt.Errorf("exit %d: %s%s", code, out, errs)
		}
		return nil
	})
	c.Kill(0)
	c.Kill(1)
	if code, out, _ := look("top", "--once"); code != exitUnavailable || out != "" {
		t.Errorf("nobody there: exit %d, %s", code, out)
	}
}

// The screen keeps the last view when nobody answers, fits the window, and ends with q.
func TestTopScreen(t *testing.T) {
	v := &topView{Nodes: make([]topNode, 100)}
	v.Status.Problems = []string{strings.Repeat("é", 300)}
	m := topModel{every: time.Hour, look: func() (*topView, error) { return v, nil }}
	step := func(msg tea.Msg) tea.Cmd {
		next, cmd := m.Update(msg)
		m = next.(topModel)
		return cmd
	}
	step(tea.WindowSizeMsg{Width: 60, Height: 20})
	if step(m.gather()) == nil {
		t.Error("does not look again")
	}
	step(lookMsg{err: errors.New("gone")})
	lines := strings.Split(m.text(), "\n")
	if len(lines) != 20 || lines[0] != "no answer: gone" || !strings.Contains(m.text(), "NODE") {
		t.Errorf("%d lines:\n%s", len(lines), m.text())
	}
	for _, l := range lines {
		if len([]rune(l)) > 60 {
			t.Errorf("%d wide: %s", len([]rune(l)), l)
		}
	}
	if cmd := step(tea.KeyPressMsg{Code: 'q', Text: "q"}); cmd == nil || cmd() != tea.Quit() {
		t.Error("q does not end it")
	}
	var b bytes.Buffer
	v.Ops = []client.Op{{ID: 7, What: "move shard 3", Step: "catch up", Done: 1, Total: 4, LeftS: 90, Reason: "waits for a slot"}}
	if err := v.print(&b); err != nil || !strings.Contains(b.String(), "1m30s") || !strings.Contains(b.String(), "waits for a slot") {
		t.Errorf("%v\n%s", err, b.String())
	}
}
