package resp_test

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/kiloraft/kiloraft/internal/resp"
)

var (
	rewrite    = flag.Bool("rewrite", false, "write docs/redis.md and the replies of the transcripts anew")
	recordFlag = flag.Bool("record", false, "write the transcripts of real clients anew, in TestClients")
)

// docs/redis.md has a row for every command, made from the table.
func TestDocs(t *testing.T) {
	const path = "../../docs/redis.md"
	want := resp.Docs()
	if *rewrite {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("docs/redis.md is out of date (%v): go test ./internal/resp -run TestDocs -rewrite", err)
	}
}

// TestCommands types commands and compares the replies, which are those of Redis 7.0.
func TestCommands(t *testing.T) {
	_, addrs := cluster(t, 1, 8)
	r := dial(t, addrs[0])
	for _, c := range []struct{ cmd, want string }{
		{"PING", "+PONG"}, {"ping hi", `"hi"`}, {"ECHO a", `"a"`}, {"SELECT 0", "+OK"}, {"SELECT 1", "-ERR DB index is out of range"}, {"SELECT x", "-ERR value is not an integer or out of range"},
		{"NOPE a b", "-ERR unknown command 'NOPE', with args beginning with: 'a' 'b' "},
		{"GET", "-ERR wrong number of arguments for 'get' command"},
		{"GET a", "nil"}, {"SET a 1", "+OK"}, {"GET a", `"1"`}, {"SET a 2 NX", "nil"}, {"SET a 2 XX", "+OK"}, {"SET b 2 XX", "nil"},
		{"SET a 3 GET", `"2"`}, {"SET b 3 GET", "nil"}, {"SET b 4 NX GET", `"3"`}, {"SET a 1 EX 0", "-ERR invalid expire time in 'set' command"},
		{"SET a 1 EX x", "-ERR value is not an integer or out of range"}, {"SET a 1 NX XX", "-ERR syntax error"}, {"SET a 1 EX 1 KEEPTTL", "-ERR syntax error"},
		{"SET a 1 EX 100", "+OK"}, {"TTL a", ":100"}, {"SET a 2 KEEPTTL", "+OK"}, {"TTL a", ":100"}, {"INCR a", ":3"}, {"TTL a", ":100"}, {"APPEND a x", ":2"}, {"TTL a", ":100"},
		{"PERSIST a", ":1"}, {"PERSIST a", ":0"}, {"TTL a", ":-1"}, {"TTL none", ":-2"}, {"SET a 9", "+OK"},
		{"EXPIRE a 100 XX", ":0"}, {"EXPIRE a 100 NX", ":1"}, {"EXPIRE a 50 GT", ":0"}, {"EXPIRE a 200 GT", ":1"}, {"EXPIRE a 300 LT", ":0"}, {"TTL a", ":200"},
		{"EXPIRE a 1 FOO", "-ERR Unsupported option FOO"}, {"EXPIRE a 1 NX XX", "-ERR NX and XX, GT or LT options at the same time are not compatible"},
		{"EXPIRE a -1", ":1"}, {"EXISTS a", ":0"}, {"SET a v EXAT 1", "+OK"}, {"GET a", "nil"}, {"SETEX a 0 v", "-ERR invalid expire time in 'setex' command"},
		{"SETEX a 10 v", "+OK"}, {"GETEX a PERSIST", `"v"`}, {"TTL a", ":-1"}, {"GETEX a EX 10", `"v"`}, {"TTL a", ":10"}, {"GETDEL a", `"v"`}, {"GETDEL a", "nil"},
		{"SETNX a 1", ":1"}, {"SETNX a 1", ":0"}, {"GETSET a 5", `"1"`}, {"INCR a", ":6"}, {"DECRBY a 10", ":-4"}, {"INCRBY a x", "-ERR value is not an integer or out of range"},
		{"SET a 9223372036854775807", "+OK"}, {"INCR a", "-ERR increment or decrement would overflow"}, {"DECRBY a -9223372036854775808", "-ERR decrement would overflow"},
		{"SET a abc", "+OK"}, {"INCR a", "-ERR value is not an integer or out of range"}, {"SET a 007", "+OK"}, {"INCR a", "-ERR value is not an integer or out of range"},
		{"SET a -0", "+OK"}, {"INCR a", "-ERR value is not an integer or out of range"}, {"SET a 10.5", "+OK"}, {"INCRBYFLOAT a 0.1", `"10.6"`}, {"INCRBYFLOAT a -10.6", `"0"`}, {"SET a 5.0e3", "+OK"}, {"INCRBYFLOAT a 2.0e2", `"5200"`},
		{"INCRBYFLOAT a x", "-ERR value is not a valid float"}, {"SET a Hello", "+OK"}, {"STRLEN a", ":5"}, {"GETRANGE a 1 -2", `"ell"`}, {"GETRANGE a -100 100", `"Hello"`},
		{"SETRANGE a 6 W", ":7"}, {"GET a", `"Hello\x00W"`}, {"SETRANGE a -1 W", "-ERR offset is out of range"}, {"SETRANGE n 3 W", ":4"}, {"TYPE a", "+string"}, {"TYPE none", "+none"},
		{"MSET x 1 y 2 ~z 3 x 4", "+OK"}, {"MGET x y none ~z x", `["4" "2" nil "3" "4"]`}, {"MSET x", "-ERR wrong number of arguments for 'mset' command"},
		{"MSET x 1 y", "-ERR wrong number of arguments for 'mset' command"}, {"EXISTS x y x none", ":3"}, {"DEL x y none x", ":2"}, {"UNLINK ~z", ":1"},
		{"MSETNX x 1 x2 2", ":1"}, {"MSETNX x3 1 x 2", ":0"}, {"EXISTS x3", ":0"}, {"MSETNX x 1 \xfez 2", "-CROSSSLOT Keys in request don't hash to the same slot"},
		{"RENAME x x3", "+OK"}, {"GET x3", `"1"`}, {"RENAME x x3", "-ERR no such key"}, {"RENAMENX x3 x2", ":0"}, {"OBJECT ENCODING x3", `"int"`},
		{"MULTI", "+OK"}, {"MULTI", "-ERR MULTI calls can not be nested"}, {"SET m 1", "+QUEUED"}, {"INCR m", "+QUEUED"}, {"GET m", "+QUEUED"}, {"INCR x2", "+QUEUED"}, {"PING", "+QUEUED"}, {"KEYS *", "-ERR Command not allowed inside a transaction"},
		{"EXEC", "-EXECABORT Transaction discarded because of previous errors."}, {"EXISTS m", ":0"}, {"EXEC", "-ERR EXEC without MULTI"},
		{"SET m2 a", "+OK"}, {"MULTI", "+OK"}, {"SET m 1", "+QUEUED"}, {"INCR m", "+QUEUED"}, {"INCR m2", "+QUEUED"}, {"GET m", "+QUEUED"}, {"PING", "+QUEUED"},
		{"EXEC", `[+OK :2 -ERR value is not an integer or out of range "2" +PONG]`}, {"GET m", `"2"`},
		{"MULTI", "+OK"}, {"GET m", "+QUEUED"}, {"SET \xfez 1", "+QUEUED"}, {"EXEC", "-CROSSSLOT Keys in request don't hash to the same slot"},
		{"WATCH m", "+OK"}, {"SET m 5", "+OK"}, {"MULTI", "+OK"}, {"SET m 6", "+QUEUED"}, {"EXEC", "nil[]"}, {"GET m", `"5"`},
		{"WATCH m", "+OK"}, {"MULTI", "+OK"}, {"SET m 6", "+QUEUED"}, {"EXEC", "[+OK]"}, {"MULTI", "+OK"}, {"DISCARD", "+OK"},
		{"WATCH m", "+OK"}, {"SET m 7", "+OK"}, {"MULTI", "+OK"}, {"UNWATCH", "+QUEUED"}, {"EXEC", "nil[]"}, {"WATCH m", "+OK"}, {"SET m 6", "+OK"}, {"UNWATCH", "+OK"},
		{"MULTI", "+OK"}, {"UNWATCH", "+QUEUED"}, {"EXEC", "[+OK]"}, {"MULTI", "+OK"}, {"EXEC x", "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command"}, {"EXEC", "-ERR EXEC without MULTI"},
		{"KR.CAS k ABSENT v1", ":1"}, {"KR.CAS k ABSENT v2", "nil"}, {"KR.CAS k VALUE v2 v3", "nil"}, {"GET k", `"v1"`},
		{"KR.RANGE m n LIMIT 1", `["m\x00" ["m" "6"]]`}, {"KR.RANGE m n", `[nil ["m" "6" "m2" "a"]]`}, {"KR.RANGE m n REV KEYS", `[nil ["m2" "m"]]`},
		{"KEYS m*", `["m" "m2"]`}, {"SCAN 0 MATCH m* COUNT 100", `["0" ["m" "m2"]]`}, {"SCAN x", "-ERR invalid cursor"}, {"SCAN 77", "-ERR invalid cursor"}, {"SCAN 0 COUNT 0", "-ERR syntax error"},
		{"CLIENT SETNAME me", "+OK"}, {"CLIENT GETNAME", `"me"`}, {"CLIENT SETINFO LIB-NAME x", "+OK"}, {"CONFIG GET save", `["save" ""]`}, {"CONFIG SET a b", "-ERR CONFIG SET is not available: a node is configured by its flags and files"},
		{"HELLO 4", "-NOPROTO unsupported protocol version"}, {"COMMAND GETKEYS MSET a 1 b 2", `["a" "b"]`}, {"CLUSTER SLOTS", "-ERR This instance has cluster support disabled"},
		{"AUTH x", "-ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"}, {"AUTH me x", "-WRONGPASS invalid username-password pair or user is disabled."},
		{"HELLO 3", fmt.Sprintf(`%%["server" "redis" "version" "7.0.15" "proto" :3 "id" :%d "mode" "standalone" "role" "master" "modules" []]`, 1)},
		{"GET none", "_"}, {"CONFIG GET save", `%["save" ""]`}, {"RESET", "+RESET"}, {"GET none", "nil"}, {"DBSIZE", ":8"}, {"QUIT", "+OK"},
	} {
		got := r.do(strings.Split(c.cmd, " ")...)
		if strings.HasPrefix(c.want, ":") && strings.HasPrefix(c.cmd, "KR.CAS") {
			c.want = got // a version
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.cmd, got, c.want)
		}
	}
	if _, err := r.br.ReadByte(); err != io.EOF {
		t.Errorf("after QUIT: %v", err)
	}
	scanAll(t, addrs[0])
	replyModes(t, addrs[0])
	malformed(t, addrs[0])
	expires(t, addrs[0])
}

