package escape

import (
	"bytes"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestString(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain key", "plain key"}, {"", ""}, {`a\b`, `a\\b`}, {"\x00\xff", `\x00\xff`}, {"tab\there", `tab\x09here`},
		{"grüße", "grüße"}, {"\u200b", `\xe2\x80\x8b`}, {"nl\n", `nl\x0a`}, {"\x7f", `\x7f`},
	} {
		if got := String([]byte(c.in)); got != c.want {
			t.Errorf("String(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestUnescapeRefuses(t *testing.T) {
	for _, s := range []string{`\`, `a\n`, `\x`, `\x1`, `\xzz`, `\X41`, `\u0041`} {
		if b, err := Unescape(s); err == nil {
			t.Errorf("Unescape(%q) = %q, want an error", s, b)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		s := String(b)
		if !utf8.ValidString(s) {
			t.Fatalf("%q is not UTF-8", s)
		}
		back, err := Unescape(s)
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("%q came back as %q, %v", b, back, err)
		}
	})
}
