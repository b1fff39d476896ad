package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/bench"
	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

func (a *app) benchCmd() *cobra.Command {
	s := bench.Settings{Inflight: 64, ValueSize: 128, Keys: 100_000, ScanLimit: 50}
	var shards string
	var duration time.Duration
	var noLoad bool
	cmd := &cobra.Command{
		Use: "bench " + strings.Join(bench.Names(), "|"), Args: cobra.ExactArgs(1), ValidArgs: bench.Names(),
		Short: "Measure the cluster",
		Long: `Measures the cluster from this process. Without --rate the loop is closed: --inflight requests are always on their way, and latency counts
from sending. With --rate the loop is open: requests are due at fixed times, and latency counts from then, so that a stall is charged
to every request that should have run in it; what was due but never sent is not_sent, and what a node refuses as overloaded is an error at once
instead of being tried again. Keys are spread evenly over the chosen shards and stay
in the store. Workloads that read write all keys first (--no-load: they are there already).`,
		Example: "  kiloraft bench write --inflight 1024 --duration 30s\n  kiloraft bench ycsb-a --rate 5000",
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Workload, s.DurationS, s.Load, s.Timeout = args[0], duration.Seconds(), !noLoad, a.cfg.Timeout
			if shards != "all" {
				n, err := strconv.Atoi(shards)
				if err != nil || n < 1 {
					return usagef("--shards %q: want all or a number", shards)
				}
				s.Shards = n
			}
			if !slices.Contains(bench.Names(), s.Workload) {
				return usagef("workload %q: want one of %s", s.Workload, strings.Join(bench.Names(), ", "))
			}
			if s.ValueSize > shard.ValueBytesMax {
				return usagef("--value-size %d: values have at most %d bytes", s.ValueSize, shard.ValueBytesMax)
			}
			return a.bench(cmd.Context(), s)
		},
	}
	f := cmd.Flags()
	f.IntVar(&s.Inflight, "inflight", s.Inflight, "requests at a time")
	f.IntVar(&s.ValueSize, "value-size", s.ValueSize, "bytes of a value")
	f.Uint64Var(&s.Keys, "keys", s.Keys, "number of keys")
	f.StringVar(&shards, "shards", "all", "spread the keys over so many shards, or all")
	f.Float64Var(&s.Rate, "rate", 0, "requests per second, open loop (0: closed loop)")
	f.DurationVar(&duration, "duration", 10*time.Second, "how long to measure")
	f.StringVar(&s.Distribution, "distribution", "", "uniform, zipfian or latest (default: the workload's own)")
	f.IntVar(&s.ScanLimit, "scan-limit", s.ScanLimit, "items of a scan")
	f.Uint64Var(&s.Seed, "seed", 1, "of the random numbers")
	f.BoolVar(&noLoad, "no-load", false, "do not write the keys first")
	return cmd
}

func (a *app) bench(ctx context.Context, s bench.Settings) error {
	var shards []client.Shard
	err := a.request(ctx, func(ctx context.Context, c client.Cluster) (err error) {
		shards, err = c.Shards(ctx, 0)
		return err
	})
	if err != nil {
		return err
	}
	r, err := bench.New(a.cluster, shards, s)
	if err != nil {
		return usageError{err}
	}
	if r.NeedsLoad() {
		a.say("writing %d keys first", s.Keys)
		if err := r.Load(ctx, new(atomic.Int64)); err != nil {
			return err
		}
	}
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(400)) // the generator should take as little as it can from what it measures
	}
	a.say("measuring %s for %v", s.Workload, time.Duration(s.DurationS*float64(time.Second)))
	if s.Rate > 0 { // what is too much is to be seen as such, and not to come back
		ctx = router.FailOverloaded(ctx)
	}
	res := r.Run(ctx)
	if res.FirstError != "" {
		a.say("%d errors, the first: %s", res.Errors, res.FirstError)
	}
	err = a.emit(res, func(w io.Writer) error { return benchTable(w, res) })
	if err == nil && res.Ops == 0 {
		err = fmt.Errorf("no request succeeded: %w", client.ErrUnavailable)
	}
	return err
}

func benchTable(w io.Writer, r bench.Result) error {
	ms := func(us int64) string { return fmt.Sprintf("%.2f", float64(us)/1000) }
	return table(w, "OPS OPS/S ERRORS P50_ms P90_ms P99_ms P99.9_ms MAX_ms NOT_SENT", [][]string{{strconv.FormatInt(r.Ops, 10), fmt.Sprintf("%.0f", r.OpsPerS),
		strconv.FormatInt(r.Errors, 10), ms(r.P50us), ms(r.P90us), ms(r.P99us), ms(r.P999us), ms(r.Maxus), strconv.FormatInt(r.NotSent, 10)}})
}
