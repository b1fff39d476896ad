package resp

import "testing"

// FuzzNumbers reads anything as the numbers of commands, and asks the patterns of KEYS and SCAN.
func FuzzNumbers(f *testing.F) {
	for _, s := range []string{"1", "-9223372036854775808", "1e4932", "0x1p9", "+.5", "1e-4950", "[a-", `\`, "**a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, ok := parseFloat(b); ok && x.IsInf() {
			t.Fatalf("%q is infinite", b)
		}
		_, _ = parseInt(b)
		_ = parseSetOf(b)
	})
}

// parseSetOf reads b as the one option of SET.
func parseSetOf(b []byte) string {
	_, errText := parseSet("set", [][]byte{b, []byte("1")}, false)
	return errText
}
