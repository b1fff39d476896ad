package main

import (
	"math"
	"strconv"
	"strings"
)

// histogram of the nodes' commit latency as /metrics shows it: requests that took up to bound i, not those of lower bounds alone.
type histogram struct {
	bounds []float64 // ascending, in seconds, the last +Inf
	counts []float64
}

// read takes a line of a bucket in and leaves others alone. Nodes have the same buckets and show them in order.
func (h *histogram) read(name string, v float64) {
	s, ok := strings.CutPrefix(name, `kiloraft_raft_commit_latency_seconds_bucket{le="`)
	if !ok {
		return
	}
	bound, err := strconv.ParseFloat(strings.TrimSuffix(s, `"}`), 64)
	if err != nil {
		return
	}
	for i, b := range h.bounds {
		if b == bound {
			h.counts[i] += v
			return
		}
	}
	h.bounds, h.counts = append(h.bounds, bound), append(h.counts, v)
}

func (h histogram) plus(o histogram) histogram  { return h.with(o, 1) }
func (h histogram) minus(o histogram) histogram { return h.with(o, -1) }

func (h histogram) with(o histogram, sign float64) histogram {
	if len(h.bounds) == 0 {
		h = histogram{o.bounds, make([]float64, len(o.bounds))}
	}
	sum := histogram{h.bounds, make([]float64, len(h.bounds))}
	copy(sum.counts, h.counts)
	for i := range min(len(o.counts), len(sum.counts)) {
		sum.counts[i] += sign * o.counts[i]
	}
	return sum
}

// quantile interpolates within a bucket, as Prometheus does; 0 if there is nothing, the last finite bound if it lies beyond.
func (h histogram) quantile(q float64) float64 {
	n := len(h.counts)
	if n == 0 || h.counts[n-1] <= 0 {
		return 0
	}
	rank := q * h.counts[n-1]
	low, below := 0.0, 0.0
	for i, c := range h.counts {
		if c >= rank {
			if math.IsInf(h.bounds[i], 1) {
				return low
			}
			return low + (h.bounds[i]-low)*(rank-below)/(c-below)
		}
		low, below = h.bounds[i], c
	}
	return low
}
