package raftlog_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
	"golang.org/x/sys/unix"
)

// sparing is a log on a disk that counts what is allocated.
type sparing struct {
	*raftlog.Log
	t         *testing.T
	mem       *vfs.Mem
	free      int64 // on the disk
	now       time.Time
	allocated int
	removeErr error
	term      uint64
}

func newSparing(t *testing.T, free int64) *sparing {
	s := &sparing{t: t, mem: vfs.NewMem(), free: free, now: time.Unix(1e9, 0)}
	fs := vfs.Inject(s.mem, func(op *vfs.Op) error {
		if op.Kind == vfs.OpAllocate {
			s.allocated++
		}
		if op.Kind == vfs.OpRemove {
			return s.removeErr
		}
		return nil
	})
	var err error
	s.Log, _, err = raftlog.Open(fs, "log", raftlog.Options{SegmentBytes: segmentBytes, CacheBytes: 1,
		FreeBytes: func() int64 { return s.free }, Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var sparingKey = raftlog.Key{Shard: 7, Replica: 1}

// fill fills n segments, and then frees them all if they are purged.
func (s *sparing) fill(n int, purge bool) {
	s.t.Helper()
	a := s.Lane(0)
	for range n {
		s.term++
		a.Append(sparingKey, raftlog.Run{Term: s.term, First: s.term, Count: 1, Body: raftlog.AppendEntry(nil, engine.EntryNormal, make([]byte, segmentBytes/2))})
		s.flush()
	}
	if purge {
		a.Purge(sparingKey, engine.LogID{Term: s.term, Index: s.term})
		a.Refresh(sparingKey)
		s.flush()
		s.small() // which says what is needed no more
		s.small()
	}
}

// small writes next to nothing.
func (s *sparing) small() {
	s.t.Helper()
	s.Lane(0).Refresh(sparingKey)
	s.flush()
	s.Lane(0).Pinned(nil, 1)
}

func (s *sparing) flush() {
	s.t.Helper()
	s.Lane(0).Submit()
	done, err := s.Flush()
	if err != nil {
		s.t.Fatal(err)
	}
	s.Lane(0).Flushed(done[0])
	if err := s.Maintain(); err != nil {
		s.t.Fatal(err)
	}
}

// files returns how many segments and spares there are.
func (s *sparing) files() (segments, spares int) {
	s.t.Helper()
	names, err := s.mem.List("log")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".spare") {
			spares++
		} else {
			segments++
		}
	}
	return segments, spares
}

func (s *sparing) want(spares int, when string) {
	s.t.Helper()
	if _, n := s.files(); n != spares {
		s.t.Errorf("%s: %d spares, want %d", when, n, spares)
	}
}

// TestSparesOfABusyLog: what a log that is freed many segments at a time goes through, again and again, is allocated once.
func TestSparesOfABusyLog(t *testing.T) {
	s := newSparing(t, 1<<40)
	s.fill(20, true)
	first, most := s.allocated, 0
	for range 5 {
		s.fill(20, false)
		segments, spares := s.files()
		most = max(most, segments+spares)
		s.fill(0, true)
	}
	if first < 20 || s.allocated > first+2 {
		t.Errorf("%d segments allocated at first, %d after five times as many", first, s.allocated)
	}
	if most > 24 {
		t.Errorf("20 segments at a time take %d files", most)
	}
}

// TestSparesAreGivenBack: of spares that were not used for a while one goes each second, of a log at rest, too, until two are left; those for which
// the disk has no room go at once, and where it has none two are kept.
func TestSparesAreGivenBack(t *testing.T) {
	t.Run("rest", func(t *testing.T) {
		s := newSparing(t, 1<<40)
		s.fill(20, true)
		if _, n := s.files(); n < 10 {
			t.Fatalf("%d spares are kept", n)
		}
		for n := 0; s.Kept(); n++ { // what the writer of an idle log does
			s.now = s.now.Add(time.Second)
			if err := s.Maintain(); err != nil || n > 60 {
				t.Fatalf("%d s: %v", n, err)
			}
		}
		s.want(2, "at rest")
	})
	t.Run("age", func(t *testing.T) {
		s := newSparing(t, 1<<40)
		s.fill(20, true)
		_, kept := s.files()
		for range 25 { // seconds
			s.now = s.now.Add(time.Second)
			s.small()
		}
		s.want(kept, "after 25 s")
		for range 60 {
			s.now = s.now.Add(time.Second)
			s.small()
		}
		s.want(2, "after a minute and a half")
	})
	t.Run("no room any more", func(t *testing.T) {
		s := newSparing(t, 1<<40)
		s.fill(20, true)
		s.free = 8 * 5 * segmentBytes
		s.now = s.now.Add(time.Second)
		s.small()
		s.want(5, "with room for five")
		s.free = 0
		s.now = s.now.Add(time.Second)
		s.small()
		s.want(2, "without room")
	})
	t.Run("no room", func(t *testing.T) {
		s := newSparing(t, 0)
		s.fill(20, true)
		s.want(2, "without room")
	})
	t.Run("failure", func(t *testing.T) {
		s := newSparing(t, 1<<40)
		s.fill(20, true)
		s.removeErr, s.free = unix.EIO, 0
		s.now = s.now.Add(time.Second)
		if err := s.Maintain(); !errors.Is(err, raftlog.ErrPoisoned) || !errors.Is(err, unix.EIO) {
			t.Fatalf("a spare can not be removed: %v", err)
		}
	})
}
