package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// exitUnavailable is the exit code of kiloraft's commands while too few nodes are up.
const exitUnavailable = 4

// kiloraft is three `kiloraft serve` processes.
type kiloraft struct {
	set    settings
	ps     []*process
	server string // all addresses
}

func startKiloraft(ctx context.Context, s settings, dir string, shards int) (cluster, int64, error) {
	addrs, err := freeAddresses(2 * nodes)
	if err != nil {
		return nil, 0, err
	}
	k := &kiloraft{set: s, server: strings.Join(addrs[:nodes], ",")}
	for i := range nodes {
		name := "n" + strconv.Itoa(i+1)
		p, err := startProcess(dir, name, s.Binary, nil, "serve", "--data-dir", filepath.Join(dir, name), "--listen", addrs[i],
			"--http", addrs[nodes+i], "--name", name, "--join", k.server)
		if err != nil {
			return k, 0, err
		}
		k.ps = append(k.ps, p)
	}
	for i := range nodes {
		if err := waitLive(ctx, "http://"+addrs[nodes+i]+"/livez"); err != nil {
			return k, 0, k.ps[i].failed("start", err)
		}
	}
	empty, err := resident(k.ps)
	if err != nil {
		return k, 0, err
	}
	for {
		_, _, err = k.command(ctx, "cluster", "init", "--shards", strconv.Itoa(shards), "--timeout", "5m")
		var exit *exec.ExitError
		if err == nil || ctx.Err() != nil || !errors.As(err, &exit) || exit.ExitCode() != exitUnavailable {
			return k, empty, err
		}
		time.Sleep(50 * time.Millisecond) // the nodes do not know each other yet
	}
}

func waitLive(ctx context.Context, url string) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// command runs the binary against the cluster and returns what it printed and the CPU time that it took.
func (k *kiloraft) command(ctx context.Context, args ...string) ([]byte, time.Duration, error) {
	cmd := exec.CommandContext(ctx, k.set.Binary, append(args, "--server", k.server, "-o", "json")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("kiloraft %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// prepare has nothing to do.
func (k *kiloraft) prepare(context.Context, int) error { return nil }

func (k *kiloraft) processes() []*process { return k.ps }

func (k *kiloraft) run(ctx context.Context, l load) (outcome, error) {
	args := []string{"bench", l.Name, "--inflight", strconv.Itoa(l.Inflight), "--duration", l.Duration.String(),
		"--keys", strconv.Itoa(k.set.Keys), "--value-size", strconv.Itoa(k.set.ValueSize)}
	if l.Name == "fill" {
		args[1], args[5] = "read", "1ms" // a load that reads writes all keys first
	} else {
		args = append(args, "--no-load")
	}
	out, used, err := k.command(ctx, args...)
	if err != nil {
		return outcome{}, err
	}
	var r struct {
		Ops        int64   `json:"ops"`
		Errors     int64   `json:"errors"`
		P50us      int64   `json:"p50_us"`
		P99us      int64   `json:"p99_us"`
		Duration   float64 `json:"duration_s"`
		FirstError string  `json:"first_error"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return outcome{}, fmt.Errorf("kiloraft bench printed %q: %w", out, err)
	}
	return outcome{Ops: r.Ops, Errors: r.Errors, Seconds: r.Duration, P50us: r.P50us, P99us: r.P99us, ClientCPU: used, FirstError: r.FirstError}, nil
}

func (k *kiloraft) stop() {
	for _, p := range k.ps {
		p.kill()
	}
}
