package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// A snapshot has a stream of its own. Its frames begin with their kind:
//
//	sender:   's' once, then  header H bytes │ fragment F bytes, last fragment of a chunk L bytes │ end E │ abort X text
//	receiver: acknowledge A count │ done D │ abort X text
//
// What the receiving application has not acknowledged is bounded for all snapshots of a session together (rule Live6), so that
// neither the socket nor the receiver is full of snapshot when a heartbeat comes.
const (
	snapHeader byte = 'H'
	snapMore   byte = 'F'
	snapLast   byte = 'L'
	snapEnd    byte = 'E'
	snapAbort  byte = 'X'
	snapAck    byte = 'A'
	snapDone   byte = 'D'

	fragmentBytes   = 64 << 10
	snapHeaderBytes = 64 << 10
)

// snapshotWindow bounds unacknowledged bytes of a session.
type snapshotWindow struct {
	mu     sync.Mutex
	size   int
	left   int
	moved  chan struct{} // closed and replaced when left grows
	closed bool
}

func (w *snapshotWindow) init(size int) {
	w.size, w.left, w.moved = size, size, make(chan struct{})
}

func (w *snapshotWindow) acquire(ctx context.Context, over <-chan struct{}, n int) error {
	for {
		w.mu.Lock()
		if w.closed {
			w.mu.Unlock()
			return ErrConnectionLost
		}
		if w.left >= n {
			w.left -= n
			w.mu.Unlock()
			return nil
		}
		moved := w.moved
		w.mu.Unlock()
		select {
		case <-moved:
		case <-over:
			return errSnapshotOver
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *snapshotWindow) release(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.left += n
	if n > 0 && !w.closed {
		close(w.moved)
		w.moved = make(chan struct{})
	}
}

func (w *snapshotWindow) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.closed = true
		close(w.moved)
	}
}

func (w *snapshotWindow) unacked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size - w.left
}

// SnapshotWriter sends one snapshot. It is used by one goroutine.
type SnapshotWriter struct {
	s   *session
	st  *yamux.Stream
	buf []byte

	over chan struct{} // closed when the receiver has finished or the stream is broken
	mu   sync.Mutex
	sent int // acquired from the window and not released
	err  error
	shut bool
}

func openSnapshot(ctx context.Context, s *session, header []byte) (*SnapshotWriter, error) {
	if len(header) > snapHeaderBytes {
		return nil, ErrTooLarge
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, err := s.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnectionLost, err)
	}
	w := &SnapshotWriter{s: s, st: st, over: make(chan struct{})}
	w.buf = append(w.buf[:0], streamSnapshot)
	w.buf = appendFrame(w.buf, append([]byte{snapHeader}, header...))
	if err := w.flush(); err != nil {
		return nil, err
	}
	if !s.spawn(w.acks) {
		return nil, ErrConnectionLost
	}
	s.core.metrics.SnapshotsOut.Add(1)
	return w, nil
}

func (w *SnapshotWriter) flush() error {
	_ = w.st.SetWriteDeadline(deadlineOf(w.s.core.limits.WriteTimeout))
	if _, err := w.st.Write(w.buf); err != nil {
		if errors.Is(err, yamux.ErrTimeout) || errors.Is(err, yamux.ErrConnectionWriteTimeout) {
			w.s.kill(errSlow)
		}
		return fmt.Errorf("%w: %w", ErrConnectionLost, err)
	}
	return nil
}

// acks reads what the receiver says, until it has finished.
func (w *SnapshotWriter) acks() {
	f := newFrameReader(w.st, textBytesMax+64, 1024)
	var err error
	for err == nil {
		var b []byte
		if b, err = f.next(); err != nil {
			err = fmt.Errorf("%w: %w", ErrConnectionLost, err)
			break
		}
		err = w.ack(b)
	}
	if err == errSnapshotDone {
		err = nil
	}
	w.mu.Lock()
	w.err = err
	w.s.snaps.release(w.sent)
	w.sent = 0
	close(w.over)
	w.mu.Unlock()
}

var (
	errSnapshotDone = errors.New("done")
	errSnapshotOver = errors.New("over")
)

