package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files are the certificate files of a process. Its methods may be called from any goroutine.
type Files struct {
	ca, cert, key string
	log           *slog.Logger
	now           func() time.Time

	mu      sync.Mutex
	checked time.Time
	raw     [3][]byte // as loaded
	failed  string    // why the last look changed nothing
	pool    *x509.CertPool
	pair    *tls.Certificate // nil: a client without a certificate
}

// reloadEvery is how often the files are looked at, at most.
const reloadEvery = time.Second

// Options of Open.
type Options struct {
	Logger *slog.Logger
	Now    func() time.Time
}

// Open reads the files: certificates of the authorities, an own certificate and its key. A client may have authorities alone.
func Open(ca, cert, key string, opt Options) (*Files, error) {
	f := &Files{ca: ca, cert: cert, key: key, log: opt.Logger, now: opt.Now}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	if ca == "" {
		return nil, errors.New("tls: no file with the authority's certificate")
	}
	if (cert == "") != (key == "") {
		return nil, errors.New("tls: a certificate and its key go together")
	}
	f.checked = f.now()
	raw, err := f.read()
	if err != nil {
		return nil, err
	}
	if err := f.load(raw); err != nil {
		return nil, err
	}
	if f.pair != nil {
		if now := f.now(); now.After(f.pair.Leaf.NotAfter) || now.Before(f.pair.Leaf.NotBefore) {
			return nil, fmt.Errorf("tls: the certificate in %s is valid from %s to %s, and this machine's clock says %s", cert,
				f.pair.Leaf.NotBefore.UTC().Format(time.RFC3339), f.pair.Leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
	}
	return f, nil
}

func (f *Files) read() (raw [3][]byte, err error) {
	for i, name := range [...]string{f.ca, f.cert, f.key} {
		if name == "" {
			continue
		}
		if raw[i], err = os.ReadFile(name); err != nil {
			return raw, fmt.Errorf("tls: %w", err)
		}
	}
	return raw, nil
}

// load takes what was read, or changes nothing.
func (f *Files) load(raw [3][]byte) error {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw[0]) {
		return fmt.Errorf("tls: %s holds no certificate", f.ca)
	}
	var pair *tls.Certificate
	if f.cert != "" {
		p, err := tls.X509KeyPair(raw[1], raw[2])
		if err != nil {
			return fmt.Errorf("tls: %s and %s: %w", f.cert, f.key, err)
		}
		pair = &p
	}
	if f.pair != nil && pair != nil {
		if err := f.worse(pair.Leaf); err != nil {
			return err
		}
	}
	f.raw, f.pool, f.pair = raw, pool, pair
	return nil
}

// worse says why a process had better keep the certificate that it has: one that makes it somebody else, or is of no use now.
func (f *Files) worse(leaf *x509.Certificate) error {
	old, now := f.pair.Leaf, f.now()
	valid := func(c *x509.Certificate) bool { return !now.Before(c.NotBefore) && !now.After(c.NotAfter) }
	switch {
	case IsNode(old) && !IsNode(leaf):
		return fmt.Errorf("tls: %s is no node's certificate: its subject has no organizational unit %s", f.cert, NodeUnit)
	case valid(old) && !valid(leaf):
		return fmt.Errorf("tls: the certificate in %s is valid from %s to %s only", f.cert, leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// current returns what the files hold now.
func (f *Files) current() (*x509.CertPool, *tls.Certificate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.checked) >= reloadEvery || now.Before(f.checked) {
		f.checked = now
		f.reload()
	}
	return f.pool, f.pair
}

func (f *Files) reload() {
	raw, err := f.read()
	if err == nil {
		if bytes.Equal(raw[0], f.raw[0]) && bytes.Equal(raw[1], f.raw[1]) && bytes.Equal(raw[2], f.raw[2]) {
			f.failed = ""
			return
		}
		err = f.load(raw)
	}
	if err != nil {
		if err.Error() != f.failed {
			f.log.Warn("certificates cannot be read again: the old ones stay", "err", err)
		}
		f.failed = err.Error()
		return
	}
	f.failed = ""
	attrs := []any{"ca", f.ca}
	if f.pair != nil {
		attrs = append(attrs, "cert", f.cert, "not_after", f.pair.Leaf.NotAfter)
	}
	f.log.Info("certificates were read again", attrs...)
}

// Leaf returns the own certificate, nil if there is none.
func (f *Files) Leaf() *x509.Certificate {
	if _, pair := f.current(); pair != nil {
		return pair.Leaf
	}
	return nil
}

// Server returns the configuration of one connection that was accepted. Who dials may show a certificate; one that does not
// verify ends the handshake.
func (f *Files) Server() *tls.Config {
	pool, pair := f.current()
	c := &tls.Config{MinVersion: tls.VersionTLS13, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven, SessionTicketsDisabled: true, Time: f.now}
	if pair != nil {
		c.Certificates = []tls.Certificate{*pair}
	}
	return c
}

// Client returns the configuration of one connection that is dialled, without the name of the server. The other side must be a node.
func (f *Files) Client() *tls.Config {
	pool, pair := f.current()
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Time: f.now, VerifyConnection: func(s tls.ConnectionState) error {
		if !IsNode(s.PeerCertificates[0]) {
			return fmt.Errorf("the certificate of %q is not a node's", s.PeerCertificates[0].Subject.CommonName)
		}
		return nil
	}}
	if pair != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return c
}
