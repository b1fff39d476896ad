package node

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/internal/door"
)

const (
	// httpConnsMax bounds the connections of the HTTP door. For one more the one goes that has had nothing to do for longest; if there is none
	// it is closed at once.
	httpConnsMax = 2048
	// httpBusyMax bounds the requests being answered at a time that take memory or time, those of clients who do not take their answer
	// included. /livez and the like are not among them.
	httpBusyMax = 32
	// httpShareMax bounds those of one host: others get in while it has what it can have.
	httpShareMax = httpBusyMax / 2
	// httpQuickMax bounds the others, /livez and the like, of which the next ones wait: they take no time, but so many goroutines that want to
	// run at a time would be ahead of those that the data needs.
	httpQuickMax = 4
	// httpHeaderMax bounds the header of a request, and httpBuffers is what net/http reads and writes a connection with.
	httpHeaderMax = 64 << 10
	httpBuffers   = 8 << 10
	// httpAnswerMax is how long a client may take for its answer, unless it is a profile, which runs for as long as was asked for.
	httpAnswerMax = 20 * time.Second
	// profilePath is where profiles are.
	profilePath = "/debug/pprof/"
)

// slots are the requests of the HTTP door that are being answered.
type slots struct {
	max, shareMax int

	mu   sync.Mutex
	used int
	by   map[string]int // by host; only those that have some
}

func newSlots(most, shareMax int) *slots {
	return &slots{max: most, shareMax: shareMax, by: map[string]int{}}
}

// take takes a slot for a host, if there is one.
func (s *slots) take(host string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used >= s.max || s.by[host] >= s.shareMax {
		return false
	}
	s.used++
	s.by[host]++
	return true
}

func (s *slots) give(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.by[host]--; s.by[host] == 0 {
		delete(s.by, host)
	}
}

// bounded answers requests for which there is a slot. The others are told so, and lose their connection: what else they have sent on it need
// not be looked at.
func bounded(s *slots, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		host := door.Network(r.RemoteAddr)
		if !s.take(host) {
			w.Header().Set("Retry-After", "1")
			w.Header().Set("Connection", "close")
			http.Error(w, "too many requests are being answered", http.StatusServiceUnavailable)
			return
		}
		defer s.give(host)
		h(w, r)
	}
}

// inTurn lets so many requests in at a time as turns has room for. The others wait.
func inTurn(turns chan struct{}, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case turns <- struct{}{}:
		case <-r.Context().Done(): // the client is gone
			return
		}
		defer func() { <-turns }()
		h(w, r)
	}
}

// boundedListener lets httpConnsMax connections in.
type boundedListener struct {
	net.Listener

	mu   sync.Mutex
	open int
	idle *list.List // of *boundedConn without a request, oldest first
}

func newBoundedListener(l net.Listener) *boundedListener {
	return &boundedListener{Listener: l, idle: list.New()}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.room() {
			door.BoundSocket(c)
			return &boundedConn{Conn: c, l: l}, nil
		}
		_ = c.Close()
	}
}

// room makes room for a connection, if it can.
func (l *boundedListener) room() bool {
	l.mu.Lock()
	var oldest *boundedConn
	if e := l.idle.Front(); e != nil && l.open >= httpConnsMax {
		oldest = e.Value.(*boundedConn)
	}
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= httpConnsMax {
		return false
	}
	l.open++
	return true
}

// state is told by the server what its connections do.
func (l *boundedListener) state(c net.Conn, st http.ConnState) {
	if tc, ok := c.(*tls.Conn); ok {
		c = tc.NetConn()
	}
	bc, ok := c.(*boundedConn)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	bc.notIdle()
	if (st == http.StateNew || st == http.StateIdle) && !bc.closed {
		bc.idle = l.idle.PushBack(bc)
	}
}

type boundedConn struct {
	net.Conn
	l *boundedListener

	// Guarded by l.mu.
	closed bool
	idle   *list.Element // of l.idle, or nil
}

// notIdle takes it out of those that have nothing to do. l.mu is held.
func (c *boundedConn) notIdle() {
	if c.idle != nil {
		c.l.idle.Remove(c.idle)
		c.idle = nil
	}
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.l.mu.Lock()
	if !c.closed {
		c.closed = true
		c.l.open--
		c.notIdle()
	}
	c.l.mu.Unlock()
	return c.Conn.Close()
}
