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
	pkg, run string // other tests that must catch it
	// open: it has not been seen to be caught yet; that it escapes is told, and no failure.
	open bool
}

const (
	engineTests = "^Test(Explore|Cluster)"
	engineAll   = "^Test([^E]|E[^x])" // all but the explorer
)

var mutants = []mutant{
	{name: "ack-before-flush", rule: "FAULTS 2.1", file: "engine/append.go", old: "if end > e.io.flushed {", new: "if end > 1<<62 {"},
	{name: "skip-log-sync", rule: "FAULTS 2.17, D1", file: "store/raftlog/log.go",
		old: "if err := seg.file.Datasync(); err != nil {\n\t\treturn l.poison(\"sync \"+seg.path, err)", new: "if err := error(nil); err != nil {\n\t\treturn l.poison(\"sync \"+seg.path, err)"},
	{name: "commit-old-term-by-counting", rule: "FAULTS 2.3", file: "engine/leader.go", old: "if i <= e.committed.Index || i < l.blank {", new: "if i <= e.committed.Index {",
		pkg: "./engine", run: engineTests},
	{name: "vote-before-flush", rule: "FAULTS 2.1, M15", file: "engine/vote.go", old: "e.answerAfter(answer{after: e.io.voteSeq, to: m.From, kind: RespondVote, flag: flagOK})",
		new: "e.deliver(&answer{to: m.From, kind: RespondVote, flag: flagOK})"},
	{name: "vote-for-a-shorter-log", rule: "Raft 5.4.1", file: "engine/vote.go", old: "if m.LastLog.Less(e.log.last()) {", new: "if false {"},
	{name: "lease-from-receive-time", rule: "Engine2", file: "engine/progress.go", old: "f.leaseUntil = max(f.leaseUntil, sentAt+Instant(promise-e.cfg.ClockDriftMax))",
		new: "f.leaseUntil = max(f.leaseUntil, e.now+Instant(promise-e.cfg.ClockDriftMax))", pkg: "./engine", run: engineAll},
	{name: "promise-forgotten", rule: "Engine2", file: "engine/vote.go", old: "return e.lead != nil || e.now < e.grantUntil()\n", new: "return e.lead != nil\n"},
	{name: "no-start-lease", rule: "Engine2", file: "scheduler/recover.go", old: "s.leaseStart = s.clock.Now() + engine.Instant(longest)", new: "_ = longest", open: true},
	{name: "lease-after-timeout-now", rule: "Engine3", file: "engine/transfer.go", old: "l.leaseOff = true //", new: "//", pkg: "./engine", run: engineAll},
	{name: "index-only-completion", rule: "DESIGN 3, IOID", file: "engine/io.go", old: "if p[i].io != io {", new: "if p[i].io.Last.Index != io.Last.Index {", pkg: "./engine", run: engineTests},
	{name: "truncate-on-shorter-append", rule: "FAULTS 2.7", file: "engine/append.go", old: "\te.appendInput(m)\n\te.verified",
		new: "\tif end < e.log.lastIndex() && end > e.committed.Index && len(m.Runs) > 0 {\n\t\te.truncate(end + 1)\n\t}\n\te.appendInput(m)\n\te.verified"},
	{name: "apply-before-flush", rule: "DESIGN 3.2", file: "engine/append.go", old: "to := min(e.committed.Index, e.io.flushed)", new: "to := e.committed.Index"},
	{name: "commit-not-verified", rule: "FAULTS 2.8", file: "engine/append.go", old: "if i := min(e.announced, e.verified); i", new: "if i := min(e.announced, e.log.lastIndex()); i"},
	{name: "snapshot-keeps-conflicting-tail", rule: "FAULTS 2.10, R26", file: "engine/snapshot.go", old: "ok && t == last.Term {", new: "ok && t < 1<<62 {", pkg: "./engine", run: engineAll},
	{name: "read-without-round", rule: "FAULTS 2.13", file: "engine/read.go", old: "if e.now < e.leaseUntil() ||", new: "if e.now >= 0 ||", pkg: "./engine", run: engineAll},
	{name: "read-before-blank", rule: "Engine4", file: "engine/read.go", old: "if e.applied.Index < e.lead.blank {\n\t\treturn false", new: "if e.applied.Index < 1 {\n\t\treturn false", pkg: "./engine", run: engineAll},
	{name: "change-before-own-term", rule: "FAULTS 2.4, M1", file: "engine/membership.go", old: "case e.committed.Index < l.blank || e.memb.LogID.Index > e.committed.Index", new: "case e.memb.LogID.Index > 1<<62", pkg: "./engine", run: engineAll},
	{name: "joint-asks-one-set", rule: "DESIGN 3.4", file: "engine/quorum.go", old: "for _, set := range m.Voters {\n\t\tvar buf", new: "for _, set := range m.Voters[len(m.Voters)-1:] {\n\t\tvar buf", pkg: "./engine", run: engineAll, open: true},
	{name: "quorum-is-half", rule: "Raft", file: "engine/quorum.go", old: "return values[len(values)/2]", new: "return values[(len(values)-1)/2]", pkg: "./engine", run: engineAll, open: true},
	{name: "purge-what-is-not-checkpointed", rule: "Engine7", file: "scheduler/checkpoint.go", old: "at := it.change.Record.Applied\n", new: "at := r.machine.Applied()\n"},
	{name: "no-tombstone", rule: "FAULTS 2.20, R6", file: "scheduler/remove.go", old: "l.tombs[r.key] = struct{}{}", new: ""},
	{name: "waiters-by-index", rule: "Engine6", file: "scheduler/apply.go", old: "case w.term == id.Term && w.index == id.Index:", new: "case w.index == id.Index:"},
	{name: "no-deduplication", rule: "Cluster1", file: "shard/apply.go", old: "inSession := !w.Session.IsZero()", new: "inSession := false && !w.Session.IsZero()"},
	{name: "table-not-in-records", rule: "FAULTS 2.26, R20", file: "shard/machine.go", old: "b = appendSessions(b, &m.sessions)", new: "b = appendSessions(b, &sessions{})"},
	{name: "frozen-overlay-not-read", rule: "State1", file: "shard/apply.go", old: "\tif m.frozen != nil {\n\t\treturn m.frozen.Get(key)", new: "\tif m.frozen != nil && len(key) == 0 {\n\t\treturn m.frozen.Get(key)"},
	{name: "stale-read-job", rule: "State1", file: "scheduler/apply.go", old: "case job.Err == nil && r.machine.Valid(job):", new: "case job.Err == nil:", open: true},
	{name: "log-of-another-chain", rule: "Log7", file: "scheduler/recover.go", old: "case !chains(rl, rec.Applied):", new: "case rl.Key.Shard == 0:", open: true},
	{name: "stamps-of-a-wrong-clock", rule: "State8", file: "scheduler/turn.go", old: "l.wall = 0 //", new: "//", open: true},
	{name: "gone-without-proof", rule: "Cluster5", file: "scheduler/membership.go", old: "return before && d.ConfVersion >= mine.ConfVersion", new: "return d.ConfVersion >= mine.ConfVersion", open: true},
	{name: "leader-again-after-restart", rule: "Engine1", file: "engine/election.go", old: "led := e.vote.Committed && e.vote.Peer == e.cfg.Self",
		new: "led := e.vote.Committed && e.vote.Peer == e.cfg.Self\n\tif led && e.memb.Membership != nil && len(e.memb.Membership.Voters[0]) > 1 {\n\t\te.role, e.leader = RoleLeader, e.cfg.Self\n\t\te.lead = &leadership{blank: e.log.lastIndex() + 1, busyAt: e.now, heartbeatAt: e.now + 1}\n\t\te.rebuildStreams()\n\t\te.appendOwn(EntryBlank, 1, 0, nil)\n\t\te.replicate()\n\t\treturn\n\t}", open: true},
	{name: "epoch-not-checked-at-apply", rule: "FAULTS 2.24", file: "shard/apply.go", old: "if !m.owns(&w.Ops, 0) {", new: "if false {", pkg: "./scheduler/simrt", run: "Split|Reshape", open: true},
}

