package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/fault"
	"github.com/kiloraft/kiloraft/shard"
)

// bootCalls are the requests by which nodes make a cluster; the transport carries them between client connections, because
// nodes without a cluster are nobody's peers.
type bootCalls interface {
	Hello(ctx context.Context, addr string, h *hello) (hello, error)
	Reserve(ctx context.Context, addr string, r *reservation) (held, error)
	Start(ctx context.Context, addr string, r *reservation) (held, error)
}

// boot makes a cluster out of waiting nodes (rule Cluster7). It answers the requests of others, keeps in touch with the
// other waiting nodes, and drives an init.
//
// Why no two clusters come of it: a reservation is started only by who has seen every member hold it. A node gives one up only on
// the evidence that a member of it has started in another cluster; the first member of a reservation to give it up would need
// such evidence from a member that had not held it, so a reservation that all hold together is never given up. Why
// inits do not block each other: reservations are taken in ascending order of identity, so whoever is blocked goes on with a reservation that
// has come further, and there is no circle.
type boot struct {
	facts *facts
	self  func() nodeInfo // without the state, which boot fills in
	calls bootCalls
	log   *slog.Logger
	// started is called once the started fact is durable, and again by every repeated Start: it makes the node a member.
	started func(startedFact, *reservation) error
	// fault, if set, is asked between the steps of an init; an error ends it there, as a crash would. For tests.
	fault func(step string) error

	mu    sync.Mutex
	known map[id128]nodeInfo  // others that were heard of, by identity
	spoke map[id128]time.Time // when they last spoke for themselves
	join  []string
	heard map[string]bool // addresses of join that have answered
}

func newBoot(f *facts, self func() nodeInfo, join []string, calls bootCalls, log *slog.Logger) *boot {
	return &boot{facts: f, self: self, join: join, calls: calls, log: log, known: map[id128]nodeInfo{}, spoke: map[id128]time.Time{}, heard: map[string]bool{}}
}

// info returns how this node describes itself now.
func (b *boot) info() nodeInfo {
	n := b.self()
	n.Identity = b.facts.identity
	started, res := b.facts.membership()
	if started != nil {
		n.Started, n.Node = started.Cluster, started.Node
	}
	if res != nil {
		n.Reserved = res.Cluster
	}
	return n
}

// hello returns what this node tells others.
func (b *boot) hello() hello {
	h := hello{Self: b.info()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.known {
		if len(h.Known) < nodesMax {
			h.Known = append(h.Known, n)
		}
	}
	return h
}

// onHello answers a Hello.
func (b *boot) onHello(h *hello) hello {
	b.learn(h)
	return b.hello()
}

// learn keeps what a Hello said. A node is believed about itself; what others say of it counts only as long as it was not heard.
func (b *boot) learn(h *hello) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.Self.Identity != (id128{}) && h.Self.Identity != b.facts.identity {
		b.known[h.Self.Identity] = h.Self
		b.spoke[h.Self.Identity] = time.Now()
	}
	for _, n := range h.Known {
		if _, ok := b.known[n.Identity]; !ok && n.Identity != b.facts.identity && len(b.known) < nodesMax {
			b.known[n.Identity] = n
		}
	}
}

// onReserve takes or keeps a reservation.
func (b *boot) onReserve(r *reservation) (held, error) {
	if started, res := b.facts.membership(); started != nil {
		return held{Started: started.Cluster, Reservation: res}, nil
	}
	if _, ok := r.find(b.facts.identity); !ok {
		return held{}, fmt.Errorf("%w: a reservation that does not name this node", shard.ErrInvalid)
	}
	now, err := b.facts.reserve(r)
	return held{Reservation: now}, err
}

// onStart makes this node a member of the cluster that it holds a reservation of.
func (b *boot) onStart(r *reservation) (held, error) {
	started, res := b.facts.membership()
	if started == nil {
		me, ok := r.find(b.facts.identity)
		if !ok || res == nil || res.Cluster != r.Cluster {
			return held{Reservation: res}, nil
		}
		started = &startedFact{Cluster: r.Cluster, Node: me.Node}
		if err := b.facts.start(*started); err != nil {
			return held{}, err
		}
		b.log.Info("member of a new cluster", "cluster", idText(r.Cluster), "node", uint64(me.Node))
	}
	if started.Cluster == r.Cluster {
		if err := b.started(*started, res); err != nil {
			return held{}, err
		}
	}
	return held{Started: started.Cluster, Reservation: res}, nil
}

