package scheduler

import (
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
)

const (
	// applyBytesMax is how much of the log one look into it brings.
	applyBytesMax = 4 << 20
	// needKeysMax bounds the keys that one suspended apply fetches at once, for itself and for the entries behind it.
	needKeysMax = 256
)

// applyState is an Apply command in progress: the engine has at most one outstanding.
type applyState struct {
	next uint64
	last uint64
	// done: all of it is applied, and the engine is not told yet.
	active, done bool
	// parked: a read came back for a record that is just being replaced; go on when the checkpoint is done (rule State1).
	parked bool
	held   Stage // what its entries had waited for until began
	// gen moves when an apply is given up, so that a read that comes back later is not taken for one of the next.
	gen   uint32
	job   *state.ReadJob // prefetched values; used as long as they are valid
	began engine.Instant // when the Apply came
}

// applyRange starts to apply the entries first..last. They are durable in the local log, so that a checkpoint never contains
// an entry that is not.
func (l *Lane) applyRange(r *replica, first, last uint64) {
	a := &r.apply
	if r.machine == nil {
		panic(fmt.Sprintf("scheduler: shard %d: apply to an uninitialised replica", r.key.Shard))
	}
	a.active, a.next, a.last, a.job = true, first, last, nil
	a.began, a.held = l.now, StageReplication
	switch {
	case l.afterApply:
		a.held = StageApply
	case l.bySync:
		a.held = StageLogSync
	}
	l.applyMore(r, nil)
}

// applyMore goes on applying, with entries read from segments if given, until all is done or something must be waited for.
func (l *Lane) applyMore(r *replica, cold []raftlog.Run) {
	a := &r.apply
	if r.linking {
		a.parked = true // a snapshot replaces the state just now
		return
	}
	before := l.env.Arena.Grown()
	l.applyRuns(r, cold)
	l.grown(l.env.Arena.Grown() - before)
	if a.active {
		l.noteDirty(r) // what is held waits for the checkpoint of what was applied
		return
	}
	if a.done {
		l.applied(r)
	}
}

// applyRuns is the loop of applyMore.
func (l *Lane) applyRuns(r *replica, cold []raftlog.Run) {
	a := &r.apply
	for a.active && a.next <= a.last {
		if l.holdApply(r) {
			return
		}
		runs := cold
		cold = nil
		if runs == nil {
			var err error
			l.logRuns, err = l.log.Entries(r.key, a.next, a.last, applyBytesMax, l.logRuns[:0])
			switch {
			case errors.Is(err, raftlog.ErrCold):
				l.applyCold(r)
				return
			case err != nil:
				l.s.fatal(fmt.Errorf("shard %d: entries %d to %d are committed and not in the log: %w", r.key.Shard, a.next, a.last, err))
				return
			}
			runs = l.logRuns
		}
		before := a.next
		for i := range runs {
			if !l.applyRun(r, &runs[i]) {
				return
			}
		}
		if a.next == before {
			l.s.fatal(fmt.Errorf("shard %d: the log has nothing at entry %d", r.key.Shard, a.next))
			return
		}
	}
	if a.active {
		a.active, a.done, a.job = false, true, nil
	}
}

// applyRun applies the entries of a run from a.next on. False: something must be waited for.
func (l *Lane) applyRun(r *replica, run *raftlog.Run) bool {
	a := &r.apply
	cut := raftlog.CutRun(*run, a.next, a.last)
	if cut.Count <= 0 {
		return true
	}
	id := engine.LogID{Term: cut.Term, Index: cut.First}
	count := 0
	for it := raftlog.NewIter(cut.Body); it.Next(); id.Index++ {
		if cut.Count > 1 && count%state.TouchMax == 0 {
			touchAhead(r, it)
		}
		var err error
		switch it.Kind {
		case engine.EntryNormal:
			err = r.machine.Apply(id, it.Payload, a.job, &l.ans)
			if errors.Is(err, shard.ErrCold) {
				l.count.applied += uint64(count)
				l.applyFetch(r, cut, id.Index)
				return false
			}
		case engine.EntryBarrier:
			var wait bool
			if wait, err = l.applyBarrier(r, id, it.Payload); wait {
				l.count.applied += uint64(count)
				return false
			}
		case engine.EntryBlank:
			err = r.machine.ApplyBlank(id)
			l.ans.Reset()
		case engine.EntryMembership:
			err = l.applyMembership(r, id, it.Payload)
			l.ans.Reset()
		default:
			err = fmt.Errorf("%w: entry kind %d", shard.ErrUnknownCommand, it.Kind)
		}
		if err != nil {
			l.stopReplica(r, err)
			return false
		}
		if l.s.probe != nil {
			l.s.probe.Applied(r.key, id, it.Kind, it.Payload, r.machine, &l.ans)
		}
		a.next = id.Index + 1
		count++
		if r.waiters.front() != nil {
			l.settle(r, id, &l.ans)
		}
	}
	l.count.applied += uint64(count)
	return true
}