// scanAll finds every key exactly once, in small pages over all shards.
func scanAll(t *testing.T, addr string) {
	r := dial(t, addr)
	want := 300
	for i := range want {
		r.send(encode("SET", fmt.Sprintf("%cscan:%d", byte('!'+i*53%200), i), "v"))
	}
	for range want {
		r.read()
	}
	seen, cursor := map[string]int{}, "0"
	for range 1000 {
		got := strings.Trim(r.do("SCAN", cursor, "COUNT", "7", "MATCH", "*scan:*"), "[]")
		head, list, _ := strings.Cut(got, " ")
		list = strings.TrimPrefix(list, "[")
		if head[0] != '"' {
			t.Fatalf("cursor %q: %s", cursor, got)
		}
		cursor = strings.Trim(head, `"`)
		if list != "" {
			for _, k := range strings.Split(list, " ") {
				if k != "" {
					seen[k]++
				}
			}
		}
		if cursor == "0" {
			break
		}
	}
	if cursor != "0" || len(seen) != want {
		t.Errorf("scan: %d keys, cursor %s", len(seen), cursor)
	}
}

func replyModes(t *testing.T, addr string) {
	r := dial(t, addr)
	r.send(encode("CLIENT", "REPLY", "SKIP") + encode("ECHO", "1") + encode("ECHO", "2") + encode("CLIENT", "REPLY", "OFF") + encode("SET", "off", "3") + encode("CLIENT", "REPLY", "ON") + encode("GET", "off"))
	if a, b, c := r.read(), r.read(), r.read(); a != `"2"` || b != "+OK" || c != `"3"` {
		t.Error(a, b, c)
	}
}

