package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"

	"net/http"
	"net/http/pprof"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/console"
)

// The HTTP door. Every path is a route, which says what it takes; httpDoor.ServeHTTP finds out who asks, refuses those who may not, and only
// then calls the handler. A handler that must know more asks whoAsks(r):
//
//	{"GET /api/shards", auth.NeedUser, n.apiShards}      // any user with a role
//	{"POST /api/ops", auth.NeedAdmin, n.action(…)}      // whoAsks(r).Name is the administrator; n.sec.record is the audit log
//	whoAsks(r).Access().Key(auth.NeedRead, key)          // may this user read this key?
//
// Who asks shows a session cookie (POST /login gives one), a user and a password (Basic), or a client certificate. Requests that
// change something are refused if a browser sends them for another site (http.CrossOriginProtection), and the cookie is
// SameSite=Strict: handlers need no tokens of their own, but must change nothing on GET. See foreign for DNS rebinding. Without TLS everybody is "anyone" and
// may do everything.

// route is a path of the HTTP door and what it takes.
type route struct {
	pattern string // of http.ServeMux
	need    auth.Need
	handler http.HandlerFunc
}

func (n *Node) routes() []route {
	metrics := newMetricsPage(n.writeMetrics)
	return []route{
		{"GET /livez", auth.NeedNone, n.livez},
		{"GET /healthz", auth.NeedNone, n.livez},
		{"GET /readyz", auth.NeedNone, n.readyz}, // nobody gets one word
		{"GET /login", auth.NeedNone, n.loginPage},
		{"POST /login", auth.NeedNone, n.login},
		{"POST /logout", auth.NeedNone, n.logout},
		{"GET /session", auth.NeedUser, n.session},
		{"GET /metrics", auth.NeedUser, metrics.ServeHTTP},
		{"GET /api/heat", auth.NeedUser, n.apiHeat},
		{"GET /api/history", auth.NeedUser, n.apiHistory},
		{"GET /{$}", auth.NeedUser, console.Page},
		{"GET /console/", auth.NeedUser, console.File},
		{"GET /api/status", auth.NeedUser, n.member(n.apiStatus)},
		{"GET /api/nodes", auth.NeedUser, n.member(n.apiNodes)},
		{"GET /api/shards", auth.NeedUser, n.member(n.apiShards)},
		{"GET /api/shard/{id}", auth.NeedUser, n.member(n.apiShard)},
		{"GET /api/shard/{id}/events", auth.NeedAdmin, n.member(n.apiShardEvents)},
		{"GET /api/ops", auth.NeedUser, n.member(n.apiOps)},
		{"POST /api/ops", auth.NeedAdmin, n.action((*core).actOp)},
		{"POST /api/ops/{id}/cancel", auth.NeedAdmin, n.action((*core).actCancel)},
		{"POST /api/nodes/{id}/undrain", auth.NeedAdmin, n.action((*core).actUndrain)},
		{"GET /debug/log", auth.NeedAdmin, n.readLog},
		{"PUT /debug/log", auth.NeedAdmin, n.setLogLevel},
		{"/debug/pprof/", auth.NeedAdmin, pprof.Index},
		{"/debug/pprof/cmdline", auth.NeedAdmin, pprof.Cmdline},
		{"/debug/pprof/profile", auth.NeedAdmin, pprof.Profile},
		{"/debug/pprof/symbol", auth.NeedAdmin, pprof.Symbol},
		{"/debug/pprof/trace", auth.NeedAdmin, pprof.Trace},
	}
}

// httpServer serves the operators' endpoints.
type httpServer struct {
	addr   string
	server *http.Server
	done   chan struct{}
}

// httpWriteMax is how long a client may take to take an answer, the time that the answer is made included: so it bounds profiles, too.
const httpWriteMax = 2 * time.Minute

