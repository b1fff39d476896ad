package sim

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	mutantsFlag = flag.String("sim.mutants", "", "mutants to try, a regular expression; empty: none, but all are looked up in the sources")
	mutantTime  = flag.Duration("sim.mutanttime", 150*time.Second, "how long each may live")
)

// mutant is a known bug, made by replacing a piece of a source file. It must be caught by the tests that it names: by default the
// simulation's, seed by seed.
type mutant struct {
	name     string
	rule     string // of PROTOCOLS.md, or the trap of FAULTS.md
	file     string
	old, new string
	and      [2]string // a second replacement, where two mechanisms guard against the same
	pkg, run string    // other tests that must catch it
}

// source returns a file with the bug in it.
func (m *mutant) source() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join("..", "..", m.file))
	if err != nil {
		return nil, err
	}
	src := string(b)
	for _, r := range [][2]string{{m.old, m.new}, m.and} {
		if !strings.Contains(src, r[0]) {
			return nil, fmt.Errorf("%s does not hold %q: bring the mutant up to date", m.file, r[0])
		}
		src = strings.Replace(src, r[0], r[1], 1)
	}
	return []byte(src), nil
}

// TestMutants proves that the checks find known bugs: each mutant must fail the tests that it names.
func TestMutants(t *testing.T) {
	pattern, err := regexp.Compile(*mutantsFlag)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for i := range mutants {
		m := &mutants[i]
		if names[m.name] {
			t.Errorf("%s: twice", m.name)
		}
		names[m.name] = true
		src, err := m.source()
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			continue
		}
		if *mutantsFlag == "" || !pattern.MatchString(m.name) {
			continue
		}
		t.Run(m.name, func(t *testing.T) { m.try(t, src) })
	}
}

func (m *mutant) try(t *testing.T, src []byte) {
	dir := t.TempDir()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "mutant.go")
	overlay := filepath.Join(dir, "overlay.json")
	b, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, m.file): file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, src, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, b, 0o644); err != nil {
		t.Fatal(err)
	}
	pkg, run := m.pkg, m.run
	args := []string{"-test.failfast", "-test.timeout", mutantTime.String()}
	if pkg == "" {
		pkg, run = "./internal/sim", "^TestSeeds$"
		args = append(args, "-sim.seeds=1-400", "-sim.quick", "-sim.pace=busy")
	}
	args = append(args, "-test.run", run)
	began := time.Now()
	cmd := exec.Command("go", append([]string{"test", "-overlay", overlay, "-vet=off", "-count=1", pkg, "-args"}, args...)...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "[build failed]") {
		t.Fatalf("%s", out)
	}
	if err == nil {
		t.Fatalf("%s (%s) is not caught in %v", m.name, m.rule, time.Since(began).Round(time.Second))
	}
	why := regexp.MustCompile(`(?m)^.*(seed \d+.*: .*|panic: .*|_test\.go:\d+: .*)$`).FindAllString(string(out), -1)
	why = slices.DeleteFunc(why, func(s string) bool { return strings.Contains(s, "replay:") })
	if len(why) == 0 || strings.Contains(why[0], "test timed out") {
		t.Fatalf("%s: %v after %v\n%s", m.name, err, time.Since(began), out[:min(len(out), 3000)])
	}
	first := strings.TrimSpace(why[len(why)-1])
	if seed := regexp.MustCompile(`seed (\d+)`).FindStringSubmatch(first); m.pkg == "" && seed != nil {
		if r := Run(parseSeeds(t, seed[1])[0].seed, Options{Pace: "busy"}); r.Err != nil {
			t.Fatalf("%s: seed %s fails without the bug too: %v", m.name, seed[1], r.Err)
		}
	}
	t.Logf("%s (%s): caught after %v: %.200s", m.name, m.rule, time.Since(began).Round(100*time.Millisecond), first)
}
