package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/sysfail"
)

// dir is a directory with certificates, on a clock that tests move.
type dir struct {
	t    *testing.T
	path string
	now  time.Time
}

func newDir(t *testing.T) *dir { return &dir{t, t.TempDir(), time.Now()} }

func (d *dir) ca() Pair {
	d.t.Helper()
	p, err := NewCA("test", d.now, 1000*time.Hour)
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

func (d *dir) write(name string, b []byte) string {
	d.t.Helper()
	file := filepath.Join(d.path, name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		d.t.Fatal(err)
	}
	return file
}

func (d *dir) issue(ca Pair, q Request) Pair {
	d.t.Helper()
	if q.Valid == 0 {
		q.Valid = 100 * time.Hour
	}
	if q.Node && q.Hosts == nil {
		q.Hosts = []string{"localhost"}
	}
	p, err := ca.Issue(q, d.now)
	if err != nil {
		d.t.Fatal(err)
	}
	return p
}

// open opens the files of one name.
func (d *dir) open(name string, ca []byte, p Pair) *Files {
	d.t.Helper()
	cert, key := "", ""
	caFile := d.write(name+"-ca.crt", ca)
	if p.Cert != nil {
		cert, key = d.write(name+".crt", p.Cert), d.write(name+".key", p.Key)
	}
	f, err := Open(caFile, cert, key, Options{Now: func() time.Time { return d.now }})
	if err != nil {
		d.t.Fatal(err)
	}
	return f
}

// shake makes one connection, and returns what the server saw, and the errors of both sides.
func shake(t *testing.T, server, client *Files) (st tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		tc := tls.Server(c, server.Server())
		if serverErr = tc.Handshake(); serverErr == nil {
			st = tc.ConnectionState()
			_, _ = tc.Write([]byte("x"))
		}
	}()
	cfg := client.Client()
	cfg.ServerName = "localhost"
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	tc := tls.Client(c, cfg)
	if clientErr = tc.Handshake(); clientErr == nil {
		_, clientErr = tc.Read(make([]byte, 1)) // a refused client certificate is told after the handshake in TLS 1.3
	}
	c.Close()
	<-done
	return st, serverErr, clientErr
}

