package node

import (
	"context"
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
	// transfersPerRound is how many leaderships the balancer moves in a round unasked: gently. A drain hands over all at once.
	transfersPerRound = 16
	balanceBusy       = time.Second
)

// seenNode is what this node has seen of another's life.
type seenNode struct {
	alive bool
	since time.Time
}

type learner struct {
	shard engine.ShardID
	node  engine.NodeID
}

// strayAfter is for how many election timeouts a learner without an operation is left alone.
const strayAfter = 10

// balancer is what the driver remembers between rounds. Guarded by driver.mu.
type balancer struct {
	began  time.Time // driving
	next   time.Time
	seen   map[engine.NodeID]*seenNode
	counts map[engine.NodeID]int // replicas per node, as of the last picture
	stuck  []string
	fresh  map[engine.ShardID]time.Time // moved for balance, and when
	// learners are members that no operation wants any more, as a driver that came too late may add them, and since when.
	learners map[learner]time.Time
	idle     uint64 // the rebalance for which the last plan had nothing in it
}

// watchNodes notes which nodes live, and since when.
func (d *driver) watchNodes() {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, rec := range d.c.view.nodeList() {
		alive := d.c.alive(rec.ID)
		s := d.bal.seen[rec.ID]
		if s == nil || s.alive != alive {
			d.bal.seen[rec.ID] = &seenNode{alive: alive, since: now}
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

// balance makes and carries out a plan, if it is time: what must leave a node leaves it, what is missing is added; leaders are levelled
// gently; everything else only while somebody has asked for a rebalance.
func (d *driver) balance(ctx context.Context, rung bool) error {
	c := d.c
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
	d.mu.Lock()
	due := !time.Now().Before(d.bal.next) || rung && time.Until(d.bal.next) > balanceBusy/5
	d.mu.Unlock()
	if !due {
		return nil
	}
	actx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	rec, version, err := c.clusterRecord(actx)
	if err != nil || version == 0 || rec.State != placement.ClusterReady {
		return err
	}
	c.askLoads(actx, d.table)
	snap, descs := d.picture(d.table, &rec, running)
	strays := d.strayLearners()
	lim := placement.Limits{MovesMax: movesPerRound, PerNodeMax: opsPerNodeMax, TransfersMax: transfersPerRound}
	if rebalance == nil {
		lim.GentleMax = gentleMax
		d.rest(snap)
	}
	plan := placement.MakePlan(snap, by, lim)
	busy := len(running) > 0 || len(plan.Moves) > 0 || len(plan.Transfers) > 0
	d.mu.Lock()
	d.bal.next = time.Now().Add(c.n.cfg.loadsEvery())
	if busy {
		d.bal.next = time.Now().Add(balanceBusy)
		if len(plan.Moves) > 0 {
			d.bal.next = time.Now().Add(balanceBusy / 5)
		}
	}
	d.bal.stuck = plan.Stuck
	if d.bal.idle = 0; rebalance != nil && len(plan.Moves)+len(plan.Transfers) == 0 {
		d.bal.idle = rebalance.ID
	}
	d.mu.Unlock()
	parents := map[engine.NodeID]uint64{}
	for i := range running {
		if running[i].Kind == placement.OpDrain {
			parents[running[i].From] = running[i].ID
		}
	}
	var first error
	for i := range strays {
		if err := d.propose(actx, &strays[i], parents, nil); err != nil {
			first = err
		}
	}
	for i := range plan.Moves {
		if err := d.propose(actx, &plan.Moves[i], parents, rebalance); err != nil && first == nil {
			first = err
		}
	}
	if err := d.reshape(actx, snap, descs, running); err != nil && first == nil {
		first = err
	}
	if err := d.noteProblems(actx, descs, plan.Stuck); err != nil && first == nil {
		first = err
	}
	d.transferAll(actx, plan.Transfers, rebalance != nil)
	if len(plan.Moves) > 0 {
		d.ring()
	}
	return first
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

// propose records the operation for a move of the plan.
func (d *driver) propose(ctx context.Context, p *placement.Proposal, parents map[engine.NodeID]uint64, rebalance *placement.Op) error {
	c := d.c
	o := placement.Op{Kind: placement.OpMove, Shard: p.Shard, From: p.From, To: p.To, BytesTotal: p.Bytes, Why: p.Why, Parent: parents[p.From]}
	if o.Parent == 0 && rebalance != nil && p.Why != "leave" && p.Why != "complete" {
		o.Parent = rebalance.ID
	}
	if err := c.checkMove(ctx, &o); err != nil {
		return err
	}
	if err := c.createOp(ctx, &o, nil); err != nil {
		return err
	}
	d.moved(o.Shard)
	c.n.log.Info("operation started", "op", o.ID, "what", o.String(), "why", o.Why)
	return nil
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
	var wg sync.WaitGroup
	for i := range list {
		p := &list[i]
		_, since := d.nodeSince(p.To)
		if !asked && p.Why != "leave" && (young || time.Since(since) < grace) {
			continue
		}
		wg.Add(1)
		go func() { // at most transfersPerRound
			defer wg.Done()
			actx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			req := api.TransferRequest{Shard: p.Shard, To: p.To}
			if _, err := d.c.n.call(actx, p.From, api.MethodTransfer, 0, req.Append(nil)); err != nil {
				d.c.n.log.Debug("leader balance", "shard", uint64(p.Shard), "to", uint64(p.To), "err", err)
				return
			}
			d.moved(p.Shard)
			d.c.view.setLeader(p.Shard, p.To)
		}()
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
	counts := map[engine.NodeID]int{}
	learners := map[learner]bool{}
	all := c.view.all()
	for i, desc := range all {
		l := c.living(loads, desc.Shard)
		if l != nil && !desc.Newer(l.Descriptor) {
			desc = l.Descriptor
			all[i] = desc
		}
		b := placement.BalanceShard{ID: desc.Shard, Busy: placement.MembershipJoint(desc)}
		if l != nil {
			b.Leader, b.Bytes, b.Load = l.Node, l.Bytes, l.requests()
		} else {
			b.Busy = true // nobody could change it
		}
		for _, r := range desc.Replicas {
			counts[r.Node]++
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
	d.bal.counts = counts
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
		if time.Since(since) > strayAfter*d.c.n.cfg.ElectionTimeout {
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
			o.Step = fmt.Sprintf("transfer %d leaderships", n)
			return false, nil
		}
	}
	d.mu.Lock()
	left, known := d.bal.counts[o.From], d.bal.counts != nil
	stuck := strings.Join(d.bal.stuck, "; ")
	d.mu.Unlock()
	if !known {
		return false, nil
	}
	o.Step, o.Reason = "move replicas", stuck
	o.Total = max(o.Total, uint64(left))
	o.Done = o.Total - uint64(left)
	if left > 0 {
		return false, nil
	}
	// The picture may be older than the drain: ask the node itself.
	if c.alive(o.From) {
		if list := c.askReplicas(ctx, o.From, nil); len(list) > 0 {
			o.Reason = fmt.Sprintf("%d replicas are being cleaned up", len(list))
			return false, nil
		}
	}
	if d.opOn(o.From) {
		return false, nil
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

// stepRebalance: the balancer plans, and this watches until a plan has nothing in it.
func (d *driver) stepRebalance(o *placement.Op) (bool, error) {
	children := 0
	for _, r := range d.runningOps() {
		if r.Parent == o.ID {
			children++
		}
	}
	d.mu.Lock()
	idle := d.bal.idle == o.ID
	stuck := strings.Join(d.bal.stuck, "; ")
	d.mu.Unlock()
	o.Step = fmt.Sprintf("%d moves under way", children)
	o.Reason = stuck
	switch {
	case o.Cancel && children == 0:
		o.State = placement.OpCancelled
	case !o.Cancel && idle && children == 0:
		o.State, o.Reason = placement.OpDone, ""
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
