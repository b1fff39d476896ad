package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHTTPBusy: so many requests are answered at a time, so many of one host, and the next ones are told so at once and lose their connection.
func TestHTTPBusy(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	h := bounded(newSlots(3, 2), func(w http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-goOn
	})
	from := func(addr string) *http.Request {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = addr
		return r
	}
	var answering sync.WaitGroup
	admitted := func(addr string) {
		answering.Go(func() { h(httptest.NewRecorder(), from(addr)) })
		<-began
	}
	refused := func(addr string) {
		t.Helper()
		w := httptest.NewRecorder()
		if h(w, from(addr)); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header().Get("Connection") != "close" {
			t.Errorf("%s: %d %v", addr, w.Code, w.Header())
		}
	}
	admitted("10.0.0.1:1")
	admitted("10.0.0.1:2")
	refused("10.0.0.1:3") // it has its share
	admitted("10.0.0.2:1")
	refused("10.0.0.2:2") // all are taken
	refused("10.0.0.3:1")
	close(goOn)
	answering.Wait()
	goOn = make(chan struct{})
	admitted("10.0.0.1:4")
	close(goOn)
	answering.Wait()
}

// TestHTTPRefusedPipeline: who sends many requests on a connection and is refused once is not answered the rest.
func TestHTTPRefusedPipeline(t *testing.T) {
	busy := newSlots(1, 1)
	busy.take("someone")
	s := httptest.NewServer(bounded(busy, func(http.ResponseWriter, *http.Request) { t.Error("it is answered") }))
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, strings.Repeat("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 10)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if n := strings.Count(string(b), "HTTP/1.1 503 "); n != 1 {
		t.Errorf("%d answers: %q, %v", n, b, err)
	}
}

// TestHTTPInTurn: of the requests that need no slot few are answered at a time; the others wait, and get their answer.
func TestHTTPInTurn(t *testing.T) {
	began, goOn := make(chan struct{}), make(chan struct{})
	h := inTurn(make(chan struct{}, 2), func(http.ResponseWriter, *http.Request) {
		began <- struct{}{}
		<-goOn
	})
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() { h(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/livez", nil)) })
	}
	<-began
	<-began
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/livez", nil).WithContext(ctx)) // who has gone waits no more
	select {
	case <-began:
		t.Error("three at a time")
	default:
	}
	goOn <- struct{}{}
	<-began
	close(goOn)
	all.Wait()
}

// TestMetricsPageIsShared: all who ask while a page is being made get the next one, which was begun after they had asked.
func TestMetricsPageIsShared(t *testing.T) {
	began, goOn := make(chan int), make(chan error)
	pages := 0 // by the page's own goroutine
	p := newMetricsPage(func(w io.Writer) error {
		pages++
		began <- pages
		_, _ = fmt.Fprintf(w, "page %d", pages)
		return <-goOn
	})
	get := func(want string, code int) (wait func()) {
		var asks sync.WaitGroup
		asks.Go(func() {
			w := httptest.NewRecorder()
			if p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil)); w.Code != code || !strings.Contains(w.Body.String(), want) {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, code, want)
			}
		})
		return asks.Wait
	}
	first := get("page 1", http.StatusOK)
	if n := <-began; n != 1 {
		t.Fatal(n)
	}
	var asked []*metricsText
	for range 20 {
		asked = append(asked, p.ask())
	}
	for _, a := range asked[1:] {
		if a != asked[0] {
			t.Fatal("not the same page")
		}
	}
	goOn <- nil
	first()
	if n := <-began; n != 2 {
		t.Fatal(n)
	}
	goOn <- nil
	if <-asked[0].done; string(asked[0].text) != "page 2" {
		t.Errorf("%q", asked[0].text)
	}
	failed := get("it is broken", http.StatusInternalServerError)
	<-began
	goOn <- errors.New("it is broken")
	failed()
	if took := 3 * time.Millisecond; metricsRest(took) != 9*took {
		t.Errorf("rests %v after %v", metricsRest(took), took)
	}
}

// TestHTTPIdle: when there are too many connections the one that has had nothing to do for longest goes.
func TestHTTPIdle(t *testing.T) {
	l := newBoundedListener(nil)
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
	if l.open != 1 || l.idle.Len() != 0 {
		t.Errorf("%d open, %d idle", l.open, l.idle.Len())
	}
}
