package config

import (
	"flag"
	"os"
	"regexp"
	"testing"

	"github.com/spf13/pflag"
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

// What packages set is a setting.
func TestPackages(t *testing.T) {
	text, err := os.ReadFile("../../deploy/kubernetes/kiloraft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, s := range settings {
		known[EnvName(s.key)] = true
	}
	names := regexp.MustCompile(`name: (KILORAFT_[A-Z_]+)`).FindAllStringSubmatch(string(text), -1)
	for _, m := range names {
		if !known[m[1]] {
			t.Errorf("deploy/kubernetes/kiloraft.yaml: no setting is called %s", m[1])
		}
	}
	if len(names) < 5 {
		t.Errorf("only %d settings found", len(names))
	}
	fs := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	AddClientFlags(fs)
	AddNodeFlags(fs)
	AddFileFlag(fs)
	if err := fs.Parse([]string{"--config", "../../deploy/systemd/kiloraft.yaml"}); err != nil {
		t.Fatal(err)
	}
	l, err := Load(fs, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ValidateNode(); err != nil || l.DataDir != "/var/lib/kiloraft" {
		t.Errorf("deploy/systemd/kiloraft.yaml: %v, %+v", err, l.Config)
	}
}
