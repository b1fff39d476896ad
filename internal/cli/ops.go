package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/client"
)

// admin gives the part of the cluster that changes it.
func (a *app) admin(ctx context.Context) (client.Admin, error) {
	c, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	admin, ok := c.(client.Admin)
	if !ok {
		return nil, errors.New("this cluster cannot be changed")
	}
	return admin, nil
}

// unbounded is a context for what waits for an operation: --timeout bounds it only if it was given.
func (a *app) unbounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.cfg.Given("timeout") {
		return context.WithTimeout(ctx, a.cfg.Timeout)
	}
	return context.WithCancel(ctx)
}

// operate starts an operation and waits for its end, or returns at once with --detach.
func (a *app) operate(cmd *cobra.Command, spec client.OpSpec) error {
	ctx, cancel := a.unbounded(cmd.Context())
	defer cancel()
	admin, err := a.admin(ctx)
	if err != nil {
		return err
	}
	sctx, scancel := context.WithTimeout(ctx, a.cfg.Timeout)
	o, err := admin.StartOp(sctx, spec)
	scancel()
	if err != nil {
		return err
	}
	if detach, _ := cmd.Flags().GetBool("detach"); detach {
		return a.emitOp(o)
	}
	return a.follow(ctx, admin, o)
}

// follow waits for an operation and shows how far it is. An operation that fails is an error; one that still runs when the time is over goes on.
func (a *app) follow(ctx context.Context, admin client.Admin, o client.Op) error {
	shown := ""
	progress := func(o *client.Op) {
		line := fmt.Sprintf("%s: %s, %d of %d", o.What, o.Step, o.Done, o.Total)
		if o.LeftS > 0 {
			line += fmt.Sprintf(", about %v left", time.Duration(o.LeftS)*time.Second)
		}
		if o.Reason != "" {
			line += ", " + o.Reason
		}
		if line != shown && isTerminal(a.env.Stderr) {
			fmt.Fprintf(a.env.Stderr, "\r\x1b[K%s", line)
			shown = line
		}
	}
	end, err := waitOp(ctx, admin, o.ID, progress)
	if shown != "" {
		fmt.Fprint(a.env.Stderr, "\r\x1b[K")
	}
	if err != nil {
		if ctx.Err() == nil {
			return err
		}
		if end.ID == 0 {
			end = o
		}
		if err := a.emitOp(end); err != nil {
			return err
		}
		a.say("%s still runs: kiloraft op wait %d", end.What, end.ID)
		return silentError{exitUnknown}
	}
	if err := a.emitOp(end); err != nil {
		return err
	}
	switch end.State {
	case "failed":
		return fmt.Errorf("%s failed: %s", end.What, end.Error)
	case "cancelled":
		return fmt.Errorf("%s was cancelled", end.What)
	}
	return nil
}

func (a *app) emitOp(o client.Op) error {
	return a.emit(o, func(w io.Writer) error { return opTable(w, []client.Op{o}) })
}

func opTable(w io.Writer, ops []client.Op) error {
	var rows [][]string
	for _, o := range ops {
		note := o.Reason
		if o.Error != "" {
			note = o.Error
		}
		progress := "-"
		if o.Total > 0 {
			progress = fmt.Sprintf("%d/%d", o.Done, o.Total)
		}
		what := o.What
		if _, in, ok := strings.Cut(what, "("); ok {
			what = strings.TrimSuffix(in, ")")
		}
		bytes := humanBytes(int64(o.BytesTotal))
		if !o.Over() && o.BytesTotal > 0 {
			bytes = humanBytes(int64(o.BytesDone)) + "/" + bytes
		}
		if o.LeftS > 0 {
			note = strings.TrimSuffix(fmt.Sprintf("about %v left; %s", time.Duration(o.LeftS)*time.Second, note), "; ")
		}
		rows = append(rows, []string{strconv.FormatUint(o.ID, 10), o.State, what, o.Step, progress, bytes, o.Started, note})
	}
	return table(w, "ID STATE WHAT STEP DONE BYTES STARTED NOTE", rows)
}

func detachFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Bool("detach", false, "print the operation and return; it goes on (see op wait)")
	return cmd
}

