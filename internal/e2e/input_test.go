package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/internal/ports"
	"github.com/kiloraft/kiloraft/transport"
)

// garbage speaks all kinds of nonsense to a node's port. The node must close the connection and go on.
func garbage(t *testing.T, c *cluster) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 64<<10)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	handshake := func(size uint16) []byte {
		return append(append([]byte("KRFT\x01"), byte(size>>8), byte(size)), 0, 0, 0, 0)
	}
	for name, b := range map[string][]byte{
		"http": []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), "random": random, "zeros": make([]byte, 4096), "tls": []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		"huge handshake": handshake(0xffff), "empty handshake": handshake(0), "half a handshake": handshake(100), "nothing": nil,
		"redis": []byte("*1000000000\r\n$9\r\n"),
	} {
		conn, err := net.Dial("tcp", c.Servers[0])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, _ = conn.Write(b)
		if name == "half a handshake" || name == "nothing" {
			conn.Close()
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the node does not close the connection", name)
		}
		conn.Close()
	}
	behindHandshake(t, c, random)
	wrongVersion(t, c)
	if err := c.Unexpected(); err != nil {
		t.Fatal(err)
	}
	c.want(0, "kv", "put", "after", "garbage")
	if m := metrics(t, c.Nodes[0]); m["kiloraft_net_malformed_total"] < 3 {
		t.Errorf("malformed frames counted: %v", m["kiloraft_net_malformed_total"])
	}
}

// deaf is a peer that wants nothing.
type deaf struct{}

func (deaf) RaftFrame(engine.NodeID, uint64, []byte)                           {}
func (deaf) Heartbeat(engine.NodeID, uint64, []byte)                           {}
func (deaf) Request(transport.Request)                                         {}
func (deaf) Snapshot(engine.NodeID, uint64, []byte, *transport.SnapshotReader) {}
func (deaf) PeerConnected(engine.NodeID, uint64, string)                       {}
func (deaf) PeerDisconnected(engine.NodeID, uint64)                            {}

// wrongVersion is a peer of another protocol version: it is refused, with the reason.
func wrongVersion(t *testing.T, c *cluster) {
	refusals := make(chan *transport.Refused, 100)
	tr, err := transport.New(transport.Config{ClusterID: transport.ID{1}, Node: 77, Identity: transport.ID{2}, Incarnations: []uint64{3}, VersionMin: 98, VersionMax: 99,
		AdvertiseAddr: "127.0.0.1:1", OnRefused: func(_ string, r *transport.Refused) {
			select {
			case refusals <- r:
			default:
			}
		}}, deaf{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	tr.SetPeer(1, c.Servers[0])
	select {
	case r := <-refusals:
		if r.Reason != transport.ReasonVersion || !r.Remote || !strings.Contains(r.Error(), "98 to 99") {
			t.Errorf("a peer of another version is refused: %v", r)
		}
	case <-time.After(10 * time.Second):
		t.Error("a peer of another version is not refused")
	}
	eventually(t, 10*time.Second, func() error { // and the other side says so too
		if text := c.Nodes[0].LogTail(1000); !strings.Contains(text, "no common protocol version") || !strings.Contains(text, "98 to 99") {
			return fmt.Errorf("the log of %s does not say why it refused a peer of another version", c.Nodes[0].LogFile())
		}
		return nil
	})
}

// behindHandshake does a proper handshake and then sends garbage, and a frame that claims to be 4 GiB long.
func behindHandshake(t *testing.T, c *cluster, random []byte) {
	huge := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff}
	for name, b := range map[string][]byte{"random": random, "huge frame": append(huge, random...)} {
		var mu sync.Mutex
		var raw net.Conn
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := transport.DialClient(ctx, c.Servers[0], transport.ClientConfig{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			var err error
			raw, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			return raw, err
		}})
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		mu.Lock()
		_, _ = raw.Write(b)
		mu.Unlock()
		select {
		case <-conn.Done():
		case <-time.After(10 * time.Second):
			t.Errorf("%s behind a handshake: the node does not close the connection", name)
		}
		conn.Close()
	}
}

// serveFails runs serve, which must end by itself with this code and say all of want.
func serveFails(t *testing.T, code int, args []string, want ...string) {
	t.Helper()
	addrs, err := ports.Free(2)
	if err != nil {
		t.Fatal(err)
	}
	o := runBinary(t, nil, nil, append([]string{"serve", "--listen", addrs[0], "--http", addrs[1]}, args...)...)
	if o.code != code {
		t.Errorf("%v: exit %d, want %d\n%s", args, o.code, code, o.stderr)
	}
	for _, w := range want {
		if !strings.Contains(o.stderr, w) {
			t.Errorf("%v: the message does not say %q:\n%s", args, w, o.stderr)
		}
	}
	if strings.Contains(o.stderr, "panic") || strings.Contains(o.stderr, "goroutine ") {
		t.Errorf("%v: panic:\n%s", args, o.stderr)
	}
}