// touchAhead has the machine touch what the entry of it and some behind it will change.
func touchAhead(r *replica, it raftlog.Iter) {
	var payloads [state.TouchMax][]byte
	n := 0
	for ok := true; ok && n < len(payloads); ok = it.Next() {
		payloads[n] = it.Payload
		n++
	}
	r.machine.Touch(payloads[:n])
}

func (l *Lane) applyMembership(r *replica, id engine.LogID, payload []byte) error {
	rd := mp.NewReader(payload)
	m := raftlog.ReadMembership(&rd)
	if err := rd.Finish(); err != nil {
		return err
	}
	joint := len(r.machine.Membership().Membership.Voters) > 1
	if err := r.machine.ApplyMembership(id, &m); err != nil {
		return err
	}
	switch {
	case len(m.Voters) > 1:
		l.step(r.key.Shard, "membership: joint")
	case joint:
		l.step(r.key.Shard, "membership: joint left")
	default:
		l.step(r.key.Shard, "membership: learners")
	}
	l.announce(r)
	return nil
}

// applied is called when an Apply is complete.
func (l *Lane) applied(r *replica) {
	l.noteDirty(r)
	for _, req := range r.reads.takeDue() {
		l.read(r, req)
	}
}

// resume goes on with an apply that was suspended, and tells the engine if it is complete now.
func (l *Lane) resume(r *replica, gen uint32, cold []raftlog.Run) {
	if r.removed || !r.apply.active || r.apply.gen != gen {
		return
	}
	r.apply.gen++ // nothing else that is under way for this apply counts any more
	r.apply.parked = false
	l.applyMore(r, cold)
	l.tellApplied(r)
}

// tellApplied tells the engine of an apply that was completed outside of feed.
func (l *Lane) tellApplied(r *replica) {
	if r.apply.done {
		r.apply.done = false
		l.ev.applied = engine.Applied{LogID: r.machine.Applied()}
		l.afterApply = true
		l.feed(r, &l.ev.applied)
	}
}

// applyCold reads entries that are not in the cache any more, off the lane.
func (l *Lane) applyCold(r *replica) {
	a := &r.apply
	gen := a.gen
	read, err := l.log.Locate(r.key, a.next, a.last, applyBytesMax)
	if err != nil {
		l.s.fatal(fmt.Errorf("shard %d: entries %d to %d are committed and not in the log: %w", r.key.Shard, a.next, a.last, err))
		return
	}
	l.s.metrics.LogColdReads.Add(1)
	l.s.spawn(func() {
		runs, err := read.Read()
		l.box.putCall(func(l *Lane) {
			if err != nil {
				l.coldFailed(r, err)
				runs = nil // moved: locate again
				if errors.Is(err, raftlog.ErrClosed) {
					return
				}
			}
			l.resume(r, gen, runs)
		})
	})
}

// applyFetch suspends the apply of this replica at entry index, and fetches what it and some entries behind it need to know from the
// store. The lane goes on with other shards (rule State1).
func (l *Lane) applyFetch(r *replica, run raftlog.Run, index uint64) {
	l.s.metrics.AppliesSuspended.Add(1)
	var need shard.Need
	rest := raftlog.CutRun(run, index, run.Last())
	for it := raftlog.NewIter(rest.Body); it.Next() && len(need.Keys) < needKeysMax; {
		if it.Kind == engine.EntryBarrier {
			break // behind it the shard is another one
		}
		if it.Kind != engine.EntryNormal {
			continue
		}
		if !r.machine.Collect(it.Payload, &need) {
			break
		}
	}
	l.submitNeed(r, &need)
}

// submitNeed sends the collected need to the readers. Its keys are the job's from then on.
func (l *Lane) submitNeed(r *replica, need *shard.Need) {
	a := &r.apply
	gen := a.gen
	job := &state.ReadJob{}
	r.machine.FillNeed(need, job)
	a.job = nil // an earlier one is no more needed
	l.readCold(job, func(l *Lane, job *state.ReadJob) {
		if r.removed || !a.active || a.gen != gen {
			return
		}
		if !l.jobUsable(r, job) {
			if job.Err != nil && !errors.Is(job.Err, state.ErrMoved) {
				return
			}
			if r.machine.Freezing() && r.machine.Current(job) {
				a.parked = true // the record is being replaced: wait for the end of that
				return
			}
			job = nil
		}
		a.job = job
		l.resume(r, gen, nil)
	})
}

// readCold runs a job off the lane and hands it back.
func (l *Lane) readCold(job *state.ReadJob, done func(*Lane, *state.ReadJob)) {
	l.s.metrics.ReadsCold.Add(1)
	job.Done = func(job *state.ReadJob) {
		l.box.putCall(func(l *Lane) { done(l, job) })
	}
	l.s.readJob(job)
}

