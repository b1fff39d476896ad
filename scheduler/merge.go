package scheduler

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/transport/wire"
)

// A merge of L with its right neighbour R is driven by the leader of L from what L has applied (rule Merge4); see package shard for the
// entries. R's leader may be elsewhere: orders and answers travel as raft messages, and are repeated until they have had effect.
//
//	L's leader: PrepareMerge ─► order Freeze ─► all of R has it ─► Merge          (500 ms)
//	                                └── too late, or another leader of L ─► AbortMerge ─► order Unfreeze ─► EndMerge
//
// On every node, applying Merge in L waits until R's replica has applied its Freeze, takes a cut of it, and writes both in one
// transaction (rule Merge3); L applies nothing else until that is durable. Nothing that R is told after its Freeze has an effect, so R goes
// on living until then. A crash before it is repaired by applying the same entries again.

const (
	// mergeTimeout is how long a merge may take from its proposal to the proposal of Merge.
	mergeTimeout = engine.Duration(500e6)
	mergeTick    = engine.Duration(5e6)
	orderEvery   = engine.Duration(5e6)
	// mergeOverlayMax is the overlay over which a shard is checkpointed first, so that the merge's own transaction is short.
	mergeOverlayMax = 256 << 10
	// rightMissingMax is how long a Merge waits for a replica of R that is not there, or will not come to its Freeze, before L asks for a snapshot.
	rightMissingMax = engine.Duration(2e9)
	// rightMissingEvery is how often it asks.
	rightMissingEvery = engine.Duration(250e6)
)

// MergeSpec names two neighbours and the exact versions at which they are to be merged (rule Cluster6).
type MergeSpec struct {
	Left, Right                       engine.ShardID
	LeftVersion, LeftConfVersion      uint64
	RightVersion, RightConfVersion    uint64
	rightDesc                         *shard.Descriptor
	rightGone, rightBusy, checkpoints bool
}

// mergeDrive is a merge that this leader of L drives, from the proposal of PrepareMerge on.
type mergeDrive struct {
	term     uint64
	deadline engine.Instant
	frozen   engine.LogID // all of R has it
	void     bool         // R cannot be frozen
	done     func(error)
}

// absorb is a Merge that is being applied. It belongs to L's lane, but for cancelled.
type absorb struct {
	left      *replica
	at        engine.LogID
	payload   []byte
	needs     *shard.MergeStep
	since     engine.Instant
	cancelled atomic.Bool

	right    *replica
	rightGen uint64
	plan     *shard.Absorption
	writing  bool
	written  bool
}

// Merge makes L absorb its right neighbour R. This node must have the leader of L; all replicas of both must be alive, on the same nodes.
// done is called once, on a lane: nil when L has absorbed R here, or had before; ErrVoid if one of them is at other versions;
// ErrUnavailable if the merge was given up, or cannot be begun now: then it may be tried again.
func (s *Scheduler) Merge(sp MergeSpec, done func(error)) {
	if s.stopped.Load() {
		done(errStopping)
		return
	}
	s.laneOf(sp.Left).box.putCall(func(l *Lane) { l.mergeBegin(sp, done) })
}

// mergeBegin looks at L, and then asks R's lane.
func (l *Lane) mergeBegin(sp MergeSpec, done func(error)) {
	r := l.byShard[sp.Left]
	switch {
	case r == nil || r.machine == nil:
		done(fmt.Errorf("shard %d: %w", sp.Left, shard.ErrShardNotFound))
		return
	case !r.eng.IsLeader():
		l.provoke(r)
		done(l.notLeader(r))
		return
	}
	if r.ordered > 0 { // by somebody who waits no more, and asks again: one is enough
		done(busyError("another split or merge of the shard is under way"))
		return
	}
	if !sp.checkpoints && r.machine.LiveBytes() > mergeOverlayMax {
		l.checkpoint(r)
	}
	r.ordered++
	l.s.laneOf(sp.Right).box.putCall(func(l2 *Lane) {
		back := func(*Lane) { l.box.putCall(func(l *Lane) { l.mergeCheck(r, sp, done) }) }
		right := l2.byShard[sp.Right]
		if right == nil || right.machine == nil {
			sp.rightGone = l2.tombAbove(store.Key{Shard: sp.Right})
			back(l2)
			return
		}
		sp.rightDesc = right.machine.Desc()
		sp.rightBusy = right.machine.Merge().Role != shard.MergeNone || right.birth != nil
		if !sp.checkpoints && right.machine.LiveBytes() > mergeOverlayMax {
			l2.checkpoint(right)
			l2.whenSettled(right, back)
			return
		}
		back(l2)
	})
}

