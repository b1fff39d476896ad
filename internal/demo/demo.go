package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

// Options of a demo.
type Options struct {
	Binary   string
	Nodes    int
	Shards   int
	Dir      string // "": a temporary one that is removed
	BasePort int    // 0: 7100 if it is free, else any; -1: any
	Data     string // directory that the tour loads; "": see findData
	Dial     func(ctx context.Context, servers []string) (client.Cluster, error)
	Out      io.Writer // what people read
	In       io.Reader // what people type while the demo runs; nil: nothing
	Args     []string  // more arguments of each node
	Links    bool      // nodes reach each other through proxies, which can hurt the links between them
}

// Cluster is a set of node processes on this machine.
type Cluster struct {
	Dir     string
	Nodes   []*Process
	Servers []string
	Links   *Links // nil without Options.Links
	temp    bool
}

// Ports of node i, counted from the base port: base+i for nodes and clients, base+80+i for HTTP (as serve's own defaults), base+40+i for the
// proxy that other nodes reach it through.
const (
	defaultBasePort = 7100
	httpOffset      = 80
	linkOffset      = 40
)

// StartCluster starts the nodes and waits until they answer. After an error nothing is left running.
func StartCluster(ctx context.Context, o Options) (_ *Cluster, err error) {
	if o.Nodes < 1 || o.Nodes > 9 {
		return nil, fmt.Errorf("%w: %d nodes: want 1 to 9", client.ErrInvalid, o.Nodes)
	}
	c := &Cluster{Dir: o.Dir}
	if c.Dir == "" {
		c.temp = true
		if c.Dir, err = os.MkdirTemp("", "kiloraft-demo-"); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.KillAll()
			c.closeLinks()
			c.remove()
		}
	}()
	listen, http, link, err := addresses(o)
	if err != nil {
		return nil, err
	}
	c.Servers = listen
	reach := listen // where nodes reach each other
	if o.Links {
		if c.Links, err = StartLinks(link, listen); err != nil {
			return nil, err
		}
		reach = link
	}
	for i := range o.Nodes {
		s := Spec{Binary: o.Binary, Name: "n" + strconv.Itoa(i+1), Dir: c.Dir, Addr: listen[i], HTTP: http[i], Args: o.Args}
		if o.Links {
			s.Args = append([]string{"--advertise", link[i]}, o.Args...)
		}
		for j, a := range reach {
			if j != i {
				s.Join = append(s.Join, a)
			}
		}
		p, err := Start(s)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, p)
	}
	for _, p := range c.Nodes {
		if err := p.WaitLive(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// addresses chooses the ports of nodes, HTTP and links.
func addresses(o Options) (listen, http, link []string, err error) {
	base := o.BasePort
	switch base {
	case -1:
		return freeAddresses(o.Nodes)
	case 0:
		base = defaultBasePort
	}
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	for i := range o.Nodes {
		listen, http, link = append(listen, at(base+i)), append(http, at(base+httpOffset+i)), append(link, at(base+linkOffset+i))
	}
	for _, a := range slices.Concat(listen, http, link) {
		l, err := net.Listen("tcp", a)
		if err == nil {
			l.Close()
			continue
		}
		if o.BasePort != 0 {
			return nil, nil, nil, fmt.Errorf("the demo needs %s: %w", a, err)
		}
		return freeAddresses(o.Nodes)
	}
	return listen, http, link, nil
}

func freeAddresses(nodes int) (listen, http, link []string, err error) {
	free, err := FreeAddrs(3 * nodes)
	if err != nil {
		return nil, nil, nil, err
	}
	return free[:nodes], free[nodes : 2*nodes], free[2*nodes:], nil
}

// Restart starts node i again after it was killed or stopped, and waits until it answers.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	p, err := Start(c.Nodes[i].Spec)
	if err != nil {
		return err
	}
	c.Nodes[i] = p
	return p.WaitLive(ctx)
}

// KillAll is kill -9 of all nodes.
func (c *Cluster) KillAll() {
	for _, p := range c.Nodes {
		p.Kill()
	}
}

// Unexpected tells whether a node ended by itself.
func (c *Cluster) Unexpected() error {
	var errs []error
	for _, p := range c.Nodes {
		errs = append(errs, p.Unexpected())
	}
	return errors.Join(errs...)
}

// Stop stops the nodes gracefully, all at once, and removes a temporary directory.
func (c *Cluster) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	results := make(chan error)
	for _, p := range c.Nodes {
		go func() {
			if !p.running() { // killed, as people are invited to, or by itself
				results <- p.Unexpected()
				return
			}
			results <- p.Stop(ctx)
		}()
	}
	var errs []error
	for range c.Nodes {
		errs = append(errs, <-results)
	}
	c.closeLinks()
	err := errors.Join(errs...)
	if err == nil {
		c.remove()
	}
	return err
}

