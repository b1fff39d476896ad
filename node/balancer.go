package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// Limits of what runs at a time.
const (
	opsPerNodeMax = 8
	// gentleMax is in how many moves a node may be for balance alone, which nobody has asked for.
	gentleMax = 2
	// freshFor is how long a shard that was moved or handed over for balance is not moved for size or load again.
	freshFor      = 5 * time.Minute
	movesPerRound = 32
	// transfersPerRound is how many leaderships the balancer moves in a round unasked, as after a split into many, whose children are all led by
	// one node: gently, transfersAtOnce at a time. transfersAsked is how many, all at once, while somebody has asked for a rebalance. A drain
	// hands over all at once.
	transfersPerRound = 64
	transfersAtOnce   = 8
	transfersAsked    = 256
	balanceBusy       = time.Second
	planPauseMin      = 50 * time.Millisecond // between two plans
)

// seenNode is what this node has seen of another's life.
type seenNode struct {
	alive bool
	since time.Time
	ever  bool // it has lived at some time
}

type learner struct {
	shard engine.ShardID
	node  engine.NodeID
}

// strayAfter is for how many election timeouts a learner without an operation is left alone.
const strayAfter = 10

// balancer is what the driver remembers between rounds. Guarded by driver.mu.
type balancer struct {
	began       time.Time // driving
	next        time.Time // when the next plan is due, if nothing happens, and if something does
	soonest     time.Time
	transferred time.Time // when leaderships were last handed over
	seen        map[engine.NodeID]*seenNode
	counts      map[engine.NodeID]int // replicas per node, and their bytes, as of the last picture
	bytes       map[engine.NodeID]uint64
	stuck       []string
	fresh       map[engine.ShardID]time.Time // moved for balance, and when
	// learners are members that no operation wants any more, as a driver that came too late may add them, and since when.
	learners map[learner]time.Time
	// level is the rebalance that is over once its moves under way are, by the last plan; left is how many more moves that plan expects.
	level     uint64
	left      int
	leftBytes uint64 // of those moves
}

// watchNodes notes which nodes live, and since when.
func (d *driver) watchNodes() {
	now := time.Now()
	var met []engine.NodeID
	d.mu.Lock()
	for _, rec := range d.c.view.nodeList() {
		alive := d.c.alive(rec.ID)
		s := d.bal.seen[rec.ID]
		if s == nil || s.alive != alive {
			d.bal.seen[rec.ID] = &seenNode{alive: alive, since: now, ever: alive || s != nil && s.ever}
			if alive && rec.ID != d.c.node {
				met = append(met, rec.ID)
			}
		}
	}
	d.mu.Unlock()
	for _, id := range met {
		if err := d.c.n.facts.metBy(id); err != nil {
			d.c.n.log.Error("cannot store that a peer knows this start", "node", uint64(id), "err", err)
		}
	}
}

// nodeSince tells whether a node lives, and since when this node has seen it so.
func (d *driver) nodeSince(id engine.NodeID) (bool, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.bal.seen[id]; s != nil {
		return s.alive, s.since
	}
	return d.c.alive(id), time.Now()
}

// awaitsNode tells whether a node that should live has not been seen to live yet.
func (d *driver) awaitsNode() bool {
	d.watchNodes()
	for _, n := range d.c.view.nodeList() {
		d.mu.Lock()
		s := d.bal.seen[n.ID]
		d.mu.Unlock()
		if n.State == placement.NodeUp && s != nil && !s.ever {
			return true
		}
	}
	return false
}

