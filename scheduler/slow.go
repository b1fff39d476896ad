package scheduler

import (
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// Stage is where a request spent its time.
type Stage uint8

// The stages. A write passes the first four, a read the first, maybe StageReplication (a leader without a lease asks a quorum) and
// StageRead.
const (
	StageQueue       Stage = iota // it waited for the lane, or for the writes before it to be synced
	StageLogSync                  // the local raft log was the last to make it durable
	StageReplication              // a follower's answer was the last that was needed
	StageApply                    // it, or what was committed before it, was being applied
	StageRead                     // it waited for the state, or for an item that was due to expire
	stages
)

// String returns the name under which logs and metrics have the stage.
func (s Stage) String() string {
	return [stages]string{"queue", "log_sync", "replication", "apply", "read"}[s]
}

// Stages is how many there are.
const Stages = int(stages)

// slowLogged is how many slow requests a lane logs in slowEvery; how many more there were is logged with the next one.
const (
	slowLogged = 5
	slowEvery  = engine.Duration(1e9)
)

// slowLog bounds what a lane says about slow requests.
type slowLog struct {
	since      engine.Instant // when the current slowEvery began
	logged     int
	suppressed int
}

// take tells whether one more may be logged now, and how many were not since the last.
func (s *slowLog) take(now engine.Instant) (suppressed int, ok bool) {
	if s.since == 0 || now-s.since >= engine.Instant(slowEvery) {
		s.since, s.logged = now, 0
	}
	if s.logged >= slowLogged {
		s.suppressed++
		return 0, false
	}
	s.logged++
	suppressed, s.suppressed = s.suppressed, 0
	return suppressed, true
}

// spans are how long a request was in each stage, as far as that is known.
type spans struct {
	took [stages]engine.Duration
}

// spansOf divides the time of a request that is answered now. A write's stamps are left by appendWrites and settle, a read's by serve.
func spansOf(req *Request, now engine.Instant) (sp spans, total engine.Duration) {
	from := req.since()
	total = engine.Duration(now - from)
	switch {
	case req.proposed == 0: // answered while it waited
		sp.took[StageQueue] = total
	case req.Kind != KindWrite:
		sp.took[StageQueue] = engine.Duration(req.began - from)
		sp.took[StageReplication] = engine.Duration(req.proposed - req.began)
		sp.took[StageRead] = engine.Duration(now - req.proposed)
	case req.applying == 0: // superseded, or given up, before it was committed
		sp.took[StageQueue] = engine.Duration(req.proposed - from)
		sp.took[StageReplication] = engine.Duration(now - req.proposed)
	default:
		sp.took[StageQueue] = engine.Duration(req.proposed - from)
		sp.took[req.held] = engine.Duration(req.applying - req.proposed)
		sp.took[StageApply] += engine.Duration(now - req.applying)
	}
	return sp, total
}

// since is when the request came.
func (r *Request) since() engine.Instant {
	if r.Arrived != 0 && r.Arrived < r.began {
		return r.Arrived
	}
	return r.began
}

// paced is from when on a write's time counts for the pace: from when it came, as it is the longer in the mailbox the longer turns are; but not
// what it has waited for a leader.
func (r *Request) paced() engine.Instant {
	if r.awaited {
		return r.began
	}
	return r.since()
}

// slowest returns the stage that took longest.
func (sp *spans) slowest() Stage {
	worst := StageQueue
	for s := range stages {
		if sp.took[s] > sp.took[worst] {
			worst = s
		}
	}
	return worst
}

// slow counts a request that took Config.SlowAfter or longer, and logs it unless there were too many.
func (l *Lane) slow(req *Request) {
	sp, total := spansOf(req, l.now)
	worst := sp.slowest()
	l.s.metrics.Slow[worst].Add(1)
	suppressed, ok := l.slows.take(l.now)
	if !ok {
		return
	}
	args := make([]any, 0, 24)
	args = append(args, "kind", req.Kind.String(), "shard", uint64(req.Shard), "stage", worst.String(), "took", time.Duration(total))
	for s := range stages {
		if d := sp.took[s]; d > 0 {
			args = append(args, s.String(), time.Duration(d))
		}
	}
	if req.Err != nil {
		args = append(args, "err", req.Err)
	}
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	l.s.logger.Warn("slow operation", args...)
}

// slowTurn logs a turn that took so long: whatever a lane does, all of its shards wait for it.
func (l *Lane) slowTurn(took engine.Duration) {
	if suppressed, ok := l.slows.take(l.now); ok {
		l.s.logger.Warn("slow turn of a lane", "lane", l.id, "took", time.Duration(took), "suppressed", suppressed)
	}
}

// String returns what logs call the kind.
func (k Kind) String() string {
	switch k {
	case KindWrite:
		return "write"
	case KindRead:
		return "read"
	case KindScan:
		return "scan"
	}
	return "internal"
}
