package resp_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

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

// differentialConns is how many connections the differential test has, each with keys of its own: transactions and blocking commands included, what
// one connection sees depends on nobody else.
const differentialConns = 16

// TestDifferential gives the same random commands to this and to a real Redis server, and compares the replies.
// KILORAFT_TEST_REDIS_COMMANDS says how many, KILORAFT_TEST_SEED repeats a run.
func TestDifferential(t *testing.T) {
	needRedis(t, "redis-server")
	n, seed := 200_000, uint64(time.Now().UnixNano())
	if s := os.Getenv("KILORAFT_TEST_REDIS_COMMANDS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	if s := os.Getenv("KILORAFT_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("%d commands; KILORAFT_TEST_SEED=%d", n, seed)
	_, addrs := cluster(t, 1, 16)
	theirs := startRedis(t)
	var wg sync.WaitGroup
	var compared, differences atomic.Int64
	for w := range differentialConns {
		d := differential{t: t, ours: dial(t, addrs[0]), theirs: dial(t, theirs), g: newGenerator(seed, w), compared: &compared, differences: &differences}
		wg.Go(func() {
			if err := d.run(n / differentialConns); err != nil {
				t.Errorf("connection %d: %v", w, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d replies compared", compared.Load())
	if compared.Load() < int64(n) {
		t.Errorf("only %d replies were compared", compared.Load())
	}
}

// differential is one connection to each of the servers.
type differential struct {
	t                     *testing.T
	ours, theirs          *raw
	g                     *generator
	compared, differences *atomic.Int64
}

// run sends n commands or a few more, two batches ahead of the replies.
func (d *differential) run(n int) error {
	const batch = 100
	var sent [][][]string
	for n > 0 || len(sent) > 0 {
		if n > 0 {
			var list [][]string
			var b strings.Builder
			for len(list) < batch {
				for _, c := range d.g.commands() {
					list = append(list, c)
					b.WriteString(encode(c...))
				}
			}
			for _, r := range []*raw{d.ours, d.theirs} {
				if _, err := io.WriteString(r.c, b.String()); err != nil {
					return err
				}
			}
			sent = append(sent, list)
			n -= len(list)
		}
		if len(sent) == 2 || n <= 0 {
			if err := d.compare(sent[0]); err != nil {
				return err
			}
			sent = sent[1:]
		}
	}
	return nil
}

func (d *differential) compare(list [][]string) error {
	for _, r := range []*raw{d.ours, d.theirs} {
		_ = r.c.SetReadDeadline(time.Now().Add(time.Minute))
	}
	for _, c := range list {
		a, err1 := d.ours.reply()
		b, err2 := d.theirs.reply()
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%q: %w", c, err)
		}
		d.compared.Add(1)
		if same(c, a, b) {
			continue
		}
		d.t.Errorf("%q: %s, Redis: %s", c, a, b)
		if d.differences.Add(1) > 30 {
			return errors.New("too many differences")
		}
	}
	return nil
}

// clocksApart is by how much the servers' clocks may seem to differ: they get a command at different times.
const clocksApart = 60_000 // ms

// same tells whether two replies are the same, but for clocks.
func same(c []string, a, b string) bool {
	if a == b {
		return true
	}
	name := strings.ToUpper(c[0])
	if !readsClock(name) {
		return false
	}
	x, err1 := strconv.ParseInt(strings.TrimPrefix(a, ":"), 10, 64)
	y, err2 := strconv.ParseInt(strings.TrimPrefix(b, ":"), 10, 64)
	d := x - y
	if name[0] != 'P' {
		d *= 1000
	}
	return err1 == nil && err2 == nil && x > 0 && y > 0 && d >= -clocksApart && d <= clocksApart
}

// readsClock tells whether the reply of a command depends on the time.
func readsClock(name string) bool {
	return strings.Contains(name, "TTL") || strings.Contains(name, "EXPIRETIME")
}

// generator makes commands of one connection.
type generator struct {
	r       *rand.Rand
	prefix  string // of its keys: connections share none
	expires int64  // how many expiries it has made
}

func newGenerator(seed uint64, conn int) *generator {
	return &generator{r: rand.New(rand.NewPCG(seed, uint64(conn)+1)), prefix: string([]byte{byte(conn*15 + 1), 'k'})}
}

func (g *generator) pick(list ...string) string { return list[g.r.IntN(len(list))] }

func (g *generator) key() string { return g.prefix + strconv.Itoa(g.r.IntN(12)) }

func (g *generator) value() string {
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

func (g *generator) number() string {
	return g.pick(strconv.Itoa(g.r.IntN(40)-20), strconv.Itoa(g.r.IntN(10)), "x", "", "9223372036854775807", "-9223372036854775808", "1.5")
}

// seconds is an expiry in the far future, or nonsense. No two are less than 100 s apart: with GT and LT it does not matter when they arrive.
func (g *generator) seconds() string {
	if g.r.IntN(5) == 0 {
		return g.pick("0", "-5", "x", "9223372036854775807", "")
	}
	g.expires++
	return strconv.FormatInt(20_000+100*(g.expires*7919%100_003), 10)
}

// milliseconds is the same in milliseconds.
func (g *generator) milliseconds() string { return g.seconds() + "000" }

// expiry is an option with its argument.
func (g *generator) expiry() []string {
	switch g.r.IntN(4) {
	case 0:
		return []string{g.pick("PX", "px"), g.milliseconds()}
	case 1:
		return []string{"EXAT", g.pick("1", "-1", "0", "99999999999", "x")}
	case 2:
		return []string{"PXAT", g.pick("1", "-1", "0", "99999999999999", "x")}
	}
	return []string{g.pick("EX", "ex"), g.seconds()}
}

// names are commands that get nonsense as arguments, too.
var names = []string{"GET", "SET", "SETNX", "SETEX", "PSETEX", "GETSET", "GETDEL", "GETEX", "MGET", "MSET", "MSETNX", "APPEND", "STRLEN", "GETRANGE", "SUBSTR", "SETRANGE",
	"INCR", "DECR", "INCRBY", "DECRBY", "INCRBYFLOAT", "DEL", "UNLINK", "EXISTS", "TOUCH", "TYPE", "EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "TTL", "PTTL",
	"EXPIRETIME", "PEXPIRETIME", "PERSIST", "RENAME", "RENAMENX", "PING", "ECHO", "SELECT", "DISCARD", "EXEC", "UNWATCH", "NOSUCH", "set", "Get"}

// manyKeys take keys wherever there is an argument: keys of others must not be among them.
var manyKeys = []string{"MGET", "MSET", "MSETNX", "DEL", "UNLINK", "EXISTS", "TOUCH", "RENAME", "RENAMENX"}

// expiring are commands that may take an expiry.
var expiring = regexp.MustCompile("(?i)^(SET|GETEX|P?SETEX|P?EXPIRE(AT)?)$")

// nonsense is a command with a key, if it has arguments at all, and a few other words behind it, which often makes no sense.
func (g *generator) nonsense() []string {
	c := []string{g.pick(names...)}
	if n := g.r.IntN(6); n > 0 {
		c = append(c, g.key())
		for range n - 1 {
			if slices.Contains(manyKeys, c[0]) {
				c = append(c, g.key())
				continue
			}
			n := g.pick("0", "1", "-1", "30", g.number())
			if expiring.MatchString(c[0]) { // not so soon that it matters when
				n = g.pick("0", "-1", g.milliseconds())
			}
			c = append(c, g.pick(g.key(), n, n, "abc", "NX", "xx", "GET", "EX", "PX", "KEEPTTL", "PERSIST", "GT", "LT"))
		}
	}
	return c
}

// commands returns one command, or a transaction.
func (g *generator) commands() [][]string {
	if g.r.IntN(20) > 0 {
		return [][]string{g.command()}
	}
	list := [][]string{{"MULTI"}}
	if g.r.IntN(3) == 0 {
		list = [][]string{{"WATCH", g.key()}, g.command(), {"MULTI"}}
	}
	for n := g.r.IntN(6); n > 0; {
		c := g.command()
		if !readsClock(strings.ToUpper(c[0])) && !slices.Contains([]string{"EXEC", "DISCARD"}, c[0]) { // clocks differ, and these would end it
			list = append(list, c)
			n--
		}
	}
	return append(list, []string{g.pick("EXEC", "EXEC", "EXEC", "DISCARD")})
}

func (g *generator) command() []string {
	k := g.key()
	switch g.r.IntN(34) {
	case 0, 1:
		return []string{"GET", k}
	case 2, 3, 4:
		c := []string{"SET", k, g.value()}
		for range g.r.IntN(3) {
			switch g.r.IntN(4) {
			case 0:
				c = append(c, g.pick("NX", "xx", "GET", "KEEPTTL"))
			case 1:
				c = append(c, g.expiry()...)
			case 2:
				c = append(c, g.pick("NX", "XX"))
			}
		}
		return c
	case 5:
		return []string{g.pick("SETNX", "GETSET", "APPEND"), k, g.value()}
	case 6:
		if g.r.IntN(2) == 0 {
			return []string{"PSETEX", k, g.milliseconds(), g.value()}
		}
		return []string{"SETEX", k, g.seconds(), g.value()}
	case 7:
		return []string{g.pick("GETDEL", "STRLEN", "TYPE", "PERSIST"), k}
	case 8:
		return append([]string{"GETEX", k}, [][]string{{}, {"PERSIST"}, g.expiry(), {"PERSIST", "EX", "5"}, {"FOO"}}[g.r.IntN(5)]...)
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
		c := []string{"EXPIRE", k, g.seconds()}
		if g.r.IntN(2) == 0 {
			c = []string{"PEXPIRE", k, g.milliseconds()}
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
	if g.r.IntN(3) == 0 {
		return []string{"INCR", g.prefix}
	}
	return g.nonsense()
}
