package resp

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func parseAll(r io.Reader, l parseLimits) (list [][]string, err error) {
	p := parser{src: r, limits: l}
	for {
		args, err := p.next()
		if err != nil {
			return list, err
		}
		var s []string
		for _, a := range args {
			s = append(s, string(a))
		}
		list = append(list, s)
	}
}

func TestParse(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for _, c := range []struct {
		in   string
		want string // requests, arguments joined by |, or the error
	}{
		{"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "GET|a"},
		{"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n", "PING PING"},
		{"PING\r\n", "PING"},
		{"PING\n\r\n  \nECHO hi\n", "PING ECHO|hi"},
		{"*0\r\n*-1\r\nPING\r\n", "PING"},
		{"*1\r\n$0\r\n\r\n", ""},
		{"SET \"a\\x41\\n\" 'b\\'c'\r\n", "SET|aA\n|b'c"},
		{"SET \"a\r\n", "!unbalanced quotes in request"},
		{"SET \"a\"b\r\n", "!unbalanced quotes in request"},
		{"*1000000000\r\n", "!invalid multibulk length"},
		{"*x\r\n", "!invalid multibulk length"},
		{"*1\r\n$-2\r\n", "!invalid bulk length"},
		{"*1\r\n$-1\r\n", "!invalid bulk length"},
		{"*1\r\n$99999999999999999999\r\n", "!invalid bulk length"},
		{"*1\r\n$x\r\n", "!invalid bulk length"},
		{"*1\r\n:1\r\n", "!expected '$', got ':'"},
		{long, "!too big inline request"},
		{"*" + long, "!too big mbulk count string"},
		{"*1\r\n$" + long, "!too big bulk count string"},
		{"*1\r\n$200000\r\n" + long + "\r\n", long},
		{"*3\r\n$12582912\r\n" + strings.Repeat("y", 12<<20) + "\r\n$12582912\r\n" + strings.Repeat("y", 12<<20) + "\r\n$12582912\r\n", "!too big request"},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(c.in), "halves": iotest.HalfReader(strings.NewReader(c.in))} {
			list, err := parseAll(r, limitsFull)
			var got []string
			for _, a := range list {
				got = append(got, strings.Join(a, "|"))
			}
			if perr := protocolError(""); errors.As(err, &perr) {
				got = append(got, "!"+string(perr))
			} else if err != io.EOF {
				t.Errorf("%s %.40q: %v", name, c.in, err)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%s %.40q: %.80q, want %.80q", name, c.in, s, c.want)
			}
		}
	}
}

func TestParseStranger(t *testing.T) {
	for in, want := range map[string]string{
		"*11\r\n":                   "Protocol error: unauthenticated multibulk length",
		"*1\r\n$16385\r\n":          "Protocol error: unauthenticated bulk length",
		"1 2 3 4 5 6 7 8 9 10 11\n": "Protocol error: too big inline request",
	} {
		if _, err := parseAll(strings.NewReader(in), limitsStranger); err.Error() != want {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

// What is announced is not allocated before it arrives.
func TestParseBombTakesNoMemory(t *testing.T) {
	for _, in := range []string{"*65536\r\n", "*1\r\n$16777216\r\nx", "*65536\r\n$16777216\r\nx"} {
		if n := testing.AllocsPerRun(5, func() { _, _ = parseAll(strings.NewReader(in), limitsFull) }); n > 30 {
			t.Errorf("%q: %v allocations", in, n)
		}
		if n := testing.Benchmark(func(b *testing.B) {
			for range min(b.N, 3) {
				_, _ = parseAll(strings.NewReader(in), limitsFull)
			}
		}).MemBytes; n > 3<<20 {
			t.Errorf("%q: %d bytes", in, n)
		}
	}
}

// Arguments stay what they were when more is parsed.
func TestArgumentsLast(t *testing.T) {
	var in bytes.Buffer
	for i := range 2000 {
		s := strings.Repeat(string(rune('a'+i%26)), i%97)
		in.WriteString("*2\r\n$1\r\nx\r\n$" + itoa(uint64(len(s))) + "\r\n" + s + "\r\n")
	}
	p := parser{src: iotest.HalfReader(&in), limits: limitsFull}
	var all [][]byte
	for {
		args, err := p.next()
		if err != nil {
			break
		}
		all = append(all, args[1])
	}
	if len(all) != 2000 {
		t.Fatal(len(all))
	}
	for i, a := range all {
		if want := strings.Repeat(string(rune('a'+i%26)), i%97); string(a) != want {
			t.Fatalf("%d: %q", i, a)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "PING\r\n", "*1000000000\r\n", "*1\r\n$-2\r\n", "SET \"a\\x4", "*-1\r\n*0\r\n", "*1\r\n$5\r\nab"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		a, errA := parseAll(bytes.NewReader(in), limitsFull)
		b, errB := parseAll(iotest.OneByteReader(bytes.NewReader(in)), limitsFull)
		if errA == nil || errB == nil || errA.Error() != errB.Error() || len(a) != len(b) {
			t.Fatalf("in one piece %d requests and %v, byte by byte %d and %v", len(a), errA, len(b), errB)
		}
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		p, s string
		want bool
	}{{"*", "", true}, {"a*c", "abbc", true}, {"a*c", "abbd", false}, {"h?llo", "hello", true}, {"h[ae]llo", "hallo", true}, {"h[^e]llo", "hello", false},
		{"h[a-b]llo", "hbllo", true}, {"\\*", "*", true}, {"\\*", "a", false}, {"a**b", "ab", true}, {"*a*b*", "xxaxxbxx", true}, {"a", "", false}, {"[", "a", false}} {
		if got := globMatch([]byte(c.p), []byte(c.s)); got != c.want {
			t.Errorf("%q %q: %v", c.p, c.s, got)
		}
	}
	if s := string(globPrefix([]byte("us\\*er:[a]x"))); s != "us*er:" {
		t.Error(s)
	}
}

func TestKeySlot(t *testing.T) {
	if a, b := keySlot([]byte("123456789")), keySlot([]byte("x{123456789}y")); a != 12739 || a != b {
		t.Error(a, b)
	}
}
