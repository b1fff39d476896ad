package scheduler

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/fault"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// A split on one node (rules Split1 to Split4):
//
//	apply in P's lane ─► children made, each in its own lane ─► committed(P, split) synced ─► split checkpoint ─► settled
//	      │                  │
//	      └ P's overlay      └ they take part from here on; on the node of P's leader they lead
//	        is frozen
//
// The children are made in the turn that applies the split, after which nothing of P or of them has been handed to the log or to a peer:
// committed(P, split) is in the log before or with anything of theirs, so whatever they say after a sync of their own is said after its.
//
// Their first leader is not elected. The process that leads P in the term of the split entry has proposed that entry, and no other life of
// any replica of P ever leads in that term (rule Engine1): its replicas of the children lead in the term that they all were born in, in which
// nobody campaigns, for all start in it. So a replay of P, and a later leader of P that commits an inherited split, elect. What
// applies the split later than its leader finds it in office.
//
// From apply to settled, P and the children lie upon P's record and frozen overlay, and neither a cut, a link, a removal nor
// another barrier entry of any of them gets through (replica.birth). The split checkpoint is written a little later, or as soon as
// somebody waits for it. A crash before it is repaired by replaying P, whose log is kept until then.

const (
	// splitCampaignDelay is how long a leader of P that may not appoint its children waits before they campaign: the followers apply the
	// split a little later, and would be made by the candidates' messages before.
	splitCampaignDelay = engine.Duration(10e6)
	// splitFallback is when P's leader has the children campaign that have no leader yet.
	splitFallback = engine.Duration(150e6)
	// splitCheckpointDelay is how long the split checkpoint waits for those who do not wait for it: its flush would hold up the first
	// syncs of the children, which their clients wait for, here and on the other nodes.
	splitCheckpointDelay = engine.Duration(250e6)
	// splitCheckpointTurn is how much later than the node before it each further one begins, in the order of the parent's replicas: where
	// not two nodes flush at once, a quorum goes on.
	splitCheckpointTurn = engine.Duration(500e6)
	// sampleKeysMax is how many keys of each overlay are sampled at most: on the lane, in about a millisecond.
	sampleKeysMax = 1 << 14
)

// FaultHook, for tests in one process, is called at labelled steps of splits, merges, membership changes, snapshots and removals. It must be
// set before a scheduler is made. Real processes die at the same steps by package fault.
var FaultHook func(node engine.NodeID, id engine.ShardID, step string)

// step is one of those; it may be called from any goroutine.
func (s *Scheduler) step(id engine.ShardID, name string) {
	if FaultHook != nil {
		FaultHook(s.cfg.Node, id, name)
	}
	fault.At(name)
}

func (l *Lane) step(id engine.ShardID, name string) { l.s.step(id, name) }

// birth is a split that was applied on this node and whose checkpoint is not written yet. It belongs to the parent's lane; the
// lanes of the children see the plan, which does not change, and answer.
type birth struct {
	parent  *replica
	plan    *shard.Birth
	at      engine.LogID
	leads   bool // the parent led when it applied the split
	appoint bool // and that in the term of the entry: the children lead here, without an election
	waiting int  // children whose lanes have not answered, and the sync; the sync from the start, so that nobody takes it for complete before
	hurry   bool // somebody waits for the split checkpoint
	queued  bool // it is
	changes []state.Change
	born    []*replica
}

// Split cuts a shard of which this node must have the leader. done is called once, on a lane, when the split was applied here; its
// errors are package shard's: ErrVoid if the shard is not at the versions that sp names, ErrUnavailable if it may be tried again. A
// split that was applied already, with the same children, is done (rule Cluster6).
func (s *Scheduler) Split(id engine.ShardID, sp *shard.Split, done func(error)) {
	if s.stopped.Load() {
		done(errStopping)
		return
	}
	s.laneOf(id).box.putCall(func(l *Lane) { l.split(id, sp, done) })
}

func (l *Lane) split(id engine.ShardID, sp *shard.Split, done func(error)) {
	r := l.byShard[id]
	switch {
	case r == nil || r.machine == nil:
		done(fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound))
		return
	case !r.eng.IsLeader():
		l.provoke(r)
		done(l.notLeader(r))
		return
	}
	if err := r.machine.CheckSplit(sp); err != nil {
		l.splitAgain(r, sp, err, done)
		return
	}
	if r.barrier || r.ordered > 0 {
		done(&shard.UnavailableError{RetryAfter: retryAfter, Reason: "another split or merge of the shard is under way"})
		return
	}
	if l.settling(r) { // a cut is being written: the apply would wait for it
		l.expedite(r)
		r.ordered++
		l.whenSettled(r, func(l *Lane) {
			r.ordered--
			l.split(id, sp, done)
		})
		return
	}
	l.step(id, "split: propose")
	led := *sp
	led.Leader = l.s.cfg.Node
	l.propose(r, shard.AppendSplitEntry(nil, l.wall, &led), done)
}

