package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// The framework benchmark: three nodes in memory, in one process, without a network and without a disk, driven by one
// goroutine. What it measures is the work of lanes, engines, log, state and message codec of all three nodes together: the
// time per write is CPU time per write of the whole cluster. It does not show sockets, system calls, syncs and the hand-over
// between goroutines.

// ramFS keeps what is written to its files, and no names: nothing is opened again. It must keep it: what a shard still needs of an old
// segment is read there once the cache has let go of it.
type ramFS struct{}

type ramFile struct{ data []byte }

func (ramFS) Create(string) (vfs.File, error) { return &ramFile{}, nil }
func (ramFS) Open(string) (vfs.File, error)   { return nil, os.ErrNotExist }
func (ramFS) Remove(string) error             { return nil }
func (ramFS) Rename(_, _ string) error        { return nil }
func (ramFS) List(string) ([]string, error)   { return nil, nil }
func (ramFS) MkdirAll(string) error           { return nil }
func (ramFS) SyncDir(string) error            { return nil }

func (f *ramFile) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(f.data).ReadAt(b, off)
}
func (f *ramFile) Append(b []byte, off int64) (int, error)  { return f.WriteAt(b, off) }
func (f *ramFile) WriteAt(b []byte, off int64) (int, error) { return copy(f.data[off:], b), nil }
func (f *ramFile) Size() (int64, error)                     { return int64(len(f.data)), nil }
func (f *ramFile) Allocate(size int64) error                { f.data = make([]byte, size); return nil }
func (f *ramFile) Truncate(size int64) error                { f.data = f.data[:size]; return nil }
func (f *ramFile) Datasync() error                          { return nil }
func (f *ramFile) Close() error                             { f.data = nil; return nil }

// benchCluster is three nodes that are driven by hand.
type benchCluster struct {
	clock  *manualClock
	nodes  [3]*benchNode
	leader []*Scheduler // by shard
	beat   engine.Instant
	beats  []func() // node heartbeats on their way
}

type benchNode struct {
	c  *benchCluster
	id engine.NodeID
	s  *Scheduler
}

func (n *benchNode) SendRaft(to engine.NodeID, _ int, msgs []byte, _ bool) bool {
	d := n.c.nodes[to-1]
	var b []byte
	if len(msgs) < 512 { // as the transport does: entries alias what they came in
		b = append(b, msgs...)
	} else {
		b = append(make([]byte, 0, len(msgs)), msgs...)
	}
	d.s.RaftFrame(n.id, uint64(n.id)+100, b)
	return true
}

func (n *benchNode) SendHeartbeat(to engine.NodeID, body []byte) bool {
	d := n.c.nodes[to-1]
	body = append([]byte(nil), body...)
	n.c.beats = append(n.c.beats, func() { _ = d.s.Heartbeat(n.id, uint64(n.id)+100, body) }) // not here: the sender holds a lock
	return true
}

func (n *benchNode) OpenSnapshot(context.Context, engine.NodeID, []byte) (SnapshotWriter, error) {
	return nil, errors.New("no snapshots")
}

