package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// network is a TCP proxy in front of each node: others reach a node at its address here, so that the link of any two nodes can be hurt. Who
// dials is read from the handshake, which names the dialler's address.
type network struct {
	t     *testing.T
	addrs []string // of the proxies, by node
	wg    sync.WaitGroup

	mu    sync.Mutex
	fault map[[2]int]string // guarded by mu: bytes from one node to another; see pump
	conns map[net.Conn]bool // guarded by mu
	ends  []net.Listener
}

// startThrough starts nodes whose traffic with each other goes through a network.
func startThrough(t *testing.T, nodes int, args ...string) (*cluster, *network) {
	t.Helper()
	n := &network{t: t, fault: map[[2]int]string{}, conns: map[net.Conn]bool{}}
	free, err := demo.FreeAddrs(2 * nodes)
	if err != nil {
		t.Fatal(err)
	}
	dc := &demo.Cluster{Dir: t.TempDir(), Servers: free[:nodes]}
	for range nodes {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n.ends, n.addrs = append(n.ends, l), append(n.addrs, l.Addr().String())
	}
	for i, l := range n.ends {
		n.wg.Go(func() { n.accept(l, i, free[i]) })
	}
	t.Cleanup(n.close)
	c := &cluster{Cluster: dc, t: t}
	t.Cleanup(c.end)
	for i := range nodes {
		s := demo.Spec{Binary: binary, Name: fmt.Sprintf("n%d", i+1), Dir: dc.Dir, Addr: free[i], HTTP: free[nodes+i],
			Args: append([]string{"--advertise", n.addrs[i]}, args...)}
		for j, a := range n.addrs {
			if j != i {
				s.Join = append(s.Join, a)
			}
		}
		p, err := demo.Start(s)
		if err != nil {
			t.Fatal(err)
		}
		dc.Nodes = append(dc.Nodes, p)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, p := range dc.Nodes {
		if err := p.WaitLive(ctx); err != nil {
			t.Fatal(err)
		}
	}
	c.kv = c.dial()
	return c, n
}

func (n *network) close() {
	n.mu.Lock()
	for _, l := range n.ends {
		l.Close()
	}
	for c := range n.conns {
		c.Close()
	}
	n.fault = map[[2]int]string{}
	n.mu.Unlock()
	n.wg.Wait()
}

// hurt sets what happens to the bytes from a to b, and severs what is connected if they are cut.
func (n *network) hurt(a, b int, how string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault[[2]int{a, b}] = how
	if how == "cut" {
		for c := range n.conns {
			c.Close()
		}
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault = map[[2]int]string{}
	for c := range n.conns {
		c.Close() // what was swallowed is gone: a stream with a hole ends, as it would by a reset
	}
}

func (n *network) how(a, b int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fault[[2]int{a, b}]
}

func (n *network) accept(l net.Listener, to int, target string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		n.wg.Go(func() { n.carry(in, to, target) })
	}
}

// carry joins a connection with the node that it is for.
func (n *network) carry(in net.Conn, to int, target string) {
	defer in.Close()
	first := make([]byte, 4096)
	k, err := in.Read(first)
	if err != nil {
		return
	}
	from := -1 // a node that waits, or a client
	for i, a := range n.addrs {
		if bytes.Contains(first[:k], []byte(a)) {
			from = i
		}
	}
	if n.how(from, to) == "cut" {
		return
	}
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	n.mu.Lock()
	n.conns[in], n.conns[out] = true, true
	n.mu.Unlock()
	n.wg.Go(func() { n.pump(in, out, to, from, nil) })
	n.pump(out, in, from, to, first[:k])
	n.mu.Lock()
	delete(n.conns, in)
	delete(n.conns, out)
	n.mu.Unlock()
}

// pump moves bytes from node a to node b. "lost": they vanish, and the sender sees nothing of it; "slow": each read is late.
func (n *network) pump(dst io.WriteCloser, src io.ReadCloser, a, b int, first []byte) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		switch n.how(a, b) {
		case "lost":
		case "slow":
			time.Sleep(60 * time.Millisecond)
			fallthrough
		default:
			if _, err := dst.Write(first); err != nil {
				return
			}
		}
		k, err := src.Read(buf)
		if err != nil {
			return
		}
		first = buf[:k]
	}
}

// TestNetwork severs, half-opens, blinds and slows the links of one node after the other, and lets nodes stand still for longer than a lease,
// under a load whose outcome is judged; then it restarts all nodes in turn.
func TestNetwork(t *testing.T) {
	seed := seedOf(t)
	pause, rounds := 2*time.Second, 1
	if full {
		pause, rounds = 6*time.Second, 4
	}
	c, n := startThrough(t, 3, "--auto-balance=false", "--auto-balance-leaders=false")
	c.init(8)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seed)
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
	both := func(how string) func(v, o int) {
		return func(v, o int) { n.hurt(v, o, how); n.hurt(o, v, how) }
	}
	for round := range rounds {
		for i, f := range []struct {
			name string
			hurt func(victim, other int)
		}{
			{"severed", both("cut")}, {"half open", both("lost")}, {"slow", both("slow")},
			{"mute", func(v, o int) { n.hurt(v, o, "lost") }}, {"deaf", func(v, o int) { n.hurt(o, v, "lost") }},
		} {
			victim := (i + round + int(seed%3)) % 3
			for o := range c.Nodes {
				if o != victim {
					f.hurt(victim, o)
				}
			}
			time.Sleep(pause)
			n.heal()
			c.writable(load, fmt.Sprintf("%s: node %d", f.name, victim+1))
		}
		p := c.Nodes[(round+int(seed%3))%3]
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause + time.Second)
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.writable(load, "stood still: "+p.Name)
		for i, p := range c.Nodes {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			err := p.Stop(ctx)
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			c.restart(i)
			c.writable(load, "restarted: "+p.Name)
		}
	}
	load.stop()
	all := a.settled(time.Minute)
	load.verify()
	a.disks(all)
}

// writable waits until every shard takes writes.
func (c *cluster) writable(load *workload, what string) {
	c.t.Helper()
	load.counters.Mark()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	over, err := load.counters.WaitWritable(ctx)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	c.t.Logf("%s: every shard takes writes after %v", what, over.Last.Round(time.Millisecond))
}
