package node

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/prometheus/common/expfmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
)

// InspectBytesMax bounds one answer of inspect, before compression: what is over it is cut off, and said so in a last line.
const InspectBytesMax = 16 << 20

// profileMax bounds a CPU profile.
const profileMax = 30 * time.Second

// inspections are what a node tells of itself for people who look for a problem, by name. Each writes text or JSON.
var inspections = map[string]func(n *Node, ctx context.Context, seconds uint64, w io.Writer) error{
	"config":  func(n *Node, _ context.Context, _ uint64, w io.Writer) error { return n.writeSettings(w) },
	"version": func(n *Node, _ context.Context, _ uint64, w io.Writer) error { return writeVersion(w) },
	"metrics": func(n *Node, _ context.Context, _ uint64, w io.Writer) error { return n.writeMetrics(w) },
	"log":     func(n *Node, _ context.Context, _ uint64, w io.Writer) error { return n.writeLog(w) },
	"goroutines": func(_ *Node, _ context.Context, _ uint64, w io.Writer) error {
		return pprof.Lookup("goroutine").WriteTo(w, 1)
	},
	"heap": func(_ *Node, _ context.Context, _ uint64, w io.Writer) error {
		return pprof.Lookup("heap").WriteTo(w, 0)
	},
	"cpu":      writeCPU,
	"replicas": writeReplicas,
	"heat":     func(n *Node, _ context.Context, _ uint64, w io.Writer) error { return writeJSON(w, n.heat.recall()) },
	"history":  func(n *Node, _ context.Context, _ uint64, w io.Writer) error { return writeJSON(w, n.history.recall()) },
	"now":      writeNow,
}

