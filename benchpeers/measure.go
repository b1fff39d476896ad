package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what a run found. Its JSON is what `benchpeers plot` reads.
type report struct {
	Date     string   `json:"date"`
	CPUs     int      `json:"cpus"`
	LoadAvg  []string `json:"load_average"` // of the machine for one minute, at the start of each round
	Settings settings `json:"settings"`
	Samples  []sample `json:"samples"`
}

// sample is one load of one peer in one round; load "idle" is its start and what it costs without any.
type sample struct {
	Round    int    `json:"round"`
	Peer     string `json:"peer"`
	Shards   int    `json:"shards"`
	Load     string `json:"load"`
	Inflight int    `json:"inflight,omitempty"`
	Error    string `json:"error,omitempty"` // it did not come up, or the load could not be run

	OpsPerS     float64 `json:"ops_per_s,omitempty"`
	P50us       int64   `json:"p50_us,omitempty"`
	P99us       int64   `json:"p99_us,omitempty"`
	NodeCPUus   float64 `json:"node_cpu_us,omitempty"`   // per request, of all three
	ClientCPUus float64 `json:"client_cpu_us,omitempty"` // per request; 0 where clients run in the nodes
	Failed      int64   `json:"failed,omitempty"`
	FirstError  string  `json:"first_error,omitempty"`

	StartS       float64 `json:"start_s,omitempty"`  // from starting the processes, in empty directories, to leaders of all shards
	IdleCPU      float64 `json:"idle_cpu,omitempty"` // percent of a core, all three
	ReplicaBytes float64 `json:"replica_bytes,omitempty"`
	ResidentMB   float64 `json:"resident_mb,omitempty"` // all three
}

func measure(ctx context.Context, s settings) *report {
	r := &report{Date: time.Now().UTC().Format(time.DateTime), CPUs: runtime.NumCPU(), Settings: s}
	for round := 1; round <= s.Rounds && ctx.Err() == nil; round++ {
		b, _ := os.ReadFile("/proc/loadavg")
		one, _, _ := strings.Cut(string(b), " ")
		r.LoadAvg = append(r.LoadAvg, one)
		for i, shards := range s.Shards {
			for _, p := range peers {
				if !slices.Contains(s.Peers, p.name) || (p.name == "etcd" && i > 0) {
					continue
				}
				fmt.Fprintf(os.Stderr, "round %d: %s, %d shards\n", round, p.name, shards)
				r.Samples = append(r.Samples, measurePeer(ctx, s, p, shards, round)...)
			}
		}
	}
	return r
}

// measurePeer runs all loads on a new cluster of one peer. What fails is in the samples.
func measurePeer(ctx context.Context, s settings, p peer, shards, round int) (out []sample) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	base := sample{Round: round, Peer: p.name, Shards: shards}
	idle := base
	idle.Load = "idle"
	fail := func(x sample, err error) { x.Error = err.Error(); out = append(out, x) }

	dir, err := os.MkdirTemp("", "benchpeers-")
	if err != nil {
		fail(idle, err)
		return out
	}
	defer os.RemoveAll(dir)
	begin := time.Now()
	c, empty, err := p.start(ctx, s, dir, shards)
	if c != nil {
		defer c.stop()
	}
	if err == nil {
		idle.StartS = time.Since(begin).Seconds()
		err = measureIdle(ctx, s, c, empty, &idle)
	}
	if err != nil {
		err = fmt.Errorf("start: %w", err)
		fail(idle, err)
		for _, l := range s.Loads {
			x := base
			x.Load, x.Inflight = l.Name, l.Inflight
			fail(x, err)
		}
		return out
	}
	out = append(out, idle)
	if err = c.prepare(ctx, shards); err == nil {
		err = warm(ctx, c, s.Loads)
	}
	for _, l := range s.Loads {
		x := base
		x.Load, x.Inflight = l.Name, l.Inflight
		if err == nil {
			err = measureLoad(ctx, c, l, &x)
		}
		if err != nil {
			fail(x, err)
			continue
		}
		out = append(out, x)
	}
	return out
}

// measureIdle watches the nodes while nobody asks for anything.
func measureIdle(ctx context.Context, s settings, c cluster, empty int64, x *sample) error {
	if s.IdleS > 0 {
		if err := pause(ctx, time.Duration(s.SettleS*float64(time.Second))); err != nil {
			return err
		}
		before, err := cpu(c.processes())
		if err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(s.IdleS*float64(time.Second))); err != nil {
			return err
		}
		after, err := cpu(c.processes())
		if err != nil {
			return err
		}
		x.IdleCPU = max(100*(after-before).Seconds()/s.IdleS, 0.01) // 0 would mean: not measured
	}
	now, err := resident(c.processes())
	if err != nil {
		return err
	}
	x.ResidentMB = float64(now) / (1 << 20)
	if empty > 0 {
		x.ReplicaBytes = float64(now-empty) / float64(nodes*x.Shards)
	}
	return nil
}

// warm fills the keys if a load reads, and writes for a moment.
func warm(ctx context.Context, c cluster, loads []load) error {
	if len(loads) == 0 {
		return nil
	}
	if slices.ContainsFunc(loads, func(l load) bool { return l.reads() > 0 }) {
		if _, err := c.run(ctx, load{Name: "fill", Inflight: 256, Duration: time.Second}); err != nil {
			return err
		}
	}
	_, err := c.run(ctx, load{Name: "write", Inflight: 256, Duration: time.Second})
	return err
}

func measureLoad(ctx context.Context, c cluster, l load, x *sample) error {
	before, err := cpu(c.processes())
	if err != nil {
		return err
	}
	o, err := c.run(ctx, l)
	if err != nil {
		return err
	}
	after, err := cpu(c.processes())
	if err != nil {
		return err
	}
	x.Failed, x.FirstError = o.Errors, o.FirstError
	if o.Ops == 0 {
		return fmt.Errorf("no request succeeded: %s", o.FirstError)
	}
	x.OpsPerS, x.P50us, x.P99us = float64(o.Ops)/o.Seconds, o.P50us, o.P99us
	perOp := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(o.Ops) }
	x.NodeCPUus, x.ClientCPUus = perOp(after-before), perOp(o.ClientCPU)
	return nil
}
