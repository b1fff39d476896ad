package scheduler

import (
	"context"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
)

// running is what the goroutines of a started scheduler need. There is one goroutine per lane, and one each for the log
// writer, the heartbeats and the checkpointer; tasks that may wait for a disk run on at most tasksMax goroutines more.
type running struct {
	started bool
	stop    chan struct{}
	lanes   sync.WaitGroup
	others  sync.WaitGroup
	tasks   sync.WaitGroup
	readers *state.Readers

	mu     sync.Mutex
	queue  []func()
	active int
}

const tasksMax = 8

// fullRetry is how long the log writer waits for space.
const fullRetry = 200 * time.Millisecond

// Start starts the goroutines. It does not wait for anything.
func (s *Scheduler) Start(context.Context) error {
	if s.run.started || s.stopped.Load() {
		return ErrStopped
	}
	s.run.started = true
	for _, l := range s.lanes {
		s.run.lanes.Add(1)
		go s.laneLoop(l)
	}
	s.run.others.Add(3)
	go s.writerLoop()
	go s.heartbeatLoop()
	go s.checkpointLoop()
	return nil
}

func (s *Scheduler) laneLoop(l *Lane) {
	defer s.run.lanes.Done()
	defer l.explainPanic()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := l.Turn()
		var due <-chan time.Time
		if next != 0 {
			wait := time.Duration(next - l.ended)
			if wait <= 0 {
				select {
				case <-s.run.stop:
					return
				default:
					continue
				}
			}
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-s.run.stop:
			return
		case <-l.box.wake:
		case <-due:
		}
	}
}

func (s *Scheduler) writerLoop() {
	defer s.run.others.Done()
	idle := time.NewTimer(time.Second)
	defer idle.Stop()
	sealed := true
	for {
		select {
		case <-s.run.stop:
			return
		case <-s.log.Pending():
			if !s.FlushLog() {
				return
			}
			for s.LogFull() {
				select {
				case <-s.run.stop:
					return
				case <-time.After(fullRetry):
				}
				if !s.FlushLog() {
					return
				}
			}
			if !s.MaintainLog() {
				return
			}
			sealed = false
			idle.Reset(time.Second)
		case <-idle.C:
			if !sealed {
				sealed = true
				if !s.SealLog() {
					return
				}
			}
			if !s.MaintainLog() {
				return
			}
			if s.log.Metrics().OutOfSpace.Load() {
				idle.Reset(fullRetry) // writes are refused, so nothing else would notice that there is space again
			} else if s.log.Kept() {
				idle.Reset(time.Second)
			}
		}
	}
}

func (s *Scheduler) heartbeatLoop() {
	defer s.run.others.Done()
	timer := time.NewTimer(time.Duration(s.cfg.HeartbeatInterval))
	defer timer.Stop()
	for {
		select {
		case <-s.run.stop:
			return
		case <-timer.C:
		case <-s.live.wake:
		}
		timer.Reset(time.Duration(s.Heartbeats()))
	}
}

func (s *Scheduler) checkpointLoop() {
	defer s.run.others.Done()
	tick := time.NewTicker(time.Duration(s.cfg.CheckpointInterval))
	defer tick.Stop()
	for {
		select {
		case <-s.run.stop:
			return
		case <-tick.C:
			s.ckpt.look()
		case <-s.ckpt.wake:
			s.ckpt.look()
		}
		for began := time.Now(); s.ckpt.step(); began = time.Now() {
			if !s.rest(tick, s.ckpt.rest(time.Since(began))) {
				return
			}
		}
		s.collectGarbage()
	}
}

// rest lets the log have the device for so long, or until somebody waits for a checkpoint; false: the scheduler stops.
func (s *Scheduler) rest(tick *time.Ticker, d time.Duration) bool {
	over := time.NewTimer(d)
	defer over.Stop()
	for !s.ckpt.hurried() {
		select {
		case <-s.run.stop:
			return false
		case <-tick.C:
			s.ckpt.look() // a long queue must not hide how much comes behind it
		case <-s.ckpt.wake:
		case <-over.C:
			return true
		}
	}
	return true
}

// Heartbeats sends the node heartbeats that are due, and looks for a stalled disk. It is to be called every HeartbeatInterval; if no shard has
// anything to say meanwhile, it may be left alone for as long as it returns.
func (s *Scheduler) Heartbeats() engine.Duration {
	wait := s.live.tick()
	now := s.clock.Now()
	s.watchWriter(now)
	s.watchDisk(now)
	l := &s.metrics.CommitLatency
	s.pace.adjust(now, l.count.Load(), l.sum.Load(), s.cfg.InflightMax)
	return wait
}

// spawnGoroutine runs tasks on at most tasksMax goroutines.
func (s *Scheduler) spawnGoroutine(task func()) {
	r := &s.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.stopped.Load() {
		return // nobody would wait for it
	}
	r.queue = append(r.queue, task)
	if r.active >= tasksMax {
		return
	}
	r.active++
	r.tasks.Add(1)
	go func() {
		defer r.tasks.Done()
		for {
			r.mu.Lock()
			if len(r.queue) == 0 {
				r.active--
				r.mu.Unlock()
				return
			}
			task := r.queue[0]
			r.queue = r.queue[1:]
			r.mu.Unlock()
			task()
		}
	}()
}
