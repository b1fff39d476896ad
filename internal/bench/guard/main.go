package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"
)

// benchstat is the tool that compares the Go benchmarks, at an exact version; fetched through the module proxy, never part of go.mod.
const benchstat = "golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da"

// record is what `guard run` writes.
type record struct {
	Date    string   `json:"date"`
	Version string   `json:"version"`
	Go      string   `json:"go"`
	CPUs    int      `json:"cpus"`
	LoadAvg float64  `json:"load_average"` // of the machine when the run began, for one minute; 0: not known
	GoBench string   `json:"go_bench"`     // as `go test -bench` printed it
	Cluster []metric `json:"cluster"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	switch {
	case len(args) > 0 && args[0] == "run":
		return run(ctx, args[1:])
	case len(args) > 0 && args[0] == "sustained":
		return runSustained(ctx, args[1:], os.Stdout)
	case len(args) > 0 && args[0] == "limits":
		return runLimits(ctx, args[1:], os.Stdout)
	case len(args) == 3 && args[0] == "compare":
		return compareFiles(ctx, args[1], args[2], os.Stdout)
	}
	return errors.New("usage: guard run [flags] | guard compare OLD.json NEW.json | guard sustained [flags] | guard limits [flags]")
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("guard run", flag.ContinueOnError)
	binary := f.String("bin", "bin/kiloraft", "the kiloraft binary")
	out := f.String("o", "dist/bench.json", "where the result goes")
	count := f.Int("count", 5, "how often each Go benchmark and each load runs")
	duration := f.Duration("duration", 2*time.Second, "of a load")
	version := f.String("version", "unknown", "of the build, for the record")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 || *count < 1 || *duration <= 0 {
		return errors.New("no arguments; count and duration must be positive")
	}
	r := record{Date: time.Now().UTC().Format(time.DateTime), Version: *version, Go: runtime.Version(), CPUs: runtime.NumCPU(), LoadAvg: loadAverage()}
	var err error
	if r.Cluster, err = measureCluster(ctx, *binary, *count, *duration); err != nil {
		return err
	}
	if r.GoBench, err = goBenchmarks(ctx, *count); err != nil {
		return err
	}
	return writeJSON(*out, r)
}

// writeJSON writes a result where people and compare read it.
func writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}

// loadAverage of the last minute; 0 where the system does not tell.
func loadAverage() (v float64) {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	_, _ = fmt.Sscan(string(b), &v) // 0 if it is something else
	return v
}

// busy tells that others used the machine when the run began: times then say nothing.
func (r record) busy() bool { return r.LoadAvg > float64(r.CPUs)/2 }

// goBench are benchmarks that need no set-up worth mentioning, so that a tenth of a second gives the same allocations each time: pattern and package.
var goBench = [][2]string{
	{"^Benchmark(Write|Three)$", "./engine"}, {"^BenchmarkApplyPut$", "./shard"}, {"^BenchmarkFlush$/^disk=null$/^replicas=1$", "./store/raftlog"},
	{"^Benchmark(Insert|Update|Get)$/^overlay$", "./store/state"}, {"^Benchmark(AppendRequest|DecodeAppendRequest)$", "./transport/wire"},
}

func goBenchmarks(ctx context.Context, count int) (string, error) {
	var out bytes.Buffer
	for _, b := range goBench {
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", b[0], "-benchmem", "-benchtime", "100ms", "-count", fmt.Sprint(count), b[1])
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, os.Stderr), os.Stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("benchmarks of %s: %w", b[1], err)
		}
	}
	return out.String(), nil
}

func compareFiles(ctx context.Context, oldName, newName string, w io.Writer) error {
	older, err := readRecord(oldName)
	if err != nil {
		return err
	}
	newer, err := readRecord(newName)
	if err != nil {
		return err
	}
	if err := runBenchstat(ctx, older.GoBench, newer.GoBench, w); err != nil {
		fmt.Fprintf(w, "no statistics of the Go benchmarks: %v\n", err) // it may not be fetched; the comparison below has all values
	}
	busy := older.busy() || newer.busy()
	if busy {
		fmt.Fprintf(w, "load averages %g and %g: others used the machine, so times are shown and not judged\n", older.LoadAvg, newer.LoadAvg)
	}
	worse, err := compare(older.metrics(), newer.metrics(), busy, w)
	if err != nil {
		return err
	}
	if worse > 0 {
		return fmt.Errorf("%d regressions", worse)
	}
	return nil
}

func readRecord(name string) (r record, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

func runBenchstat(ctx context.Context, older, newer string, w io.Writer) error {
	dir, err := os.MkdirTemp("", "guard-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	names := []string{filepath.Join(dir, "old"), filepath.Join(dir, "new")}
	for i, text := range []string{older, newer} {
		if err := os.WriteFile(names[i], []byte(text), 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"run", benchstat}, names...)...)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	return cmd.Run()
}
