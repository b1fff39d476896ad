package scheduler

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// retryAfter is what a client is told that comes while there is no leader.
const retryAfter = 50 * time.Millisecond

// request takes a request out of the mailbox. Writes and reads of a shard are gathered until the end of the turn.
func (l *Lane) request(req *Request) {
	req.began = l.now
	if req.Deadline != 0 && req.Deadline <= l.now {
		l.answer(req, &shard.UnavailableError{Reason: "deadline passed before the request was looked at"})
		return
	}
	r := l.replicaOf(req.Shard)
	if r == nil || r.machine == nil {
		l.answer(req, shard.ErrShardNotFound)
		return
	}
	if req.Kind != KindWrite {
		l.read(r, req)
		return
	}
	if !r.eng.IsLeader() {
		l.provoke(r)
		l.refer(r, req, l.notLeader(r))
		return
	}
	if err := l.checkWrite(r, req); err != nil {
		l.answer(req, err)
		return
	}
	if len(l.write.Ops) > 0 {
		l.noteRequest(r, l.write.Ops[0].Key)
	}
	if r.writeCount == 0 {
		l.writes = append(l.writes, r)
	}
	if r.writeTail == nil {
		r.writeHead = req
	} else {
		r.writeTail.next = req
	}
	r.writeTail = req
	r.load.Writes++
	r.load.WriteBytes += uint64(len(req.Body))
	r.writeCount++
	r.writeBytes += int32(len(req.Body) + shard.EntryHeaderBytes)
	l.heldBytes += len(req.Body) + shard.EntryHeaderBytes
}

// checkWrite refuses what need not go through the log to be refused.
func (l *Lane) checkWrite(r *replica, req *Request) error {
	if err := shard.DecodeWrite(req.Body, &l.write); err != nil {
		return err
	}
	if l.write.Shard != req.Shard {
		return &shard.InvalidError{What: "write for another shard"}
	}
	if err := l.write.Validate(); err != nil {
		return err
	}
	if l.wall == 0 && r.machine.NeedsStamp(&l.write) {
		return &shard.UnavailableError{RetryAfter: retryAfter, Reason: "the leader's clock is not known to be good"}
	}
	if l.throttled(r) {
		return shard.ErrOverloaded
	}
	return r.machine.CheckWrite(&l.write)
}

// notLeader is the answer of a replica that does not lead.
func (l *Lane) notLeader(r *replica) error {
	p := r.eng.Leader()
	switch {
	case p.Node == 0 || p == r.self():
		return &shard.UnavailableError{RetryAfter: retryAfter, Reason: "the shard has no leader"}
	case !l.s.live.reachable(p.Node): // whoever is sent there loses time; another replica may know more
		return &shard.UnavailableError{RetryAfter: retryAfter, Reason: fmt.Sprintf("the leader's node %d is not connected", p.Node)}
	}
	return &shard.NotLeaderError{Leader: p.Node}
}

// provoke makes a quiesced follower doubt its leader, because somebody wants something of the shard (rule Live4).
func (l *Lane) provoke(r *replica) {
	if r.eng.Quiesced() {
		l.feed(r, wakeEvent)
	}
}

// holdUntil is until when writes are gathered: until the batch with the proposals before them is durable. The log writer would
// not look at them before anyway, and neither would a follower's; but one engine event, one run in the log, one message to each
// follower and one answer then stand for all of a shard's writes. So batches grow with the load, and an idle lane proposes at once.
func (l *Lane) holdUntil() engine.Instant {
	if l.ownBatch == 0 || l.heldBytes >= holdBytesMax {
		return 0
	}
	return l.ownSince + engine.Instant(holdMax)
}

// proposeAll makes one engine.Write of all writes of each shard, unless they are to be gathered for longer.
func (l *Lane) proposeAll() {
	if len(l.writes) == 0 || l.now < l.holdUntil() {
		return
	}
	all := l.heldBytes >= holdBytesMax
	l.heldBytes, l.roundUntil = 0, 0
	writes := l.writes
	l.writes = l.writesSpare[:0]
	l.ahead.begin(l, aheadOfProposals)
	for i, r := range writes {
		l.ahead.next(len(writes), func(i int) *replica { return writes[i] })
		writes[i] = nil
		switch {
		case r.writeCount == 0: // they were refused meanwhile
		case !all && l.inRound(r):
			l.writes = append(l.writes, r)
			l.heldBytes += int(r.writeBytes)
			l.roundUntil = earlier(l.roundUntil, r.roundUntil)
		default:
			l.proposeWrites(r)
		}
	}
	l.writesSpare = writes
}

