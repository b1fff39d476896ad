package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kiloraft/kiloraft/internal/client"
)

const (
	nodesHelp = `  kill n1                kill -9 of a node
  stop n1                it hands over, then ends
  start n1               starts it again
  pause n1, resume n1    SIGSTOP and SIGCONT: alive, but mute
`
	linksHelp = `  partition n3           cuts n3 off from the others; partition n1 n2|n3 says who is on which side
  heal                   ends the partition
  status, nodes          health of the cluster, as each side of a partition sees it; the nodes
`
	noLinksHelp = `  status, nodes          health of the cluster; the nodes
`
	quitHelp = `  quit                   stops everything`
)

// help tells what can be typed.
func (p *prompt) help() string {
	if p.c.Links == nil {
		return nodesHelp + noLinksHelp + quitHelp
	}
	return nodesHelp + linksHelp + quitHelp
}

// problemsShown bounds the problems of a status at the prompt.
const problemsShown = 6

// readLines sends what people type until the input ends. The goroutine that reads cannot be stopped before: it ends with the input, or
// with the process.
func readLines(in io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return lines
}

// prompt carries out what people type beside the running demo. It is used by one goroutine.
type prompt struct {
	c     *Cluster
	kv    client.Cluster
	sides [][]int // of the partition: indexes of nodes; nil: none
	out   io.Writer
	watch func(*Process) // told of each process that is started
}

// do carries out one line, and tells whether the demo is to end.
func (p *prompt) do(ctx context.Context, line string) (quit bool) {
	words := strings.Fields(line)
	if len(words) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var err error
	switch word := strings.ToLower(words[0]); {
	case word == "quit" || word == "exit":
		return true
	case word == "status":
		err = p.status(ctx)
	case word == "nodes":
		err = p.nodes(ctx)
	case (word == "partition" || word == "heal") && p.c.Links == nil:
		err = errors.New("links cannot be cut with certificates: the demo knows nodes by what they say when they connect, and that is encrypted; pause makes a node mute")
	case word == "partition" && len(words) > 1:
		err = p.partition(strings.Join(words[1:], " "))
	case word == "heal":
		p.heal()
	case len(words) == 2:
		err = p.onNode(ctx, word, words[1])
	default:
		fmt.Fprintln(p.out, p.help())
	}
	if err != nil {
		fmt.Fprintln(p.out, "  "+err.Error())
	}
	return false
}

func (p *prompt) onNode(ctx context.Context, word, name string) error {
	i, err := p.node(name)
	if err != nil {
		return err
	}
	n, began := p.c.Nodes[i], time.Now()
	var done string
	switch word {
	case "kill":
		n.Kill()
		done = "was killed"
	case "stop":
		err, done = n.Stop(ctx), "handed its leaderships over and ended"
	case "pause":
		err, done = n.Signal(syscall.SIGSTOP), "stands still: its shards are led elsewhere in a moment"
	case "resume":
		err, done = n.Signal(syscall.SIGCONT), "goes on"
	case "start":
		if n.running() {
			return fmt.Errorf("%s runs", n.Name)
		}
		if err = p.c.Restart(ctx, i); err == nil {
			p.watch(p.c.Nodes[i])
		}
		done = "is back"
	default:
		fmt.Fprintln(p.out, p.help())
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "  %s %s (%v)\n", n.Name, done, time.Since(began).Round(time.Millisecond))
	return nil
}

// node gives the index of a node that is called n1 or 1.
func (p *prompt) node(name string) (int, error) {
	for i, n := range p.c.Nodes {
		if n.Name == name || strings.TrimPrefix(n.Name, "n") == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("no node is called %q: n1 to n%d", name, len(p.c.Nodes))
}

// status tells how the cluster is; under a partition, how each side sees it.
func (p *prompt) status(ctx context.Context) error {
	if p.sides == nil {
		return p.statusOf(ctx, "", p.kv)
	}
	for _, side := range p.sides {
		i := slices.IndexFunc(side, func(i int) bool { return p.c.Nodes[i].running() })
		if i < 0 {
			fmt.Fprintf(p.out, "  %s: no node of this side runs\n", p.names(side))
			continue
		}
		kv, err := p.c.Dial(ctx, []string{p.c.Nodes[side[i]].Addr})
		if err != nil {
			return err
		}
		askCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := p.statusOf(askCtx, p.names(side)+": ", kv); err != nil {
			fmt.Fprintf(p.out, "  %s: %v\n", p.names(side), err)
		}
		cancel()
		kv.Close()
	}
	return nil
}

func (p *prompt) statusOf(ctx context.Context, who string, kv client.Cluster) error {
	st, err := kv.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "  %snodes %d of %d up; shards %d, %d with a leader, %d under-replicated, %d unavailable\n", who, st.Nodes.Up, st.Nodes.Total,
		st.Shards.Total, st.Shards.WithLeader, st.Shards.UnderReplicated, st.Shards.Unavailable)
	for _, s := range st.Problems[:min(len(st.Problems), problemsShown)] {
		fmt.Fprintf(p.out, "  %sproblem: %s\n", who, s)
	}
	if more := len(st.Problems) - problemsShown; more > 0 {
		fmt.Fprintf(p.out, "  %s%d more problems: cluster status names them\n", who, more)
	}
	return nil
}

func (p *prompt) nodes(ctx context.Context) error {
	list, err := p.kv.Nodes(ctx)
	for _, n := range list {
		fmt.Fprintf(p.out, "  %s  %-8s  %d replicas, %d leaders\n", n.Name, n.State, n.Replicas, n.Leaders)
	}
	return err
}
