package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settings of a run; part of the report.
type settings struct {
	Binary    string        `json:"-"`
	Peers     []string      `json:"peers"`
	Shards    []int         `json:"shards"`
	Loads     []load        `json:"loads"`
	Rounds    int           `json:"rounds"`
	Keys      int           `json:"keys"`
	ValueSize int           `json:"value_size"`
	DurationS float64       `json:"duration_s"`
	Procs     int           `json:"procs"` // GOMAXPROCS of nodes of kiloraft and dragonboat; 0: as Go chooses
	IdleS     float64       `json:"idle_s"`
	SettleS   float64       `json:"settle_s"`
	Timeout   time.Duration `json:"-"` // of one peer in one round
}

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchpeers:", err)
		os.Exit(1)
	}
}

func command(args []string) error {
	if len(args) > 0 && args[0] == "node" {
		return serveNode(args[1:])
	}
	if len(args) >= 3 && args[0] == "plot" {
		return plotFiles(args[1:len(args)-1], args[len(args)-1])
	}
	if len(args) == 2 && args[0] == "print" {
		r, err := readReports(args[1:])
		if err != nil {
			return err
		}
		return r.print(os.Stdout)
	}
	s, out, err := parse(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := measure(ctx, s)
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	if out == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}

// readReports reads reports and puts their samples together under the first one's settings.
func readReports(names []string) (all report, err error) {
	for i, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return all, err
		}
		var r report
		if err := json.Unmarshal(b, &r); err != nil {
			return all, fmt.Errorf("%s: %w", name, err)
		}
		if i > 0 {
			all.Samples = append(all.Samples, r.Samples...)
			continue
		}
		all = r
	}
	return all, nil
}

func parse(args []string) (s settings, out string, err error) {
	f := flag.NewFlagSet("benchpeers", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprintln(f.Output(), "benchpeers [flags]: measures; benchpeers print REPORT.json: its table again; benchpeers plot REPORT.json… OUT.svg: draws kiloraft's cost by the number of shards")
		f.PrintDefaults()
	}
	f.StringVar(&s.Binary, "bin", "../bin/kiloraft", "the kiloraft binary")
	names := f.String("peers", "kiloraft,dragonboat,etcd", "who takes part; also kiloraft-tcp: serve processes with a client process")
	shards := f.String("shards", "48,1000", "numbers of shards, one after the other; etcd takes part in the first only")
	rows := f.String("rows", "write:1,write:64,write:1024,write:8192,read:8192,mixed90:8192", "loads: write, read or mixed90 (90 % reads), and requests in flight")
	f.IntVar(&s.Rounds, "rounds", 3, "how often each peer is started and measured")
	duration := f.Duration("duration", 3*time.Second, "of one load")
	idle := f.Duration("idle", 0, "how long to watch the idle nodes' CPU before the loads (0: not)")
	settle := f.Duration("settle", 10*time.Second, "pause before watching idle nodes")
	f.IntVar(&s.Keys, "keys", 100_000, "number of keys")
	f.IntVar(&s.ValueSize, "value-size", 128, "bytes of a value")
	f.IntVar(&s.Procs, "procs", 0, "GOMAXPROCS of each node of kiloraft and dragonboat (0: as Go chooses): three nodes on two cores lose time when each uses both")
	f.DurationVar(&s.Timeout, "timeout", 5*time.Minute, "of one peer in one round")
	f.StringVar(&out, "o", "", "write the report as JSON to this file, too")
	if err := f.Parse(args); err != nil {
		return s, "", err
	}
	s.DurationS, s.IdleS, s.SettleS = duration.Seconds(), idle.Seconds(), settle.Seconds()
	s.Peers = strings.Split(*names, ",")
	for _, n := range strings.Split(*shards, ",") {
		v, err := strconv.Atoi(n)
		if err != nil || v < 1 {
			return s, "", fmt.Errorf("-shards %q: want numbers from 1", n)
		}
		s.Shards = append(s.Shards, v)
	}
	if *rows != "" {
		for _, r := range strings.Split(*rows, ",") {
			l, err := parseLoad(r, *duration)
			if err != nil {
				return s, "", err
			}
			s.Loads = append(s.Loads, l)
		}
	}
	if f.NArg() > 0 || s.Rounds < 1 || s.Keys < 1 || s.ValueSize < 0 || *duration <= 0 {
		return s, "", errors.New("no arguments; rounds, keys and duration must be positive")
	}
	return s, out, nil
}

func parseLoad(row string, d time.Duration) (load, error) {
	name, n, _ := strings.Cut(row, ":")
	inflight, err := strconv.Atoi(n)
	if err != nil || inflight < 1 || (name != "write" && name != "read" && name != "mixed90") {
		return load{}, fmt.Errorf("row %q: want write, read or mixed90, a colon and the requests in flight", row)
	}
	return load{Name: name, Inflight: inflight, Duration: d}, nil
}
