package raftlog_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// faulty returns a log on a disk whose operations of kind fail with *err while it is set.
func faulty(t *testing.T, kind vfs.OpKind, short bool) (*raftlog.Log, *vfs.Mem, *error) {
	t.Helper()
	mem, fail := vfs.NewMem(), new(error)
	fs := vfs.Inject(mem, func(op *vfs.Op) error {
		if op.Kind != kind || *fail == nil {
			return nil
		}
		if short {
			op.Size /= 2
		}
		return *fail
	})
	l, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	return l, mem, fail
}

func submitVote(l *raftlog.Log, size int) {
	a := l.Lane(0)
	k := raftlog.Key{Shard: 99, Replica: 1}
	a.SaveVote(k, engine.Vote{Term: 1})
	if size > 0 {
		next := a.Stats(k).Last.Index + 1
		a.Append(k, raftlog.Run{Term: 1, First: next, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, size))})
	}
	a.Submit()
}

// TestFailedIOPoisons: after a failed write or sync nothing succeeds any more, even if the disk says that it is well again.
func TestFailedIOPoisons(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpWrite, vfs.OpDatasync} {
		for _, short := range []bool{false, true} {
			t.Run(fmt.Sprint(kind, short), func(t *testing.T) {
				l, mem, fail := faulty(t, kind, short)
				oneFrame(t, l, 1, []byte("acknowledged"))
				submitVote(l, 100)
				*fail = unix.EIO
				if _, err := l.Flush(); !errors.Is(err, raftlog.ErrPoisoned) || !errors.Is(err, unix.EIO) {
					t.Fatalf("flush on a failing disk: %v", err)
				}
				*fail = nil
				_, err := l.Flush()
				for _, err := range []error{err, l.Seal(), l.Maintain()} {
					if !errors.Is(err, raftlog.ErrPoisoned) {
						t.Fatalf("the log goes on after a failure: %v", err)
					}
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				rec, err := reopen(mem, 1)
				if err != nil || rec.Replicas[raftlog.Key{Shard: 1, Replica: 1}] == nil {
					t.Fatalf("recovered %+v, %v", rec, err)
				}
			})
		}
	}
}

// TestNoSpace: a full disk is announced in time, stops the log without harm when the segment is full, and does not keep the node
// from starting.
func TestNoSpace(t *testing.T) {
	l, mem, fail := faulty(t, vfs.OpAllocate, false)
	*fail = unix.ENOSPC
	submitVote(l, segmentBytes/2)
	done, err := l.Flush()
	if err != nil {
		t.Fatal(err)
	}
	l.Lane(0).Flushed(done[0])
	if err := l.Maintain(); !errors.Is(err, raftlog.ErrNoSpace) || !l.Metrics().OutOfSpace.Load() {
		t.Fatalf("no warning in time: %v", err)
	}
	submitVote(l, segmentBytes/2)
	for range 3 {
		if done, err := l.Flush(); !errors.Is(err, raftlog.ErrNoSpace) || len(done) > 0 {
			t.Fatalf("flush without space: %v", err)
		}
	}
	// A process that starts now comes up, and writes once there is space.
	full := unix.ENOSPC
	restarted, rec, err := raftlog.Open(vfs.Inject(clone(mem), func(op *vfs.Op) error {
		if op.Kind == vfs.OpAllocate && full != 0 {
			return full
		}
		return nil
	}), "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil || len(rec.Replicas) != 1 {
		t.Fatalf("start without space: %v", err)
	}
	if err := restarted.Seal(); err != nil {
		t.Fatal(err)
	}
	submitLater := restarted.Lane(1)
	submitLater.SaveVote(raftlog.Key{Shard: 5, Replica: 5}, engine.Vote{Term: 5})
	submitLater.Submit()
	if _, err := restarted.Flush(); !errors.Is(err, raftlog.ErrNoSpace) {
		t.Fatalf("flush without space: %v", err)
	}
	full = 0
	if done, err := restarted.Flush(); err != nil || len(done) != 1 {
		t.Fatalf("flush with space: %v", err)
	}
	*fail = nil
	if done, err := l.Flush(); err != nil || len(done) != 1 || l.Metrics().OutOfSpace.Load() {
		t.Fatalf("flush with space: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if rec, err := reopen(mem, 0); err != nil || rec.Replicas[raftlog.Key{Shard: 99, Replica: 1}].Last.Index != 2 {
		t.Fatal("not all was recovered", err)
	}
}

// TestOpenFailsOnSync: recovery believes nothing that it could not sync (rule Log1).
func TestOpenFailsOnSync(t *testing.T) {
	mem := longer(t)
	for _, kind := range []vfs.OpKind{vfs.OpDatasync, vfs.OpSyncDir, vfs.OpRead} {
		fs := vfs.Inject(mem, func(op *vfs.Op) error {
			if op.Kind == kind {
				return unix.EIO
			}
			return nil
		})
		if _, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes}); !errors.Is(err, unix.EIO) {
			t.Fatalf("open with failing %v: %v", kind, err)
		}
	}
}