// mergeCheck knows both, and proposes PrepareMerge.
func (l *Lane) mergeCheck(r *replica, sp MergeSpec, done func(error)) {
	r.ordered--
	if r.removed || !r.eng.IsLeader() {
		done(l.notLeader(r))
		return
	}
	if l.settling(r) && !sp.checkpoints {
		sp.checkpoints = true
		r.ordered++
		l.whenSettled(r, func(l *Lane) {
			r.ordered--
			l.mergeBegin(sp, done)
		})
		return
	}
	d := r.machine.Desc()
	if sp.rightDesc == nil {
		if sp.rightGone && d.Version > sp.LeftVersion {
			done(nil)
			return
		}
		done(fmt.Errorf("shard %d: %w", sp.Right, shard.ErrShardNotFound))
		return
	}
	step := shard.MergeStep{Version: sp.LeftVersion, ConfVersion: sp.LeftConfVersion, Other: sp.Right, OtherVersion: sp.RightVersion,
		OtherConfVersion: sp.RightConfVersion}
	err := r.machine.CheckMerge(shard.CommandPrepareMerge, &step)
	if err == nil {
		err = l.mergeObjection(r, d, &sp)
	}
	if err != nil {
		done(err)
		return
	}
	r.drive = &mergeDrive{term: r.eng.Status().Vote.Term, deadline: l.now + engine.Instant(mergeTimeout), done: done}
	l.step(sp.Left, "merge: propose")
	l.propose(r, shard.AppendMergeEntry(nil, shard.CommandPrepareMerge, l.wall, &step), func(err error) {
		if err != nil {
			l.endDrive(r, err)
		}
	})
}

// mergeObjection tells why the two cannot be merged now (rule Merge4).
func (l *Lane) mergeObjection(r *replica, d *shard.Descriptor, sp *MergeSpec) error {
	right := sp.rightDesc
	switch {
	case right.Version != sp.RightVersion || right.ConfVersion != sp.RightConfVersion:
		return &shard.VoidError{What: "merge", Now: *right}
	case len(d.End) == 0 || !bytes.Equal(d.End, right.Start):
		return &shard.InvalidError{What: fmt.Sprintf("shard %d is not the right neighbour of shard %d", sp.Right, sp.Left)}
	case len(d.Replicas) != len(right.Replicas):
		return &shard.InvalidError{What: "the shards have their replicas on different nodes"}
	case sp.rightBusy || r.barrier || r.birth != nil || r.drive != nil:
		return busyError("another split or merge of one of the shards is under way")
	}
	for _, a := range d.Replicas {
		b, ok := right.OnNode(a.Node)
		if !ok || a.Role != b.Role {
			return &shard.InvalidError{What: "the shards have their replicas on different nodes"}
		}
		if a.Node != l.s.cfg.Node && !l.s.live.up(a.Node) {
			return busyError(fmt.Sprintf("node %d is not alive", a.Node))
		}
	}
	last := r.eng.Status().Last.Index
	for _, p := range r.eng.Progress(nil) {
		if p.State != engine.ProgressPipeline || p.Match.Index+uint64(l.s.cfg.EntriesPerMessage) < last {
			return busyError(fmt.Sprintf("the replica of shard %d on node %d has not caught up", sp.Left, p.Peer.Node))
		}
	}
	return nil
}

