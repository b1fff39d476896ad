package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/kiloraft/kiloraft/internal/demo"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// floodMemory is what a node's process may take while it is flooded, in bytes of resident memory (docs/sizing.md).
const floodMemory = 2 << 30

// The data that floods ask for.
const (
	hugeKeys  = 64
	hugeBytes = 1 << 20
)

func hugeKey(i int) string { return fmt.Sprintf("%chuge:%d", byte(i*4), i) }

// flood is abuse of the first node of a cluster, until stop is closed.
type flood struct {
	name string
	run  func(f *flooded, stop <-chan struct{})
}

// flooded is a cluster whose first node is being abused.
type flooded struct {
	*cluster
	redis []string // addresses
}

// TestFloods abuses the first node in all the ways that a client can, on all its ports. Its memory stays within the bound, it lives, and those who use the
// cluster meanwhile, by way of that node and others, get right answers. How long those take is printed, and is in docs/performance.md.
func TestFloods(t *testing.T) {
	if !full {
		t.Skip("it takes all of the machine: KILORAFT_E2E=full runs it")
	}
	c := start(t, 3, "--redis", "127.0.0.1:0")
	c.init(100)
	f := &flooded{cluster: c}
	for _, p := range c.Nodes {
		f.redis = append(f.redis, redisAddr(t, p))
	}
	huge := make([]byte, hugeBytes)
	for i := range hugeKeys {
		if _, err := c.kv.Put(t.Context(), []byte(hugeKey(i)), huge); err != nil {
			t.Fatal(err)
		}
	}
	f.usersMeanwhile(2*time.Second, "nothing", nil)
	only := regexp.MustCompile(os.Getenv("KILORAFT_E2E_FLOOD"))
	for _, fl := range floods {
		if !only.MatchString(fl.name) {
			continue
		}
		f.usersMeanwhile(floodTime, fl.name, fl.run)
	}
	if err := c.Unexpected(); err != nil {
		t.Fatal(err)
	}
	f.usersMeanwhile(2*time.Second, "nothing, afterwards", nil)
}

// floodTime is how long each flood lasts.
const floodTime = 5 * time.Second

var redisField = regexp.MustCompile(`\bredis=(127\.0\.0\.1:\d+)`)

func redisAddr(t *testing.T, p *demo.Process) string {
	t.Helper()
	m := redisField.FindStringSubmatch(p.LogTail(1000))
	if m == nil {
		t.Fatalf("%s does not say where Redis clients go", p.LogFile())
	}
	return m[1]
}

