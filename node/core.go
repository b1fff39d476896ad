package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/bitset"
	"github.com/kiloraft/kiloraft/scheduler"
	"github.com/kiloraft/kiloraft/shard"
)

// core is what a node has once it is a member of a cluster.
type core struct {
	n       *Node
	node    engine.NodeID
	cluster id128
	sched   *scheduler.Scheduler
	clock   scheduler.Clock
	clockAt atomic.Pointer[clockAt]
	view    *view
	meta    *metaClient
	reports *reporter
	strays  *strays
	driver  *driver
	book    *loadBook
	cuts    cuts
	wake    chan struct{} // look into meta soon
	noticed noticed

	collecting sync.Mutex // held while the book is filled

	making   sync.Mutex // held while replicas are made
	createMu sync.Mutex
	created  bitset.Set[engine.ShardID] // with replicas that this process has asked for, or found
}

// becomeMember makes the core, once. It is called at start if the node has started in a cluster before, else when it does; and
// again by every repeated Start of an init.
func (n *Node) becomeMember(s startedFact, res *reservation) error {
	n.memberMu.Lock()
	defer n.memberMu.Unlock()
	if n.core.Load() != nil {
		return nil
	}
	if res != nil && res.Cluster == s.Cluster {
		if err := n.facts.sawMeta(res.metaDescriptor()); err != nil {
			return err
		}
	}
	c, err := n.newCore(s)
	if err != nil {
		return err
	}
	if err := c.createMeta(res); err != nil {
		_ = c.sched.Stop(context.Background())
		return err
	}
	// Peers may connect from Join on: the handler must find the core by then.
	n.core.Store(c)
	if err := n.tr.Join(s.Cluster, s.Node); err != nil {
		return fmt.Errorf("node: join cluster: %w", err)
	}
	c.setPeers(res)
	n.spawn(c.syncLoop)
	n.spawn(c.reports.loop)
	n.spawn(c.strays.loop)
	n.spawn(c.driver.loop)
	return nil
}

func (n *Node) newCore(s startedFact) (*core, error) {
	c := &core{n: n, clock: n.cfg.clock, node: s.Node, cluster: s.Cluster, view: newView(), wake: make(chan struct{}, 1),
		created: bitset.Set[engine.ShardID]{}}
	c.reports, c.strays, c.driver = newReporter(c), newStrays(c), newDriver(c)
	c.book = newLoadBook(n.facts.incarnations[len(n.facts.incarnations)-1], smoothing*n.cfg.loadsEvery())
	cfg := scheduler.Config{
		Node:               s.Node,
		Incarnation:        n.facts.incarnations[len(n.facts.incarnations)-1],
		Lanes:              n.cfg.Lanes,
		ElectionTimeoutMin: engine.Duration(n.cfg.ElectionTimeout),
		HeartbeatInterval:  engine.Duration(n.cfg.HeartbeatInterval),
		QuiesceAfter:       engine.Duration(n.cfg.QuiesceAfter),
		ShardLogBytesMax:   n.cfg.LogKeepBytes,
		LogSegmentsMax:     n.cfg.logSegmentsMax(),
		CheckpointBytes:    n.cfg.OverlayBytesMax,
		InflightMax:        n.cfg.InflightMax,
		InflightBytesMax:   n.cfg.InflightBytesMax,
		SlowAfter:          engine.Duration(n.cfg.SlowAfter),
		Logger:             n.log,
		Fatal:              n.fatal,
		OnDescriptor:       c.onDescriptor,
		OnDescriptors:      c.onDescriptors,
		OnStray:            c.strays.onStray,
		OnSilent:           c.strays.onSilent,
	}
	if n.cfg.tune != nil {
		n.cfg.tune(&cfg)
	}
	sched, err := scheduler.New(cfg, scheduler.Deps{Log: n.rlog, Recovery: n.recovery, State: n.state, Network: network{n.tr}, Clock: n.cfg.clock})
	if err != nil {
		return nil, fmt.Errorf("node: scheduler: %w", err)
	}
	n.recovery = nil // large, and not needed any more
	c.sched = sched
	c.meta = &metaClient{send: n.call, descriptor: n.facts.metaDescriptor, saw: c.sawMeta, nodes: c.livingNodes, free: newMetaSessions()}
	if err := sched.Start(n.ctx); err != nil {
		return nil, fmt.Errorf("node: scheduler: %w", err)
	}
	list, err := sched.Statuses(n.ctx)
	if err != nil {
		return nil, fmt.Errorf("node: scheduler: %w", err)
	}
	for i := range list {
		if list[i].Descriptor != nil {
			c.created.Add(list[i].Shard)
		}
	}
	return c, nil
}

