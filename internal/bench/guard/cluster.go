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

// onCluster starts three processes with these flags and so many shards, calls f, and stops them. dir holds their data; empty: a temporary directory.
func onCluster(ctx context.Context, binary, dir string, nshards int, args []string, f func(g *cluster) error) (err error) {
	c, err := demo.StartCluster(ctx, demo.Options{Binary: binary, Nodes: 3, BasePort: -1, Dir: dir, Args: args})
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
	err = onCluster(ctx, binary, "", shards, nil, func(g *cluster) error {
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
	out, _, err := g.process(ctx, args...)
	return out, err
}

// process is command, and tells what the process has taken of a core.
func (g *cluster) process(ctx context.Context, args ...string) ([]byte, time.Duration, error) {
	cmd := exec.CommandContext(ctx, g.binary, append(args, "--server", strings.Join(g.c.Servers, ","), "-o", "json")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// benchResult is what matters here of what `kiloraft bench` prints.
type benchResult struct {
	Ops     float64 `json:"ops"`
	OpsPerS float64 `json:"ops_per_s"`
	Errors  float64 `json:"errors"`
	NotSent float64 `json:"not_sent"`
	P50us   float64 `json:"p50_us"`
	P99us   float64 `json:"p99_us"`

	FirstError string `json:"first_error"`

	CPU   time.Duration `json:"-"` // of the process that has sent the requests
	CPUus float64       `json:"-"` // of all nodes, per write that they answered
	Cores float64       `json:"-"` // that the nodes took
}

// bench runs a workload on keys that need not be there, or are.
func (g *cluster) bench(ctx context.Context, workload string, args ...string) (r benchResult, err error) {
	b, cpu, err := g.process(ctx, append([]string{"bench", workload, "--no-load"}, args...)...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("bench printed %q: %w", b, err)
	}
	r.CPU = cpu
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

// overloadedMetric counts the requests that a node has refused with ErrOverloaded.
const overloadedMetric = `kiloraft_requests_refused_total{reason="overloaded"}`

// answeredMetric counts the writes that a node has answered, cpuMetric what it has taken of a core.
const (
	answeredMetric = "kiloraft_raft_commit_latency_seconds_count"
	cpuMetric      = "process_cpu_seconds_total"
)

// rates is how fast counters of all nodes grow per second between two times from now on.
func (g *cluster) rates(ctx context.Context, from, to time.Duration, metrics ...string) ([]float64, error) {
	begin, grown := time.Now(), make([]float64, len(metrics))
	for _, d := range []time.Duration{from, to} {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Until(begin.Add(d))):
		}
		for i, m := range metrics {
			v, err := g.sum(ctx, m)
			if err != nil {
				return nil, err
			}
			grown[i] = v - grown[i]
		}
	}
	for i := range grown {
		grown[i] /= (to - from).Seconds()
	}
	return grown, nil
}

// sum adds up what the nodes say of one metric.
func (g *cluster) sum(ctx context.Context, metric string) (total float64, err error) {
	found := 0
	for _, p := range g.c.Nodes {
		err := readMetrics(ctx, p, func(name string, v float64) {
			if name == metric {
				total += v
				found++
			}
		})
		if err != nil {
			return 0, err
		}
	}
	if found != len(g.c.Nodes) {
		return 0, fmt.Errorf("%d of %d nodes have the metric %s", found, len(g.c.Nodes), metric)
	}
	return total, nil
}

// largest samples the resident memory of the nodes until ctx ends and gives the most that one of them has had.
func (g *cluster) largest(ctx context.Context) (most float64) {
	for {
		for _, p := range g.c.Nodes {
			_ = readMetrics(context.WithoutCancel(ctx), p, func(name string, v float64) { // a node that is too busy answers the next time
				if name == "process_resident_memory_bytes" {
					most = max(most, v)
				}
			})
		}
		select {
		case <-ctx.Done():
			return most
		case <-time.After(250 * time.Millisecond):
		}
	}
}

const (
	// restCPU is what three nodes at rest take of a core at most; restMax is for how long a rest is waited for.
	restCPU = 0.1
	restMax = 30 * time.Second
)

// rest waits until the nodes have nothing left to do of what came before: checkpoints, and what a load has awoken.
func (g *cluster) rest(ctx context.Context) error {
	end := time.Now().Add(restMax)
	for before := -1.0; time.Now().Before(end); {
		cpu, err := g.sum(ctx, cpuMetric)
		if err != nil {
			return err
		}
		if before >= 0 && cpu-before < 2*restCPU {
			return nil
		}
		before = cpu
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
	return nil
}
