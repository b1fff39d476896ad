package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
	"github.com/kiloraft/kiloraft/transport"
)

// Node is a running node.
type Node struct {
	cfg     Config
	log     *slog.Logger
	unlock  func()
	began   time.Time
	addr    string // advertised
	name    string
	state   *state.DB
	rlog    *raftlog.Log
	facts   *facts
	boot    *boot
	tr      *transport.Transport
	sec     *security
	client  *router.Client
	http    *httpServer
	redis   *redisServer
	slots   [2]chan struct{} // one place per goroutine of slow: for nodes, and for clients
	synced  atomic.Bool      // has read meta since it started
	core    atomic.Pointer[core]
	failure atomic.Pointer[string] // why the node cannot go on

	registry *prometheus.Registry // of metrics
	heat     heat
	history  history
	console  consoleState

	memberMu sync.Mutex
	recovery *raftlog.Recovery // until the scheduler has taken it; guarded by memberMu

	ctx    context.Context // ends when the node stops
	cancel context.CancelCauseFunc

	closeMu sync.Mutex
	closing bool
	wg      sync.WaitGroup
	closed  chan struct{} // closed when Close has finished
	close   sync.Once
	err     error // of Close
}

// Open starts a node on its data directory and returns when it listens. It is then a member of its cluster, or waits for one to
// be made.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, began: time.Now(), closed: make(chan struct{})}
	for i := range n.slots {
		n.slots[i] = make(chan struct{}, slowMax)
	}
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := n.open(); err != nil {
		n.shutdown(context.Background(), false)
		return nil, err
	}
	return n, nil
}

func (n *Node) open() error {
	if err := prepareDir(n.cfg.DataDir); err != nil {
		return err
	}
	unlock, err := Lock(n.cfg.DataDir)
	if err != nil {
		return err
	}
	n.unlock = unlock
	listener, err := listen("listen", n.cfg.Listen, n.cfg.Listener)
	if err != nil {
		return err
	}
	served := false
	defer func() {
		if !served {
			_ = listener.Close()
		}
	}()
	n.addr = advertised(n.cfg.Advertise, listener.Addr())
	if err := n.openSecurity(); err != nil {
		return err
	}
	if err := n.sec.checkAdvertised(n.addr); err != nil {
		return err
	}
	if err := n.openStores(); err != nil {
		return err
	}
	if err := n.openTransport(); err != nil {
		return err
	}
	n.registry = newRegistry(n)
	if n.http, err = n.openHTTP(); err != nil {
		return err
	}
	if err := n.facts.show(); err != nil {
		return err
	}
	if started, res := n.facts.membership(); started != nil {
		if err := n.becomeMember(*started, res); err != nil {
			return err
		}
	}
	if n.redis, err = n.openRedis(); err != nil {
		return err
	}
	served = true
	n.spawn(func() {
		if err := n.tr.Serve(listener); err != nil && n.ctx.Err() == nil {
			n.fatal(fmt.Errorf("node: listener: %w", err))
		}
	})
	n.spawn(n.waitLoop)
	if !n.cfg.unobserved {
		n.spawn(n.observeLoop)
	}
	n.log.Info("node is up", "addr", n.addr, "http", n.HTTPAddr(), "redis", n.RedisAddr(), "node", uint64(n.ID()), "cluster", idText(n.ClusterID()), "dir", n.cfg.DataDir)
	return nil
}

// openStores opens state and log, and reads the facts.
func (n *Node) openStores() error {
	var err error
	if n.state, err = state.Open(StatePath(n.cfg.DataDir), state.Options{Logger: n.log, Failed: n.stateFailed, GrowBytes: n.cfg.stateGrow, FreeBytes: n.cfg.stateFree}); err != nil {
		n.state = nil
		return fmt.Errorf("node: open state: %w", err)
	}
	if n.facts, err = loadFacts(n.state); err != nil {
		return err
	}
	if why, err := n.state.NodeGet(factRefused); err != nil {
		return err
	} else if len(why) > 0 {
		return fmt.Errorf("%w: %s; a copied or restored data directory cannot be used: start with an empty one", ErrRefused, why)
	}
	if plan, err := n.state.NodeGet(factRecovering); err != nil {
		return err
	} else if len(plan) > 0 {
		return fmt.Errorf("%w: plan %s was not applied to the end in %s: run kiloraft debug recover again", ErrRecovering, plan, n.cfg.DataDir)
	}
	if n.name = n.cfg.Name; n.name == "" {
		n.name = fmt.Sprintf("node-%x", n.facts.identity[:3])
	}
	synced, err := n.state.SyncedSeq()
	if err != nil {
		return fmt.Errorf("node: open state: %w", err)
	}
	started, _ := n.facts.membership() // its replicas have voted: a node that starts anew without its log breaks these promises
	n.rlog, n.recovery, err = raftlog.Open(vfs.OS(), LogPath(n.cfg.DataDir), raftlog.Options{
		SegmentBytes: n.cfg.LogSegmentBytes,
		CacheBytes:   n.cfg.LogCacheBytes,
		SyncedHint:   synced,
		MustExist:    started != nil,
		Background:   true,
		Logger:       n.log,
		FreeBytes: func() int64 {
			free, _ := diskSpace(LogPath(n.cfg.DataDir))
			return int64(free)
		},
	})
	if err != nil {
		n.rlog = nil
		return fmt.Errorf("node: open raft log: %w", err)
	}
	return nil
}