// createMeta makes this node's replica of the meta shard if the reservation gives it one and it was never made (rule Cluster7: the start
// creates it). A replica that exists, or was removed, stays as it is.
func (c *core) createMeta(res *reservation) error {
	if res == nil || res.Cluster != c.cluster {
		return nil
	}
	d := res.metaDescriptor()
	r, ok := d.OnNode(c.node)
	if !ok {
		return nil
	}
	// The last member in the order in which an init starts them campaigns at once: the others are there by then.
	var last engine.NodeID
	for _, m := range res.Members {
		if m.MetaReplica != 0 {
			last = m.Node
		}
	}
	opt := scheduler.CreateOptions{Campaign: last == c.node}
	err := c.create(c.n.ctx, []scheduler.NewReplica{{Descriptor: d, Replica: r.Replica, Options: opt}})
	if err != nil && !errors.Is(err, scheduler.ErrExists) {
		return fmt.Errorf("node: meta replica: %w", err)
	}
	return nil
}

// onDescriptor takes what a replica of this node has learnt. It is called on a lane and does not block.
func (c *core) onDescriptor(ev scheduler.DescriptorEvent) {
	c.view.onDescriptor(ev)
	c.reports.onDescriptor(ev)
	c.strays.onDescriptor(ev)
	if ev.Shard == shard.MetaShardID {
		c.driver.elected.Store(ev.IsLeader)
		c.driver.ring()
		if ev.Descriptor != nil {
			c.ring()
		}
	}
}

// onDescriptors takes what one split or merge has changed.
func (c *core) onDescriptors(events []scheduler.DescriptorEvent) {
	for _, ev := range events {
		c.view.onDescriptor(ev)
	}
	c.reports.onDescriptors(events)
}

// sawMeta keeps a newer descriptor of the meta shard.
func (c *core) sawMeta(d *shard.Descriptor) {
	if err := c.n.facts.sawMeta(d); err != nil {
		c.n.log.Error("cannot store the meta descriptor", "err", err)
	}
}

// ring makes the sync loop look into meta.
func (c *core) ring() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// setPeers tells the transport of all other nodes that are known.
func (c *core) setPeers(res *reservation) {
	addrs := map[engine.NodeID]string{}
	if res != nil {
		for _, m := range res.Members {
			addrs[m.Node] = m.info.Addr
		}
	}
	for id, addr := range c.n.facts.nodeAddrs() {
		addrs[id] = addr
	}
	for id, addr := range addrs {
		if p, err := c.n.facts.peer(id); err == nil && p.Addr != "" {
			addr = p.Addr
		}
		c.setPeer(id, addr)
	}
}

func (c *core) setPeer(id engine.NodeID, addr string) {
	if id != c.node && addr != "" {
		c.n.tr.SetPeer(id, addr)
	}
}

// instants turns a deadline of the wall clock into one of the scheduler's, and tells what time it is now; 0 and 0 without a deadline.
func (c *core) instants(t time.Time) (deadline, arrived engine.Instant) {
	if t.IsZero() {
		return 0, 0
	}
	now := time.Now()
	at := c.clockAt.Load()
	if at == nil || now.Sub(at.mono) > time.Second || now.Before(at.mono) {
		// CLOCK_BOOTTIME takes a system call; a deadline of a request may be off by what the machine slept in the last second.
		at = &clockAt{mono: now, boot: c.clock.Now()}
		c.clockAt.Store(at)
	}
	return at.boot + engine.Instant(t.Sub(at.mono)), at.boot + engine.Instant(now.Sub(at.mono))
}

// clockAt is one moment on both clocks.
type clockAt struct {
	mono time.Time
	boot engine.Instant
}
