package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/node"
)

// topHottest and topOps bound what top shows of shards and operations.
const (
	topHottest = 20
	topOps     = 20
)

// topView is one look at the cluster.
type topView struct {
	At      time.Time     `json:"at"`
	Status  client.Status `json:"status"`
	Nodes   []topNode     `json:"nodes"`
	Hottest []topShard    `json:"hottest"`
	Ops     []client.Op   `json:"operations"` // those that run
	Missing []string      `json:"missing"`    // what could not be learnt, and why
}

type topNode struct {
	client.Node
	Sample *node.Sample `json:"sample"` // nil: unknown
}

type topShard struct {
	node.HotShard
	Leader uint64 `json:"leader"`
}

func (a *app) topCmd() *cobra.Command {
	every, once := 2*time.Second, false
	cmd := &cobra.Command{
		Use: "top", Args: cobra.NoArgs, Short: "Watch nodes, the hottest shards and operations",
		Long: `Shows, and keeps showing, what the cluster does: nodes with their load and latencies, the shards that are asked for most, operations that run, and every
problem. q ends it. With --once, and where the output is no terminal, it prints one look and ends. On a secured cluster it takes an admin.`,
		Example: "  kiloraft top\n  kiloraft top --once -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return usagef("--interval %v: want at least 100ms", every)
			}
			if once || a.json() || !isTerminal(a.env.Stdout) {
				v, err := a.look(cmd.Context())
				if err != nil {
					return err
				}
				return a.emit(v, func(w io.Writer) error { return v.print(w) })
			}
			return a.watchTop(cmd.Context(), every)
		},
	}
	cmd.Flags().DurationVar(&every, "interval", every, "time between two looks")
	cmd.Flags().BoolVar(&once, "once", false, "print one look and end")
	return cmd
}

// look gathers a view. Only a cluster that does not answer at all is an error; the rest is named in Missing.
func (a *app) look(ctx context.Context) (*topView, error) {
	v := &topView{At: time.Now(), Nodes: []topNode{}, Hottest: []topShard{}, Ops: []client.Op{}, Missing: []string{}}
	var cluster client.Cluster
	if err := a.request(ctx, func(ctx context.Context, c client.Cluster) (err error) {
		cluster = c
		v.Status, err = c.Status(ctx)
		return err
	}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		v.Nodes = append(v.Nodes, topNode{Node: n})
	}
	if ad, ok := cluster.(client.Admin); ok {
		ops, err := ad.Ops(ctx, topOps)
		if err != nil {
			v.Missing = append(v.Missing, "operations: "+err.Error())
		}
		v.Ops = append(v.Ops, slices.DeleteFunc(ops, func(o client.Op) bool { return o.Over() })...)
	}
	if ins, ok := cluster.(client.Inspector); ok {
		v.askNodes(ctx, ins)
	}
	return v, nil
}

// askNodes asks the nodes that are up what they are doing, all at once.
func (v *topView) askNodes(ctx context.Context, ins client.Inspector) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.State == "down" || n.State == "removed" {
			continue
		}
		wg.Go(func() {
			var now node.Now
			b, err := ins.Inspect(ctx, n.ID, n.Address, "now", 0)
			if err == nil {
				err = json.Unmarshal(b, &now)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				v.Missing = append(v.Missing, fmt.Sprintf("node %d: %v", n.ID, err))
				return
			}
			n.Sample = now.Sample
			for _, h := range now.Hottest {
				v.Hottest = append(v.Hottest, topShard{h, n.ID})
			}
		})
	}
	wg.Wait()
	slices.Sort(v.Missing)
	slices.SortStableFunc(v.Hottest, func(x, y topShard) int {
		switch dx, dy := x.Reads+x.Writes, y.Reads+y.Writes; {
		case dx > dy:
			return -1
		case dx < dy:
			return 1
		}
		return int(int64(x.Shard) - int64(y.Shard))
	})
	v.Hottest = v.Hottest[:min(topHottest, len(v.Hottest))]
}

