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

	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/ports"
)

// Options of a demo.
type Options struct {
	Binary   string
	Nodes    int
	Shards   int
	Dir      string // "": a temporary one that is removed
	BasePort int    // 0: 7100 if it is free, else any; -1: any
	Data     string // directory that the tour loads; "": see findData
	Dial     func(ctx context.Context, servers []string, as certs.Names) (client.Cluster, error)
	Out      io.Writer // what people read
	In       io.Reader // what people type while the demo runs; nil: nothing
	Args     []string  // more arguments of each node
	Links    bool      // nodes reach each other through proxies, which can hurt the links between them; not with TLS
	TLS      bool      // with certificates, which are made in Dir/certs
}

// Cluster is a set of node processes on this machine.
type Cluster struct {
	Dir     string
	Nodes   []*Process
	Servers []string
	Links   *Links      // nil without Options.Links
	admin   certs.Names // of the administrator; without TLS: none
	options Options
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
	if o.Links && o.TLS {
		return nil, fmt.Errorf("%w: links cannot be hurt with TLS: what nodes say when they connect, and so who they are, is encrypted", client.ErrInvalid)
	}
	c := &Cluster{Dir: o.Dir, options: o}
	if c.Dir == "" {
		c.temp = true
		c.Dir, err = os.MkdirTemp("", "kiloraft-demo-")
	} else if c.Dir, err = filepath.Abs(c.Dir); err == nil {
		err = os.MkdirAll(c.Dir, 0o755)
	}
	if err != nil {
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
	var names []string
	for i := range o.Nodes {
		names = append(names, "n"+strconv.Itoa(i+1))
	}
	var made certs.Dir
	if o.TLS {
		if made, err = makeCerts(c.Dir, names); err != nil {
			return nil, err
		}
		c.admin = made.Names(administrator, false)
	}
	for i, name := range names {
		s := Spec{Binary: o.Binary, Name: name, Dir: c.Dir, Addr: listen[i], HTTP: http[i], Args: o.Args}
		if o.TLS {
			s.Certs = made.Names(name, true)
		}
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
	free, err := ports.Free(3 * nodes)
	if err != nil {
		return nil, nil, nil, err
	}
	return free[:nodes], free[nodes : 2*nodes], free[2*nodes:], nil
}

// Dial connects to the nodes at these addresses, with certificates as the administrator.
func (c *Cluster) Dial(ctx context.Context, servers []string) (client.Cluster, error) {
	return c.options.Dial(ctx, servers, c.admin)
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
	o.Links = o.In != nil && !o.TLS // else nobody can ask for a partition
	fmt.Fprintf(o.Out, "Starting %d node processes …\n", o.Nodes)
	c, err := StartCluster(startCtx, o)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(o.Out, "\nStopping …")
		err = errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}()
	kv, err := c.Dial(startCtx, c.Servers)
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
	pr := &prompt{c: c, kv: kv, out: o.Out, watch: watch}
	if o.In != nil {
		fmt.Fprintf(o.Out, "\nOr here:\n%s\n", pr.help())
		if c.Links != nil {
			fmt.Fprintf(o.Out, "  Nodes reach each other through proxies of the demo (%s …): that is what node ls shows.\n", c.Links.addrs[0])
		}
		fmt.Fprint(o.Out, "\n> ")
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
		fmt.Fprintf(w, "  %s  %s  %s  pid %d\n", p.Name, p.Addr, p.URL(), p.PID())
	}
	fmt.Fprintf(w, "\nThe console, in a browser: %s\n", c.Nodes[0].URL())
	name, setup, server, console := commandName(o.Binary), "", "", ""
	if c.Servers[0] != net.JoinHostPort("127.0.0.1", strconv.Itoa(defaultBasePort)) {
		server = " --server " + c.Servers[0]
	}
	if c.admin.CA != "" {
		setup = fmt.Sprintf("  export KILORAFT_TLS_CA=%s\n  export KILORAFT_TLS_CERT=%s KILORAFT_TLS_KEY=%s\n", c.admin.CA, c.admin.Cert, c.admin.Key)
		console = fmt.Sprintf("  %s user passwd %s%s        # then log in to the console as %s\n", name, administrator, server, administrator)
	}
	kill := ""
	if len(c.Nodes) >= 3 { // else it takes the quorum of some shards with it
		kill = fmt.Sprintf("  kill -9 %d        # and watch: cluster status, kv put, kv get still answer\n", c.Nodes[len(c.Nodes)-1].PID())
	}
	fmt.Fprintf(w, `
Data and logs: %s

Things to try in another terminal:
%s  %[3]s kv put greeting hello%[4]s
  %[3]s kv get greeting%[4]s
  %[3]s cluster status%[4]s
  %[3]s shard ls --limit 5%[4]s
  seq 10000 | awk '{print "item/" $1 "\t" $1}' | %[3]s kv import -%[4]s
  %[3]s bench write --inflight 256%[4]s
  %[3]s top%[4]s
%[5]s%[6]s
^C stops everything%[7]s.
`, c.Dir, setup, name, server, console, kill, map[bool]string{true: " and removes the data", false: "; the data stays"}[c.temp])
}

// commandName gives the binary as people would call it from here: by its path below the working directory if that is shorter.
func commandName(binary string) string {
	wd, err := os.Getwd()
	if err != nil {
		return binary
	}
	rel, err := filepath.Rel(wd, binary)
	if err != nil || len(rel) >= len(binary) {
		return binary
	}
	if filepath.Base(rel) == rel {
		return "." + string(filepath.Separator) + rel
	}
	return rel
}