// balance makes and carries out a plan, if it is time: what must leave a node leaves it, what is missing is added; leaders are levelled
// gently; everything else only while somebody has asked for a rebalance.
func (d *driver) balance(ctx context.Context, rung bool) error {
	c := d.c
	if !d.due(rung) {
		return nil
	}
	running := d.runningOps()
	level := !c.n.cfg.NoReplicaBalance
	by := placement.By{Leaders: !c.n.cfg.NoLeaderBalance, Replicas: level, Size: level, Load: level && !c.n.cfg.NoLeaderBalance}
	var rebalance *placement.Op
	for i := range running {
		if o := &running[i]; o.Kind == placement.OpRebalance && !o.Cancel {
			rebalance = o
			by, _ = placement.ParseBy(o.By)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	rec, version, err := c.clusterRecord(ctx)
	if err != nil || version == 0 || rec.State != placement.ClusterReady {
		return err
	}
	// Who has nodes join and asks for a rebalance at once means those nodes.
	young := rebalance != nil && time.Since(time.UnixMilli(rebalance.StartMS)) < d.grace()
	if young && rebalance.Moves == 0 {
		if err := c.syncNodes(ctx); err != nil {
			return err
		}
	}
	c.askLoads(ctx, d.table)
	began := time.Now()
	in := d.inputs(version)
	if !rung && len(running) == 0 && d.calm.holds(began, &in) {
		d.mu.Lock()
		d.bal.next = began.Add(c.n.cfg.loadsEvery())
		d.mu.Unlock()
		return nil
	}
	d.calm = calm{}
	awaits := young && d.awaitsNode() // before the picture: who is seen to live only after it is not in the plan
	snap, descs := d.picture(d.table, &rec, running)
	lim := placement.Limits{MovesMax: movesPerRound, PerNodeMax: opsPerNodeMax, TransfersMax: transfersPerRound}
	if rebalance == nil {
		lim.GentleMax = gentleMax
		d.rest(snap)
	} else {
		lim.TransfersMax = transfersAsked
	}
	plan := placement.MakePlan(snap, by, lim)
	d.planned(plan, time.Since(began), len(running) > 0)
	if rebalance != nil && !awaits && d.over(rebalance, plan, snap) {
		d.mu.Lock()
		d.bal.level = rebalance.ID
		d.mu.Unlock()
	}
	err = d.order(ctx, plan, running, rebalance)
	if rerr := d.reshape(ctx, snap, descs, running); err == nil {
		err = rerr
	}
	if perr := d.noteProblems(ctx, descs, rec.Replicas, plan.Stuck); err == nil {
		err = perr
	}
	if err == nil && len(running) == 0 && d.nothingToDo(snap, plan) {
		d.calm = calm{began.Add(calmFor * c.n.cfg.loadsEvery()), in}
	}
	return err
}

// over tells whether a rebalance ends with a plan, once its moves under way are over.
func (d *driver) over(o *placement.Op, plan *placement.Plan, snap *placement.Snapshot) bool {
	return o.RebalanceOver(plan, len(snap.Shards)) && !d.awaitsLeader(o, snap)
}

// awaitsLeader tells whether a rebalance has yet to hear of a leader of some shard: those that a split made a moment ago, which nobody has told
// of, are in no plan. It does not wait for a shard that has lost its quorum.
func (d *driver) awaitsLeader(o *placement.Op, snap *placement.Snapshot) bool {
	return time.Since(time.UnixMilli(o.StartMS)) < max(d.grace(), 3*d.c.n.cfg.loadsEvery()) &&
		slices.ContainsFunc(snap.Shards, func(b placement.BalanceShard) bool { return b.Leader == 0 })
}

// due tells whether it is time for a plan: now and then, and soon if something has happened.
func (d *driver) due(rung bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if rung && d.bal.next.After(d.bal.soonest) {
		d.bal.next = d.bal.soonest
	}
	return !time.Now().Before(d.bal.next)
}

// untilDue is for how long there is nothing to do unless something happens.
func (d *driver) untilDue() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return min(driverIdle, max(planPauseMin, time.Until(d.bal.next)))
}

// planned notes what a plan says, and when the next one is due: making them takes at most a fifth of the time.
func (d *driver) planned(plan *placement.Plan, took time.Duration, busy bool) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bal.soonest = now.Add(min(max(planPauseMin, 4*took), balanceBusy))
	d.bal.next = now.Add(d.c.n.cfg.loadsEvery())
	if busy || len(plan.Transfers) > 0 {
		d.bal.next = now.Add(balanceBusy)
	}
	if len(plan.Moves) > 0 {
		d.bal.next = d.bal.soonest
	}
	d.bal.stuck, d.bal.left, d.bal.leftBytes, d.bal.level = plan.Stuck, plan.Left, plan.LeftBytes, 0
}

