package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"html/template"
	"io"
	"log"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/shard"
)

// httpDoor is the handler in front of all routes.
type httpDoor struct {
	n   *Node
	mux *http.ServeMux
}

// newDoor puts the routes behind the question who asks.
func (n *Node) newDoor(routes []route) http.Handler {
	d := &httpDoor{n: n, mux: http.NewServeMux()}
	busy, turns := newSlots(httpBusyMax, httpShareMax), make(chan struct{}, httpQuickMax)
	for _, r := range routes {
		h := d.guard(r.need, r.handler)
		switch {
		case r.need != auth.NeedNone:
			h = bounded(busy, h)
		case strings.HasPrefix(r.pattern, "GET "): // logins have bounds of their own, and wait for them
			h = inTurn(turns, h)
		}
		d.mux.HandleFunc(r.pattern, h)
	}
	return http.NewCrossOriginProtection().Handler(d)
}

// identityKey is of the context value with the identity.
type identityKey struct{}

// whoAsks returns who sent a request, never nil.
func whoAsks(r *http.Request) *auth.Identity {
	if id, ok := r.Context().Value(identityKey{}).(*auth.Identity); ok {
		return id
	}
	return auth.Nobody()
}

// ServeHTTP implements http.Handler. A path that does not exist is refused to nobody like one that does.
func (d *httpDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	var deadline time.Time // of the one before, on the same connection: forget it
	if !strings.HasPrefix(r.URL.Path, profilePath) {
		deadline = time.Now().Add(httpAnswerMax)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(deadline) // an error says that the connection is gone: writing to it tells the same
	if why := d.n.foreign(r); why != "" {
		d.n.sec.denied.Add(1)
		http.Error(w, why, http.StatusForbidden)
		return
	}
	id, err := d.n.identifyHTTP(r)
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	if _, pattern := d.mux.Handler(r); pattern == "" && !id.Access().Allows(auth.NeedUser) {
		d.refuse(w, r, shard.ErrDenied)
		return
	}
	d.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, id)))
}

// guard lets those pass who may.
func (d *httpDoor) guard(need auth.Need, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := whoAsks(r)
		switch {
		case id.Access().Allows(need):
			h(w, r)
		case id.How == auth.ByNothing:
			d.refuse(w, r, shard.ErrDenied)
		default:
			d.n.sec.denied.Add(1)
			if need == auth.NeedAdmin {
				d.n.sec.record(id, r.RemoteAddr, "http", r.Method+" "+r.URL.Path, shard.ErrDenied)
			}
			http.Error(w, "user "+id.Name+" may not do this: it needs the role "+need.String(), http.StatusForbidden)
		}
	}
}