func malformed(t *testing.T, addr string) {
	for in, want := range map[string]string{
		"*1000000000\r\n":     "-ERR Protocol error: invalid multibulk length",
		"*1\r\n$-2\r\n":       "-ERR Protocol error: invalid bulk length",
		"*1\r\n!":             "",
		"PING\r\n*1\r\n:\r\n": "+PONG",
	} {
		r := dial(t, addr)
		r.send(in)
		_ = r.c.(*net.TCPConn).CloseWrite()
		if want != "" {
			if got := r.read(); got != want {
				t.Errorf("%q: %s", in, got)
			}
		}
		_ = r.c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, r.br); err != nil {
			t.Errorf("%q: not closed: %v", in, err)
		}
	}
	r := dial(t, addr) // what was sent is carried out although the client ends at once
	r.send(encode("SET", "bye", "1") + encode("INCR", "bye"))
	_ = r.c.(*net.TCPConn).CloseWrite()
	if a, b := r.read(), r.read(); a != "+OK" || b != ":2" {
		t.Error(a, b)
	}
}

func expires(t *testing.T, addr string) {
	r := dial(t, addr)
	r.do("SET", "soon", "v", "PX", "30")
	for end := time.Now().Add(10 * time.Second); r.do("GET", "soon") != "nil"; {
		if time.Now().After(end) {
			t.Fatal("a key does not expire")
		}
	}
}