// source returns a file with the bug in it.
func (m *mutant) source() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join("..", "..", m.file))
	if err != nil {
		return nil, err
	}
	i := strings.Index(string(b), m.old)
	if i < 0 {
		return nil, fmt.Errorf("%s does not hold %q: bring the mutant up to date", m.file, m.old)
	}
	return []byte(string(b[:i]) + m.new + string(b[i+len(m.old):])), nil
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
		args = append(args, "-sim.seeds=1-400", "-sim.quick")
	}
	args = append(args, "-test.run", run)
	bin := filepath.Join(dir, "mutant.test")
	build := exec.Command("go", "test", "-c", "-overlay", overlay, "-o", bin, pkg)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	began := time.Now()
	cmd := exec.Command(bin, args...)
	cmd.Dir = filepath.Join(root, pkg)
	out, err := cmd.CombinedOutput()
	if m.open && (err == nil || strings.Contains(string(out), "test timed out")) {
		t.Skipf("%s (%s) escapes", m.name, m.rule)
	}
	if err == nil {
		t.Fatalf("%s (%s) is not caught in %v", m.name, m.rule, time.Since(began).Round(time.Second))
	}
	why := regexp.MustCompile(`(?m)^.*(seed \d+.*: .*|panic: .*|_test\.go:\d+: .*)$`).FindAllString(string(out), -1)
	why = slices.DeleteFunc(why, func(s string) bool { return strings.Contains(s, "replay:") })
	if len(why) == 0 || strings.Contains(why[0], "test timed out") {
		t.Fatalf("%s: %v after %v\n%s", m.name, err, time.Since(began), out[:min(len(out), 3000)])
	}
	first := strings.TrimSpace(why[0])
	t.Logf("%s (%s): caught after %v: %.200s", m.name, m.rule, time.Since(began).Round(100*time.Millisecond), first)
}