// endDrive tells whoever asked for the merge how it ended.
func (l *Lane) endDrive(r *replica, err error) {
	if d := r.drive; d != nil {
		r.drive = nil
		d.done(err)
	}
}

// noteMerging has r driven until it is in no merge any more.
func (l *Lane) noteMerging(r *replica) {
	if role := r.machine.Merge().Role; role != shard.MergePreparing && role != shard.MergeAborting || r.merging {
		return
	}
	r.merging = true
	l.mergers = append(l.mergers, r)
	if len(l.mergers) == 1 {
		l.later(mergeTick, (*Lane).driveAll)
	}
}

func (l *Lane) driveAll() {
	n := 0
	for _, r := range l.mergers {
		role := shard.MergeNone
		if !r.removed && r.machine != nil {
			role = r.machine.Merge().Role
		}
		if role != shard.MergePreparing && role != shard.MergeAborting {
			r.merging = false
			continue
		}
		l.mergers[n] = r
		n++
		l.drive(r)
	}
	clear(l.mergers[n:])
	l.mergers = l.mergers[:n]
	if n > 0 {
		l.later(mergeTick, (*Lane).driveAll)
	}
}

// drive does the next thing for the merge of which r is L, if it leads and has applied its own blank entry: what it inherits from
// an earlier leader is applied by then.
func (l *Lane) drive(r *replica) {
	if !r.eng.IsLeader() || r.barrier {
		return
	}
	term := r.eng.Status().Vote.Term
	if r.machine.Applied().Term != term {
		return
	}
	ms, d, dr := r.machine.Merge(), r.machine.Desc(), r.drive
	step := shard.MergeStep{Version: d.Version, ConfVersion: d.ConfVersion, Other: ms.Other, OtherVersion: ms.OtherVersion,
		OtherConfVersion: ms.OtherConfVersion}
	switch {
	case ms.Role == shard.MergePreparing && (dr == nil || dr.term != term || dr.void || l.now >= dr.deadline):
		l.step(r.key.Shard, "merge: abort")
		l.proposeMerge(r, shard.CommandAbortMerge, &step)
	case ms.Role == shard.MergePreparing && dr.frozen != engine.LogID{}:
		l.step(r.key.Shard, "merge: decide")
		step.Freeze = dr.frozen
		l.proposeMerge(r, shard.CommandMerge, &step)
	case ms.Role == shard.MergePreparing:
		l.order(r, shard.CommandFreeze)
	case ms.Role == shard.MergeAborting && r.otherMoved:
		l.proposeMerge(r, shard.CommandEndMerge, &step)
	case ms.Role == shard.MergeAborting:
		l.order(r, shard.CommandUnfreeze)
	}
}

// proposeMerge proposes a step in the shard's own log. If it is not accepted, or void, the next tick sees to it.
func (l *Lane) proposeMerge(r *replica, kind shard.CommandKind, s *shard.MergeStep) {
	l.propose(r, shard.AppendMergeEntry(nil, kind, l.wall, s), func(error) {})
}

// order tells R's leader, by way of the local replica of R, what to do.
func (l *Lane) order(r *replica, kind shard.CommandKind) {
	if r.orderedAt != 0 && l.now-r.orderedAt < engine.Instant(orderEvery) {
		return
	}
	r.orderedAt = l.now
	ms, from := r.machine.Merge(), r.self()
	o := wire.MergeOrder{Command: uint8(kind), Other: r.key.Shard, Version: ms.OtherVersion, ConfVersion: ms.OtherConfVersion}
	l.s.laneOf(ms.Other).box.putCall(func(l *Lane) {
		right := l.byShard[ms.Other]
		switch {
		case right == nil && l.tombAbove(store.Key{Shard: ms.Other}):
			l.answerOrder(ms.Other, from, &o, wire.OrderVoid, engine.LogID{}, 0)
		case right == nil || right.machine == nil:
		case right.eng.IsLeader():
			l.takeOrder(right, from, &o)
		case right.eng.Leader() == engine.Peer{}:
			l.provoke(right)
		default:
			to := right.eng.Leader()
			out := l.out(to.Node)
			out.msgs = wire.AppendMergeOrder(out.msgs, wire.Header{Shard: ms.Other, From: from.Replica, To: to.Replica}, &o)
			l.message(out)
		}
	})
}