// order has done what a plan says.
func (d *driver) order(ctx context.Context, plan *placement.Plan, running []placement.Op, rebalance *placement.Op) error {
	parents := map[engine.NodeID]uint64{}
	for i := range running {
		if running[i].Kind == placement.OpDrain {
			parents[running[i].From] = running[i].ID
		}
	}
	own, bytes, err := d.propose(ctx, append(d.strayLearners(), plan.Moves...), parents, rebalance)
	if len(plan.Moves) > 0 {
		d.ring()
	}
	if len(plan.Transfers) > 0 && !d.mayTransfer() {
		plan.Transfers = nil
	}
	if rebalance != nil {
		if err := d.countOrders(ctx, rebalance.ID, plan, own, bytes); err != nil {
			return err // leaderships are handed over once that is on record: so a rebalance ends
		}
	}
	d.transferAll(ctx, plan.Transfers, rebalance != nil)
	return err
}

// mayTransfer tells whether the leaderships that were handed over last are where they should be, so that a plan that counts leaders counts
// right.
func (d *driver) mayTransfer() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.bal.transferred) < balanceBusy {
		return false
	}
	d.bal.transferred = time.Now()
	return true
}

// countOrders notes in the record of a rebalance what a plan orders.
func (d *driver) countOrders(ctx context.Context, id uint64, plan *placement.Plan, moves int, bytes uint64) error {
	if moves+len(plan.Transfers) == 0 {
		return nil
	}
	now, err := d.c.updateOp(ctx, id, func(o *placement.Op) bool { o.Count(plan, moves, bytes); return true }, nil)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.active[id]; a != nil {
		a.op.KeepCounts(now)
	}
	return nil
}

// rest marks what a balance that nobody has asked for leaves alone: nodes that have just come, and shards that it has just moved.
func (d *driver) rest(snap *placement.Snapshot) {
	grace := d.grace()
	for i := range snap.Nodes {
		alive, since := d.nodeSince(snap.Nodes[i].ID)
		snap.Nodes[i].Young = !alive || time.Since(since) < grace
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.bal.fresh) == 0 {
		return
	}
	for id, at := range d.bal.fresh {
		if time.Since(at) > freshFor {
			delete(d.bal.fresh, id)
		}
	}
	for i := range snap.Shards {
		_, snap.Shards[i].Fresh = d.bal.fresh[snap.Shards[i].ID]
	}
}

// grace is how long a node that has come gets nothing for balance: it has no lease and a cold cache, and may go again.
func (d *driver) grace() time.Duration { return 10 * d.c.n.cfg.ElectionTimeout }

// moved takes note that a shard was moved or handed over for balance.
func (d *driver) moved(id engine.ShardID) {
	d.mu.Lock()
	d.bal.fresh[id] = time.Now()
	d.mu.Unlock()
}

// propose records the operations for moves of the plan, in one write, and tells how many are the rebalance's own, and their bytes. What is busy
// is planned again.
func (d *driver) propose(ctx context.Context, moves []placement.Proposal, parents map[engine.NodeID]uint64, rebalance *placement.Op) (own int, bytes uint64, err error) {
	c := d.c
	ops := make([]*placement.Op, len(moves))
	errs := make([]error, len(moves))
	var wg sync.WaitGroup
	for i := range moves {
		p := &moves[i]
		o := &placement.Op{Kind: placement.OpMove, Shard: p.Shard, From: p.From, To: p.To, BytesTotal: p.Bytes, Why: p.Why, Parent: parents[p.From]}
		if o.Parent == 0 && rebalance != nil && p.Why != "leave" && p.Why != "complete" {
			o.Parent = rebalance.ID
		}
		ops[i] = o
		wg.Go(func() { errs[i] = c.checkMove(ctx, o) }) // at most movesPerRound, and as many stray learners
	}
	wg.Wait()
	checked := ops[:0]
	for i, o := range ops {
		if errs[i] == nil {
			checked = append(checked, o)
		}
	}
	if len(checked) == 0 {
		return 0, 0, errors.Join(errs...)
	}
	if _, _, err := c.createOps(ctx, checked, nil); err != nil {
		return 0, 0, err
	}
	for _, o := range checked {
		if o.ID == 0 {
			continue
		}
		if rebalance != nil && o.Parent == rebalance.ID {
			own++
			bytes += o.BytesTotal
		}
		d.moved(o.Shard)
		c.n.log.Info("operation started", "op", o.ID, "what", o.String(), "why", o.Why)
	}
	return own, bytes, errors.Join(errs...)
}

