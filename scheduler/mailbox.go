package scheduler

import (
	"sync"
	"sync/atomic"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// mailbox is how other goroutines reach a lane. The lane takes all of it at once by swapping: the only lock of a turn.
type mailbox struct {
	mu   sync.Mutex
	in   mail
	shut bool          // nobody takes requests any more
	wake chan struct{} // holds a token while there may be mail
	busy atomic.Int64  // when the turn in progress began; 0 between turns
}

// mail is what a mailbox holds. Its slices are swapped, never copied.
type mail struct {
	flushed  []raftlog.Completion
	frames   []frame
	calls    []func(*Lane)
	requests []*Request
	bytes    int // of frames
}

// frame is the body of a raft frame, or of the awake part of a node heartbeat, as it came from a peer.
type frame struct {
	from        engine.NodeID
	incarnation uint64
	body        []byte
}

func (m *mailbox) init() { m.wake = make(chan struct{}, 1) }

// ring makes the lane take a turn.
func (m *mailbox) ring() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take moves everything into out, whose old contents must be cleared, and takes out's slices for what comes next.
func (m *mailbox) take(out *mail) {
	m.mu.Lock()
	m.in, *out = *out, m.in
	m.mu.Unlock()
}

func (m *mailbox) putFlushed(c raftlog.Completion) {
	m.mu.Lock()
	m.in.flushed = append(m.in.flushed, c)
	m.mu.Unlock()
	m.ring()
}

// putFrame refuses when frames of max bytes wait: Raft repairs what is lost.
func (m *mailbox) putFrame(f frame, max int) bool {
	m.mu.Lock()
	if m.in.bytes > max {
		m.mu.Unlock()
		return false
	}
	m.in.bytes += len(f.body)
	m.in.frames = append(m.in.frames, f)
	m.mu.Unlock()
	m.ring()
	return true
}

func (m *mailbox) putCall(f func(*Lane)) {
	m.mu.Lock()
	m.in.calls = append(m.in.calls, f)
	m.mu.Unlock()
	m.ring()
}

// close refuses all requests from now on, and returns those that nobody has taken.
func (m *mailbox) close() []*Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut = true
	left := m.in.requests
	m.in.requests = nil
	return left
}

// putRequest refuses when the mailbox holds max requests, or is closed.
func (m *mailbox) putRequest(r *Request, max int) bool {
	m.mu.Lock()
	if m.full(max) {
		m.mu.Unlock()
		return false
	}
	m.in.requests = append(m.in.requests, r)
	m.mu.Unlock()
	m.ring()
	return true
}

// full tells whether no more requests are taken. The lock is held.
func (m *mailbox) full(max int) bool { return m.shut || len(m.in.requests) >= max }

// queued returns how many requests wait.
func (m *mailbox) queued() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.in.requests)
}

// clear empties m for reuse and lets go of what it pointed to.
func (m *mail) clear() {
	clear(m.flushed)
	clear(m.frames)
	clear(m.calls)
	clear(m.requests)
	m.flushed, m.frames, m.calls, m.requests = m.flushed[:0], m.frames[:0], m.calls[:0], m.requests[:0]
	m.bytes = 0
}
