package transport

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Large messages and small ones do not keep each other out, each kind is bounded, and a single one always goes.
func TestOutboxKinds(t *testing.T) {
	const bytesMax, target = 1 << 20, 64 << 10
	o := newOutbox(bytesMax, 16<<20, target)
	small, large, huge := make([]byte, 1<<10), make([]byte, 400<<10), make([]byte, 8<<20)
	add := func(b []byte) int {
		n := 0
		for o.add(b) == nil {
			n++
		}
		if err := o.add(b); !errors.Is(err, ErrOverloaded) {
			t.Fatal(err)
		}
		return n
	}
	if err := o.add(small); err != nil {
		t.Fatal(err)
	}
	if n := add(huge); n != 1 {
		t.Errorf("%d huge messages", n)
	}
	if n := add(small); n != bytesMax/len(small)-1 {
		t.Errorf("beside a huge one %d small ones", n)
	}
	for b := o.take(); b != nil; b = o.take() {
		o.done(b)
	}
	if o.bytes != 0 || o.big != 0 {
		t.Fatalf("%d bytes, %d of them large, of nothing", o.bytes, o.big)
	}
	if n := add(large); n != bytesMax/len(large) {
		t.Errorf("%d large messages", n)
	}
	if n := add(small); n != bytesMax/len(small) {
		t.Errorf("beside large ones %d small ones", n)
	}
}

// Of what may be overtaken one frame goes between two others, and all of it goes.
func TestOutboxApart(t *testing.T) {
	o := newOutbox(1<<20, 16<<20, 64)
	apart := func(name string, n int) {
		o.putApart(apartFrame{b: append(make([]byte, frameHeader, frameHeader+n), strings.Repeat(name, n)...)})
	}
	small := func(name string) {
		if err := o.add([]byte(strings.Repeat(name, 40))); err != nil { // two of them are no frame
			t.Fatal(err)
		}
	}
	take := func() string {
		b := o.take()
		if b == nil {
			return ""
		}
		defer o.done(b)
		return string(b[frameHeader : frameHeader+1])
	}
	apart("A", 100)
	apart("B", 50)
	apart("C", 100)
	for _, name := range []string{"x", "y", "z"} {
		small(name)
	}
	got := ""
	for range 4 {
		got += take()
	}
	apart("D", 100) // behind C
	for name := take(); name != ""; name = take() {
		got += name
	}
	if got != "xAyBzCD" {
		t.Errorf("they went in this order: %s", got)
	}
	if o.bytes != 0 || o.big != 0 {
		t.Errorf("%d bytes, %d of them large, of nothing", o.bytes, o.big)
	}
	apart("E", 10)
	if o.close(ErrClosed); o.take() != nil {
		t.Error("something goes after the end")
	}
}

// TestSmallAnswersOvertake: an answer does not wait behind all the big ones that were given before it.
func TestSmallAnswersOvertake(t *testing.T) {
	n := newNet()
	l := quick()
	l.WriteTimeout, l.RequestDeadlineMax = time.Minute, time.Minute
	big := make([]byte, 1<<20)
	var all []Request
	waiting := make(chan []Request, 1)
	const requests = 10
	a := n.server(t, l, func(q Request) { // one goroutine reads the requests of a connection
		if all = append(all, q); len(all) == requests {
			waiting <- all
		}
	})
	c := n.client(t, a.addr, l)
	order := make(chan int, requests)
	for i := range requests {
		c.Go(uint16(i), time.Now().Add(time.Minute), 0, nil, func(_ []byte, err error) {
			if err != nil {
				t.Error(err)
			}
			order <- i
		})
	}
	rs := <-waiting
	n.mu.Lock()
	wire := n.conns[0]
	n.mu.Unlock()
	wire.in.set(func() { wire.in.paused = true }) // the answers pile up
	for i := range rs {
		if body := big; rs[i].Method == requests-1 {
			rs[i].Reply(StatusOK, nil)
		} else {
			rs[i].Reply(StatusOK, body)
		}
	}
	wire.in.set(func() { wire.in.paused = false })
	place := -1
	for i := range requests {
		if <-order == requests-1 {
			place = i
		}
	}
	if place > 2 { // one is being written when the others come, and one has its turn
		t.Errorf("the small answer came after %d big ones", place)
	}
}

// Credits of a message go back when it was taken, and all when there is no one to take them any more.
func TestOutboxCredits(t *testing.T) {
	o := newOutbox(1<<20, 1<<20, 1<<10)
	given := int64(0)
	o.give = func(n int64) { given += n }
	put := func(credit int64) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.putApart(apartFrame{make([]byte, frameHeader+4), make([]byte, 6), credit})
	}
	for credit := range int64(4) {
		put(1 << credit)
	}
	steps := []struct {
		do    func()
		given int64
		owes  bool
	}{
		{func() { o.done(o.take()) }, 1, true},
		{func() { b := o.take(); put(0); o.done(b) }, 3, true},
		{func() { o.take() }, 3, true},
		{func() { o.close(ErrNotConnected) }, 15, false},
		{func() { o.done(make([]byte, frameHeader)) }, 15, false},
	}
	for i, s := range steps {
		if s.do(); given != s.given || o.owes() != s.owes {
			t.Errorf("after step %d %d credits were given back, want %d; owes %v, want %v", i, given, s.given, o.owes(), s.owes)
		}
	}
}
