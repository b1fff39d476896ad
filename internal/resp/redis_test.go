package resp_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

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
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, b)
	}
	return string(b)
}

func TestTools(t *testing.T) {
	needRedis(t, "redis-cli", "redis-benchmark")
	_, addrs := cluster(t, 3, 30)
	_, port, err := net.SplitHostPort(addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	script := "SET cli:a 1\nINCR cli:a\nMGET cli:a cli:b\nMULTI\nINCR cli:a\nTTL cli:a\nEXEC\nLPUSH cli:l 1\n"
	for _, proto := range []string{"-2", "-3"} {
		got := tool(t, script, "redis-cli", "--no-raw", "-p", port, proto)
		for _, want := range []string{"OK", "(integer) 2", "2) (nil)", "QUEUED", "1) (integer) 3", "2) (integer) -1", "(error) ERR unknown command 'LPUSH'"} {
			if !strings.Contains(got, want) {
				t.Errorf("redis-cli %s: no %q in\n%s", proto, want, got)
			}
		}
	}
	if got := tool(t, "", "redis-cli", "-p", port, "--scan", "--pattern", "cli:*"); got != "cli:a\n" {
		t.Errorf("redis-cli --scan: %q", got)
	}
	if got := tool(t, "", "redis-cli", "-p", port, "--bigkeys"); !strings.Contains(got, "Biggest string found") {
		t.Errorf("redis-cli --bigkeys: %s", got)
	}
	if got := tool(t, encode("SET", "cli:p", "1")+encode("GET", "cli:p"), "redis-cli", "-p", port, "--pipe"); !strings.Contains(got, "errors: 0, replies: 2") {
		t.Errorf("redis-cli --pipe: %s", got)
	}
	for _, extra := range [][]string{{"-r", "1000", "-n", "3000"}, {"-n", "1000", "-c", "5"}} {
		got := tool(t, "", "redis-benchmark", append([]string{"-p", port, "-t", "set,get,incr,mset,ping", "-P", "16", "-q"}, extra...)...)
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

// startRedis starts a real server that ends with the test.
func startRedis(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	_ = l.Close()
	cmd := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return addr
		}
		if time.Now().After(end) {
			t.Fatal("redis-server does not start")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestDifferential gives the same random commands to this and to a real Redis server, and compares the replies.
// KILORAFT_TEST_REDIS_COMMANDS says how many, KILORAFT_TEST_SEED repeats a run.
func TestDifferential(t *testing.T) {
	needRedis(t, "redis-server")
	n, seed := 20_000, uint64(time.Now().UnixNano())
	if s := os.Getenv("KILORAFT_TEST_REDIS_COMMANDS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	if s := os.Getenv("KILORAFT_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("KILORAFT_TEST_SEED=%d", seed)
	_, addrs := cluster(t, 1, 4)
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	ours, theirs := dial(t, addrs[0]), dial(t, startRedis(t))
	const batch = 50
	differences := 0
	for done := 0; done < n; done += batch {
		var list [][]string
		var b strings.Builder
		for len(list) < batch {
			for _, c := range g.commands() {
				list = append(list, c)
				b.WriteString(encode(c...))
			}
		}
		ours.send(b.String())
		theirs.send(b.String())
		for _, c := range list {
			a, r := ours.read(), theirs.read()
			if !same(c, a, r) {
				if differences++; differences > 20 {
					t.FailNow()
				}
				t.Errorf("%q: %s, Redis: %s", c, a, r)
			}
		}
	}
}

// same tells whether two replies are the same, but for clocks.
func same(c []string, a, b string) bool {
	if a == b {
		return true
	}
	name := strings.ToUpper(c[0])
	if strings.Contains(name, "TTL") || strings.Contains(name, "EXPIRETIME") {
		x, err1 := strconv.ParseInt(strings.TrimPrefix(a, ":"), 10, 64)
		y, err2 := strconv.ParseInt(strings.TrimPrefix(b, ":"), 10, 64)
		d := x - y
		limit := int64(1)
		if name[0] == 'P' {
			limit = 2000
		}
		return err1 == nil && err2 == nil && x > 0 && y > 0 && d >= -limit && d <= limit
	}
	return false
}

type generator struct{ r *rand.Rand }

func (g generator) pick(list ...string) string { return list[g.r.IntN(len(list))] }

func (g generator) key() string { return fmt.Sprintf("k%d", g.r.IntN(12)) }

func (g generator) value() string {
	switch g.r.IntN(8) {
	case 0:
		return g.pick("", "abc", "Hello World", "+5", "007", "-0", " 1", "1 ", "1.5", "-2.25", "1e3", "nan", "\x00\xff\r\n")
	case 1:
		return g.pick("9223372036854775807", "-9223372036854775808", "9223372036854775808", "9223372036854775806")
	case 2:
		return strings.Repeat("x", g.r.IntN(100))
	}
	return strconv.Itoa(g.r.IntN(200) - 100)
}

func (g generator) number() string {
	return g.pick(strconv.Itoa(g.r.IntN(40)-20), strconv.Itoa(g.r.IntN(10)), "x", "", "9223372036854775807", "-9223372036854775808", "1.5")
}

// seconds is an expiry far enough away that both servers agree on it, or nonsense.
func (g generator) seconds() string {
	return g.pick(strconv.Itoa(100+g.r.IntN(100_000)), "0", "-5", "x", "9223372036854775807")
}

// commands returns one command, or a transaction.
func (g generator) commands() [][]string {
	if g.r.IntN(20) > 0 {
		return [][]string{g.command()}
	}
	list := [][]string{{"MULTI"}}
	if g.r.IntN(3) == 0 {
		list = [][]string{{"WATCH", g.key()}, g.command(), {"MULTI"}}
	}
	for n := g.r.IntN(6); n > 0; {
		c := g.command()
		if name := strings.ToUpper(c[0]); !strings.Contains(name, "TTL") && !strings.Contains(name, "EXPIRETIME") { // clocks differ
			list = append(list, c)
			n--
		}
	}
	return append(list, []string{g.pick("EXEC", "EXEC", "EXEC", "DISCARD")})
}

func (g generator) command() []string {
	k := g.key()
	switch g.r.IntN(30) {
	case 0, 1:
		return []string{"GET", k}
	case 2, 3, 4:
		c := []string{"SET", k, g.value()}
		for range g.r.IntN(3) {
			switch g.r.IntN(4) {
			case 0:
				c = append(c, g.pick("NX", "xx", "GET", "KEEPTTL"))
			case 1:
				c = append(c, g.pick("EX", "PX"), g.seconds()+g.pick("", "000"))
			case 2:
				c = append(c, g.pick("NX", "XX"))
			}
		}
		return c
	case 5:
		return []string{g.pick("SETNX", "GETSET", "APPEND"), k, g.value()}
	case 6:
		return []string{"SETEX", k, g.seconds(), g.value()}
	case 7:
		return []string{g.pick("GETDEL", "STRLEN", "TYPE", "PERSIST"), k}
	case 8:
		return append([]string{"GETEX", k}, [][]string{{}, {"PERSIST"}, {"EX", g.seconds()}, {"PERSIST", "EX", "5"}, {"FOO"}}[g.r.IntN(5)]...)
	case 9:
		return []string{g.pick("MGET", "EXISTS", "TOUCH"), k, g.key(), g.key()}
	case 10:
		return []string{g.pick("DEL", "UNLINK"), k, g.key()}
	case 11, 12:
		return [][]string{{"MSET", k, g.value(), g.key(), g.value()}, {"MSETNX", k, g.value(), g.key(), g.value()}, {"MSET", k, "1", "2"}}[g.r.IntN(3)]
	case 13, 14, 15:
		return []string{g.pick("INCR", "DECR"), k}
	case 16, 17:
		return []string{g.pick("INCRBY", "DECRBY"), k, g.number()}
	case 18, 19:
		return []string{"INCRBYFLOAT", k, g.pick("0.1", "-1.5", "3", "1e2", "x", "", "0.333333333", "-0.1", "1.0", "12345.678901")}
	case 20:
		return []string{g.pick("GETRANGE", "SUBSTR"), k, g.number(), g.number()}
	case 21:
		return []string{"SETRANGE", k, g.pick("0", "1", "5", "30", "-1", "x"), g.pick("", "ab", "xyz")}
	case 22, 23:
		c := []string{g.pick("EXPIRE", "PEXPIRE"), k, g.seconds()}
		if c[0] == "PEXPIRE" {
			c[2] += "000"
		}
		for range g.r.IntN(3) {
			c = append(c, g.pick("NX", "XX", "GT", "LT", "FOO"))
		}
		return c
	case 24:
		return []string{g.pick("EXPIREAT", "PEXPIREAT"), k, g.pick("1", "-1", "99999999999999", "99999999999", "x")}
	case 25:
		return []string{g.pick("TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"), k}
	case 26:
		return []string{g.pick("RENAME", "RENAMENX"), k, g.key()}
	case 27:
		return []string{g.pick("PING", "GET", "NOSUCH", "INCR", "EXISTS", "ECHO")}
	case 28:
		return []string{g.pick("PING", "ECHO"), g.value()}
	}
	return []string{"INCR", "counter"}
}