// takeOrder is R's leader being told to freeze or unfreeze by a leader of L.
func (l *Lane) takeOrder(r *replica, from engine.Peer, o *wire.MergeOrder) {
	if r.machine == nil || !r.eng.IsLeader() || r.machine.Applied().Term != r.eng.Status().Vote.Term {
		return
	}
	d, ms := r.machine.Desc(), r.machine.Merge()
	step := shard.MergeStep{Version: o.Version, ConfVersion: o.ConfVersion, Other: o.Other}
	kind := shard.CommandKind(o.Command)
	switch {
	case d.Version < o.Version || d.Version == o.Version && d.ConfVersion < o.ConfVersion:
		return // not there yet
	case kind == shard.CommandFreeze && ms.Role == shard.MergeFrozen && ms.Other == o.Other:
		for _, p := range r.eng.Progress(nil) {
			if p.Match.Index < ms.Freeze.Index {
				return // rule Merge3
			}
		}
		l.answerOrder(r.key.Shard, from, o, wire.OrderFrozen, ms.Freeze, r.key.Replica)
	case kind != shard.CommandFreeze && kind != shard.CommandUnfreeze:
	case r.machine.CheckMerge(kind, &step) != nil:
		l.answerOrder(r.key.Shard, from, o, wire.OrderVoid, engine.LogID{}, r.key.Replica)
	case !r.barrier && r.birth == nil:
		l.proposeMerge(r, kind, &step)
	}
}

// answerOrder answers the leader of L at from.
func (l *Lane) answerOrder(right engine.ShardID, from engine.Peer, o *wire.MergeOrder, result uint8, freeze engine.LogID, self engine.ReplicaID) {
	a := *o
	a.Result, a.Freeze, a.Other = result, freeze, right
	if from.Node == l.s.cfg.Node {
		l.s.laneOf(o.Other).box.putCall(func(l *Lane) {
			if r := l.byShard[o.Other]; r != nil && r.key.Replica == from.Replica {
				l.orderAnswered(r, &a)
			}
		})
		return
	}
	out := l.out(from.Node)
	out.msgs = wire.AppendMergeOrder(out.msgs, wire.Header{Shard: o.Other, From: self, To: from.Replica}, &a)
	l.message(out)
}

// orderAnswered is L's leader hearing of R's.
func (l *Lane) orderAnswered(r *replica, a *wire.MergeOrder) {
	if r.machine == nil {
		return
	}
	ms := r.machine.Merge()
	if ms.Other != a.Other || ms.OtherVersion != a.Version || ms.OtherConfVersion != a.ConfVersion {
		return
	}
	switch kind := shard.CommandKind(a.Command); {
	case kind == shard.CommandUnfreeze && ms.Role == shard.MergeAborting:
		r.otherMoved = a.Result == wire.OrderVoid // its version was raised
	case kind == shard.CommandFreeze && ms.Role == shard.MergePreparing && r.drive != nil:
		if a.Result == wire.OrderVoid {
			r.drive.void = true
		} else {
			l.step(r.key.Shard, "merge: frozen everywhere")
			r.drive.frozen = a.Freeze
		}
	default:
		return
	}
	l.drive(r)
}

