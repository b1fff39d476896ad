package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestAccess(t *testing.T) {
	a := Compile([]Grant{{RoleRead, []byte("a/")}, {RoleWrite, []byte("b/")}, {RoleRead, []byte("\xff\xff")}})
	for _, c := range []struct {
		need Need
		key  string
		want bool
	}{
		{NeedRead, "a/x", true}, {NeedRead, "a/", true}, {NeedRead, "a", false}, {NeedRead, "a0", false}, {NeedRead, "b/x", true},
		{NeedWrite, "a/x", false}, {NeedWrite, "b/x", true}, {NeedWrite, "", false}, {NeedRead, "", false},
	} {
		if got := a.Key(c.need, []byte(c.key)); got != c.want {
			t.Errorf("%s %q: %v", c.need, c.key, got)
		}
	}
	for _, c := range []struct {
		need       Need
		start, end string
		want       bool
	}{
		{NeedRead, "a/", "a0", true}, {NeedRead, "a/b", "a/c", true}, {NeedRead, "a/", "a0\x00", false}, {NeedRead, "a/", "", false},
		{NeedRead, "", "", false}, {NeedRead, "a", "a0", false}, {NeedWrite, "a/", "a0", false}, {NeedWrite, "b/", "b0", true},
		{NeedRead, "\xff\xff", "", true}, {NeedRead, "a/", "b0", false},
	} {
		if got := a.Range(c.need, []byte(c.start), []byte(c.end)); got != c.want {
			t.Errorf("%s [%q, %q): %v", c.need, c.start, c.end, got)
		}
	}
	for need, want := range map[Need]bool{NeedNone: true, NeedUser: true, NeedRead: true, NeedWrite: true, NeedAdmin: false, NeedNode: false, NeedUnknown: false} {
		if a.Allows(need) != want || a.All(need) && want {
			t.Errorf("%v: %v", need, !want)
		}
	}
	if admin.Allows(NeedNode) || admin.Allows(NeedUnknown) || !admin.All(NeedWrite) || !admin.Range(NeedWrite, nil, nil) {
		t.Error("an administrator is no node, and may use every key")
	}
	reader := Compile([]Grant{{RoleRead, nil}, {RoleWrite, []byte("w/")}})
	if reader.All(NeedWrite) || reader.Key(NeedWrite, []byte("x")) || !reader.Key(NeedWrite, []byte("w/x")) || !reader.All(NeedRead) {
		t.Error("a reader of all who writes some")
	}
}

