package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/escape"
)

func (a *app) clusterCmd() *cobra.Command {
	var shards, replicas int
	initCmd := &cobra.Command{
		Use: "init", Args: cobra.NoArgs,
		Short: "Make a cluster of the nodes that are up and wait",
		Long: `Makes a cluster of the nodes that are up and wait, once. It returns when every shard has a leader. On an initialized
cluster it changes nothing and says so; one that was interrupted is completed by running it again.`,
		Example: "  kiloraft cluster init --shards 1000 --server host1:7100",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if shards < 1 || shards > 65536 {
				return usagef("--shards %d: want 1 to 65536", shards)
			}
			if replicas < 1 || replicas > 7 {
				return usagef("--replicas %d: want 1 to 7", replicas)
			}
			return a.init(cmd.Context(), shards, replicas)
		},
	}
	initCmd.Flags().IntVar(&shards, "shards", 1, "split the key space evenly into so many shards")
	initCmd.Flags().IntVar(&replicas, "replicas", 3, "replicas of each shard, on different nodes")
	status := &cobra.Command{
		Use: "status", Args: cobra.NoArgs, Short: "The health of the cluster at a glance",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error { return a.status(ctx, c) })
		},
	}
	return group("cluster", "Make a cluster and see its health", initCmd, status)
}

// init is not bounded by --timeout: with many shards it waits for many elections. The implementation bounds each request.
func (a *app) init(ctx context.Context, shards, replicas int) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if a.cfg.Given("timeout") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.cfg.Timeout)
		defer cancel()
	}
	res, err := c.Init(ctx, shards, replicas)
	if err != nil {
		return err
	}
	return a.emit(res, func(w io.Writer) error {
		if res.Already {
			_, err := fmt.Fprintf(w, "already initialized: cluster %s\n", res.ClusterID)
			return err
		}
		_, err := fmt.Fprintf(w, "cluster %s: %d nodes, %d shards of %d replicas, every shard has a leader\n", res.ClusterID, res.Nodes, res.Shards, res.Replicas)
		return err
	})
}

func (a *app) status(ctx context.Context, c client.Cluster) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if s.Problems == nil {
		s.Problems = []string{}
	}
	err = a.emit(s, func(w io.Writer) error {
		fmt.Fprintf(w, "cluster     %s\n", s.ClusterID)
		fmt.Fprintf(w, "nodes       %d of %d up\n", s.Nodes.Up, s.Nodes.Total)
		fmt.Fprintf(w, "shards      %d, %d with a leader, %d under-replicated, %d unavailable\n", s.Shards.Total, s.Shards.WithLeader, s.Shards.UnderReplicated, s.Shards.Unavailable)
		fmt.Fprintf(w, "replicas    %d\n", s.Replicas)
		fmt.Fprintf(w, "operations  %d running\n", s.Operations.Running)
		for _, p := range s.Problems {
			fmt.Fprintf(w, "problem     %s\n", p)
		}
		return nil
	})
	if err == nil && s.Shards.Unavailable > 0 {
		err = silentError{exitUnavailable}
	}
	return err
}

func (a *app) nodeCmd() *cobra.Command {
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List the nodes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				nodes, err := c.Nodes(ctx)
				if err != nil {
					return err
				}
				if nodes == nil {
					nodes = []client.Node{}
				}
				return a.emit(nodes, func(w io.Writer) error { return nodeTable(w, nodes) })
			})
		},
	}
	show := &cobra.Command{
		Use: "show N", Args: cobra.ExactArgs(1), Short: "Show one node",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("node", args[0])
			if err != nil {
				return err
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				nodes, err := c.Nodes(ctx)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(nodes, func(n client.Node) bool { return n.ID == id })
				if i < 0 {
					return fmt.Errorf("node %d: %w", id, client.ErrNotFound)
				}
				return a.emit(nodes[i], func(w io.Writer) error { return nodeTable(w, nodes[i:i+1]) })
			})
		},
	}
	return group("node", "The processes of the cluster", append([]*cobra.Command{ls, show}, a.nodeOps()...)...)
}

func nodeTable(w io.Writer, nodes []client.Node) error {
	var rows [][]string
	for _, n := range nodes {
		var labels []string
		for k, v := range n.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		rows = append(rows, []string{strconv.FormatUint(n.ID, 10), n.Name, n.Address, n.HTTP, n.State, strconv.Itoa(n.Replicas),
			strconv.Itoa(n.Leaders), strings.Join(labels, ",")})
	}
	return table(w, "ID NAME ADDRESS HTTP STATE REPLICAS LEADERS LABELS", rows)
}

func idArg(what, s string) (uint64, error) {
	id, err := strconv.ParseUint(s, 10, 64)
	if err != nil || id == 0 {
		return 0, usagef("%s %q: want a number", what, s)
	}
	return id, nil
}

func (a *app) shardCmd() *cobra.Command {
	var limit int
	ls := &cobra.Command{
		Use: "ls", Args: cobra.NoArgs, Short: "List the shards in key order",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usagef("--limit %d: want 0 or more", limit)
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				shards, err := c.Shards(ctx, limit)
				if err != nil {
					return err
				}
				return a.emit(shardViews(shards), func(w io.Writer) error { return shardTable(w, shards) })
			})
		},
	}
	ls.Flags().IntVar(&limit, "limit", 0, "at most so many (0: all)")
	return group("shard", "The shards: ranges of keys, each a Raft group", append([]*cobra.Command{ls, a.shardShowCmd(), a.shardLocateCmd(),
		a.shardTransferCmd(), a.shardChecksumCmd()}, a.shardOps()...)...)
}

