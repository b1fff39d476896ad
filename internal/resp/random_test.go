package resp_test

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var randomSeed = flag.Uint64("seed", 0, "of TestRandomCommands; 0: another one each time")

// TestRandomCommands sends every command with arguments that fit and that do not, in and outside of transactions, pipelined: each is answered,
// and the node lives on.
func TestRandomCommands(t *testing.T) {
	_, addrs := cluster(t, 1, 4)
	seed := *randomSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := dial(t, addrs[0])
	names := strings.FieldsFunc(r.do("COMMAND", "LIST"), func(c rune) bool { return strings.ContainsRune(`[]" `, c) })
	if len(names) < 50 {
		t.Fatal(names)
	}
	words := []string{"", "0", "1", "-1", "10", "9223372036854775807", "-9223372036854775808", "18446744073709551616", "1e400", "3.5", "nan", "*", "[", "[^", "a\\", "\xff",
		"\xff\xff*", "a", "b", "c/1", "\x00", "\r\n", "k\r\n+OK\r\n", "NX", "XX", "GET", "EX", "PXAT", "KEEPTTL", "PERSIST", "MATCH", "COUNT", "TYPE", "USAGE", "ENCODING",
		"AUTH", "SETNAME", "LIST", "INFO", "DOCS", "GETKEYS", "mset", "object", "SETINFO", "ABSENT", "VALUE", "VERSION", "LIMIT", "REV", "KEYS", "SKIPME", "no",
		strings.Repeat("k", 4096), strings.Repeat("k", 4097), strings.Repeat("v", 70_000)}
	mute := map[string]bool{"quit": true, "reset": true}
	for range 40 {
		var text strings.Builder
		n := 0
		for range 100 {
			args := []string{names[rng.IntN(len(names))]}
			if mute[args[0]] {
				continue
			}
			for range rng.IntN(7) {
				args = append(args, words[rng.IntN(len(words))])
			}
			if args[0] == "client" && len(args) > 1 && (strings.EqualFold(args[1], "kill") || strings.EqualFold(args[1], "reply")) {
				continue
			}
			text.WriteString(encode(args...))
			n++
		}
		sent := text.String()
		go func() { _, _ = r.c.Write([]byte(sent)) }()
		for range n {
			r.read()
		}
	}
	if got := r.do("RESET"); got != "+RESET" {
		t.Error(got)
	}
	if got := r.do("PING"); got != "+PONG" {
		t.Error(got)
	}
}
