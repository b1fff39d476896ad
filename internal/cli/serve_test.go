package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// The service manager hears that the node is ready, and then that it works, for as long as it does.
func TestNotify(t *testing.T) {
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	t.Setenv("NOTIFY_SOCKET", sock.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "3000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	hear := func() string {
		b := make([]byte, 100)
		_ = sock.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := sock.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	notify(log, daemon.SdNotifyReady)
	if got := hear(); got != "READY=1" {
		t.Fatalf("heard %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var sick atomic.Bool
	looks := make(chan bool, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch(ctx, log, func() error {
			if sick.Load() {
				looks <- true
				return errors.New("stuck")
			}
			return nil
		})
	}()
	for range 3 {
		if got := hear(); got != "WATCHDOG=1" {
			t.Fatalf("heard %q", got)
		}
	}
	sick.Store(true)
	<-looks
	for drained := false; !drained; { // what was said before
		_ = sock.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := sock.Read(make([]byte, 100))
		drained = err != nil
	}
	<-looks
	<-looks // looked again, and said nothing
	cancel()
	<-done
	_ = sock.SetReadDeadline(time.Now().Add(time.Millisecond))
	if n, err := sock.Read(make([]byte, 100)); err == nil {
		t.Errorf("a stuck process said %d bytes", n)
	}
}

// Each command has a man page, and the same version writes the same pages.
func TestMan(t *testing.T) {
	s, dir := newShell(t), t.TempDir()
	for _, sub := range []string{"a", "b"} {
		s.want(0, "man "+filepath.Join(dir, sub))
	}
	for _, name := range []string{"kiloraft.1", "kiloraft-shard-split.1", "kiloraft-debug-verify.1"} {
		a, err := os.ReadFile(filepath.Join(dir, "a", name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "b", name))
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs (%v)", name, err)
		}
	}
	s.want(2, "man")
}
