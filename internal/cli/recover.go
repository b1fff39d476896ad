package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/internal/recovery"
	"github.com/kiloraft/kiloraft/node"
)

const recoverLong = `Makes a cluster again of the nodes that survive, after so many were lost for good that shards have no quorum any more. Whatever only
the lost nodes had is gone, acknowledged or not. Try everything else first: a node that can be started again is not lost.

Stop all surviving nodes (all of them, also those that are well) and copy their data directories. Then, where all directories are on one
machine:

  kiloraft debug recover --lost 2,3 --data-dir D1 --data-dir D4             # shows what would be done, and changes nothing
  kiloraft debug recover --unsafe --lost 2,3 --data-dir D1 --data-dir D4    # asks, and does it

and where they are not:

  kiloraft debug recover inspect --data-dir D1 --out n1.json               # on each survivor's machine
  kiloraft debug recover plan --lost 2,3 --out plan.json n1.json n4.json   # anywhere
  kiloraft debug recover apply --unsafe --data-dir D1 plan.json            # on each survivor's machine, before any node is started

Per shard without a quorum the survivor with the newest log goes on, alone; shards with a quorum are not touched. Once the nodes are
started again, the others' replicas are removed, and new ones are made as soon as there are nodes for them. The lost nodes must never be
started again; where they meet a survivor they are refused and stop for good. It may be repeated after any interruption.`

// dirList is the value of a flag --data-dir that may be repeated.
type dirList []string

func (l *dirList) String() string     { return strings.Join(*l, ",") }
func (l *dirList) Type() string       { return "dir" }
func (l *dirList) Set(s string) error { *l = append(*l, s); return nil }

func (a *app) debugRecoverCmd() *cobra.Command {
	var dirs dirList
	var lost []string
	var unsafe, yes bool
	cmd := &cobra.Command{
		Use: "recover --unsafe --lost N,… --data-dir D …", Short: "Last resort after a quorum is lost for good", Long: recoverLong, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			ids, err := nodeIDs(lost)
			if err != nil {
				return err
			}
			release, err := lockAll(dirs)
			if err != nil {
				return err
			}
			defer release()
			reports := make([]*recovery.Report, len(dirs))
			for i, dir := range dirs {
				if reports[i], err = recovery.Inspect(dir); err != nil {
					return err
				}
			}
			plan, err := recovery.MakePlan(reports, ids)
			if err != nil {
				return err
			}
			if !unsafe {
				a.say("Nothing was changed. With --unsafe it asks, and does this:")
				return a.emit(recovered{Plan: plan, Applied: []recovery.Applied{}}, func(w io.Writer) error { return printRecovery(w, plan) })
			}
			return a.recoverDirs(plan, dirs, yes)
		},
	}
	cmd.Flags().Var(&dirs, "data-dir", "data directory of a stopped survivor; repeat it for each")
	lostFlag(cmd, &lost)
	unsafeFlags(cmd, &unsafe, &yes)
	cmd.AddCommand(a.recoverInspectCmd(), a.recoverPlanCmd(), a.recoverApplyCmd(), a.recoverSalvageCmd())
	return cmd
}

func lostFlag(cmd *cobra.Command, lost *[]string) {
	cmd.Flags().StringSliceVar(lost, "lost", nil, "ids of the nodes that are lost for good")
}