// usersMeanwhile lets users use the cluster for some time while the first node is flooded.
func (f *flooded) usersMeanwhile(d time.Duration, name string, run func(*flooded, <-chan struct{})) {
	t := f.t
	t.Helper()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var rss atomic.Int64
	wg.Go(func() {
		for {
			now := residentBytes(t, f.Nodes[0])
			if rss.Store(max(rss.Load(), now)); now > 2*floodMemory { // before it takes the machine with it
				t.Errorf("%s: the node's process takes %d MiB", name, now>>20)
				f.Nodes[0].Kill()
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	if run != nil {
		wg.Go(func() { run(f, stop) })
		time.Sleep(d / 4) // it has begun
	}
	users := []*user{f.redisUser(0), f.redisUser(1), f.nativeUser()}
	var users2 sync.WaitGroup
	for _, u := range users {
		users2.Go(func() { u.use(d) })
	}
	users2.Wait()
	close(stop)
	wg.Wait()
	line := fmt.Sprintf("%s: %d MiB", name, rss.Load()>>20)
	for _, u := range users {
		line += fmt.Sprintf("; %s p50 %.1f p99 %.1f max %.1f ms of %d", u.name, float64(u.took.ValueAtQuantile(50))/1000,
			float64(u.took.ValueAtQuantile(99))/1000, float64(u.took.Max())/1000, u.took.TotalCount())
		u.end()
		if u.err != nil {
			t.Errorf("%s: %s: %v", name, u.name, u.err)
		}
	}
	t.Log(line)
	if rss.Load() > floodMemory {
		t.Errorf("%s: the node's process takes %d MiB", name, rss.Load()>>20)
	}
}

func residentBytes(t *testing.T, p *demo.Process) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Error(err)
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kb, _ := strconv.ParseInt(f[0], 10, 64)
	return kb << 10
}

// user adds to a counter and reads it, 100 times a second, counted from when that was due.
type user struct {
	name  string
	add   func(ctx context.Context) (int64, error)
	end   func()
	took  *hdrhistogram.Histogram
	err   error
	count int64
}

func newUser(name string, add func(context.Context) (int64, error), end func()) *user {
	return &user{name: name, add: add, end: end, took: hdrhistogram.New(1, 60_000_000, 3)}
}

func (u *user) use(d time.Duration) {
	const gap = 10 * time.Millisecond
	begin := time.Now()
	for i := range int(d / gap) {
		due := begin.Add(time.Duration(i) * gap)
		time.Sleep(time.Until(due))
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		n, err := u.add(ctx)
		cancel()
		if err == nil && u.count != 0 && n != u.count+1 {
			err = fmt.Errorf("the counter is %d after %d", n, u.count)
		}
		if err != nil {
			u.err = err
			return
		}
		u.count = n
		_ = u.took.RecordValue(max(1, time.Since(due).Microseconds()))
	}
}

func (f *flooded) nativeUser() *user {
	key := []byte("\x80user:native")
	return newUser("client", func(ctx context.Context) (int64, error) { return f.kv.Add(ctx, key, 1) }, func() {})
}

// redisUser is a Redis client of a node. It connects while the flood is on.
func (f *flooded) redisUser(node int) *user {
	c, err := dialRedis(f.redis[node])
	add := func(context.Context) (int64, error) {
		if err != nil {
			return 0, err
		}
		reply, err := c.do("INCR", fmt.Sprintf("\xc0user:%d", node))
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(strings.TrimPrefix(reply, ":"), 10, 64)
	}
	return newUser(fmt.Sprintf("redis %d", node+1), add, func() {
		if err == nil {
			c.Close()
		}
	})
}

// redisConn is a Redis client for replies of one line.
type redisConn struct {
	net.Conn
	buf []byte
}

func dialRedis(addr string) (*redisConn, error) {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	return &redisConn{Conn: c}, err
}

func redisCommand(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

func (c *redisConn) do(args ...string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, redisCommand(args...)); err != nil {
		return "", err
	}
	c.buf = c.buf[:0]
	for !strings.HasSuffix(string(c.buf), "\r\n") {
		var b [256]byte
		n, err := c.Read(b[:])
		if err != nil {
			return "", err
		}
		c.buf = append(c.buf, b[:n]...)
	}
	return strings.TrimSuffix(string(c.buf), "\r\n"), nil
}

// floodConns is how many connections a flood of idle ones has: what the machine lets this process have.
func floodConns() int {
	var l syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	return min(10_000, int(l.Cur)-1000)
}

// many runs f on n connections to addr, at most 500 of them connecting at a time, and closes them when stop is closed.
func many(addr string, n int, stop <-chan struct{}, f func(c net.Conn)) {
	var wg sync.WaitGroup
	dialling := make(chan struct{}, 500)
	for range n {
		select {
		case <-stop:
		case dialling <- struct{}{}:
			wg.Go(func() {
				c, err := net.DialTimeout("tcp", addr, 5*time.Second)
				<-dialling
				if err != nil {
					return
				}
				gone := make(chan struct{})
				go func() {
					select {
					case <-stop:
					case <-gone:
					}
					c.Close()
				}()
				f(c)
				close(gone)
			})
			continue
		}
		break
	}
	wg.Wait()
}

// again repeats f until stop is closed: who is cut off comes back.
func again(stop <-chan struct{}, f func()) {
	for {
		select {
		case <-stop:
			return
		default:
			f()
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// hold sends b and keeps the connection until the other side closes it or stop is closed, without reading.
func hold(stop <-chan struct{}, b string) func(c net.Conn) {
	return func(c net.Conn) {
		if _, err := io.WriteString(c, b); err == nil {
			<-stop
		}
	}
}

func hugeMGet() string {
	args := []string{"MGET"}
	for i := range hugeKeys {
		args = append(args, hugeKey(i))
	}
	return redisCommand(args...)
}

var floods = []flood{
	{"redis: idle connections", func(f *flooded, stop <-chan struct{}) {
		many(f.redis[0], floodConns(), stop, hold(stop, "PING\r\n"))
	}},
	{"redis: 200 slow readers of 64 MiB replies", func(f *flooded, stop <-chan struct{}) {
		many(f.redis[0], 200, stop, func(c net.Conn) { again(stop, func() { _, _ = io.WriteString(c, hugeMGet()) }) })
	}},
	{"redis: 200 slow readers of pipelined 1 MiB values", func(f *flooded, stop <-chan struct{}) {
		many(f.redis[0], 200, stop, hold(stop, strings.Repeat(redisCommand("GET", hugeKey(1)), 1000)))
	}},
	{"redis: malformed requests", func(f *flooded, stop <-chan struct{}) {
		again(stop, func() {
			for _, b := range []string{"*1000000000\r\n", "*3\r\n$3\r\nSET\r\n$-5\r\n", "*1\r\n$16777217\r\n", strings.Repeat("x", 100_000), "\x16\x03\x01\x02\x00", "POST / HTTP/1.1\r\n\r\n"} {
				many(f.redis[0], 20, stop, func(c net.Conn) { _, _ = io.WriteString(c, b); _, _ = io.Copy(io.Discard, c) })
			}
		})
	}},
	{"redis: 500 half-sent requests of 30 MiB", func(f *flooded, stop <-chan struct{}) {
		b := "*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$15000000\r\n" + strings.Repeat("x", 15_000_000) + "\r\n$1\r\nb\r\n$15000000\r\n" + strings.Repeat("x", 14_000_000)
		many(f.redis[0], 500, stop, hold(stop, b))
	}},
	{"redis: pipelines of 100,000 commands", func(f *flooded, stop <-chan struct{}) {
		b := strings.Repeat(redisCommand("INCR", "\x40pipe"), 50_000) + strings.Repeat(redisCommand("SET", "\x40pipe2", "x"), 50_000)
		again(stop, func() {
			many(f.redis[0], 4, stop, func(c net.Conn) {
				go func() { _, _ = io.Copy(io.Discard, c) }()
				_, _ = io.WriteString(c, b)
			})
		})
	}},
	{"redis: pipelines of 8 MiB values", func(f *flooded, stop <-chan struct{}) {
		b := redisCommand("SET", "\x40big", strings.Repeat("x", 8<<20))
		many(f.redis[0], 100, stop, func(c net.Conn) {
			again(stop, func() { _, _ = io.WriteString(c, b) })
		})
	}},
	{"client port: idle connections", func(f *flooded, stop <-chan struct{}) {
		many(f.Servers[0], floodConns(), stop, hold(stop, ""))
	}},
	{"client port: 2,000 idle clients", func(f *flooded, stop <-chan struct{}) {
		f.clients(2000, stop, func(*slowConn, *transport.ClientConn) { <-stop })
	}},
	{"client port: 200 slow readers of 4 MiB answers", func(f *flooded, stop <-chan struct{}) {
		f.clients(200, stop, func(raw *slowConn, c *transport.ClientConn) {
			raw.stopped.Store(true)
			body := shard.AppendScan(nil, &shard.Scan{Limit: 1000})
			for range 1000 {
				c.Go(uint16(api.MethodRouteScan), time.Now().Add(time.Minute), 0, body, func([]byte, error) {})
			}
			select {
			case <-stop:
			case <-c.Done():
			}
		})
	}},
	{"client port: 500 half-sent frames of 32 MiB", func(f *flooded, stop <-chan struct{}) {
		f.clients(500, stop, func(raw *slowConn, c *transport.ClientConn) {
			body := make([]byte, 31<<20)
			raw.writeMax.Store(30 << 20)
			c.Go(uint16(api.MethodWrite), time.Now().Add(time.Minute), 0, body, func([]byte, error) {})
			select {
			case <-stop:
			case <-c.Done():
			}
		})
	}},
	{"client port: garbage", func(f *flooded, stop <-chan struct{}) {
		again(stop, func() {
			many(f.Servers[0], 50, stop, func(c net.Conn) {
				_, _ = io.WriteString(c, strings.Repeat("\xff", 100_000))
				_, _ = io.Copy(io.Discard, c)
			})
		})
	}},
	{"http: idle connections", func(f *flooded, stop <-chan struct{}) {
		many(f.Nodes[0].HTTP, floodConns(), stop, hold(stop, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	}},
	{"http: 1,000 slow readers", func(f *flooded, stop <-chan struct{}) {
		many(f.Nodes[0].HTTP, 1000, stop, hold(stop, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 500)))
	}},
	{"http: malformed and huge requests", func(f *flooded, stop <-chan struct{}) {
		again(stop, func() {
			for _, b := range []string{"GET / HTTP/9\r\n\r\n", strings.Repeat("x", 1<<20), "GET / HTTP/1.1\r\nHost: localhost\r\nA: " + strings.Repeat("x", 1<<20),
				"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n" + strings.Repeat("x", 1<<20)} {
				many(f.Nodes[0].HTTP, 20, stop, func(c net.Conn) {
					_, _ = io.WriteString(c, b)
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					_, _ = io.Copy(io.Discard, c)
				})
			}
		})
	}},
}

// slowConn is a connection that can stop reading, and stop writing after so many bytes.
type slowConn struct {
	net.Conn
	stopped  atomic.Bool
	writeMax atomic.Int64 // 0: no bound
	once     sync.Once
	closed   chan struct{}
}

func (c *slowConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.stopped.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *slowConn) Write(b []byte) (int, error) {
	if left := c.writeMax.Load(); left != 0 {
		if int64(len(b)) >= left {
			<-c.closed
			return 0, net.ErrClosed
		}
		c.writeMax.Add(-int64(len(b)))
	}
	return c.Conn.Write(b)
}

func (c *slowConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// clients opens n native clients, 50 at a time, and closes them in the end.
func (f *flooded) clients(n int, stop <-chan struct{}, do func(*slowConn, *transport.ClientConn)) {
	var wg sync.WaitGroup
	dialling := make(chan struct{}, 50)
	for range n {
		dialling <- struct{}{}
		wg.Go(func() {
			var raw *slowConn
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			c, err := transport.DialClient(ctx, f.Servers[0], transport.ClientConfig{Limits: transport.Limits{WriteTimeout: time.Minute}, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
				raw = &slowConn{Conn: c, closed: make(chan struct{})}
				return raw, err
			}})
			cancel()
			<-dialling
			if err != nil {
				return
			}
			do(raw, c)
			_ = c.Close()
		})
	}
	wg.Wait()
}