// SampleSplitKeys finds keys that cut a shard of this node into parts of about the same size, by sampling: fewer if it holds too little.
// It holds up nobody: samples of what is not checkpointed are copied. done is called once, on a lane.
func (s *Scheduler) SampleSplitKeys(id engine.ShardID, parts int, done func(keys [][]byte, err error)) {
	if s.stopped.Load() {
		done(nil, errStopping)
		return
	}
	s.laneOf(id).box.putCall(func(l *Lane) { l.sampleSplitKeys(id, parts, 0, done) })
}

func (l *Lane) sampleSplitKeys(id engine.ShardID, parts, tries int, done func([][]byte, error)) {
	r := l.byShard[id]
	switch {
	case r == nil || r.machine == nil:
		done(nil, fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound))
		return
	case parts < 2 || parts > shard.SplitChildrenMax+1:
		done(nil, &shard.InvalidError{What: fmt.Sprintf("a split into %d parts", parts)})
		return
	case l.settling(r) && (r.ckpt.cut == nil || r.ckpt.queued): // the store does not have it in its own place, or not for long
		l.whenSettled(r, func(l *Lane) { l.sampleSplitKeys(id, parts, tries, done) })
		return
	}
	base := state.Record{Key: r.key, Applied: r.machine.Persisted(), Extents: r.machine.Extents()}
	samples := r.machine.Samples(sampleKeysMax)
	l.s.spawn(func() {
		keys, err := l.s.state.SplitKeys(base, parts, samples)
		l.box.putCall(func(l *Lane) {
			if errors.Is(err, state.ErrMoved) && tries < checksumTries {
				l.sampleSplitKeys(id, parts, tries+1, done)
				return
			}
			done(keys, err)
		})
	})
}

// splitAgain answers a split that cannot be applied: it is done if it was applied before.
func (l *Lane) splitAgain(r *replica, sp *shard.Split, err error, done func(error)) {
	if r.machine.Desc().Version <= sp.Version || len(sp.Children) == 0 {
		done(err)
		return
	}
	ids := make([]engine.ShardID, len(sp.Children))
	for i := range ids {
		ids[i] = sp.Children[i].Shard
	}
	if r.machine.HasLeft(ids) {
		done(nil)
		return
	}
	// This life has not seen it: the children are here, or were.
	l.s.haveAll(l, 0, ids, func(all bool) {
		if all {
			err = nil
		}
		done(err)
	})
}

// haveAll asks one lane after the other whether this node has, or had, replicas of all these shards; back is where it is answered.
func (s *Scheduler) haveAll(back *Lane, lane int, ids []engine.ShardID, answer func(bool)) {
	if lane == len(s.lanes) {
		back.box.putCall(func(*Lane) { answer(true) })
		return
	}
	s.lanes[lane].box.putCall(func(l *Lane) {
		for _, id := range ids {
			if s.laneOf(id) == l && l.byShard[id] == nil && !l.tombAbove(store.Key{Shard: id}) {
				back.box.putCall(func(*Lane) { answer(false) })
				return
			}
		}
		s.haveAll(back, lane+1, ids, answer)
	})
}

// propose proposes a barrier entry. done is called when it was applied here, or cannot be any more.
func (l *Lane) propose(r *replica, payload []byte, done func(error)) {
	r.barrier = true
	req := &Request{Kind: kindBarrier, Shard: r.key.Shard, Body: payload, began: l.now, Done: func(req *Request) {
		r.barrier = false
		done(req.Err)
	}}
	l.proposal = req
	l.token++
	l.ev.write = engine.Write{Token: l.token, Count: 1, Bytes: len(payload), Kind: engine.EntryBarrier}
	l.feed(r, &l.ev.write)
}

// appendBarrier encodes the proposal of r.
func (l *Lane) appendBarrier(r *replica, c *engine.Command) {
	req := l.proposal
	l.proposal = nil
	r.waiters.push(waiter{c.IO.Last.Term, c.First, req})
	l.appendOwn(r, c, raftlog.AppendEntry(nil, engine.EntryBarrier, req.Body))
}