func unsafeFlags(cmd *cobra.Command, unsafe, yes *bool) {
	cmd.Flags().BoolVar(unsafe, "unsafe", false, "do it; without it the plan is only shown")
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

func nodeIDs(list []string) ([]uint64, error) {
	if len(list) == 0 {
		return nil, usagef("--lost: name the nodes that are lost for good")
	}
	ids := make([]uint64, len(list))
	for i, s := range list {
		id, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
		if err != nil || id == 0 {
			return nil, usagef("--lost: %q is no node id", s)
		}
		ids[i] = id
	}
	return ids, nil
}

// lockAll takes the directories of stopped nodes.
func lockAll(dirs []string) (release func(), err error) {
	if len(dirs) == 0 {
		return nil, usagef("--data-dir: name the data directories of all stopped survivors")
	}
	var held []func()
	release = func() {
		for _, f := range held {
			f()
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(node.StatePath(dir)); err != nil {
			release()
			return nil, fmt.Errorf("%s is no data directory of a node: %w", dir, err)
		}
		f, err := node.Lock(dir)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, f)
	}
	return release, nil
}

// recovered is the outcome of a recovery.
type recovered struct {
	Plan    *recovery.Plan     `json:"plan"`
	Applied []recovery.Applied `json:"applied"`
}

// recoverDirs shows the plan, asks, and applies it: every directory is prepared before the first log is changed.
func (a *app) recoverDirs(plan *recovery.Plan, dirs []string, yes bool) error {
	shown := a.env.Stdout
	if a.json() {
		shown = a.env.Stderr
	}
	if err := printRecovery(shown, plan); err != nil {
		return err
	}
	if !yes {
		if err := a.confirm("recover " + plan.Cluster[:8]); err != nil {
			return err
		}
	}
	out := recovered{Plan: plan, Applied: make([]recovery.Applied, len(dirs))}
	var err error
	for i, dir := range dirs {
		if out.Applied[i], err = recovery.Prepare(dir, plan); err != nil {
			return err
		}
	}
	for i, dir := range dirs {
		done, err := recovery.Commit(dir, plan)
		if err != nil {
			return err
		}
		out.Applied[i].Shards, out.Applied[i].Already = done.Shards, done.Already
	}
	return a.emit(out, func(w io.Writer) error { return printApplied(w, out.Applied) })
}

// confirm asks for words that nobody types by accident.
func (a *app) confirm(words string) error {
	fmt.Fprintf(a.env.Stderr, "This cannot be undone. Type %q to go on: ", words)
	line, _ := bufio.NewReader(a.env.Stdin).ReadString('\n')
	if strings.TrimSpace(line) != words {
		return errors.New("nothing was changed")
	}
	return nil
}

func (a *app) recoverInspectCmd() *cobra.Command {
	var out string
	cmd := a.dataDirFlag(&cobra.Command{
		Use: "inspect --data-dir D --out FILE", Short: "Write the report of one survivor",
		Long: "Checks every checksum of a stopped survivor's data directory, and writes what it holds of each shard, as JSON. It changes nothing.",
	}, func(dir string) error {
		r, err := recovery.Inspect(dir)
		if err != nil {
			return err
		}
		if err := writeJSON(out, r); err != nil {
			return err
		}
		return a.emit(r, func(w io.Writer) error { return printReport(w, r) })
	})
	cmd.Flags().StringVar(&out, "out", "", "file for the report")
	return cmd
}

func (a *app) recoverPlanCmd() *cobra.Command {
	var out string
	var lost []string
	cmd := &cobra.Command{
		Use: "plan --lost N,… --out FILE REPORT…", Short: "Make the plan from the reports of all survivors", Args: cobra.MinimumNArgs(1),
		Long: "Makes and shows the plan of a recovery from the reports of all survivors. It changes nothing.",
		RunE: func(_ *cobra.Command, args []string) error {
			ids, err := nodeIDs(lost)
			if err != nil {
				return err
			}
			reports := make([]*recovery.Report, len(args))
			for i, file := range args {
				reports[i] = &recovery.Report{}
				if err := readJSON(file, reports[i]); err != nil {
					return err
				}
			}
			plan, err := recovery.MakePlan(reports, ids)
			if err != nil {
				return err
			}
			if err := writeJSON(out, plan); err != nil {
				return err
			}
			return a.emit(plan, func(w io.Writer) error { return printRecovery(w, plan) })
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file for the plan")
	lostFlag(cmd, &lost)
	return cmd
}

func (a *app) recoverApplyCmd() *cobra.Command {
	var unsafe, yes bool
	var dirs dirList
	cmd := &cobra.Command{
		Use: "apply --unsafe --data-dir D PLAN", Short: "Apply a plan to the directory of one survivor", Args: cobra.ExactArgs(1),
		Long: "Shows a plan, asks, and applies it to the data directory of one stopped survivor. Apply it to all survivors before you start one.",
		RunE: func(_ *cobra.Command, args []string) error {
			plan := &recovery.Plan{}
			if err := readJSON(args[0], plan); err != nil {
				return err
			}
			if !unsafe {
				a.say("Nothing was changed. With --unsafe it asks, and does this:")
				return a.emit(recovered{Plan: plan, Applied: []recovery.Applied{}}, func(w io.Writer) error { return printRecovery(w, plan) })
			}
			release, err := lockAll(dirs)
			if err != nil {
				return err
			}
			defer release()
			return a.recoverDirs(plan, dirs, yes)
		},
	}
	cmd.Flags().Var(&dirs, "data-dir", "data directory of a stopped survivor")
	unsafeFlags(cmd, &unsafe, &yes)
	return cmd
}

func (a *app) recoverSalvageCmd() *cobra.Command {
	return &cobra.Command{
		Use: "salvage FILE", Short: "Print what a recovery has cut off", Args: cobra.ExactArgs(1),
		Long: "Prints the log entries that a recovery has cut off from one survivor and kept in its salvage file, and what they would have done.",
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			w := bufio.NewWriterSize(a.env.Stdout, 64<<10)
			n := 0
			err = recovery.ReadSalvage(f, func(h *recovery.SalvageHeader, e *recovery.SalvagedEntry) error {
				n++
				if a.json() {
					return jsonElement(w, n, struct {
						*recovery.SalvagedEntry
						What string `json:"what"`
					}{e, e.What()})
				}
				_, err := fmt.Fprintf(w, "node=%d shard=%d replica=%d entry=%d/%d %s\n", h.Node, e.Shard, e.Replica, e.Term, e.Index, e.What())
				return err
			})
			if a.json() {
				jsonEnd(w, n)
			}
			return errors.Join(w.Flush(), err)
		},
	}
}

func writeJSON(file string, v any) error {
	if file == "" {
		return nil
	}
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o600)
}

func readJSON(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func keyRange(start, end []byte) string {
	return fmt.Sprintf("[%s,%s)", shorten(escape.String(start), 24), shorten(escape.String(end), 24))
}

func shardName(id uint64) string {
	if id == 1 {
		return "1(meta)"
	}
	return strconv.FormatUint(id, 10)
}

func printReport(w io.Writer, r *recovery.Report) error {
	fmt.Fprintf(w, "node %d of cluster %s\n", r.Node, r.Cluster)
	var rows [][]string
	for i := range r.Replicas {
		p := &r.Replicas[i]
		rows = append(rows, []string{shardName(p.Shard), keyRange(p.Descriptor.Start, p.Descriptor.End), strconv.FormatUint(p.Replica, 10), p.Last.String(),
			p.Committed.String(), p.Applied.String(), strconv.FormatUint(p.Vote.Term, 10)})
	}
	return table(w, "SHARD RANGE REPLICA LAST COMMITTED APPLIED VOTE_TERM", rows)
}

// printRecovery tells per shard who goes on, what the others have, and what may be lost.
func printRecovery(w io.Writer, p *recovery.Plan) error {
	fmt.Fprintf(w, "cluster %s, plan %s\nlost: node %s; survivors: node %s\n", p.Cluster, p.ID, recovery.Nodes(p.Lost), recovery.Nodes(p.Survivors))
	fmt.Fprintf(w, "%d shards have lost their quorum, %d have one and are not touched, of %d nothing is left\n", len(p.Shards), p.Untouched, len(p.Gone))
	var rows [][]string
	for i := range p.Shards {
		s := &p.Shards[i]
		others, cut := "-", uint64(0)
		for j, o := range s.Others {
			if j == 0 {
				others = ""
			}
			others = strings.TrimPrefix(others+fmt.Sprintf(",n%d@%s", o.Node, o.Last), ",")
			if o.CutFrom > 0 {
				cut += o.CutTo - o.CutFrom + 1
			}
		}
		rows = append(rows, []string{shardName(s.Shard), keyRange(s.Before.Start, s.Before.End), fmt.Sprintf("n%d", s.Node), s.Last.String(), s.Committed.String(),
			s.Applied.String(), strconv.FormatUint(s.Undecided, 10), others, strconv.FormatUint(cut, 10), strconv.FormatUint(s.FirstLost, 10)})
	}
	if err := table(w, "SHARD RANGE GOES_ON_WITH LAST COMMITTED APPLIED UNDECIDED OTHERS CUT_OFF FIRST_POSSIBLY_LOST", rows); err != nil {
		return err
	}
	for i := range p.Gone {
		fmt.Fprintf(w, "GONE shard %d %s: no survivor has a replica of it; its keys stay unavailable\n", p.Gone[i].Shard, keyRange(p.Gone[i].Start, p.Gone[i].End))
	}
	return nil
}

func printApplied(w io.Writer, list []recovery.Applied) error {
	for _, r := range list {
		fmt.Fprintf(w, "node %d: %d shards go on with its replicas", r.Node, r.Shards)
		if r.Already > 0 {
			fmt.Fprintf(w, " (%d did already)", r.Already)
		}
		if r.Salvaged > 0 {
			fmt.Fprintf(w, "; %d entries that are cut off are kept in %s", r.Salvaged, r.Salvage)
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintln(w, "Start the survivors now, all of them. Never start a lost node again.")
	return err
}
