package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/internal/client"
	"github.com/kiloraft/kiloraft/internal/client/clienttest"
	"github.com/kiloraft/kiloraft/internal/config"
	"github.com/kiloraft/kiloraft/shard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell runs commands against a cluster in memory.
type shell struct {
	t     *testing.T
	c     *clienttest.Cluster
	env   []string
	stdin string
}

func newShell(t *testing.T) *shell { return &shell{t: t, c: clienttest.New()} }

func (s *shell) run(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	code = Run(s.t.Context(), Env{Args: args, Environ: s.env, Stdin: strings.NewReader(s.stdin), Stdout: &out, Stderr: &errs, Version: "test",
		Dial: func(context.Context, *config.Config) (client.Cluster, error) { return s.c, nil }})
	return code, out.String(), errs.String()
}

// want runs a command line (split at blanks) and checks its exit code; it returns stdout.
func (s *shell) want(code int, line string) string {
	s.t.Helper()
	got, stdout, stderr := s.run(strings.Fields(line)...)
	if got != code {
		s.t.Errorf("%s: exit %d, want %d\n%s%s", line, got, code, stdout, stderr)
	}
	if code != 0 && code != 1 && code != 4 && stdout != "" {
		s.t.Errorf("%s: failed, but printed data: %q", line, stdout)
	}
	return stdout
}

func (s *shell) json(code int, line string, into any) {
	s.t.Helper()
	out := s.want(code, line+" -o json")
	dec := json.NewDecoder(strings.NewReader(out))
	if err := dec.Decode(into); err != nil {
		s.t.Fatalf("%s: %v in %q", line, err, out)
	}
	if dec.More() {
		s.t.Errorf("%s: more than one JSON document: %q", line, out)
	}
}

func TestKeyValueCommands(t *testing.T) {
	s := newShell(t)
	s.want(3, "kv get a")
	s.want(0, "kv put a hello")
	if got := s.want(0, "kv get a"); got != "hello" {
		t.Errorf("raw value %q", got)
	}
	var item map[string]any
	s.json(0, "kv get a", &item)
	if item["key"] != "a" || item["value"] != "hello" || item["version"].(float64) < 1 {
		t.Errorf("%v", item)
	}
	s.stdin = "from\nstdin\x00\xff"
	s.want(0, `kv put \x00k\\ -`)
	if got := s.want(0, `kv get \x00k\\`); got != s.stdin {
		t.Errorf("raw value %q", got)
	}
	s.json(0, `kv get \x00k\\`, &item)
	if item["key"] != `\x00k\\` || item["value"] != `from\x0astdin\x00\xff` {
		t.Errorf("%v", item)
	}
	s.want(0, "kv del a nothing")
	s.want(3, "kv get a")
	s.want(0, "kv del a")
	s.want(2, `kv get \q`)
	s.want(0, `kv put v a\q`) // values are never unescaped
	if got := s.want(0, "kv get v"); got != `a\q` {
		t.Errorf("%q", got)
	}
}

func TestCompareAndSwap(t *testing.T) {
	s := newShell(t)
	s.want(1, "kv cas k --expect v --value w")
	s.want(0, "kv cas k --absent --value v")
	s.want(1, "kv cas k --absent --value x")
	s.want(0, "kv cas k --expect v --value w")
	s.want(1, "kv cas k --expect v --value x")
	if got := s.want(0, "kv get k"); got != "w" {
		t.Errorf("%q", got)
	}
	for _, bad := range []string{"kv cas k --value w", "kv cas k --expect v", "kv cas k --absent --expect v --value w", "kv cas --absent --value x"} {
		s.want(2, bad)
	}
	if code, _, _ := s.run("kv", "put", "empty", ""); code != 0 {
		t.Error(code)
	}
	if code, _, _ := s.run("kv", "cas", "empty", "--expect", "", "--value", "full"); code != 0 {
		t.Errorf("an empty value is a value: exit %d", code)
	}
}

func TestAdd(t *testing.T) {
	s := newShell(t)
	if got := s.want(0, "kv add n 5"); got != "5\n" {
		t.Errorf("%q", got)
	}
	if got := s.want(0, "kv add n -7"); got != "-2\n" {
		t.Errorf("%q", got)
	}
	var v struct{ Value int64 }
	s.json(0, "kv add n -1", &v)
	if v.Value != -3 {
		t.Error(v)
	}
	s.want(2, "kv add n x")
	s.want(2, "kv add n")
	s.want(0, "kv put word hello")
	s.want(1, "kv add word 1")
}

