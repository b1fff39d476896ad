package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"
)

// limits is what `guard limits` measures and writes: what the many have while one shard is hot, and what a cluster does with twice the load that it can
// take.
type limits struct {
	Date     string   `json:"date"`
	Version  string   `json:"version"`
	CPUs     int      `json:"cpus"`
	LoadAvg  float64  `json:"load_average"`
	Shards   int      `json:"shards"`
	Rounds   int      `json:"rounds"`
	Duration string   `json:"duration"`     // of each load
	Memory   string   `json:"memory_limit"` // memory-limit of each node; empty: as serve chooses
	Split    bool     `json:"split_cores"`  // nodes and clients have cores of their own
	Fairness fairness `json:"fairness"`
	Overload overload `json:"overload"`
}

// fairness has a value for each round: latencies of writes that are due at a steady rate, all over the shards.
type fairness struct {
	Rate      float64   `json:"rate"`
	HotFlight int       `json:"hot_inflight"` // writes at a time to one shard meanwhile
	AloneP99  []float64 `json:"alone_p99_ms"`
	BesideP99 []float64 `json:"beside_p99_ms"`
	BesideP50 []float64 `json:"beside_p50_ms"`
	HotPerS   []float64 `json:"hot_writes_per_s"`
	HotP99    []float64 `json:"hot_p99_ms"`
	// The floor: the hot load is on other nodes, which share nothing with these but the machine. Nodes that were perfectly fair could do no better on it.
	FloorP99     []float64 `json:"floor_p99_ms"`
	FloorP50     []float64 `json:"floor_p50_ms"`
	FloorHotPerS []float64 `json:"floor_hot_writes_per_s"`
}

// overload has what several clients together get from a cluster: first all that they can, then what is left of that when they want twice as much.
type overload struct {
	Clients   int       `json:"clients"`
	Inflight  int       `json:"inflight"` // of all clients, in the closed loop that finds the peak
	OpenLimit int       `json:"open_inflight"`
	Timeout   string    `json:"timeout"` // after which a client gives a write up
	PeakPerS  []float64 `json:"peak_writes_per_s"`
	Offered   []float64 `json:"offered_per_s"`
	DonePerS  []float64 `json:"done_writes_per_s"`
	Ratio     []float64 `json:"done_to_peak"`
	PeakCPU   []float64 `json:"peak_node_cpu_us"` // of all nodes, per write that they answered
	OverCPU   []float64 `json:"node_cpu_us"`
	// How nodes and clients share the cores of a machine that they are on together.
	PeakCores       []float64 `json:"peak_node_cores"`
	OverCores       []float64 `json:"node_cores"`
	PeakClientCores []float64 `json:"peak_client_cores"`
	OverClientCores []float64 `json:"client_cores"`
	Failed          []float64 `json:"errors"`     // of clients, which do not try again what is refused as overloaded
	NotSent         []float64 `json:"not_sent"`   // that were due, and found no free place in a client
	Refused         []float64 `json:"overloaded"` // answers of the nodes: ErrOverloaded
	P99             []float64 `json:"p99_ms"`     // of the writes that were done
	NodeMB          []float64 `json:"largest_node_mb"`
	Error           string    `json:"first_error"`
}

