package resp_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/kiloraft/kiloraft/internal/auth"
	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/transport"
)

// clientShards is how many shards the cluster of the tests with real clients has.
const clientShards = 1000

// needRedis skips a test unless KILORAFT_TEST_REDIS=1 asks for the programs of Debian's redis-tools and redis-server, as make test-full does.
func needRedis(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("KILORAFT_TEST_REDIS") != "1" {
		t.Skip("KILORAFT_TEST_REDIS=1 is not set: make test-full sets it; .ci/run says which packages it needs")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v: .ci/run says which packages are needed", err)
		}
	}
}

func tool(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "NODE_PATH=/usr/share/nodejs")
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, b)
	}
	return string(b)
}

func portOf(t *testing.T, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestClients lets real clients talk to three nodes with 1,000 shards. With -record their transcripts are written anew.
func TestClients(t *testing.T) {
	needRedis(t, "redis-cli", "redis-benchmark", "node", "ruby")
	_, addrs := cluster(t, 3, clientShards)
	recorded := func(i int, name, about string, f func(t *testing.T, addr string)) {
		t.Run(name, func(t *testing.T) {
			r := record(t, addrs[i])
			f(t, r.l.Addr().String())
			r.end(name, about)
		})
	}
	recorded(0, "redis-cli", "redis-cli 7.0 of Debian 12", func(t *testing.T, addr string) { redisCLI(t, "-p", portOf(t, addr)) })
	t.Run("redis-cli tools", func(t *testing.T) { redisCLITools(t, "-p", portOf(t, addrs[1])) })
	t.Run("redis-benchmark", func(t *testing.T) { redisBenchmark(t, "-p", portOf(t, addrs[1])) })
	recorded(1, "go-redis", "go-redis 9.23", func(t *testing.T, addr string) { goRedis(t, &goredis.Options{Addr: addr, PoolSize: 1}) })
	recorded(2, "rueidis", "rueidis 1.0.79", func(t *testing.T, addr string) {
		rueidisClient(t, rueidis.ClientOption{InitAddress: []string{addr}, PipelineMultiplex: -1})
	})
	for i, g := range guides {
		recorded(i, g.client, g.about, func(t *testing.T, addr string) {
			g.run(t, strings.Replace(g.program(t), "6379", portOf(t, addr), 1))
		})
	}
}

func redisCLI(t *testing.T, args ...string) {
	t.Helper()
	script := "SET cli%[1]s:a 1\nINCR cli%[1]s:a\nMGET cli%[1]s:a cli%[1]s:b\nMULTI\nINCR cli%[1]s:a\nTTL cli%[1]s:a\nEXEC\nLPUSH cli%[1]s:l 1\n"
	for _, proto := range []string{"-2", "-3"} {
		got := tool(t, fmt.Sprintf(script, proto), "redis-cli", slices.Concat(args, []string{"--no-raw", proto})...)
		for _, want := range []string{"OK", "(integer) 2", "2) (nil)", "QUEUED", "1) (integer) 3", "2) (integer) -1", "(error) ERR unknown command 'LPUSH'"} {
			if !strings.Contains(got, want) {
				t.Errorf("redis-cli %s: no %q in\n%s", proto, want, got)
			}
		}
	}
}

// redisCLITools runs what redis-cli can do besides typing, on the keys of redisCLI.
func redisCLITools(t *testing.T, args ...string) {
	t.Helper()
	cli := func(stdin string, more ...string) string {
		return tool(t, stdin, "redis-cli", slices.Concat(args, more)...)
	}
	if got := cli("", "--scan", "--pattern", "cli-2:*"); got != "cli-2:a\n" {
		t.Errorf("redis-cli --scan: %q", got)
	}
	if got := cli("", "--bigkeys"); !strings.Contains(got, "Biggest string found") {
		t.Errorf("redis-cli --bigkeys: %s", got)
	}
	if got := cli(encode("SET", "pipe:p", "1")+encode("GET", "pipe:p"), "--pipe"); !strings.Contains(got, "errors: 0, replies: 2") {
		t.Errorf("redis-cli --pipe: %s", got)
	}
}

// redisBenchmark runs the tests that a store of strings can run, with pipelining and without, and none may fail.
func redisBenchmark(t *testing.T, args ...string) {
	t.Helper()
	for _, extra := range [][]string{{"-P", "16", "-c", "50", "-r", "10000", "-n", "20000"}, {"-P", "1", "-c", "5", "-n", "1000"}} {
		got := tool(t, "", "redis-benchmark", slices.Concat(args, []string{"-t", "set,get,incr,mset,ping", "-q"}, extra)...)
		if n := strings.Count(got, "requests per second"); n != 6 || strings.Contains(strings.ToLower(got), "error") {
			t.Errorf("redis-benchmark %v: %s", extra, got)
		}
		for _, line := range strings.FieldsFunc(got, func(r rune) bool { return r == '\n' || r == '\r' }) {
			if strings.Contains(line, "requests per second") {
				t.Log(extra, line)
			}
		}
	}
}

// guide is a program of docs/clients.md, which runs as it stands there but for the port. They need the packages python3-redis, node-redis
// and ruby-redis of Debian.
type guide struct {
	client, about, language, file string
	command                       []string
}

var guides = []guide{
	{"redis-py", "redis-py 4.3 of Debian 12, the program of docs/clients.md", "python", "a.py", []string{"/usr/bin/python3"}},
	{"node-redis", "node-redis 4.5 of Debian 12, the program of docs/clients.md", "javascript", "a.js", []string{"node"}},
	{"ruby-redis", "ruby-redis 4.8 of Debian 12, the program of docs/clients.md", "ruby", "a.rb", []string{"ruby"}},
}

func (g *guide) program(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, ok := strings.Cut(string(page), "\n```"+g.language+"\n")
	program, _, end := strings.Cut(program, "\n```\n")
	if !ok || !end || !strings.Contains(program, "6379") {
		t.Fatalf("docs/clients.md has no program in %s", g.language)
	}
	return program
}

func (g *guide) run(t *testing.T, program string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), g.file)
	if err := os.WriteFile(path, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := tool(t, "", g.command[0], append(g.command[1:], path)...); out != "ok\n" {
		t.Errorf("%s:\n%s", g.language, out)
	}
}

