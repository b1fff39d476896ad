package node_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/transport"
)

// load sends requests by old and by new connections, through all doors, until it is told to stop. Nothing may fail.
type load struct {
	s      *secured
	client transport.TLS
	stop   chan struct{}
	wg     sync.WaitGroup
	done   [5]atomic.Int64
}

func (l *load) run(i int, f func(ctx context.Context, n int) error) {
	l.wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-l.stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			err := f(ctx, n)
			cancel()
			if err != nil {
				l.s.t.Errorf("load %d, request %d: %v", i, n, err)
				return
			}
			l.done[i].Add(1)
		}
	})
}

func (l *load) start() {
	cfg := router.Config{Transport: transport.ClientConfig{TLS: l.client}}
	kept, err := router.Dial(l.s.t.Context(), l.s.Addrs(), cfg)
	if err != nil {
		l.s.t.Fatal(err)
	}
	l.s.t.Cleanup(func() { kept.Close() })
	l.run(0, func(ctx context.Context, n int) error {
		_, err := kept.Put(ctx, fmt.Appendf(nil, "k%d", n%100), []byte("v"))
		return err
	})
	l.run(1, func(ctx context.Context, n int) error { // a connection each
		c, err := router.Dial(ctx, l.s.Addrs()[n%3:][:1], cfg)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Add(ctx, []byte("sum"), 1)
		return err
	})
	l.run(2, func(ctx context.Context, n int) error {
		tr := &http.Transport{TLSClientConfig: l.client.Client(), DisableKeepAlives: true}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, "GET", "https://"+l.s.Node(n%3).HTTPAddr()+"/session", nil)
		if err != nil {
			return err
		}
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				err = errors.New(res.Status)
			}
		}
		return err
	})
	l.run(3, func(ctx context.Context, n int) error {
		cfg := l.client.Client()
		cfg.ServerName = "127.0.0.1"
		d := tls.Dialer{Config: cfg}
		c, err := d.DialContext(ctx, "tcp", l.s.Node(n%3).RedisAddr())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err = c.Write([]byte("incr redis\r\n")); err != nil {
			return err
		}
		var b [1]byte
		if _, err = c.Read(b[:]); err == nil && b[0] != ':' {
			err = fmt.Errorf("an answer that begins with %q", b)
		}
		return err
	})
}

// startKept sends Redis commands on one connection, which has to last.
func (l *load) startKept() {
	cfg := l.client.Client()
	cfg.ServerName = "127.0.0.1"
	c, err := tls.Dial("tcp", l.s.Node(0).RedisAddr(), cfg)
	if err != nil {
		l.s.t.Fatal(err)
	}
	l.s.t.Cleanup(func() { c.Close() })
	answers := bufio.NewReader(c)
	l.run(4, func(ctx context.Context, n int) error {
		if end, ok := ctx.Deadline(); ok {
			_ = c.SetDeadline(end)
		}
		if _, err := c.Write([]byte("incr kept\r\n")); err != nil {
			return err
		}
		line, err := answers.ReadString('\n')
		if want := fmt.Sprintf(":%d\r\n", n+1); err == nil && line != want {
			err = fmt.Errorf("answered %q, want %q", line, want)
		}
		return err
	})
}

// progress waits until every kind of load has gone on.
func (l *load) progress() {
	l.s.t.Helper()
	var before [5]int64
	for i := range before {
		before[i] = l.done[i].Load()
	}
	nodetest.Eventually(l.s.t, 60*time.Second, func() error {
		for i := range before {
			if l.done[i].Load() < before[i]+5 && !l.s.t.Failed() {
				return fmt.Errorf("load %d stands still", i)
			}
		}
		return nil
	})
}

// Certificates are swapped under load, then the authority, and no request fails (FAULTS A8). Both authorities are known to all before
// anybody has a certificate of the new one, and the old one goes last.
func TestSwapCertificatesUnderLoad(t *testing.T) {
	s := startSecured(t, 3, 6)
	l := &load{s: s, client: s.certs.Client("writer"), stop: make(chan struct{})}
	l.start()
	l.startKept()
	l.progress()
	shown := func(i int) string {
		cfg := s.certs.Client("").Client()
		cfg.ServerName = "127.0.0.1"
		c, err := tls.Dial("tcp", s.Node(i).HTTPAddr(), cfg)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	swap := func(what string) {
		t.Helper()
		for i, name := range []string{"n1", "n2", "n3"} {
			before := shown(i)
			s.certs.Issue(name, true)
			nodetest.Eventually(t, 30*time.Second, func() error {
				if shown(i) == before {
					return fmt.Errorf("%s: node %d shows its old certificate", what, i+1)
				}
				return nil
			})
		}
		mine := l.client.(*certs.Files)
		before := mine.Leaf().SerialNumber
		s.certs.Issue("writer", false)
		nodetest.Eventually(t, 30*time.Second, func() error {
			if mine.Leaf().SerialNumber.Cmp(before) == 0 {
				return fmt.Errorf("%s: the client shows its old certificate", what)
			}
			return nil
		})
		l.progress()
	}
	swap("certificates")

	oldCA := s.certs.CA()
	s.certs.NewCA()
	s.certs.WriteCA(oldCA, s.certs.CA())
	probe := s.certs.Client("admin") // of the new authority: taken once a node knows both
	knows := func(i int, c transport.TLS) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn, err := transport.DialClient(ctx, s.Addrs()[i], transport.ClientConfig{TLS: c})
		if err == nil {
			conn.Close()
		}
		return err
	}
	for i := range 3 {
		nodetest.Eventually(t, 30*time.Second, func() error { return knows(i, probe) })
	}
	// The client of the load reads its files when it dials, at most a second later; so does every node.
	l.progress()
	leaf, both := l.client.(*certs.Files), x509.NewCertPool()
	both.AppendCertsFromPEM(oldCA)
	both.AppendCertsFromPEM(s.certs.CA())
	nodetest.Eventually(t, 30*time.Second, func() error {
		if !leaf.Client().RootCAs.Equal(both) {
			return errors.New("the client does not know both authorities")
		}
		return nil
	})
	swap("authority")
	s.certs.WriteCA(s.certs.CA())
	l.progress()
	l.progress()
	close(l.stop)
	l.wg.Wait()
	t.Logf("requests: %d and %d on one connection, %d, %d and %d each on a new one", l.done[0].Load(), l.done[4].Load(), l.done[1].Load(), l.done[2].Load(), l.done[3].Load())
}

// A client whose certificate has ended is cut off, and not let in again.
func TestCertificateEnds(t *testing.T) {
	s := startSecured(t, 1, 1)
	if err := func() error {
		c, err := s.dialAs(transport.ClientConfig{TLS: s.certs.Short("reader", 2*time.Second)})
		if err != nil {
			return err
		}
		defer c.Close()
		select {
		case <-c.Done():
			return nil
		case <-time.After(30 * time.Second):
			return errors.New("the connection outlives the certificate")
		}
	}(); err != nil {
		t.Fatal(err)
	}
}
