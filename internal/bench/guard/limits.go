package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
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
	Duration string   `json:"duration"` // of each load
	Fairness fairness `json:"fairness"`
	Overload overload `json:"overload"`
}

// fairness has a value for each round: latencies of writes that are due at a steady rate, all over the shards.
type fairness struct {
	Rate      float64   `json:"rate"`
	HotFlight int       `json:"hot_inflight"` // writes at a time to one shard meanwhile
	AloneP99  []float64 `json:"alone_p99_ms"`
	BesideP99 []float64 `json:"beside_p99_ms"`
	HotPerS   []float64 `json:"hot_writes_per_s"`
}

type overload struct {
	Inflight  int       `json:"inflight"` // of the closed loop that finds the peak
	PeakPerS  []float64 `json:"peak_writes_per_s"`
	Offered   []float64 `json:"offered_per_s"`
	DonePerS  []float64 `json:"done_writes_per_s"`
	Refused   []float64 `json:"errors"`
	NotSent   []float64 `json:"not_sent"`
	NodeMB    []float64 `json:"largest_node_mb"` // resident memory right afterwards
	OpenLimit int       `json:"open_inflight"`
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
	inflight := f.Int("inflight", 2048, "writes in flight that find the peak")
	version := f.String("version", "unknown", "of the build, for the record")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 || *nshards < 2 || *rounds < 1 || *duration < time.Second || *rate <= 0 || *hot < 1 || *inflight < 1 {
		return errors.New("no arguments; two shards, a second and one of everything else at least")
	}
	l := limits{Date: time.Now().UTC().Format(time.DateTime), Version: *version, CPUs: runtime.NumCPU(), LoadAvg: loadAverage(), Shards: *nshards,
		Rounds: *rounds, Duration: duration.String(), Fairness: fairness{Rate: *rate, HotFlight: *hot}, Overload: overload{Inflight: *inflight, OpenLimit: 8 * *inflight}}
	err = onCluster(ctx, *binary, "", *nshards, func(g *cluster) error { return l.measure(ctx, g, *duration) })
	if err != nil {
		return err
	}
	l.print(w)
	return writeJSON(*out, l)
}

func (l *limits) measure(ctx context.Context, g *cluster, d time.Duration) error {
	if _, err := g.bench(ctx, "write", "--inflight", "256", "--duration", d.String()); err != nil { // files and heaps grow
		return err
	}
	for _, round := range []func(context.Context, *cluster, time.Duration) error{l.Fairness.round, l.Overload.round} {
		for range l.Rounds {
			if err := round(ctx, g, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// round measures the steady writers alone, and beside one shard that gets all it can take.
func (f *fairness) round(ctx context.Context, g *cluster, d time.Duration) error {
	steady := []string{"--rate", strconv.FormatFloat(f.Rate, 'f', -1, 64), "--inflight", "256", "--duration", d.String()}
	alone, err := g.bench(ctx, "write", steady...)
	if err != nil {
		return err
	}
	type result struct {
		r   benchResult
		err error
	}
	hot := make(chan result, 1)
	go func() { // ends with its load, which ctx ends
		r, err := g.bench(ctx, "write", "--shards", "1", "--inflight", strconv.Itoa(f.HotFlight), "--duration", (d + 2*time.Second).String())
		hot <- result{r, err}
	}()
	select {
	case <-time.After(time.Second): // the hot load has begun
	case <-ctx.Done():
	}
	beside, err := g.bench(ctx, "write", steady...)
	h := <-hot
	if err := errors.Join(err, h.err); err != nil {
		return err
	}
	f.AloneP99, f.BesideP99, f.HotPerS = append(f.AloneP99, alone.P99us/1000), append(f.BesideP99, beside.P99us/1000), append(f.HotPerS, h.r.OpsPerS)
	return nil
}

// round finds the peak with a closed loop, and then offers twice as much, due at fixed times.
func (o *overload) round(ctx context.Context, g *cluster, d time.Duration) error {
	peak, err := g.bench(ctx, "write", "--inflight", strconv.Itoa(o.Inflight), "--duration", d.String())
	if err != nil {
		return err
	}
	offered := 2 * peak.OpsPerS
	over, err := g.bench(ctx, "write", "--rate", strconv.FormatFloat(offered, 'f', 0, 64), "--inflight", strconv.Itoa(o.OpenLimit), "--duration", d.String())
	if err != nil {
		return err
	}
	largest := 0.0
	for _, p := range g.c.Nodes {
		err := readMetrics(ctx, p, func(name string, v float64) {
			if name == "process_resident_memory_bytes" {
				largest = max(largest, v)
			}
		})
		if err != nil {
			return err
		}
	}
	o.PeakPerS, o.Offered, o.DonePerS = append(o.PeakPerS, peak.OpsPerS), append(o.Offered, offered), append(o.DonePerS, over.OpsPerS)
	o.Refused, o.NotSent, o.NodeMB = append(o.Refused, over.Errors), append(o.NotSent, over.NotSent), append(o.NodeMB, largest/(1<<20))
	return nil
}

func (l *limits) print(w io.Writer) {
	f, o := &l.Fairness, &l.Overload
	fmt.Fprintf(w, "%d shards, %d rounds of %s, load average %.1f; medians and ranges\n", l.Shards, l.Rounds, l.Duration, l.LoadAvg)
	fmt.Fprintf(w, "fairness: %.0f writes/s all over, p99 alone %s ms, beside %d in flight to one shard (%s writes/s) %s ms\n",
		f.Rate, spread(f.AloneP99), f.HotFlight, spread(f.HotPerS), spread(f.BesideP99))
	fmt.Fprintf(w, "overload: peak %s writes/s at %d in flight; offered %s: done %s, errors %s, not sent %s; largest node %s MB\n",
		spread(o.PeakPerS), o.Inflight, spread(o.Offered), spread(o.DonePerS), spread(o.Refused), spread(o.NotSent), spread(o.NodeMB))
}

// spread is the median with the range.
func spread(list []float64) string {
	s := slices.Clone(list)
	slices.SortFunc(s, cmp.Compare)
	return fmt.Sprintf("%.4g [%.4g, %.4g]", s[len(s)/2], s[0], s[len(s)-1])
}
