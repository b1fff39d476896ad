package scheduler

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// writerState is what others may know of the log writer.
type writerState struct {
	busy    atomic.Int64 // when the flush in progress began; 0 if there is none
	stalled atomic.Bool
	full    atomic.Int32 // 1 while there is no space for the log
}

// errFull refuses writes while log or state find no space: what is left is for what makes room (rule State6).
var errFull = &shard.UnavailableError{RetryAfter: time.Second, Reason: "the disk of the node is full"}

// DiskFull tells whether log or state have found no space: writes to the shards that this node leads are refused. The log says so when it cannot prepare its next segment, half a segment ahead.
func (s *Scheduler) DiskFull() bool {
	return s.log.Metrics().OutOfSpace.Load() || s.ckpt.full.Load()
}

// FlushLog does one step of the log writer: one write and one sync of everything that all lanes have submitted. False means that
// the log has failed, and Config.Fatal was called. While it runs, the lanes' next batches gather behind it.
func (s *Scheduler) FlushLog() bool {
	began, bytes := s.clock.Now(), s.log.Metrics().Bytes.Load()
	if s.writer.full.Load() == 0 { // else it has been busy since then
		s.writer.busy.Store(int64(began))
	}
	if s.LogFull() && !s.MaintainLog() { // it may have segments to free that no frame has told of yet
		return false
	}
	done, err := s.log.Flush()
	if errors.Is(err, raftlog.ErrNoSpace) { // nothing was written and nothing is lost: leaders resign, and we try again
		if s.writer.full.Swap(1) == 0 {
			s.logger.Error("no space for the raft log", "err", err)
		}
		return true
	}
	s.writer.full.Store(0)
	s.writer.busy.Store(0)
	s.writer.stalled.Store(false)
	if err != nil {
		if errors.Is(err, raftlog.ErrClosed) && s.stopped.Load() {
			return false
		}
		s.fatal(fmt.Errorf("raft log: %w", err))
		return false
	}
	s.metrics.LogSyncs.Add(1)
	took := s.clock.Now() - began
	s.metrics.SyncLatency.Observe(int64(took))
	s.disk.synced(began, began+took, s.slowSync(), s.cfg.ElectionTimeoutMin)
	s.metrics.SyncBytes.Observe(int64(s.log.Metrics().Bytes.Load() - bytes))
	if s.cfg.SlowAfter > 0 && took >= engine.Instant(s.cfg.SlowAfter) {
		s.logger.Warn("slow sync of the raft log", "took", time.Duration(took))
	}
	for _, c := range done {
		s.lanes[c.Lane].box.putFlushed(c)
	}
	return true
}

// SealLog tells the log that it is idle (rule Log3).
func (s *Scheduler) SealLog() bool {
	if err := s.log.Seal(); err != nil {
		s.fatal(fmt.Errorf("raft log: %w", err))
		return false
	}
	return true
}

// watchWriter makes leaders resign when a flush takes longer than an election timeout: a leader that cannot write should not
// hold its office (DESIGN 3.8). Once per stall.
func (s *Scheduler) watchWriter(now engine.Instant) {
	began := s.writer.busy.Load()
	if began == 0 || now-engine.Instant(began) < engine.Instant(s.cfg.ElectionTimeoutMin) {
		return
	}
	if s.writer.stalled.Swap(true) {
		return
	}
	s.metrics.Stalls.Add(1)
	s.logger.Error("the raft log does not get on: leaders resign", "for", now-engine.Instant(began))
	s.resignAll()
}

// logFlushed tells the engines whose I/O is durable now.
func (l *Lane) logFlushed(c *raftlog.Completion) {
	l.log.Flushed(*c)
	if c.Batch >= l.ownBatch {
		l.ownBatch = 0
	}
	defer l.noteSynced(c.Batch)
	for {
		ios, ok := l.batches.pop(c.Batch)
		if !ok {
			return
		}
		l.s.metrics.LogSyncShards.Add(uint64(len(ios)))
		l.ahead.begin(l, aheadOfFlushes)
		for i := range ios {
			l.ahead.next(len(ios), func(i int) *replica { return ios[i].r })
			ios[i].r.ioPending--
			l.ev.flushed = engine.Flushed{IO: ios[i].io}
			l.bySync = true
			l.feed(ios[i].r, &l.ev.flushed)
			l.bySync = false
		}
		l.batches.release(ios)
	}
}

// LogFull tells that the last flush found no space: FlushLog must be called again after a while.
func (s *Scheduler) LogFull() bool { return s.writer.full.Load() != 0 }

// MaintainLog lets the log prepare its next segment and free old ones; called by the log writer between flushes, and when idle.
func (s *Scheduler) MaintainLog() bool {
	err := s.log.Maintain()
	if err == nil || errors.Is(err, raftlog.ErrNoSpace) || errors.Is(err, raftlog.ErrClosed) && s.stopped.Load() {
		return true
	}
	s.fatal(fmt.Errorf("raft log: %w", err))
	return false
}