func TestKinds(t *testing.T) {
	d := newDir(t)
	ca, other := d.ca(), d.ca()
	node := d.open("node", ca.Cert, d.issue(ca, Request{Name: "n1", Node: true}))
	user := d.open("user", ca.Cert, d.issue(ca, Request{Name: "ann"}))
	bare := d.open("bare", ca.Cert, Pair{})
	if !IsNode(node.Leaf()) || IsNode(user.Leaf()) || bare.Leaf() != nil {
		t.Fatal("kinds")
	}
	for _, client := range []*Files{node, user, bare} {
		st, serr, cerr := shake(t, node, client)
		if serr != nil || cerr != nil || st.Version != tls.VersionTLS13 || st.DidResume {
			t.Fatal(serr, cerr, st.Version)
		}
		if client.Leaf() != nil && st.PeerCertificates[0].Subject.CommonName != client.Leaf().Subject.CommonName {
			t.Error("who it is got lost")
		}
	}
	// A user's certificate does not serve, even if the authority lets it.
	tmpl := d.issue(ca, Request{Name: "ann", Node: true})
	pretender, err := tls.X509KeyPair(tmpl.Cert, tmpl.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := *pretender.Leaf
	leaf.Subject.OrganizationalUnit, leaf.RawSubject = nil, nil
	authority, _ := tls.X509KeyPair(ca.Cert, ca.Key)
	p, err := sign(&leaf, authority.Leaf, authority.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(t, d.open("pretender", ca.Cert, p), user); err == nil || !strings.Contains(err.Error(), "not a node's") {
		t.Error("a server without a node's certificate:", err)
	}
	if _, _, err := shake(t, user, bare); err == nil {
		t.Error("a user's certificate serves")
	}
	// Somebody else's authority.
	if _, serr, _ := shake(t, node, d.open("stranger", ca.Cert, d.issue(other, Request{Name: "root"}))); serr == nil {
		t.Error("a certificate of another authority was taken")
	}
	if _, _, err := shake(t, d.open("false", other.Cert, d.issue(other, Request{Name: "n1", Node: true})), bare); err == nil {
		t.Error("a server of another authority was taken")
	}
	if _, _, err := shake(t, d.open("elsewhere", ca.Cert, d.issue(ca, Request{Name: "n2", Node: true, Hosts: []string{"n2"}})), bare); err == nil {
		t.Error("the name of the server was not checked")
	}
}

// Certificates that are not valid yet or any more (FAULTS C5) are refused, by clocks that are behind or ahead.
func TestClocks(t *testing.T) {
	d := newDir(t)
	ca := d.ca()
	node := d.open("node", ca.Cert, d.issue(ca, Request{Name: "n1", Node: true, Valid: 500 * time.Hour}))
	user := d.open("user", ca.Cert, d.issue(ca, Request{Name: "ann", Valid: time.Hour}))
	brief := d.open("brief", ca.Cert, d.issue(ca, Request{Name: "n2", Node: true, Valid: time.Hour}))
	lasting := d.open("lasting", ca.Cert, d.issue(ca, Request{Name: "bob", Valid: 500 * time.Hour}))
	begin := d.now
	for _, c := range []struct {
		at   time.Duration
		good bool
	}{{0, true}, {-30 * time.Minute, true}, {-2 * time.Hour, false}, {59 * time.Minute, true}, {2 * time.Hour, false}} {
		d.now = begin.Add(c.at)
		if _, serr, _ := shake(t, node, user); (serr == nil) != c.good {
			t.Errorf("%v later, the user's: %v", c.at, serr)
		}
		if _, _, cerr := shake(t, brief, lasting); (cerr == nil) != c.good {
			t.Errorf("%v later, the node's: %v", c.at, cerr)
		}
	}
	for _, at := range []time.Duration{-2 * time.Hour, 600 * time.Hour} {
		d.now = begin.Add(at)
		if _, err := Open(filepath.Join(d.path, "node-ca.crt"), filepath.Join(d.path, "node.crt"), filepath.Join(d.path, "node.key"),
			Options{Now: func() time.Time { return d.now }}); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("at a start %v later: %v", at, err)
		}
	}
}

// New files take effect; files that do not fit together change nothing; an authority is replaced by way of both (FAULTS A8).
func TestReload(t *testing.T) {
	d := newDir(t)
	oldCA, newCA := d.ca(), d.ca()
	both := append(append([]byte{}, oldCA.Cert...), newCA.Cert...)
	node := d.open("node", oldCA.Cert, d.issue(oldCA, Request{Name: "n1", Node: true}))
	user := d.open("user", oldCA.Cert, d.issue(oldCA, Request{Name: "ann"}))
	good := func(step string) {
		t.Helper()
		d.now = d.now.Add(2 * reloadEvery)
		if _, serr, cerr := shake(t, node, user); serr != nil || cerr != nil {
			t.Fatalf("%s: %v, %v", step, serr, cerr)
		}
	}
	good("start")
	first := node.Leaf().SerialNumber
	again := d.issue(oldCA, Request{Name: "n1", Node: true})
	d.write("node.key", again.Key)
	good("half of a swap")
	if node.Leaf().SerialNumber.Cmp(first) != 0 {
		t.Fatal("a certificate without its key")
	}
	d.write("node.crt", again.Cert)
	good("a swap")
	if node.Leaf().SerialNumber.Cmp(first) == 0 {
		t.Fatal("the new certificate was not taken")
	}
	d.write("node.crt", []byte("nonsense"))
	d.write("node-ca.crt", nil)
	good("nonsense")
	d.write("node.crt", again.Cert)
	for _, f := range []string{"node-ca.crt", "user-ca.crt"} {
		d.write(f, both)
		good("both authorities")
	}
	for name, wrong := range map[string]Pair{"a user's certificate": d.issue(oldCA, Request{Name: "n1"}), "one that has ended": d.issue(oldCA, Request{Name: "n1", Node: true, Valid: time.Nanosecond})} {
		serial := node.Leaf().SerialNumber
		d.write("node.crt", wrong.Cert)
		d.write("node.key", wrong.Key)
		good(name)
		if node.Leaf().SerialNumber.Cmp(serial) != 0 {
			t.Errorf("%s was taken in place of a node's that is good", name)
		}
	}
	n2, u2 := d.issue(newCA, Request{Name: "n1", Node: true}), d.issue(newCA, Request{Name: "ann"})
	d.write("node.crt", n2.Cert)
	d.write("node.key", n2.Key)
	good("a node's certificate of the new authority")
	d.write("user.crt", u2.Cert)
	d.write("user.key", u2.Key)
	good("a user's")
	for _, f := range []string{"node-ca.crt", "user-ca.crt"} {
		d.write(f, newCA.Cert)
		good("the new authority alone")
	}
	late := d.open("late", newCA.Cert, d.issue(oldCA, Request{Name: "ann"}))
	d.now = d.now.Add(2 * reloadEvery)
	if _, serr, _ := shake(t, node, late); serr == nil {
		t.Error("the old authority still counts")
	}
}

func TestIssueRefuses(t *testing.T) {
	d := newDir(t)
	ca := d.ca()
	if _, err := ca.Issue(Request{Name: "n", Node: true}, d.now); err == nil {
		t.Error("a node without a host")
	}
	leaf := d.issue(ca, Request{Name: "ann"})
	if _, err := leaf.Issue(Request{Name: "root"}, d.now); err == nil {
		t.Error("a user's certificate signs others")
	}
	p := d.issue(ca, Request{Name: "ann", Valid: 10000 * time.Hour})
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	if pair.Leaf.NotAfter.After(d.now.Add(1001*time.Hour)) || len(pair.Leaf.ExtKeyUsage) != 1 || pair.Leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Error("a user's certificate lives longer than its authority, or serves")
	}
}

// What is not durable does not take the place of what was there (FAULTS D20).
func TestUnsyncedFileReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	sysfail.Test(t, syscall.EIO, func() { err = replaceFile(path, []byte("new"), 0o600) }, sysfail.Fsync)
	b, rerr := os.ReadFile(path)
	if !errors.Is(err, syscall.EIO) || rerr != nil || string(b) != "old" {
		t.Errorf("on a disk that fails: %v; there is %q, %v", err, b, rerr)
	}
}