// TestFailedSyncThenClean: a sync fails, and the kernel takes the pages for clean (FAULTS D6). What the next process reads of them, and
// counts as durable, must be on the disk before (rule Log1).
func TestFailedSyncThenClean(t *testing.T) {
	mem := vfs.NewMem()
	fail := false
	l, _, err := raftlog.Open(vfs.Inject(mem, func(op *vfs.Op) error {
		if fail && op.Kind == vfs.OpDatasync {
			if err := mem.ForgetDirty("log/0000000001.seg"); err != nil {
				t.Fatal(err)
			}
			return unix.EIO
		}
		return nil
	}), "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	submitVote(l, 100)
	if _, err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	fail = true
	l.Lane(0).SaveVote(raftlog.Key{Shard: 99, Replica: 1}, engine.Vote{Term: 2})
	l.Lane(0).Submit()
	if _, err := l.Flush(); !errors.Is(err, raftlog.ErrPoisoned) {
		t.Fatalf("flush on a failing disk: %v", err)
	}
	_, rec, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	want := rec.Replicas[raftlog.Key{Shard: 99, Replica: 1}].Vote
	_, rec, err = raftlog.Open(mem.Crash(rand.New(rand.NewPCG(1, 1)), vfs.CrashPolicy{}), "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	if got := rec.Replicas[raftlog.Key{Shard: 99, Replica: 1}].Vote; got != want {
		t.Fatalf("vote %v was recovered, and is %v after a power cut", want, got)
	}
}

// TestKilledBeforeSync: a process is killed between the write and the sync of a frame. The next one finds the frame in the page cache, and what it
// makes of it, a power cut must not take back (rule Log1).
func TestKilledBeforeSync(t *testing.T) {
	mem := vfs.NewMem()
	killed := errors.New("killed")
	alive := true
	l, _, err := raftlog.Open(vfs.Inject(mem, func(op *vfs.Op) error {
		if !alive && op.Kind == vfs.OpDatasync {
			return killed
		}
		return nil
	}), "log", raftlog.Options{SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	k := raftlog.Key{Shard: 99, Replica: 1}
	for term := uint64(1); term <= 2; term++ {
		alive = term == 1
		l.Lane(0).SaveVote(k, engine.Vote{Term: term})
		l.Lane(0).Submit()
		if _, err := l.Flush(); alive != (err == nil) {
			t.Fatalf("flush of term %d: %v", term, err)
		}
	}
	for life := range 3 {
		_, rec, err := raftlog.Open(mem, "log", raftlog.Options{SegmentBytes: segmentBytes})
		if err != nil {
			t.Fatal(err)
		}
		if got := rec.Replicas[k].Vote.Term; got != 2 {
			t.Fatalf("life %d recovers term %d: the write that was not synced is not what it is to find", life, got)
		}
		mem = mem.Crash(rand.New(rand.NewPCG(1, 1)), vfs.CrashPolicy{})
	}
}

// TestSealWithoutSpace: that no segment can be had for a seal is no failure of the log.
func TestSealWithoutSpace(t *testing.T) {
	for size := segmentBytes - 4096 - 200; size < segmentBytes-4096; size++ {
		l, _, fail := faulty(t, vfs.OpAllocate, false)
		a := l.Lane(0)
		a.Append(raftlog.Key{Shard: 9, Replica: 1}, raftlog.Run{Term: 1, First: 1, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, size))})
		a.Submit()
		if _, err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		*fail = unix.ENOSPC
		if err := l.Seal(); err != nil {
			t.Fatalf("seal behind %d bytes: %v", size, err)
		}
	}
}

// TestMustExist: a log that is known to have been there is not made anew, whatever is known of its sequences (rule Log3).
func TestMustExist(t *testing.T) {
	fs := vfs.NewMem()
	if _, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: 1 << 20, MustExist: true}); !errors.Is(err, raftlog.ErrCorrupt) {
		t.Fatalf("error %v", err)
	}
	l, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, _, err = raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: 1 << 20, MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFailedOperationIsTheEnd: whichever operation fails that changes the disk, once, the log says so, does nothing more, and has lost nothing that it