func (c *Cluster) closeLinks() {
	if c.Links != nil {
		c.Links.Close()
	}
}

func (c *Cluster) remove() {
	if c.temp {
		_ = os.RemoveAll(c.Dir)
	}
}

// init makes the cluster and says how long it took.
func initialize(ctx context.Context, kv client.Cluster, o Options) (client.InitResult, time.Duration, error) {
	start := time.Now()
	res, err := kv.Init(ctx, o.Shards, min(3, o.Nodes))
	if err != nil {
		return res, 0, fmt.Errorf("making the cluster: %w", err)
	}
	return res, time.Since(start), nil
}

// Run starts a cluster, prints what to try, and stops it when ctx ends.
func Run(ctx context.Context, o Options) (err error) {
	startCtx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	o.Links = o.In != nil // else nobody can ask for a partition
	fmt.Fprintf(o.Out, "Starting %d node processes …\n", o.Nodes)
	c, err := StartCluster(startCtx, o)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(o.Out, "\nStopping …")
		err = errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}()
	kv, err := o.Dial(startCtx, c.Servers)
	if err != nil {
		return err
	}
	defer kv.Close()
	res, took, err := initialize(startCtx, kv, o)
	if err != nil {
		return err
	}
	o.announce(c, res, took)
	ended := make(chan struct{}, 1)
	watch := func(p *Process) {
		go func() { // ends with the process, which ends with the demo
			<-p.Done()
			select {
			case ended <- struct{}{}:
			default:
			}
		}()
	}
	for _, p := range c.Nodes {
		watch(p)
	}
	var lines <-chan string
	pr := &prompt{c: c, kv: kv, dial: o.Dial, out: o.Out, watch: watch}
	if o.In != nil {
		fmt.Fprintf(o.Out, "\nOr here:\n%s\n", promptHelp)
		fmt.Fprintf(o.Out, "  Nodes reach each other through proxies of the demo (%s …): that is what node ls shows.\n\n> ", c.Links.addrs[0])
		lines = readLines(o.In)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case line, ok := <-lines:
			if !ok {
				lines = nil
			} else if pr.do(ctx, line) {
				return nil
			} else {
				fmt.Fprint(o.Out, "> ")
			}
		case <-ended:
			// People are invited to kill nodes; the demo goes on while one is left.
			if alive := c.reportEnded(o.Out); alive == 0 && lines == nil {
				return errors.New("no node is left")
			}
		}
	}
}

func (c *Cluster) reportEnded(w io.Writer) (alive int) {
	for _, p := range c.Nodes {
		if p.running() {
			alive++
		} else if p.Unexpected() != nil {
			p.expect()
			fmt.Fprintf(w, "node %s has ended (%v); its log: %s\n", p.Name, p.err, p.LogFile())
		}
	}
	return alive
}

func (o *Options) announce(c *Cluster, res client.InitResult, took time.Duration) {
	w := o.Out
	if res.Already {
		fmt.Fprintf(w, "Cluster %s is back.\n\n", res.ClusterID)
	} else {
		fmt.Fprintf(w, "Cluster %s: %d shards on %d nodes, each with a leader after %.1f s.\n\n", res.ClusterID, o.Shards, o.Nodes, took.Seconds())
	}
	for _, p := range c.Nodes {
		fmt.Fprintf(w, "  %s  %s  http://%s/metrics  pid %d\n", p.Name, p.Addr, p.HTTP, p.PID())
	}
	name := o.Binary
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, name); err == nil && len(rel) < len(name) {
			name = rel
		}
	}
	server := ""
	if c.Servers[0] != net.JoinHostPort("127.0.0.1", strconv.Itoa(defaultBasePort)) {
		server = " --server " + c.Servers[0]
	}
	kill := ""
	if len(c.Nodes) >= 3 { // else it takes the quorum of some shards with it
		kill = fmt.Sprintf("  kill -9 %d        and watch: cluster status, kv put, kv get still answer\n", c.Nodes[len(c.Nodes)-1].PID())
	}
	fmt.Fprintf(w, `
Data and logs: %s

Things to try in another terminal:
  %[2]s kv put greeting hello%[3]s
  %[2]s kv get greeting%[3]s
  %[2]s cluster status%[3]s
  %[2]s shard ls --limit 5%[3]s
  %[2]s kv import --format dir $(go env GOROOT)/src%[3]s
  %[2]s bench write --inflight 256%[3]s
%[4]s
^C stops everything%[5]s.
`, c.Dir, name, server, kill, map[bool]string{true: " and removes the data", false: "; the data stays"}[c.temp])
}
