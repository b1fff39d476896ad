package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddClientFlags(fs)
	AddNodeFlags(fs)
	AddFileFlag(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultsAreValid(t *testing.T) {
	l, err := Load(flags(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ValidateClient(); err != nil {
		t.Error(err)
	}
	l.DataDir = "d"
	if err := l.ValidateNode(); err != nil {
		t.Error(err)
	}
	if len(l.Values) != len(settings) {
		t.Errorf("%d values for %d settings", len(l.Values), len(settings))
	}
	for _, v := range l.Values {
		if v.Origin != "default" {
			t.Errorf("%s comes from %s", v.Key, v.Origin)
		}
	}
	if l.Store.LogSegmentSize != 0 || l.Raft.ElectionTimeout != time.Second || l.Listen != "127.0.0.1:7100" {
		t.Errorf("defaults did not arrive: %+v", l.Config)
	}
}

// TestPrecedence sets the same keys in all places and takes the places away one by one.
func TestPrecedence(t *testing.T) {
	for _, name := range []string{"c.yaml", "c.toml"} {
		text := "listen: file:1\nname: file\njoin: [a:1, b:2]\nraft:\n  election-timeout: 3s\nstore:\n  log-segment-size: 8MiB\n"
		if name == "c.toml" {
			text = "listen = 'file:1'\nname = 'file'\njoin = ['a:1', 'b:2']\n[raft]\nelection-timeout = '3s'\n[store]\nlog-segment-size = '8MiB'\n"
		}
		file := writeFile(t, name, text)
		env := []string{"KILORAFT_LISTEN=env:2", "KILORAFT_RAFT_ELECTION_TIMEOUT=4s", "KILORAFT_LABELS=zone=a, rack=b"}
		l, err := Load(flags(t, "--config", file, "--listen", "flag:3"), env)
		if err != nil {
			t.Fatal(err)
		}
		if l.Listen != "flag:3" || l.Raft.ElectionTimeout != 4*time.Second || l.Name != "file" || l.Store.LogSegmentSize != 8<<20 {
			t.Errorf("%s: %+v", name, l.Config)
		}
		if !slices.Equal(l.Join, []string{"a:1", "b:2"}) || !slices.Equal(l.Labels, []string{"zone=a", "rack=b"}) {
			t.Errorf("%s: join %q labels %q", name, l.Join, l.Labels)
		}
		want := map[string]string{"listen": "flag --listen", "raft.election-timeout": "environment KILORAFT_RAFT_ELECTION_TIMEOUT",
			"name": "file " + file, "http": "default"}
		for _, v := range l.Values {
			if o, ok := want[v.Key]; ok && o != v.Origin {
				t.Errorf("%s: %s comes from %q, want %q", name, v.Key, v.Origin, o)
			}
		}
		if !l.Given("listen") || l.Given("http") {
			t.Error("Given is wrong")
		}
	}
}

func TestConfigFileFromEnvironment(t *testing.T) {
	file := writeFile(t, "c.yaml", "name: x\n")
	l, err := Load(flags(t), []string{"KILORAFT_CONFIG=" + file, "KILORAFT_PORT=tcp://x", "HOME=/"})
	if err != nil || l.Name != "x" {
		t.Fatal(err, l)
	}
	if !slices.Equal(l.Strange, []string{"KILORAFT_PORT"}) {
		t.Errorf("strange: %q", l.Strange)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		file, text string
		env        []string
		want       []string // all in the message
	}{
		{"c.yaml", "lissten: a:1\nraft:\n  elction-timeout: 1s\n", nil, []string{"unknown keys", "lissten", "raft.elction-timeout", "c.yaml"}},
		{"c.yaml", "listen:\n  host: a\n", nil, []string{"listen.host"}},
		{"c.yaml", "raft: 5\n", nil, []string{"unknown keys: raft"}},
		{"c.yaml", "timeout: 10\n", nil, []string{"timeout", "10 is no duration", "file"}},
		{"c.yaml", "sched:\n  lanes: many\n", nil, []string{"sched.lanes", "file"}},
		{"c.yaml", "name: [\n", nil, []string{"c.yaml"}},
		{"c.yaml", "labels:\n  zone: a\n", nil, []string{"labels.zone"}},
		{"c.json", "{}", nil, []string{".yaml"}},
		{"c.toml", "lissten = 'a'\n", nil, []string{"lissten"}},
		{"c.yaml", "", []string{"KILORAFT_TIMEOUT=soon"}, []string{"timeout", "KILORAFT_TIMEOUT", "soon"}},
		{"c.yaml", "", []string{"KILORAFT_STORE_LOG_SEGMENT_SIZE=huge"}, []string{"store.log-segment-size", "huge"}},
	} {
		_, err := Load(flags(t, "--config", writeFile(t, c.file, c.text)), c.env)
		if err == nil {
			t.Errorf("%s %q %q: accepted", c.file, c.text, c.env)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s %q %q: error %q does not say %q", c.file, c.text, c.env, err, w)
			}
		}
	}
	if _, err := Load(flags(t, "--config", "/nowhere/c.yaml"), nil); err == nil || !strings.Contains(err.Error(), "/nowhere/c.yaml") {
		t.Errorf("missing file: %v", err)
	}
}

func TestValidateNode(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"--listen=nonsense", "listen"}, {"--join=a:1,b", "join"}, {"--labels=zone", "labels"}, {"--log-level=loud", "log.level"},
		{"--log-format=xml", "log.format"}, {"--raft-election-timeout=100ms", "election"}, {"--store-log-segment-size=1", "segment"},
		{"--listen=0.0.0.0:1", "--insecure"}, {"--sched-lanes=-1", "lanes"}, {"--sched-inflight=-1", "inflight"}, {"--sched-inflight-size=1MiB", "inflight"}, {"--data-dir=", "data-dir"}, {"--http=x", "http"},
	} {
		l, err := Load(flags(t, "--data-dir=d", c.arg), nil)
		if err != nil {
			t.Errorf("%s: %v", c.arg, err)
			continue
		}
		if err := l.ValidateNode(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.arg, err, c.want)
		}
	}
	for _, ok := range []string{"--listen=localhost:1", "--listen=[::1]:1", "--http="} {
		l, err := Load(flags(t, "--data-dir=d", ok), nil)
		if err != nil || l.ValidateNode() != nil {
			t.Errorf("%s refused: %v", ok, err)
		}
	}
}

