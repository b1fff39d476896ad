package node_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/kiloraft/kiloraft/node"
)

const budgetsBegin, budgetsEnd = "<!-- made from the code: go test ./node -run TestBudgets -args -rewrite -->\n", "<!-- end -->\n"

// TestBudgets: docs/sizing.md lists the bounds of memory as the code has them, and what they are together.
func TestBudgets(t *testing.T) {
	const path = "../docs/sizing.md"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), budgetsBegin)
	got, after, ok2 := strings.Cut(rest, budgetsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the budgets", path)
	}
	want := budgets()
	if *rewrite {
		if err := os.WriteFile(path, []byte(before+budgetsBegin+want+budgetsEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != want {
		t.Errorf("%s is out of date: go test ./node -run TestBudgets -args -rewrite\n%s", path, want)
	}
	settings, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`([a-z]+\\.[a-z-]+)` \\|").FindAllStringSubmatch(want, -1) {
		if !strings.Contains(string(settings), "`"+m[1]+"`") {
			t.Errorf("there is no setting %s", m[1])
		}
	}
}

// budgets is the table, and its sums: those of lines that are not counted by another one.
func budgets() string {
	var s strings.Builder
	s.WriteString("| what | at most | of each | of them | setting | then |\n|---|---|---|---|---|---|\n")
	var shared, peer, conns int64
	for _, l := range (&node.Config{}).Budgets() {
		size, count, setting := amount(l.Bytes), "", ""
		if l.Within {
			size = "(" + size + ")"
		}
		if l.Count > 0 {
			count = thousands(l.Count)
		}
		if l.Setting != "" {
			setting = "`" + l.Setting + "`"
		}
		fmt.Fprintf(&s, "| %s | %s | %s | %s | %s | %s |\n", l.What, size, l.Per, count, setting, l.Then)
		switch {
		case l.Within:
		case l.Per == "peer":
			peer += l.Bytes
		case l.Per == "connection":
			conns += l.Bytes * l.Count
		default:
			shared += l.Bytes * max(1, l.Count)
		}
	}
	fmt.Fprintf(&s, "\nTogether, without those in parentheses, which are counted by another line or are the kernel's: %s of the node, %s for each peer, and %s for connections if there are as many as there may be.\n",
		amount(shared), amount(peer), amount(conns))
	return s.String()
}

func amount(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return thousands(n>>20) + " MiB"
}

func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
