package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

// TestRefusedReshaping asks for what makes no sense: each is a clear error with its exit code, and nothing has changed.
func TestRefusedReshaping(t *testing.T) {
	c := start(t, 4, "--auto-balance=false", "--auto-balance-leaders=false")
	c.init(4)
	list := c.shards()
	s, next := list[1], list[2]
	id := func(n uint64) string { return strconv.FormatUint(n, 10) }
	free := id(10 - s.Replicas[0].Node - s.Replicas[1].Node - s.Replicas[2].Node) // of the nodes 1 to 4
	inside, ok := client.KeyIn(s, "m")
	if !ok {
		t.Fatal("a shard without room")
	}
	key := func(b []byte) string {
		var out strings.Builder
		for _, x := range b {
			fmt.Fprintf(&out, `\x%02x`, x)
		}
		return out.String()
	}
	shape := func() string {
		var out []string
		for _, s := range c.shards() {
			out = append(out, fmt.Sprintf("%d %q %q %d %d %v", s.ID, s.Start, s.End, s.Version, s.ConfVersion, nodesOf(s)))
		}
		return strings.Join(out, "\n")
	}
	ops := func() int {
		list, err := c.admin().Ops(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before, begun := shape(), ops()
	refused := func(code int, want string, args ...string) {
		t.Helper()
		o := c.run(nil, append(args, "--timeout", "5s")...)
		if o.code != code || !strings.Contains(o.stderr, want) || !strings.HasPrefix(o.stderr, "kiloraft: ") {
			t.Errorf("%v: exit %d, want %d and %q:\n%s%s", args, o.code, code, want, o.stdout, o.stderr)
		}
		if now := shape(); now != before {
			t.Errorf("%v: has changed\n%s\nto\n%s", args, before, now)
		}
		if n := ops(); n != begun {
			t.Errorf("%v: %d operations more", args, n-begun)
		}
	}
	refused(1, "is not in shard", "shard", "split", id(s.ID), "--at", key(next.Start))              // the end: outside
	refused(1, "is not in shard", "shard", "split", id(s.ID), "--at", key(append(next.Start, 'x'))) // outside
	refused(1, "begins", "shard", "split", id(s.ID), "--at", key(s.Start))                          // at the boundary
	refused(1, "twice", "shard", "split", id(s.ID), "--at", key(inside), "--at", key(inside))
	refused(2, "", "shard", "split", id(s.ID))
	refused(1, "parts", "shard", "split", id(s.ID), "--parts", "1")
	refused(1, "meta shard", "shard", "split", "1", "--at", "a")
	refused(1, "already", "shard", "move", id(s.ID), "--from", id(s.Replicas[0].Node), "--to", id(s.Replicas[1].Node))
	refused(1, "holds no replica", "shard", "move", id(s.ID), "--from", free, "--to", id(s.Replicas[1].Node))
	refused(3, "node 99", "shard", "move", id(s.ID), "--from", id(s.Replicas[0].Node), "--to", "99")
	refused(1, "neighbours", "shard", "merge", id(list[0].ID), id(list[2].ID))
	refused(1, "neighbours", "shard", "merge", id(next.ID), id(s.ID))
	refused(1, "neighbours", "shard", "merge", id(s.ID), id(s.ID))
	refused(1, "meta shard", "shard", "merge", "1", id(list[0].ID))
	refused(1, "", "node", "remove", id(s.Replicas[0].Node)) // holds replicas
	refused(3, "node 99", "node", "remove", "99")
	refused(3, "node 99", "node", "drain", "99")

	away, _ := strconv.ParseUint(free, 10, 64)
	name := c.nodes()[away].Name
	for _, p := range c.Nodes {
		if p.Name == name {
			p.Kill()
		}
	}
	eventually(t, 20*time.Second, func() error {
		if n := c.nodes()[away]; n.State != "down" {
			return fmt.Errorf("node %d is %s", n.ID, n.State)
		}
		return nil
	})
	refused(4, "is down", "shard", "move", id(s.ID), "--from", id(s.Replicas[0].Node), "--to", free)

	// The same split twice: the second finds a boundary.
	c.want(0, "shard", "split", id(s.ID), "--at", key(inside))
	before, begun = shape(), ops()
	refused(1, "is not in shard", "shard", "split", id(s.ID), "--at", key(inside))
}