// transferAll hands leaderships over. They need no record: what is not done is planned again.
func (d *driver) transferAll(ctx context.Context, list []placement.Proposal, asked bool) {
	if len(list) == 0 {
		return
	}
	grace := d.grace()
	d.mu.Lock()
	young := time.Since(d.bal.began) < grace
	d.mu.Unlock()
	atOnce := make(chan struct{}, transfersAsked)
	if !asked {
		atOnce = make(chan struct{}, transfersAtOnce)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // for all, so that a node that does not answer holds up no plan for longer
	defer cancel()
	var wg sync.WaitGroup
	for i := range list {
		p := &list[i]
		_, since := d.nodeSince(p.To)
		if !asked && p.Why != "leave" && (young || time.Since(since) < grace) {
			continue
		}
		atOnce <- struct{}{}
		wg.Go(func() {
			defer func() { <-atOnce }()
			req := api.TransferRequest{Shard: p.Shard, To: p.To}
			if _, err := d.c.n.call(ctx, p.From, api.MethodTransfer, 0, req.Append(nil)); err != nil {
				d.c.n.log.Debug("leader balance", "shard", uint64(p.Shard), "to", uint64(p.To), "err", err)
				return
			}
			d.moved(p.Shard)
			d.c.view.setLeader(p.Shard, p.To)
		})
	}
	wg.Wait()
}

// picture gathers what a plan is made from: what the leaders say of their shards, for the others what meta knows.
func (d *driver) picture(loads *loadTable, rec *placement.ClusterRecord, running []placement.Op) (*placement.Snapshot, []*shard.Descriptor) {
	c := d.c
	snap := &placement.Snapshot{Replicas: rec.Replicas}
	inflight := map[engine.NodeID]int{}
	ops := map[engine.ShardID]*placement.Op{}
	for i := range running {
		if o := &running[i]; o.Kind != placement.OpDrain && o.Kind != placement.OpRebalance {
			ops[o.Shard] = o
			inflight[o.From]++
			inflight[o.To]++
			if o.Other != 0 {
				ops[o.Other] = o
			}
		}
	}
	for _, n := range c.view.nodeList() {
		snap.Nodes = append(snap.Nodes, d.balanceNode(&n, inflight[n.ID]))
	}
	counts, sizes := map[engine.NodeID]int{}, map[engine.NodeID]uint64{}
	learners := map[learner]bool{}
	all := c.view.all()
	snap.Shards = make([]placement.BalanceShard, 0, len(all))
	for i, desc := range all {
		l := c.living(loads, desc.Shard)
		if l != nil && !desc.Newer(l.Descriptor) {
			desc = l.Descriptor
			all[i] = desc
		}
		b := placement.BalanceShard{ID: desc.Shard, Busy: placement.MembershipJoint(desc), Nodes: make([]engine.NodeID, 0, len(desc.Replicas))}
		if l != nil {
			b.Leader, b.Bytes, b.Load = l.Node, l.Bytes, l.requests()
		} else {
			b.Busy = true // nobody could change it
		}
		for _, r := range desc.Replicas {
			counts[r.Node]++
			sizes[r.Node] += b.Bytes
			if r.Role != shard.RoleLearner && r.Role != shard.RoleDemoting && r.Role != shard.RoleOutgoing {
				b.Nodes = append(b.Nodes, r.Node)
			}
			if r.Role == shard.RoleLearner && ops[desc.Shard] == nil {
				learners[learner{desc.Shard, r.Node}] = true
			}
		}
		if desc.Shard == shard.MetaShardID {
			b.Want = max(len(b.Nodes), rec.Replicas)
		}
		if o := ops[desc.Shard]; o != nil {
			b.Busy = true
			b.Nodes = after(b.Nodes, o)
		}
		snap.Shards = append(snap.Shards, b)
	}
	d.mu.Lock()
	d.bal.counts, d.bal.bytes = counts, sizes
	d.noteLearners(learners)
	d.mu.Unlock()
	return snap, all
}

// noteLearners remembers since when learners have no operation. The caller holds mu.
func (d *driver) noteLearners(now map[learner]bool) {
	before := d.bal.learners
	d.bal.learners = make(map[learner]time.Time, len(now))
	for l := range now {
		since, ok := before[l]
		if !ok {
			since = time.Now()
		}
		d.bal.learners[l] = since
	}
}

// strayLearners returns moves that remove the learners that have had no operation for long.
func (d *driver) strayLearners() []placement.Proposal {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []placement.Proposal
	for l, since := range d.bal.learners {
		if time.Since(since) > strayAfter*d.c.n.cfg.ElectionTimeout && len(list) < movesPerRound {
			list = append(list, placement.Proposal{Shard: l.shard, From: l.node, Why: "stray learner"})
		}
	}
	return list
}

// after returns where the voters are when the operation is done.
func after(nodes []engine.NodeID, o *placement.Op) []engine.NodeID {
	if o.Kind != placement.OpMove || o.Cancel {
		return nodes
	}
	nodes = slices.DeleteFunc(nodes, func(n engine.NodeID) bool { return n == o.From })
	if o.To != 0 && !slices.Contains(nodes, o.To) {
		nodes = append(nodes, o.To)
	}
	return nodes
}

// balanceNode says what a node is to the balancer.
func (d *driver) balanceNode(n *placement.NodeRecord, inflight int) placement.BalanceNode {
	alive, since := d.nodeSince(n.ID)
	b := placement.BalanceNode{ID: n.ID, Zone: n.Labels["zone"], Lives: alive, InFlight: inflight}
	switch {
	case n.State != placement.NodeUp:
		b.Leave = true
	case alive:
		b.Takes = true
	default:
		// A new driver knows for how long if that was recorded; else it counts from when it began to look.
		b.Leave = time.Since(d.downSince(n.ID, since)) > d.c.n.cfg.repairAfter()
	}
	return b
}

// gatherLoads asks all living nodes what they lead.
func (c *core) gatherLoads(ctx context.Context) *loadTable {
	t := newLoadTable()
	c.askLoads(ctx, t)
	return t
}

// all returns the descriptors of all shards, the meta shard's included.
func (v *view) all() []*shard.Descriptor {
	list := slices.Clone(v.byStart())
	if d := v.shard(shard.MetaShardID); d != nil {
		list = append(list, d)
	}
	return list
}

// stepDrain: leaders go at once, the balancer moves the replicas, and this watches until none is left.
func (d *driver) stepDrain(ctx context.Context, o *placement.Op) (bool, error) {
	c := d.c
	if o.Cancel {
		o.State = placement.OpCancelled
		return true, nil
	}
	if c.alive(o.From) {
		ectx, cancel := context.WithTimeout(ctx, 3*time.Second)
		body, err := c.n.call(ectx, o.From, methodEvacuate, 0, appendIDs(nil, c.drainingNodes()))
		cancel()
		if err != nil {
			return false, fmt.Errorf("handing over leaderships: %w", err)
		}
		r := mp.NewReader(body)
		r.ArrayMin(1)
		if n := r.Uint(); n > 0 {
			o.Step = "transfer " + placement.Count(int(n), "leadership", "")
			return false, nil
		}
	}
	d.mu.Lock()
	left, known := d.bal.counts[o.From], d.bal.counts != nil
	bytes := d.bal.bytes[o.From]
	stuck := strings.Join(d.bal.stuck, "; ")
	d.mu.Unlock()
	if !known {
		return false, nil
	}
	o.Step, o.Reason = "move replicas", stuck
	o.Total = max(o.Total, uint64(left))
	o.Done = o.Total - uint64(left)
	o.BytesTotal = max(o.BytesTotal, bytes)
	o.BytesDone = o.BytesTotal - bytes
	if left > 0 {
		return false, nil
	}
	// The picture may be older than the drain, or of a driver that has started a moment ago and knows few shards: ask the node itself, and meta.
	if c.alive(o.From) {
		if list := c.askReplicas(ctx, o.From, nil); len(list) > 0 {
			o.Reason = placement.Count(len(list), "replica is", "replicas are") + " being cleaned up"
			return false, nil
		}
	}
	if d.opOn(o.From) {
		return false, nil
	}
	if n, err := c.held(ctx, o.From); n > 0 || err != nil {
		return false, err
	}
	o.State, o.Reason = placement.OpDone, ""
	return true, nil
}

// opOn tells whether a move from or to a node is under way.
func (d *driver) opOn(node engine.NodeID) bool {
	for _, o := range d.runningOps() {
		if o.Kind == placement.OpMove && (o.From == node || o.To == node) {
			return true
		}
	}
	return false
}

// drainingNodes are those that should lead nothing.
func (c *core) drainingNodes() []engine.NodeID {
	var list []engine.NodeID
	for _, n := range c.view.nodeList() {
		if n.State != placement.NodeUp {
			list = append(list, n.ID)
		}
	}
	return list
}

// stepRebalance: the balancer plans, and this watches until a plan leaves nothing to do.
func (d *driver) stepRebalance(o *placement.Op) (bool, error) {
	children, bytes := 0, uint64(0)
	for _, r := range d.runningOps() {
		if r.Parent == o.ID {
			children++
			bytes += r.BytesTotal - min(r.BytesDone, r.BytesTotal)
		}
	}
	d.mu.Lock()
	level, left, leftBytes := d.bal.level == o.ID, d.bal.left, d.bal.leftBytes
	stuck := strings.Join(d.bal.stuck, "; ")
	d.mu.Unlock()
	o.Step = placement.Count(children, "move", "") + " under way"
	if children == 0 && left == 0 && o.Transfers > 0 {
		o.Step = "level the leaders"
	}
	o.Reason = stuck
	o.Progress(children, bytes, left, leftBytes)
	switch {
	case o.Cancel && children == 0:
		o.State = placement.OpCancelled
	case !o.Cancel && level && children == 0:
		o.State, o.Reason, o.Done, o.Total = placement.OpDone, "", o.Moves, o.Moves
		o.BytesDone = o.BytesTotal
	}
	return false, nil
}

// dryRun is the plan of a rebalance, from beginning to end.
func (c *core) dryRun(ctx context.Context, r *api.PlanRequest) (*api.Plan, error) {
	by, err := placement.ParseBy(r.By)
	if err != nil {
		return nil, malformed(err)
	}
	rec, version, err := c.clusterRecord(ctx)
	if err != nil || version == 0 {
		return nil, err
	}
	var running []placement.Op
	if err := c.listOps(ctx, func(o *placement.Op) {
		if o.State == placement.OpRunning {
			running = append(running, *o)
		}
	}); err != nil {
		return nil, err
	}
	snap, _ := c.driver.picture(c.gatherLoads(ctx), &rec, running)
	out := &api.Plan{}
	for round := range dryRunRounds {
		plan := placement.MakePlan(snap, by, placement.Limits{})
		if round == 0 {
			out.Before = spreads(&plan.Before)
		}
		out.After, out.Stuck = spreads(&plan.After), plan.Stuck
		out.Bytes += plan.Bytes
		for _, l := range [][]placement.Proposal{plan.Moves, plan.Transfers} {
			for _, p := range l {
				out.Moves = append(out.Moves, api.PlanMove{Shard: p.Shard, From: p.From, To: p.To, Leader: p.Leader, Bytes: p.Bytes, Why: p.Why})
			}
		}
		if len(plan.Moves)+len(plan.Transfers) == 0 {
			break
		}
		snap.Apply(plan)
	}
	return out, nil
}

// dryRunRounds bounds the rounds of a plan that is only shown: each goes on from where the one before it ends.
const dryRunRounds = 8

func spreads(b *placement.Balances) [4]api.Spread {
	return [4]api.Spread{api.Spread(b.Replicas), api.Spread(b.Leaders), api.Spread(b.Bytes), api.Spread(b.Load)}
}
