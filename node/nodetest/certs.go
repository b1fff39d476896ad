package nodetest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/transport"
)

// Certs is a directory with an authority and certificates.
type Certs struct {
	tb  testing.TB
	Dir string
	ca  certs.Pair
}

// NewCerts makes an authority.
func NewCerts(tb testing.TB) *Certs {
	tb.Helper()
	c := &Certs{tb: tb, Dir: tb.TempDir()}
	c.NewCA()
	c.WriteCA(c.CA())
	return c
}

// NewCA makes another authority, which signs from now on. The file is not changed.
func (c *Certs) NewCA() {
	c.tb.Helper()
	var err error
	if c.ca, err = certs.NewCA("test", time.Now(), 24*time.Hour); err != nil {
		c.tb.Fatal(err)
	}
}

// CA returns the certificate of the authority that signs.
func (c *Certs) CA() []byte { return c.ca.Cert }

// WriteCA replaces the file with the authorities.
func (c *Certs) WriteCA(pem ...[]byte) {
	c.tb.Helper()
	var all []byte
	for _, p := range pem {
		all = append(all, p...)
	}
	c.replace("ca.crt", all)
}

func (c *Certs) replace(name string, b []byte) {
	c.tb.Helper()
	tmp := c.path(name + ".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		c.tb.Fatal(err)
	}
	if err := os.Rename(tmp, c.path(name)); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *Certs) path(name string) string { return filepath.Join(c.Dir, name) }

// Issue writes the certificate of a node or a user, in the place of the one there was.
func (c *Certs) Issue(name string, isNode bool) {
	c.tb.Helper()
	q := certs.Request{Name: name, Node: isNode, Valid: 12 * time.Hour}
	if isNode {
		q.Hosts = []string{"127.0.0.1"}
	}
	p, err := c.ca.Issue(q, time.Now())
	if err != nil {
		c.tb.Fatal(err)
	}
	c.replace(name+".key", p.Key)
	c.replace(name+".crt", p.Cert)
}

// Node gives a node its certificate.
func (c *Certs) Node(cfg *node.Config) {
	c.tb.Helper()
	if _, err := os.Stat(c.path(cfg.Name + ".crt")); err != nil {
		c.Issue(cfg.Name, true)
	}
	cfg.TLSCA, cfg.TLSCert, cfg.TLSKey = c.path("ca.crt"), c.path(cfg.Name+".crt"), c.path(cfg.Name+".key")
}

// Client gives the TLS of a client with a user's certificate, which is made, or of one without if user is empty.
func (c *Certs) Client(user string) transport.TLS { return c.client(user, false) }

// AsNode gives the TLS of a client with a node's certificate.
func (c *Certs) AsNode() transport.TLS { return c.client("some-node", true) }

func (c *Certs) client(name string, isNode bool) transport.TLS {
	c.tb.Helper()
	cert, key := "", ""
	if name != "" {
		c.Issue(name, isNode)
		cert, key = c.path(name+".crt"), c.path(name+".key")
	}
	f, err := certs.Open(c.path("ca.crt"), cert, key, certs.Options{})
	if err != nil {
		c.tb.Fatal(err)
	}
	return f
}

// Short gives the TLS of a client with a certificate that soon ends.
func (c *Certs) Short(user string, valid time.Duration) transport.TLS {
	c.tb.Helper()
	p, err := c.ca.Issue(certs.Request{Name: user, Valid: valid}, time.Now())
	if err != nil {
		c.tb.Fatal(err)
	}
	c.replace(user+"-short.key", p.Key)
	c.replace(user+"-short.crt", p.Cert)
	f, err := certs.Open(c.path("ca.crt"), c.path(user+"-short.crt"), c.path(user+"-short.key"), certs.Options{})
	if err != nil {
		c.tb.Fatal(err)
	}
	return f
}