func TestScan(t *testing.T) {
	s := newShell(t)
	if got := s.want(0, "kv scan"); got != "" {
		t.Errorf("%q", got)
	}
	var list []struct {
		Key   string
		Value *string
	}
	if got := s.want(0, "kv scan -o json"); got != "[]\n" {
		t.Errorf("%q", got)
	}
	for _, k := range []string{"a1", "a2", "b1", `t\x09b`} {
		s.want(0, "kv put "+k+" v")
	}
	for line, want := range map[string]string{
		"kv scan":                      "a1\tv\na2\tv\nb1\tv\nt\\x09b\tv\n",
		"kv scan --prefix a":           "a1\tv\na2\tv\n",
		"kv scan --start a2 --end t":   "a2\tv\nb1\tv\n",
		"kv scan --limit 1":            "a1\tv\n",
		"kv scan --reverse --limit 2":  "t\\x09b\tv\nb1\tv\n",
		"kv scan --keys-only --end b":  "a1\na2\n",
		`kv scan --prefix t\x09`:       "t\\x09b\tv\n",
		"kv scan --prefix a --reverse": "a2\tv\na1\tv\n",
	} {
		if got := s.want(0, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	s.json(0, "kv scan --keys-only --limit 2", &list)
	if len(list) != 2 || list[0].Key != "a1" || list[0].Value != nil {
		t.Errorf("%+v", list)
	}
	s.want(2, "kv scan --prefix a --start b")
	s.want(2, "kv scan --limit -1")
	s.want(2, `kv scan --start \x`)
}

func TestClusterCommands(t *testing.T) {
	s := newShell(t)
	s.want(4, "cluster status")
	s.want(4, "shard locate k")
	s.want(4, "cluster init --replicas 5")
	s.want(2, "cluster init --shards 0")
	var res struct{ Already bool }
	s.json(0, "cluster init --shards 10", &res)
	if res.Already {
		t.Error("already")
	}
	s.json(0, "cluster init --shards 10", &res)
	if !res.Already {
		t.Error("not already")
	}
	var st struct {
		ClusterID string `json:"cluster_id"`
		Nodes     struct{ Total, Up int }
		Shards    struct {
			Total       int
			WithLeader  int `json:"with_leader"`
			Under       int `json:"under_replicated"`
			Unavailable int
		}
		Replicas   int
		Operations struct{ Running int }
		Problems   []string
	}
	s.json(0, "cluster status", &st)
	if st.ClusterID == "" || st.Nodes.Up != 3 || st.Shards.Total != 10 || st.Shards.WithLeader != 10 || st.Replicas != 30 || st.Problems == nil {
		t.Errorf("%+v", st)
	}
	s.c.LoseLeader(3)
	s.json(4, "cluster status", &st)
	if st.Shards.Unavailable != 1 || len(st.Problems) != 1 {
		t.Errorf("%+v", st)
	}
}

func TestNodeAndShardCommands(t *testing.T) {
	s := newShell(t)
	s.want(0, "cluster init --shards 4")
	var nodes []map[string]any
	s.json(0, "node ls", &nodes)
	if len(nodes) != 3 {
		t.Fatal(nodes)
	}
	for _, k := range []string{"id", "name", "address", "http", "state", "replicas", "leaders", "labels"} {
		if _, ok := nodes[0][k]; !ok {
			t.Errorf("no %s in %v", k, nodes[0])
		}
	}
	var one map[string]any
	s.json(0, "node show 2", &one)
	if one["id"].(float64) != 2 {
		t.Error(one)
	}
	s.want(3, "node show 9")
	s.want(2, "node show x")
	var shards []map[string]any
	s.json(0, "shard ls", &shards)
	if len(shards) != 4 || shards[0]["start"] != "" || shards[0]["end"] != `@\x00` || shards[3]["end"] != "" {
		t.Fatal(shards)
	}
	for _, k := range []string{"id", "start", "end", "version", "conf_version", "leader", "replicas", "keys", "bytes"} {
		if _, ok := shards[0][k]; !ok {
			t.Errorf("no %s in %v", k, shards[0])
		}
	}
	rep := shards[0]["replicas"].([]any)[0].(map[string]any)
	if rep["node"].(float64) != 1 || rep["replica"].(float64) != 1 || rep["role"] != "voter" {
		t.Error(rep)
	}
	s.json(0, "shard ls --limit 1", &shards)
	if len(shards) != 1 {
		t.Error(len(shards))
	}
	s.json(0, `shard locate \x81`, &one)
	if one["id"].(float64) != 4 {
		t.Error(one)
	}
	s.json(0, "shard show 5", &one)
	s.want(3, "shard show 77")
	s.want(0, "shard transfer 5 --to 3")
	s.json(0, "shard show 5", &one)
	if one["leader"].(float64) != 3 {
		t.Error(one)
	}
	s.want(2, "shard transfer 5")
	s.want(1, "shard transfer 5 --to 9")
	s.want(3, "shard transfer 99 --to 1")
	var sums []map[string]any
	s.json(0, "shard checksum 5", &sums)
	if len(sums) != 3 || sums[0]["checksum"] != "0000000000c0ffee" {
		t.Error(sums)
	}
}

// TestErrorsBecomeExitCodes holds the table of CLI.md.
func TestErrorsBecomeExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, 0}, {client.ErrCondition, 1}, {client.ErrInvalid, 1}, {fmt.Errorf("other"), 1}, {client.ErrNotFound, 3}, {client.ErrUnavailable, 4},
		{context.DeadlineExceeded, 4}, {client.ErrUnknown, 5}, {fmt.Errorf("%w: %w", client.ErrUnknown, context.DeadlineExceeded), 5},
	} {
		s := newShell(t)
		s.c.Fail = func(string, []byte) error {
			if c.err == nil {
				return nil
			}
			return fmt.Errorf("wrapped: %w", c.err)
		}
		s.want(c.code, "kv put k v")
	}
}