// refuse answers somebody who is not known. People are sent to the login page.
func (d *httpDoor) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var wait *auth.WaitError
	switch {
	case errors.As(err, &wait):
		w.Header().Set("Retry-After", "30")
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	case isUnsure(err):
		w.Header().Set("Retry-After", "1")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	d.n.sec.denied.Add(1)
	if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="kiloraft", charset="UTF-8"`)
	http.Error(w, "credentials are needed: a client certificate, or a user and a password", http.StatusUnauthorized)
}

// identifyHTTP finds out who sent a request: by the session, by Basic authentication, or by the certificate, in this order.
func (n *Node) identifyHTTP(r *http.Request) (*auth.Identity, error) {
	if c, err := r.Cookie(sessionCookie); err == nil && n.sec.on() {
		if id := n.sec.logins.find(c.Value, time.Now()); id != nil {
			return id, nil
		}
	}
	leaf := leafOf(r.TLS)
	user, password, _ := r.BasicAuth()
	if user == "" && leaf == nil && n.sec.on() {
		return auth.Nobody(), nil
	}
	id, until, err := n.sec.identify(r.Context(), leaf, user, []byte(password), r.RemoteAddr)
	if err == nil && !until.IsZero() && time.Now().After(until) { // the connection is older than the certificate's end
		err = denied("the certificate has expired")
	}
	return id, err
}

// sessionCookie is the name of the cookie. The prefix has browsers check that it comes over TLS, from this host, for all paths.
const sessionCookie = "__Host-kiloraft-session"

// The bounds of sessions.
const (
	loginsMax    = 4096
	loginLife    = 12 * time.Hour
	loginIdleMax = time.Hour
)

// logins are the sessions of people's browsers with this node. They live in memory: after a restart, and at another node, one logs in
// again.
type logins struct {
	mu     sync.Mutex
	byHash map[[sha256.Size]byte]*loginSession
}

type loginSession struct {
	id         *auth.Identity
	begun, use time.Time
}

func newLogins() *logins { return &logins{byHash: map[[sha256.Size]byte]*loginSession{}} }

func (s *loginSession) over(now time.Time) bool {
	return now.Sub(s.begun) > loginLife || now.Sub(s.use) > loginIdleMax
}

// add returns the token of a new session. Where there are too many, those that are over go, else the one that was used longest ago.
func (l *logins) add(id *auth.Identity, now time.Time) string {
	var raw [32]byte
	_, _ = rand.Read(raw[:])
	token := base64.RawURLEncoding.EncodeToString(raw[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.byHash) >= loginsMax {
		var oldest [sha256.Size]byte
		var at time.Time
		for h, s := range l.byHash {
			if s.over(now) {
				delete(l.byHash, h)
			} else if at.IsZero() || s.use.Before(at) {
				oldest, at = h, s.use
			}
		}
		if len(l.byHash) >= loginsMax {
			delete(l.byHash, oldest)
		}
	}
	l.byHash[sha256.Sum256([]byte(token))] = &loginSession{id: id, begun: now, use: now}
	return token
}

// find returns whose session a token is, nil if it is none.
func (l *logins) find(token string, now time.Time) *auth.Identity {
	h := sha256.Sum256([]byte(token))
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.byHash[h]
	if s == nil {
		return nil
	}
	if s.over(now) {
		delete(l.byHash, h)
		return nil
	}
	s.use = now
	return s.id
}

func (l *logins) remove(token string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byHash, sha256.Sum256([]byte(token)))
}

var loginTemplate = template.Must(template.New("login").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>kiloraft: log in</title>
<style>:root{color-scheme:light dark}body{font:16px system-ui,sans-serif;max-width:22rem;margin:4rem auto;padding:0 1rem}
label,input,button{display:block;width:100%;box-sizing:border-box;font:inherit}input,button{padding:.5rem;margin:.2rem 0 1rem}</style>
<main><h1>kiloraft</h1>{{with .}}<p role="alert">{{.}}</p>{{end}}
<form method="post" action="/login"><label for="user">User</label><input id="user" name="user" autocomplete="username" required>
<label for="password">Password</label><input id="password" name="password" type="password" autocomplete="current-password" required>
<button>Log in</button></form></main></html>
`))

func (n *Node) loginPage(w http.ResponseWriter, _ *http.Request) { showLogin(w, http.StatusOK, "") }

func showLogin(w http.ResponseWriter, status int, problem string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = loginTemplate.Execute(w, problem)
}

// loginBytesMax bounds the body of a login.
const loginBytesMax = 4 << 10

// login begins a session.
func (n *Node) login(w http.ResponseWriter, r *http.Request) {
	if !n.sec.on() { // there is nothing to log in to
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, loginBytesMax)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "a form with user and password is wanted", http.StatusBadRequest)
		return
	}
	id, err := n.sec.users.Password(r.Context(), r.PostForm.Get("user"), []byte(r.PostForm.Get("password")), r.RemoteAddr)
	switch {
	case err == nil:
		http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: n.sec.logins.add(id, time.Now()), Path: "/", MaxAge: int(loginLife / time.Second),
			Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case isUnsure(err):
		showLogin(w, http.StatusServiceUnavailable, err.Error())
	default:
		n.sec.denied.Add(1)
		showLogin(w, http.StatusForbidden, "Wrong user name or password.")
	}
}

// logout ends a session.
func (n *Node) logout(w http.ResponseWriter, r *http.Request) {
	if c, err := r.Cookie(sessionCookie); err == nil {
		n.sec.logins.remove(c.Value)
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// session tells a page who uses it: {"user":…,"by":…,"roles":[{"role":…,"prefix":…}],"admin":…}.
func (n *Node) session(w http.ResponseWriter, r *http.Request) {
	type role struct {
		Role   string `json:"role"`
		Prefix string `json:"prefix"` // unprintable bytes as \xNN
	}
	id := whoAsks(r)
	out := struct {
		User  string `json:"user"`
		By    string `json:"by"`
		Admin bool   `json:"admin"`
		Roles []role `json:"roles"`
	}{User: id.Name, By: id.How, Admin: id.Access().Allows(auth.NeedAdmin), Roles: []role{}}
	for _, g := range id.Access().Grants() {
		out.Roles = append(out.Roles, role{g.Role.String(), escape.String(g.Prefix)})
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(out)
}

// quiet is the log of package http, which tells of every handshake that a stranger did not finish.
func quiet(l *slog.Logger) *log.Logger {
	if l == nil {
		return log.New(io.Discard, "", 0)
	}
	return slog.NewLogLogger(l.Handler(), slog.LevelDebug)
}