// TestBadInput gives serve what it must refuse: wrong flags, wrong keys, directories that are not its own.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(config, []byte("raft:\n  elektion-timeout: 1s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	serveFails(t, 2, []string{"--data-dir", dir, "--frob"}, "--frob")
	serveFails(t, 2, []string{"--data-dir", dir, "--config", config}, "raft.elektion-timeout", config)
	serveFails(t, 2, nil, "data-dir")
	serveFails(t, 2, []string{"--data-dir", dir, "--raft-election-timeout", "1ms"}, "election")
	serveFails(t, 1, []string{"--data-dir", "/dev/null/x"}, "/dev/null")
	for _, cmd := range []string{"log", "state", "verify"} {
		if o := runBinary(t, nil, nil, "debug", cmd, "--data-dir", dir); o.code != 1 || !strings.Contains(o.stderr, dir) {
			t.Errorf("debug %s of a strange directory: %+v", cmd, o)
		}
	}
}

// TestDirectories runs a small cluster and hurts the directory of a stopped node in all the ways that must be told apart.
func TestDirectories(t *testing.T) {
	c := start(t, 3)
	c.init(10)
	p := c.Nodes[2]
	serveFails(t, 1, []string{"--data-dir", p.DataDir()}, "in use", fmt.Sprint(p.PID()))
	serveFails(t, 1, []string{"--data-dir", t.TempDir(), "--listen", p.Addr}, p.Addr, "in use")
	serveFails(t, 1, []string{"--data-dir", t.TempDir(), "--http", p.HTTP}, p.HTTP, "in use")
	if o := c.run(nil, "debug", "verify", "--data-dir", p.DataDir()); o.code != 1 || !strings.Contains(o.stderr, "in use") {
		t.Errorf("debug verify of a directory in use: %+v", o)
	}
	for i := range 200 {
		if _, err := c.kv.Put(t.Context(), fmt.Appendf(nil, "k%d", i), []byte(strings.Repeat("v", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	if err := demo.WaitEqual(t.Context(), c.kv, c.shards()); err != nil {
		t.Fatal(err)
	}
	t.Run("cut tail", func(t *testing.T) { cutTail(t, &cluster{Cluster: c.Cluster, t: t, kv: c.kv}) })
	t.Run("flipped byte", func(t *testing.T) { flippedByte(t, &cluster{Cluster: c.Cluster, t: t, kv: c.kv}) })
	t.Run("other cluster", func(t *testing.T) { otherCluster(t, &cluster{Cluster: c.Cluster, t: t, kv: c.kv}) })
}

// logRecord is what debug log says of a record.
type logRecord struct {
	File     string
	Offset   int64
	Sequence uint64
	Kind     string
}

func (c *cluster) logRecords(dir string) (out []logRecord) {
	c.t.Helper()
	c.json(&out, "debug", "log", "--data-dir", dir)
	return out
}

// logPath finds a file of the raft log below a data directory.
func logPath(t *testing.T, dir, name string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*", filepath.Base(name)))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s below %s: %v %v", name, dir, found, err)
	}
	return found[0]
}

// cutTail kills a node while it writes, and tears its last frame. The node must come back and catch up.
func cutTail(t *testing.T, c *cluster) {
	p := c.Nodes[2]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	counters := demo.StartCounters(ctx, c.kv, c.shards(), "cut", time.Millisecond)
	counters.Mark()
	wait, cancelWait := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancelWait()
	if _, err := counters.WaitWritable(wait); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	counters.Stop()
	records := c.logRecords(p.DataDir())
	last := records[len(records)-1]
	if last.Kind == "seal" {
		t.Skip("the log had been sealed: nothing is left to tear")
	}
	zero(t, logPath(t, p.DataDir(), last.File), last.Offset+20)
	c.restart(2)
	if err := demo.WaitEqual(wait, c.kv, c.shards()); err != nil {
		t.Fatal(err)
	}
	if err := counters.Verify(t.Context(), c.kv); err != nil {
		t.Fatal(err)
	}
}

// zero overwrites the file from off to its end.
func zero(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, st.Size()-off), off); err != nil {
		t.Fatal(err)
	}
}

// flippedByte flips one byte in the middle of a stopped node's raft log: the node must refuse to start and say where.
func flippedByte(t *testing.T, c *cluster) {
	p := c.Nodes[2]
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	records := c.logRecords(p.DataDir())
	middle := records[len(records)/2]
	path := logPath(t, p.DataDir(), middle.File)
	flip := func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := []byte{0}
		if _, err := f.ReadAt(b, middle.Offset+24); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x10
		if _, err := f.WriteAt(b, middle.Offset+24); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	serveFails(t, 1, []string{"--data-dir", p.DataDir()}, "corrupt", filepath.Base(middle.File), fmt.Sprint(middle.Offset))
	if o := c.run(nil, "debug", "verify", "--data-dir", p.DataDir(), "-o", "json"); o.code != 1 || !strings.Contains(o.stdout, fmt.Sprint(middle.Offset)) {
		t.Errorf("debug verify: %+v", o)
	}
	flip() // it was only a test: nothing else was changed, so the node comes back
	var v struct{ OK bool }
	c.json(&v, "debug", "verify", "--data-dir", p.DataDir())
	if !v.OK {
		t.Error("debug verify does not find the log right again")
	}
	c.restart(2)
	if err := demo.WaitEqual(ctx, c.kv, c.shards()); err != nil {
		t.Fatal(err)
	}
}

