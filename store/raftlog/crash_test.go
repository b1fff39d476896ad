package raftlog_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/storetest"
	"github.com/kiloraft/kiloraft/store/vfs"
)

const segmentBytes = 16 << 10

func options(r *rand.Rand) raftlog.Options {
	opt := raftlog.Options{SegmentBytes: segmentBytes, CacheBytes: 4 << 10, Salt: r.Uint64}
	if r.IntN(2) == 0 {
		now, n := time.Unix(1e9, 0), 0 // it keeps all segments that it frees, but for a moment now and then
		opt.Now = func() time.Time { now = now.Add(time.Second); return now }
		opt.FreeBytes = func() int64 {
			if n++; n%64 == 0 {
				return 0
			}
			return 1 << 40
		}
	}
	return opt
}

var policies = []vfs.CrashPolicy{
	{},
	{KeepWrite: 1, KeepDir: 1},
	{TearWrite: 1, KeepDir: 0.5},
	{KeepWrite: 0.5, TearWrite: 0.5, KeepDir: 0.5},
}

// crasher shows a disk before each of its changes to check.
type crasher struct {
	mem    *vfs.Mem
	active bool
	points int
	check  func(op *vfs.Op)
}

func (c *crasher) fs() vfs.FS {
	return vfs.Inject(c.mem, func(op *vfs.Op) error {
		if c.active && op.Kind.Changes() {
			c.points++
			c.check(op)
		}
		return nil
	})
}

// TestCrashEverywhere runs a random workload on a simulated disk and, before each single write, sync, rename and so on, lets the power
// fail on a copy of the disk and recovers it: all that was acknowledged must be there, and of the rest a prefix of whole batches.
// During some of the recoveries the power fails again.
func TestCrashEverywhere(t *testing.T) {
	total, steps := 0, map[string]int{}
	for seed := range uint64(6) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			d := storetest.NewLogDriver(r, 1+int(seed%3))
			c := &crasher{mem: vfs.NewMem()}
			judge := rand.New(rand.NewPCG(seed, 2))
			c.check = func(op *vfs.Op) {
				policy := policies[judge.IntN(len(policies))]
				if err := recoverCrashed(judge, c.mem.Crash(judge, policy), d, 2); err != nil {
					t.Fatalf("crash at point %d, before %s of %s at %d, policy %+v: %v", c.points, op.Kind, op.Name, op.Off, policy, err)
				}
			}
			for life := range 6 {
				log, rec, err := raftlog.Open(c.fs(), "log", options(r))
				if err == nil {
					err = d.Attach(log, rec)
				}
				if err != nil {
					t.Fatalf("life %d: %v", life, err)
				}
				c.active = true
				for range 200 {
					if err := d.Step(); err != nil {
						t.Fatalf("life %d: %v", life, err)
					}
				}
				if err := d.CheckReads(); err != nil {
					t.Fatal(err)
				}
				if life%2 == 0 {
					if err := d.Flush(); err != nil {
						t.Fatal(err)
					}
					if err := log.Close(); err != nil {
						t.Fatal(err)
					}
				} else {
					c.mem = c.mem.Crash(r, policies[r.IntN(len(policies))])
				}
				c.active = false
			}
			total += c.points
			for k, n := range d.Steps {
				steps[k] += n
			}
		})
	}
	t.Logf("%d crash points, steps %v", total, steps)
	for _, k := range []string{"append", "truncate", "purge", "purge-conflict", "purge-beyond", "drop", "rewrite", "rewrite-cold", "rewrite-waits", "unpin", "seal", "vote", "read-cold"} {
		if steps[k] == 0 && !t.Failed() {
			t.Errorf("the workload has never done %q", k)
		}
	}
}

// recoverCrashed recovers mem and checks it against d; before that, up to depth times, a recovery is itself cut short by a crash.
func recoverCrashed(r *rand.Rand, mem *vfs.Mem, d *storetest.LogDriver, depth int) error {
	if depth > 0 && r.IntN(3) == 0 {
		var again *vfs.Mem
		left := r.IntN(8)
		fs := vfs.Inject(mem, func(op *vfs.Op) error {
			if op.Kind.Changes() {
				if left--; left < 0 && again == nil {
					again = mem.Crash(r, policies[r.IntN(len(policies))])
				}
			}
			return nil
		})
		if _, _, err := raftlog.Open(fs, "log", options(r)); err != nil {
			return fmt.Errorf("recovery that is to be interrupted: %w", err)
		}
		if again != nil {
			return recoverCrashed(r, again, d, depth-1)
		}
	}
	_, rec, err := raftlog.Open(mem, "log", options(r))
	if err != nil {
		return err
	}
	if err := d.CheckRecovery(rec); err != nil {
		return err
	}
	// What the recovery has found must be found again, whatever happens now (rule Log1).
	_, _, err = raftlog.Open(mem.Crash(r, vfs.CrashPolicy{}), "log", options(r))
	return err
}