// applyBarrier applies a barrier entry. wait: something must be waited for, nothing was changed.
func (l *Lane) applyBarrier(r *replica, id engine.LogID, payload []byte) (wait bool, err error) {
	if len(payload) > 0 && payload[0] != byte(shard.CommandSplit) {
		return l.applyMergeStep(r, id, payload)
	}
	if l.settling(r) && r.machine.Merge().Role == shard.MergeNone { // rule Split2; in a merge it is void
		l.expedite(r)
		r.apply.parked = true
		return true, nil
	}
	plan, err := r.machine.ApplySplit(id, payload, &l.ans)
	if plan != nil {
		l.splitApplied(r, id, plan)
	}
	return false, err
}

// settling tells whether a cut, a link, or the transaction of a split or merge of r is under way: nothing else may touch what the store holds of r.
func (l *Lane) settling(r *replica) bool {
	return r.ckpt.cut != nil || r.linking || r.birth != nil || r.merge != nil && r.merge.writing
}

// whenSettled calls f when that is over, or at once.
func (l *Lane) whenSettled(r *replica, f func(*Lane)) {
	if l.settling(r) {
		l.hurryBirth(r)
		if r.ckpt.queued {
			l.s.ckpt.expedite(r)
		}
		r.ckpt.then(f)
		return
	}
	f(l)
}

// expedite has the cut of r written although somebody holds it: a snapshot that streams is abandoned (rule State3); or the split checkpoint.
func (l *Lane) expedite(r *replica) {
	l.hurryBirth(r)
	c := &r.ckpt
	switch {
	case c.cut == nil:
	case c.queued:
		l.s.ckpt.expedite(r)
	case c.handed > 0: // it is written with the merge, or when that lets go
		l.abandonSnapshots(r)
	default:
		l.abandonSnapshots(r)
		c.queued = true
		r.machine.Share() // the holders go on reading it until they notice
		l.s.ckpt.put(ckptItem{r: r, change: c.cut.change}, true)
	}
}

// splitApplied starts the birth of the children.
func (l *Lane) splitApplied(r *replica, id engine.LogID, plan *shard.Birth) {
	b := &birth{parent: r, plan: plan, at: id, leads: r.eng.IsLeader(), waiting: 1, changes: []state.Change{plan.Parent}}
	b.appoint = b.leads && plan.Leader == l.s.cfg.Node && r.eng.Status().Vote.Term == id.Term
	r.birth = b
	l.s.metrics.Splits.Add(1)
	l.step(r.key.Shard, "split: applied")
	l.touch(r)
	events := make([]DescriptorEvent, 0, len(plan.Children)+1)
	events = append(events, l.descriptorEvent(r))
	for i := range plan.Children {
		d := plan.Children[i].Desc
		events = append(events, DescriptorEvent{Shard: d.Shard, Replica: plan.Children[i].Record.Replica, Descriptor: d})
	}
	l.announceAll(events)
	l.unborn = append(l.unborn, b)
}

// bearUnborn makes the children of the splits that were just applied. It is called between events, before the next message is looked
// at, which may be of a child's leader, and before the turn's log batch and frames are handed out.
func (l *Lane) bearUnborn() {
	for len(l.unborn) > 0 {
		b := l.unborn[0]
		l.unborn = l.unborn[1:]
		l.sendCommits() // the followers hear of the split before they hear from the children, and make theirs meanwhile
		l.sendAll()
		l.bear(b)
	}
}

// bear has the children made, and the split checkpoint written after all are and committed(P, split) is durable (rule Split1).
func (l *Lane) bear(b *birth) {
	l.afterSync(func(l *Lane) {
		l.step(b.parent.key.Shard, "split: synced")
		l.birthAnswered(b)
	})
	byLane := make([][]int, len(l.s.lanes))
	for i := range b.plan.Children {
		if rec := &b.plan.Children[i].Record; rec.Replica != 0 {
			at := l.s.laneOf(rec.Shard).id
			byLane[at] = append(byLane[at], i)
			b.waiting++
		}
	}
	for at, list := range byLane {
		switch {
		case len(list) == 0:
		case at == l.id:
			l.bearHere(b, list)
		default: // what it hands to the log comes behind this turn's batch
			l.afterSubmit(func() { l.s.lanes[at].box.putCall(func(l *Lane) { l.bearHere(b, list) }) })
		}
	}
}

// bearHere makes the children that belong to this lane. If P leads here and they may not be appointed, they campaign.
func (l *Lane) bearHere(b *birth, list []int) {
	for _, i := range list {
		l.bearChild(b, i)
	}
	if !b.leads {
		return
	}
	campaign := func(l *Lane) {
		for _, i := range list {
			if r := l.byShard[b.plan.Children[i].Record.Shard]; r != nil && r.machine != nil && r.eng.Leader() == (engine.Peer{}) {
				l.feed(r, &engine.Campaign{})
			}
		}
	}
	if !b.appoint {
		l.later(splitCampaignDelay, campaign)
	}
	l.later(splitFallback, campaign)
}

