package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/internal/escape"
)

const (
	completeMax    = 500             // ids that a shell is told
	completeWithin = 2 * time.Second // the cluster answers, or nothing is completed
)

// lister tells ids, each with a word about it behind a tab.
type lister func(ctx context.Context, c client.Cluster) ([]string, error)

// completeIDs has shells complete the ids that the commands of nodes, shards and operations take, from the cluster that is configured.
func (a *app) completeIDs(groups ...*cobra.Command) {
	of := map[string]lister{"node": listNodes, "shard": listShards, "op": listOps}
	for _, g := range groups {
		for _, cmd := range g.Commands() {
			words := strings.Fields(cmd.Use)[1:]
			ids := 0
			for ids < len(words) && slices.Contains([]string{"N", "ID", "LEFT", "RIGHT"}, words[ids]) {
				ids++
			}
			cmd.ValidArgsFunction = a.complete(of[g.Name()], ids)
			for _, flag := range []string{"from", "to"} {
				if cmd.Flags().Lookup(flag) != nil {
					_ = cmd.RegisterFlagCompletionFunc(flag, a.complete(listNodes, len(words)+1)) // errs only for a flag that is not there, or twice
				}
			}
		}
	}
}

// complete tells the ids that begin as typed, to a command with fewer than max arguments. It never asks for a password, and says nothing of errors:
// somebody is in the middle of a line.
func (a *app) complete(ids lister, max int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) (out []string, _ cobra.ShellCompDirective) {
		const only = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		l, err := config.Load(cmd.Flags(), a.env.Environ)
		if err != nil || len(args) >= max {
			return nil, only
		}
		a.cfg, a.env.Stdin = l, strings.NewReader("")
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		c, err := a.connect(ctx)
		if err != nil {
			return nil, only
		}
		all, err := ids(ctx, c)
		if err != nil {
			return nil, only
		}
		for _, id := range all {
			if strings.HasPrefix(id, typed) && len(out) < completeMax {
				out = append(out, id)
			}
		}
		return out, only
	}
}

func listNodes(ctx context.Context, c client.Cluster) (out []string, _ error) {
	nodes, err := c.Nodes(ctx)
	for _, n := range nodes {
		out = append(out, fmt.Sprintf("%d\t%s, %s", n.ID, n.Name, n.State))
	}
	return out, err
}

func listShards(ctx context.Context, c client.Cluster) (out []string, _ error) {
	shards, err := c.Shards(ctx, 0)
	for _, s := range shards {
		out = append(out, strconv.FormatUint(s.ID, 10)+"\tfrom "+shorten(escape.String(s.Start), 30))
	}
	return out, err
}

func listOps(ctx context.Context, c client.Cluster) (out []string, _ error) {
	admin, ok := c.(client.Admin)
	if !ok {
		return nil, nil
	}
	ops, err := admin.Ops(ctx, completeMax)
	for i := range ops {
		out = append(out, fmt.Sprintf("%d\t%s, %s", ops[i].ID, ops[i].What, ops[i].State))
	}
	return out, err
}