func writeJSON(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// inspect answers one inspection, compressed.
func (n *Node) inspect(ctx context.Context, what string, seconds uint64) ([]byte, error) {
	f := inspections[what]
	if f == nil {
		return nil, &shard.InvalidError{What: fmt.Sprintf("unknown inspection %q", what)}
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := &boundedWriter{w: z, left: InspectBytesMax}
	if err := f(n, ctx, seconds, w); err != nil && !errors.Is(err, errCut) {
		return nil, err
	}
	if w.left < 0 {
		fmt.Fprintf(z, "\n(cut off after %d bytes)\n", InspectBytesMax)
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

var errCut = errors.New("too long")

// boundedWriter writes up to a limit; left is negative once that was reached.
type boundedWriter struct {
	w    io.Writer
	left int
}

// Write implements io.Writer.
func (b *boundedWriter) Write(p []byte) (int, error) {
	if b.left < len(p) {
		if b.left > 0 {
			_, _ = b.w.Write(p[:b.left])
		}
		b.left = -1
		return 0, errCut
	}
	b.left -= len(p)
	return b.w.Write(p)
}

func (n *Node) writeSettings(w io.Writer) error {
	if n.cfg.Settings == nil {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	_, err := w.Write(n.cfg.Settings())
	return err
}

func (n *Node) writeMetrics(w io.Writer) error {
	families, err := n.registry.Gather()
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return err
		}
	}
	return err
}

func (n *Node) writeLog(w io.Writer) error {
	if n.cfg.Logs == nil {
		return nil
	}
	_, err := w.Write(n.cfg.Logs.Recent())
	return err
}

// profiling is held by who takes a CPU profile: there can be one at a time in a process.
var profiling sync.Mutex

func writeCPU(_ *Node, ctx context.Context, secs uint64, w io.Writer) error {
	if !profiling.TryLock() {
		return &shard.UnavailableError{RetryAfter: time.Second, Reason: "another CPU profile is being taken"}
	}
	defer profiling.Unlock()
	if err := pprof.StartCPUProfile(w); err != nil {
		return &shard.UnavailableError{RetryAfter: time.Second, Reason: err.Error()}
	}
	defer pprof.StopCPUProfile()
	span := min(time.Duration(min(secs, 3600))*time.Second, profileMax)
	if end, ok := ctx.Deadline(); ok {
		span = min(span, time.Until(end)*3/4)
	}
	return sleep(ctx, span)
}

func writeVersion(w io.Writer) error {
	info, _ := debug.ReadBuildInfo()
	_, err := fmt.Fprintf(w, "kiloraft %s\n%v\n", Version(), info)
	return err
}

func roleText(r engine.Role) string {
	names := [...]string{engine.RoleUninitialised: "uninitialised", engine.RoleLearner: "learner", engine.RoleFollower: "follower",
		engine.RolePreCandidate: "pre_candidate", engine.RoleCandidate: "candidate", engine.RoleLeader: "leader"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// replicaDump is a line about a replica.
type replicaDump struct {
	Shard       uint64 `json:"shard"`
	Replica     uint64 `json:"replica"`
	Role        string `json:"role"`
	Term        uint64 `json:"term"`
	Leader      uint64 `json:"leader"`
	Last        uint64 `json:"last"`
	Committed   uint64 `json:"committed"`
	Applied     uint64 `json:"applied"`
	Checkpoint  uint64 `json:"checkpoint"`
	Quiesced    bool   `json:"quiesced"`
	Lease       bool   `json:"lease"`
	Initialised bool   `json:"initialised"`
	Version     uint64 `json:"version"`
	ConfVersion uint64 `json:"conf_version"`
	Keys        uint64 `json:"keys"`
	Bytes       uint64 `json:"bytes"`
	LogBytes    int64  `json:"log_bytes"`
	DirtyBytes  int    `json:"dirty_bytes"`
	Waiting     int    `json:"waiting"`
	Reads       uint64 `json:"reads"`
	Writes      uint64 `json:"writes"`
}

// writeReplicas writes a JSON line for each replica, so that a cut one is still readable.
func writeReplicas(n *Node, ctx context.Context, _ uint64, w io.Writer) error {
	c := n.core.Load()
	if c == nil {
		return nil
	}
	list, err := c.sched.Statuses(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		st := &list[i]
		d := replicaDump{Shard: uint64(st.Shard), Replica: uint64(st.Replica), Role: roleText(st.Role), Term: st.Term, Leader: uint64(st.Leader.Node),
			Last: st.Last.Index, Committed: st.Committed.Index, Applied: st.Applied.Index, Checkpoint: st.Checkpoint.Index, Quiesced: st.Quiesced,
			Lease: st.LeaseValid, Initialised: st.Descriptor != nil, Keys: st.Keys, Bytes: st.Bytes, LogBytes: st.LogBytes, DirtyBytes: st.Dirty,
			Waiting: st.Waiting, Reads: st.Load.Reads, Writes: st.Load.Writes}
		if st.Descriptor != nil {
			d.Version, d.ConfVersion = st.Descriptor.Version, st.Descriptor.ConfVersion
		}
		if err := writeJSON(w, &d); err != nil {
			return err
		}
	}
	return nil
}

// inspectAll asks all nodes of the cluster, this one included, and calls got with each answer, one at a time. It returns the nodes that did
// not answer, with the reason.
func (c *core) inspectAll(ctx context.Context, what string, got func(rec *placement.NodeRecord, body []byte) error) []string {
	type result struct {
		rec  placement.NodeRecord
		body []byte
		err  error
	}
	var asked int
	results := make(chan result, len(c.view.nodeList()))
	req := (&api.InspectRequest{What: what}).Append(nil)
	for _, rec := range c.view.nodeList() {
		if rec.State == placement.NodeRemoved {
			continue
		}
		asked++
		go func() { // ends with ctx
			body, err := c.n.call(ctx, rec.ID, api.MethodInspect, 0, req)
			var a api.InspectAnswer
			if err == nil {
				err = api.Decode(body, &a)
			}
			if err == nil {
				a.Data, err = Inflate(a.Data)
			}
			results <- result{rec, a.Data, err}
		}()
	}
	missing := []string{}
	for range asked {
		r := <-results
		if r.err == nil {
			r.err = got(&r.rec, r.body)
		}
		if r.err != nil {
			missing = append(missing, fmt.Sprintf("node %d (%s): %v", r.rec.ID, r.rec.Name, r.err))
		}
	}
	return missing
}

// Inflate undoes the compression of an answer of inspect.
func Inflate(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("answer of a node: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(z, InspectBytesMax+1<<10))
	if err != nil {
		return nil, fmt.Errorf("answer of a node: %w", err)
	}
	return out, nil
}
