package main

import (
	"fmt"
	"math"
	"os"
	"strings"
)

// panel is one small chart: a cost over the number of shards, both axes logarithmic.
type panel struct {
	title string
	load  string
	value func(sample) float64
}

var panels = []panel{
	{"start to all leaders, s", "idle", func(s sample) float64 { return s.StartS }},
	{"memory per idle replica, KiB", "idle", func(s sample) float64 { return s.ReplicaBytes / 1024 }},
	{"idle CPU, % of a core", "idle", func(s sample) float64 { return s.IdleCPU }},
	{"node CPU per write, µs", "write", func(s sample) float64 { return s.NodeCPUus }},
}

// Sizes in SVG units.
const (
	panelWidth, panelHeight = 330, 230
	plotLeft, plotTop       = 60, 40
	plotWidth, plotHeight   = 240, 140
)

// plotFiles draws kiloraft's rows of reports, taken together.
func plotFiles(from []string, to string) error {
	r, err := readReports(from)
	if err != nil {
		return err
	}
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", 2*panelWidth, 2*panelHeight)
	fmt.Fprintf(&svg, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for i, p := range panels {
		fmt.Fprintf(&svg, `<g transform="translate(%d,%d)">`+"\n", i%2*panelWidth, i/2*panelHeight)
		p.draw(&svg, r.rows())
		svg.WriteString("</g>\n")
	}
	svg.WriteString("</svg>\n")
	return os.WriteFile(to, []byte(svg.String()), 0o644)
}

func (p panel) draw(svg *strings.Builder, rows []*row) {
	fmt.Fprintf(svg, `<text x="%d" y="22" font-size="13">%s</text>`+"\n", plotLeft, p.title)
	var xs, ys []float64
	peer, inflight := "", -1 // those of the first row: lines do not mix them
	for _, x := range rows {
		if !strings.HasPrefix(x.peer, "kiloraft") || x.load != p.load || inflight >= 0 && (x.peer != peer || x.inflight != inflight) {
			continue
		}
		if v := median(x.values(p.value)); v > 0 {
			peer, inflight = x.peer, x.inflight
			xs, ys = append(xs, math.Log10(float64(x.shards))), append(ys, math.Log10(v))
		}
	}
	if len(xs) == 0 {
		fmt.Fprintf(svg, `<text x="%d" y="%d">not measured</text>`+"\n", plotLeft, plotTop+20)
		return
	}
	x0, x1 := decades(xs)
	y0, y1 := decades(ys)
	at := func(x, y float64) (float64, float64) {
		return plotLeft + plotWidth*(x-x0)/(x1-x0), plotTop + plotHeight*(y1-y)/(y1-y0)
	}
	grid(svg, x0, x1, y0, y1, at)
	var line strings.Builder
	for i := range xs {
		x, y := at(xs[i], ys[i])
		fmt.Fprintf(&line, "%.1f,%.1f ", x, y)
		fmt.Fprintf(svg, `<circle cx="%.1f" cy="%.1f" r="3" fill="#1f5fa8"/><text x="%.1f" y="%.1f" text-anchor="middle">%.3g</text>`+"\n",
			x, y, x, y-7, math.Pow(10, ys[i]))
	}
	fmt.Fprintf(svg, `<polyline points="%s" fill="none" stroke="#1f5fa8" stroke-width="1.5"/>`+"\n", strings.TrimSpace(line.String()))
}

// decades are the powers of ten around values that are logarithms already.
func decades(v []float64) (low, high float64) {
	low, high = v[0], v[0]
	for _, x := range v {
		low, high = min(low, x), max(high, x)
	}
	low, high = math.Floor(low), math.Ceil(high)
	if low == high {
		high++
	}
	return low, high
}

func grid(svg *strings.Builder, x0, x1, y0, y1 float64, at func(x, y float64) (float64, float64)) {
	for d := x0; d <= x1; d++ {
		x, y := at(d, y0)
		fmt.Fprintf(svg, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="middle">%g</text>`+"\n",
			x, plotTop, x, y, x, y+15, math.Pow(10, d))
	}
	for d := y0; d <= y1; d++ {
		x, y := at(x0, d)
		fmt.Fprintf(svg, `<line x1="%.1f" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%g</text>`+"\n",
			x, y, plotLeft+plotWidth, y, x-5, y+4, math.Pow(10, d))
	}
	fmt.Fprintf(svg, `<text x="%d" y="%d" text-anchor="middle">shards</text>`+"\n", plotLeft+plotWidth/2, plotTop+plotHeight+32)
}