// inRound tells whether writes of r that were proposed before are not applied yet, and those that came since should wait for that:
// a round of a shard costs about the same for one write as for ten. They wait longer the more the lane has to do, for then it
// is the lanes that a round waits for; over a long link they do not wait for all of it.
func (l *Lane) inRound(r *replica) bool { return r.waiters.front() != nil && l.now < r.roundUntil }

// proposeWrites makes one engine.Write of the writes of r.
func (l *Lane) proposeWrites(r *replica) {
	l.token++
	l.ev.write = engine.Write{Token: l.token, Count: int(r.writeCount), Bytes: int(r.writeBytes)}
	l.count.proposals += uint64(r.writeCount)
	r.roundUntil = l.now + engine.Instant(roundMin) + roundTurns*l.turnTime
	l.feed(r, &l.ev.write)
	if r.writeHead != nil { // neither accepted nor refused: cannot be, but no client may wait for ever
		l.failWrites(r, l.notLeader(r))
	}
}

// appendWrites encodes the turn's writes of r, once: the same bytes go into the log, its cache and every frame.
func (l *Lane) appendWrites(r *replica, c *engine.Command) {
	stamp := l.wall
	size := 0
	for req := r.writeHead; req != nil; req = req.next {
		size += raftlog.EntrySize(shard.EntryHeaderBytes + len(req.Body))
	}
	if r.timeWrite {
		size += raftlog.EntrySize(shard.EntryHeaderBytes)
	}
	body := l.enc.grab(size)
	index := c.First
	for req := r.writeHead; req != nil; {
		body = appendHeader(body, shard.EntryHeaderBytes+len(req.Body))
		body = shard.AppendWriteEntry(body, stamp, req.Body)
		r.waiters.push(waiter{c.IO.Last.Term, index, req})
		req.proposed = l.now
		index++
		next := req.next
		req.next = nil
		req = next
	}
	if r.timeWrite {
		body = appendHeader(body, shard.EntryHeaderBytes)
		body = shard.AppendTimeEntry(body, stamp)
	}
	r.clearWrites()
	l.proposed = true
	l.appendOwn(r, c, body)
}

func (r *replica) clearWrites() {
	r.writeHead, r.writeTail, r.writeCount, r.writeBytes, r.timeWrite = nil, nil, 0, 0, false
}

// refused answers the requests whose token the engine did not accept.
func (l *Lane) refused(r *replica, c *engine.Command) {
	if l.readRefused(r, c) {
		return
	}
	if req := l.proposal; req != nil && c.Token == l.ev.write.Token {
		l.proposal = nil
		l.answer(req, l.reason(r, c.Reason))
		return
	}
	if c.Token != l.ev.write.Token {
		l.transferRefused, l.refusedReason = c.Token, c.Reason
		return
	}
	l.s.metrics.ProposalsRefused.Add(uint64(r.writeCount))
	if c.Reason == engine.ReasonNotLeader || c.Reason == engine.ReasonTransferring {
		l.referWrites(r, l.reason(r, c.Reason))
		return
	}
	l.failWrites(r, l.reason(r, c.Reason))
}

// reason translates the engine's reason into an answer.
func (l *Lane) reason(r *replica, reason engine.Reason) error {
	switch reason {
	case engine.ReasonNotLeader:
		return l.notLeader(r)
	case engine.ReasonOverloaded:
		return shard.ErrOverloaded
	case engine.ReasonInvalid:
		return &shard.InvalidError{What: "refused by the engine"}
	}
	return &shard.UnavailableError{RetryAfter: retryAfter, Reason: "leadership is changing"}
}

// failWrites answers all writes of the turn that were not accepted: they have no effect.
func (l *Lane) failWrites(r *replica, err error) {
	for req := r.writeHead; req != nil; {
		next := req.next
		req.next = nil
		l.answer(req, err)
		req = next
	}
	r.clearWrites()
	for _, req := range r.reads.takeDue() {
		l.answer(req, err)
	}
}

// referWrites is failWrites for want of a leader.
func (l *Lane) referWrites(r *replica, err error) {
	for req := r.writeHead; req != nil; {
		next := req.next
		req.next = nil
		l.refer(r, req, err)
		req = next
	}
	r.clearWrites()
	l.failWrites(r, err)
}

// proposeTime proposes a time entry, so that keys expire (rule State8). It rides with the turn's writes.
func (l *Lane) proposeTime(r *replica) {
	if r.timeWrite || !r.eng.IsLeader() {
		return
	}
	if r.writeCount == 0 {
		l.writes = append(l.writes, r)
	}
	r.timeWrite = true
	r.writeCount++
	r.writeBytes += shard.EntryHeaderBytes
}

// appendHeader starts an entry of a payload of n bytes in a body, as raftlog.AppendEntry does; the payload follows.
func appendHeader(body []byte, n int) []byte {
	body = binary.AppendUvarint(body, uint64(n)+1)
	return append(body, byte(engine.EntryNormal))
}
