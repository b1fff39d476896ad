package main

import (
	"context"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// nodes of every cluster, and replicas of every shard.
const nodes = 3

// load is one kind of work: requests that are always in flight, for a time.
type load struct {
	Name     string        `json:"name"` // write, read, mixed90, or fill: every key once
	Inflight int           `json:"inflight"`
	Duration time.Duration `json:"-"`
}

// reads is the share of reads in percent.
func (l load) reads() int { return map[string]int{"read": 100, "mixed90": 90}[l.Name] }

// outcome of a load.
type outcome struct {
	Ops, Errors int64
	Seconds     float64
	P50us       int64
	P99us       int64
	ClientCPU   time.Duration // of client processes; 0 where the clients run in the nodes
	FirstError  string
}

// cluster is three running nodes of one peer.
type cluster interface {
	processes() []*process
	// prepare is called once, after the start was timed and before the first load.
	prepare(ctx context.Context, shards int) error
	run(ctx context.Context, l load) (outcome, error)
	stop()
}

// peer knows how to start a cluster with so many shards. It returns when all shards have leaders.
// empty is the resident memory of the processes before they had any shard, 0 if that cannot be told.
type peer struct {
	name  string
	start func(ctx context.Context, s settings, dir string, shards int) (c cluster, empty int64, err error)
}

var peers = []peer{
	{"kiloraft", func(ctx context.Context, s settings, dir string, shards int) (cluster, int64, error) {
		return startEmbedded(ctx, s, dir, "kiloraft", shards, false)
	}},
	{"dragonboat", func(ctx context.Context, s settings, dir string, shards int) (cluster, int64, error) {
		return startEmbedded(ctx, s, dir, "dragonboat", shards, true)
	}},
	{"etcd", startEtcd},
	{"kiloraft-tcp", startKiloraft},
}

// request and response are the lines between the driver and a node process of this program.
type request struct {
	Do       string  `json:"do"` // open, shards, leaders, balance, run
	Shards   int     `json:"shards,omitempty"`
	Load     load    `json:"load,omitzero"`
	Seconds  float64 `json:"seconds,omitempty"`
	Keys     int     `json:"keys,omitempty"`
	ValueLen int     `json:"value_len,omitempty"`
}

type response struct {
	Error      string                 `json:"error,omitempty"`
	Leaders    int                    `json:"leaders"` // shards whose leader is known; of etcd: 1 if this node leads
	Led        int                    `json:"led"`     // shards that this node leads
	Ops        int64                  `json:"ops"`
	Errors     int64                  `json:"errors"`
	FirstError string                 `json:"first_error,omitempty"`
	Seconds    float64                `json:"seconds"`
	Latency    *hdrhistogram.Snapshot `json:"latency,omitempty"`
}
