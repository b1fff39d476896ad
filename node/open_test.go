package node_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/sysfail"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

func open(t *testing.T, cfg node.Config) error {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	n, err := node.Open(context.Background(), cfg)
	if err == nil {
		if err := n.Close(deadline(t, 5*time.Second)); err != nil {
			t.Error(err)
		}
	}
	return err
}

func TestOpenRefuses(t *testing.T) {
	if err := open(t, node.Config{}); !errors.Is(err, node.ErrConfig) {
		t.Errorf("no directory: %v", err)
	}
	if err := open(t, node.Config{DataDir: t.TempDir(), Listen: "nonsense"}); !errors.Is(err, node.ErrConfig) {
		t.Errorf("bad address: %v", err)
	}
	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "thesis.doc"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, node.Config{DataDir: strange}); !errors.Is(err, node.ErrBadDir) || !strings.Contains(err.Error(), "thesis.doc") {
		t.Errorf("strange directory: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := l.Addr().String()
	dir := t.TempDir()
	if err := open(t, node.Config{DataDir: dir, Listen: taken}); !errors.Is(err, node.ErrAddrInUse) || !strings.Contains(err.Error(), taken) {
		t.Errorf("taken address: %v", err)
	}
	if err := open(t, node.Config{DataDir: dir, HTTP: taken}); !errors.Is(err, node.ErrAddrInUse) {
		t.Errorf("taken http address: %v", err)
	}
	if err := open(t, node.Config{DataDir: dir}); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

func TestOpenDirectoryInUse(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	if err := open(t, node.Config{DataDir: c.Dir(0)}); !errors.Is(err, node.ErrDirInUse) || !strings.Contains(err.Error(), "pid ") {
		t.Error(err)
	}
}

// A flipped byte in the middle of the log: the node refuses to start and says where.
func TestOpenCorruptLog(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 3, 1)
	write(t, c, 0, 20, "a value of some length, so that it can be found in the log")
	dir := c.Dir(0)
	c.Stop(0)
	files, err := filepath.Glob(filepath.Join(node.LogPath(dir), "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	flipped := ""
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(string(b), "a value of some length"); i >= 0 {
			b[i] ^= 0x40
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
			flipped = filepath.Base(f)
			break
		}
	}
	if err := open(t, node.Config{DataDir: dir}); !errors.Is(err, raftlog.ErrCorrupt) || !strings.Contains(err.Error(), flipped) || flipped == "" {
		t.Errorf("file %q: %v", flipped, err)
	}
}

// A node that has lost its log directory, or what was in it, does not start as if it had promised nothing (rule Log3, FAULTS D19).
func TestOpenLostLog(t *testing.T) {
	for _, emptied := range []bool{false, true} {
		c := nodetest.Start(t, 1, nodetest.Options{})
		c.Init(0, 1, 1)
		dir := c.Dir(0)
		c.Kill(0)
		if err := os.RemoveAll(node.LogPath(dir)); err != nil {
			t.Fatal(err)
		}
		if emptied {
			if err := os.Mkdir(node.LogPath(dir), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := open(t, node.Config{DataDir: dir}); !errors.Is(err, raftlog.ErrCorrupt) || !strings.Contains(err.Error(), node.LogPath(dir)) {
			t.Errorf("emptied %v: %v", emptied, err)
		}
	}
}

// A node of another cluster is refused by the peers that it dials, and loses nothing.
func TestOtherCluster(t *testing.T) {
	a := nodetest.Start(t, 1, nodetest.Options{})
	b := nodetest.Start(t, 1, nodetest.Options{})
	ra, rb := a.Init(0, 2, 1), b.Init(0, 2, 1)
	b.Stop(0)
	n, err := node.Open(context.Background(), node.Config{DataDir: b.Dir(0), Listen: "127.0.0.1:0", Join: a.Addrs(), Fatal: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	if n.ClusterID() != rb.Cluster || n.ClusterID() == ra.Cluster {
		t.Errorf("the directory of cluster %x opens as %x", rb.Cluster, n.ClusterID())
	}
	if err := n.Close(deadline(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
}

// A copy of a data directory that missed a start of the original is refused by the peers, for good (rule Cluster9).
func TestCloneIsRefused(t *testing.T) {
	c := nodetest.Start(t, 3, nodetest.Options{})
	c.Init(0, 3, 3)
	c.Stop(2)
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(c.Dir(2))); err != nil {
		t.Fatal(err)
	}
	c.Restart(2) // with an incarnation that the copy does not know
	read(t, c, 2, 0, "")
	nodetest.Eventually(t, 10*time.Second, func() error {
		if conns, nodes := c.Node(2).Peers(); conns != 2 || nodes != 2 {
			return errors.New("not connected yet")
		}
		return nil
	})
	c.Stop(2)
	fatal := make(chan error, 1)
	cfg := node.Config{DataDir: copied, Listen: "127.0.0.1:0", Fatal: func(err error) { fatal <- err }}
	n, err := node.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-fatal:
		if !errors.Is(err, node.ErrRefused) {
			t.Errorf("fatal: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the copy is not refused")
	}
	n.Abort()
	if err := open(t, cfg); !errors.Is(err, node.ErrRefused) {
		t.Errorf("opened again: %v", err)
	}
	c.Restart(2) // the original goes on
	write(t, c, 2, 10, "v")
}

// A node that has lost its state and kept its log does not start as a new one upon that log (FAULTS D19).
func TestOpenLostState(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	write(t, c, 0, 5, "v")
	dir := c.Dir(0)
	c.Kill(0)
	if err := os.Remove(node.StatePath(dir)); err != nil {
		t.Fatal(err)
	}
	if err := open(t, node.Config{DataDir: dir}); !errors.Is(err, node.ErrBadDir) || !strings.Contains(err.Error(), "state.db") {
		t.Error(err)
	}
}

// A node of which one half was put back from a backup does not serve (FAULTS D18, D19): an older log under a newer state has forgotten promises
// (rule Log3). An older state over a newer log is TestStateOlderThanLog in package scheduler.
func TestHalfRestored(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	write(t, c, 0, 5, "v")
	c.Stop(0)
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(node.LogPath(c.Dir(0)))); err != nil {
		t.Fatal(err)
	}
	c.Restart(0)
	write(t, c, 0, 5, "w")
	c.Stop(0)
	dir := c.Dir(0)
	if err := errors.Join(os.RemoveAll(node.LogPath(dir)), os.Rename(old, node.LogPath(dir))); err != nil {
		t.Fatal(err)
	}
	if err := open(t, node.Config{DataDir: dir}); !errors.Is(err, raftlog.ErrCorrupt) || !strings.Contains(err.Error(), "have been synced") {
		t.Error(err)
	}
}

// A directory that can not be written, whether it may not or its file system was made read-only, is an error that names the file and the reason, for a new
// node and for one that was there (FAULTS D21).
func TestOpenReadOnly(t *testing.T) {
	c := nodetest.Start(t, 1, nodetest.Options{})
	c.Init(0, 1, 1)
	write(t, c, 0, 5, "v")
	c.Stop(0)
	for _, errno := range []syscall.Errno{syscall.EROFS, syscall.EACCES, syscall.EMFILE} {
		for what, dir := range map[string]string{"new": t.TempDir(), "used": c.Dir(0)} {
			var err error
			sysfail.Test(t, errno, func() {
				_, err = node.Open(context.Background(), node.Config{DataDir: dir, Listen: "127.0.0.1:0"})
			}, sysfail.OpenWrite)
			if !errors.Is(err, errno) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%s directory, %v: %v", what, errno, err)
			}
		}
	}
	c.Restart(0)
	read(t, c, 0, 5, "v")
}

// The directory itself is durable before anything is stored in it: else a power cut takes all of it away (FAULTS D5).
func TestDirectoryIsDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "of", "a", "node")
	var err error
	sysfail.Test(t, syscall.EIO, func() {
		_, err = node.Open(context.Background(), node.Config{DataDir: dir, Listen: "127.0.0.1:0"})
	}, sysfail.Fsync)
	if !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made below one that is not durable: %v", err)
	}
}