func runLimits(ctx context.Context, args []string, w io.Writer) (err error) {
	f := flag.NewFlagSet("guard limits", flag.ContinueOnError)
	binary := f.String("bin", "bin/kiloraft", "the kiloraft binary")
	out := f.String("o", "dist/limits.json", "where the result goes")
	nshards := f.Int("shards", 10_000, "shards of the cluster")
	rounds := f.Int("rounds", 3, "how often each is measured")
	duration := f.Duration("duration", 5*time.Second, "of each load")
	rate := f.Float64("rate", 500, "writes per second of those who are to be treated fairly")
	hot := f.Int("hot", 1024, "writes in flight to the hot shard")
	inflight := f.Int("inflight", 8192, "writes in flight that find the peak")
	clients := f.Int("clients", 4, "client processes that find the peak, and offer twice as much")
	open := f.Int("open", 65536, "writes in flight that all clients together may have then")
	timeout := f.Duration("timeout", 3*time.Second, "after which a client gives up then")
	overlay := f.String("overlay-size", "256MiB", "store.overlay-size of the nodes")
	memory := f.String("memory-limit", "1GiB", "memory-limit of each node; empty: as serve chooses")
	split := f.Bool("split", runtime.NumCPU() > 1, "nodes run on the first half of the cores, clients on the others (with taskset): else clients that offer more take it from the nodes")
	only := f.String("only", "", "fairness or overload: measure nothing else")
	version := f.String("version", "unknown", "of the build, for the record")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *only != "" && *only != "fairness" && *only != "overload" {
		return fmt.Errorf("-only %q: want fairness or overload", *only)
	}
	if f.NArg() > 0 || *nshards < 2 || *rounds < 1 || *duration < time.Second || *rate <= 0 || *hot < 1 || *clients < 1 || *inflight < *clients || *open < *clients {
		return errors.New("no arguments; two shards, a second and one of everything else at least")
	}
	l := limits{Date: time.Now().UTC().Format(time.DateTime), Version: *version, CPUs: runtime.NumCPU(), LoadAvg: loadAverage(), Shards: *nshards,
		Rounds: *rounds, Duration: duration.String(), Memory: *memory, Split: *split, Fairness: fairness{Rate: *rate, HotFlight: *hot}, Overload: overload{Clients: *clients, Inflight: *inflight, OpenLimit: *open, Timeout: timeout.String()}}
	if *split {
		bin, remove, err := splitCores(*binary)
		if err != nil {
			return err
		}
		defer remove()
		*binary = bin
	}
	flags := []string{"--store-overlay-size", *overlay}
	if *memory != "" {
		flags = append(flags, "--memory-limit", *memory)
	}
	if *only != "overload" {
		// The nodes of the floor are there all the time, asleep: so it is the same machine with it and without.
		err = onCluster(ctx, *binary, "", floorShards, flags, func(other *cluster) error {
			return onCluster(ctx, *binary, "", *nshards, flags, func(g *cluster) error {
				return l.measure(ctx, g, *duration, func() error { return l.Fairness.round(ctx, g, other, *duration) })
			})
		})
		if err != nil {
			return err
		}
	}
	if *only != "fairness" {
		err = onCluster(ctx, *binary, "", *nshards, flags, func(g *cluster) error {
			return l.measure(ctx, g, *duration, func() error { return l.Overload.round(ctx, g, *duration) })
		})
		if err != nil {
			return err
		}
	}
	l.print(w)
	return writeJSON(*out, l)
}

// splitCores writes a program that runs the binary as a node on the first half of the cores, and as anything else on the others.
func splitCores(binary string) (program string, remove func(), err error) {
	if _, err := exec.LookPath("taskset"); err != nil {
		return "", nil, fmt.Errorf("%w: install it, or say -split=false", err)
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "kiloraft-limits-")
	if err != nil {
		return "", nil, err
	}
	n, half := runtime.NumCPU(), runtime.NumCPU()/2
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = serve ] && exec taskset -c 0-%d '%s' \"$@\"\nexec taskset -c %d-%d '%s' \"$@\"\n", half-1, binary, half, n-1, binary)
	program = filepath.Join(dir, "kiloraft")
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return program, func() { _ = os.RemoveAll(dir) }, nil // one file in the system's temporary directory
}

// floorShards is how many shards the other cluster has. One of them gets the hot load.
const floorShards = 3

// measure runs the rounds on a cluster that has been written to.
func (l *limits) measure(ctx context.Context, g *cluster, d time.Duration, round func() error) error {
	if _, err := g.bench(ctx, "write", "--inflight", "256", "--duration", d.String()); err != nil { // files and heaps grow
		return err
	}
	for range l.Rounds {
		if err := g.rest(ctx); err != nil {
			return err
		}
		if err := round(); err != nil {
			return err
		}
	}
	return nil
}

