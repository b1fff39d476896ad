package engine

// Log I/O. Every write to the log gets an IOID and a place in one queue; Flushed names an IOID, and completes it and all before
// it. An id that is not in the queue is late or smaller and completes nothing. Within one vote an IOID never comes twice, because
// a log is cut at most once under a vote, where it first differs from the leader's, and grows otherwise.
//
//	accepted (log.last)  >=  in the queue (submitted)  >=  flushed
//
// flushed is an index into the log as accepted: truncating lowers it, and lowers what the queued writes can still attest.

type pendingIO struct {
	io IOID
	// last is the index up to which the log, as it is accepted now, is durable when this I/O is. io.Last.Index, unless truncated.
	last uint64
}

type ioQueue struct {
	*work
	seq     uint64 // of the newest submitted
	voteSeq uint64 // of the newest SaveVote
	flushed uint64 // index up to which the accepted log is durable
}

// work is what only an engine needs that has something under way; a sleeping one has none (see slim).
type work struct {
	queue []pendingIO
	head  int // queue[:head] is done
	// held are the answers that wait for a flush.
	held []answer
	// barriers are the indexes of barrier and membership entries above applied, in any order (rule Engine4).
	barriers []uint64
}

// idle is the work of all that have none. It is never written.
var idle work

func (q *ioQueue) pending() []pendingIO { return q.queue[q.head:] }

// flushedSeq is the sequence number up to which everything is durable.
func (q *ioQueue) flushedSeq() uint64 { return q.seq - uint64(len(q.queue)-q.head) }

// own makes the work writable.
func (q *ioQueue) own() *work {
	if q.work == &idle {
		q.work = &work{}
	}
	return q.work
}

func (q *ioQueue) voteDurable() bool { return q.voteSeq <= q.flushedSeq() }

func (q *ioQueue) push(io IOID) {
	q.own()
	if q.head > 0 && len(q.queue) == cap(q.queue) {
		n := copy(q.queue, q.queue[q.head:])
		q.queue, q.head = q.queue[:n], 0
	}
	q.queue = append(q.queue, pendingIO{io, io.Last.Index})
	q.seq++
}

// complete takes io and all before it off the queue; false if it is not there.
func (q *ioQueue) complete(io IOID) bool {
	p := q.pending()
	for i := len(p) - 1; i >= 0; i-- {
		if p[i].io != io {
			continue
		}
		q.flushed = max(q.flushed, p[i].last)
		q.head += i + 1
		if q.head == len(q.queue) {
			q.queue, q.head = q.queue[:0], 0
		}
		return true
	}
	return false
}

// truncate notes that entries from first on are no longer those that were written.
func (q *ioQueue) truncate(first uint64) {
	q.flushed = min(q.flushed, first-1)
	for i := range q.pending() {
		p := &q.queue[q.head+i]
		p.last = min(p.last, first-1)
	}
}

// reset notes that the log is empty behind index and that everything up to it is durable elsewhere.
func (q *ioQueue) reset(index uint64) {
	q.flushed = index
	for i := range q.pending() {
		q.queue[q.head+i].last = index
	}
}

// submit names the I/O that makes the log and vote durable as they are accepted now.
func (e *Engine) submit() IOID {
	io := IOID{Vote: e.vote, Last: e.log.last()}
	e.io.push(io)
	return io
}

// saveVote accepts v, which must be greater than the vote held. Answers given under the old one are void.
func (e *Engine) saveVote(v Vote) {
	e.vote = v
	e.dropHeld()
	c := e.emit(SaveVote)
	c.Vote, c.IO = v, e.submit()
	e.io.voteSeq = e.io.seq
}

func (e *Engine) handleFlushed(ev *Flushed) {
	if !e.io.complete(ev.IO) {
		return
	}
	e.releaseHeld()
	if e.role == RoleCandidate && !e.race.sent && e.io.voteDurable() {
		e.requestVotes()
	}
}

// answer is a response to a peer that may have to wait for a flush (Condition). Its vote is the engine's own: a greater vote voids it.
type answer struct {
	after   uint64 // I/O sequence number
	to      Peer
	kind    ResponseKind
	flag    answerFlag
	stream  uint64
	seq     uint64 // Seq or Round
	sentAt  Instant
	match   LogID // Match or Last
	hint    LogID
	promise Duration
}

type answerFlag uint8

const (
	flagOK answerFlag = 1 << iota // Success, Accepted, Granted
	flagQuiesced
	flagBehind
	flagUninitialised
)

// answerAfter sends a once everything up to I/O number a.after is durable.
func (e *Engine) answerAfter(a answer) {
	if a.after <= e.io.flushedSeq() {
		e.deliver(&a)
		return
	}
	w := e.io.own()
	w.held = append(w.held, a)
}

// dropHeld forgets the answers that wait.
func (e *Engine) dropHeld() {
	if len(e.io.held) > 0 {
		e.io.held = e.io.held[:0]
	}
}

func (e *Engine) releaseHeld() {
	if len(e.io.held) == 0 {
		return
	}
	done, n := e.io.flushedSeq(), 0
	for i := range e.io.held {
		if e.io.held[i].after <= done {
			e.deliver(&e.io.held[i])
			continue
		}
		e.io.held[n] = e.io.held[i]
		n++
	}
	e.io.held = e.io.held[:n]
}

func (e *Engine) deliver(a *answer) {
	c := e.emit(Respond)
	c.To, c.Response = a.to, a.kind
	ok := a.flag&flagOK != 0
	switch a.kind {
	case RespondVote:
		c.VoteResponse = &VoteResponse{From: e.self, Granted: ok, Request: e.vote, Vote: e.vote}
	case RespondAppend:
		c.AppendResponse = AppendResponse{
			From: e.self, Vote: e.vote, Stream: a.stream, Seq: a.seq, SentAt: a.sentAt, Success: ok, Match: a.match,
			Hint: a.hint, Uninitialised: a.flag&flagUninitialised != 0, Promise: a.promise,
		}
	case RespondHeartbeat:
		c.HeartbeatResponse = HeartbeatResponse{
			From: e.self, Vote: e.vote, Round: a.seq, SentAt: a.sentAt, Promise: a.promise,
			Quiesced: a.flag&flagQuiesced != 0, Last: a.match, Behind: a.flag&flagBehind != 0,
		}
	case RespondSnapshot:
		c.SnapshotResponse = &SnapshotResponse{From: e.self, Vote: e.vote, Stream: a.stream, Accepted: ok, Match: a.match}
	}
}
