package resp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
)

// Guard says who clients are. Its methods may be called from any goroutine.
type Guard interface {
	// Greet returns who a client is that has shown no more than its connection (st is nil without TLS), and until when.
	Greet(st *tls.ConnectionState, from string) (id *auth.Identity, until time.Time, err error)
	// Password returns who a client is that gives a user and a password.
	Password(ctx context.Context, user string, password []byte, from string) (*auth.Identity, error)
	// Record writes a line of the audit log.
	Record(id *auth.Identity, from, action string, err error)
}

// open is the Guard of a server without one: everybody may do everything, and there are no passwords.
type open struct{}

func (open) Greet(*tls.ConnectionState, string) (*auth.Identity, time.Time, error) {
	return auth.Anyone(), time.Time{}, nil
}

func (open) Password(context.Context, string, []byte, string) (*auth.Identity, error) {
	return nil, auth.ErrWrong
}

func (open) Record(*auth.Identity, string, string, error) {}

const (
	errNoAuth      = "NOAUTH Authentication required."
	errNoAuthHello = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time"
	errNoPermKeys  = "NOPERM No permissions to access a key"
	errNoPermRange = "NOPERM No permissions to read all keys of this range: name a prefix that your role covers"
)

// need returns what a command takes.
func (s *spec) needs() auth.Need {
	switch {
	case s.need != auth.NeedUnknown:
		return s.need
	case s.first == 0:
		return auth.NeedNode
	case s.write:
		return auth.NeedWrite
	}
	return auth.NeedRead
}

// permit returns the error that the client gets for a command which it may not use, empty if it may. For users of all keys it costs
// some nanoseconds.
func (c *conn) permit(sp *spec, args [][]byte) string {
	a, need := c.who.Access(), sp.needs()
	if !a.Allows(need) {
		if c.who.How == auth.ByNothing {
			return errNoAuth
		}
		return "NOPERM User " + c.who.Name + " has no permissions to run the '" + sp.name + "' command"
	}
	if sp.first == 0 || a.All(need) {
		return ""
	}
	for _, k := range sp.keysOf(args) {
		if !a.Key(need, k) {
			return errNoPermKeys
		}
	}
	return ""
}

// mayRange tells whether the client may read all of [start, end).
func (c *conn) mayRange(start, end []byte) bool {
	return c.who.Access().Range(auth.NeedRead, start, end)
}

// become takes an identity. A stranger must show who it is in time.
func (c *conn) become(id *auth.Identity) {
	c.who = id
	var deadline time.Time
	c.p.limits = limitsFull
	if id.How == auth.ByNothing && !id.Access().Allows(auth.NeedUser) {
		c.p.limits = limitsStranger
		deadline = time.Now().Add(authTimeout)
	}
	_ = c.nc.SetReadDeadline(deadline)
	c.mu.Lock()
	c.user = id.Name
	c.mu.Unlock()
	c.s.stranger(c, c.p.limits.stranger)
}

// authTimeout bounds the time that somebody may be connected without having shown who they are, the TLS handshake included.
const authTimeout = 10 * time.Second

// greet makes the TLS handshake and finds out who the client is as far as the connection tells.
func (c *conn) greet() error {
	_ = c.nc.SetDeadline(time.Now().Add(authTimeout))
	var st *tls.ConnectionState
	if tc, ok := c.nc.(*tls.Conn); ok {
		if err := tc.HandshakeContext(c.s.ctx); err != nil {
			return err
		}
		s := tc.ConnectionState()
		st = &s
	}
	id, until, err := c.s.cfg.Guard.Greet(st, c.nc.RemoteAddr().String())
	if err != nil {
		return err
	}
	c.greeted = id
	c.become(id)
	if !until.IsZero() {
		t := time.AfterFunc(time.Until(until), c.kill)
		c.atEnd = t.Stop
	}
	_ = c.nc.SetWriteDeadline(time.Time{})
	return nil
}

// login checks a user and a password, and returns the error for the client, empty if they are right.
func (c *conn) login(user string, password []byte) string {
	ctx, cancel := context.WithTimeout(c.s.ctx, authTimeout/2)
	defer cancel()
	id, err := c.s.cfg.Guard.Password(ctx, user, password, c.nc.RemoteAddr().String())
	switch {
	case err == nil:
		c.become(id)
		return ""
	case errors.Is(err, auth.ErrWrong):
		c.s.stats.denied.Add(1)
		return errWrongPass
	}
	return "TRYAGAIN " + err.Error()
}

// isHTTP tells whether a request is what a browser or an HTTP client would send. Another site could have made it: hang up.
func isHTTP(name []byte) bool {
	return bytes.EqualFold(name, []byte("POST")) || bytes.EqualFold(name, []byte("host:"))
}