func shardTable(w io.Writer, shards []client.Shard) error {
	var rows [][]string
	for _, s := range shards {
		var reps []string
		for _, r := range s.Replicas {
			text := strconv.FormatUint(r.Node, 10)
			if r.Role != "voter" {
				text += "(" + r.Role + ")"
			}
			reps = append(reps, text)
		}
		leader := "-"
		if s.Leader != 0 {
			leader = strconv.FormatUint(s.Leader, 10)
		}
		end := shorten(escape.String(s.End), 24)
		if len(s.End) == 0 {
			end = "∞"
		}
		rows = append(rows, []string{strconv.FormatUint(s.ID, 10), shorten(escape.String(s.Start), 24), end, strconv.FormatUint(s.Version, 10),
			strconv.FormatUint(s.ConfVersion, 10), leader, strings.Join(reps, ","), strconv.FormatInt(s.Keys, 10), humanBytes(s.Bytes)})
	}
	return table(w, "ID START END VERSION CONF LEADER NODES KEYS BYTES", rows)
}

func (a *app) emitShard(s client.Shard) error {
	return a.emit(shardView(s), func(w io.Writer) error {
		err := shardTable(w, []client.Shard{s})
		if l := s.Load; l != nil {
			fmt.Fprintf(w, "load     %d reads and %d writes per second, %s/s\n", l.Reads, l.Writes, humanBytes(int64(l.Bytes)))
			if l.HotKey != nil {
				fmt.Fprintf(w, "hot key  %s takes %d %% of the requests, which no split can help\n", escape.String(l.HotKey), l.HotPercent)
			}
		}
		return err
	})
}

func (a *app) shardShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Args: cobra.ExactArgs(1), Short: "Show one shard",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("shard", args[0])
			if err != nil {
				return err
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				s, err := c.Shard(ctx, id)
				if err != nil {
					return err
				}
				return a.emitShard(s)
			})
		},
	}
}

func (a *app) shardLocateCmd() *cobra.Command {
	return &cobra.Command{
		Use: "locate KEY", Args: cobra.ExactArgs(1), Short: "Show the shard that holds a key",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := boundArg(args[0]) // none is the lowest end of the key space
			if err != nil {
				return err
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				s, err := c.Locate(ctx, key)
				if err != nil {
					return err
				}
				return a.emitShard(s)
			})
		},
	}
}

func (a *app) shardTransferCmd() *cobra.Command {
	var to uint64
	cmd := &cobra.Command{
		Use: "transfer ID --to NODE", Args: cobra.ExactArgs(1), Short: "Move the leadership of a shard",
		Example: "  kiloraft shard transfer 17 --to 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("shard", args[0])
			if err != nil {
				return err
			}
			if to == 0 {
				return usagef("--to: name the node that is to lead")
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				if err := c.Transfer(ctx, id, to); err != nil {
					return err
				}
				v := struct {
					Shard  uint64 `json:"shard"`
					Leader uint64 `json:"leader"`
				}{id, to}
				return a.emit(v, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "shard %d is led by node %d\n", id, to)
					return err
				})
			})
		},
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "node that is to lead")
	return cmd
}

func (a *app) shardChecksumCmd() *cobra.Command {
	type row struct {
		Node     uint64 `json:"node"`
		Replica  uint64 `json:"replica"`
		Term     uint64 `json:"term"`
		Applied  uint64 `json:"applied"`
		Checksum string `json:"checksum"`
		Keys     int64  `json:"keys"`
		Error    string `json:"error,omitempty"`
	}
	return &cobra.Command{
		Use: "checksum ID", Args: cobra.ExactArgs(1), Short: "Compare the replicas of a shard",
		Long: `Shows for each replica of a shard the last log position it has applied and a checksum of its keys, values, versions and expiry
times there. Replicas at the same position must have the same checksum; if two differ the command exits 1.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := idArg("shard", args[0])
			if err != nil {
				return err
			}
			return a.request(cmd.Context(), func(ctx context.Context, c client.Cluster) error {
				sums, err := c.Checksums(ctx, id)
				if err != nil {
					return err
				}
				out, rows := make([]row, 0, len(sums)), [][]string(nil)
				at := map[[2]uint64]uint64{}
				differ := false
				for _, s := range sums {
					r := row{s.Node, s.Replica, s.Term, s.Applied, fmt.Sprintf("%016x", s.Checksum), s.Keys, s.Err}
					if s.Err != "" {
						r.Checksum = ""
					} else if old, ok := at[[2]uint64{s.Term, s.Applied}]; ok && old != s.Checksum {
						differ = true
					} else {
						at[[2]uint64{s.Term, s.Applied}] = s.Checksum
					}
					out = append(out, r)
					rows = append(rows, []string{strconv.FormatUint(r.Node, 10), strconv.FormatUint(r.Replica, 10), fmt.Sprintf("%d/%d", r.Term, r.Applied),
						r.Checksum, strconv.FormatInt(r.Keys, 10), r.Error})
				}
				if err := a.emit(out, func(w io.Writer) error { return table(w, "NODE REPLICA APPLIED CHECKSUM KEYS ERROR", rows) }); err != nil {
					return err
				}
				if differ {
					return fmt.Errorf("shard %d: replicas differ at the same log position", id)
				}
				return nil
			})
		},
	}
}