// TestGoClientsOverTLS: the clients that need no other program, with certificates and passwords.
func TestGoClientsOverTLS(t *testing.T) {
	s := startSecured(t, 30)
	s.goClients(t)
}

// TestClientsOverTLS is TestClients with certificates and passwords.
func TestClientsOverTLS(t *testing.T) {
	needRedis(t, "redis-cli", "redis-benchmark", "node", "ruby")
	s := startSecured(t, clientShards)
	t.Run("go", s.goClients)
	ca := filepath.Join(s.certs.Dir, "ca.crt")
	args := []string{"-p", portOf(t, s.addrs[0]), "--tls", "--cacert", ca, "--user", "app", "-a", secret}
	t.Run("redis-cli", func(t *testing.T) {
		redisCLI(t, append(args, "--no-auth-warning")...)
		redisCLITools(t, append(args, "--no-auth-warning")...)
	})
	t.Run("redis-benchmark", func(t *testing.T) {
		got := tool(t, "", "redis-benchmark", append(args, "-t", "set,get,incr,mset,ping", "-q", "-P", "16", "-c", "20", "-n", "2000")...)
		if n := strings.Count(got, "requests per second"); n != 6 || strings.Contains(strings.ToLower(got), "error") {
			t.Error(got)
		}
	})
	for i, change := range [][]string{
		{"port=6379", `port=6379, ssl=True, ssl_ca_certs="` + ca + `", username="app", password="` + secret + `"`},
		{"port: 6379 }", `port: 6379, tls: true, ca: require("fs").readFileSync("` + ca + `") }, username: "app", password: "` + secret + `"`},
		{"port: 6379", `port: 6379, ssl: true, ssl_params: { ca_file: "` + ca + `" }, username: "app", password: "` + secret + `"`},
	} {
		t.Run(guides[i].client, func(t *testing.T) {
			program := strings.Replace(guides[i].program(t), change[0], change[1], 1)
			guides[i].run(t, strings.Replace(program, "6379", portOf(t, s.addrs[i]), 1))
		})
	}
}

const secret = "password-of-app"

// secured is a cluster with certificates and a user "app".
type secured struct {
	certs *nodetest.Certs
	addrs []string
}

func startSecured(t *testing.T, shards int) *secured {
	t.Helper()
	s := &secured{certs: nodetest.NewCerts(t)}
	c := nodetest.Start(t, 3, nodetest.Options{ElectionTimeout: time.Second, Config: func(_ int, cfg *node.Config) {
		s.certs.Node(cfg)
		cfg.Redis, cfg.RedisTimeout = "127.0.0.1:0", time.Minute
	}})
	c.Init(0, shards, 3)
	for i := range 3 {
		s.addrs = append(s.addrs, c.Node(i).RedisAddr())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	root, err := transport.DialClient(ctx, c.Addrs()[0], transport.ClientConfig{TLS: s.certs.Client("root")})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	q := api.UserRequest{Action: api.UserAdd, Name: "app", Password: []byte(secret), Grants: []auth.Grant{{Role: auth.RoleWrite}}}
	deadline, _ := ctx.Deadline()
	done := make(chan error, 1)
	root.Go(uint16(api.MethodUserSet), deadline, 0, q.Append(nil), func(_ []byte, err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *secured) goClients(t *testing.T) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.certs.CA()) {
		t.Fatal("no authority")
	}
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	goRedis(t, &goredis.Options{Addr: s.addrs[1], TLSConfig: config, Username: "app", Password: secret})
	rueidisClient(t, rueidis.ClientOption{InitAddress: s.addrs[2:], TLSConfig: config, Username: "app", Password: secret})
	refused := func(opt goredis.Options, want ...string) {
		t.Helper()
		opt.Addr, opt.TLSConfig, opt.MaxRetries = s.addrs[1], config, -1
		c := goredis.NewClient(&opt)
		defer c.Close()
		err := c.Set(t.Context(), "a", "b", 0).Err()
		if err == nil || !slices.ContainsFunc(want, func(w string) bool { return strings.HasPrefix(err.Error(), w) }) {
			t.Errorf("user %q, password %q: %v, want %s", opt.Username, opt.Password, err, want)
		}
	}
	refused(goredis.Options{}, "NOAUTH")
	refused(goredis.Options{Username: "app", Password: "wrong"}, "WRONGPASS", "TRYAGAIN too many wrong passwords") // it tries HELLO, then AUTH
}
