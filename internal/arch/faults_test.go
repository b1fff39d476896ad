package arch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFaults: the table of docs/testing.md has each fault once, with tests that exist, or says why there is none.
func TestFaults(t *testing.T) {
	have := testNames(t)
	b, err := os.ReadFile("../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`(?m)^\| ([NDPCMRA]\d+) \|[^|]*\|([^|]*)\|$`)
	name := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)\\w*)`")
	seen, covered := map[string]bool{}, 0
	for _, m := range row.FindAllStringSubmatch(string(b), -1) {
		id, tests := m[1], name.FindAllStringSubmatch(m[2], -1)
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
		switch {
		case len(tests) > 0:
			covered++
		case !strings.Contains(m[2], "not covered, because"):
			t.Errorf("%s: neither a test nor a reason", id)
		}
		for _, n := range tests {
			if !have[n[1]+"."+n[2]] {
				t.Errorf("%s: there is no %s.%s", id, n[1], n[2])
			}
		}
	}
	for kind, n := range map[string]int{"N": 16, "D": 23, "P": 12, "C": 5, "M": 15, "R": 27, "A": 15} {
		for i := 1; i <= n; i++ {
			if id := fmt.Sprint(kind, i); !seen[id] {
				t.Errorf("%s is not in the table", id)
			}
		}
	}
	if covered < 100 {
		t.Errorf("%d faults have a test", covered)
	}
}

// testNames lists package path and name of all tests of the module.
func testNames(t *testing.T) map[string]bool {
	fn := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w*)\(`)
	names := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("../..", filepath.Dir(path))
		for _, m := range fn.FindAllStringSubmatch(string(b), -1) {
			names[filepath.ToSlash(rel)+"."+m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
