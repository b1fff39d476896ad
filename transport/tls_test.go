package transport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// static is a TLS that does not change.
type static struct{ *tls.Config }

func (s static) Server() *tls.Config { return s.Config }
func (s static) Client() *tls.Config { return s.Config }

func certificates(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert}
}

// Two nodes on real sockets, with and without TLS.
func TestTCP(t *testing.T) {
	for name, tc := range map[string]*tls.Config{"plain": nil, "tls": certificates(t)} {
		t.Run(name, func(t *testing.T) {
			n := newNet()
			start := func(id engine.NodeID) *node {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				cfg := n.config(id)
				cfg.AdvertiseAddr, cfg.Dial = l.Addr().String(), nil
				if tc != nil {
					cfg.TLS = static{tc}
				}
				r := newRecorder()
				tr, err := New(cfg, r)
				if err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- tr.Serve(l) }()
				t.Cleanup(func() { tr.Close(); <-done })
				return &node{Transport: tr, recorder: r, addr: cfg.AdvertiseAddr}
			}
			a, b := start(1), start(2)
			a.SetPeer(2, b.addr)
			b.SetPeer(1, a.addr)
			settle(t, a, b)
			exchange(t, a, b)
			big := bytes.Repeat([]byte("x"), 5<<20)
			got, err := a.Call(t.Context(), 2, 1, big)
			for err == ErrConnectionLost || err == ErrNotConnected { // a second session may have won just now
				got, err = a.Call(t.Context(), 2, 1, big)
			}
			if err != nil || !bytes.Equal(got, big) {
				t.Fatal(len(got), err)
			}
			var own ClientConfig
			if tc != nil {
				own.TLS = static{tc}
			}
			c, err := DialClient(t.Context(), b.addr, own)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := c.Call(t.Context(), 1, []byte("hi")); err != nil || string(got) != "hi" {
				t.Fatal(got, err)
			}
			if st := c.Peer().TLS; (st != nil) != (tc != nil) || st != nil && st.Version != tls.VersionTLS13 {
				t.Fatal("not the TLS that was asked for")
			}
			if tc != nil { // no certificate, no service
				bare := tc.Clone()
				bare.Certificates = nil
				if c, err := DialClient(t.Context(), b.addr, ClientConfig{TLS: static{bare}}); err == nil {
					c.Close()
					t.Fatal("served without a certificate")
				}
				if c, err := DialClient(t.Context(), b.addr, ClientConfig{Limits: Limits{HandshakeTimeout: time.Second}}); err == nil {
					c.Close()
					t.Fatal("served without TLS")
				}
			}
		})
	}
}

// Who calls is asked before anything else is believed: a peer that is nobody ends no session, and is told why.
func TestAuthenticate(t *testing.T) {
	n := newNet()
	cfg := n.config(1)
	cfg.Authenticate = func(_ context.Context, c *Credentials) (any, time.Time, error) {
		switch {
		case c.Peer:
			return nil, time.Time{}, &Refused{Reason: ReasonDenied, Text: "no peers"}
		case c.User == "brief":
			return c.User, time.Now().Add(100 * time.Millisecond), nil
		case c.User == "ann" && string(c.Password) == "secret":
			return c.User, time.Time{}, nil
		}
		return nil, time.Time{}, errors.New("who are you?")
	}
	r := newRecorder()
	r.onRequest = func(q Request) { q.Reply(StatusOK, fmt.Append(nil, q.Identity())) }
	a := n.start(t, cfg, r)
	dial := func(user, password string) (*ClientConn, error) {
		return DialClient(t.Context(), a.addr, ClientConfig{Dial: n.dial, User: user, Password: []byte(password), TLS: nil})
	}
	if _, err := dial("ann", "secret"); err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Fatalf("a password went to %s in plain text: %v", a.addr, err)
	}
	_, err := dial("ben", "")
	wantReason(t, err, ReasonDenied, true)
	if a.Metrics().Denied.Load() != 1 {
		t.Error("not counted")
	}
	c, err := dial("brief", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := c.Call(t.Context(), 1, nil); err != nil || string(got) != "brief" {
		t.Fatalf("%q, %v", got, err)
	}
	<-c.Done() // its time is over
	b := n.start(t, n.config(2), newRecorder())
	b.SetPeer(1, a.addr)
	until(t, "the peer to be refused", func() bool { return a.Metrics().Denied.Load() > 1 })
	if b.Connected(1) {
		t.Error("a peer that may not")
	}
}

func BenchmarkTCP(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	n := newNet()
	cfg := n.config(1)
	r := newRecorder()
	tr, err := New(cfg, r)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tr.Serve(l) }()
	c, err := DialClient(b.Context(), l.Addr().String(), ClientConfig{})
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 100)
	for _, depth := range []int{1, 64, 4096} {
		b.Run(fmt.Sprint("inflight=", depth), func(b *testing.B) {
			slots := make(chan struct{}, depth)
			answered := func([]byte, error) { <-slots }
			b.ReportAllocs()
			for b.Loop() {
				slots <- struct{}{}
				c.Go(1, time.Time{}, 0, body, answered)
			}
			for range depth {
				slots <- struct{}{}
			}
		})
	}
	c.Close()
	tr.Close()
	<-done
}
