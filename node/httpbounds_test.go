package node

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestHTTPBusy: so many requests are answered at a time, and the next ones are told so at once.
func TestHTTPBusy(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	h := bounded(make(chan struct{}, 1), func(http.ResponseWriter, *http.Request) {
		began <- struct{}{}
		<-goOn
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		h(httptest.NewRecorder(), nil)
	}()
	<-began
	w := httptest.NewRecorder()
	if h(w, nil); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	close(goOn)
	<-done
}

// TestHTTPIdle: when there are too many connections the one that has had nothing to do for longest goes.
func TestHTTPIdle(t *testing.T) {
	l := &boundedListener{}
	conn := func() *boundedConn {
		a, b := net.Pipe()
		t.Cleanup(func() { _ = b.Close() })
		return &boundedConn{Conn: a, l: l}
	}
	var conns []*boundedConn
	for range httpConnsMax {
		if !l.room() {
			t.Fatal("no room")
		}
		c := conn()
		l.state(c, http.StateNew)
		l.state(c, http.StateActive)
		conns = append(conns, c)
	}
	if l.room() {
		t.Fatal("room although all are busy")
	}
	l.state(conns[7], http.StateIdle)
	l.state(conns[3], http.StateIdle)
	l.state(conns[7], http.StateActive)
	l.state(conns[7], http.StateIdle)
	if !l.room() || !conns[3].closed || conns[7].closed {
		t.Error("not the oldest idle one has gone")
	}
	for _, c := range conns {
		_ = c.Close()
		_ = c.Close()
	}
	if l.open != 1 || len(l.idle) != 0 {
		t.Errorf("%d open, %d idle", l.open, len(l.idle))
	}
}