// print shows a view as text.
func (v *topView) print(w io.Writer) error {
	s := &v.Status
	fmt.Fprintf(w, "%s   nodes %d of %d up   shards %d, %d with a leader   replicas %d   operations %d running\n", v.At.Format("15:04:05"),
		s.Nodes.Up, s.Nodes.Total, s.Shards.Total, s.Shards.WithLeader, s.Replicas, s.Operations.Running)
	for _, p := range append(slices.Clone(s.Problems), v.Missing...) {
		fmt.Fprintln(w, "problem:", p)
	}
	fmt.Fprintln(w)
	if err := table(w, "NODE NAME STATE LEADERS REPLICAS READS/S WRITES/S P50 P99 SYNC-P99 SYNCS/S CPU MEMORY DISK-FREE QUEUE", v.nodeRows()); err != nil {
		return err
	}
	if len(v.Hottest) > 0 {
		var rows [][]string
		for _, h := range v.Hottest {
			rows = append(rows, []string{strconv.FormatUint(h.Shard, 10), strconv.FormatUint(h.Leader, 10), perSecond(h.Reads), perSecond(h.Writes),
				humanBytes(int64(h.Bytes)), shortKey(h.Start)})
		}
		fmt.Fprintln(w)
		if err := table(w, "SHARD LEADER READS/S WRITES/S BYTES/S FROM", rows); err != nil {
			return err
		}
	}
	if len(v.Ops) == 0 {
		return nil
	}
	var rows [][]string
	for _, o := range v.Ops {
		left := ""
		if o.LeftS > 0 {
			left = (time.Duration(o.LeftS) * time.Second).String()
		}
		rows = append(rows, []string{strconv.FormatUint(o.ID, 10), o.What, o.Step, fmt.Sprintf("%d/%d", o.Done, o.Total), left, o.Reason})
	}
	fmt.Fprintln(w)
	return table(w, "OP WHAT STEP DONE LEFT WAITS-FOR", rows)
}

func (v *topView) nodeRows() (rows [][]string) {
	for _, n := range v.Nodes {
		row := []string{strconv.FormatUint(n.ID, 10), n.Name, n.State, strconv.Itoa(n.Leaders), strconv.Itoa(n.Replicas)}
		if s := n.Sample; s != nil {
			row = append(row, perSecond(s.Reads), perSecond(s.Writes), latency(s.CommitP50), latency(s.CommitP99), latency(s.SyncP99), perSecond(s.Syncs),
				fmt.Sprintf("%.0f%%", 100*s.CPU), humanBytes(int64(s.MemoryBytes)), humanBytes(int64(s.DiskFree)), strconv.Itoa(s.Queue))
		}
		rows = append(rows, row)
	}
	return rows
}

func perSecond(v float64) string {
	if v < 10 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

func latency(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(10 * time.Microsecond).String()
}

func shortKey(s string) string {
	if s == "" {
		return "(the beginning)"
	}
	if r := []rune(s); len(r) > 40 {
		return string(r[:39]) + "…"
	}
	return s
}

// topModel is the screen: the newest view, and what went wrong since.
type topModel struct {
	look   func() (*topView, error)
	every  time.Duration
	view   *topView
	err    error
	height int
	width  int
}

type lookMsg struct {
	view *topView
	err  error
}

type lookAgain struct{}

// Init implements tea.Model.
func (m topModel) Init() tea.Cmd { return m.gather }

func (m topModel) gather() tea.Msg {
	v, err := m.look()
	return lookMsg{v, err}
}

// Update implements tea.Model.
func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		}
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case lookMsg:
		if m.err = msg.err; msg.view != nil {
			m.view = msg.view
		}
		return m, tea.Tick(m.every, func(time.Time) tea.Msg { return lookAgain{} })
	case lookAgain:
		return m, m.gather
	}
	return m, nil
}

// View implements tea.Model.
func (m topModel) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	return v
}

func (m topModel) text() string {
	var b strings.Builder
	switch {
	case m.err != nil:
		fmt.Fprintln(&b, "no answer:", m.err)
	case m.view == nil:
		fmt.Fprintln(&b, "looking …")
	}
	if m.view != nil {
		_ = m.view.print(&b)
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if room := m.height - 1; m.height > 1 && len(lines) > room {
		lines = lines[:room]
	}
	for i, l := range lines {
		if r := []rune(l); m.width > 1 && len(r) > m.width {
			lines[i] = string(r[:m.width-1]) + "…"
		}
	}
	return strings.Join(append(lines, "q: quit"), "\n")
}

func (a *app) watchTop(ctx context.Context, every time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := topModel{every: every, look: func() (*topView, error) { return a.look(ctx) }}
	_, err := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(a.env.Stdin), tea.WithOutput(a.env.Stdout)).Run()
	if errors.Is(err, tea.ErrProgramKilled) || errors.Is(err, tea.ErrInterrupted) {
		return nil // ^C
	}
	return err
}