// stateFailed ends the node when the state cannot be written, be it a checkpoint, a snapshot that comes in, a new replica or a fact
// (rule State6).
func (n *Node) stateFailed(err error) {
	n.spawn(func() { n.fatal(fmt.Errorf("node: %w", err)) }) // the state is locked
}

func (n *Node) openTransport() error {
	calls := &dialer{tls: n.sec.tls(), dial: n.cfg.dial, log: n.log}
	n.boot = newBoot(n.facts, n.describe, n.cfg.Join, calls, n.log)
	n.boot.started = n.becomeMember
	n.boot.fault = n.cfg.fault
	var err error
	n.tr, err = transport.New(transport.Config{
		Identity:      n.facts.identity,
		Incarnations:  n.facts.incarnations,
		AdvertiseAddr: n.addr,
		TLS:           n.sec.tls(),
		Dial:          n.cfg.dial,
		Logger:        n.log,
		Authenticate:  n.sec.authenticate,
		Accept:        n.acceptPeer,
		OnRefused:     n.onRefused,
		Expect:        expected,
	}, handler{n})
	if err != nil {
		n.tr = nil
		return fmt.Errorf("node: transport: %w", err)
	}
	n.client = router.New(sender{n}, []string{""}, router.Config{Logger: n.log})
	return nil
}

// acceptPeer decides about a peer's handshake and persists its incarnation before the session begins (rule Cluster9).
func (n *Node) acceptPeer(p transport.PeerInfo) error {
	if err := n.refuseRemoved(p.Node); err != nil {
		return err
	}
	known, err := n.facts.peer(p.Node)
	if err != nil {
		return err
	}
	if known.Incarnation != 0 && !contains(p.Incarnations, known.Incarnation) {
		return &transport.Refused{Reason: transport.ReasonClone, Text: fmt.Sprintf(
			"node %d was seen with an incarnation that this copy of its data does not know", p.Node)}
	}
	if known.Identity != (id128{}) && known.Identity != p.Identity {
		return &transport.Refused{Reason: transport.ReasonClone, Text: fmt.Sprintf("node %d was seen with another identity", p.Node)}
	}
	return n.facts.sawPeer(p.Node, peerFact{Incarnation: p.Incarnation(), Identity: p.Identity, Addr: p.AdvertiseAddr})
}

// onRefused makes a refusal that says that this disk is a copy durable (rule Cluster9), and ends the node.
func (n *Node) onRefused(addr string, r *transport.Refused) {
	switch r.Reason {
	case transport.ReasonClone, transport.ReasonRemoved:
		err := fmt.Errorf("%w by %s: %s", ErrRefused, addr, r.Error())
		if perr := n.state.NodePut(factRefused, []byte(err.Error())); perr != nil {
			err = errors.Join(err, perr)
		}
		n.fatal(err)
	case transport.ReasonCluster:
		n.log.Error("a peer belongs to another cluster", "addr", addr, "err", r.Error())
	}
}

func contains(list []uint64, v uint64) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// describe returns what boot tells others about this node.
func (n *Node) describe() nodeInfo {
	return nodeInfo{Addr: n.addr, HTTP: n.HTTPAddr(), Name: n.name, Labels: n.cfg.Labels}
}

// describes brings rec in line with what this node is now, and tells whether that changed it.
func (n *Node) describes(rec *placement.NodeRecord) bool {
	now := *rec
	now.Addr, now.HTTP, now.Name, now.Labels = n.addr, n.HTTPAddr(), n.name, n.cfg.Labels
	same := string(now.Append(nil)) == string(rec.Append(nil))
	*rec = now
	return !same
}

// fatal ends the node: Config.Fatal decides how.
func (n *Node) fatal(err error) {
	text := err.Error()
	if n.failure.CompareAndSwap(nil, &text) {
		n.log.Error("the node cannot go on", "err", err)
		n.cfg.Fatal(err)
	}
}