// jobUsable checks a job that has come back. A corrupt store ends the process (rule State5).
func (l *Lane) jobUsable(r *replica, job *state.ReadJob) bool {
	switch {
	case job.Err == nil && r.machine.Valid(job):
		return true
	case job.Err == nil || errors.Is(job.Err, state.ErrMoved):
		l.s.metrics.ReadsMoved.Add(1)
	case errors.Is(job.Err, state.ErrClosed):
	default:
		l.s.fatal(fmt.Errorf("shard %d: reading the state: %w", r.key.Shard, job.Err))
	}
	return false
}

// settle ends the waiters that entry id decides (rule Engine6).
func (l *Lane) settle(r *replica, id engine.LogID, ans *shard.Answer) {
	for w := r.waiters.front(); w != nil; w = r.waiters.front() {
		switch {
		case w.term == id.Term && w.index == id.Index:
			req := r.waiters.pop()
			req.applying, req.held = r.apply.began, r.apply.held
			if ans.Refused == nil {
				req.Answer = shard.AppendResult(req.Answer[:0], &ans.Result)
			}
			l.answer(req, ans.Refused)
		case w.term < id.Term || w.index <= id.Index:
			l.answer(r.waiters.pop(), l.superseded(r)) // its place was taken by another entry: it never happened
		default:
			return
		}
	}
}

func (l *Lane) superseded(r *replica) error {
	if p := r.eng.Leader(); p.Node != 0 && p != r.self() {
		return &shard.NotLeaderError{Leader: p.Node}
	}
	return &shard.UnavailableError{RetryAfter: retryAfter, Reason: "another leader took over"}
}

// settleSnapshot ends the waiters that a snapshot up to id has passed: what became of them is not known here. A retry in the same
// session is answered from the de-duplication table (rule Engine6).
func (l *Lane) settleSnapshot(r *replica, id engine.LogID) {
	for w := r.waiters.front(); w != nil && (w.term < id.Term || w.index <= id.Index); w = r.waiters.front() {
		l.answer(r.waiters.pop(), shard.ErrAmbiguous)
	}
}

// stopReplica is what becomes of a replica that meets an entry which it does not understand: it stays where it is, loudly, and
// leaves the office to others. Skipping the entry would make it silently different.
func (l *Lane) stopReplica(r *replica, err error) {
	l.s.logger.Error("replica stops", "shard", uint64(r.key.Shard), "replica", uint64(r.key.Replica), "err", err)
	l.s.metrics.ReplicasStopped.Add(1)
	r.stopped = true
	l.leaveOffice(r)
}

// stuck tells whether r applies nothing more by itself.
func (r *replica) stuck() bool { return r.stopped || r.wantSnapshot }

// leaveOffice has a stuck replica resign, if it leads, as soon as another voter has all of its log: before that nobody else may be able to win.
// It may win again, and leaves again.
func (l *Lane) leaveOffice(r *replica) {
	l.box.putCall(func(l *Lane) {
		if r.removed || !r.stuck() || !r.eng.IsLeader() {
			return
		}
		last := r.eng.Status().Last
		for _, p := range r.eng.Progress(nil) {
			if !p.Learner && p.Match == last && l.s.live.reachable(p.Peer.Node) {
				l.feed(r, resignEvent)
				return
			}
		}
		l.later(l.s.cfg.HeartbeatInterval, func(l *Lane) { l.leaveOffice(r) })
	})
}

// announce tells the node what the replica knows of its shard.
func (l *Lane) announce(r *replica) {
	if node := r.eng.Leader().Node; node != r.toldLeader {
		if r.toldLeader = node; node != 0 {
			l.leaderKnown(r)
		}
	}
	l.touch(r)
	if l.s.cfg.OnDescriptor == nil || r.machine == nil {
		return
	}
	l.s.cfg.OnDescriptor(l.descriptorEvent(r))
}

func (l *Lane) descriptorEvent(r *replica) DescriptorEvent {
	return DescriptorEvent{Shard: r.key.Shard, Replica: r.key.Replica, Descriptor: r.machine.Desc(), Leader: r.eng.Leader().Node, IsLeader: r.eng.IsLeader()}
}

// announceAll tells the node of all descriptors that one entry has changed, in one go (rule Split5).
func (l *Lane) announceAll(events []DescriptorEvent) {
	if f := l.s.cfg.OnDescriptors; f != nil {
		f(events)
		return
	}
	if f := l.s.cfg.OnDescriptor; f != nil {
		for _, ev := range events {
			f(ev)
		}
	}
}

// leadershipChanged is called when this replica won or lost its office.
func (l *Lane) leadershipChanged(r *replica) {
	r.run = nil
	l.bulkForget(r)
	if r.eng.IsLeader() {
		l.s.metrics.LeadersWon.Add(1)
		if r.stuck() {
			l.leaveOffice(r)
		}
	} else {
		l.endDrive(r, busyError("leadership is changing"))
	}
	l.announce(r)
}