func (n *Node) openHTTP() (*httpServer, error) {
	if n.cfg.HTTP == "" && n.cfg.HTTPListener == nil {
		return nil, nil
	}
	l, err := listen("http", n.cfg.HTTP, n.cfg.HTTPListener)
	if err != nil {
		return nil, err
	}
	s := &httpServer{
		addr: advertised("", l.Addr()),
		server: &http.Server{Handler: n.newDoor(n.routes()), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: time.Minute, IdleTimeout: time.Minute,
			WriteTimeout: cmp.Or(n.cfg.httpWriteMax, httpWriteMax), MaxHeaderBytes: httpHeaderMax, ErrorLog: nil, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}},
		done: make(chan struct{}),
	}
	bounded := newBoundedListener(l)
	l, s.server.ConnState = bounded, bounded.state
	s.server.ErrorLog = quiet(n.log)
	if s.server.TLSConfig = n.sec.serverTLS(); s.server.TLSConfig != nil {
		l = tls.NewListener(l, s.server.TLSConfig)
	}
	go func() { // ends with close
		defer close(s.done)
		if err := s.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("http endpoints are gone", "err", err)
		}
	}()
	return s, nil
}

func (s *httpServer) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.server.Shutdown(ctx)
	if err != nil { // a profile may still be running
		err = s.server.Close()
	}
	<-s.done
	return err
}

// stuckMax is how long a turn or a sync may take before the process counts as stuck: far beyond what costs it its leaderships.
const stuckMax = 10 * time.Second

// Live says why the process does not work, or nil; it depends on no other node, and waits for nothing.
func (n *Node) Live() error {
	if why := n.failure.Load(); why != nil {
		return errors.New(*why)
	}
	if c := n.core.Load(); c != nil {
		return c.sched.Stuck(stuckMax)
	}
	return nil
}

// livez says whether the process works at all.
func (n *Node) livez(w http.ResponseWriter, r *http.Request) {
	if err := n.Live(); err != nil {
		text := err.Error()
		if !whoAsks(r).Access().Allows(auth.NeedUser) {
			text = "failed"
		}
		http.Error(w, text, http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// check is one line of readyz.
type check struct {
	name string
	err  error
}

// readyz says whether the node is of use to clients. Why not is for users; others get a word.
func (n *Node) readyz(w http.ResponseWriter, r *http.Request) {
	checks := n.checks()
	status := http.StatusOK
	for _, c := range checks {
		if c.err != nil {
			status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if !whoAsks(r).Access().Allows(auth.NeedUser) {
		checks = nil
	}
	_, verbose := r.URL.Query()["verbose"]
	for _, c := range checks {
		switch {
		case c.err != nil:
			_, _ = fmt.Fprintf(w, "[-] %s: %v\n", c.name, c.err)
		case verbose:
			_, _ = fmt.Fprintf(w, "[+] %s ok\n", c.name)
		}
	}
	if status == http.StatusOK {
		_, _ = io.WriteString(w, "ready\n")
	} else if checks == nil {
		_, _ = io.WriteString(w, "not ready\n")
	}
}
func (n *Node) checks() []check {
	var list []check
	add := func(name string, bad bool, why string) {
		c := check{name: name}
		if bad {
			c.err = errors.New(why)
		}
		list = append(list, c)
	}
	why := n.failure.Load()
	if why != nil {
		add("process", true, *why)
	} else {
		add("process", false, "")
	}
	c := n.core.Load()
	add("cluster", c == nil, "in no cluster: run `kiloraft cluster init`, or start with --join")
	if c == nil {
		return list
	}
	add("meta", !n.synced.Load(), "the meta shard was not read yet")
	others, up := 0, 0
	for _, rec := range c.view.nodeList() {
		if rec.ID != c.node {
			others++
			if c.sched.PeerAlive(rec.ID) {
				up++
			}
		}
	}
	add("peers", others > 0 && up == 0, fmt.Sprintf("none of %d other nodes is reachable", others))
	add("disk", c.sched.DiskFull(), "full: writes to the shards that this node leads are refused; make room, or drain the node")
	return list
}
