package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/shard"
)

// kiloNode is one embedded node of kiloraft with its clients, as dragonNode is of dragonboat.
type kiloNode struct {
	id     int
	dir    string
	addrs  []string
	node   *node.Node
	shards int
}

func (n *kiloNode) do(req request) (response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch req.Do {
	case "open":
		return response{}, n.open(ctx)
	case "shards":
		n.shards = req.Shards
		if n.id != 1 {
			return response{}, nil
		}
		_, err := n.node.Init(ctx, node.InitOptions{Shards: req.Shards, Nodes: nodes})
		return response{}, err
	case "leaders":
		led, known := n.node.Leading()
		return response{Leaders: known, Led: len(led)}, nil
	case "run":
		return n.run(ctx, req)
	}
	return response{}, fmt.Errorf("request %q is unknown", req.Do)
}

func (n *kiloNode) open(ctx context.Context) (err error) {
	n.node, err = node.Open(ctx, node.Config{DataDir: n.dir, Listen: n.addrs[n.id-1], Join: n.addrs, HTTP: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	return err
}

// run puts this node's part of the load on the shards that it leads, by one goroutine, through a pipe.
func (n *kiloNode) run(ctx context.Context, req request) (response, error) {
	led, _ := n.node.Leading()
	if len(led) == 0 {
		return response{}, errors.New("this node leads no shard")
	}
	l := &pipeLoad{pipe: n.node.Pipe(max(req.Load.Inflight, 1)), led: led, value: make([]byte, req.ValueLen), reads: req.Load.reads(),
		perShard: max(1, req.Keys/n.shards), rng: rand.New(rand.NewPCG(uint64(n.id), 7))}
	if req.Load.Name == "fill" {
		return response{}, l.fill(ctx)
	}
	if err := n.saveMetrics(req.Load, "before"); err != nil {
		return response{}, err
	}
	res, err := l.run(ctx, time.Duration(req.Seconds*float64(time.Second)))
	return res, errors.Join(err, n.saveMetrics(req.Load, "after"))
}

// saveMetrics puts what the node has counted beside the profiles, if those are wanted.
func (n *kiloNode) saveMetrics(l load, when string) error {
	dir := os.Getenv(profileDir)
	if dir == "" {
		return nil
	}
	res, err := http.Get("http://" + n.node.HTTPAddr() + "/metrics")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("kiloraft%d-%s-%d-%s.metrics", n.id, l.Name, l.Inflight, when)))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, res.Body)
	return errors.Join(err, f.Close())
}

// pipeLoad is a closed loop over one pipe.
type pipeLoad struct {
	pipe     *node.Pipe
	led      []*shard.Descriptor
	perShard int
	reads    int
	value    []byte
	key      []byte
	rng      *rand.Rand
}

// keyOf is the i-th key of a shard that starts at start: as long as the keys of the others, behind the start.
func (l *pipeLoad) keyOf(start []byte, i int) []byte {
	l.key = append(append(l.key[:0], start...), "bench/k/"...)
	l.key = binary.BigEndian.AppendUint64(l.key, uint64(i))
	return l.key
}

func (l *pipeLoad) fill(ctx context.Context) error {
	var done []node.Completed
	var err error
	wait := func() error {
		if done, err = l.pipe.Wait(ctx, done[:0]); err != nil {
			return err
		}
		for _, d := range done {
			if d.Err != nil {
				return d.Err
			}
		}
		return nil
	}
	depth := l.pipe.Free()
	for _, d := range l.led {
		for i := range l.perShard {
			for !l.pipe.Put(0, l.keyOf(d.Start, i), l.value) {
				if err := wait(); err != nil {
					return err
				}
			}
		}
	}
	for l.pipe.Free() < depth {
		if err := wait(); err != nil {
			return err
		}
	}
	return nil
}

// run keeps the pipe full until the time is over; what is in flight then is finished. A latency counts from when the request was handed to
// the pipe to when the loop has it back.
func (l *pipeLoad) run(ctx context.Context, d time.Duration) (response, error) {
	var res response
	all := hdrhistogram.New(1, latencyMaxMicros, 3)
	depth := l.pipe.Free()
	var done []node.Completed
	start := time.Now()
	end := start.Add(d)
	for now := start; ; {
		for now.Before(end) && l.pipe.Free() > 0 {
			l.one(uint64(now.Sub(start)))
		}
		if l.pipe.Free() == depth {
			break
		}
		var err error
		if done, err = l.pipe.Wait(ctx, done[:0]); err != nil {
			return res, err
		}
		now = time.Now()
		for i := range done {
			if err := done[i].Err; err != nil {
				res.Errors++
				if res.FirstError == "" {
					res.FirstError = err.Error()
				}
				continue
			}
			res.Ops++
			took := now.Sub(start) - time.Duration(done[i].Tag)
			_ = all.RecordValue(min(max(1, took.Microseconds()), latencyMaxMicros)) // in range by construction
		}
	}
	res.Seconds = time.Since(start).Seconds()
	res.Latency = all.Export()
	return res, nil
}

// one sends a request; its tag is when.
func (l *pipeLoad) one(tag uint64) {
	key := l.keyOf(l.led[l.rng.IntN(len(l.led))].Start, l.rng.IntN(l.perShard))
	if l.rng.IntN(100) < l.reads {
		l.pipe.Get(tag, key)
		return
	}
	l.pipe.Put(tag, key, l.value)
}