// acknowledged (DESIGN 4, FAULTS D6, D7, D21).
func TestFailedOperationIsTheEnd(t *testing.T) {
	errnos := []unix.Errno{unix.EIO, unix.EROFS, unix.EACCES, unix.EMFILE}
	k := raftlog.Key{Shard: 99, Replica: 1}
	kinds := map[vfs.OpKind]int{}
	for at := 1; ; at++ {
		mem, n, late, failed := vfs.NewMem(), 0, 0, (*vfs.Op)(nil)
		errno := errnos[at%len(errnos)]
		fs := vfs.Inject(mem, func(op *vfs.Op) error {
			if !op.Kind.Changes() {
				return nil
			}
			n++
			switch {
			case failed != nil && op.Kind != vfs.OpRemove: // a file that could not be allocated may go
				late++
			case n == at:
				op.Size /= 2
				failed = op
				return errno
			}
			return nil
		})
		acked, err := script(fs, k)
		if failed == nil {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		kinds[failed.Kind]++
		if !errors.Is(err, errno) {
			t.Errorf("%v of %s at %d failed with %v, and the log says: %v", failed.Kind, failed.Name, failed.Off, errno, err)
		}
		if late > 0 {
			t.Errorf("%v of %s at %d failed, and %d more operations were made", failed.Kind, failed.Name, failed.Off, late)
		}
		_, rec, err := raftlog.Open(mem.Crash(rand.New(rand.NewPCG(1, 1)), vfs.CrashPolicy{}), "log", raftlog.Options{SegmentBytes: segmentBytes})
		if err != nil {
			t.Errorf("%v of %s at %d failed: recovery: %v", failed.Kind, failed.Name, failed.Off, err)
		} else if r := rec.Replicas[k]; acked > 0 && (r == nil || r.Vote.Term < acked || r.Last.Index < acked) {
			t.Errorf("%v of %s at %d failed: %d were acknowledged, recovered %+v", failed.Kind, failed.Name, failed.Off, acked, r)
		}
	}
	t.Log(kinds)
	for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpAllocate, vfs.OpWrite, vfs.OpDatasync, vfs.OpRename, vfs.OpSyncDir, vfs.OpRemove} {
		if kinds[kind] == 0 {
			t.Errorf("no %v has failed", kind)
		}
	}
}

// script writes to a new log, whose segments come and go, until something fails: that is what it returns. After that it goes on for a while, and nothing may
// succeed.
func script(fs vfs.FS, k raftlog.Key) (acked uint64, failure error) {
	free := int64(1 << 40)
	l, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes, CacheBytes: 1, FreeBytes: func() int64 { return free }})
	if err != nil {
		return 0, err
	}
	a := l.Lane(0)
	note := func(err error) {
		switch {
		case failure == nil:
			failure = err
		case !errors.Is(err, raftlog.ErrPoisoned):
			failure = fmt.Errorf("after %v something went on: %v", failure, err)
		}
	}
	for term := uint64(1); term <= 150 && failure == nil; term++ {
		a.SaveVote(k, engine.Vote{Term: term})
		size := 900
		if term == 75 {
			size = segmentBytes // it gets a segment of its own size, which is removed later
		}
		a.Append(k, raftlog.Run{Term: term, First: term, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, size))})
		if term > 20 {
			a.Purge(k, engine.LogID{Term: term - 20, Index: term - 20})
		}
		a.Submit()
		done, err := l.Flush()
		if note(err); err == nil {
			a.Flushed(done[0])
			acked = term
		}
		note(l.Maintain())
		if term == 140 {
			free = 0 // spares are removed
		}
	}
	for range 2 {
		if failure == nil {
			break
		}
		_, err := l.Flush()
		note(err)
		note(l.Maintain())
		note(l.Seal())
	}
	return acked, errors.Join(failure, l.Close())
}