// mergeMessage takes an order or an answer of another node.
func (l *Lane) mergeMessage(r *replica, from engine.NodeID, o *wire.MergeOrder, replica engine.ReplicaID) {
	if o.Result == wire.OrderGiven {
		l.takeOrder(r, engine.Peer{Node: from, Replica: replica}, o)
		return
	}
	l.orderAnswered(r, o)
}

// applyMergeStep applies a merge entry.
func (l *Lane) applyMergeStep(r *replica, id engine.LogID, payload []byte) (wait bool, err error) {
	if r.birth != nil { // rule Split2
		l.hurryBirth(r)
		r.apply.parked = true
		return true, nil
	}
	if mg := r.merge; mg != nil && mg.at == id && mg.written {
		l.finishMerge(r, mg)
		return false, nil
	}
	before := r.machine.Merge().Role
	needs, err := r.machine.ApplyMergeStep(id, payload, &l.ans)
	switch {
	case err != nil:
		return false, err
	case needs != nil:
		l.applyMerge(r, id, payload, needs)
		return true, nil
	case l.ans.Refused != nil:
		return false, nil
	}
	r.otherMoved, r.orderedAt = false, 0
	role := r.machine.Merge().Role
	switch {
	case role == shard.MergePreparing:
		l.step(r.key.Shard, "merge: prepared")
	case role == shard.MergeFrozen:
		l.step(r.key.Shard, "merge: frozen")
	case role == shard.MergeAborting:
		l.step(r.key.Shard, "merge: aborted")
		l.endDrive(r, busyError("the merge was given up"))
	case before == shard.MergeFrozen:
		l.step(r.key.Shard, "merge: unfrozen")
	case before == shard.MergeAborting:
		l.step(r.key.Shard, "merge: ended")
	}
	l.noteMerging(r)
	l.announce(r)
	return false, nil
}

// applyMerge suspends the apply of L until R's lane has handed over (rule Merge3).
func (l *Lane) applyMerge(r *replica, id engine.LogID, payload []byte, needs *shard.MergeStep) {
	r.apply.parked = true
	if r.merge != nil && r.merge.at == id {
		return // under way
	}
	l.step(r.key.Shard, "merge: applying")
	mg := &absorb{left: r, at: id, payload: bytes.Clone(payload), needs: needs, since: l.now}
	r.merge = mg
	l.s.laneOf(needs.Other).box.putCall(func(l *Lane) { l.handRight(mg) })
}

// cancelMerge gives up waiting, because a snapshot replaces L.
func (l *Lane) cancelMerge(r *replica) {
	if r.merge != nil && !r.merge.writing {
		r.merge.cancelled.Store(true)
		r.merge = nil
	}
}

// handRight takes a cut of the local replica of R, as soon as it has applied its Freeze.
func (l *Lane) handRight(mg *absorb) {
	if mg.cancelled.Load() {
		return
	}
	again := func(l *Lane) { l.handRight(mg) }
	r := l.byShard[mg.needs.Other]
	if r == nil || r.machine == nil {
		if l.missing(mg) {
			return
		}
		l.later(2*mergeTick, again)
		return
	}
	if r.machine.Applied().Index < mg.needs.Freeze.Index {
		l.feed(r, &engine.Committed{LogID: mg.needs.Freeze})
		if r.machine.Applied().Index < mg.needs.Freeze.Index {
			if never := r.stuck() || r.eng.Status().Last.Index < mg.needs.Freeze.Index; never && l.missing(mg) { // nobody may be left to bring it there
				return
			}
			l.later(createRetry, again)
			return
		}
	}
	if l.settling(r) && !(r.ckpt.cut != nil && !r.ckpt.queued) {
		l.whenSettled(r, again)
		return
	}
	if r.ckpt.cut != nil && r.ckpt.cut.change.Record.Applied.Index < mg.needs.Freeze.Index {
		l.expedite(r) // a cut from before the Freeze
		l.whenSettled(r, again)
		return
	}
	if !l.hold(r) {
		l.later(createRetry, again)
		return
	}
	r.ckpt.handed++
	l.step(r.key.Shard, "merge: right cut")
	gen, change := r.ckpt.gen, r.ckpt.cut.change
	mg.left.lane.box.putCall(func(l *Lane) { l.rightReady(mg, r, gen, change) })
}

