package auth

import "testing"

// FuzzHash reads anything as the stored hash of a password: what is accepted asks for bounded memory and time.
func FuzzHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng")
	f.Add("$argon2id$v=19$m=4294967295,t=4294967295,p=255$$")
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := parseHash(s); err == nil && (h.memory > 256*1024 || h.time > 16 || h.threads > 16 || h.threads == 0 || len(h.key) > 64) {
			t.Fatalf("%q: %+v", s, h)
		}
		if r, err := ParseRole(s); err == nil && r.String() != s {
			t.Fatalf("%q is %v", s, r)
		}
	})
}