func TestUsageErrors(t *testing.T) {
	s := newShell(t)
	for _, line := range []string{
		"frob", "kv frob", "kv get", "kv get a b", "kv put a", "--frob", "kv get a --frob", "serve", "serve x", "serve --data-dir", "cluster frob",
		"kv get a -o xml", "kv get a --timeout soon", "kv get a --timeout 0s", "kv get a --server nonsense", "bench", "bench frob", "bench write --shards x",
		"bench write --inflight 0", "kv import", "kv import --format xml -", "kv import --inflight 0 -", "kv export --format dir", "demo --nodes 99", "demo --shards 0",
		"demo --once --nodes 2", "serve --data-dir d --listen 0.0.0.0:7100", "config print --config /nowhere.yaml", "version x", "shard ls --limit -1",
	} {
		code, stdout, stderr := s.run(strings.Fields(line)...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "kiloraft: ") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", line, code, stdout, stderr)
		}
	}
	if _, _, stderr := s.run("kv", "get", "a", "--frob"); !strings.Contains(stderr, "--frob") {
		t.Errorf("the flag is not named: %q", stderr)
	}
}

func TestUnknownConfigKeyIsNamed(t *testing.T) {
	s := newShell(t)
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("lissten: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"config", "print", "--config", file}, {"serve", "--data-dir", "d", "--config", file}, {"kv", "get", "a", "--config", file}} {
		if code, _, stderr := s.run(args...); code != 2 || !strings.Contains(stderr, "lissten") {
			t.Errorf("%v: exit %d, %q", args, code, stderr)
		}
	}
}

func TestConfigPrint(t *testing.T) {
	s := newShell(t)
	s.env = []string{"KILORAFT_LISTEN=127.0.0.1:7200", "KILORAFT_WHATEVER=1"}
	code, stdout, stderr := s.run("config", "print", "-o", "json", "--name", "x")
	if code != 0 || !strings.Contains(stderr, "KILORAFT_WHATEVER") {
		t.Fatalf("exit %d, %q", code, stderr)
	}
	var values []struct {
		Key, Origin string
		Value       any
	}
	if err := json.Unmarshal([]byte(stdout), &values); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range values {
		got[v.Key] = fmt.Sprint(v.Value, " ", v.Origin)
	}
	for k, want := range map[string]string{"listen": "127.0.0.1:7200 environment KILORAFT_LISTEN", "name": "x flag --name", "raft.election-timeout": "1s default"} {
		if got[k] != want {
			t.Errorf("%s: %q, want %q", k, got[k], want)
		}
	}
}

func TestImportExport(t *testing.T) {
	s := newShell(t)
	dir := t.TempDir()
	s.stdin = "a\t1\nbad line\nb\t2\n"
	code, stdout, stderr := s.run("kv", "import", "-", "-o", "json")
	if code != 1 || !strings.Contains(stderr, "line 2") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	var r struct {
		Keys          int
		RejectedTotal int `json:"rejected_total"`
	}
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || r.Keys != 2 || r.RejectedTotal != 1 {
		t.Errorf("%v %q", err, stdout)
	}
	if got := s.want(0, "kv export"); got != "a\t1\nb\t2\n" {
		t.Errorf("%q", got)
	}
	file := filepath.Join(dir, "x.jsonl")
	s.want(0, "kv export "+file)
	s.c = clienttest.New()
	s.want(0, "kv import "+file)
	if got := s.want(0, "kv export --format tsv"); got != "a\t1\nb\t2\n" {
		t.Errorf("%q", got)
	}
	s.want(0, "kv put ../evil x")
	out := filepath.Join(dir, "out")
	s.want(1, "kv export --format dir "+out)
	if b, err := os.ReadFile(filepath.Join(out, "a")); err != nil || string(b) != "1" {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "evil")); !os.IsNotExist(err) {
		t.Error("wrote outside")
	}
	s.want(1, "kv import "+filepath.Join(dir, "nothing"))
	s.c.Fail = func(string, []byte) error { return client.ErrUnavailable }
	s.want(4, "kv import "+file)
}