// A pipeline behaves as if its commands ran one after the other, whatever shards they are in; and counters count.
func TestPipelines(t *testing.T) {
	_, addrs := cluster(t, 3, 30)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Add(1)
		r := dial(t, addrs[w%3])
		go func() {
			defer wg.Done()
			var want []string
			var b strings.Builder
			for i := range 300 {
				k := fmt.Sprintf("%cp:%d:%d", byte(i*37%5*50), w, i%5)
				b.WriteString(encode("SET", k, fmt.Sprint(i)) + encode("GET", k) + encode("INCR", k) + encode("APPEND", k, "x") + encode("GET", k) + encode("INCR", "\x80all") + encode("PING"))
				want = append(want, "+OK", fmt.Sprintf("%q", fmt.Sprint(i)), fmt.Sprintf(":%d", i+1), fmt.Sprintf(":%d", len(fmt.Sprint(i+1))+1), fmt.Sprintf("%q", fmt.Sprintf("%dx", i+1)), "", "+PONG")
			}
			go func() { _, _ = io.WriteString(r.c, b.String()) }()
			for i, s := range want {
				if got := r.read(); got != s && (s != "" || got[0] != ':') {
					t.Errorf("reply %d: %s, want %s", i, got, s)
					return
				}
			}
		}()
	}
	wg.Wait()
	if got := dial(t, addrs[0]).do("GET", "\x80all"); got != `"1800"` {
		t.Errorf("sum %s", got)
	}
	contention(t, addrs)
	goRedis(t, &goredis.Options{Addr: addrs[1]})
	rueidisClient(t, rueidis.ClientOption{InitAddress: addrs[2:]})
}

// contention lets compare-and-swap commands of many connections meet on one key.
func contention(t *testing.T, addrs []string) {
	var wg sync.WaitGroup
	const conns, times = 6, 25
	for i := range conns {
		wg.Add(1)
		r := dial(t, addrs[i%len(addrs)])
		go func() {
			defer wg.Done()
			for range times {
				if got := r.do("INCRBYFLOAT", "float", "0.5"); got[0] != '"' {
					t.Error(got)
				}
			}
		}()
	}
	wg.Wait()
	if got := dial(t, addrs[0]).do("GET", "float"); got != fmt.Sprintf("%q", fmt.Sprint(conns*times/2)) {
		t.Errorf("float %s", got)
	}
}
