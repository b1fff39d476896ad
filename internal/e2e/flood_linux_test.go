package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/kiloraft/kiloraft/internal/demo"
)

// floodMemory is what a node's process may take while it is flooded, in bytes of resident memory (docs/sizing.md).
const floodMemory = 2 << 30

const (
	floodTime  = 5 * time.Second // of each flood
	quietTime  = 3 * time.Second // without one, and beside a process that uses as much of the machine
	settleTime = 2 * time.Second // behind each
)

// flooded is a cluster whose first node is being abused.
type flooded struct {
	*cluster
	redis []string // addresses
}

// TestFloods abuses the first node in all the ways that a client can, on all its ports, from a process of its own. Its memory stays within the
// bound, it lives, and those who use the cluster meanwhile, by way of that node and others, get right answers. How long those take is printed:
// without the flood, beside a process that takes as much processor time as the flooder and writes as much as the nodes did for it, and with the flood; docs/performance.md
// has what came of it. KILORAFT_E2E_ROUNDS says how often each is measured.
func TestFloods(t *testing.T) {
	if !full {
		t.Skip("it takes all of the machine: KILORAFT_E2E=full runs it")
	}
	rounds, err := strconv.Atoi(os.Getenv("KILORAFT_E2E_ROUNDS"))
	if err != nil {
		rounds = 1
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
	for _, fl := range floods {
		t.Run(fl.name, func(t *testing.T) {
			for range rounds {
				f.round(t, fl.name)
			}
			if err := c.Unexpected(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// round measures the users of the cluster without a flood, with it, and beside a process that uses as much of the machine: what the flooder did, and
// what the nodes wrote for it.
func (f *flooded) round(t *testing.T, name string) {
	quiet := f.usersMeanwhile(t, quietTime, "")
	flood := f.usersMeanwhile(t, floodTime, name)
	written := max(0, flood.written-quiet.written)
	beside := f.usersMeanwhile(t, quietTime, fmt.Sprintf("use %f %d", flood.flooder, written))
	worst := 0.0
	for i, u := range flood.users {
		worst = max(worst, u.ms(99)/max(quiet.users[i].ms(99), beside.users[i].ms(99)))
	}
	t.Logf("%d MiB; cores: flooder %.2f, node %.2f (quiet %.2f); the nodes wrote %d MiB/s more; p50 and p99 in ms quiet, beside as much use of the machine, flooded:%s; times worse: %.1f",
		flood.rss>>20, flood.flooder, flood.node, quiet.node, written>>20, times(quiet, beside, flood), worst)
	if flood.rss > floodMemory {
		t.Errorf("the node's process takes %d MiB, want %d at most", flood.rss>>20, int64(floodMemory)>>20)
	}
}

func times(of ...meanwhile) (s string) {
	for i, u := range of[0].users {
		s += " " + u.name
		for _, m := range of {
			s += fmt.Sprintf(" %.1f %.1f,", m.users[i].ms(50), m.users[i].ms(99))
		}
	}
	return strings.TrimSuffix(s, ",")
}

// meanwhile is what was seen while users used the cluster.
type meanwhile struct {
	users         []*user
	rss           int64   // of the first node, at most
	flooder, node float64 // cores that they used
	written       int64   // bytes per second that all nodes wrote to the disk
}

// usersMeanwhile lets users use the cluster for some time while a process does what it is told: TestFlooder.
func (f *flooded) usersMeanwhile(t *testing.T, d time.Duration, task string) (m meanwhile) {
	t.Helper()
	stopWatch := f.watchMemory(t, &m.rss)
	stopFlooder := func() float64 { return 0 }
	if task != "" {
		var said *screen
		stopFlooder, said = f.startFlooder(t, task)
		time.Sleep(d / 4) // it has begun
		for end := time.Now().Add(30 * time.Second); task == idleClients && !said.has(connected) && time.Now().Before(end); {
			time.Sleep(100 * time.Millisecond)
		}
	}
	m.users = []*user{f.redisUser(0), f.redisUser(1), f.nativeUser()}
	cpu, written, begin := cpuTime(t, f.Nodes[0]), f.written(t), time.Now()
	var using sync.WaitGroup
	for _, u := range m.users {
		using.Go(func() { u.use(d) })
	}
	using.Wait()
	m.node = (cpuTime(t, f.Nodes[0]) - cpu).Seconds() / time.Since(begin).Seconds()
	m.written = int64(float64(f.written(t)-written) / time.Since(begin).Seconds())
	m.flooder = stopFlooder()
	stopWatch()
	for _, u := range m.users {
		u.end()
		if u.err != nil {
			t.Errorf("%s: %v", u.name, u.err)
		}
	}
	time.Sleep(settleTime)
	return m
}

// startFlooder starts the process. The function returned ends it and tells how many cores it has used.
func (f *flooded) startFlooder(t *testing.T, task string) (stop func() float64, said *screen) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestFlooder$")
	cmd.Env = append(os.Environ(), flooderVar+"="+strings.Join([]string{task, f.redis[0], f.Servers[0], f.Nodes[0].HTTP}, "|"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	said = new(screen)
	cmd.Stdout, cmd.Stderr = said, said
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() float64 {
		took := time.Since(begin)
		_ = stdin.Close()
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Logf("the flooder: %v\n%s", err, said)
		}
		late.Stop()
		return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds() / took.Seconds()
	}, said
}

// watchMemory notes the most memory that the first node takes, and ends it before it takes the machine with it.
func (f *flooded) watchMemory(t *testing.T, most *int64) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			now := residentBytes(t, f.Nodes[0])
			if *most = max(*most, now); now > 2*floodMemory {
				t.Errorf("the node's process takes %d MiB", now>>20)
				f.Nodes[0].Kill()
				return
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// written is how much the nodes have written to the disk.
func (f *flooded) written(t *testing.T) (sum int64) {
	for _, p := range f.Nodes {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.PID()))
		if err != nil {
			t.Error(err)
			continue
		}
		_, rest, _ := strings.Cut(string(b), "\nwrite_bytes:")
		n, err := strconv.ParseInt(strings.Fields(rest + " -")[0], 10, 64)
		if err != nil {
			t.Error(err)
		}
		sum += n
	}
	return sum
}

var redisField = regexp.MustCompile(`\bredis=(127\.0\.0\.1:\d+)`)

func redisAddr(t *testing.T, p *demo.Process) string {
	t.Helper()
	m := redisField.FindStringSubmatch(p.LogTail(1000))
	if m == nil {
		t.Fatalf("%s does not say where Redis clients go", p.LogFile())
	}
	return m[1]
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

// user adds to counters and reads them, 100 times a second, each time when it is due: there are as many of them, each with a
// connection of its own, that one which has not answered yet does not keep the next from being asked.
type user struct {
	name string
	each []*counter
	took *hdrhistogram.Histogram // from when it was due
	err  error
}

// counter is one of them.
type counter struct {
	add func(context.Context) (int64, error)
	end func()
	n   int64
}

const (
	counters = 16                    // of a user
	dueEvery = 10 * time.Millisecond // of a user
)

func newUser(name string, open func(i int) (*counter, error)) *user {
	u := &user{name: name, took: hdrhistogram.New(1, 60_000_000, 3)}
	for i := range counters {
		c, err := open(i)
		if err != nil {
			u.err = err
			return u
		}
		u.each = append(u.each, c)
	}
	return u
}

// use counts for some time.
func (u *user) use(d time.Duration) {
	if u.err != nil {
		return
	}
	var mu sync.Mutex // of took and err
	begin := time.Now()
	var wg sync.WaitGroup
	for i, c := range u.each {
		wg.Go(func() {
			for at := time.Duration(i) * dueEvery; at < d; at += counters * dueEvery {
				time.Sleep(time.Until(begin.Add(at)))
				err := c.count()
				mu.Lock()
				_ = u.took.RecordValue(max(1, time.Since(begin.Add(at)).Microseconds()))
				if err != nil {
					u.err = fmt.Errorf("after %v: %w", time.Since(begin.Add(at)), err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}

func (c *counter) count() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	n, err := c.add(ctx)
	if err == nil && c.n != 0 && n != c.n+1 {
		err = fmt.Errorf("the counter is %d after %d", n, c.n)
	}
	c.n = n
	return err
}

func (u *user) ms(quantile float64) float64 { return float64(u.took.ValueAtQuantile(quantile)) / 1000 }

func (u *user) end() {
	for _, c := range u.each {
		c.end()
	}
}

// nativeUser is a user of the Go client. It connects while the flood is on.
func (f *flooded) nativeUser() *user {
	kv := f.dial()
	var end sync.Once
	return newUser("client", func(i int) (*counter, error) {
		key := fmt.Appendf(nil, "%cuser:native", byte(i*256/counters+8))
		return &counter{add: func(ctx context.Context) (int64, error) { return kv.Add(ctx, key, 1) }, end: func() { end.Do(func() { kv.Close() }) }}, nil
	})
}

// redisUser is a user of a node's Redis door. It connects while the flood is on.
func (f *flooded) redisUser(node int) *user {
	return newUser(fmt.Sprintf("redis %d", node+1), func(i int) (*counter, error) {
		c, err := dialRedis(f.redis[node])
		if err != nil {
			return nil, err
		}
		key := fmt.Sprintf("%cuser:%d", byte(i*256/counters+8), node)
		return &counter{end: func() { c.Close() }, add: func(context.Context) (int64, error) {
			reply, err := c.do("INCR", key)
			if err != nil {
				return 0, err
			}
			return strconv.ParseInt(strings.TrimPrefix(reply, ":"), 10, 64)
		}}, nil
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