// spawn runs f on a goroutine that Close waits for; false if the node is stopping.
func (n *Node) spawn(f func()) bool {
	n.closeMu.Lock()
	defer n.closeMu.Unlock()
	if n.closing {
		return false
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		f()
	}()
	return true
}

// Close hands leaderships away, checkpoints, and stops everything. When ctx ends it stops without further ado, which loses
// nothing. It may be called more than once.
func (n *Node) Close(ctx context.Context) error {
	n.close.Do(func() {
		n.shutdown(ctx, true)
		close(n.closed)
	})
	<-n.closed
	return n.err
}

// Abort stops the node without handing leaderships over and without a checkpoint: what a crash leaves, as far as a process can do
// that to itself. Nothing that was acknowledged is lost.
func (n *Node) Abort() {
	n.close.Do(func() {
		n.shutdown(context.Background(), false)
		close(n.closed)
	})
	<-n.closed
}

// shutdown stops what was started, in the order that lets each part finish what the one before it has asked for.
func (n *Node) shutdown(ctx context.Context, graceful bool) {
	n.closeMu.Lock()
	n.closing = true
	n.closeMu.Unlock()
	n.cancel(errClosed)
	var errs []error
	if n.redis != nil {
		errs = append(errs, n.redis.close())
	}
	if n.client != nil {
		errs = append(errs, n.client.Close())
	}
	if n.http != nil {
		errs = append(errs, n.http.close())
	}
	if c := n.core.Load(); c != nil {
		sctx := ctx
		if !graceful {
			var cancel context.CancelFunc
			sctx, cancel = context.WithCancel(context.Background())
			cancel()
		}
		if err := c.sched.Stop(sctx); err != nil && graceful {
			errs = append(errs, fmt.Errorf("stop scheduler: %w", err))
		}
	}
	if n.tr != nil {
		errs = append(errs, n.tr.Close())
	}
	n.wg.Wait()
	if n.rlog != nil {
		errs = append(errs, n.rlog.Close())
	}
	if n.state != nil {
		errs = append(errs, n.state.Close())
	}
	if n.unlock != nil {
		n.unlock()
	}
	if n.sec != nil {
		n.sec.close()
	}
	n.err = errors.Join(errs...)
	n.log.Info("node has stopped", "err", n.err)
}

var errClosed = errors.New("node is closed")

// Done is closed when the node has stopped.
func (n *Node) Done() <-chan struct{} { return n.closed }

// Addr returns the address that the node tells others.
func (n *Node) Addr() string { return n.addr }

// HTTPAddr returns the address of the HTTP endpoints, empty if there are none.
func (n *Node) HTTPAddr() string {
	if n.http == nil {
		return ""
	}
	return n.http.addr
}

// ID returns the node's id, 0 while it belongs to no cluster.
func (n *Node) ID() engine.NodeID {
	if c := n.core.Load(); c != nil {
		return c.node
	}
	return 0
}

// ClusterID returns the cluster that the node belongs to, zero while there is none.
func (n *Node) ClusterID() [16]byte {
	if c := n.core.Load(); c != nil {
		return c.cluster
	}
	return [16]byte{}
}

// Name returns the node's name.
func (n *Node) Name() string { return n.name }

// prepareDir makes the data directory, and refuses one that holds other things than a node's.
func prepareDir(dir string) error {
	if err := vfs.MakeDir(dir, 0o750); err != nil {
		return fmt.Errorf("node: data directory: %w", err)
	}
	if _, err := os.Stat(StatePath(dir)); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("node: data directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("node: data directory: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); name != lockFile && name != "lost+found" {
			return fmt.Errorf("%w: %s has no %s, but it has %s; give an empty directory or the right one", ErrBadDir, dir, stateFile, name)
		}
	}
	return nil
}

// listenWait is how long to wait for a process that is just ending to let go of the address.
const listenWait = 300 * time.Millisecond

// listen opens a listener, or takes the given one.
func listen(what, addr string, given net.Listener) (net.Listener, error) {
	if given != nil {
		return given, nil
	}
	l, err := net.Listen("tcp", addr)
	for end := time.Now().Add(listenWait); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(end); {
		time.Sleep(listenWait / 10)
		l, err = net.Listen("tcp", addr)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w: %s address %s: another process listens there", ErrAddrInUse, what, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("node: %s: %w", what, err)
	}
	return l, nil
}

// advertised returns what to tell others: as configured, or where the listener is; of an unspecified host the machine's name.
func advertised(configured string, l net.Addr) string {
	if configured != "" {
		return configured
	}
	host, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return l.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}
