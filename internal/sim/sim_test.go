package sim

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	seedsFlag = flag.String("sim.seeds", "", "seeds to run, separated by blanks, with an aim behind a slash: 1 2 7-9 3/space")
	spanFlag  = flag.Duration("sim.span", 0, "how long faults go on in each")
	paceFlag  = flag.String("sim.pace", "", "busy, quiet or wide: the pace of all seeds")
	quickFlag = flag.Bool("sim.quick", false, "stop at the first seed that fails, without a trace")
	traceFlag = flag.Bool("sim.trace", false, "keep the trace of every seed, not only of failing ones")
)

// seedOf is a run: a seed, and perhaps an aim.
type seedOf struct {
	seed uint64
	aim  string
}

func (r seedOf) String() string {
	if r.aim == "" {
		return fmt.Sprint(r.seed)
	}
	return fmt.Sprintf("%d/%s", r.seed, r.aim)
}

// parseSeeds reads "1 2 7-9 3/space".
func parseSeeds(t testing.TB, list string) []seedOf {
	var out []seedOf
	for _, f := range strings.FieldsFunc(list, func(r rune) bool { return r == ' ' || r == ',' }) {
		f, aim, _ := strings.Cut(f, "/")
		if aim != "" && aimOf(aim) == nil {
			t.Fatalf("seeds %q: no aim %q", list, aim)
		}
		a, b, isRange := strings.Cut(f, "-")
		first, err := strconv.ParseUint(a, 10, 64)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(b, 10, 64)
		}
		if err != nil {
			t.Fatalf("seeds %q: %v", list, err)
		}
		for s := first; s <= last; s++ {
			out = append(out, seedOf{s, aim})
		}
	}
	return out
}

// run runs one seed, and if it fails again with a trace.
func run(t *testing.T, seed seedOf, opt Options) *Result {
	t.Helper()
	opt.Aim = seed.aim
	r := Run(seed.seed, opt)
	if r.Err == nil {
		if opt.Trace {
			writeTrace(t, r)
		}
		return r
	}
	if *quickFlag {
		t.Fatalf("seed %v: %v", seed, r.Err)
	}
	if !opt.Trace {
		opt.Trace = true
		r = Run(seed.seed, opt)
	}
	for _, line := range r.Trace[max(0, len(r.Trace)-12):] {
		t.Log(line)
	}
	writeTrace(t, r)
	t.Logf("knobs: %s", r.Knobs)
	t.Errorf("seed %v: %v\nreplay: make sim SEEDS=%v", seed, r.Err, seed)
	return r
}

func writeTrace(t *testing.T, r *Result) {
	path := fmt.Sprintf("%s/kiloraft-sim-%d.trace", os.TempDir(), r.Seed)
	if err := os.WriteFile(path, []byte(strings.Join(r.Trace, "\n")+"\n"), 0o644); err == nil {
		t.Logf("the whole trace: %s", path)
	}
}

func TestSeeds(t *testing.T) {
	seeds := parseSeeds(t, *seedsFlag)
	standard := len(seeds) == 0
	if standard {
		seeds = parseSeeds(t, standardSeeds)
		if testing.Short() {
			seeds = seeds[:4]
		}
	}
	began := time.Now()
	sometimes := map[string]int{}
	var simulated time.Duration
	ops, unknown := 0, 0
	for _, seed := range seeds {
		r := run(t, seed, Options{Trace: *traceFlag, Span: *spanFlag, Pace: *paceFlag})
		for k, n := range r.Sometimes {
			sometimes[k] += n
		}
		simulated += r.Simulated
		ops += r.Ops
		unknown += r.Unknown
	}
	took := time.Since(began)
	t.Logf("%d seeds: %v simulated in %v (%.0f to 1), %d operations, %d of unknown outcome", len(seeds), simulated.Round(time.Second),
		took.Round(time.Millisecond), simulated.Seconds()/took.Seconds(), ops, unknown)
	for _, k := range slices.Sorted(maps.Keys(sometimes)) {
		t.Logf("%8d  %s", sometimes[k], k)
	}
	must := rare
	switch {
	case len(seeds) >= 500:
		must = append(slices.Clone(rare), rarest)
	case !standard || testing.Short():
		must = nil
	}
	if t.Failed() {
		return
	}
	for _, k := range must {
		if sometimes[k] == 0 {
			t.Errorf("these seeds never met: %s", k)
		}
	}
}

// standardSeeds are run by make test: together they meet all that is rare. The aims see to it: what a change elsewhere moves out of reach of
// the drawn seeds, they still meet several times.
const standardSeeds = "1-20 49 1-3/members 1-3/passed 1-2/reshaping 1-2/space 1-2/lost-disk 1-2/rot 1-2/clocks"

// rare is what the standard seeds must meet: else they do not test what they are for.
var rare = []string{
	"EIO", "EIO in the state", "a voter forgets its promises", "all asleep", "all crash", "ambiguous", "answered from the table",
	"apply waits for the store", "bit flipped", "client loses patience", "clock beyond the lease bound", "corruption refused",
	"crash at a disk operation", "crash at a step of an operation", "crash before a commit of the state", "crash during recovery",
	"disk full", "disk lost", "disk stalls", "drain", "fail-stop", "isolation", "joint change rolled back", "leader elected",
	"leadership transferred", "lease expired while reading", "log read from segments", "log truncated",
	"log: replica waits for its parent to be replayed", "membership change", "merge", "merge: aborted", "merge: done", "merge: ended",
	"merge: unfrozen", "moved", "office lost", "one-way cut", "pause", "read again after a checkpoint", "read by index",
	"remove: refused", "replica recovered with entries to replay", "replica removed", "scan", "scan goes on", "session expired",
	"snapshot broken off", "snapshot during split", "snapshot installed", "snapshot rejected", "split",
	"split meets a child that has voted", "split: applied", "tombstone", "wall clock jumps", "write across shards refused",
}

// rarest is what five hundred seeds or more must meet besides: no aim brings it about. simrt.TestLateSplitMeetsFilledChild does what it names.
const rarest = "split on a lagging replica after a snapshot"

// TestSameSeedSameRun is what makes a failing seed worth anything.
func TestSameSeedSameRun(t *testing.T) {
	a, b := Run(5, Options{Span: 3 * time.Second}), Run(5, Options{Span: 3 * time.Second})
	if a.Hash != b.Hash || a.Events != b.Events || a.Ops != b.Ops {
		t.Fatalf("%x after %d events and %d operations, %x after %d and %d", a.Hash, a.Events, a.Ops, b.Hash, b.Events, b.Ops)
	}
}