// TestKilledBeforeDirSync: a process is killed when it has given a segment its name, before that was synced. The next one finds the segment, and what it writes
// into it, a power cut must not take back with the name (rule Log1, FAULTS D5).
func TestKilledBeforeDirSync(t *testing.T) {
	mem, k := vfs.NewMem(), raftlog.Key{Shard: 99, Replica: 1}
	vote := func(l *raftlog.Log, term uint64) {
		t.Helper()
		l.Lane(0).SaveVote(k, engine.Vote{Term: term})
		l.Lane(0).Submit()
		if _, err := l.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	open := func(fs vfs.FS) (*raftlog.Log, *raftlog.Recovery) {
		t.Helper()
		l, rec, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes})
		if err != nil {
			t.Fatal(err)
		}
		return l, rec
	}
	l, _ := open(mem)
	vote(l, 1)
	named, killed := false, errors.New("killed")
	if _, _, err := raftlog.Open(vfs.Inject(mem, func(op *vfs.Op) error {
		named = named || op.Kind == vfs.OpRename
		if named && op.Kind == vfs.OpSyncDir {
			return killed
		}
		return nil
	}), "log", raftlog.Options{SegmentBytes: segmentBytes}); !errors.Is(err, killed) {
		t.Fatal(err)
	}
	l, _ = open(mem)
	vote(l, 2)
	_, rec := open(mem.Crash(rand.New(rand.NewPCG(1, 1)), vfs.CrashPolicy{}))
	if got := rec.Replicas[k].Vote.Term; got != 2 {
		t.Fatalf("the vote of term 2 was acknowledged, and %d is recovered", got)
	}
}

// TestFailedReads: what can not be read is neither taken for the end of the log, nor for corruption (FAULTS D7).
func TestFailedReads(t *testing.T) {
	mem, fail := longer(t), unix.Errno(0)
	fs := vfs.Inject(mem, func(op *vfs.Op) error {
		if op.Kind == vfs.OpRead && fail != 0 {
			op.Size /= 2
			return fail
		}
		return nil
	})
	for _, least := range []int{0, vfs.SectorSize + 1} { // the header, and the segment
		_, _, err := raftlog.Open(vfs.Inject(mem, func(op *vfs.Op) error {
			if op.Kind == vfs.OpRead && op.Size >= least {
				op.Size /= 2
				return unix.EIO
			}
			return nil
		}), "log", raftlog.Options{SegmentBytes: segmentBytes})
		if !errors.Is(err, unix.EIO) || errors.Is(err, raftlog.ErrCorrupt) {
			t.Errorf("reads of %d bytes and more fail half way: %v", least, err)
		}
	}
	l, _, err := raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes, CacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	k := raftlog.Key{Shard: 31, Replica: 1}
	l.Lane(0).Adopt(k)
	c, err := l.Lane(0).Locate(k, 2, 2, 100)
	if err != nil {
		t.Fatal(err)
	}
	fail = unix.EIO
	if _, err := c.Read(); !errors.Is(err, unix.EIO) || errors.Is(err, raftlog.ErrCorrupt) {
		t.Errorf("a failed read of entries: %v", err)
	}
	fail = 0
	if _, err := c.Read(); err != nil {
		t.Error(err)
	}
}

// TestCutSegment: a segment that is shorter than its header says was cut off, and is refused by its name, whatever lay there (FAULTS D7).
func TestCutSegment(t *testing.T) {
	for _, name := range []string{"0000000001.seg", "0000000004.seg"} {
		mem := longer(t)
		f, err := mem.Open("log/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(segmentBytes-1), f.Close()); err != nil {
			t.Fatal(err)
		}
		_, err = reopen(mem, 0)
		expectRefusal(t, err, name, segmentBytes-1, 0)
	}
}