func TestBench(t *testing.T) {
	s := newShell(t)
	s.want(0, "cluster init --shards 10")
	var res map[string]any
	s.json(0, "bench mixed --duration 20ms --keys 10 --inflight 2", &res)
	if res["ops"].(float64) == 0 || res["settings"].(map[string]any)["workload"] != "mixed" {
		t.Error(res)
	}
	s.want(0, "bench ycsb-e --duration 20ms --keys 10 --rate 100")
	s.c.Fail = func(op string, _ []byte) error {
		if op == "put" {
			return client.ErrUnavailable
		}
		return nil
	}
	s.want(4, "bench write --duration 10ms")
}

func TestHelpAndCompletion(t *testing.T) {
	s := newShell(t)
	for _, line := range []string{"", "help", "help kv put", "kv", "kv --help", "completion bash", "completion zsh", "completion fish", "completion powershell", "--version", "version"} {
		if got := s.want(0, line); got == "" {
			t.Errorf("%q prints nothing", line)
		}
	}
	if got := s.want(0, "kv scan --help"); strings.Contains(got, "--reverse[") || !strings.Contains(got, "--reverse ") {
		t.Errorf("a switch is not shown by its name:\n%s", got)
	}
	if got := s.want(0, "serve --help"); !strings.Contains(got, "--auto-balance[=true|false] ") {
		t.Errorf("how to turn off what is on is not shown:\n%s", got)
	}
}

// Shells complete the ids of nodes, shards and operations; where there is no cluster, nothing.
func TestCompletesIDs(t *testing.T) {
	s := newShell(t)
	if got := s.completes("shard show"); got != ":36\n" {
		t.Errorf("of no cluster: %q", got)
	}
	s.want(0, "cluster init --shards 4")
	for line, want := range map[string]string{"node drain": "1\t", "shard show": "2\t", "shard merge": "2\t", "shard merge 2": "2\t", "shard move 2 --to": "1\t", "shard transfer --to": "1\t"} {
		got := s.completes(line)
		if !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "\n:36\n") {
			t.Errorf("%s: %q", line, got)
		}
	}
	for _, line := range []string{"shard show 2", "node ls", "shard locate", "op ls"} {
		if got := s.completes(line); got != ":36\n" {
			t.Errorf("%s: %q", line, got)
		}
	}
}

// A mistake in what was typed says so (exit 2) before a node is asked, and how it is meant.
func TestMistakesSayWhatIsWanted(t *testing.T) {
	s := newShell(t)
	long := strings.Repeat("k", 4097)
	for _, args := range [][]string{
		{"kv", "get", ""}, {"kv", "put", "", "v"}, {"kv", "del", "a", ""}, {"kv", "add", "", "1"}, {"kv", "cas", "", "--absent", "--value", "v"},
		{"kv", "get", long}, {"kv", "put", long, "v"}, {"kv", "del", long},
		{"bench", "write", "--value-size", "9000000"}, {"kv", "get", "k", "--server", "127.0.0.1:70000"},
		{"kv", "get", "k", "--server", "127.0.0.1:99999999999999999999"},
	} {
		if code, _, stderr := s.run(args...); code != 2 || !strings.Contains(stderr, "See kiloraft "+args[0]) {
			t.Errorf("%.60q: exit %d: %s", args, code, stderr)
		}
	}
	s.want(0, "cluster init --shards 2")
	if code, _, _ := s.run("shard", "locate", ""); code != 0 {
		t.Error("the lowest end of the key space:", code)
	}
	if _, _, stderr := s.run("kv", "get"); !strings.Contains(stderr, "Usage: kiloraft kv get KEY") {
		t.Error(stderr)
	}
}

// What a cluster cannot do is told in words of people.
func TestErrorsSayWhatToDo(t *testing.T) {
	for err, want := range map[error]string{
		shard.ErrNotInitialized:                           "kiloraft cluster init",
		fmt.Errorf("key k: %w", context.DeadlineExceeded): "key k: no answer in time",
	} {
		var errs bytes.Buffer
		a := &app{env: Env{Stderr: &errs}}
		a.explain(a.root(), err, exitCode(err))
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%v: %q", err, errs.String())
		}
	}
	v := verified{}
	v.problem("state", errors.New("state is corrupt: reading the state panicked: page 87\ngoroutine 1 [running]:\nmain.main()"))
	if len(v.Problems) != 1 {
		t.Error(v.Problems)
	}
}

// completes is what a shell asks when Tab is pressed behind a blank.
func (s *shell) completes(line string) string {
	s.t.Helper()
	code, out, errs := s.run(append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
	if code != 0 {
		s.t.Errorf("completing %q: exit %d\n%s", line, code, errs)
	}
	return out
}
