package e2e

import (
	"bytes"
	"context"
	bin "encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/router/api"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/transport"
)

// The data that floods ask for.
const (
	hugeKeys  = 64
	hugeBytes = 1 << 20
)

func hugeKey(i int) string { return fmt.Sprintf("%chuge:%d", byte(i*4), i) }

// abused are the addresses of a node that is flooded.
type abused struct{ redis, client, http string }

// flood is abuse of a node until stop is closed.
type flood struct {
	name string
	run  func(f *abused, stop <-chan struct{})
}

// connected is what the process says once all clients of a flood are there that does nothing else: to connect them takes a while, and is no idleness.
const connected = "all are connected"

// TestFlooder is no test: it is the process that TestFloods starts to flood a node, until its stdin is closed.
func TestFlooder(t *testing.T) {
	f := strings.Split(os.Getenv(flooderVar), "|")
	if len(f) != 4 {
		t.Skip("TestFloods starts it")
	}
	stop := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	if use, ok := strings.CutPrefix(f[0], "use "); ok {
		var cores float64
		var bytes int64
		if _, err := fmt.Sscan(use, &cores, &bytes); err != nil {
			t.Fatal(err)
		}
		go write(t, bytes, stop)
		spin(cores, stop)
		return
	}
	for _, fl := range floods {
		if fl.name == f[0] {
			fl.run(&abused{f[1], f[2], f[3]}, stop)
		}
	}
}

// spin uses so much of the machine's cores, and does nothing with it.
func spin(cores float64, stop <-chan struct{}) {
	const turn = 10 * time.Millisecond
	threads := max(1, math.Ceil(cores))
	var wg sync.WaitGroup
	for range int(threads) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				begin := time.Now()
				for time.Since(begin) < time.Duration(cores/threads*float64(turn)) {
				}
				time.Sleep(time.Until(begin.Add(turn)))
			}
		})
	}
	wg.Wait()
}

