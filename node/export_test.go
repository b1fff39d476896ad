package node

import (
	"context"
	"net"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// SetFault makes an init ask f between its steps.
func SetFault(cfg *Config, f func(step string) error) { cfg.fault = f }

// SetTune lets a test change what the scheduler gets.
func SetTune(cfg *Config, f func(*scheduler.Config)) { cfg.tune = f }

// SetDial makes a node open its connections to others in another way.
func SetDial(cfg *Config, dial func(ctx context.Context, addr string) (net.Conn, error)) {
	cfg.dial = dial
}

// SetClock gives a node another clock than the machine's.
func SetClock(cfg *Config, clock scheduler.Clock) { cfg.clock = clock }

// SetLoadEvery makes the driver look at loads more often.
func SetLoadEvery(cfg *Config, d time.Duration) { cfg.loadEvery = d }

// SetSyncEvery makes a node look into meta more often.
func SetSyncEvery(cfg *Config, d time.Duration) { cfg.syncEvery = d }

// SetStateFree says how much space there is for the state, which grows in small steps.
func SetStateFree(cfg *Config, f func() (int64, error)) { cfg.stateFree, cfg.stateGrow = f, 1<<20 }

// SetHTTPWriteMax changes how long a client of the HTTP door may take to take an answer.
func SetHTTPWriteMax(cfg *Config, d time.Duration) { cfg.httpWriteMax = d }

// FillClientSlots takes all places for requests of clients that may wait.
func (n *Node) FillClientSlots() {
	for range slowMax {
		n.slots[1] <- struct{}{}
	}
}

// SetUnobserved leaves it to the test to take samples, see Observe.
func SetUnobserved(cfg *Config) { cfg.unobserved = true }

// StartOp starts an operation through this node, as an operator does.
func (n *Node) StartOp(ctx context.Context, o *placement.Op) error {
	return n.core.Load().startOp(ctx, o)
}

// ReadOp reads an operation.
func (n *Node) ReadOp(ctx context.Context, id uint64) (*placement.Op, error) {
	o, _, err := n.core.Load().readOp(ctx, id)
	return o, err
}

// ShardInMeta reads the record of a shard.
func (n *Node) ShardInMeta(ctx context.Context, id engine.ShardID) (*shard.Descriptor, error) {
	value, version, err := n.core.Load().meta.get(ctx, placement.ShardKey(id))
	if err != nil || version == 0 {
		return nil, err
	}
	rec, err := placement.DecodeShard(value)
	return &rec.Descriptor, err
}

// PutShardInMeta writes the record of a shard, and tells nobody.
func (n *Node) PutShardInMeta(ctx context.Context, d *shard.Descriptor) error {
	rec := placement.ShardRecord{Descriptor: *d}
	return n.core.Load().meta.write(ctx, nil, []shard.Op{put(placement.ShardKey(d.Shard), rec.Append(nil))})
}

// DeadInMeta names the shard that has absorbed this one as meta has it, 0 if it is not known to be dead.
func (n *Node) DeadInMeta(ctx context.Context, id engine.ShardID) (engine.ShardID, error) {
	value, version, err := n.core.Load().meta.get(ctx, placement.DeadKey(id))
	if err != nil || version == 0 {
		return 0, err
	}
	absorber, _, err := placement.DecodeDead(value)
	return absorber, err
}

// Bury writes to meta that the first shard was absorbed by the second, that one by the third, and so on; and has the node look whether it
// holds a replica of the first.
func (n *Node) Bury(ctx context.Context, chain []engine.ShardID) error {
	c := n.core.Load()
	ops := []shard.Op{del(placement.ShardKey(chain[0]))}
	for i, id := range chain[:len(chain)-1] {
		ops = append(ops, put(placement.DeadKey(id), placement.AppendDead(nil, id, chain[i+1], 2)))
	}
	err := c.meta.write(ctx, nil, ops)
	c.strays.forget(chain[0])
	c.strays.note(chain[0], 0)
	return err
}

// Met returns how many peers are known to know this start of the node.
func (n *Node) Met() (known int) {
	f := n.facts
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, at := range f.met {
		if at == f.incarnations[len(f.incarnations)-1] {
			known++
		}
	}
	return known
}

// Incarnation returns the name of this start of the node.
func (n *Node) Incarnation() uint64 { return n.facts.incarnations[len(n.facts.incarnations)-1] }

// Unreported returns how many descriptors wait to be reported to meta.
func (n *Node) Unreported() int {
	r := n.core.Load().reports
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue)
}

// BuryInMeta records that a shard was absorbed by another one, and tells nobody.
func (n *Node) BuryInMeta(ctx context.Context, id, by engine.ShardID) error {
	return n.BuryInMetaAt(ctx, id, by, 9)
}

// BuryInMetaAt is BuryInMeta with the version of the absorber.
func (n *Node) BuryInMetaAt(ctx context.Context, id, by engine.ShardID, version uint64) error {
	ops := []shard.Op{{Kind: shard.OpDelete, Key: placement.ShardKey(id)}, put(placement.DeadKey(id), placement.AppendDead(nil, id, by, version))}
	return n.core.Load().meta.write(ctx, nil, append(ops, stampsOf(ops)...))
}

// CancelOp asks an operation to stop.
func (n *Node) CancelOp(ctx context.Context, id uint64) error {
	_, err := n.core.Load().updateOp(ctx, id, func(o *placement.Op) bool { o.Cancel = true; return true }, nil)
	n.core.Load().tellDriver(ctx)
	return err
}

