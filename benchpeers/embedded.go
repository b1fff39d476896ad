package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// embedded is three processes of this program, each with a node of a peer and its clients.
type embedded struct {
	set settings
	ps  []*process
	// ask: leaders are handed over on request; else the peer spreads them by itself.
	ask bool
}

// startEmbedded starts the nodes of a peer, each on its own directory, and waits until all know the leaders of all shards.
func startEmbedded(ctx context.Context, s settings, dir, peer string, shards int, ask bool) (cluster, int64, error) {
	e := &embedded{set: s, ask: ask}
	var err error
	env := []string{"GOGC=400"}
	if s.Procs > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(s.Procs))
	}
	if e.ps, err = startOwn(dir, peer, nodes, env...); err != nil {
		return e, 0, err
	}
	if err := e.all(ctx, request{Do: "open"}, nil); err != nil {
		return e, 0, err
	}
	empty, err := resident(e.ps)
	if err != nil {
		return e, 0, err
	}
	if err := e.all(ctx, request{Do: "shards", Shards: shards}, nil); err != nil {
		return e, 0, err
	}
	return e, empty, e.waitLeaders(ctx, shards)
}

// startOwn starts this program as the nodes of a peer, with so many addresses in all.
func startOwn(dir, peer string, addresses int, env ...string) (ps []*process, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addrs, err := freeAddresses(addresses)
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		id := strconv.Itoa(i + 1)
		p, err := startProcess(dir, peer+id, self, env, "node", peer, id, filepath.Join(dir, id), strings.Join(addrs, ","))
		if err != nil {
			return ps, err
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// all sends a request to all nodes at once and collects the answers, if results is not nil.
func (e *embedded) all(ctx context.Context, req request, results []response) error {
	reqs := make([]request, len(e.ps))
	for i := range reqs {
		reqs[i] = req
	}
	return callAll(ctx, e.ps, reqs, results)
}

func callAll(ctx context.Context, ps []*process, reqs []request, results []response) error {
	errs := make([]error, len(ps))
	done := make(chan struct{})
	for i, p := range ps {
		go func() {
			var res response
			res, errs[i] = p.call(ctx, reqs[i])
			if results != nil {
				results[i] = res
			}
			done <- struct{}{}
		}()
	}
	for range ps {
		<-done
	}
	return errors.Join(errs...)
}

func (e *embedded) waitLeaders(ctx context.Context, shards int) error {
	res := make([]response, nodes)
	for {
		if err := e.all(ctx, request{Do: "leaders"}, res); err != nil {
			return err
		}
		if known := min(res[0].Leaders, res[1].Leaders, res[2].Leaders); known == shards {
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("a node knows the leaders of only %d of %d shards: %w", min(res[0].Leaders, res[1].Leaders, res[2].Leaders), shards, err)
		}
	}
}

// prepare balances leaders: until each node leads its third, within a tenth.
func (e *embedded) prepare(ctx context.Context, shards int) error {
	res := make([]response, nodes)
	for {
		if err := e.all(ctx, request{Do: "leaders"}, res); err != nil {
			return err
		}
		low, high := min(res[0].Led, res[1].Led, res[2].Led), max(res[0].Led, res[1].Led, res[2].Led)
		if low > 0 && high-low <= max(1, shards/30) {
			return nil
		}
		if e.ask {
			_ = e.all(ctx, request{Do: "balance"}, nil) // transfers that are refused are asked for again
		}
		if err := pause(ctx, time.Second); err != nil {
			return fmt.Errorf("leaders are not balanced: %d, %d, %d: %w", res[0].Led, res[1].Led, res[2].Led, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (e *embedded) processes() []*process { return e.ps }

func (e *embedded) run(ctx context.Context, l load) (outcome, error) {
	var ps []*process
	var reqs []request
	for i, p := range e.ps {
		own := l
		own.Inflight = (l.Inflight + nodes - 1 - i) / nodes
		if own.Inflight == 0 && l.Name != "fill" {
			continue
		}
		ps = append(ps, p)
		reqs = append(reqs, request{Do: "run", Load: own, Seconds: l.Duration.Seconds(), Keys: e.set.Keys, ValueLen: e.set.ValueSize})
	}
	results := make([]response, len(ps))
	if err := callAll(ctx, ps, reqs, results); err != nil {
		return outcome{}, err
	}
	return merge(results), nil
}

func merge(results []response) outcome {
	var out outcome
	all := hdrhistogram.New(1, latencyMaxMicros, 3)
	for _, r := range results {
		out.Ops += r.Ops
		out.Errors += r.Errors
		out.Seconds = max(out.Seconds, r.Seconds)
		if out.FirstError == "" {
			out.FirstError = r.FirstError
		}
		if r.Latency != nil {
			all.Merge(hdrhistogram.Import(r.Latency))
		}
	}
	out.P50us, out.P99us = all.ValueAtQuantile(50), all.ValueAtQuantile(99)
	return out
}

func (e *embedded) stop() {
	for _, p := range e.ps {
		p.kill()
	}
}