func (w *SnapshotWriter) ack(b []byte) error {
	if len(b) == 0 {
		return w.malformed()
	}
	switch b[0] {
	case snapAck:
		r := mp.NewReader(b[1:])
		n := r.Uint()
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.Finish() != nil || n > uint64(w.sent) {
			return w.malformed()
		}
		w.sent -= int(n)
		w.s.snaps.release(int(n))
		return nil
	case snapDone:
		return errSnapshotDone
	case snapAbort:
		return fmt.Errorf("%w: %q", ErrSnapshotAborted, b[1:])
	}
	return w.malformed()
}

func (w *SnapshotWriter) malformed() error {
	err := fmt.Errorf("%w: answer to a snapshot", ErrMalformed)
	w.s.kill(err)
	return err
}

// result is why it is over, if it is.
func (w *SnapshotWriter) result() (error, bool) {
	select {
	case <-w.over:
		return w.err, true
	default:
		return nil, false
	}
}

// Write sends a chunk, which arrives whole. It waits while too much is unacknowledged. After an error the snapshot is over.
func (w *SnapshotWriter) Write(ctx context.Context, chunk []byte) error {
	if len(chunk) > w.s.core.limits.SnapshotChunkMax {
		return ErrTooLarge
	}
	for first := true; first || len(chunk) > 0; first = false {
		n := min(len(chunk), fragmentBytes, w.s.snaps.size)
		kind := snapMore
		if n == len(chunk) {
			kind = snapLast
		}
		if err := w.fragment(ctx, kind, chunk[:n]); err != nil {
			return err
		}
		chunk = chunk[n:]
	}
	return nil
}

func (w *SnapshotWriter) fragment(ctx context.Context, kind byte, b []byte) error {
	err := w.s.snaps.acquire(ctx, w.over, len(b))
	if err != nil && err != errSnapshotOver {
		return err
	}
	w.mu.Lock()
	if res, over := w.result(); over {
		w.mu.Unlock()
		if err == nil {
			w.s.snaps.release(len(b))
		}
		if res == nil {
			res = fmt.Errorf("%w: finished before the end", ErrSnapshotAborted)
		}
		return res
	}
	w.sent += len(b)
	w.mu.Unlock()
	w.frame(kind, b)
	return w.flush()
}

func (w *SnapshotWriter) frame(kind byte, b []byte) {
	w.buf = append(append(w.buf[:0], make([]byte, frameHeader)...), kind)
	w.buf = append(w.buf, b...)
	sealFrame(w.buf, nil)
}