// missing has L ask for a snapshot, and R's lane look again, if the replica of R has been missing for long.
func (l *Lane) missing(mg *absorb) bool {
	if l.now-mg.since <= engine.Instant(rightMissingMax) {
		return false
	}
	mg.left.lane.box.putCall(func(l *Lane) { l.missRight(mg) })
	l.later(rightMissingEvery, func(l *Lane) { l.handRight(mg) })
	return true
}

// missRight has L's replica ask for a snapshot from behind the Merge, for the replica of R is not here, or stuck. Its log is complete, so its leader sends it
// nothing by itself, and may sleep: it must be woken. If it leads, nobody sends it a snapshot: it leaves the office to another one.
func (l *Lane) missRight(mg *absorb) {
	r := mg.left
	if r.removed || r.merge != mg {
		return
	}
	if !r.wantSnapshot {
		r.wantSnapshot = true
		l.s.logger.Warn("a merge waits for a snapshot, the right shard's replica is not here, or stuck", "shard", uint64(r.key.Shard), "right", uint64(mg.needs.Other))
		l.leaveOffice(r)
	}
	l.provoke(r)
	if v := r.eng.Status().Vote; v.Committed && v.Peer != r.self() {
		l.tellBehind(r, v)
	}
}

// rightReady writes L and the end of R in one transaction.
func (l *Lane) rightReady(mg *absorb, right *replica, gen uint64, change state.Change) {
	r := mg.left
	letGo := func() {
		right.lane.box.putCall(func(l *Lane) {
			right.ckpt.handed--
			l.letGo(right, gen)
		})
	}
	if r.removed || r.merge != mg || !r.apply.active {
		letGo()
		return
	}
	if l.settling(r) {
		l.expedite(r)
		l.whenSettled(r, func(l *Lane) { l.rightReady(mg, right, gen, change) })
		return
	}
	plan, err := r.machine.Absorb(mg.at, mg.payload, &change)
	if err != nil {
		letGo()
		l.stopReplica(r, err)
		return
	}
	mg.plan, mg.right, mg.rightGen, mg.writing = plan, right, gen, true
	l.s.ckpt.put(ckptItem{r: r, change: plan.Changes[0], merge: mg}, true)
}

// mergeWritten is called by the checkpointer: L has absorbed R, durably.
func (s *Scheduler) mergeWritten(mg *absorb) {
	s.step(mg.left.key.Shard, "merge: checkpoint written")
	mg.right.lane.box.putCall(func(l *Lane) { l.buried(mg.right) })
	mg.left.lane.box.putCall(func(l *Lane) {
		mg.written = true // it goes on settling until it is visible: the entry may have to be read again
		l.resume(mg.left, mg.left.apply.gen, nil)
	})
}

// buried forgets a replica whose tombstone is durable (rule Log7). What its clients wait for never had an effect: it stands behind Freeze.
func (l *Lane) buried(r *replica) {
	l.noteRemoved(r.key)
	l.gravestone(r.key)
	if !r.removed {
		err := &shard.UnavailableError{RetryAfter: retryAfter, Reason: "the shard was merged into its left neighbour"}
		l.dropRequests(r, err, err)
		l.drop(r)
	}
	l.log.Drop(r.key)
	l.step(r.key.Shard, "merge: right buried")
	for _, f := range r.ckpt.takeAfter() { // whoever waited for it to settle finds it gone
		f(l)
	}
}

