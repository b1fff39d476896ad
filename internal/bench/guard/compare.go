package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// metric is one thing that was measured several times.
type metric struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// noise is the change of a median that is never called a regression; allocations have none.
const noise = 0.10

// moreIsBetter tells the units of which more is better; of all others less is.
func (m metric) moreIsBetter() bool { return m.Unit == "ops/s" || m.Unit == "MB/s" }

func (m metric) median() float64 {
	v := slices.Sorted(slices.Values(m.Values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// metrics of the cluster and, parsed, of the Go benchmarks.
func (r record) metrics() []metric { return append(parseGoBench(r.GoBench), r.Cluster...) }

// parseGoBench reads what `go test -bench` prints: name, iterations, then pairs of value and unit.
func parseGoBench(text string) (out []metric) {
	pkg := ""
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "pkg:" {
			pkg = f[1][strings.LastIndexByte(f[1], '/')+1:]
		}
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				out = add(out, pkg+" "+strings.TrimPrefix(f[0], "Benchmark"), f[i+1], v)
			}
		}
	}
	return out
}

// add appends a value to the metric of that name and unit.
func add(list []metric, name, unit string, v float64) []metric {
	i := slices.IndexFunc(list, func(m metric) bool { return m.Name == name && m.Unit == unit })
	if i < 0 {
		return append(list, metric{name, unit, []float64{v}})
	}
	list[i].Values = append(list[i].Values, v)
	return list
}

// verdict compares two metrics of one name and unit: "worse", "better", or "" if that cannot be told from noise.
func verdict(older, newer metric) string {
	limit := noise
	if newer.Unit == "allocs/op" {
		limit = 0
	}
	worse := func(a, b metric) bool { // b is worse than a
		if a.moreIsBetter() {
			return b.median() < a.median()*(1-limit) && slices.Max(b.Values) < slices.Min(a.Values)
		}
		return b.median() > a.median()*(1+limit) && slices.Min(b.Values) > slices.Max(a.Values)
	}
	switch {
	case worse(older, newer):
		return "worse"
	case worse(newer, older):
		return "better"
	}
	return ""
}

// counted tells that the unit is no time: it is judged on a busy machine, too.
func (m metric) counted() bool {
	return m.Unit == "allocs/op" || m.Unit == "B/op" || m.Unit == "syncs/op"
}

// compare prints all metrics that both have, and counts those that got worse; on a busy machine times are not judged. What one of them lacks is printed, too.
func compare(older, newer []metric, busy bool, w io.Writer) (regressions int, err error) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tUNIT\tOLD\tNEW\tNEW/OLD\tVERDICT")
	for _, n := range newer {
		i := slices.IndexFunc(older, func(o metric) bool { return o.Name == n.Name && o.Unit == n.Unit })
		if i < 0 {
			fmt.Fprintf(t, "%s\t%s\t-\t%.4g\t-\tnew\n", n.Name, n.Unit, n.median())
			continue
		}
		o, ratio := older[i], "-"
		if o.median() != 0 {
			ratio = fmt.Sprintf("%.2f", n.median()/o.median())
		}
		v := ""
		if !busy || n.counted() {
			v = verdict(o, n)
		}
		if v == "worse" {
			regressions++
		}
		fmt.Fprintf(t, "%s\t%s\t%.4g\t%.4g\t%s\t%s\n", n.Name, n.Unit, o.median(), n.median(), ratio, v)
	}
	for _, o := range older {
		if !slices.ContainsFunc(newer, func(n metric) bool { return o.Name == n.Name && o.Unit == n.Unit }) {
			fmt.Fprintf(t, "%s\t%s\t%.4g\t-\t-\tgone\n", o.Name, o.Unit, o.median())
		}
	}
	return regressions, t.Flush()
}
