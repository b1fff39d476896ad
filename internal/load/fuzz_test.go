package load

import (
	"bytes"
	"testing"
)

// FuzzLines reads anything as a line of an import; what is accepted is written and read back the same.
func FuzzLines(f *testing.F) {
	f.Add([]byte("key\tvalue"))
	f.Add([]byte(`a\x00\t	\\`))
	f.Add([]byte(`{"key":"a","value":"b"}`))
	f.Add([]byte(`{"key64":"AA==","value64":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, v, err := parseTSV(bytes.Clone(b)); err == nil {
			line := bytes.TrimSuffix(appendTSV(nil, k, v), []byte("\n"))
			if k2, v2, err := parseTSV(line); err != nil || !bytes.Equal(k, k2) || !bytes.Equal(v, v2) {
				t.Fatalf("%q: %q=%q and %q=%q, %v", b, k, v, k2, v2, err)
			}
		}
		if k, v, err := parseJSONL(bytes.Clone(b)); err == nil {
			line := bytes.TrimSuffix(appendJSONL(nil, k, v), []byte("\n"))
			if k2, v2, err := parseJSONL(line); err != nil || !bytes.Equal(k, k2) || !bytes.Equal(v, v2) {
				t.Fatalf("%q: %q=%q and %q=%q, %v", b, k, v, k2, v2, err)
			}
		}
	})
}
