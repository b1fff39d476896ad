package scheduler

import (
	"errors"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// readQueue holds the reads of a replica that wait for something. Requests are decoded again when they are served, so that
// a read that need not wait costs nothing here.
type readQueue struct {
	fresh   []*Request    // of this turn: they need a read index
	waiting []waitingRead // for ReadReady, tokens grow
	due     []*Request    // for a time entry (rule State8)
	moved   []*Request    // for the end of a checkpoint (rule State1)
}

type waitingRead struct {
	token uint64
	req   *Request
}

// waits returns the queue of r, for a read that has to wait.
func (r *replica) waits() *readQueue {
	if r.reads == nil {
		r.reads = &readQueue{}
	}
	return r.reads
}

// empty, takeDue and takeMoved know a queue that is not there.
func (q *readQueue) empty() bool {
	return q == nil || len(q.fresh)+len(q.waiting)+len(q.due)+len(q.moved) == 0
}

func (q *readQueue) takeDue() (due []*Request) {
	if q != nil {
		due, q.due = q.due, nil
	}
	return due
}

func (q *readQueue) takeMoved() (moved []*Request) {
	if q != nil {
		moved, q.moved = q.moved, nil
	}
	return moved
}

// decodeRead decodes the body of a read or scan into the lane's buffers.
func (l *Lane) decodeRead(req *Request) (staleMs uint64, err error) {
	if req.Kind == kindLead {
		return 0, nil
	}
	if req.Kind == KindScan {
		err = shard.DecodeScan(req.Body, &l.scan)
		staleMs = l.scan.StaleMs
		if err == nil && l.scan.Shard != req.Shard {
			err = &shard.InvalidError{What: "scan of another shard"}
		}
		return staleMs, err
	}
	err = shard.DecodeRead(req.Body, &l.get)
	if err == nil && l.get.Shard != req.Shard {
		err = &shard.InvalidError{What: "read of another shard"}
	}
	return l.get.StaleMs, err
}

// read takes a read or scan: it is served at once under a lease, or waits for a read index.
func (l *Lane) read(r *replica, req *Request) {
	stale, err := l.decodeRead(req)
	switch {
	case err != nil:
		l.answer(req, err)
	case r.eng.LeaseValid(l.now):
		l.count.readsLease++
		l.serve(r, req, l.wall)
	case stale > 0 && !r.eng.IsLeader():
		l.readStale(r, req, stale)
	case !r.eng.IsLeader():
		l.provokeLater(r)
		l.refer(r, req, l.notLeader(r))
	default:
		q := r.waits()
		if len(q.fresh) == 0 {
			l.reads = append(l.reads, r)
		}
		q.fresh = append(q.fresh, req)
	}
}

// readStale serves what is here, if the shard was heard of recently enough (rule Cluster4).
func (l *Lane) readStale(r *replica, req *Request, staleMs uint64) {
	if r.heardAt == 0 || l.now-r.heardAt > engine.Instant(staleMs)*1e6 {
		l.provokeLater(r)
		l.answer(req, shard.ErrStale)
		return
	}
	l.serve(r, req, 0)
}

// provokeLater provokes r in the next turn: reads may come from where the engine must not be called.
func (l *Lane) provokeLater(r *replica) {
	if r.provoked || !r.eng.Quiesced() {
		return
	}
	r.provoked = true
	l.box.putCall(func(l *Lane) {
		r.provoked = false
		l.feed(r, wakeEvent)
	})
}

// readAll asks for one read index for all reads of the turn, per shard.
func (l *Lane) readAll() {
	for i := 0; i < len(l.reads); i++ {
		r := l.reads[i]
		l.reads[i] = nil
		l.token++
		q := r.waits() // empty if the replica was dropped meanwhile
		for j, req := range q.fresh {
			q.waiting = append(q.waiting, waitingRead{l.token, req})
			q.fresh[j] = nil
		}
		l.count.readsIndex += uint64(len(q.fresh))
		q.fresh = q.fresh[:0]
		l.ev.readIndex = engine.ReadIndex{Token: l.token}
		l.feed(r, &l.ev.readIndex)
	}
	l.reads = l.reads[:0]
}

// takeReads removes the waiting reads up to token and calls f with each.
func (l *Lane) takeReads(r *replica, token uint64, f func(*Request)) {
	q := r.reads
	if q == nil {
		return
	}
	n := 0
	for n < len(q.waiting) && q.waiting[n].token <= token {
		n++
	}
	if n == 0 {
		return
	}
	ready := q.waiting[:n:n]
	rest := q.waiting[n:]
	if len(rest) == 0 {
		rest = nil
	}
	q.waiting = rest
	for i := range ready {
		f(ready[i].req)
	}
}

func (l *Lane) readReady(r *replica, token uint64) {
	l.takeReads(r, token, func(req *Request) {
		if _, err := l.decodeRead(req); err != nil {
			l.answer(req, err)
			return
		}
		l.serve(r, req, l.wall)
	})
}

func (l *Lane) failReads(r *replica, token uint64) {
	l.takeReads(r, token, func(req *Request) { l.refer(r, req, l.notLeader(r)) })
	for _, req := range r.reads.takeDue() { // their time entry may never be applied here
		l.answer(req, l.notLeader(r))
	}
}

// readRefused answers the reads of a refused ReadIndex; false if the token is none.
func (l *Lane) readRefused(r *replica, c *engine.Command) bool {
	if r.reads == nil {
		return false
	}
	for i := range r.reads.waiting {
		if r.reads.waiting[i].token == c.Token {
			err := l.reason(r, c.Reason)
			l.takeReads(r, c.Token, func(req *Request) { l.refer(r, req, err) })
			return true
		}
	}
	return false
}

// serve answers what decodeRead has decoded, from the applied state. wall is the leader's clock for rule State8, 0 for a stale
// read. What is not in memory is fetched; the answer is then as of the moment when it comes back, which is no older than the
// moment at which the read was allowed.
func (l *Lane) serve(r *replica, req *Request, wall int64) {
	if req.proposed == 0 {
		req.proposed = l.now
	}
	if req.Kind == kindLead {
		if r.eng.IsLeader() {
			req.User = []Lead{l.lead(r)}
		}
		l.answer(req, nil)
		return
	}
	if req.Kind == KindScan {
		l.noteRequest(r, l.scan.Start)
		if err := r.machine.CheckScan(&l.scan); err != nil {
			l.answer(req, err)
			return
		}
		job := &state.ReadJob{}
		r.machine.FillScan(&l.scan, job)
		l.fetch(r, req, job, wall)
		return
	}
	l.noteRequest(r, l.get.Keys[0])
	if err := r.machine.CheckRead(&l.get); err != nil {
		l.answer(req, err)
		return
	}
	l.serveKeys(r, req, nil, wall)
}

// serveKeys answers the read in l.get, with what a job brought from the store, if that is given.
func (l *Lane) serveKeys(r *replica, req *Request, job *state.ReadJob, wall int64) {
	l.items = l.items[:0]
	var cold [][]byte
	size, point := 0, 0
	for _, key := range l.get.Keys {
		if size > shard.AnswerBytesMax && len(l.items) > 0 {
			break
		}
		if point > 0 && point == len(job.Points) && point < len(job.Keys) && string(job.Keys[point]) == string(key) {
			break // the job ends before, for it is full: the client asks for the rest
		}
		it, hit := r.machine.Get(key)
		if job != nil { // it has a point for each key that was missing, or the first of them, in order
			if point < len(job.Points) && string(job.Keys[point]) == string(key) {
				p := &job.Points[point]
				point++
				if hit == state.Miss {
					it, hit = p.Item, state.Deleted
					if p.Found && r.machine.Visible(&it) {
						hit = state.Found
					}
				}
			}
		}
		switch hit {
		case state.Miss:
			cold = append(cold, key)
		case state.Found:
			if wall != 0 && r.machine.Due(it.Expire, wall) {
				l.readDue(r, req)
				return
			}
			size += len(it.Value) + 24
		default:
			it = state.Item{}
		}
		if size > shard.AnswerBytesMax && len(l.items) > 0 {
			break
		}
		l.items = append(l.items, it)
	}
	if len(cold) > 0 {
		job := &state.ReadJob{Keys: cold, Bytes: shard.AnswerBytesMax} // an answer holds no more, however many are asked for
		r.machine.FillJob(job)
		l.fetch(r, req, job, wall)
		return
	}
	b := shard.AppendAnswerHeader(slices.Grow(req.Answer[:0], size+16), len(l.items))
	for i := range l.items {
		b = shard.AppendAnswerEntry(b, l.items[i].Version, l.items[i].Expire, l.items[i].Value)
	}
	clear(l.items)
	req.Answer = b
	l.served(r, req)
}

// served answers a read, and counts it.
func (l *Lane) served(r *replica, req *Request) {
	r.load.Reads++
	r.load.ReadBytes += uint64(len(req.Answer))
	l.answer(req, nil)
}

// readDue has a read wait for a time entry, for something in it is due by the leader's clock (rule State8). A leader that lost its office
// while the read was under way cannot propose one.
func (l *Lane) readDue(r *replica, req *Request) {
	if !r.eng.IsLeader() {
		l.answer(req, l.notLeader(r))
		return
	}
	q := r.waits()
	q.due = append(q.due, req)
	l.proposeTime(r)
}

// fetchedBytesMax is after how many bytes of answers that a turn has made of what was fetched the rest of that waits for the next turn: big
// answers are copied, and all else of the turn waits for them.
const fetchedBytesMax = 1 << 20

// fetch sends a job for req to the readers and goes on when it is back.
func (l *Lane) fetch(r *replica, req *Request, job *state.ReadJob, wall int64) {
	l.readCold(job, func(l *Lane, job *state.ReadJob) { l.back(r, req, job, wall) })
}

// back goes on with req when its job is back.
func (l *Lane) back(r *replica, req *Request, job *state.ReadJob, wall int64) {
	switch {
	case l.fetchedBytes >= fetchedBytesMax && !l.s.stopped.Load(): // else there is no next turn
		l.box.putCall(func(l *Lane) { l.back(r, req, job, wall) })
	case r.removed || r.machine == nil:
		l.answer(req, shard.ErrShardNotFound)
	case l.jobUsable(r, job):
		l.fetched(r, req, job, wall)
		l.fetchedBytes += len(req.Answer)
	case job.Err != nil && !errors.Is(job.Err, state.ErrMoved):
		l.answer(req, &shard.UnavailableError{Reason: "the state cannot be read"})
	case r.machine.Freezing() && r.machine.Current(job):
		q := r.waits()
		q.moved = append(q.moved, req) // until the checkpoint is done (rule State1)
	default:
		l.read(r, req)
	}
}

// fetched answers req with what the job brought.
func (l *Lane) fetched(r *replica, req *Request, job *state.ReadJob, wall int64) {
	if _, err := l.decodeRead(req); err != nil {
		l.answer(req, err)
		return
	}
	if req.Kind == KindRead {
		if err := r.machine.CheckRead(&l.get); err != nil {
			l.answer(req, err)
			return
		}
		l.serveKeys(r, req, job, wall)
		return
	}
	if err := r.machine.CheckScan(&l.scan); err != nil {
		l.answer(req, err)
		return
	}
	if !r.machine.Fits(job) { // a split came in between
		l.read(r, req)
		return
	}
	out, due := r.machine.FinishScan(&l.scan, job, wall, req.Answer[:0])
	if due {
		l.readDue(r, req)
		return
	}
	req.Answer = out
	l.served(r, req)
}

// recordReplaced is called when a checkpoint or a snapshot has replaced the record: what waited for it goes on.
func (l *Lane) recordReplaced(r *replica) {
	for _, req := range r.reads.takeMoved() {
		l.read(r, req)
	}
	if r.apply.parked {
		l.resume(r, r.apply.gen, nil)
	}
}

// dropRequests answers everything that waits, because the replica goes away.
func (l *Lane) dropRequests(r *replica, err error, writes error) {
	l.takeReads(r, ^uint64(0), func(req *Request) { l.answer(req, err) })
	if q := r.reads; q != nil {
		for _, list := range [][]*Request{q.fresh, q.due, q.moved} {
			for _, req := range list {
				l.answer(req, err)
			}
		}
	}
	r.reads = nil
	l.failWrites(r, err)
	l.takeAwaiting(r, maxInstant, func(req *Request) { l.answer(req, err) })
	for r.waiters.front() != nil {
		l.answer(r.waiters.pop(), writes)
	}
}