// round measures the steady writers alone, beside a hot shard of other nodes, and beside one of these.
func (f *fairness) round(ctx context.Context, g, other *cluster, d time.Duration) error {
	alone, err := g.bench(ctx, "write", f.steady(d)...)
	if err != nil {
		return err
	}
	if err := g.rest(ctx); err != nil {
		return err
	}
	floor, floorHot, err := f.besideHot(ctx, g, other, d)
	if err != nil {
		return err
	}
	if err := errors.Join(other.rest(ctx), g.rest(ctx)); err != nil {
		return err
	}
	beside, hot, err := f.besideHot(ctx, g, g, d)
	if err != nil {
		return err
	}
	f.AloneP99, f.FloorP99, f.BesideP99 = append(f.AloneP99, alone.P99us/1000), append(f.FloorP99, floor.P99us/1000), append(f.BesideP99, beside.P99us/1000)
	f.FloorP50, f.BesideP50, f.HotP99 = append(f.FloorP50, floor.P50us/1000), append(f.BesideP50, beside.P50us/1000), append(f.HotP99, hot.P99us/1000)
	f.HotPerS, f.FloorHotPerS = append(f.HotPerS, hot.OpsPerS), append(f.FloorHotPerS, floorHot.OpsPerS)
	return nil
}

// steady are the arguments of the few.
func (f *fairness) steady(d time.Duration) []string {
	return []string{"--rate", strconv.FormatFloat(f.Rate, 'f', -1, 64), "--inflight", "256", "--duration", d.String()}
}

// besideHot measures the few on g while one shard of the hot cluster, which may be g, gets all it can take.
func (f *fairness) besideHot(ctx context.Context, g, hot *cluster, d time.Duration) (few, load benchResult, err error) {
	type result struct {
		r   benchResult
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with its load, which ctx ends
		r, err := hot.bench(ctx, "write", "--shards", "1", "--inflight", strconv.Itoa(f.HotFlight), "--duration", (d + 2*time.Second).String())
		done <- result{r, err}
	}()
	select {
	case <-time.After(time.Second): // the hot load has begun
	case <-ctx.Done():
	}
	few, err = g.bench(ctx, "write", f.steady(d)...)
	h := <-done
	return few, h.r, errors.Join(err, h.err)
}

// round finds the peak with a closed loop, and then offers twice as much, due at fixed times.
func (o *overload) round(ctx context.Context, g *cluster, d time.Duration) error {
	peak, err := o.together(ctx, g, d, "--inflight", strconv.Itoa(o.Inflight/o.Clients))
	if err != nil {
		return err
	}
	if err := g.rest(ctx); err != nil {
		return err
	}
	before, err := g.sum(ctx, overloadedMetric)
	if err != nil {
		return err
	}
	sampled, end := context.WithCancel(ctx)
	largest := make(chan float64, 1)
	go func() { largest <- g.largest(sampled) }() // ends with the load
	offered := 2 * peak.OpsPerS
	over, err := o.together(ctx, g, d, "--rate", strconv.FormatFloat(offered/float64(o.Clients), 'f', 0, 64), "--inflight", strconv.Itoa(o.OpenLimit/o.Clients),
		"--timeout", o.Timeout)
	end()
	mb := <-largest / (1 << 20)
	if err != nil {
		return err
	}
	after, err := g.sum(ctx, overloadedMetric)
	if err != nil {
		return err
	}
	o.PeakPerS, o.Offered, o.DonePerS = append(o.PeakPerS, peak.OpsPerS), append(o.Offered, offered), append(o.DonePerS, over.OpsPerS)
	o.Ratio, o.P99, o.NodeMB = append(o.Ratio, over.OpsPerS/peak.OpsPerS), append(o.P99, over.P99us/1000), append(o.NodeMB, mb)
	o.Failed, o.NotSent, o.Refused = append(o.Failed, over.Errors), append(o.NotSent, over.NotSent), append(o.Refused, after-before)
	o.PeakCPU, o.OverCPU = append(o.PeakCPU, peak.CPUus), append(o.OverCPU, over.CPUus)
	o.PeakCores, o.OverCores = append(o.PeakCores, peak.Cores), append(o.OverCores, over.Cores)
	o.PeakClientCores, o.OverClientCores = append(o.PeakClientCores, peak.CPU.Seconds()/d.Seconds()), append(o.OverClientCores, over.CPU.Seconds()/d.Seconds())
	o.Error = cmp.Or(o.Error, over.FirstError)
	return nil
}

