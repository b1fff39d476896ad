package escape

import (
	"bytes"
	"testing"
)

// FuzzUnescape reads anything as a key that was typed.
func FuzzUnescape(f *testing.F) {
	f.Add(`a\x00\\ü`)
	f.Add(`\x`)
	f.Fuzz(func(t *testing.T, s string) {
		b, err := Unescape(s)
		if err != nil {
			return
		}
		if again, err := Unescape(String(b)); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q is %q, and then %q, %v", s, b, again, err)
		}
	})
}
