package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is all rounds of one load of one peer.
type row struct {
	peer, load       string
	shards, inflight int
	samples          []sample
}

// rows groups the samples in the order in which they came.
func (r *report) rows() (out []*row) {
	for _, s := range r.Samples {
		i := slices.IndexFunc(out, func(x *row) bool {
			return x.peer == s.Peer && x.load == s.Load && x.shards == s.Shards && x.inflight == s.Inflight
		})
		if i < 0 {
			i = len(out)
			out = append(out, &row{peer: s.Peer, load: s.Load, shards: s.Shards, inflight: s.Inflight})
		}
		out[i].samples = append(out[i].samples, s)
	}
	return out
}

// values of the rounds in which they were measured: 0 stands for a value that was not.
func (x *row) values(of func(sample) float64) (out []float64) {
	for _, s := range x.samples {
		if v := of(s); s.Error == "" && v != 0 {
			out = append(out, v)
		}
	}
	return out
}

// failure is the first error of the rounds.
func (x *row) failure() string {
	for _, s := range x.samples {
		if s.Error != "" {
			return s.Error
		}
	}
	return ""
}

// median of values; 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// spread is the median, and in brackets the smallest and the greatest.
func spread(format string, v []float64) string {
	switch len(v) {
	case 0:
		return "-"
	case 1:
		return fmt.Sprintf(format, v[0])
	}
	return fmt.Sprintf(format+" ("+format+"…"+format+")", median(v), slices.Min(v), slices.Max(v))
}

// ratios are ours/theirs, round by round.
func ratios(ours, theirs *row, of func(sample) float64) (out []float64) {
	for _, a := range ours.samples {
		for _, b := range theirs.samples {
			if a.Round == b.Round && a.Error == "" && b.Error == "" && of(b) > 0 {
				out = append(out, of(a)/of(b))
			}
		}
	}
	return out
}

func (r *report) print(w io.Writer) error {
	s := r.Settings
	fmt.Fprintf(w, "%s UTC, %d CPUs, load average at the start of each round %s\n", r.Date, r.CPUs, strings.Join(r.LoadAvg, ", "))
	fmt.Fprintf(w, "three processes, 3 replicas, %d keys, %d-byte values, %d rounds of %g s; median (least…greatest); ratios: kiloraft / peer within a round, of requests/s and of CPU per request with the clients\n",
		s.Keys, s.ValueSize, s.Rounds, s.DurationS)
	fmt.Fprintf(w, "Clients run inside the node processes, whose CPU has them, for kiloraft and dragonboat on the shards that their node leads; kiloraft-tcp: serve processes and a client process.\n"+
		"dragonboat: map without disk, %d ms ticks, one worker each; GOGC=400, GOMAXPROCS=%s for it and kiloraft. etcd: one group, at most %d in flight.\n\n",
		dragonTickMillis, procsText(s.Procs), etcdInflightMax)
	rows := r.rows()
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SHARDS\tLOAD\tIN FLIGHT\tPEER\tREQUESTS/S\tRATIO\tCPU RATIO\tP50 ms\tP99 ms\tNODE CPU µs\tCLIENT CPU µs\tFAILED\tERROR")
	for _, x := range rows {
		if x.load != "idle" {
			fmt.Fprintln(t, strings.Join(loadCells(rows, x), "\t"))
		}
	}
	fmt.Fprintln(t, "\nSHARDS\tPEER\tSTART TO ALL LEADERS s\tIDLE CPU % OF A CORE\tMEMORY PER REPLICA KiB\tRESIDENT MB\tERROR")
	for _, x := range rows {
		if x.load == "idle" {
			fmt.Fprintln(t, strings.Join(idleCells(x), "\t"))
		}
	}
	return t.Flush()
}

func procsText(n int) string {
	if n == 0 {
		return "all"
	}
	return fmt.Sprint(n)
}

func loadCells(rows []*row, x *row) []string {
	perS := func(s sample) float64 { return s.OpsPerS }
	inflight := fmt.Sprint(x.inflight)
	if x.peer == "etcd" {
		inflight = fmt.Sprint(min(x.inflight, etcdInflightMax))
	}
	total := func(s sample) float64 { return s.NodeCPUus + s.ClientCPUus }
	ratio, cpuRatio := "-", "-"
	for _, k := range rows {
		if k.peer == "kiloraft" && x.peer != k.peer && k.load == x.load && k.shards == x.shards && k.inflight == x.inflight {
			ratio, cpuRatio = spread("%.2f", ratios(k, x, perS)), spread("%.2f", ratios(k, x, total))
		}
	}
	out := []string{fmt.Sprint(x.shards), x.load, inflight, x.peer, spread("%.0f", x.values(perS)), ratio, cpuRatio,
		spread("%.2f", x.values(func(s sample) float64 { return float64(s.P50us) / 1000 })),
		spread("%.1f", x.values(func(s sample) float64 { return float64(s.P99us) / 1000 })),
		spread("%.1f", x.values(func(s sample) float64 { return s.NodeCPUus })),
		spread("%.1f", x.values(func(s sample) float64 { return s.ClientCPUus })),
		spread("%.0f", x.values(func(s sample) float64 { return float64(s.Failed) }))}
	return append(out, x.failure())
}

func idleCells(x *row) []string {
	return []string{fmt.Sprint(x.shards), x.peer, spread("%.2f", x.values(func(s sample) float64 { return s.StartS })),
		spread("%.1f", x.values(func(s sample) float64 { return s.IdleCPU })),
		spread("%.1f", x.values(func(s sample) float64 { return s.ReplicaBytes / 1024 })),
		spread("%.0f", x.values(func(s sample) float64 { return s.ResidentMB })), x.failure()}
}
