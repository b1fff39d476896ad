package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
)

// FuzzFile reads anything as a configuration file: a configuration or an error.
func FuzzFile(f *testing.F) {
	f.Add([]byte("raft:\n  election-timeout: 2s\n"), false)
	f.Add([]byte("[raft]\nelection-timeout = \"2s\"\n"), true)
	f.Add([]byte("a: &a [*a]\n"), false)
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"), false)
	f.Add([]byte("store:\n  log-segment-size: 99999999999999999999GiB\n"), false)
	path := filepath.Join(f.TempDir(), "c")
	f.Fuzz(func(t *testing.T, b []byte, toml bool) {
		name := path + ".yaml"
		if toml {
			name = path + ".toml"
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		fs := pflag.NewFlagSet("fuzz", pflag.ContinueOnError)
		AddNodeFlags(fs)
		AddClientFlags(fs)
		AddFileFlag(fs)
		if err := fs.Set("config", name); err != nil {
			t.Fatal(err)
		}
		if l, err := Load(fs, nil); err == nil {
			_ = l.Public()
		}
	})
}

// FuzzByteSize reads anything as a size.
func FuzzByteSize(f *testing.F) {
	for _, s := range []string{"1MiB", "0", "1.5GiB", "-1", "18446744073709551616", "1e300KiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseByteSize(s)
		if err != nil {
			return
		}
		if again, err := ParseByteSize(n.String()); err != nil || again != n {
			t.Fatalf("%q is %d, written %q and read %d, %v", s, n, n.String(), again, err)
		}
	})
}
