package resp_test

import (
	"context"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/internal/resp"
	"github.com/kiloraft/kiloraft/router"
	"github.com/kiloraft/kiloraft/shard"
)

// nowhere is a client that forgets what it writes, when it is told to.
type nowhere struct {
	*router.Client
	mu      sync.Mutex
	waiting []func()
	bytes   int // of values that wait
}

func (k *nowhere) GoWrite(_ context.Context, w *shard.Write, done func(*shard.Result, error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(w.Ops[0].Value)
	k.bytes += n
	k.waiting = append(k.waiting, func() {
		k.bytes -= n
		go done(&shard.Result{}, nil)
	})
}

// forget lets all go on that wait, and tells how many bytes their values are.
func (k *nowhere) forget() (bytes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	bytes = k.bytes
	for _, f := range k.waiting {
		f()
	}
	k.waiting = nil
	return bytes
}

func (k *nowhere) held() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.bytes
}

// TestDoneRequestsAreGone: of a request that was answered nothing is held, though the connection stays and asks nothing more.
func TestDoneRequestsAreGone(t *testing.T) {
	kv := &nowhere{}
	_, addr := serve(t, resp.Config{KV: kv})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				kv.forget()
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	value := strings.Repeat("v", 1<<20)
	small := strings.Repeat("v", 8<<10)
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const conns = 64
	all := make([]*raw, conns)
	for i := range all {
		all[i] = dial(t, addr)
	}
	before := heap()
	for _, r := range all {
		for _, v := range []string{small, small, small, value} {
			if got := r.do("SET", "k", v); got != "+OK" {
				t.Fatal(got)
			}
		}
	}
	for end := time.Now().Add(20 * time.Second); heap()-before > conns<<20/4; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections that ask nothing hold %d MiB", conns, (heap()-before)>>20)
		}
	}
	runtime.KeepAlive(all)
}

// TestHalfSentGivesWay: who pauses within a big request is cut off once others wait for the room that it takes, and not before: how much was announced
// is of no use to it.
func TestHalfSentGivesWay(t *testing.T) {
	kv := &nowhere{}
	s, addr := serve(t, resp.Config{KV: kv, BigPatience: 20 * time.Millisecond, BigTime: time.Hour})
	half := "*5\r\n$4\r\nMSET\r\n$1\r\na\r\n$15000000\r\n" + strings.Repeat("x", 15_000_000) + "\r\n$1\r\nb\r\n$15000000\r\n"
	slow := dial(t, addr)
	if _, err := io.WriteString(slow.c, half); err != nil { // all of it was read but for the sockets' buffers: it has all the credits
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = slow.br.ReadByte()
	}()
	other := dial(t, addr)
	for range 200 { // a while longer than the patience, in which small requests go on
		if got := other.do("PING"); got != "+PONG" {
			t.Fatal(got)
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case <-gone:
		t.Fatal("nobody waits, and it was cut off")
	default:
	}
	other.send(encode("SET", "k", strings.Repeat("v", 8<<20)))
	<-gone
	for end := time.Now().Add(20 * time.Second); kv.held() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("who waited has had no turn")
		}
	}
	kv.forget()
	if got := other.read(); got != "+OK" {
		t.Error(got)
	}
	if n := s.Metrics().Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestBigRequestsTakeTurns: of all connections together only so much of big requests is under way at a time.
// Others go on meanwhile.
func TestBigRequestsTakeTurns(t *testing.T) {
	kv := &nowhere{}
	_, addr := serve(t, resp.Config{KV: kv})
	const conns, size, most = 12, 3 << 20, 8 << 20
	value := encode("SET", "k", strings.Repeat("v", size))
	answers := make(chan string, conns)
	var wg sync.WaitGroup
	defer func() { // whatever came of it, they are answered
		all := make(chan struct{})
		go func() {
			wg.Wait()
			close(all)
		}()
		for {
			select {
			case <-all:
				return
			case <-time.After(time.Millisecond):
				kv.forget()
			}
		}
	}()
	for range conns {
		r := dial(t, addr)
		wg.Go(func() {
			if _, err := io.WriteString(r.c, value); err != nil {
				answers <- err.Error()
				return
			}
			answer, err := r.reply()
			if err != nil {
				answer = err.Error()
			}
			answers <- answer
		})
	}
	until := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	until("no big request came", func() bool { return kv.held() >= size })
	other := dial(t, addr)
	for range 50 { // the others have had time to come, too
		if got := other.do("PING"); got != "+PONG" {
			t.Fatal(got)
		}
	}
	for done, begin := 0, time.Now(); done < conns; {
		if time.Since(begin) > time.Minute {
			t.Fatalf("%d of %d are done", done, conns)
		}
		if n := kv.forget(); n > most {
			t.Fatalf("%d MiB of requests under way, want %d at most", n>>20, most>>20)
		}
		select {
		case got := <-answers:
			if done++; got != "+OK" {
				t.Fatal(got)
			}
		case <-time.After(time.Millisecond):
		}
	}
}

// TestBigRequestsRest: when a big request is done, the next one has its turn only after as long again. Small ones go on meanwhile.
func TestBigRequestsRest(t *testing.T) {
	kv := &nowhere{}
	rests := make(chan func(), 10)
	_, addr := serve(t, resp.Config{KV: kv, After: func(_ time.Duration, f func()) { rests <- f }})
	const size = 8 << 20
	value := strings.Repeat("v", size)
	first, second, small := dial(t, addr), dial(t, addr), dial(t, addr)
	done := func(r *raw, bytes int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); kv.held() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it has no turn")
			}
		}
		if n := kv.forget(); n != bytes {
			t.Fatalf("%d bytes were under way, want %d", n, bytes)
		}
		if got := r.read(); got != "+OK" {
			t.Fatal(got)
		}
	}
	first.send(encode("SET", "a", value))
	done(first, size)
	rested := <-rests
	second.send(encode("SET", "b", value))
	small.send(encode("SET", "c", "v"))
	done(small, 1)
	rested()
	done(second, size)
}