// write writes so many bytes per second to the disk, and syncs each MiB.
func write(t *testing.T, bytes int64, stop <-chan struct{}) {
	const step = 1 << 20
	if bytes < step {
		return
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "beside"))
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	b := make([]byte, step)
	for begin, n := time.Now(), int64(0); ; n += step {
		select {
		case <-stop:
			return
		case <-time.After(time.Until(begin.Add(time.Duration(float64(n) / float64(bytes) * float64(time.Second))))):
		}
		if _, err = f.WriteAt(b, n%(256<<20)); err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
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
				distant(c)
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

// distant has the kernel hold little on the flooder's side of a connection: what it holds counts against the memory for TCP of the machine, which is
// not the node's where the flooder is elsewhere.
func distant(c net.Conn) {
	_ = c.(*net.TCPConn).SetReadBuffer(64 << 10)
	_ = c.(*net.TCPConn).SetWriteBuffer(64 << 10)
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
func hold(stop <-chan struct{}, b []byte) func(c net.Conn) {
	return func(c net.Conn) {
		if _, err := c.Write(b); err == nil {
			<-stop
		}
	}
}

func hugeMGet() []byte {
	args := []string{"MGET"}
	for i := range hugeKeys {
		args = append(args, hugeKey(i))
	}
	return []byte(redisCommand(args...))
}

const idleClients = "client port: 10,000 idle clients"

var floods = []flood{
	{"redis: idle connections", func(f *abused, stop <-chan struct{}) {
		many(f.redis, floodConns(), stop, hold(stop, []byte("PING\r\n")))
	}},
	{"redis: 200 slow readers of 64 MiB replies", func(f *abused, stop <-chan struct{}) {
		b := hugeMGet()
		many(f.redis, 200, stop, func(c net.Conn) { again(stop, func() { _, _ = c.Write(b) }) })
	}},
	{"redis: 200 slow readers of pipelined 1 MiB values", func(f *abused, stop <-chan struct{}) {
		many(f.redis, 200, stop, hold(stop, []byte(strings.Repeat(redisCommand("GET", hugeKey(1)), 1000))))
	}},
	{"redis: malformed requests", func(f *abused, stop <-chan struct{}) {
		again(stop, func() {
			for _, b := range []string{"*1000000000\r\n", "*3\r\n$3\r\nSET\r\n$-5\r\n", "*1\r\n$16777217\r\n", strings.Repeat("x", 100_000), "\x16\x03\x01\x02\x00", "POST / HTTP/1.1\r\n\r\n"} {
				many(f.redis, 20, stop, func(c net.Conn) {
					_, _ = c.Write([]byte(b))
					_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // some wait for the rest of a line
					_, _ = io.Copy(io.Discard, c)
				})
			}
		})
	}},
	{"redis: 500 half-sent requests of 30 MiB", func(f *abused, stop <-chan struct{}) {
		b := []byte("*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$15000000\r\n" + strings.Repeat("x", 15_000_000) + "\r\n$1\r\nb\r\n$15000000\r\n" + strings.Repeat("x", 14_000_000))
		many(f.redis, 500, stop, hold(stop, b))
	}},
	{"redis: pipelines of 100,000 commands", func(f *abused, stop <-chan struct{}) {
		b := []byte(strings.Repeat(redisCommand("INCR", "\x40pipe"), 50_000) + strings.Repeat(redisCommand("SET", "\x40pipe2", "x"), 50_000))
		again(stop, func() {
			many(f.redis, 4, stop, func(c net.Conn) {
				go func() { _, _ = io.Copy(io.Discard, c) }()
				_, _ = c.Write(b)
			})
		})
	}},
	{"redis: pipelines of 8 MiB values", func(f *abused, stop <-chan struct{}) {
		b := []byte(redisCommand("SET", "\x40big", strings.Repeat("x", 8<<20)))
		many(f.redis, 100, stop, func(c net.Conn) {
			again(stop, func() { _, _ = c.Write(b) })
		})
	}},
	{"client port: idle connections", func(f *abused, stop <-chan struct{}) {
		many(f.client, floodConns(), stop, hold(stop, nil))
	}},
	{idleClients, func(f *abused, stop <-chan struct{}) {
		f.clients(floodConns(), stop, func(*slowConn, *transport.ClientConn) { <-stop })
	}},
	{"client port: 200 slow readers of 4 MiB answers", func(f *abused, stop <-chan struct{}) {
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
	{"client port: 100 half-sent frames of 32 MiB", func(f *abused, stop <-chan struct{}) {
		part := make([]byte, 256<<10)
		for range 99 {
			go again(stop, func() { halfSend(f.client, part, stop) })
		}
		again(stop, func() { halfSend(f.client, part, stop) })
	}},
	{"client port: garbage", func(f *abused, stop <-chan struct{}) {
		garbage := bytes.Repeat([]byte{0xff}, 100_000)
		again(stop, func() {
			many(f.client, 50, stop, func(c net.Conn) {
				_, _ = c.Write(garbage)
				_, _ = io.Copy(io.Discard, c)
			})
		})
	}},
	{"http: idle connections", func(f *abused, stop <-chan struct{}) {
		many(f.http, floodConns(), stop, hold(stop, []byte("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")))
	}},
	{"http: 1,000 slow readers", func(f *abused, stop <-chan struct{}) {
		many(f.http, 1000, stop, hold(stop, []byte(strings.Repeat("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 500))))
	}},
	{"http: malformed and huge requests", func(f *abused, stop <-chan struct{}) {
		again(stop, func() {
			for _, b := range []string{"GET / HTTP/9\r\n\r\n", strings.Repeat("x", 1<<20), "GET / HTTP/1.1\r\nHost: localhost\r\nA: " + strings.Repeat("x", 1<<20),
				"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n" + strings.Repeat("x", 1<<20)} {
				many(f.http, 20, stop, func(c net.Conn) {
					_, _ = c.Write([]byte(b))
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					_, _ = io.Copy(io.Discard, c)
				})
			}
		})
	}},
}

// halfSend sends 30 MiB of a frame of 31 as a native client, part by part, and waits until it is cut off. It does so by hand, for 100 Go clients that have
// such a request each would copy 3 GB first, and take the machine's cores for that.
func halfSend(addr string, part []byte, stop <-chan struct{}) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	gone := make(chan struct{})
	defer close(gone)
	go func() {
		select {
		case <-stop:
			c.Close()
		case <-gone:
		}
	}()
	distant(c)
	if err := greet(c); err != nil {
		return
	}
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive, cfg.LogOutput, cfg.ConnectionWriteTimeout = false, io.Discard, time.Minute
	mux, err := yamux.Client(c, cfg)
	if err != nil {
		return
	}
	defer mux.Close()
	st, err := mux.OpenStream()
	if err != nil {
		return
	}
	b := bin.BigEndian.AppendUint32([]byte{'q'}, 31<<20)
	if _, err := st.Write(append(b, 0, 0, 0, 0)); err != nil {
		return
	}
	for range (30 << 20) / len(part) {
		if _, err := st.Write(part); err != nil {
			return
		}
	}
	<-mux.CloseChan()
}

// greet is a client's side of the handshake (docs/wire.md).
func greet(c net.Conn) error {
	hello := mp.AppendUint(mp.AppendUint(mp.AppendArray(nil, 12), transport.ProtocolMin), transport.ProtocolMax)
	hello = mp.AppendBin(mp.AppendUint(hello, 2), make([]byte, 16))                     // a client of any cluster
	hello = mp.AppendBin(mp.AppendUint(hello, 0), make([]byte, 16))                     // no node, no identity
	hello = mp.AppendString(mp.AppendArray(hello, 0), "")                               // no incarnation, no address
	hello = mp.AppendUint(mp.AppendUint(hello, 1), 0)                                   // sessions
	hello = mp.AppendBin(mp.AppendString(hello, ""), nil)                               // no user
	if _, err := c.Write(append(greeting(1, hello), greeting(3, nil)...)); err != nil { // hello, and confirm at once
		return err
	}
	var head [11]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c, int64(bin.BigEndian.Uint16(head[5:])))
	return err
}

func greeting(kind byte, body []byte) []byte {
	b := bin.BigEndian.AppendUint16(append([]byte("KRFT"), kind), uint16(len(body)))
	return append(bin.BigEndian.AppendUint32(b, crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli))), body...)
}

// slowConn is a connection that can stop reading.
type slowConn struct {
	net.Conn
	stopped atomic.Bool
	once    sync.Once
	closed  chan struct{}
}

func (c *slowConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.stopped.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *slowConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// clients opens n native clients, 50 at a time, and closes them in the end.
func (f *abused) clients(n int, stop <-chan struct{}, do func(*slowConn, *transport.ClientConn)) {
	var wg sync.WaitGroup
	dialling := make(chan struct{}, 50)
	for range n {
		dialling <- struct{}{}
		wg.Go(func() {
			var raw *slowConn
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			limits := transport.Limits{WriteTimeout: time.Minute, HandshakeTimeout: time.Minute} // after less of it yamux gives up itself who reads nothing
			c, err := transport.DialClient(ctx, f.client, transport.ClientConfig{Limits: limits, Dial: func(ctx context.Context, addr string) (net.Conn, error) {
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
				if err == nil {
					distant(c)
				}
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
	for range cap(dialling) { // the last of them, too
		dialling <- struct{}{}
	}
	fmt.Println(connected)
	wg.Wait()
}
