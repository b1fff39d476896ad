package config

import (
	"flag"
	"os"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write docs/configuration.md anew")

// docs/configuration.md has a row for every setting.
func TestReference(t *testing.T) {
	const path = "../../docs/configuration.md"
	want := Reference()
	if *rewrite {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("docs/configuration.md is out of date (%v): go test ./internal/config -run TestReference -rewrite", err)
	}
}
