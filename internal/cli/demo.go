package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/internal/demo"
)

func (a *app) demoCmd() *cobra.Command {
	o := demo.Options{Nodes: 3, Shards: 1000}
	var once bool
	cmd := &cobra.Command{
		Use: "demo", Args: cobra.NoArgs, Short: "Run a cluster of real node processes on this machine",
		Long: `Starts node processes of this binary on this machine, makes a cluster of them, prints endpoints and things to try, and stops them on ^C. On a
terminal it takes commands meanwhile: kill, start, stop, pause and resume of nodes, partition and heal of the links between them, and status.
With --tls everything is encrypted, and the commands that it prints show the administrator's certificate; links cannot be cut then.
With --once it is a guided tour that ends by itself: load real files, read them back through another node, kill -9 a node under load and show
the take-over, restart it and compare all replicas, split a shard and move a part to a new node, kill and restart all. It exits 0 only if all of it held.`,
		Example: "  kiloraft demo\n  kiloraft demo --once --shards 100",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Shards < 1 || o.Shards > 65536 {
				return usagef("--shards %d: want 1 to 65536", o.Shards)
			}
			if o.Nodes < 1 || o.Nodes > 9 {
				return usagef("--nodes %d: want 1 to 9", o.Nodes)
			}
			if once && o.Nodes < 3 {
				return usagef("--nodes %d: the tour kills a node and needs three", o.Nodes)
			}
			var err error
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			o.Dial, o.Out = a.dialServers, a.env.Stdout
			if a.json() {
				o.Out = a.env.Stderr
			}
			if !once {
				if isTerminal(a.env.Stdin) {
					o.In = a.env.Stdin
				}
				return demo.Run(cmd.Context(), o)
			}
			return a.tour(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "node processes")
	f.IntVar(&o.Shards, "shards", o.Shards, "shards")
	f.StringVar(&o.Dir, "dir", "", "directory of data and logs, kept at the end (default: a temporary one)")
	f.IntVar(&o.BasePort, "base-port", 0, "first of the ports (default: 7100 if free, else any)")
	f.StringVar(&o.Data, "data", "", "files that the tour loads (default: Go's source tree if there is one)")
	f.BoolVar(&o.TLS, "tls", false, "with certificates, made in the directory: nodes and clients need them")
	f.BoolVar(&once, "once", false, "guided tour that ends by itself")
	return cmd
}

// dialServers connects as the configuration says, but to these servers, and if there are certificates with those.
func (a *app) dialServers(ctx context.Context, servers []string, as certs.Names) (client.Cluster, error) {
	cfg := a.cfg.Config
	cfg.Server = servers
	if as.CA != "" {
		cfg.TLS = config.TLS{CA: as.CA, Cert: as.Cert, Key: as.Key}
	}
	if a.env.Dial != nil {
		return a.env.Dial(ctx, &cfg)
	}
	return a.dialRemote(ctx, &cfg)
}

func (a *app) tour(ctx context.Context, o demo.Options) error {
	tour, err := demo.RunTour(ctx, o)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("the tour was interrupted: %w", err)
		}
		// Whatever kind of error stopped it: the tour failed.
		fmt.Fprintln(a.env.Stderr, "kiloraft: the tour failed:", err)
		return silentError{exitFailed}
	}
	return a.emit(tour, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, "\nAll of it held.")
		return err
	})
}
