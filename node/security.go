package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/certs"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// security is what a node knows of who may do what. It is on if the node has certificates; without, everybody may do everything, and only
// who gives a user and a password is held to that user's rights.
//
// A request is checked once, by the node that the caller is connected with. What nodes ask of each other, forwarded requests
// included, is trusted because of the node certificate.
type security struct {
	files    *certs.Files // nil: off
	users    *auth.Users
	logins   *logins
	log      *slog.Logger
	audit    *slog.Logger
	file     *os.File // of the audit log, if it has its own
	denied   atomic.Uint64
	warned   atomic.Int64 // unix ns, when a denial was last logged
	expiryAt atomic.Int64 // unix ns, when the expiry of the certificate was last logged
}

// usersStaleMax is for how long users keep their rights while the meta shard cannot be read.
const usersStaleMax = time.Hour

func (n *Node) openSecurity() error {
	s := &security{users: auth.NewUsers(usersStaleMax, time.Now), logins: newLogins(), log: n.log, audit: n.log}
	if c := &n.cfg; c.TLSCert != "" {
		var err error
		if s.files, err = certs.Open(c.TLSCA, c.TLSCert, c.TLSKey, certs.Options{Logger: n.log}); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if leaf := s.files.Leaf(); !certs.IsNode(leaf) {
			return fmt.Errorf("%w: %s is no node's certificate: its subject has no organizational unit %s", ErrConfig, c.TLSCert, certs.NodeUnit)
		}
	}
	if n.cfg.AuditLog != "" {
		f, err := os.OpenFile(n.cfg.AuditLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("node: audit log: %w", err)
		}
		s.file, s.audit = f, slog.New(slog.NewJSONHandler(f, nil))
	}
	n.sec = s
	return nil
}

func (s *security) close() {
	if s.file != nil {
		_ = s.file.Close()
	}
}

func (s *security) on() bool { return s.files != nil }

// checkAdvertised refuses an address that others could not verify.
func (s *security) checkAdvertised(addr string) error {
	host, err := hostOf(addr)
	if err != nil || !s.on() {
		return err
	}
	if err := s.files.Leaf().VerifyHostname(host); err != nil {
		return fmt.Errorf("%w: others reach this node at %s, for which its certificate is not valid: %w", ErrConfig, addr, err)
	}
	return nil
}

// tls is what the transport needs; nil if security is off.
func (s *security) tls() transport.TLS {
	if !s.on() {
		return nil
	}
	return s.files
}

// serverTLS is the configuration of a listener for HTTP or Redis clients; nil if security is off.
func (s *security) serverTLS() *tls.Config {
	if !s.on() {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.files.Server(), nil }}
}

func leafOf(st *tls.ConnectionState) *x509.Certificate {
	if st == nil || len(st.PeerCertificates) == 0 {
		return nil
	}
	return st.PeerCertificates[0]
}

func denied(format string, args ...any) error {
	return fmt.Errorf("%w: %s", shard.ErrDenied, fmt.Sprintf(format, args...))
}

// identify finds out who somebody is: by a password if there is one, else by the certificate, which TLS has verified. until is when
// the certificate ends.
func (s *security) identify(ctx context.Context, leaf *x509.Certificate, user string, password []byte, from string) (*auth.Identity, time.Time, error) {
	var id *auth.Identity
	var until time.Time
	var err error
	switch {
	case len(password) > 0:
		id, err = s.users.Password(ctx, user, password, from)
	case leaf == nil && user == "" && !s.on():
		return auth.Anyone(), until, nil
	case leaf == nil:
		err = denied("a client certificate, or a user and a password are needed")
	case user != "" && user != leaf.Subject.CommonName:
		err = denied("the certificate is of %.80q: as user %.80q a password is needed", leaf.Subject.CommonName, user)
	case certs.IsNode(leaf):
		id, until = auth.Node(leaf.Subject.CommonName), leaf.NotAfter
	default:
		id, err = s.users.Certificate(leaf.Subject.CommonName)
		until = leaf.NotAfter
	}
	if errors.Is(err, auth.ErrWrong) {
		err = fmt.Errorf("%w: %w", shard.ErrDenied, err)
	}
	return id, until, err
}