func TestByteSize(t *testing.T) {
	for s, want := range map[string]ByteSize{"0": 0, "4096": 4096, "64MiB": 64 << 20, "1.5 KiB": 1536, "10MB": 1e7, "7B": 7, "2GiB": 2 << 30} {
		if got, err := ParseByteSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "x", "-1", "1e30", "12 parsecs", "NaN", "99999999TiB"} {
		if got, err := ParseByteSize(s); err == nil {
			t.Errorf("%q accepted as %d", s, got)
		}
	}
	if s := ByteSize(64 << 20).String(); s != "64MiB" {
		t.Error(s)
	}
	if s := ByteSize(1000).String(); s != "1000" {
		t.Error(s)
	}
}

// TestPublic: what a debug bundle shows of the configuration has no secrets in it.
func TestPublic(t *testing.T) {
	l := &Loaded{Values: []Value{{Key: "redis-password", Value: "hunter2"}, {Key: "s3.secret-key", Value: "hunter3"}, {Key: "password-file", Value: "/etc/pw"},
		{Key: "listen", Value: "127.0.0.1:1"}, {Key: "token", Value: ""}}}
	got := string(l.Public())
	if strings.Contains(got, "hunter") || !strings.Contains(got, "/etc/pw") || !strings.Contains(got, "127.0.0.1:1") || strings.Count(got, "(secret)") != 2 {
		t.Error(got)
	}
	if l.Values[0].Value != "hunter2" {
		t.Error("the setting itself was changed")
	}
}
