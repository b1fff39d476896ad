package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// shards of the cluster that is measured.
const shards = 100

// loads that run on it: name and requests in flight.
var loads = [][2]string{{"write", "1"}, {"write", "64"}, {"write", "1024"}, {"read", "1024"}}

// counters of the nodes that are given per request, with the unit of the quotient.
var counters = []struct {
	name, unit string
	scale      float64
}{{"process_cpu_seconds_total", "cpu-µs/op", 1e6}, {"kiloraft_log_syncs_total", "syncs/op", 1}}

// onCluster starts three processes with so many shards, calls f, and stops them. dir holds their data; empty: a temporary directory.
func onCluster(ctx context.Context, binary, dir string, nshards int, f func(g *cluster) error) (err error) {
	c, err := demo.StartCluster(ctx, demo.Options{Binary: binary, Nodes: 3, BasePort: -1, Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(ctx))) }()
	g := &cluster{binary: binary, c: c}
	if _, err := g.command(ctx, "cluster", "init", "--shards", strconv.Itoa(nshards)); err != nil {
		return err
	}
	return f(g)
}

// measureCluster runs every load so often, one after the other.
func measureCluster(ctx context.Context, binary string, count int, d time.Duration) (out []metric, err error) {
	err = onCluster(ctx, binary, "", shards, func(g *cluster) error {
		if _, err := g.command(ctx, "bench", "read", "--duration", "1s"); err != nil { // writes all keys first
			return err
		}
		for range count {
			for _, l := range loads {
				if out, err = g.measure(ctx, out, l, d); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return out, err
}

type cluster struct {
	binary string
	c      *demo.Cluster
}

func (g *cluster) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, g.binary, append(args, "--server", strings.Join(g.c.Servers, ","), "-o", "json")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// benchResult is what matters here of what `kiloraft bench` prints.
type benchResult struct {
	Ops     float64 `json:"ops"`
	OpsPerS float64 `json:"ops_per_s"`
	Errors  float64 `json:"errors"`
	NotSent float64 `json:"not_sent"`
	P50us   float64 `json:"p50_us"`
	P99us   float64 `json:"p99_us"`
}

// bench runs a workload on keys that need not be there, or are.
func (g *cluster) bench(ctx context.Context, workload string, args ...string) (r benchResult, err error) {
	b, err := g.command(ctx, append([]string{"bench", workload, "--no-load"}, args...)...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("bench printed %q: %w", b, err)
	}
	return r, nil
}

// measure runs one load once and adds its values to the metrics.
func (g *cluster) measure(ctx context.Context, list []metric, load [2]string, d time.Duration) ([]metric, error) {
	before, err := g.counters(ctx)
	if err != nil {
		return nil, err
	}
	res, err := g.bench(ctx, load[0], "--inflight", load[1], "--duration", d.String())
	if err != nil {
		return nil, err
	}
	after, err := g.counters(ctx)
	if err != nil {
		return nil, err
	}
	name := "cluster " + load[0] + "/" + load[1]
	list = add(list, name, "ops/s", res.OpsPerS)
	list = add(list, name, "p50-µs", res.P50us)
	list = add(list, name, "p99-µs", res.P99us)
	for i, k := range counters {
		list = add(list, name, k.unit, k.scale*(after[i]-before[i])/res.Ops)
	}
	return list, nil
}

// counters reads the counters of all nodes, summed, in the order of their list.
func (g *cluster) counters(ctx context.Context) ([]float64, error) {
	out := make([]float64, len(counters))
	found := 0
	for _, p := range g.c.Nodes {
		err := readMetrics(ctx, p, func(name string, v float64) {
			for i, k := range counters {
				if name == k.name {
					out[i] += v
					found++
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	if found != len(counters)*len(g.c.Nodes) {
		return nil, fmt.Errorf("the nodes' /metrics have %d of %d counters", found, len(counters)*len(g.c.Nodes))
	}
	return out, nil
}

// readMetrics gives what a node's /metrics shows, name with labels and value, line by line.
func readMetrics(ctx context.Context, p *demo.Process, see func(name string, v float64)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.HTTP+"/metrics", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			see(name, v)
		}
	}
	return lines.Err()
}
