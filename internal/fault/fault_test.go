package fault

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Every label is a point in the source, and every point a label. Those of operations are put together from kind and step there: here it is
// enough that they begin right; the end-to-end test that walks all labels needs each to be met.
func TestLabelsAreThePoints(t *testing.T) {
	point := regexp.MustCompile(`(?:\.step\([^"\n]*|fault\.At\()"([a-z]+: [a-z ]+)"\)`)
	found := map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range point.FindAllSubmatch(b, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for kind, labels := range Labels {
		for _, l := range labels {
			if listed[l] {
				t.Errorf("%q is listed twice", l)
			}
			listed[l] = true
			if strings.HasPrefix(l, "op "+kind+": ") {
				continue
			}
			if !found[l] {
				t.Errorf("%q is listed and not a point", l)
			}
		}
	}
	for _, l := range Others {
		if !found[l] {
			t.Errorf("%q is listed and not a point", l)
		}
		listed[l] = true
	}
	for l := range found {
		if !listed[l] {
			t.Errorf("%q is a point and not listed", l)
		}
	}
}

// A process dies where it is told to, once, and nowhere else.
func TestAt(t *testing.T) {
	if os.Getenv("FAULT_TEST_CHILD") != "" {
		for _, l := range []string{"a: one", "a: two", "a: three"} {
			os.Stdout.WriteString(l + "\n")
			At(l)
		}
		os.Exit(0)
	}
	run := func(dir string, files ...string) (string, *exec.ExitError) {
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestAt$")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, Env+"=") }), "FAULT_TEST_CHILD=1")
		if dir != "" {
			cmd.Env = append(cmd.Env, Env+"="+dir)
		}
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), exit
	}
	if out, exit := run(""); exit != nil || strings.Count(out, "\n") != 3 {
		t.Errorf("unarmed: %q, %v", out, exit)
	}
	dir := t.TempDir()
	if out, exit := run(dir, "a: four", "a: two@"+strconv.Itoa(os.Getpid())); exit != nil || strings.Count(out, "\n") != 3 {
		t.Errorf("armed elsewhere: %q, %v", out, exit)
	}
	out, exit := run(dir, "a: two")
	if exit == nil || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || !strings.HasSuffix(out, "a: two\n") ||
		!strings.Contains(string(exit.Stderr), `"a: two"`) {
		t.Errorf("armed: %q, %v", out, exit)
	}
	if _, exit := run(dir); exit != nil {
		t.Errorf("a second time: %v", exit)
	}
}

// A delay is that of the process's own file, else that of all; none without a file.
func TestDelay(t *testing.T) {
	old := dir
	defer func() { dir = old }()
	dir = t.TempDir()
	took := func() time.Duration {
		begin := time.Now()
		Delay(DiskSync)
		return time.Since(begin)
	}
	write := func(name, d string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(d), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(DiskSync+"@1", "1h")
	took() // of another process: the test would not end
	write(DiskSync, "20ms")
	if d := took(); d < 20*time.Millisecond {
		t.Errorf("all wait 20 ms, and this took %v", d)
	}
	write(DiskSync+"@"+strconv.Itoa(os.Getpid()), "40ms\n")
	if d := took(); d < 40*time.Millisecond {
		t.Errorf("this process waits 40 ms, and this took %v", d)
	}
}
