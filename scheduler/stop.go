package scheduler

import (
	"context"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// handOverMax bounds how long Stop waits for leaderships to be taken over.
const handOverMax = 2 * time.Second

// errStopping answers what had no effect and never will on this node.
var errStopping = &shard.UnavailableError{RetryAfter: retryAfter, Reason: "the node is stopping"}

// Stop hands leaderships over, ends the goroutines, answers what waits, checkpoints and seals the log. Log and state are not closed.
// When ctx ends it hurries: what is not checkpointed is replayed at the next start.
func (s *Scheduler) Stop(ctx context.Context) error {
	if s.run.started && !s.stopped.Load() {
		s.handOver(ctx)
	}
	if s.stopped.Swap(true) {
		return nil
	}
	close(s.run.stop)
	s.cancel()
	s.run.lanes.Wait()
	s.run.others.Wait()
	s.run.tasks.Wait()
	if s.run.readers != nil {
		s.run.readers.Close()
	}
	// From here on nobody else calls anything.
	for range 2 { // the readers have failed at once what the first turn has asked them for, and the second one answers that
		for _, l := range s.lanes {
			l.Turn()
		}
	}
	if s.drainLog() {
		s.finalCheckpoint(ctx)
	}
	for _, l := range s.lanes {
		for _, req := range l.box.close() { // who submitted them had asked before we stopped
			l.answer(req, errStopping)
		}
		for _, r := range l.list {
			l.dropRequests(r, errStopping, shard.ErrAmbiguous)
		}
		l.answerAll()
	}
	return s.log.Seal()
}

// handOver transfers the leaderships of this node to others, as far as they can be.
func (s *Scheduler) handOver(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handOverMax)
	defer cancel()
	for {
		led := 0
		for _, l := range s.lanes {
			n, err := ask(ctx, s, l, (*Lane).handOver)
			if err != nil {
				return
			}
			led += n
		}
		if led == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// handOver orders every leader of the lane to hand over to a voter that is alive, spread over them. It returns how many still lead.
func (l *Lane) handOver() int {
	led := 0
	for _, r := range l.list {
		if !r.eng.IsLeader() {
			continue
		}
		start := int(r.key.Shard)
		voters := r.otherVoters()
		for i := range voters {
			p := &voters[(start+i)%len(voters)]
			if l.s.live.reachable(p.peer.Node) {
				led++
				if !r.handingOver {
					r.handingOver = true
					l.token++
					l.feed(r, &engine.TransferLeader{Token: l.token, To: p.peer})
				}
				break
			}
		}
	}
	return led
}

// drainLog flushes what the lanes have submitted. False if the log has failed.
func (s *Scheduler) drainLog() bool {
	for {
		select {
		case <-s.log.Pending():
			if !s.FlushLog() {
				return false
			}
			for _, l := range s.lanes {
				l.Turn()
			}
		default:
			return true
		}
	}
}

// finalCheckpoint writes all that is dirty, until ctx ends.
func (s *Scheduler) finalCheckpoint(ctx context.Context) {
	for _, l := range s.lanes {
		for _, r := range l.list {
			if r.machine != nil && r.machine.Dirty() && r.ckpt.cut == nil {
				l.checkpoint(r)
			}
		}
	}
	for ctx.Err() == nil && s.ckpt.step() {
		for _, l := range s.lanes {
			l.Turn()
		}
	}
}
