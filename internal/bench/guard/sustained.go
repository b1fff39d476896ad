package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sustained is what `guard sustained` measures and writes.
type sustained struct {
	Date        string          `json:"date"`
	Version     string          `json:"version"`
	CPUs        int             `json:"cpus"`
	LoadAvg     float64         `json:"load_average"`
	Shards      int             `json:"shards"`
	Bench       json.RawMessage `json:"bench"` // what `kiloraft bench` printed, its settings included
	Lines       []line          `json:"lines"`
	Checkpoints contrast        `json:"checkpoints"`
	RecoveryS   float64         `json:"recovery_s"` // from starting all nodes after kill -9 of all to leaders of all shards
}

// line is an interval of the run, over all nodes.
type line struct {
	EndS        float64 `json:"end_s"`
	WritesPerS  float64 `json:"writes_per_s"`
	P99ms       float64 `json:"p99_ms"` // from taking a write to its answer, in the nodes
	ResidentMB  float64 `json:"resident_mb"`
	LogMB       float64 `json:"log_mb"`
	StateMB     float64 `json:"state_mb"`
	DiskMB      float64 `json:"disk_mb"`     // written to the device in the interval, by whomever
	Amplified   float64 `json:"amplified"`   // those bytes, per byte of a written value
	Checkpoints float64 `json:"checkpoints"` // shards written to the state
}

// contrast sets the seconds in which a checkpoint was written against the others.
type contrast struct {
	Seconds        [2]int     `json:"seconds"` // without, with
	MedianPerS     [2]float64 `json:"median_writes_per_s"`
	P99ms          [2]float64 `json:"p99_ms"`
	buckets        [2]histogram
	ratesPerSecond [2][]float64
}

// runSustained writes random keys for a long time and looks at what grows, then kills all nodes and waits for them.
func runSustained(ctx context.Context, args []string, w io.Writer) (err error) {
	f := flag.NewFlagSet("guard sustained", flag.ContinueOnError)
	binary := f.String("bin", "bin/kiloraft", "the kiloraft binary")
	out := f.String("o", "dist/sustained.json", "where the result goes")
	nshards := f.Int("shards", 1000, "shards of the cluster")
	keys := f.Int("keys", 10_000_000, "random keys that are written to")
	valueSize := f.Int("value-size", 128, "bytes of a value")
	inflight := f.Int("inflight", 1024, "writes in flight")
	rate := f.Float64("rate", 0, "writes per second, open loop (0: closed loop)")
	duration := f.Duration("duration", 10*time.Minute, "of the load")
	every := f.Duration("every", 10*time.Second, "length of an interval")
	version := f.String("version", "unknown", "of the build, for the record")
	dir := f.String("dir", "", "directory of the data (default: a temporary one)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 || *nshards < 1 || *keys < 1 || *duration < time.Second || *every < time.Second {
		return errors.New("no arguments; shards, keys, duration and interval must be positive, the last two at least a second")
	}
	r := sustained{Date: time.Now().UTC().Format(time.DateTime), Version: *version, CPUs: runtime.NumCPU(), LoadAvg: loadAverage(), Shards: *nshards}
	load := []string{"bench", "write", "--no-load", "--inflight", strconv.Itoa(*inflight), "--keys", strconv.Itoa(*keys), "--value-size", strconv.Itoa(*valueSize),
		"--duration", duration.String(), "--rate", strconv.FormatFloat(*rate, 'f', -1, 64)}
	err = onCluster(ctx, *binary, *dir, *nshards, nil, func(g *cluster) (err error) {
		if err := r.watch(ctx, g, load, *every, float64(*valueSize), w); err != nil {
			return err
		}
		r.RecoveryS, err = g.recovery(ctx)
		return err
	})
	if err != nil {
		return err
	}
	r.Checkpoints.finish()
	r.summary(w)
	return writeJSON(*out, r)
}