// Finish tells the receiver that this was all, and waits until it says how it ended.
func (w *SnapshotWriter) Finish(ctx context.Context) error {
	defer w.close()
	w.frame(snapEnd, nil)
	if err := w.flush(); err != nil {
		if res, over := w.result(); over && res != nil {
			return res
		}
		return err
	}
	select {
	case <-w.over:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Abort gives up, telling the receiver why. It may be called after anything, also after Finish, and does nothing then.
func (w *SnapshotWriter) Abort(reason string) {
	if _, over := w.result(); !over && !w.shut {
		w.frame(snapAbort, []byte(reason[:min(len(reason), textBytesMax)]))
		_ = w.flush()
	}
	w.close()
}

// close ends the stream, and by that the goroutine of acks, even if the receiver says nothing more.
func (w *SnapshotWriter) close() {
	if !w.shut {
		w.shut = true
		_ = w.st.SetReadDeadline(time.Unix(1, 0))
		_ = w.st.Close()
	}
}

// SnapshotReader receives one snapshot. It is used by one goroutine, within Handler.Snapshot.
type SnapshotReader struct {
	s        *session
	st       *yamux.Stream
	f        *frameReader
	chunk    []byte
	unacked  int
	err      error
	finished bool
}

// acceptLoop takes the streams that the other side opens: snapshots.
func (s *session) acceptLoop() {
	for {
		st, err := s.mux.AcceptStream()
		if err != nil {
			s.kill(fmt.Errorf("accept: %w", err))
			return
		}
		if int(s.snapsIn.Add(1)) > s.core.limits.SnapshotsMax {
			s.snapsIn.Add(-1)
			s.spawn(func() {
				r := &SnapshotReader{s: s, st: st}
				_ = r.Finish(errors.New("too many snapshots at a time"))
			})
			continue
		}
		s.spawn(func() {
			defer s.snapsIn.Add(-1)
			s.receive(st)
		})
	}
}

func (s *session) receive(st *yamux.Stream) {
	_ = st.SetReadDeadline(deadlineOf(s.core.limits.HandshakeTimeout))
	r := &SnapshotReader{s: s, st: st, f: newFrameReader(st, max(snapHeaderBytes, fragmentBytes)+1, max(snapHeaderBytes, fragmentBytes)+1)}
	kind, err := r.f.r.ReadByte()
	if err == nil && kind != streamSnapshot {
		err = fmt.Errorf("%w: stream of kind %q", ErrMalformed, kind)
	}
	var b []byte
	if err == nil {
		b, err = r.f.next()
	}
	if err == nil && (len(b) == 0 || b[0] != snapHeader) {
		err = fmt.Errorf("%w: a snapshot without a header", ErrMalformed)
	}
	if err != nil {
		if errors.Is(err, ErrMalformed) {
			s.kill(err)
		}
		_ = st.Close()
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	s.core.metrics.SnapshotsIn.Add(1)
	s.handler.Snapshot(s.info.Node, s.info.Incarnation(), b[1:], r)
	_ = r.Finish(errors.New("the receiver gave up"))
}

// From tells who sends.
func (r *SnapshotReader) From() (engine.NodeID, uint64) { return r.s.info.Node, r.s.info.Incarnation() }

// Next returns the next chunk; io.EOF after the last. Calling it acknowledges the chunk before, so call it when that one was
// dealt with; until then the chunk stays valid. After an error, or the end of ctx, the snapshot is over.
func (r *SnapshotReader) Next(ctx context.Context) ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { _ = r.st.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	b, err := r.next()
	if err != nil && err != io.EOF && ctx.Err() != nil {
		err = ctx.Err()
	}
	r.err = err
	return b, err
}

func (r *SnapshotReader) next() ([]byte, error) {
	r.chunk = nil
	for {
		if err := r.acknowledge(); err != nil {
			return nil, err
		}
		b, err := r.f.next()
		if err != nil {
			if errors.Is(err, ErrMalformed) {
				r.s.kill(err)
			}
			return nil, fmt.Errorf("%w: %v", ErrConnectionLost, err)
		}
		if len(b) == 0 {
			b = []byte{0}
		}
		body := b[1:]
		switch b[0] {
		case snapMore, snapLast:
			r.unacked += len(body)
			if r.chunk == nil {
				r.chunk = body
			} else {
				r.chunk = append(r.chunk, body...)
			}
			if len(r.chunk) > r.s.core.limits.SnapshotChunkMax {
				err = fmt.Errorf("%w: a chunk of more than %d bytes", ErrMalformed, r.s.core.limits.SnapshotChunkMax)
				r.s.kill(err)
				return nil, err
			}
			if b[0] == snapLast {
				return r.chunk, nil
			}
			// The parts of a big chunk are acknowledged as they come, or it could not be larger than the window.
		case snapEnd:
			return nil, io.EOF
		case snapAbort:
			return nil, fmt.Errorf("%w: %q", ErrSnapshotAborted, body)
		default:
			err = fmt.Errorf("%w: frame of a snapshot of kind %q", ErrMalformed, b[0])
			r.s.kill(err)
			return nil, err
		}
	}
}

func (r *SnapshotReader) acknowledge() error {
	if r.unacked == 0 {
		return nil
	}
	b := mp.AppendUint([]byte{snapAck}, uint64(r.unacked))
	r.unacked = 0
	return r.say(b)
}

func (r *SnapshotReader) say(b []byte) error {
	_ = r.st.SetWriteDeadline(deadlineOf(r.s.core.limits.WriteTimeout))
	if _, err := r.st.Write(appendFrame(nil, b)); err != nil {
		return fmt.Errorf("%w: %w", ErrConnectionLost, err)
	}
	return nil
}

// Finish tells the sender how it ended: nil if the snapshot was taken, else why not. Only the first call counts; leaving
// Handler.Snapshot without one tells that it was not.
func (r *SnapshotReader) Finish(err error) error {
	if r.finished {
		return nil
	}
	r.finished = true
	r.err = io.ErrClosedPipe
	b := []byte{snapDone}
	if err != nil {
		text := err.Error()
		b = append([]byte{snapAbort}, text[:min(len(text), textBytesMax)]...)
	}
	res := r.say(b)
	_ = r.st.Close()
	return res
}