// bearChild makes one child, unless it exists or was removed (rule Split3): then its half of the data is garbage.
func (l *Lane) bearChild(b *birth, i int) {
	c := &b.plan.Children[i]
	key := c.Record.Key
	old := l.byShard[key.Shard]
	if l.tombAbove(key) || old != nil && (old.key != key || old.machine != nil) {
		l.answerBirth(b, i, nil)
		return
	}
	if old != nil && (old.ioAt != 0 || old.ioPending > 0 || old.linking || old.snapIn != nil) {
		l.later(createRetry, func(l *Lane) { l.bearChild(b, i) })
		return
	}
	m := shard.OpenChild(l.env, c, b.plan)
	r, err := l.initialise(old, &c.Record, m, c.Record.Applied.Term)
	if err != nil {
		l.s.fatal(fmt.Errorf("shard %d: child of %d: %w", key.Shard, b.parent.key.Shard, err))
		return
	}
	r.birth = b
	l.step(key.Shard, "split: child made")
	l.answerBirth(b, i, r)
	l.feed(r, tickEvent)
	if b.appoint {
		l.feed(r, leadEvent)
	}
}

// answerBirth tells the parent's lane that child i was made, or not (nil).
func (l *Lane) answerBirth(b *birth, i int, r *replica) {
	answer := func(l *Lane) {
		if r != nil {
			b.changes = append(b.changes, state.Change{Record: b.plan.Children[i].Record})
			b.born = append(b.born, r)
		}
		l.birthAnswered(b)
	}
	if home := b.parent.lane; home != l {
		home.box.putCall(answer)
		return
	}
	answer(l)
}

// birthAnswered has the split checkpoint written soon, when the last of what it needs has come.
func (l *Lane) birthAnswered(b *birth) {
	if b.waiting--; b.waiting > 0 {
		return
	}
	l.step(b.parent.key.Shard, "split: born")
	if b.hurry {
		l.writeBirth(b)
		return
	}
	l.later(splitCheckpointDelay+engine.Duration(b.turn())*splitCheckpointTurn, func(l *Lane) { l.writeBirth(b) })
}

// turn is how many nodes write their split checkpoint before this one.
func (b *birth) turn() int {
	list := b.parent.machine.Desc().Replicas
	return max(0, slices.IndexFunc(list, func(d shard.ReplicaDesc) bool { return d.Replica == b.parent.key.Replica }))
}

// hurryBirth has the split checkpoint that r settles with written now: somebody waits for it (rule Split2).
func (l *Lane) hurryBirth(r *replica) {
	if r.birth == nil {
		return
	}
	b := r.birth
	hurry := func(l *Lane) {
		switch b.hurry = true; {
		case b.queued:
			l.s.ckpt.expedite(b.parent)
		case b.waiting == 0:
			l.writeBirth(b)
		}
	}
	if home := b.parent.lane; home != l {
		home.box.putCall(hurry)
		return
	}
	hurry(l)
}

// writeBirth hands the split checkpoint to the checkpointer, once.
func (l *Lane) writeBirth(b *birth) {
	if b.queued {
		return
	}
	b.queued = true
	l.s.ckpt.put(ckptItem{r: b.parent, change: b.plan.Parent, birth: b}, b.hurry)
}

// birthWritten is called by the checkpointer: parent and children are durable, each in its own place.
func (s *Scheduler) birthWritten(b *birth) {
	b.parent.lane.step(b.parent.key.Shard, "split: checkpoint written")
	for _, l := range s.lanes {
		l.box.putCall(func(l *Lane) {
			if b.parent.lane == l {
				l.settled(b.parent, b.at)
				l.step(b.parent.key.Shard, "split: settled")
			}
			for _, r := range b.born {
				if r.lane == l {
					l.settled(r, engine.LogID{})
				}
			}
		})
	}
}

// settled ends the birth for one of its replicas.
func (l *Lane) settled(r *replica, at engine.LogID) {
	if r.removed {
		return
	}
	r.birth = nil
	r.machine.Release()
	if at != (engine.LogID{}) {
		l.ev.ckpt = engine.Checkpointed{LogID: at, PurgeBelow: l.purgeBelow(r, at)}
		l.feed(r, &l.ev.ckpt)
	}
	l.runAfter(r)
}

