package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiloraft/kiloraft/internal/client"
)

// smallDisk mounts a file system of its own, in memory, and skips the test where that is not allowed.
func smallDisk(t *testing.T, dir string, mib int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("kiloraft-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Skipf("a full disk needs a small file system, which takes the right to mount one (root, CAP_SYS_ADMIN): %v", err)
	}
	t.Cleanup(func() { // after the processes have ended
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fill writes into a file of the test's until there is no space left.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err = f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling %s: %v", dir, err)
	}
}

// TestFullDisk fills the disk of one node and then of another, to the last byte, under a load whose outcome is judged. One full disk stops no
// shard. With a majority of logs that cannot take another byte there are no leaders: clients are told in time, and a node that is killed
// starts; with space again all goes on, and nothing is lost.
func TestFullDisk(t *testing.T) {
	seed := seedOf(t)
	dir := t.TempDir()
	disks := []string{filepath.Join(dir, "n1"), filepath.Join(dir, "n2"), filepath.Join(dir, "n3")}
	for _, d := range disks {
		smallDisk(t, d, 160)
	}
	c := startIn(t, dir, 3, "--auto-balance=false", "--auto-balance-leaders=false", "--store-log-segment-size", "1MiB")
	c.init(6)
	a := newAudit(c, 3)
	load := startWorkload(t, c.kv, c.shards(), seed)
	defer func() {
		if !load.over() {
			load.stop()
		}
	}()
	full := func(i int) func() error {
		return func() error {
			fill(t, disks[i]) // also what was freed since
			if metrics(t, c.Nodes[i])["kiloraft_disk_full"] != 1 {
				return fmt.Errorf("node %d does not say that its disk is full", i+1)
			}
			return nil
		}
	}
	victim := int(seed % 3)
	stop := c.press()
	eventually(t, time.Minute, full(victim))
	c.writable(load, "the disk of "+c.Nodes[victim].Name+" is full")

	eventually(t, time.Minute, full((victim+1)%3))
	stop()
	most := []string{disks[victim], disks[(victim+1)%3]}
	c.refuses(most)
	// Killed with a full disk, it starts with a full disk; what little it has freed on the way is filled again.
	c.Nodes[victim].Kill()
	c.restart(victim)
	c.refuses(most)

	for _, d := range disks {
		if err := os.Remove(filepath.Join(d, "filler")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	c.writable(load, "space again")
	for i, p := range c.Nodes {
		eventually(t, time.Minute, func() error {
			if metrics(t, p)["kiloraft_disk_full"] != 0 {
				return fmt.Errorf("node %d still says that its disk is full", i+1)
			}
			return nil
		})
	}
	load.stop()
	all := a.settled(time.Minute)
	load.verify()
	a.disks(all)
}

// press writes ever more large values, for a log alone makes room of its own, until the function that it returns is called.
func (c *cluster) press() (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			one, end := context.WithTimeout(ctx, time.Second)
			_, _ = c.kv.Put(one, fmt.Appendf([]byte{byte(i * 37)}, "press/%d", i), bytes.Repeat([]byte{byte(i)}, 64<<10))
			end()
		}
	}()
	return func() { cancel(); <-done }
}

// refuses fills the disks of most nodes until no shard takes writes, and clients hear that within their deadline. The writes are large, for a state has free pages in
// its file, and a log whose entries are in there makes room: all of that is to be used up, on a slow machine too.
func (c *cluster) refuses(most []string) {
	c.t.Helper()
	n, taken := 0, 0
	defer func() { c.t.Logf("with most disks full %d writes were taken before none was", taken) }()
	eventually(c.t, 2*time.Minute, func() error {
		for _, d := range most {
			fill(c.t, d) // also what was freed since: a log has room for a few writes then, and takes them
		}
		before := taken
		for i := range 6 {
			for range 20 { // until this shard refuses one
				n++
				ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
				_, err := c.kv.Put(ctx, fmt.Appendf([]byte{byte(i * 43)}, "refuse/%d", n), bytes.Repeat([]byte("w"), 512<<10))
				cancel()
				if err != nil {
					if !errors.Is(err, client.ErrUnavailable) && !errors.Is(err, client.ErrUnknown) {
						return fmt.Errorf("a write with most disks full: %w", err)
					}
					break
				}
				taken++
			}
		}
		if taken > before {
			return fmt.Errorf("%d writes were taken with most disks full", taken-before)
		}
		return nil
	})
}
