package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/mp"
)

func TestSnapshot(t *testing.T) {
	_, a, b := pair(t, nil)
	var got [][]byte
	var header []byte
	b.recorder.onSnapshot = func(h []byte, r *SnapshotReader) {
		header = h
		for {
			c, err := r.Next(t.Context())
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Error(err)
				return
			}
			got = append(got, bytes.Clone(c))
		}
		_ = r.Finish(nil)
	}
	w, err := a.OpenSnapshot(t.Context(), 2, []byte("header"))
	if err != nil {
		t.Fatal(err)
	}
	var want [][]byte
	for _, n := range []int{0, 1, 1000, fragmentBytes - 1, fragmentBytes, fragmentBytes + 1, 256 << 10, 3 << 20, 7, 7} {
		c := make([]byte, n)
		for i := range c {
			c[i] = byte(rand.Uint32())
		}
		want = append(want, c)
		if err := w.Write(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Abort("after the end, this does nothing")
	if string(header) != "header" || len(got) != len(want) {
		t.Fatalf("%q, %d chunks of %d", header, len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("chunk %d of %d bytes", i, len(want[i]))
		}
	}
	until(t, "the window to be whole", func() bool { return a.Conns()[0].SnapshotUnacked == 0 && b.Conns()[0].SnapshotsReceiving == 0 })
}

// While the application takes nothing, the sender may be a window ahead and no more, for all its snapshots together;
// heartbeats and frames pass by (rule Live6).
func TestSnapshotWindow(t *testing.T) {
	_, a, b := pair(t, nil)
	gate := make(chan struct{})
	b.recorder.onSnapshot = func(h []byte, r *SnapshotReader) {
		<-gate
		for {
			if _, err := r.Next(t.Context()); err != nil {
				if err == io.EOF {
					err = nil
				}
				_ = r.Finish(err)
				return
			}
		}
	}
	const chunk = 32 << 10
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			w, err := a.OpenSnapshot(t.Context(), 2, nil)
			if err != nil {
				t.Error(err)
				return
			}
			for range 40 {
				if err := w.Write(t.Context(), make([]byte, chunk)); err != nil {
					t.Error(err)
				}
			}
			if err := w.Finish(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "the window to fill", func() bool { return a.Conns()[0].SnapshotUnacked > 256<<10-chunk })
	if n := a.Conns()[0].BytesOut; n > 300<<10 {
		t.Errorf("%d bytes went out", n)
	}
	a.SendHeartbeat(2, []byte("alive"))
	until(t, "a heartbeat", func() bool { return b.is(func() bool { return len(b.beats) == 1 }) })
	exchange(t, a, b)
	// One that cannot get a place in the window gives up with its context.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	w, err := a.OpenSnapshot(t.Context(), 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ctx, make([]byte, chunk)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	w.Abort("too slow")
	close(gate)
	wg.Wait()
	until(t, "the window to be whole", func() bool { return a.Conns()[0].SnapshotUnacked == 0 && b.Conns()[0].SnapshotsReceiving == 0 })
}

func TestSnapshotRefusedAndAborted(t *testing.T) {
	_, a, b := pair(t, func(c *Config) { c.Limits.SnapshotsMax = 1 })
	result := make(chan error, 1)
	send := func() error {
		w, err := a.OpenSnapshot(t.Context(), 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			err = w.Write(t.Context(), make([]byte, 64<<10))
		}
		w.Abort("")
		return err
	}
	free := func() {
		t.Helper()
		until(t, "the receiver to end", func() bool { return b.Conns()[0].SnapshotsReceiving == 0 && a.Conns()[0].SnapshotUnacked == 0 })
	}
	for name, f := range map[string]func([]byte, *SnapshotReader){
		"no space": func(_ []byte, r *SnapshotReader) { _ = r.Finish(errors.New("no space")) },
		"the receiver gave up": func(_ []byte, r *SnapshotReader) {
			_, _ = r.Next(t.Context())
		},
		"superseded": func(_ []byte, r *SnapshotReader) {
			for range 3 {
				_, _ = r.Next(t.Context())
			}
			_ = r.Finish(errors.New("superseded"))
		},
	} {
		b.recorder.onSnapshot = f
		if err := send(); !errors.Is(err, ErrSnapshotAborted) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		free()
	}
	// The sender gives up.
	b.recorder.onSnapshot = func(_ []byte, r *SnapshotReader) {
		_, err := r.Next(t.Context())
		for err == nil {
			_, err = r.Next(t.Context())
		}
		result <- err
	}
	w, err := a.OpenSnapshot(t.Context(), 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Write(t.Context(), []byte("abc"))
	until(t, "the receiver", func() bool { return b.Conns()[0].SnapshotsReceiving == 1 })
	if err := send(); err == nil || !strings.Contains(err.Error(), "too many") { // one at a time
		t.Error(err)
	}
	w.Abort("split meanwhile")
	if err := <-result; !errors.Is(err, ErrSnapshotAborted) || !strings.Contains(err.Error(), "split meanwhile") {
		t.Error(err)
	}
	free()
	// The receiver's context ends.
	b.recorder.onSnapshot = func(_ []byte, r *SnapshotReader) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := r.Next(ctx)
		result <- err
	}
	if w, err = a.OpenSnapshot(t.Context(), 2, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := w.Finish(t.Context()); !errors.Is(err, ErrSnapshotAborted) {
		t.Error(err)
	}
	if _, err := a.OpenSnapshot(t.Context(), 9, nil); err != ErrNotConnected {
		t.Error(err)
	}
}

// The end of the connection ends both ends of a snapshot, and not as if it were complete.
func TestSnapshotAndLostConnection(t *testing.T) {
	n, a, b := pair(t, nil)
	result := make(chan error, 1)
	b.recorder.onSnapshot = func(_ []byte, r *SnapshotReader) {
		for {
			if _, err := r.Next(context.Background()); err != nil {
				result <- err
				return
			}
		}
	}
	w, err := a.OpenSnapshot(t.Context(), 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(t.Context(), []byte("abc")); err != nil {
		t.Fatal(err)
	}
	until(t, "the receiver", func() bool { return b.Conns()[0].SnapshotsReceiving == 1 })
	n.each(func(c *memConn) { c.Close() })
	if err := <-result; !errors.Is(err, ErrConnectionLost) {
		t.Error(err)
	}
	if err := w.Finish(t.Context()); !errors.Is(err, ErrConnectionLost) {
		t.Error(err)
	}
	settle(t, a, b)
}

// A chunk is acknowledged when the application is done with it, not when it has arrived: what the receiver holds is bounded by that (rule Live6).
func TestSnapshotChunkInHand(t *testing.T) {
	_, a, b := pair(t, nil)
	taken, gate := make(chan struct{}), make(chan struct{})
	b.recorder.onSnapshot = func(_ []byte, r *SnapshotReader) {
		_, err := r.Next(t.Context())
		close(taken)
		<-gate
		for err == nil {
			_, err = r.Next(t.Context())
		}
		if err != io.EOF {
			t.Error(err)
		}
		_ = r.Finish(nil)
	}
	w, err := a.OpenSnapshot(t.Context(), 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 60<<10) // four fit into the window
	for range 4 {
		if err := w.Write(t.Context(), chunk); err != nil {
			t.Fatal(err)
		}
	}
	<-taken
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.Write(ctx, chunk); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fifth chunk, while the receiver has the first in hand: %v", err)
	}
	close(gate)
	if err := w.Write(t.Context(), chunk); err != nil {
		t.Error(err)
	}
	if err := w.Finish(t.Context()); err != nil {
		t.Error(err)
	}
}

// A receiver that acknowledges more than it got would take the window away from the others.
func TestSnapshotAcknowledgement(t *testing.T) {
	_, a, _ := pair(t, nil)
	s := a.session(2)
	w := &SnapshotWriter{s: s, sent: 10}
	if err := s.snaps.acquire(t.Context(), nil, 10); err != nil {
		t.Fatal(err)
	}
	if err := w.ack(mp.AppendUint([]byte{snapAck}, 4)); err != nil || w.sent != 6 || s.snaps.unacked() != 6 {
		t.Errorf("%v, %d are not acknowledged, %d of the window", err, w.sent, s.snaps.unacked())
	}
	if err := w.ack(mp.AppendUint([]byte{snapAck}, 7)); !errors.Is(err, ErrMalformed) || s.alive() {
		t.Errorf("7 of 6 bytes are acknowledged: %v, the session is alive: %v", err, s.alive())
	}
}

// A snapshot that gets nowhere ends the session, on which nothing else may be written that would notice (FAULTS N9, yamux issue 142).
func TestStuckSnapshotEndsTheSession(t *testing.T) {
	n, a, b := pair(t, func(c *Config) {
		c.Limits.WriteTimeout, c.Limits.SnapshotWindow = 100*time.Millisecond, 2<<20
		c.Limits.SilenceMax, c.Limits.PingInterval = time.Minute, time.Minute
	})
	b.recorder.onSnapshot = func(_ []byte, r *SnapshotReader) {
		for {
			if _, err := r.Next(t.Context()); err != nil {
				return
			}
		}
	}
	w, err := a.OpenSnapshot(t.Context(), 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	n.each(func(c *memConn) { c.pull(true) })
	if err := w.Write(t.Context(), make([]byte, 1<<20)); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("written to a wire that is full: %v", err)
	}
	until(t, "the end of the session", func() bool { return a.Metrics().Slow.Load() > 0 })
	w.Abort("")
	exchange(t, a, b)
}
