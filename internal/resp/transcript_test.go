package resp_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// A transcript is what a client and a node have said to each other, one file per client below testdata/transcripts:
//
//	# comments
//	= connection
//	> HELLO 3            a command; arguments with spaces or unprintable bytes are quoted
//	< %["server" …]      its reply, as raw shows it; * is any reply but an error
//	> 1000 x INCR n      the same command many times in a row; the reply is the last one's
//
// TestClients records them from the real clients (-record), and TestTranscripts gives the commands to a cluster again, without the clients: connections
// one after the other, so -rewrite after -record sets the replies to commands that were sent on several at once.
// Those of clients that cannot be had from Debian or a Go module proxy were written by hand after the clients' sources, which the comments name.

type exchange struct {
	times          int
	command, reply string // the command as in the file
}

// varies are commands whose replies differ from run to run or from release to release.
var varies = regexp.MustCompile(`(?i)^(INFO|COMMAND|CLIENT (ID|LIST|INFO)|TIME|TTL|PTTL)\b`)

var connectionID = regexp.MustCompile(`"id" :\d+`)

// shown returns the reply as a transcript has it.
func shown(command, reply string) string {
	if varies.MatchString(command) && !strings.HasPrefix(reply, "-") {
		return "*"
	}
	return connectionID.ReplaceAllString(reply, `"id" :N`)
}

func quoteArgs(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		if out[i] = a; a == "" || strconv.Quote(a) != `"`+a+`"` || strings.Contains(a, " ") {
			out[i] = strconv.Quote(a)
		}
	}
	return strings.Join(out, " ")
}

func unquoteArgs(t *testing.T, s string) (args []string) {
	t.Helper()
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, " ") {
		if s[0] != '"' {
			var a string
			a, s, _ = strings.Cut(s, " ")
			args = append(args, a)
			continue
		}
		q, err := strconv.QuotedPrefix(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		a, _ := strconv.Unquote(q)
		args, s = append(args, a), s[len(q):]
	}
	return args
}

// requests reads the commands that a client has sent.
func requests(b []byte) (list [][]string, err error) {
	br := bufio.NewReader(bytes.NewReader(b))
	for {
		line, err := br.ReadString('\n')
		if err == io.EOF {
			return list, nil
		}
		n, nerr := strconv.Atoi(strings.TrimSpace(line[1:]))
		if err != nil || line[0] != '*' || nerr != nil {
			return list, fmt.Errorf("not an array: %q", line)
		}
		var args []string
		for range n {
			if line, err = br.ReadString('\n'); err != nil {
				return list, err
			}
			size, err := strconv.Atoi(strings.TrimSpace(line[1:]))
			if err != nil {
				return list, err
			}
			arg := make([]byte, size+2)
			if _, err := io.ReadFull(br, arg); err != nil {
				return list, err
			}
			args = append(args, string(arg[:size]))
		}
		list = append(list, args)
	}
}

// recorder passes connections on to a node and keeps what both sides say.
type recorder struct {
	t  *testing.T
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu    sync.Mutex
	conns [][2]*bytes.Buffer // what the client said, what the node said
}

func record(t *testing.T, to string) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{t: t, l: l, to: to}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.pass(c) })
		}
	})
	return r
}

func (r *recorder) pass(c net.Conn) {
	defer c.Close()
	n, err := net.Dial("tcp", r.to)
	if err != nil {
		r.t.Error(err)
		return
	}
	said := [2]*bytes.Buffer{{}, {}}
	r.mu.Lock()
	r.conns = append(r.conns, said)
	r.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(n, io.TeeReader(c, said[0]))
		_ = n.(*net.TCPConn).CloseWrite()
	})
	wg.Go(func() {
		_, _ = io.Copy(c, io.TeeReader(n, said[1]))
		_ = c.Close()
	})
	wg.Wait()
	_ = n.Close()
}

// end writes the transcript, once the clients have gone.
func (r *recorder) end(name, about string) {
	r.t.Helper()
	_ = r.l.Close()
	r.wg.Wait()
	if !*recordFlag {
		return
	}
	var out strings.Builder
	fmt.Fprintf(&out, "# %s\n", about)
	for _, said := range r.conns {
		commands, err := requests(said[0].Bytes())
		if err != nil {
			r.t.Fatalf("%s: %v", name, err)
		}
		out.WriteString("= connection\n")
		replies := raw{t: r.t, br: bufio.NewReader(said[1])}
		for i := 0; i < len(commands); {
			text, n, reply := quoteArgs(commands[i]), 0, ""
			for ; i < len(commands) && quoteArgs(commands[i]) == text; i++ {
				if reply, err = replies.reply(); err != nil {
					r.t.Fatalf("%s: %s: %v", name, text, err)
				}
				n++
			}
			writeExchange(&out, exchange{n, text, shown(text, reply)})
		}
	}
	if err := os.WriteFile(filepath.Join("testdata", "transcripts", name+".txt"), []byte(out.String()), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func writeExchange(out *strings.Builder, e exchange) {
	times := ""
	if e.times > 1 {
		times = strconv.Itoa(e.times) + " x "
	}
	fmt.Fprintf(out, "> %s%s\n< %s\n", times, e.command, e.reply)
}

// TestTranscripts plays all transcripts again.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	_, addrs := cluster(t, 3, 30)
	for i, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { replay(t, f, addrs[i%len(addrs)]) })
	}
}

// replay compares the replies with those of the file; with -rewrite it writes them anew.
func replay(t *testing.T, file, addr string) {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	var r *raw
	e := exchange{}
	for n, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		case line == "= connection":
			out.WriteString(line + "\n")
			r = dial(t, addr)
		case strings.HasPrefix(line, "> "):
			e = play(t, r, line[2:])
			writeExchange(&out, e)
		case strings.HasPrefix(line, "< "):
			if line[2:] != e.reply && !*rewrite {
				t.Errorf("%s:%d: %s: %s, want %s", file, n+1, e.command, e.reply, line[2:])
			}
		default:
			t.Fatalf("%s:%d: %q", file, n+1, line)
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func play(t *testing.T, r *raw, line string) exchange {
	t.Helper()
	e := exchange{times: 1, command: line}
	if n, rest, ok := strings.Cut(line, " x "); ok {
		if times, err := strconv.Atoi(n); err == nil {
			e.times, e.command = times, rest
		}
	}
	request := encode(unquoteArgs(t, e.command)...)
	go func() { // a long pipeline: the node may wait until its replies are read
		_ = r.c.SetWriteDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(r.c, strings.Repeat(request, e.times))
	}()
	reply := ""
	for range e.times {
		reply = r.read()
	}
	e.reply = shown(e.command, reply)
	return e
}
