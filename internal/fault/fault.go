// Package fault has labelled points in the product at which a test can make the process die, as by kill -9: to prove that a split, a
// merge, a move or the driver of an operation may be cut off at each of its durable steps.
//
// It is for tests alone, and inert unless KILORAFT_FAULT names a directory when the process starts: then a process that comes to a point
// looks there for a file named after the point's label ("split: applied"), or after label and process ("split: applied@4711"), and if it is
// there removes it and kills itself. Removing it is the claim: of several processes that share a directory one dies. A test arms points
// while the processes run, and sees by the absence of the file that a point was met. Unarmed, a point costs a look at a variable.
//
// A device can be made slow in the same way: while a file of its label is there ("disk: sync@4711"), each use takes longer by the duration
// that the file holds ("400ms").
//
// It imports the standard library alone, and any package but the engine, which is pure, may use it.
package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Env is the name of the environment variable that holds the directory.
const Env = "KILORAFT_FAULT"

// dir is the directory that is looked into; empty: points are inert. It is set before main begins, and never again.
var dir = os.Getenv(Env)

// Armed returns the directory that is looked into, or "".
func Armed() string { return dir }

// At is a point. It does not return if a test wants the process to die here. Any goroutine may call it.
func At(label string) {
	if dir != "" {
		met(label)
	}
}

func met(label string) {
	path := filepath.Join(dir, label)
	if os.Remove(path) != nil && os.Remove(path+"@"+strconv.Itoa(os.Getpid())) != nil {
		return
	}
	fmt.Fprintf(os.Stderr, "killed at the fault point %q\n", label)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// DiskSync is the label of what makes durable what was written to a disk, for Delay.
const DiskSync = "disk: sync"

// Delay waits for as long as a test wants the use of a device to take longer. Any goroutine may call it.
func Delay(label string) {
	if dir != "" {
		delay(label)
	}
}

func delay(label string) {
	path := filepath.Join(dir, label)
	b, err := os.ReadFile(path + "@" + strconv.Itoa(os.Getpid()))
	if err != nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return
	}
	d, err := time.ParseDuration(strings.TrimSpace(string(b)))
	if err != nil {
		fmt.Fprintf(os.Stderr, "fault %q: %v\n", label, err)
		return
	}
	time.Sleep(d)
}

// Others are points that none of what Labels lists leads to for certain: nothing becomes durable there.
var Others = []string{"backup: cut", "remove: refused"}

// Labels are all other points, by what leads to them. A test checks that they are those in the source, and another one that each of them is met.
var Labels = map[string][]string{
	"split": {
		"op split: create", "op split: created", "op split: begin",
		"split: propose", "split: applied", "split: synced", "split: child made", "split: born", "split: checkpoint", "split: checkpoint written",
		"split: settled",
		"op split: record split", "op split: recorded split", "op split: split", "op split: record end", "op split: recorded end",
	},
	"merge": {
		"op merge: create", "op merge: created", "op merge: begin",
		"merge: propose", "merge: prepared", "merge: frozen", "merge: frozen everywhere", "merge: decide", "merge: applying", "merge: right cut",
		"merge: checkpoint", "merge: checkpoint written", "merge: right buried", "merge: done",
		"op merge: record merge", "op merge: recorded merge", "op merge: merge", "op merge: record end", "op merge: recorded end",
	},
	"abort": { // of a merge
		"merge: abort", "merge: aborted", "merge: unfrozen", "merge: ended",
	},
	"move": {
		"op move: create", "op move: created", "op move: begin",
		"membership: propose", "membership: learners", "op move: record add a learner", "op move: recorded add a learner", "op move: add a learner",
		"snapshot: cut", "snapshot: link", "snapshot: linked",
		"op move: record catch up", "op move: recorded catch up", "op move: catch up",
		"membership: joint", "membership: joint left",
		"op move: record change the voters", "op move: recorded change the voters", "op move: change the voters",
		"remove: tombstone", "remove: tombstone written", "remove: log dropped", "garbage: collect", "garbage: collected",
		"op move: record end", "op move: recorded end",
	},
}
