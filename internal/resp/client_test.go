package resp_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/node"
	"github.com/kiloraft/kiloraft/node/nodetest"
)

// cluster starts three nodes with Redis listeners and returns their addresses.
func cluster(t testing.TB, nodes, shards int) (*nodetest.Cluster, []string) {
	t.Helper()
	c := nodetest.Start(t, nodes, nodetest.Options{ElectionTimeout: time.Second, Config: func(_ int, cfg *node.Config) { cfg.Redis, cfg.RedisTimeout = "127.0.0.1:0", time.Minute }})
	c.Init(0, shards, nodes)
	var addrs []string
	for i := range nodes {
		addrs = append(addrs, c.Node(i).RedisAddr())
	}
	return c, addrs
}

// raw is a client that shows replies as they are.
type raw struct {
	t  testing.TB
	c  net.Conn
	br *bufio.Reader
}

func dial(t testing.TB, addr string) *raw {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &raw{t: t, c: c, br: bufio.NewReaderSize(c, 1<<20)}
}

func encode(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

func (r *raw) send(s string) {
	r.t.Helper()
	if _, err := io.WriteString(r.c, s); err != nil {
		r.t.Fatal(err)
	}
}

// read returns a reply as text: errors begin with -, bulks are quoted, aggregates are in brackets.
func (r *raw) read() string {
	r.t.Helper()
	_ = r.c.SetReadDeadline(time.Now().Add(20 * time.Second))
	s, err := r.reply()
	if err != nil {
		r.t.Fatalf("reading a reply: %v", err)
	}
	return s
}

func (r *raw) reply() (string, error) {
	line, err := r.br.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	n, _ := strconv.Atoi(line[1:])
	switch line[0] {
	case '$', '=':
		if n < 0 {
			return "nil", nil
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(r.br, b); err != nil {
			return "", err
		}
		return strconv.Quote(string(b[:n])), nil
	case '*', '~', '>', '%':
		if n < 0 {
			return "nil[]", nil
		}
		if line[0] == '%' {
			n *= 2
		}
		var list []string
		for range n {
			s, err := r.reply()
			if err != nil {
				return "", err
			}
			list = append(list, s)
		}
		open := strings.TrimPrefix(line[:1], "*")
		return open + "[" + strings.Join(list, " ") + "]", nil
	}
	return line, nil
}

func (r *raw) do(args ...string) string {
	r.t.Helper()
	r.send(encode(args...))
	return r.read()
}