// authenticate is for the transport.
func (s *security) authenticate(ctx context.Context, c *transport.Credentials) (any, time.Time, error) {
	leaf := leafOf(c.TLS)
	if c.Peer {
		if s.on() && (leaf == nil || !certs.IsNode(leaf)) {
			return nil, time.Time{}, &transport.Refused{Reason: transport.ReasonDenied, Text: "a peer needs a node's certificate"}
		}
		return auth.Node("peer"), time.Time{}, nil
	}
	id, until, err := s.identify(ctx, leaf, c.User, c.Password, c.RemoteAddr.String())
	if err == nil {
		return id, until, nil
	}
	reason := transport.ReasonDenied
	if isUnsure(err) {
		reason = transport.ReasonUnsure
	} else {
		s.denied.Add(1)
	}
	return nil, time.Time{}, &transport.Refused{Reason: reason, Text: textOf(err)}
}

// isUnsure tells whether the same credentials may be right a little later.
func isUnsure(err error) bool {
	return errors.Is(err, auth.ErrNotReady) || errors.Is(err, auth.ErrBusy) || errors.As(err, new(*auth.WaitError))
}

// textOf is an error without the words that its status says again.
func textOf(err error) string {
	text, prefix := err.Error(), shard.ErrDenied.Error()+": "
	if len(text) > len(prefix) && text[:len(prefix)] == prefix {
		return text[len(prefix):]
	}
	return text
}

// admit checks a request of somebody who is connected here. It costs some nanoseconds for users of all keys.
func (s *security) admit(q *incoming) error {
	a := q.id.Access()
	need := needOf(q.method)
	if !a.Allows(need) {
		return s.deny(q, need)
	}
	switch need {
	case auth.NeedRead, auth.NeedWrite:
		if a.Allows(auth.NeedNode) {
			return nil
		}
		return s.admitKeys(q, a, need)
	}
	return nil
}

// deny says why not.
func (s *security) deny(q *incoming, need auth.Need) error {
	s.denied.Add(1)
	if !q.id.Access().Allows(auth.NeedUser) {
		return denied("user %s has no rights (any more)", q.id)
	}
	return denied("user %s may not do this: it needs the role %s", q.id, need)
}

// watchCertificate warns, now and then, of a certificate that ends soon.
func (s *security) watchCertificate(now time.Time) {
	if !s.on() {
		return
	}
	leaf := s.files.Leaf()
	left := leaf.NotAfter.Sub(now)
	if last := s.expiryAt.Load(); left > expiryWarning || now.UnixNano()-last < int64(time.Hour) {
		return
	}
	s.expiryAt.Store(now.UnixNano())
	s.log.Warn("the node's certificate ends soon: put a new one in its place, the node reads it by itself",
		"cert", strconv.Quote(leaf.Subject.CommonName), "not_after", leaf.NotAfter, "left", left.Round(time.Minute))
}

// expiryWarning is how long before its end a certificate is complained about.
const expiryWarning = 14 * 24 * time.Hour

// record writes a line of the audit log. Denials are limited in their rate.
func (s *security) record(id *auth.Identity, from, door, action string, err error) {
	result := "done"
	switch {
	case errors.Is(err, shard.ErrDenied):
		result = "denied"
		now, last := time.Now().UnixNano(), s.warned.Load()
		if now-last < int64(100*time.Millisecond) || !s.warned.CompareAndSwap(last, now) {
			return
		}
	case err != nil:
		result = "failed: " + err.Error()
	}
	s.audit.Info("audit", "user", id.Name, "by", id.How, "from", from, "door", door, "action", brief(action), "result", brief(result))
}

// auditTextMax bounds what of a request's own words gets into a line of the audit log: those who may do nothing get lines there, too.
const auditTextMax = 1 << 10

func brief(text string) string {
	if len(text) <= auditTextMax {
		return text
	}
	return strings.ToValidUTF8(text[:auditTextMax], "") + fmt.Sprintf("… (%d bytes)", len(text))
}

// audited has the outcome of an administrator's request recorded.
func (s *security) audited(q *incoming) {
	reply, action, id, from := q.reply, describeAction(q), q.id, q.from
	q.reply = func(status uint16, body []byte) {
		s.record(id, from, "native", action, shard.DecodeError(shard.Status(status), body))
		reply(status, body)
	}
}

// nodeName is how the audit log names a node.
func nodeName(id engine.NodeID) string { return "node " + strconv.FormatUint(uint64(id), 10) }