// finishMerge makes the Merge visible, after its transaction.
func (l *Lane) finishMerge(r *replica, mg *absorb) {
	r.machine.Absorbed(mg.plan, &l.ans)
	r.merge, r.wantSnapshot = nil, false
	l.s.metrics.Merges.Add(1)
	l.step(r.key.Shard, "merge: done")
	l.touch(r)
	l.announceAll([]DescriptorEvent{l.descriptorEvent(r), {Shard: mg.plan.Right.Shard, Descriptor: mg.plan.Right, Absorber: r.key.Shard}})
	l.box.putCall(func(l *Lane) {
		l.endDrive(r, nil)
		if r.removed {
			return
		}
		l.ev.ckpt = engine.Checkpointed{LogID: mg.at, PurgeBelow: l.purgeBelow(r, mg.at)}
		l.feed(r, &l.ev.ckpt)
		if !l.settling(r) {
			l.runAfter(r)
		}
	})
}

// covered is a replica that was silenced because the shard by has absorbed its own.
type covered struct {
	r  *replica
	by engine.ShardID
}

// takeCovered ends, lane by lane, the replicas of this node that desc, of a snapshot that is about to be linked, proves to be dead: their
// start lies in its range and its version is above theirs (rules Split5, Merge3). It returns the tombstones to be written with it. Only with
// it: until then the data of the absorbed shard may be on this node in that replica alone, and a start must find it. If the link fails
// they are silent, and covered, and the next link that proves them dead takes them again.
//
// Whenever it has to wait it begins again at the first lane: what it waits for may bear children, in any lane.
func (s *Scheduler) takeCovered(lane int, desc *shard.Descriptor, dead []state.Change, then func([]state.Change)) {
	if lane == len(s.lanes) {
		then(dead)
		return
	}
	s.lanes[lane].box.putCall(func(l *Lane) {
		again := func(*Lane) { s.takeCovered(0, desc, dead, then) }
		if l.bearing() {
			l.later(createRetry, again)
			return
		}
		var list []*replica
		for _, r := range l.list {
			if r.machine == nil || !desc.ProvesDead(r.machine.Desc()) {
				continue
			}
			if l.settling(r) {
				l.expedite(r)
				l.whenSettled(r, again)
				return
			}
			list = append(list, r)
		}
		for _, r := range list {
			l.s.logger.Info("replica was absorbed", "shard", uint64(r.key.Shard), "by", uint64(desc.Shard))
			l.noteRemoved(r.key)
			l.dropRequests(r, shard.ErrShardNotFound, shard.ErrAmbiguous)
			l.drop(r)
			l.covered[r.key] = covered{r, desc.Shard}
		}
		for _, key := range slices.SortedFunc(maps.Keys(l.covered), store.Key.Compare) {
			c := l.covered[key]
			// One that is being buried already has its tombstone written by another link, which it waits for.
			if _, pending := l.burials[key]; pending || !desc.ProvesDead(c.r.machine.Desc()) {
				continue
			}
			l.burials[key] = nil
			l.covered[key] = covered{c.r, desc.Shard}
			dead = append(dead, state.Change{Record: shard.TombstoneRecord(key, c.r.machine.Applied())})
		}
		s.takeCovered(lane+1, desc, dead, then)
	})
}

// dropCovered drops the logs of replicas whose tombstones are durable.
func (s *Scheduler) dropCovered(dead []state.Change) {
	for i := range dead {
		key := dead[i].Record.Key
		s.laneOf(key.Shard).box.putCall(func(l *Lane) {
			if c, ok := l.covered[key]; ok {
				c.r.machine.Close() // it was settled: nobody reads its overlays
				delete(l.covered, key)
			}
			l.gravestone(key)
			l.log.Drop(key)
			l.answerBurial(key, nil)
		})
	}
}

// leaveCovered tells those who wait for the tombstones of a link that it has failed.
func (s *Scheduler) leaveCovered(dead []state.Change, err error) {
	for i := range dead {
		key := dead[i].Record.Key
		s.laneOf(key.Shard).box.putCall(func(l *Lane) {
			l.answerBurial(key, err)
			delete(l.burials, key)
		})
	}
}
