package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/fault"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

const (
	// driverIdle is how often a node looks whether it should drive; it is told of new operations, and of leaders of the meta shard.
	driverIdle = time.Second
	// driverReads is how often the driver reads the records although it was told of nothing.
	driverReads = 5 * time.Second
	// opsActiveMax bounds the operations that are driven at a time; others wait.
	opsActiveMax = 256
	// opsKeep is how many finished operations stay recorded.
	opsKeep = 500
	// giveUpAfter: an operation that no operator has asked for and that does not advance for so long is given up.
	giveUpAfter = time.Minute
	opPauseMin  = 10 * time.Millisecond
	opPauseMax  = 250 * time.Millisecond
)

// driver drives operations while this node leads the meta shard. All that it must know is in meta and in the shards: it may die anywhere,
// and two of them do no harm (rule Cluster6).
type driver struct {
	c    *core
	wake chan struct{}
	// elected: this node's replica of the meta shard has last told that it leads.
	elected atomic.Bool

	mu     sync.Mutex
	active map[uint64]*drivenOp
	// Of the balancer, see balancer.go. Guarded by mu.
	bal balancer
	// table belongs to the goroutine that drives.
	table *loadTable
	calm  calm
	shape reshaper // hot is guarded by mu
	// problems are those that are recorded; nil: not read yet. Guarded by mu; only the goroutine that drives replaces it.
	problems *placement.Problems

	done   [placement.OpMerge + 1]atomic.Uint64 // by kind
	failed atomic.Uint64
}

// drivenOp is an operation that has a goroutine here. Guarded by driver.mu.
type drivenOp struct {
	op     placement.Op // as last read or written
	cancel bool
	// sent is how far the replica is that catches up, see progressed.
	sent uint64
	// since is when it came to stand still; zero: it advances.
	since time.Time
	// refused are the nodes to which a leadership was not handed over; see refuses.
	refused map[engine.NodeID]bool
	// fenced is the shard as it was when a cancel began to make orders void, see cancelOrder; nil: it has not.
	fenced *shard.Descriptor
}

func newDriver(c *core) *driver {
	d := &driver{c: c, wake: make(chan struct{}, 1), active: map[uint64]*drivenOp{}, table: newLoadTable(), shape: newReshaper()}
	d.bal.seen, d.bal.fresh = map[engine.NodeID]*seenNode{}, map[engine.ShardID]time.Time{}
	return d
}

func (d *driver) ring() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// loop drives while this node leads the meta shard.
func (d *driver) loop() {
	n := d.c.n
	tick := time.NewTicker(driverIdle)
	defer tick.Stop()
	for {
		d.watchNodes()
		d.c.reports.remind()
		if d.leads() {
			ctx, cancel := context.WithCancel(n.ctx)
			d.drive(ctx)
			cancel()
		}
		select {
		case <-n.ctx.Done():
			return
		case <-d.wake:
		case <-tick.C:
		}
	}
}

// leads tells whether this node leads the meta shard for certain; a lane is asked only where that may be.
func (d *driver) leads() bool {
	if !d.elected.Load() {
		return false
	}
	ctx, cancel := context.WithTimeout(d.c.n.ctx, time.Second)
	defer cancel()
	list, err := d.c.sched.LeadsOf(ctx, shard.MetaShardID)
	return err == nil && len(list) == 1
}

