package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// socketsOf gives the inodes of the sockets that a process holds.
func socketsOf(t *testing.T, pid int) map[string]bool {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]bool{}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		if s, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(s, "]")] = true
		}
	}
	return inodes
}

// connections counts established TCP connections between the processes of nodes i and j.
func connections(t *testing.T, a, b *demo.Process) int {
	t.Helper()
	mine, theirs := socketsOf(t, a.PID()), socketsOf(t, b.PID())
	type end struct{ local, remote string }
	aEnds, bEnds := map[end]bool{}, map[end]bool{}
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Skip("no /proc/net/tcp:", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != "01" { // ESTABLISHED
			continue
		}
		if mine[f[9]] {
			aEnds[end{f[1], f[2]}] = true
		}
		if theirs[f[9]] {
			bEnds[end{f[1], f[2]}] = true
		}
	}
	n := 0
	for e := range aEnds {
		if bEnds[end{e.remote, e.local}] {
			n++
		}
	}
	return n
}

// threads gives the number of threads of a process.
func threads(t *testing.T, p *demo.Process) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// cpuTime gives the processor time that a process has used.
func cpuTime(t *testing.T, p *demo.Process) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ticks := 0
	for _, s := range f[11:13] { // utime, stime
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100
}