func TestCheckGrants(t *testing.T) {
	for _, bad := range [][]Grant{{{0, nil}}, {{4, nil}}, {{RoleAdmin, []byte("x")}}, {{RoleRead, nil}, {RoleWrite, nil}},
		{{RoleRead, make([]byte, PrefixBytesMax+1)}}, make([]Grant, GrantsMax+1)} {
		if CheckGrants(bad) == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func TestHash(t *testing.T) {
	s := hash([]byte("correct horse"))
	if !strings.HasPrefix(s, "$argon2id$v=19$m=19456,t=2,p=1$") || strings.Contains(s, "horse") || s == hash([]byte("correct horse")) {
		t.Fatal(s)
	}
	h, err := parseHash(s)
	if err != nil || !h.matches([]byte("correct horse")) || h.matches([]byte("correct horsf")) || h.matches(nil) {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "x", "$argon2i$v=19$m=19456,t=2,p=1$AAAA$AAAA", strings.Replace(s, "m=19456", "m=99999999", 1),
		strings.Replace(s, "t=2", "t=4000", 1), strings.Replace(s, "v=19", "v=16", 1), s + "$", s[:len(s)-30], strings.Replace(s, "p=1", "p=0", 1)} {
		if _, err := parseHash(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// clock is a time that tests move.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newTestUsers(t *testing.T) (*Users, *clock, string) {
	t.Helper()
	c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	return NewUsers(time.Hour, c.now), c, hash([]byte("password1"))
}

func TestUsers(t *testing.T) {
	u, c, h := newTestUsers(t)
	ctx := t.Context()
	if id, err := u.Certificate(Root); err != nil || !id.Access().Allows(NeedAdmin) {
		t.Fatal("root comes in before anything is known:", err)
	}
	if _, err := u.Password(ctx, "ann", []byte("password1"), "a:1"); err != ErrNotReady {
		t.Fatal(err)
	}
	ann := User{Name: "ann", Hash: h, Grants: []Grant{{RoleWrite, nil}}}
	u.Update([]User{ann, {Name: "cert", Grants: []Grant{{RoleRead, nil}}}, {Name: Root, Hash: h}})
	byPassword, err := u.Password(ctx, "ann", []byte("password1"), "a:1")
	if err != nil || !byPassword.Access().All(NeedWrite) || byPassword.Access().Allows(NeedAdmin) {
		t.Fatal(err)
	}
	if id, err := u.Password(ctx, Root, []byte("password1"), "a:1"); err != nil || !id.Access().Allows(NeedAdmin) {
		t.Fatal("root with a password:", err)
	}
	byCert, err := u.Certificate("ann")
	if err != nil {
		t.Fatal(err)
	}
	for name, password := range map[string]string{"nobody": "password1", "cert": "", "ann": "password2", "": ""} {
		if _, err := u.Password(ctx, name, []byte(password), "b:1"); err != ErrWrong {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := u.Certificate("nobody"); !errors.Is(err, ErrWrong) {
		t.Error(err)
	}

	ann.Grants = []Grant{{RoleRead, nil}}
	u.Update([]User{ann})
	if byPassword.Access().All(NeedWrite) || !byPassword.Access().All(NeedRead) {
		t.Error("a role that was taken holds on")
	}
	ann.Hash = hash([]byte("password3"))
	u.Update([]User{ann})
	if byPassword.Access().Allows(NeedUser) || !byCert.Access().Allows(NeedUser) {
		t.Error("a new password ends what the old one began, and nothing else")
	}
	if _, err := u.Password(ctx, "ann", []byte("password1"), "c:1"); err != ErrWrong {
		t.Error("the old password:", err)
	}
	c.t = c.t.Add(59 * time.Minute)
	if u.Expire(); !byCert.Access().Allows(NeedUser) {
		t.Error("too early")
	}
	c.t = c.t.Add(2 * time.Minute)
	if u.Expire(); byCert.Access().Allows(NeedUser) {
		t.Error("rights hold for ever without the meta shard")
	}
	if _, err := u.Certificate("ann"); err != ErrNotReady {
		t.Error(err)
	}
	if id, err := u.Certificate(Root); err != nil || !id.Access().Allows(NeedAdmin) {
		t.Error("root can always come in:", err)
	}
	u.Update([]User{ann})
	if !byCert.Access().Allows(NeedUser) {
		t.Error("rights did not come back")
	}
	u.Update(nil)
	if byCert.Access().Allows(NeedUser) || byCert.Access().Allows(NeedRead) {
		t.Error("a user who was removed has rights")
	}
}

// Each wrong password makes the next attempt wait longer, that of the right one too; other addresses and users do not wait.
func TestWrongPasswordsAreSlowed(t *testing.T) {
	u, c, h := newTestUsers(t)
	u.Update([]User{{Name: "ann", Hash: h, Grants: []Grant{{RoleRead, nil}}}})
	ctx := t.Context()
	last := time.Duration(0)
	for range 10 {
		if _, err := u.Password(ctx, "ann", []byte("wrong pass"), "10.0.0.1:5"); err != ErrWrong {
			t.Fatal(err)
		}
		_, err := u.Password(ctx, "ann", []byte("password1"), "10.0.0.1:6")
		var wait *WaitError
		if !errors.As(err, &wait) || wait.Wait < last || wait.Wait > PenaltyMax {
			t.Fatalf("%v after %v", err, last)
		}
		last = wait.Wait
		c.t = c.t.Add(wait.Wait)
	}
	if last != PenaltyMax {
		t.Errorf("after ten wrong ones the wait is %v", last)
	}
	if _, err := u.Password(ctx, "ann", []byte("password1"), "10.0.0.2:5"); err != nil {
		t.Error("another address:", err)
	}
	if _, err := u.Password(ctx, "ann", []byte("password1"), "10.0.0.1:7"); err != nil {
		t.Error("after the wait:", err)
	}
	if _, err := u.Password(ctx, "ann", []byte("password1"), "10.0.0.1:8"); err != nil {
		t.Error("the penalty was not forgotten:", err)
	}
	if _, err := u.Password(ctx, "bob", []byte("wrong"), "[2001:db8:1:2:3::4]:5"); !errors.Is(err, ErrWrong) {
		t.Fatal(err)
	}
	if _, err := u.Password(ctx, "bob", []byte("wrong"), "[2001:db8:1:2:9::1]:6"); !errors.As(err, new(*WaitError)) {
		t.Error("an IPv6 network is a /64, but this one need not wait:", err)
	}
}

// More than a bounded number of checks neither run nor wait, and what was right once needs none.
func TestChecksAreBounded(t *testing.T) {
	u, _, h := newTestUsers(t)
	u.Update([]User{{Name: "ann", Hash: h, Grants: []Grant{{RoleRead, nil}}}})
	if _, err := u.Password(t.Context(), "ann", []byte("password1"), "a:1"); err != nil {
		t.Fatal(err)
	}
	for range cap(u.hasher.slots) {
		u.hasher.slots <- struct{}{} // all busy
	}
	if _, err := u.Password(t.Context(), "ann", []byte("password1"), "a:1"); err != nil {
		t.Error("what was right before:", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, hashersWaitingMax+1)
	for i := range hashersWaitingMax + 1 {
		go func() {
			_, err := u.Password(ctx, fmt.Sprint("u", i), []byte("password2"), "a:1")
			errs <- err
		}()
	}
	if err := <-errs; err != ErrBusy {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	for range hashersWaitingMax {
		if err := <-errs; err != ErrBusy {
			t.Error(err)
		}
	}
}

func BenchmarkAccess(b *testing.B) {
	u, _, h := NewUsers(time.Hour, time.Now), 0, ""
	u.Update([]User{{Name: "ann", Hash: h, Grants: []Grant{{RoleWrite, nil}}}, {Name: "ben", Grants: []Grant{{RoleWrite, []byte("app/")}}}})
	key := []byte("app/0000000001")
	for _, name := range []string{"ann", "ben"} {
		id, err := u.Certificate(name)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				a := id.Access()
				if !a.Allows(NeedWrite) || !a.Key(NeedWrite, key) {
					b.Fatal("denied")
				}
			}
		})
	}
}