// drive works until this node leads the meta shard no more.
func (d *driver) drive(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.bal.began = time.Now()
	d.calm = calm{}
	d.shape, d.problems = newReshaper(), nil // what another driver has done meanwhile is not known
	d.mu.Unlock()
	rung, read := true, time.Time{}
	for {
		d.watchNodes()
		d.c.reports.remind()
		var err error
		if rung || len(d.runningOps()) > 0 || time.Since(read) > driverReads {
			err = d.refresh(ctx, &wg)
			read = time.Now()
		}
		if err == nil {
			err = d.balance(ctx, rung)
		}
		if err != nil && ctx.Err() == nil {
			d.c.n.log.Info("driving operations", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
			rung = true
		case <-time.After(d.untilDue()):
			rung = false
		}
		if !d.leads() {
			return
		}
	}
}

// refresh reads the records, starts to drive the running ones, and forgets old ones.
func (d *driver) refresh(ctx context.Context, wg *sync.WaitGroup) error {
	actx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var running []placement.Op
	var over []placement.Op
	if err := d.c.listOps(actx, func(o *placement.Op) {
		if o.State == placement.OpRunning {
			running = append(running, *o)
		} else {
			over = append(over, placement.Op{ID: o.ID, EndMS: o.EndMS})
		}
	}); err != nil {
		return err
	}
	d.mu.Lock()
	for i := range running {
		o := &running[i]
		if a := d.active[o.ID]; a != nil {
			a.cancel = a.cancel || o.Cancel
			continue
		}
		if len(d.active) >= opsActiveMax {
			break
		}
		a := &drivenOp{op: *o, cancel: o.Cancel}
		d.active[o.ID] = a
		wg.Add(1)
		go func() { // at most opsActiveMax; they end with ctx
			defer wg.Done()
			d.run(ctx, a)
			d.mu.Lock()
			delete(d.active, a.op.ID)
			d.mu.Unlock()
			d.ring()
		}()
	}
	d.mu.Unlock()
	return d.forget(actx, over)
}

// forget deletes the records of what has been over for the longest.
func (d *driver) forget(ctx context.Context, over []placement.Op) error {
	var ops []shard.Op
	for _, id := range forgettable(over) {
		ops = append(ops, del(placement.OpKey(id)))
	}
	if len(ops) == 0 {
		return nil
	}
	return d.c.meta.write(ctx, nil, ops)
}

// forgettable names the operations that need no record any more, 1000 at most, once there are a quarter too many. What ended last stays,
// not what began last: a rebalance is older than all its moves, and somebody waits to see how it ended.
func forgettable(over []placement.Op) (ids []uint64) {
	if len(over) < opsKeep+opsKeep/4 {
		return nil
	}
	slices.SortStableFunc(over, func(a, b placement.Op) int { return cmp.Compare(a.EndMS, b.EndMS) })
	for i := range over[:min(len(over)-opsKeep, 1000)] {
		ids = append(ids, over[i].ID)
	}
	return ids
}

// run drives one operation to its end.
func (d *driver) run(ctx context.Context, a *drivenOp) {
	pause := opPauseMin
	for ctx.Err() == nil {
		if err := d.c.n.boot.step(opStep(&a.op, "", cmp.Or(a.op.Step, "begin"))); err != nil {
			return // a test plays a driver that dies here
		}
		advanced, over := d.advance(ctx, a)
		if over {
			return
		}
		if advanced {
			pause = opPauseMin
		}
		if sleep(ctx, pause) != nil {
			return
		}
		if !advanced {
			pause = min(2*pause, opPauseMax)
		}
	}
}

// advance takes one step of an operation and records what has changed.
func (d *driver) advance(ctx context.Context, a *drivenOp) (advanced, over bool) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	d.mu.Lock()
	before, sent := a.op, a.sent
	o := before
	o.Cancel = o.Cancel || a.cancel || a.standsStill()
	d.mu.Unlock()
	advanced, err := d.step(ctx, &o)
	if err != nil && o.State == placement.OpRunning {
		o.Reason = err.Error()
	}
	if d.moves(a, advanced, sent) {
		o.AdvanceMS = time.Now().UnixMilli()
	}
	if o.Step != before.Step || o.Reason != before.Reason || o.State != before.State || o.Done != before.Done || o.Cancel != before.Cancel {
		fault.At(opStep(&o, "record ", o.Step))
		if err = d.record(ctx, &o); err == nil {
			fault.At(opStep(&o, "recorded ", o.Step))
		} else if o.State == placement.OpRunning {
			return false, false // what is not recorded was not done: an order is given only after its step (see cancelOrder)
		}
	}
	if o.State != placement.OpRunning {
		if over = err == nil; over {
			d.count(&o)
			d.c.n.log.Info("operation is over", "op", o.ID, "what", o.String(), "state", o.State.String(), "err", o.Error)
		}
		return advanced, over
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	o.KeepCounts(&a.op)
	a.op = o
	return advanced, false
}

// standsStill tells whether an operation is to be given up: no operator has asked for it, and it has not come nearer to its end for long. The
// caller holds mu.
func (a *drivenOp) standsStill() bool {
	o := &a.op
	return o.Kind != placement.OpDrain && o.Kind != placement.OpRebalance && o.Why != "operator" && !a.since.IsZero() && time.Since(a.since) > giveUpAfter
}

// moves tells whether an operation has come nearer to its end in a step, and keeps since when it has not: by the record, as its drivers may
// live for a moment only.
func (d *driver) moves(a *drivenOp, advanced bool, sent uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	moves := advanced || a.sent > sent
	switch {
	case advanced:
		a.sent, a.since = 0, time.Time{}
	case moves:
		a.since = time.Time{}
	case a.since.IsZero() && a.op.AdvanceMS != 0:
		a.since = time.UnixMilli(a.op.AdvanceMS)
	case a.since.IsZero():
		a.since = time.Now()
	}
	return moves
}

// progressed takes note of how far the replica of an operation is that catches up: the bytes of a snapshot, or the entries of the log. While
// that grows the operation is not given up.
func (d *driver) progressed(id, sent uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.active[id]; a != nil {
		a.sent = max(a.sent, sent)
	}
}

// count counts an operation that is over.
func (d *driver) count(o *placement.Op) {
	switch {
	case o.State == placement.OpFailed:
		d.failed.Add(1)
	case o.State == placement.OpDone && int(o.Kind) < len(d.done):
		d.done[o.Kind].Add(1)
	}
}

// opStep is the label of a point at which tests let the driver die.
func opStep(o *placement.Op, what, step string) string {
	if o.State != placement.OpRunning {
		step = "end"
	}
	return "op " + o.Kind.String() + ": " + what + step
}

// record writes what o says; an operator's cancel that came meanwhile stays.
func (d *driver) record(ctx context.Context, o *placement.Op) error {
	also := func() ([]shard.Condition, []shard.Op, error) {
		switch {
		case o.Kind == placement.OpDrain && o.State == placement.OpCancelled:
			return d.c.nodeStateOp(ctx, o.From, placement.NodeUp)
		case o.Kind == placement.OpMerge && o.State == placement.OpDone:
			return nil, []shard.Op{del(placement.AutoKey(o.Other))}, nil
		}
		return nil, nil, nil
	}
	now, err := d.c.updateOp(ctx, o.ID, func(rec *placement.Op) bool {
		before := *rec
		*rec = *o
		rec.Cancel = before.Cancel || o.Cancel
		if rec.Step == "" { // of a driver that was deposed: the next one has given an order since, which a cancel must make void
			rec.Step = before.Step
		}
		rec.KeepCounts(&before)
		return true
	}, also)
	if errors.Is(err, shard.ErrNotFound) {
		o.State = placement.OpFailed // nobody wants it any more
		return nil
	}
	if err == nil {
		*o = *now
	}
	return err
}

// step does what comes next, and tells whether that was something.
func (d *driver) step(ctx context.Context, o *placement.Op) (bool, error) {
	switch o.Kind {
	case placement.OpDrain:
		return d.stepDrain(ctx, o)
	case placement.OpRebalance:
		return d.stepRebalance(o)
	}
	advanced, err := d.stepOnShard(ctx, o)
	if errors.Is(err, shard.ErrNotFound) && o.State == placement.OpRunning {
		return d.stepDead(ctx, o, err)
	}
	return advanced, err
}

// stepOnShard is step for what is done to a shard.
func (d *driver) stepOnShard(ctx context.Context, o *placement.Op) (bool, error) {
	switch o.Kind {
	case placement.OpMove, placement.OpTransfer:
		return d.stepShard(ctx, o)
	case placement.OpSplit:
		return d.stepSplit(ctx, o)
	case placement.OpMerge:
		return d.stepMerge(ctx, o)
	}
	o.State, o.Error = placement.OpFailed, fmt.Sprintf("operation %s is not known to this version", o.Kind)
	return true, nil
}

// stepDead ends an operation on a shard that was absorbed after whoever has recorded the operation had looked at it; else it waits, as err says: this node may not
// have read meta yet.
func (d *driver) stepDead(ctx context.Context, o *placement.Op, err error) (bool, error) {
	value, version, gerr := d.c.meta.get(ctx, placement.DeadKey(o.Shard))
	if gerr != nil || version == 0 {
		return false, err
	}
	absorber, _, err := placement.DecodeDead(value)
	if err != nil {
		return false, err
	}
	if o.State, o.Reason = placement.OpCancelled, ""; !o.Cancel {
		o.State, o.Error = placement.OpFailed, fmt.Sprintf("shard %d was merged into shard %d", o.Shard, absorber)
	}
	return true, nil
}

func (d *driver) stepShard(ctx context.Context, o *placement.Op) (bool, error) {
	l, err := d.c.findLead(ctx, o.Shard)
	if err != nil {
		return false, err
	}
	return d.take(ctx, o, l, o.Next(d.viewOf(o, l)))
}

// take takes the next step, which is act. One that fails is no advance: it is tried again ever more seldom, and given up if it always fails.
func (d *driver) take(ctx context.Context, o *placement.Op, l *lead, act placement.Action) (bool, error) {
	if act.Step != "" {
		o.Step = act.Step
	}
	moved := act.Done > o.Done
	o.Done = max(o.Done, act.Done)
	if o.Kind == placement.OpMove {
		if o.BytesDone = max(o.BytesDone, min(l.SnapshotSent, o.BytesTotal)); act.Done >= 2 {
			o.BytesDone = o.BytesTotal
		}
	}
	switch act.Kind {
	case placement.ActWait:
		o.Reason = act.Reason
		return moved, nil
	case placement.ActFail:
		o.State, o.Error, o.Reason = placement.OpFailed, act.Reason, ""
		return true, nil
	case placement.ActDone:
		if act.Cancelled && o.Kind == placement.OpMove {
			advanced, err := d.cancelOrder(ctx, o, l)
			if o.State == placement.OpCancelled {
				o.Reason, o.Done = "", o.Total
				d.undo(ctx, o, l)
			}
			return advanced, err
		}
		o.Reason = ""
		o.State, o.Done = placement.OpDone, o.Total
		if act.Cancelled {
			o.State = placement.OpCancelled
		}
		return true, nil
	}
	o.Reason = ""
	err := d.act(ctx, o, l, &act)
	return err == nil, err
}

// viewOf is what the leader's answer means for an operation.
func (d *driver) viewOf(o *placement.Op, l *lead) *placement.ShardView {
	v := &placement.ShardView{Descriptor: l.Descriptor, Leader: l.Node, Changing: l.Changing, Committed: l.Committed, Bytes: l.Bytes, Sent: l.SnapshotSent,
		Note: l.SnapshotNote,
		Up:   d.c.alive,
		Gone: func(id engine.NodeID) bool {
			rec, ok := d.c.view.node(id)
			return ok && rec.State == placement.NodeRemoved
		},
		Avoid: func(id engine.NodeID) bool {
			rec, ok := d.c.view.node(id)
			return ok && rec.State != placement.NodeUp || d.refused(o.ID, id)
		}}
	for _, p := range l.Progress {
		if p.Peer.Replica == o.Replica && p.Peer.Node == o.To {
			v.Match, v.State = p.Match.Index, [...]string{"probing", "by the log", "by a snapshot"}[min(p.State, 2)]
			d.progressed(o.ID, max(v.Sent, v.Match))
			v.InStep = p.State == engine.ProgressPipeline && p.Match.Index > 0 && p.Match.Index+1024 >= l.Committed
		}
	}
	return v
}

func (d *driver) act(ctx context.Context, o *placement.Op, l *lead, act *placement.Action) error {
	c := d.c
	switch act.Kind {
	case placement.ActChange:
		ch := scheduler.MembershipChange{Shard: o.Shard, Version: l.Descriptor.Version, ConfVersion: l.Descriptor.ConfVersion, Replicas: act.Replicas}
		_, err := c.n.call(ctx, l.Node, methodChange, 0, appendChange(nil, &ch))
		var moved *shard.MovedError
		if errors.As(err, &moved) {
			return nil // void: look again
		}
		if errors.Is(err, shard.ErrInvalid) {
			o.State, o.Error = placement.OpFailed, err.Error()
			return nil
		}
		return err
	case placement.ActTransfer:
		tctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		req := api.TransferRequest{Shard: o.Shard, To: act.To}
		_, err := c.n.call(tctx, l.Node, api.MethodTransfer, 0, req.Append(nil))
		if err == nil {
			c.view.setLeader(o.Shard, act.To)
		} else {
			d.refuses(o.ID, act.To)
		}
		return err
	case placement.ActRemove:
		// Meta must have it first: the shard's leader may have had no time to report it, and a node that is down compares with meta.
		if err := c.reports.report(ctx, []*shard.Descriptor{l.Descriptor}); err != nil {
			return err
		}
		if c.alive(act.To) {
			if _, err := c.n.call(ctx, act.To, methodRemove, 0, l.removal(act.Replica)); err != nil {
				return err
			}
		} // else it compares its replicas with meta when it comes back
		o.State, o.Done = placement.OpDone, o.Total
	}
	return nil
}

// refuses takes note of a node to which an operation could not have a leadership handed over, as its disk is full: another one is tried before it is its turn again.
func (d *driver) refuses(id uint64, node engine.NodeID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.active[id]
	if a == nil {
		return
	}
	if a.refused == nil || a.refused[node] { // all others have refused, too
		a.refused = map[engine.NodeID]bool{}
	}
	a.refused[node] = true
}

func (d *driver) refused(id uint64, node engine.NodeID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.active[id]
	return a != nil && a.refused[node]
}

// undo destroys what a cancelled move has left on the new node.
func (d *driver) undo(ctx context.Context, o *placement.Op, l *lead) {
	if o.Kind != placement.OpMove || o.To == 0 || !d.c.alive(o.To) {
		return
	}
	if _, err := d.c.n.call(ctx, o.To, methodRemove, 0, l.removal(o.Replica)); err != nil {
		d.c.n.log.Info("a cancelled move leaves a replica for later", "op", o.ID, "node", uint64(o.To), "err", err)
	}
}

// runningOps returns the operations that are driven here.
func (d *driver) runningOps() []placement.Op {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]placement.Op, 0, len(d.active))
	for _, a := range d.active {
		list = append(list, a.op)
	}
	return list
}