// SetNode undrains or removes a node.
func (n *Node) SetNode(ctx context.Context, r api.NodeSetRequest) error {
	return n.core.Load().setNode(ctx, &r)
}

// StatusOf returns the problems of the cluster.
func (n *Node) StatusOf(ctx context.Context) (*api.Status, error) {
	return n.core.Load().statusPage(ctx)
}

// Ranges returns the user shards that this node knows of, by start key.
func (n *Node) Ranges(context.Context) ([]*shard.Descriptor, error) {
	return n.core.Load().view.byStart(), nil
}

// Recorded returns the names of the recorded problems.
func (n *Node) Recorded(ctx context.Context) (names []string, err error) {
	list, err := n.core.Load().readProblems(ctx)
	for _, p := range list {
		names = append(names, p.Name)
	}
	return names, err
}

// PlanOf returns the plan of a rebalance.
func (n *Node) PlanOf(ctx context.Context) (*api.Plan, error) {
	return n.core.Load().dryRun(ctx, &api.PlanRequest{})
}

// Replicas returns the replicas of this node.
func (n *Node) Replicas(ctx context.Context) ([]scheduler.ReplicaStatus, error) {
	return n.core.Load().sched.Statuses(ctx)
}

// Sched returns the scheduler.
func (n *Node) Sched() *scheduler.Scheduler { return n.core.Load().sched }

// Peers returns how many connections with other nodes there are, and with how many nodes.
func (n *Node) Peers() (conns, nodes int) {
	seen := map[uint64]bool{}
	for _, c := range n.tr.Conns() {
		if !c.Client {
			conns++
			seen[uint64(c.Node)] = true
		}
	}
	return conns, len(seen)
}

// Observe takes the samples that are due at a moment.
func (n *Node) Observe(at time.Time) { n.observe(at) }

// Inspect answers an inspection.
func (n *Node) Inspect(ctx context.Context, what string) ([]byte, error) {
	b, err := n.inspect(ctx, what, 0)
	if err != nil {
		return nil, err
	}
	return Inflate(b)
}

// Route is a path of the HTTP door, for tests.
type Route struct{ Pattern, Need string }

// Routes returns the paths of the HTTP door.
func (n *Node) Routes() []Route {
	var list []Route
	for _, r := range n.routes() {
		list = append(list, Route{r.pattern, r.need.String()})
	}
	return list
}

// SyncUsers has the node look for changed users.
func (n *Node) SyncUsers(ctx context.Context) error { return n.core.Load().syncUsers(ctx) }

// NodeUpLater prepares the write by which the driver of a cancelled drain puts a node back up.
func (n *Node) NodeUpLater(ctx context.Context, id engine.NodeID) (func(context.Context) error, error) {
	c := n.core.Load()
	conds, ops, err := c.nodeStateOp(ctx, id, placement.NodeUp)
	return func(ctx context.Context) error { return c.meta.write(ctx, conds, ops) }, err
}

// Doubt has the node ask meta about its replica of a shard, now.
func (n *Node) Doubt(ctx context.Context, id engine.ShardID) error {
	return n.core.Load().strays.ask(ctx, []engine.ShardID{id})
}

// RecordOp records an operation without a look at what is, as one that is under way.
func (n *Node) RecordOp(ctx context.Context, o *placement.Op) error {
	c := n.core.Load()
	defer c.tellDriver(ctx)
	return c.createOp(ctx, o, nil)
}

// ForgetShards has the node know no shard but the meta shard, as one that has just started and holds no other.
func (n *Node) ForgetShards() {
	v := n.core.Load().view
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range v.shards {
		if id != shard.MetaShardID {
			delete(v.shards, id)
		}
	}
	v.sorted = nil
}

// StepDrain looks, with what the node knows, whether the drain of a node is over.
func (n *Node) StepDrain(ctx context.Context, id engine.NodeID) (placement.OpState, error) {
	d := n.core.Load().driver
	d.picture(newLoadTable(), &placement.ClusterRecord{}, nil)
	o := placement.Op{Kind: placement.OpDrain, State: placement.OpRunning, From: id}
	_, err := d.stepDrain(ctx, &o)
	return o.State, err
}

// RecordStep writes what a driver that has read the record of an operation a while ago knows of it.
func (n *Node) RecordStep(ctx context.Context, o placement.Op) error {
	return n.core.Load().driver.record(ctx, &o)
}

// Compare has the node look into meta for all shards, now.
func (n *Node) Compare(ctx context.Context) error {
	return n.core.Load().compare(ctx, syncRequest{Last: ^engine.ShardID(0)})
}

// Learn tells the node of a shard and of its leader, as another node does.
func (n *Node) Learn(ctx context.Context, d *shard.Descriptor, leader engine.NodeID) error {
	b := mp.AppendArray(mp.AppendUint(mp.AppendArray(nil, 2), uint64(leader)), 1)
	return n.core.Load().serveLearn(ctx, shard.AppendDescriptor(b, d))
}

// Remembers tells where the node remembers a shard.
func (n *Node) Remembers(id engine.ShardID) (where []string) {
	c := n.core.Load()
	if c.view.shard(id) != nil || c.view.leader(id) != 0 {
		where = append(where, "view")
	}
	if slices.Contains(c.reports.among(id, id), id) {
		where = append(where, "reports")
	}
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	if c.book.rows[id] != nil {
		where = append(where, "loads")
	}
	return where
}