// together runs the same load in all clients at a time and sums what they got; the p99 is the worst of them. OpsPerS is what the nodes have
// answered in the last three quarters of the time: clients begin a little apart, and wait in the end for what is still on its way.
func (o *overload) together(ctx context.Context, g *cluster, d time.Duration, args ...string) (sum benchResult, err error) {
	results, errs := make([]benchResult, o.Clients), make([]error, o.Clients)
	var wg sync.WaitGroup
	for i := range o.Clients {
		wg.Go(func() {
			results[i], errs[i] = g.bench(ctx, "write", append(args, "--duration", d.String(), "--seed", strconv.Itoa(i+1))...)
		})
	}
	rates, err := g.rates(ctx, d/4, d, answeredMetric, cpuMetric)
	wg.Wait()
	if err == nil {
		sum.OpsPerS, sum.CPUus, sum.Cores = rates[0], 1e6*rates[1]/rates[0], rates[1]
	}
	for i := range results {
		r := &results[i]
		sum.Ops, sum.Errors, sum.NotSent, sum.CPU = sum.Ops+r.Ops, sum.Errors+r.Errors, sum.NotSent+r.NotSent, sum.CPU+r.CPU
		sum.P99us, sum.FirstError = max(sum.P99us, r.P99us), cmp.Or(sum.FirstError, r.FirstError)
	}
	return sum, errors.Join(append(errs, err)...)
}

func (l *limits) print(w io.Writer) {
	f, o := &l.Fairness, &l.Overload
	cores := "nodes and clients share the cores"
	if l.Split {
		cores = "nodes on the first half of the cores, clients on the others"
	}
	fmt.Fprintf(w, "%d shards, %d rounds of %s, load average %.1f, %s; medians and ranges\n", l.Shards, l.Rounds, l.Duration, l.LoadAvg, cores)
	if len(f.AloneP99) > 0 {
		fmt.Fprintf(w, "fairness: %.0f writes/s all over, p99 alone %s ms, beside %d in flight to one shard (%s writes/s, p99 %s ms) %s ms, p50 %s ms\n",
			f.Rate, spread(f.AloneP99), f.HotFlight, spread(f.HotPerS), spread(f.HotP99), spread(f.BesideP99), spread(f.BesideP50))
		fmt.Fprintf(w, "  the floor, beside the same load on other nodes of this machine (%s writes/s): p99 %s ms, p50 %s ms\n",
			spread(f.FloorHotPerS), spread(f.FloorP99), spread(f.FloorP50))
	}
	if len(o.Ratio) == 0 {
		return
	}
	fmt.Fprintf(w, "overload: %d clients, peak %s writes/s at %d in flight; offered %s: done %s, %s of the peak, p99 %s ms\n",
		o.Clients, spread(o.PeakPerS), o.Inflight, spread(o.Offered), spread(o.DonePerS), spread(o.Ratio), spread(o.P99))
	fmt.Fprintf(w, "  CPU of the nodes per write %s µs, and %s µs at the peak; cores of nodes and clients %s and %s, at the peak %s and %s\n",
		spread(o.OverCPU), spread(o.PeakCPU), spread(o.OverCores), spread(o.OverClientCores), spread(o.PeakCores), spread(o.PeakClientCores))
	fmt.Fprintf(w, "  nodes refused %s as overloaded; clients had %s errors, and no room for %s; largest node %s MB, memory-limit %s\n",
		spread(o.Refused), spread(o.Failed), spread(o.NotSent), spread(o.NodeMB), cmp.Or(l.Memory, "as serve chooses"))
	if o.Error != "" {
		fmt.Fprintf(w, "  the first error of a client: %s\n", o.Error)
	}
}

// spread is the median with the range.
func spread(list []float64) string {
	s := slices.Clone(list)
	slices.SortFunc(s, cmp.Compare)
	return fmt.Sprintf("%.4g [%.4g, %.4g]", s[len(s)/2], s[0], s[len(s)-1])
}
