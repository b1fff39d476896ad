package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// httpServer serves the operators' endpoints.
type httpServer struct {
	addr   string
	server *http.Server
	done   chan struct{}
}

func (n *Node) openHTTP() (*httpServer, error) {
	if n.cfg.HTTP == "" && n.cfg.HTTPListener == nil {
		return nil, nil
	}
	l, err := listen("http", n.cfg.HTTP, n.cfg.HTTPListener)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", n.livez)
	mux.HandleFunc("GET /healthz", n.livez)
	mux.HandleFunc("GET /readyz", n.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /api/heat", n.apiHeat)
	mux.HandleFunc("GET /api/history", n.apiHistory)
	mux.HandleFunc("GET /debug/log", n.readLog)
	mux.HandleFunc("PUT /debug/log", n.setLogLevel)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &httpServer{
		addr:   advertised("", l.Addr()),
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10},
		done:   make(chan struct{}),
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

// livez says whether the process works at all; it depends on no other node.
func (n *Node) livez(w http.ResponseWriter, _ *http.Request) {
	if why := n.failure.Load(); why != nil {
		http.Error(w, *why, http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// check is one line of readyz.
type check struct {
	name string
	err  error
}

// readyz says whether the node is of use to clients.
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
