package escape

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// String shows b.
func String(b []byte) string { return string(Append(nil, b)) }

// Append appends what String gives for b.
func Append(dst, b []byte) []byte {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\\':
			dst = append(dst, '\\', '\\')
		case r == utf8.RuneError && n == 1, !unicode.IsPrint(r):
			for _, c := range b[:n] {
				dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
			}
		default:
			dst = append(dst, b[:n]...)
		}
		b = b[n:]
	}
	return dst
}

// Unescape reads what String wrote. Every backslash must begin \\ or \xNN: a typing error must not silently name another
// key.
func Unescape(s string) ([]byte, error) {
	if strings.IndexByte(s, '\\') < 0 {
		return []byte(s), nil
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			out = append(out, s[i])
			continue
		}
		rest := s[i:]
		switch {
		case strings.HasPrefix(rest, `\\`):
			out = append(out, '\\')
			i++
		case len(rest) >= 4 && rest[1] == 'x' && nibble(rest[2]) >= 0 && nibble(rest[3]) >= 0:
			out = append(out, byte(nibble(rest[2])<<4|nibble(rest[3])))
			i += 3
		default:
			return nil, fmt.Errorf(`bad escape at byte %d of %q: only \\ and \xNN are known`, i, s)
		}
	}
	return out, nil
}

func nibble(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