func (a *app) opCmd() *cobra.Command {
	var limit int
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List the operations, newest first",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAdmin(cmd, func(ctx context.Context, admin client.Admin) error {
				ops, err := admin.Ops(ctx, limit)
				if err != nil {
					return err
				}
				return a.emit(ops, func(w io.Writer) error { return opTable(w, ops) })
			})
		},
	}
	ls.Flags().IntVar(&limit, "limit", 100, "at most so many (0: all that are kept)")
	one := func(use, short string, f func(cmd *cobra.Command, id uint64) error) *cobra.Command {
		return &cobra.Command{Use: use, Args: cobra.ExactArgs(1), Short: short, RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("operation", args[0])
			if err != nil {
				return err
			}
			return f(cmd, id)
		}}
	}
	show := one("show ID", "Show one operation", func(cmd *cobra.Command, id uint64) error {
		return a.withAdmin(cmd, func(ctx context.Context, admin client.Admin) error {
			o, err := admin.Op(ctx, id)
			if err != nil {
				return err
			}
			return a.emitOp(o)
		})
	})
	wait := one("wait ID", "Wait until an operation is over; exit 1 if it failed or was cancelled, 5 if --timeout ends first", func(cmd *cobra.Command, id uint64) error {
		ctx, cancel := a.unbounded(cmd.Context())
		defer cancel()
		admin, err := a.admin(ctx)
		if err != nil {
			return err
		}
		return a.follow(ctx, admin, client.Op{ID: id, State: "running"})
	})
	cancel := one("cancel ID", "Ask an operation to stop, and wait until it has; what cannot be undone is finished", func(cmd *cobra.Command, id uint64) error {
		ctx, stop := a.unbounded(cmd.Context())
		defer stop()
		admin, err := a.admin(ctx)
		if err != nil {
			return err
		}
		rctx, rstop := context.WithTimeout(ctx, a.cfg.Timeout)
		o, err := admin.CancelOp(rctx, id)
		rstop()
		if err == nil && !o.Over() {
			o, err = waitOp(ctx, admin, id, nil)
		}
		if ctx.Err() != nil && o.ID != 0 {
			if err := a.emitOp(o); err != nil {
				return err
			}
			return silentError{exitUnknown}
		}
		if err != nil {
			return err
		}
		return a.emitOp(o)
	})
	return group("op", "Operations: what changes shards and nodes", ls, show, wait, cancel)
}

func (a *app) withAdmin(cmd *cobra.Command, f func(context.Context, client.Admin) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.cfg.Timeout)
	defer cancel()
	admin, err := a.admin(ctx)
	if err != nil {
		return err
	}
	return f(ctx, admin)
}

// nodeOps are the commands that change nodes.
func (a *app) nodeOps() []*cobra.Command {
	drain := detachFlag(&cobra.Command{
		Use: "drain N", Args: cobra.ExactArgs(1), Short: "Move leaders, then replicas, away from a node",
		Long: `Moves the leaderships of a node away, then its replicas, and keeps new ones from coming. It is undone by undrain. A drained node may be
stopped and removed.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("node", args[0])
			if err != nil {
				return err
			}
			return a.operate(cmd, client.OpSpec{Kind: "drain", From: id})
		},
	})
	undrain := &cobra.Command{
		Use: "undrain N", Args: cobra.ExactArgs(1), Short: "Let a node take replicas and leaders again; a drain that runs is cancelled",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("node", args[0])
			if err != nil {
				return err
			}
			return a.withAdmin(cmd, func(ctx context.Context, admin client.Admin) error {
				if err := admin.Undrain(ctx, id); err != nil {
					return err
				}
				return a.emitNode(id, "up")
			})
		},
	}
	var force bool
	remove := &cobra.Command{
		Use: "remove N", Args: cobra.ExactArgs(1), Short: "Remove a drained node from the cluster, for good",
		Long: `Removes a drained node from the cluster, for good: it is told, and stops. A node that is down and does not come back is removed with --force:
its replicas are replaced at once.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("node", args[0])
			if err != nil {
				return err
			}
			return a.withAdmin(cmd, func(ctx context.Context, admin client.Admin) error {
				if err := admin.RemoveNode(ctx, id, force); err != nil {
					return err
				}
				return a.emitNode(id, "removed")
			})
		},
	}
	remove.Flags().BoolVar(&force, "force", false, "remove a node that is down with replicas on it")
	return []*cobra.Command{drain, undrain, remove}
}

func (a *app) emitNode(id uint64, state string) error {
	v := struct {
		ID    uint64 `json:"id"`
		State string `json:"state"`
	}{id, state}
	return a.emit(v, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "node %d: %s\n", id, state)
		return err
	})
}