func newBenchCluster(b testing.TB, shards int) *benchCluster {
	b.Helper()
	c := &benchCluster{clock: &manualClock{now: 1e9}}
	for i := range c.nodes {
		log, rec, err := raftlog.Open(ramFS{}, "log", raftlog.Options{})
		if err != nil {
			b.Fatal(err)
		}
		n := &benchNode{c: c, id: engine.NodeID(i + 1)}
		n.s, err = New(Config{Node: n.id, Incarnation: uint64(n.id) + 100, Fatal: func(err error) { b.Fatal(err) }}, Deps{Log: log, Recovery: rec,
			State: state.NewMem(state.Options{}), Network: n, Clock: c.clock, Spawn: func(f func()) { f() }, ReadJob: func(*state.ReadJob) {}})
		if err != nil {
			b.Fatal(err)
		}
		c.nodes[i] = n
	}
	for _, n := range c.nodes {
		for _, o := range c.nodes {
			if n != o {
				n.s.PeerConnected(o.id, uint64(o.id)+100)
			}
		}
	}
	for id := 1; id <= shards; id++ {
		for i, n := range c.nodes {
			n.s.CreateReplicaAsync(NewReplica{testDescriptor(engine.ShardID(id), 3), engine.ReplicaID(i + 1), CreateOptions{Campaign: id%3 == i}}, func(err error) {
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
	c.leader = make([]*Scheduler, shards+1)
	for led := 0; led < shards; {
		c.round(1e6)
		led = 0
		for id := 1; id <= shards; id++ {
			for _, n := range c.nodes {
				if n.s.Leads(engine.ShardID(id)) {
					c.leader[id] = n.s
					led++
					break
				}
			}
		}
		if c.clock.now > 60e9 {
			b.Fatalf("%d of %d shards have a leader", led, shards)
		}
	}
	return c
}

// round lets each node take a turn and flush its log, as long as there is something to do for any of them.
func (c *benchCluster) round(d engine.Instant) {
	c.clock.now += d
	if c.clock.now-c.beat >= 100e6 {
		c.beat = c.clock.now
		for _, n := range c.nodes {
			n.s.Heartbeats()
		}
	}
	for len(c.beats) > 0 {
		arrive := c.beats
		c.beats = nil
		for _, f := range arrive {
			f()
		}
	}
	for _, n := range c.nodes {
		n.s.lanes[0].HasMail()
		n.s.lanes[0].Turn()
		select {
		case <-n.s.log.Pending():
			n.s.FlushLog()
			n.s.MaintainLog()
		default:
		}
	}
}

// BenchmarkCluster: writes of 128 bytes to 300,000 keys, a fixed number of them in flight.
func BenchmarkCluster(b *testing.B) {
	for _, set := range []struct{ shards, inflight int }{{1, 1}, {1, 64}, {1, 4096}, {48, 8192}, {1000, 1024}, {1000, 8192}, {10000, 8192}} {
		b.Run(fmt.Sprintf("shards=%d/inflight=%d", set.shards, set.inflight), func(b *testing.B) {
			benchWrites(b, newBenchLoad(b, set.shards, set.inflight, 300_000, 128))
		})
	}
}

// BenchmarkFramework has the form of openraft's own benchmark: one group of three nodes in memory, no network and no disk, writes of
// a few bytes, so many clients; entries/cpu-s is what one core does for all three nodes.
func BenchmarkFramework(b *testing.B) {
	for _, clients := range []int{1, 64, 1024, 4096} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			benchWrites(b, newBenchLoad(b, 1, clients, 1000, 8))
		})
	}
}

// benchLoad writes to a cluster, in a closed loop.
type benchLoad struct {
	c              *benchCluster
	inflight, keys int
	ready, idle    []*Request
	op             []shard.Op
	w              shard.Write
	seq            uint64
	key            []byte
}

func newBenchLoad(b testing.TB, shards, inflight, keys, valueSize int) *benchLoad {
	g := &benchLoad{c: newBenchCluster(b, shards), inflight: inflight, keys: keys, seq: 1}
	g.op = []shard.Op{{Kind: shard.OpPut, Value: make([]byte, valueSize)}}
	g.w = shard.Write{Version: 1, Ops: g.op}
	done := func(r *Request) {
		if r.Err != nil {
			b.Error(r.Err)
		}
		g.idle = append(g.idle, r)
	}
	for range inflight {
		g.idle = append(g.idle, &Request{Kind: KindWrite, Done: done})
	}
	g.run(4 * inflight)
	return g
}

// run sends at least n writes, and returns how many.
func (g *benchLoad) run(n int) (sent int) {
	shards := uint64(len(g.c.leader) - 1)
	for sent < n {
		g.ready, g.idle = g.idle, g.ready[:0]
		for _, r := range g.ready {
			g.seq = g.seq*6364136223846793005 + 1442695040888963407
			k := (g.seq >> 33) % uint64(g.keys)
			g.w.Shard = engine.ShardID(k%shards) + 1
			g.key = fmt.Appendf(g.key[:0], "%05d/%010d", g.w.Shard, k)
			g.op[0].Key = g.key
			r.Shard = g.w.Shard
			r.Body = shard.AppendWrite(r.Body[:0], &g.w)
			g.c.leader[g.w.Shard].Submit(r)
		}
		sent += len(g.ready)
		g.c.round(200e3)
	}
	return sent
}

func benchWrites(b *testing.B, g *benchLoad) {
	before := g.c.counts()
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime()
	sent := float64(g.run(b.N))
	used := float64(cpuTime() - cpu)
	b.StopTimer()
	after := g.c.counts()
	for i, unit := range countUnits {
		b.ReportMetric(float64(after[i]-before[i])/sent, unit)
	}
	b.ReportMetric(used/sent, "cpu-ns/op")
	b.ReportMetric(sent/used*1e9, "entries/cpu-s")
}

// TestWriteCosts holds the counts that the cost of a write is made of: it fails when a change makes more rounds, messages, syncs or
// allocations of the same writes. The bounds are a fifth over what is seen; 16 writes per shard are in flight.
func TestWriteCosts(t *testing.T) {
	g := newBenchLoad(t, 48, 768, 4800, 128)
	before := g.c.counts()
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	sent := float64(g.run(20_000))
	runtime.ReadMemStats(&b)
	after := g.c.counts()
	for i, most := range [len(countUnits)]float64{0.83, 1.05, 0.3, 0.019, 0.0078, 425} {
		got := float64(after[i]-before[i]) / sent
		t.Logf("%.4f %s", got, countUnits[i])
		if got > most {
			t.Errorf("%.4f %s, at most %.4f are allowed", got, countUnits[i], most)
		}
	}
	allocs := float64(b.Mallocs-a.Mallocs) / sent
	t.Logf("%.2f allocs/op", allocs)
	if allocs > 2 {
		t.Errorf("%.2f allocations per write, at most 2 are allowed", allocs)
	}
}

// cpuTime is what this process has used, the garbage collector included: other than wall time it is meaningful on a busy machine.
func cpuTime() int64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

var countUnits = [...]string{"events/op", "cmds/op", "msgs/op", "frames/op", "syncs/op", "wire-B/op"}

func (c *benchCluster) counts() (sum [len(countUnits)]uint64) {
	for _, n := range c.nodes {
		m := n.s.Metrics()
		for i, v := range [...]uint64{m.Events.Load(), m.Commands.Load(), m.FrameMessages.Load() + m.HeartbeatMessages.Load(), m.Frames.Load(), m.LogSyncs.Load(), m.FrameBytes.Load()} {
			sum[i] += v
		}
	}
	return sum
}