// otherCluster starts a node on a directory of another cluster in the place of one of ours, as by a wrong mount: neither side may take the
// other for its own, both say why, and the right directory is welcome again.
func otherCluster(t *testing.T, c *cluster) {
	other := start(t, 1)
	other.want(0, "cluster", "init", "--replicas", "1")
	other.Nodes[0].Kill()
	c.Nodes[2].Kill()
	spec := c.Nodes[2].Spec
	spec.Dir, spec.Name = other.Nodes[0].Dir, other.Nodes[0].Name
	p, err := demo.Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, who := range []*demo.Process{p, c.Nodes[0], c.Nodes[1]} {
		eventually(t, 20*time.Second, func() error {
			if text := who.LogTail(1000); !strings.Contains(text, "another cluster") {
				return fmt.Errorf("the log of %s does not say that there is another cluster:\n%s", who.LogFile(), who.LogTail(10))
			}
			return nil
		})
	}
	eventually(t, 20*time.Second, func() error { // node 3 counts as up until it has been silent for a while
		var st struct{ Nodes struct{ Total, Up int } }
		if c.json(&st, "cluster", "status"); st.Nodes.Total != 3 || st.Nodes.Up != 2 {
			return fmt.Errorf("the cluster has %d nodes, %d up", st.Nodes.Total, st.Nodes.Up)
		}
		return nil
	})
	p.Kill()
	c.restart(2)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := demo.WaitEqual(ctx, c.kv, c.shards()); err != nil {
		t.Fatal(err)
	}
}

// TestStop asks nodes to stop by a signal: one that waits for a cluster, and all of a cluster under a load whose outcome is judged, one by one and then all
// at once. Each ends with success, nothing that was acknowledged is lost, and none leaves anything behind.
func TestStop(t *testing.T) {
	t.Run("waiting", stopWaiting)
	t.Run("serving", stopServing)
}

func stopServing(t *testing.T) {
	seed := seedOf(t)
	c := start(t, 3, "--auto-balance=false", "--auto-balance-leaders=false")
	c.init(8)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seed)
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
	c.writable(load, "before")
	for _, together := range [][]int{{0}, {1}, {2}, {0, 1, 2}} {
		var wg sync.WaitGroup
		for _, i := range together {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				if err := c.Nodes[i].Stop(ctx); err != nil {
					t.Errorf("%s: %v", c.Nodes[i].Name, err)
				}
			})
		}
		wg.Wait()
		for _, i := range together {
			c.restart(i)
		}
		c.writable(load, fmt.Sprintf("%d stopped and started", len(together)))
	}
	load.stop()
	all := a.settled(time.Minute)
	load.verify()
	a.disks(all)
}

func stopWaiting(t *testing.T) {
	addrs, err := ports.Free(2)
	if err != nil {
		t.Fatal(err)
	}
	p, err := demo.Start(demo.Spec{Binary: binary, Name: "waiting", Dir: t.TempDir(), Addr: addrs[0], HTTP: addrs[1]})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.WaitLive(ctx); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"kv", "get", "a"}, {"cluster", "status"}, {"shard", "ls"}, {"cluster", "init", "--replicas", "3"}} {
		if o := runBinary(t, nil, []string{"KILORAFT_SERVER=" + addrs[0]}, append(args, "--timeout", "3s")...); o.code != 4 || o.stderr == "" {
			t.Errorf("%v at a node that waits: exit %d, %q", args, o.code, o.stderr)
		}
	}
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// TestVersion checks what a script asks first.
func TestVersion(t *testing.T) {
	o := runBinary(t, nil, nil, "version", "-o", "json")
	var v struct{ Version, Go string }
	if err := json.Unmarshal([]byte(o.stdout), &v); err != nil || v.Go == "" || o.code != 0 {
		t.Errorf("%+v, %v", o, err)
	}
}

// TestTour runs the guided tour.
func TestTour(t *testing.T) {
	if !full {
		t.Skip("its steps are those of TestThousandShards; KILORAFT_E2E=full runs it too")
	}
	o := runBinary(t, nil, nil, "demo", "--once", "--dir", t.TempDir(), "-o", "json")
	var tour demo.Tour
	if err := json.Unmarshal([]byte(o.stdout), &tour); err != nil || o.code != 0 || tour.Adds == 0 || tour.Files == 0 || tour.SplitS == 0 || tour.MoveS == 0 {
		t.Errorf("exit %d, %+v, %v\n%s", o.code, tour, err, o.stderr)
	}
}