// exchange says Hello to everyone that is known, once, and acts on what is heard. It returns how many addresses of join have
// never answered.
func (b *boot) exchange(ctx context.Context) (silent int) {
	mine := b.hello()
	var wg sync.WaitGroup
	for _, addr := range b.addrs() {
		wg.Add(1)
		go func() { // bounded by nodesMax, and ends with ctx
			defer wg.Done()
			h, err := b.calls.Hello(ctx, addr, &mine)
			if err != nil {
				b.log.Debug("hello", "addr", addr, "err", err)
				return
			}
			b.learn(&h)
			b.mu.Lock()
			b.heard[addr] = true
			b.mu.Unlock()
			if err := b.evidence(h.Self); err != nil {
				b.log.Error("cannot store what was learnt", "err", err)
			}
		}()
	}
	wg.Wait()
	own := b.info().Addr
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.join {
		if !b.heard[a] && a != own {
			silent++
		}
	}
	return silent
}

// addrs returns the addresses to talk to: those of join and those of the nodes that are known.
func (b *boot) addrs() []string {
	own := b.info().Addr
	b.mu.Lock()
	defer b.mu.Unlock()
	addrs := slices.Clone(b.join)
	for _, n := range b.known {
		addrs = append(addrs, n.Addr)
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	return slices.DeleteFunc(addrs, func(a string) bool { return a == own || a == "" })
}

// evidence acts on what a node has said of itself: a member of our reservation has started, in that cluster (then everyone held the
// reservation, and we may start too) or in another one (then it can never be started).
func (b *boot) evidence(peer nodeInfo) error {
	started, res := b.facts.membership()
	if started != nil || res == nil || peer.Started == (id128{}) {
		return nil
	}
	if _, ok := res.find(peer.Identity); !ok {
		return nil
	}
	if peer.Started == res.Cluster {
		_, err := b.onStart(res)
		return err
	}
	b.log.Warn("reservation given up: a member has started in another cluster", "cluster", idText(res.Cluster), "member", peer.Addr,
		"its_cluster", idText(peer.Started))
	return b.facts.dropReservation(res.Cluster)
}

// step runs the faults of tests: of those in this process, and of those with real processes.
func (b *boot) step(name string) error {
	fault.At(name)
	if b.fault == nil {
		return nil
	}
	return b.fault(name)
}

// adoptionsMax bounds how often an init changes to another's reservation; each has come further than the one before.
const adoptionsMax = 64

// run drives reservations and starts until all members of one reservation have started, and returns it. It is safe to run it at
// several nodes at once, and again.
func (b *boot) run(ctx context.Context, opt InitOptions) (*reservation, error) {
	r, err := b.candidate(ctx, opt)
	if err != nil {
		return nil, err
	}
	for range adoptionsMax {
		other, err := b.reserveAll(ctx, r)
		if err != nil {
			return nil, err
		}
		if other == nil {
			return r, b.startAll(ctx, r)
		}
		b.log.Info("adopting the reservation of another init", "cluster", idText(other.Cluster))
		r = other
	}
	return nil, &shard.UnavailableError{Reason: "too many concurrent inits"}
}

// candidate returns the reservation to go on with: the one that is held, or a new one of all nodes that wait.
func (b *boot) candidate(ctx context.Context, opt InitOptions) (*reservation, error) {
	if _, res := b.facts.membership(); res != nil {
		return res, nil
	}
	want := max(opt.Replicas, opt.Nodes, 1)
	grace := time.Now().Add(opt.gatherMax())
	for {
		since := time.Now().Add(-spokeMax)
		silent := b.exchange(ctx)
		if _, res := b.facts.membership(); res != nil {
			return res, nil
		}
		waiting := b.waiting(since)
		if clash := sameAddr(waiting); clash != nil {
			if time.Now().After(grace) { // until then it may be a node that was started anew and has lost its directory
				return nil, clash
			}
		} else if len(waiting) >= want && (silent == 0 || time.Now().After(grace)) {
			return newReservation(waiting, opt.Shards, opt.Replicas, time.Now().UnixMilli()), nil
		}
		tooFew := &shard.UnavailableError{Reason: fmt.Sprintf(
			"too few nodes: %d wait for a cluster, %d are needed; start the others with --join %s", len(waiting), want, b.info().Addr)}
		if len(waiting) < want && time.Now().After(grace) {
			return nil, tooFew
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			if len(waiting) < want { // nothing was begun: say what it waited for, not that it waited
				return nil, tooFew
			}
			return nil, err
		}
	}
}

// spokeMax is how recently a node must have spoken for itself to be counted. Who was heard of, or has waited once, may be gone: started
// anew in an empty directory, under another identity at the same address. It would be a member that nobody can be.
const spokeMax = 2 * time.Second

// sameAddr tells of two nodes that want to be reached at one address.
func sameAddr(nodes []nodeInfo) error {
	at := map[string]string{}
	for _, n := range nodes {
		if other, ok := at[n.Addr]; ok {
			return &shard.InvalidError{What: fmt.Sprintf(
				"two nodes, %s and %s, say that they are reached at %s: give each its own --advertise", other, n.Name, n.Addr)}
		}
		at[n.Addr] = n.Name
	}
	return nil
}

// waiting returns this node and the others that belong to no cluster and have spoken since.
func (b *boot) waiting(since time.Time) []nodeInfo {
	infos := []nodeInfo{b.info()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.known {
		if n.Started == (id128{}) && b.spoke[n.Identity].After(since) {
			infos = append(infos, n)
		}
	}
	return infos
}

// reserveAll takes the reservation at every member, in ascending order of identity. If one holds another reservation, that is returned.
func (b *boot) reserveAll(ctx context.Context, r *reservation) (other *reservation, err error) {
	for i, m := range r.Members {
		h, err := b.ask(ctx, m, func(ctx context.Context, addr string) (held, error) {
			if addr == "" {
				return b.onReserve(r)
			}
			return b.calls.Reserve(ctx, addr, r)
		})
		switch {
		case err != nil:
			return nil, fmt.Errorf("reserve at %s: %w", m.info.Addr, err)
		case h.Reservation != nil && h.Reservation.Cluster != r.Cluster && h.Started == (id128{}),
			h.Reservation != nil && h.Started == h.Reservation.Cluster && h.Started != r.Cluster:
			return h.Reservation, nil
		case h.Started != (id128{}) && h.Started != r.Cluster:
			return nil, fmt.Errorf("%w: node %s belongs to cluster %s", ErrOtherCluster, m.info.Addr, idText(h.Started))
		case h.Reservation == nil && h.Started == (id128{}):
			return nil, fmt.Errorf("%w: node %s took no reservation", shard.ErrInternal, m.info.Addr)
		}
		if err := b.step(fmt.Sprintf("reserved %d", i)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// startAll starts every member. All of them hold the reservation: nothing but time stands in the way now.
func (b *boot) startAll(ctx context.Context, r *reservation) error {
	for i, m := range r.Members {
		h, err := b.ask(ctx, m, func(ctx context.Context, addr string) (held, error) {
			if addr == "" {
				return b.onStart(r)
			}
			return b.calls.Start(ctx, addr, r)
		})
		if err != nil {
			return fmt.Errorf("start at %s: %w", m.info.Addr, err)
		}
		if h.Started != r.Cluster {
			return fmt.Errorf("%w: node %s has not started in cluster %s", ErrOtherCluster, m.info.Addr, idText(r.Cluster))
		}
		if err := b.step(fmt.Sprintf("started %d", i)); err != nil {
			return err
		}
	}
	return nil
}

// ask repeats a question to a member until it is answered or ctx ends. The empty address is this node.
func (b *boot) ask(ctx context.Context, m member, f func(context.Context, string) (held, error)) (held, error) {
	if m.info.Identity == b.facts.identity {
		return f(ctx, "")
	}
	for {
		h, err := f(ctx, b.addrOf(m))
		if err == nil || permanent(err) {
			return h, err
		}
		b.log.Debug("asking a member again", "addr", m.info.Addr, "err", err)
		if sleep(ctx, 100*time.Millisecond) != nil {
			return held{}, &shard.UnavailableError{Reason: fmt.Sprintf("node %s does not answer: %v", m.info.Addr, err)}
		}
	}
}

// addrOf returns where a member is: it may have come back at another address since the reservation.
func (b *boot) addrOf(m member) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n, ok := b.known[m.info.Identity]; ok && n.Addr != "" {
		return n.Addr
	}
	return m.info.Addr
}

// permanent tells whether asking again is no use.
func permanent(err error) bool {
	return errors.Is(err, shard.ErrInvalid) || errors.Is(err, shard.ErrInternal) || errors.Is(err, ErrOtherCluster)
}

// startedPeer returns a node that is a member of a cluster, if this one has heard of any.
func (b *boot) startedPeer() (nodeInfo, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.known {
		if n.Started != (id128{}) {
			return n, true
		}
	}
	return nodeInfo{}, false
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// InitOptions say what `cluster init` makes.
type InitOptions struct {
	// Shards of the user key space, default 1.
	Shards int
	// Replicas of each, default 3.
	Replicas int
	// Nodes: do not begin before so many nodes wait. 0: as many as Replicas.
	Nodes int
	// GatherMax is how long to wait for nodes, and for addresses of --join that have not answered; default 3 s.
	GatherMax time.Duration
}

func (o InitOptions) gatherMax() time.Duration {
	if o.GatherMax > 0 {
		return o.GatherMax
	}
	return 3 * time.Second
}

// InitResult tells what came of an init.
type InitResult struct {
	Cluster  [16]byte
	Already  bool // the cluster was ready before
	Nodes    []engine.NodeID
	Shards   int
	Replicas int
}