// shardOps are the commands that change shards.
func (a *app) shardOps() []*cobra.Command {
	var from, to uint64
	move := detachFlag(&cobra.Command{
		Use: "move ID --from NODE --to NODE", Args: cobra.ExactArgs(1), Short: "Move one replica of a shard to another node",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("shard", args[0])
			if err != nil {
				return err
			}
			if from == 0 || to == 0 {
				return usagef("--from and --to: name two nodes")
			}
			return a.operate(cmd, client.OpSpec{Kind: "move", Shard: id, From: from, To: to})
		},
	})
	move.Flags().Uint64Var(&from, "from", 0, "node that holds the replica")
	move.Flags().Uint64Var(&to, "to", 0, "node that is to hold it")
	merge := detachFlag(&cobra.Command{
		Use: "merge LEFT RIGHT", Args: cobra.ExactArgs(2), Short: "Merge a shard with its right neighbour, which is absorbed",
		RunE: func(cmd *cobra.Command, args []string) error {
			left, err := idArg("shard", args[0])
			if err != nil {
				return err
			}
			right, err := idArg("shard", args[1])
			if err != nil {
				return err
			}
			return a.operate(cmd, client.OpSpec{Kind: "merge", Shard: left, Other: right})
		},
	})
	return []*cobra.Command{a.shardSplitCmd(), merge, move, a.shardRebalanceCmd()}
}

func (a *app) shardSplitCmd() *cobra.Command {
	var at []string
	var parts uint64
	cmd := detachFlag(&cobra.Command{
		Use: "split ID (--at KEY … | --parts N)", Args: cobra.ExactArgs(1), Short: "Split a shard at keys, or into parts of about equal size",
		Long: `Splits a shard: the parts stay on its nodes, and no data is moved. It keeps what is below the first key; each new shard begins at one of
the keys. With --parts the keys are found by sampling.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("shard", args[0])
			if err != nil {
				return err
			}
			if (len(at) == 0) == (parts == 0) {
				return usagef("give --at KEY, once or more often, or --parts N")
			}
			spec := client.OpSpec{Kind: "split", Shard: id, Parts: parts}
			for _, s := range at {
				key, err := keyArg(s)
				if err != nil {
					return err
				}
				spec.Keys = append(spec.Keys, key)
			}
			return a.operate(cmd, spec)
		},
	})
	cmd.Flags().StringArrayVar(&at, "at", nil, "key at which a new shard begins; repeatable")
	cmd.Flags().Uint64Var(&parts, "parts", 0, "number of parts")
	return cmd
}

func (a *app) shardRebalanceCmd() *cobra.Command {
	var dry bool
	var by []string
	cmd := detachFlag(&cobra.Command{
		Use: "rebalance", Args: cobra.NoArgs, Short: "Level replicas, leaders, sizes and load over the nodes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, b := range by {
				switch b {
				case "replicas", "leaders", "size", "load":
				default:
					return usagef("--by %q: want replicas, leaders, size, load", b)
				}
			}
			if !dry {
				return a.operate(cmd, client.OpSpec{Kind: "rebalance", By: by})
			}
			return a.withAdmin(cmd, func(ctx context.Context, admin client.Admin) error {
				p, err := admin.Plan(ctx, by)
				if err != nil {
					return err
				}
				return a.emit(p, func(w io.Writer) error { return printPlan(w, &p) })
			})
		},
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show the plan, the bytes that it moves, and the balance before and after")
	cmd.Flags().StringSliceVar(&by, "by", nil, "what to level: replicas, leaders, size, load (default all)")
	return cmd
}

// planShown is how many moves a table shows.
const planShown = 50

func printPlan(w io.Writer, p *client.Plan) error {
	var rows [][]string
	for i, m := range p.Moves {
		if i == planShown {
			break
		}
		what := "move"
		if m.Leader {
			what = "transfer"
		}
		rows = append(rows, []string{what, strconv.FormatUint(m.Shard, 10), strconv.FormatUint(m.From, 10), strconv.FormatUint(m.To, 10), humanBytes(int64(m.Bytes)), m.Why})
	}
	if len(rows) > 0 {
		if err := table(w, "STEP SHARD FROM TO BYTES WHY", rows); err != nil {
			return err
		}
	}
	if n := len(p.Moves) - planShown; n > 0 {
		fmt.Fprintf(w, "… and %d more\n", n)
	}
	fmt.Fprintf(w, "%d steps, %s to move\n", len(p.Moves), humanBytes(int64(p.Bytes)))
	row := func(name string, b, a client.Spread) []string {
		f := func(s client.Spread) string { return fmt.Sprintf("%.0f to %.0f", s.Min, s.Max) }
		return []string{name, f(b), f(a), fmt.Sprintf("%.1f", a.Mean)}
	}
	for _, s := range p.Stuck {
		fmt.Fprintf(w, "stuck: %s\n", s)
	}
	return table(w, "PER-NODE BEFORE AFTER MEAN", [][]string{row("replicas", p.Before.Replicas, p.After.Replicas), row("leaders", p.Before.Leaders, p.After.Leaders),
		row("bytes", p.Before.Bytes, p.After.Bytes), row("writes/s", p.Before.Load, p.After.Load)})
}