// watch runs the load and looks at the nodes once a second until it ends.
func (r *sustained) watch(ctx context.Context, g *cluster, load []string, every time.Duration, valueSize float64, w io.Writer) error {
	type result struct {
		out []byte
		err error
	}
	ended := make(chan result, 1)
	last, err := g.look(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	go func() { // ends with the load, which ctx ends
		b, err := g.command(ctx, load...)
		ended <- result{b, err}
	}()
	fmt.Fprintln(w, "   end s  writes/s   p99 ms  resident MB   log MB  state MB  disk MB  amplified  checkpoints")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	first := last
	for {
		select {
		case res := <-ended:
			r.Bench = res.out
			return res.err
		case <-tick.C:
		}
		now, err := g.look(ctx)
		if err != nil {
			return err
		}
		r.Checkpoints.add(last, now)
		last = now
		if now.at.Sub(first.at) < every {
			continue
		}
		l := between(first, now, valueSize)
		l.EndS = now.at.Sub(begin).Seconds()
		l.LogMB, l.StateMB = g.sizes()
		first = now
		r.Lines = append(r.Lines, l)
		fmt.Fprintf(w, "%8.0f  %8.0f  %7.1f  %11.0f  %7.0f  %8.0f  %7.0f  %9.1f  %11.0f\n",
			l.EndS, l.WritesPerS, l.P99ms, l.ResidentMB, l.LogMB, l.StateMB, l.DiskMB, l.Amplified, l.Checkpoints)
	}
}

// sight is what the nodes showed at a moment, summed.
type sight struct {
	at          time.Time
	writes      float64 // answered
	checkpoints float64
	resident    float64
	disk        float64 // bytes written to the device
	commit      histogram
}

func (g *cluster) look(ctx context.Context) (s sight, err error) {
	for _, p := range g.c.Nodes {
		err := readMetrics(ctx, p, func(name string, v float64) {
			switch {
			case name == "kiloraft_sched_checkpoints_total":
				s.checkpoints += v
			case name == "process_resident_memory_bytes":
				s.resident += v
			case name == "kiloraft_raft_commit_latency_seconds_count":
				s.writes += v
			default:
				s.commit.read(name, v)
			}
		})
		if err != nil {
			return s, err
		}
	}
	s.disk = deviceWritten(g.c.Dir)
	s.at = time.Now()
	return s, nil
}

// deviceWritten is what the kernel says was written to the block device below a directory, by whomever; 0 where it does not tell. (What it
// counts per process are whole folios of the page cache, up to hundreds of times what reaches the device.)
func deviceWritten(dir string) float64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev))))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 7 {
		return 0
	}
	sectors, _ := strconv.ParseFloat(f[6], 64) // the kernel's own number
	return 512 * sectors
}

func between(a, b sight, valueSize float64) line {
	s := b.at.Sub(a.at).Seconds()
	n := b.writes - a.writes
	l := line{WritesPerS: n / s, ResidentMB: b.resident / 1e6, DiskMB: (b.disk - a.disk) / 1e6, Checkpoints: b.checkpoints - a.checkpoints,
		P99ms: 1e3 * b.commit.minus(a.commit).quantile(0.99)}
	if n > 0 {
		l.Amplified = (b.disk - a.disk) / (n * valueSize)
	}
	return l
}

// sizes of the raft logs and the states on disk, in MB, over all nodes.
func (g *cluster) sizes() (log, state float64) {
	for _, p := range g.c.Nodes {
		// Files come and go meanwhile; one that is gone counts nothing.
		_ = filepath.WalkDir(p.DataDir(), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil
			}
			info, err := d.Info()
			switch {
			case err != nil:
			case strings.Contains(name, string(filepath.Separator)+"log"+string(filepath.Separator)):
				log += float64(info.Size()) / 1e6
			default:
				state += float64(info.Size()) / 1e6
			}
			return nil
		})
	}
	return log, state
}

// recovery kills all nodes and measures from their start until every shard has a leader again.
func (g *cluster) recovery(ctx context.Context) (float64, error) {
	g.c.KillAll()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	begin := time.Now()
	errs := make(chan error)
	for i := range g.c.Nodes {
		go func() { errs <- g.c.Restart(ctx, i) }()
	}
	var err error
	for range g.c.Nodes {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return 0, err
	}
	for {
		b, err := g.command(ctx, "cluster", "status")
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) { // that the cluster has problems is no failure of ours
			return 0, err
		}
		var s struct {
			Shards struct {
				Total      int `json:"total"`
				WithLeader int `json:"with_leader"`
			} `json:"shards"`
		}
		if json.Unmarshal(b, &s) == nil && s.Shards.Total > 0 && s.Shards.WithLeader == s.Shards.Total {
			return time.Since(begin).Seconds(), nil
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("after kill -9 of all nodes shards are without a leader: %w", ctx.Err())
		}
	}
}

func (c *contrast) add(a, b sight) {
	i := 0
	if b.checkpoints > a.checkpoints {
		i = 1
	}
	c.Seconds[i]++
	c.ratesPerSecond[i] = append(c.ratesPerSecond[i], (b.writes-a.writes)/b.at.Sub(a.at).Seconds())
	c.buckets[i] = c.buckets[i].plus(b.commit.minus(a.commit))
}

func (c *contrast) finish() {
	for i := range c.Seconds {
		if c.Seconds[i] > 0 {
			c.MedianPerS[i] = metric{Values: c.ratesPerSecond[i]}.median()
			c.P99ms[i] = 1e3 * c.buckets[i].quantile(0.99)
		}
	}
}

func (r *sustained) summary(w io.Writer) {
	c := r.Checkpoints
	fmt.Fprintf(w, "%d seconds without a checkpoint: %.0f writes/s, p99 %.1f ms; %d with: %.0f writes/s, p99 %.1f ms (p99 from buckets that double)\n",
		c.Seconds[0], c.MedianPerS[0], c.P99ms[0], c.Seconds[1], c.MedianPerS[1], c.P99ms[1])
	fmt.Fprintf(w, "kill -9 of all nodes: all %d shards led %.1f s after they were started\nbench: %s\n", r.Shards, r.RecoveryS, r.Bench)
}
