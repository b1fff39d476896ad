package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/durable"
)

// bundleNodesMax is how many nodes are asked at a time.
const bundleNodesMax = 8

// nodeFiles are what a bundle has of each node.
var nodeFiles = []struct{ what, file string }{
	{"version", "version.txt"}, {"config", "config.json"}, {"log", "log.txt"}, {"metrics", "metrics.txt"}, {"replicas", "replicas.jsonl"},
	{"history", "history.json"}, {"heat", "heat.json"}, {"goroutines", "goroutines.txt"}, {"heap", "heap.pprof"}, {"cpu", "cpu.pprof"},
}

// bundle is an archive in the making.
type bundle struct {
	mu  sync.Mutex // guards all that is below
	tar *tar.Writer
	err error // of writing
	man manifest
}

// manifest is what a bundle says of itself: manifest.json.
type manifest struct {
	Made    string         `json:"made"`
	Version string         `json:"version"` // of the program that made it
	Files   []string       `json:"files"`
	Missing []bundleAbsent `json:"missing"`
}

// bundleAbsent is a file that the bundle lacks, and why.
type bundleAbsent struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

// add writes a file, or notes why there is none.
func (b *bundle) add(name string, data []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.man.Missing = append(b.man.Missing, bundleAbsent{name, err.Error()})
		return
	}
	b.man.Files = append(b.man.Files, name)
	b.write(name, data)
}

func (b *bundle) write(name string, data []byte) {
	if b.err != nil {
		return
	}
	h := &tar.Header{Name: path.Join("kiloraft-bundle", name), Mode: 0o600, Size: int64(len(data)), ModTime: time.Now()}
	if b.err = b.tar.WriteHeader(h); b.err == nil {
		_, b.err = b.tar.Write(data)
	}
}

// addJSON writes what a question to the cluster was answered with.
func (b *bundle) addJSON(name string, v any, err error) {
	var data []byte
	if err == nil {
		data, err = json.MarshalIndent(v, "", "  ")
	}
	b.add(name, append(data, '\n'), err)
}

func (a *app) debugBundleCmd() *cobra.Command {
	var cpu time.Duration
	cmd := &cobra.Command{
		Use: "bundle FILE", Args: cobra.ExactArgs(1), Short: "Gather what is needed to look at a problem in one archive (tar.gz)",
		Long: `Asks all nodes of a running cluster for their configuration without secrets, version, metrics, last log lines, replicas, history and profiles, adds
the cluster's status, nodes, shards and operations, and writes all of it to FILE, a new tar.gz. Nodes and parts that do not answer are named, on
stderr and in the archive's manifest.json. The archive holds keys, where shards begin and end, but no values. If the cluster does not say who
its nodes are, those given by --server are asked. Exit 4 if no node answered.`,
		Example: "  kiloraft debug bundle --server 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103 problem.tar.gz",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cpu < 0 || cpu > 30*time.Second {
				return usagef("--cpu %v: want 0s to 30s", cpu)
			}
			return a.bundle(cmd.Context(), args[0], cpu)
		},
	}
	cmd.Flags().DurationVar(&cpu, "cpu", 3*time.Second, "length of the CPU profiles (0s: none)")
	return cmd
}

// bundle writes the archive beside its final name, which it gets when it is complete.
func (a *app) bundle(ctx context.Context, name string, cpu time.Duration) error {
	if _, err := os.Lstat(name); err == nil {
		return usagef("%s exists: name a new file", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	z := gzip.NewWriter(f)
	b := &bundle{tar: tar.NewWriter(z), man: manifest{Made: time.Now().UTC().Format(time.RFC3339), Version: versionString(a.env.Version), Missing: []bundleAbsent{}}}
	answered, err := a.gather(ctx, b, cpu)
	if err == nil {
		b.addJSON("manifest.json", &b.man, nil)
		err = errors.Join(b.err, b.tar.Close(), z.Close())
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	for _, m := range b.man.Missing {
		a.say("missing: %s: %s", m.File, m.Why)
	}
	if answered == 0 {
		return fmt.Errorf("no node answered, so there is no bundle: %w", client.ErrUnavailable)
	}
	if err := durable.Replace(f.Name(), name); err != nil {
		return err
	}
	return a.emit(&b.man, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: %d files of %d nodes, %d missing\n", name, len(b.man.Files), answered, len(b.man.Missing))
		return err
	})
}

// gather fills b, and tells how many nodes answered.
func (a *app) gather(ctx context.Context, b *bundle, cpu time.Duration) (answered int, err error) {
	var ins client.Inspector
	var nodes []client.Node
	err = a.request(ctx, func(ctx context.Context, c client.Cluster) (err error) {
		var ok bool
		if ins, ok = c.(client.Inspector); !ok {
			return errors.New("this cluster cannot be inspected")
		}
		nodes, err = c.Nodes(ctx)
		b.addJSON("cluster/nodes.json", nodes, err)
		return nil
	})
	if err != nil {
		return 0, err
	}
	a.gatherCluster(ctx, b)
	if len(nodes) == 0 {
		for _, s := range a.cfg.Server {
			nodes = append(nodes, client.Node{Name: s, Address: s})
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, bundleNodesMax)
	for _, n := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if a.gatherNode(ctx, b, ins, n, cpu) {
				mu.Lock()
				answered++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return answered, ctx.Err()
}

// gatherCluster adds what any node knows of the cluster.
func (a *app) gatherCluster(ctx context.Context, b *bundle) {
	ask := func(name string, f func(context.Context, client.Cluster) (any, error)) {
		var v any
		err := a.request(ctx, func(ctx context.Context, c client.Cluster) (err error) {
			v, err = f(ctx, c)
			return err
		})
		b.addJSON(name, v, err)
	}
	ask("cluster/status.json", func(ctx context.Context, c client.Cluster) (any, error) { return c.Status(ctx) })
	ask("cluster/shards.json", func(ctx context.Context, c client.Cluster) (any, error) {
		list, err := c.Shards(ctx, 0)
		return shardViews(list), err
	})
	ask("cluster/operations.json", func(ctx context.Context, c client.Cluster) (any, error) {
		if ad, ok := c.(client.Admin); ok {
			return ad.Ops(ctx, 0)
		}
		return nil, errors.New("this cluster has no operations")
	})
}

var unsafeInName = regexp.MustCompile(`[^a-zA-Z0-9._-]+`)

// gatherNode adds what a node tells of itself; false if it does not answer at all: then it is named once.
func (a *app) gatherNode(ctx context.Context, b *bundle, ins client.Inspector, n client.Node, cpu time.Duration) bool {
	dir := path.Join("nodes", fmt.Sprintf("%d-%.64s", n.ID, unsafeInName.ReplaceAllString(n.Name, "_")))
	for i, f := range nodeFiles {
		limit, seconds := a.cfg.Timeout, uint64(0)
		if f.what == "cpu" {
			if cpu == 0 {
				continue
			}
			seconds = uint64((cpu + time.Second - 1) / time.Second)
			limit += cpu * 2 // a node keeps some of a request's time for the answer
		}
		rctx, cancel := context.WithTimeout(ctx, limit)
		data, err := ins.Inspect(rctx, n.ID, n.Address, f.what, seconds)
		cancel()
		if err != nil && i == 0 {
			b.add(dir, nil, err)
			return false
		}
		b.add(path.Join(dir, f.file), data, err)
	}
	return true
}
