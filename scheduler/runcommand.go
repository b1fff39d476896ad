package scheduler

import (
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// runCommand is the one place where a command meets disk, network or state machine. It does not call the engine again:
// completions come back as events later.
func (l *Lane) runCommand(r *replica, c *engine.Command) {
	switch c.Kind {
	case engine.AppendInputEntries:
		l.appendEntries(r, c)
	case engine.TruncateLog:
		l.log.Truncate(r.key, c.First)
		l.io(r, c.IO)
		r.run = nil
		r.refreshPeers()
	case engine.PurgeLog:
		l.log.Purge(r.key, c.LogID)
	case engine.SaveVote:
		l.log.SaveVote(r.key, c.Vote)
		l.io(r, c.IO)
		if !c.Vote.Committed && c.Vote.Peer == r.self() {
			l.s.metrics.Elections.Add(1)
		}
	case engine.SaveCommitted:
		l.log.SaveCommitted(r.key, c.LogID)

	case engine.Apply:
		l.applyRange(r, c.First, c.Last)
	case engine.InstallSnapshot:
		l.installSnapshot(r, c)
	case engine.RejectSnapshot:
		l.rejectSnapshot(r, c.Token)

	case engine.Replicate:
		l.replicate(r, c)
	case engine.ReplicateCommitted:
		l.queueCommit(r, c)
	case engine.ReplicateSnapshot:
		l.sendSnapshot(r, c.To, c.Vote, c.Stream)
	case engine.BroadcastHeartbeat:
		l.broadcastHeartbeat(r, c)
	case engine.SendHeartbeat:
		o := l.out(c.To.Node)
		o.msgs = wire.AppendHeartbeat(o.msgs, r.header(c.To), c.Heartbeat)
		l.message(o)
	case engine.SendVote, engine.SendPreVote:
		l.sendVote(r, c)
	case engine.SendTimeoutNow:
		o := l.out(c.To.Node)
		l.ev.timeout = engine.TimeoutNow{From: r.self(), Vote: c.Vote}
		o.msgs = wire.AppendTimeoutNow(o.msgs, r.header(c.To), &l.ev.timeout)
		l.message(o)
	case engine.Respond:
		l.respond(r, c)

	case engine.RebuildReplicationStreams:
		r.refreshPeers()
		l.leadershipChanged(r)
	case engine.CloseReplicationStreams:
		l.leadershipChanged(r)

	case engine.Refuse:
		l.refused(r, c)
	case engine.ReadReady:
		l.readReady(r, c.Token)
	case engine.FailPendingReads:
		l.failReads(r, c.Token)
	default:
		panic(fmt.Sprintf("scheduler: unknown command %d", c.Kind))
	}
}

func (r *replica) header(to engine.Peer) wire.Header {
	return wire.Header{Shard: r.key.Shard, From: r.key.Replica, To: to.Replica}
}

// appendEntries appends to the raft log: what a client wrote, what the engine made, or what a leader sent.
func (l *Lane) appendEntries(r *replica, c *engine.Command) {
	count := int(c.Last - c.First + 1)
	switch {
	case c.Inbound:
		for i := range l.inRuns {
			in := raftlog.CutRun(raftlog.Run(l.inRuns[i]), c.First, c.Last)
			if in.Count > 0 {
				l.log.Append(r.key, in)
			}
		}
	case c.Entry == engine.EntryBlank:
		l.appendOwn(r, c, raftlog.AppendEntry(l.enc.grab(raftlog.EntrySize(0)), engine.EntryBlank, nil))
	case c.Entry == engine.EntryMembership:
		l.appendOwn(r, c, raftlog.AppendEntry(nil, engine.EntryMembership, raftlog.AppendMembership(nil, c.Membership)))
	case c.Entry == engine.EntryBarrier:
		l.appendBarrier(r, c)
	default:
		l.appendWrites(r, c)
	}
	l.count.entries += uint64(count)
	l.io(r, c.IO)
	if c.Entry == engine.EntryMembership || c.Inbound {
		r.refreshPeers()
	}
}

// appendOwn appends entries that this leader has just encoded into body.
func (l *Lane) appendOwn(r *replica, c *engine.Command, body []byte) {
	l.enc.done(body)
	body = body[:len(body):len(body)]
	run := raftlog.Run{Term: c.IO.Last.Term, First: c.First, Count: int(c.Last - c.First + 1), Special: c.Entry != engine.EntryNormal, Body: body}
	if r.run == nil {
		r.run = &ownRun{}
	}
	*r.run = ownRun{term: run.Term, first: run.First, count: int32(run.Count), special: run.Special, body: body}
	l.log.Append(r.key, run)
}

// messageBytesMax is where an append request is split: the pieces carry the same stream and number.
const messageBytesMax = 1 << 20

// replicate sends an append request.
func (l *Lane) replicate(r *replica, c *engine.Command) {
	if s := r.slot(c.To); s != nil {
		s.commit = c.LogID
	}
	l.ev.appendReq = engine.AppendRequest{
		From: r.self(), Vote: c.Vote, Prev: c.Prev, Commit: c.LogID, Stream: c.Stream, Seq: c.Seq, SentAt: c.SentAt,
		Runs: l.ev.appendReq.Runs[:0], Memberships: l.ev.appendReq.Memberships[:0], Barriers: l.ev.appendReq.Barriers[:0],
	}
	m := &l.ev.appendReq
	if c.Last < c.First {
		o := l.outAppend(r, c.To, c.Stream, 0, 0)
		o.msgs = wire.AppendAppendRequest(o.msgs, r.header(c.To), m, nil)
		l.appended(r, o, c.To, c.Stream)
		return
	}
	if own := r.run; own != nil && own.first == c.First && own.first+uint64(own.count) == c.Last+1 && len(own.body) <= messageBytesMax {
		l.outRuns = append(l.outRuns[:0], wire.Run{Term: own.term, First: own.first, Count: int(own.count), Special: own.special, Body: own.body})
		o := l.outAppend(r, c.To, c.Stream, c.Last, len(own.body))
		o.msgs = wire.AppendAppendRequest(o.msgs, r.header(c.To), m, l.outRuns)
		l.appended(r, o, c.To, c.Stream)
		return
	}
	for first := c.First; first <= c.Last; {
		var err error
		l.logRuns, err = l.log.Entries(r.key, first, c.Last, messageBytesMax, l.logRuns[:0])
		if errors.Is(err, raftlog.ErrCold) {
			l.replicateCold(r, c.To, m, first, c.Last)
			return
		}
		if err != nil || len(l.logRuns) == 0 {
			l.lost(r, c.To, c.Stream) // purged meanwhile: the engine's next probe leads to a snapshot
			return
		}
		l.sendRuns(r, c.To, m, l.logRuns)
		first = m.Prev.Index + 1
	}
}

// sendRuns sends one append request with these runs, and moves m.Prev behind them.
func (l *Lane) sendRuns(r *replica, to engine.Peer, m *engine.AppendRequest, runs []raftlog.Run) {
	l.outRuns = l.outRuns[:0]
	for i := range runs {
		l.outRuns = append(l.outRuns, wire.Run(runs[i]))
	}
	size, last := wire.AppendRequestBytesMax(l.outRuns), &runs[len(runs)-1]
	o := l.outAppend(r, to, m.Stream, last.Last(), size)
	if size > frameBytesMax/2 && o.count > 0 {
		l.sendOut(o) // there may be no room for this one, which must not be the others' loss
	}
	o.msgs = wire.AppendAppendRequest(o.msgs, r.header(to), m, l.outRuns)
	clear(l.outRuns)
	l.appended(r, o, to, m.Stream)
	m.Prev = engine.LogID{Term: last.Term, Index: last.Last()}
}

// appended notes that an append request was added to o.
func (l *Lane) appended(r *replica, o *outbox, to engine.Peer, stream uint64) {
	o.streams = append(o.streams, outStream{r, to, stream})
	l.message(o)
}

// lost reports a message that could not be sent, as if it had been dropped.
func (l *Lane) lost(r *replica, to engine.Peer, stream uint64) {
	l.dropped = append(l.dropped, outStream{r, to, stream})
}

// replicateCold reads entries from segments, off the lane, and sends them if the stream is still the same then.
func (l *Lane) replicateCold(r *replica, to engine.Peer, m *engine.AppendRequest, first, last uint64) {
	read, err := l.log.Locate(r.key, first, last, messageBytesMax)
	if err != nil {
		l.lost(r, to, m.Stream)
		return
	}
	l.s.metrics.LogColdReads.Add(1)
	msg := *m // slices in it are empty
	msg.Runs, msg.Memberships, msg.Barriers = nil, nil, nil
	l.s.spawn(func() {
		runs, err := read.Read()
		l.box.putCall(func(l *Lane) {
			if r.removed || !r.eng.StreamLive(to, msg.Stream) {
				return
			}
			if err != nil || len(runs) == 0 {
				l.coldFailed(r, err)
				l.lost(r, to, msg.Stream)
				return
			}
			l.sendRuns(r, to, &msg, runs)
			if msg.Prev.Index < last {
				l.replicateCold(r, to, &msg, msg.Prev.Index+1, last)
			}
		})
	})
}

// coldFailed ends the process if the log itself cannot be read.
func (l *Lane) coldFailed(r *replica, err error) {
	if err != nil && !errors.Is(err, raftlog.ErrMoved) && !errors.Is(err, raftlog.ErrPurged) && !errors.Is(err, raftlog.ErrClosed) {
		l.s.fatal(fmt.Errorf("shard %d: reading the raft log: %w", r.key.Shard, err))
	}
}

// commitsMany is how many shards with a commit index to tell make their lane wait longer for a ride: with many shards each is written to less
// often, and a message of its own costs what a write costs.
const commitsMany = 256

// queueCommit remembers a commit index that followers must be told, so that it can ride on what is sent to them anyway. They need it
// only to apply: nobody waits for that (rule Engine4), and the next append request of a busy shard carries it.
func (l *Lane) queueCommit(r *replica, c *engine.Command) {
	if r.commitAt == 0 {
		if len(l.commits) == 0 {
			l.commitAt = l.now + engine.Instant(l.s.cfg.HeartbeatInterval/4)
		}
		l.commits = append(l.commits, pendingCommit{})
		r.commitAt = int32(len(l.commits))
	}
	l.commits[r.commitAt-1] = pendingCommit{r, c.Vote, c.LogID, c.SentAt}
	if r.bearing() { // who follows makes the children when it knows
		l.commitAt = l.now
	}
}

func (r *replica) bearing() bool { return r.birth != nil && r.birth.parent == r }

// sendCommits tells the queued commit indexes to followers that have not learnt them by an append request in the meantime. Where many wait, those that
// are younger than two heartbeat intervals wait on.
func (l *Lane) sendCommits() {
	if len(l.commits) == 0 || l.now < l.commitAt {
		return
	}
	wait := engine.Instant(0)
	if len(l.commits) > commitsMany {
		wait = 2 * engine.Instant(l.s.cfg.HeartbeatInterval)
	}
	left := l.commits[:0]
	for _, c := range l.commits {
		r := c.r
		r.commitAt = 0
		switch {
		case r.removed || !r.eng.IsLeader() || !c.untold():
		case l.now-c.sentAt < wait && !r.bearing():
			left = append(left, c)
			r.commitAt = int32(len(left))
		default:
			l.sendCommit(&c)
		}
	}
	clear(l.commits[len(left):])
	l.commits = left
	l.commitAt = l.now + max(wait/2, engine.Instant(l.s.cfg.HeartbeatInterval/4))
}

// untold tells whether some follower was not sent the commit index.
func (c *pendingCommit) untold() bool {
	for j := range c.r.peers {
		if c.r.peers[j].commit.Less(c.id) {
			return true
		}
	}
	return false
}

func (l *Lane) sendCommit(c *pendingCommit) {
	r := c.r
	l.ev.hb = engine.Heartbeat{From: r.self(), Vote: c.vote, Commit: c.id, SentAt: c.sentAt}
	for j := range r.peers {
		p := &r.peers[j]
		if !p.commit.Less(c.id) {
			continue
		}
		o := l.out(p.peer.Node)
		o.msgs = wire.AppendHeartbeat(o.msgs, r.header(p.peer), &l.ev.hb)
		l.message(o)
	}
}

// broadcastHeartbeat tells all members that the leader is there. A round that somebody waits for goes at once; the others
// ride in the next node heartbeat.
func (l *Lane) broadcastHeartbeat(r *replica, c *engine.Command) {
	urgent := r.reads != nil && len(r.reads.waiting) > 0
	l.ev.hb = engine.Heartbeat{From: r.self(), Vote: c.Vote, Commit: c.LogID, Round: c.Round, SentAt: c.SentAt}
	for j := range r.peers {
		p := r.peers[j].peer
		o := l.out(p.Node)
		if urgent {
			o.msgs = wire.AppendHeartbeat(o.msgs, r.header(p), &l.ev.hb)
			l.message(o)
			continue
		}
		o.awake = wire.AppendHeartbeat(o.awake, r.header(p), &l.ev.hb)
		o.awakeCount++
		l.dirty(o)
	}
}

// sendVote asks all voters for a vote or a pre-vote.
func (l *Lane) sendVote(r *replica, c *engine.Command) {
	r.refreshPeers()
	l.ev.voteReq = engine.VoteRequest{From: r.self(), Pre: c.Kind == engine.SendPreVote, Vote: c.Vote, LastLog: c.LogID, TransferOf: c.TransferOf}
	for _, v := range r.otherVoters() {
		p := v.peer
		o := l.out(p.Node)
		o.msgs = wire.AppendVoteRequest(o.msgs, r.header(p), &l.ev.voteReq)
		l.message(o)
	}
}

// createGrace is how long an uninitialised replica says that it waits to be created otherwise than by a snapshot.
const createGrace = engine.Duration(2e9)

// respond answers a peer.
func (l *Lane) respond(r *replica, c *engine.Command) {
	o := l.out(c.To.Node)
	h := r.header(c.To)
	switch c.Response {
	case engine.RespondVote:
		o.msgs = wire.AppendVoteResponse(o.msgs, h, c.VoteResponse)
	case engine.RespondAppend:
		// A replica that a message has just made is most likely about to be created from its descriptor, or by its parent's split:
		// the leader should not send it a snapshot at once (rule Split4).
		if c.AppendResponse.Uninitialised && l.now-r.bornAt < engine.Instant(createGrace) {
			c.AppendResponse.Waiting = true
		}
		if r.wantSnapshot { // rule Merge3
			c.AppendResponse.Uninitialised, c.AppendResponse.Waiting = true, false
		}
		o.msgs = wire.AppendAppendResponse(o.msgs, h, &c.AppendResponse)
	case engine.RespondHeartbeat:
		o.msgs = wire.AppendHeartbeatResponse(o.msgs, h, &c.HeartbeatResponse)
	case engine.RespondSnapshot:
		o.msgs = wire.AppendSnapshotResponse(o.msgs, h, c.SnapshotResponse)
	}
	l.message(o)
}