// runAfter goes on with what waited for the record of r to be replaced.
func (l *Lane) runAfter(r *replica) {
	after := r.ckpt.takeAfter()
	l.recordReplaced(r)
	for _, f := range after {
		f(l)
	}
}

// initialise gives a new replica its state machine and engine. old is the uninitialised one that a message has made before, or nil. Its
// vote is kept, and so is the promise that it may have given; what the log holds of a replica without a record is taken over
// (rules Split3, Log7). It starts in the given term, if its vote is of none later.
func (l *Lane) initialise(old *replica, rec *state.Record, m *shard.Machine, term uint64) (*replica, error) {
	rc := engine.Recovered{Purged: rec.Applied, Committed: rec.Applied, Applied: rec.Applied,
		Membership: rec.Membership, Previous: rec.Previous, Incarnation: l.s.cfg.Incarnation, Newborn: true}
	if o := l.takeOrphan(rec.Key); o != nil && old == nil && o.log.Chains(rec.Applied) {
		rc.Vote, rc.Purged, rc.Runs, rc.Committed, rc.Newborn = o.log.Vote, o.log.Purged, o.log.Runs, o.log.Committed, false
		if err := addSpecials(&rc, o.specials); err != nil {
			return nil, err
		}
	} else {
		rc.Vote = l.takeVote(rec.Key)
		if o != nil { // its entries lead nowhere, its vote counts
			rc.Vote = o.log.Vote
		}
		if old != nil {
			rc.Vote = old.eng.Status().Vote
			if rc.Vote.Committed { // it may have promised its leader to elect nobody else (rule Engine2)
				rc.GrantUntil = l.now + engine.Instant(l.s.cfg.ElectionTimeoutMin)
			}
		}
		l.log.Init(rec.Key, rc.Vote, rec.Applied)
	}
	rc.Vote = bornIn(term, rc.Vote)
	r := old
	if r == nil {
		r = l.newReplica(rec.Key, rc)
		if err := l.add(r); err != nil {
			return nil, err
		}
	} else {
		l.startEngine(r, rc)
	}
	r.machine = m
	if v := rc.Vote; v.Committed && v.Peer != r.self() {
		l.tellBehind(r, v)
	}
	return r, nil
}

// bornIn returns the vote of a replica whose state begins, or stands, in a term: its leader may have been appointed, so nobody campaigns in it.
func bornIn(term uint64, v engine.Vote) engine.Vote {
	if v.Term < term {
		return engine.Vote{Term: term}
	}
	return v
}

// tellBehind makes the leader of v send to this replica: it has told that leader that it holds nothing, and is there now; or it is stuck.
func (l *Lane) tellBehind(r *replica, v engine.Vote) {
	l.ev.hbResp = engine.HeartbeatResponse{From: r.self(), Vote: v, Behind: true, Last: r.eng.Status().Last}
	o := l.out(v.Peer.Node)
	o.msgs = wire.AppendHeartbeatResponse(o.msgs, r.header(v.Peer), &l.ev.hbResp)
	l.message(o)
}

// syncWait is something to be done when a batch of the log is durable.
type syncWait struct {
	batch uint64
	do    func(*Lane)
}

// afterSync calls do when all that this lane has handed to the log until the end of this turn is durable.
func (l *Lane) afterSync(do func(*Lane)) { l.syncNew = append(l.syncNew, do) }

// afterSubmit calls do at the end of this turn, when all that this lane has for the log is handed to it. It needs an afterSync in the same turn.
func (l *Lane) afterSubmit(do func()) { l.submitNew = append(l.submitNew, do) }

// noteSubmitted is called at the end of a turn; batch is 0 if there was nothing to submit.
func (l *Lane) noteSubmitted(batch uint64) {
	if batch != 0 {
		l.lastBatch = batch
	}
	for i, do := range l.submitNew {
		l.submitNew[i] = nil
		do()
	}
	l.submitNew = l.submitNew[:0]
	for i, do := range l.syncNew {
		l.syncNew[i] = nil
		if l.lastBatch <= l.syncedBatch {
			l.box.putCall(do)
			continue
		}
		l.syncWaits = append(l.syncWaits, syncWait{l.lastBatch, do})
	}
	l.syncNew = l.syncNew[:0]
}

// noteSynced is called when a batch is durable.
func (l *Lane) noteSynced(batch uint64) {
	l.syncedBatch = batch
	n := 0
	for n < len(l.syncWaits) && l.syncWaits[n].batch <= batch {
		n++
	}
	if n == 0 {
		return
	}
	ready := l.syncWaits[:n:n]
	l.syncWaits = append([]syncWait(nil), l.syncWaits[n:]...)
	for i := range ready {
		ready[i].do(l)
	}
}
