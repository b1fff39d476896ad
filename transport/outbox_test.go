package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
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
		o.putApart(apartFrame{b: make([]byte, frameHeader+4), tail: make([]byte, 6), credit: credit})
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

// TestParts: what may be overtaken goes in parts, with what was added later between them, and comes out whole on the other side, whatever its size.
func TestParts(t *testing.T) {
	const partMax = 100
	o := newOutbox(1<<20, 16<<20, 64)
	o.partMax = partMax
	credits := int64(0)
	o.give = func(n int64) { credits += n }
	fill := func(n int, seed byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = seed + byte(i)
		}
		return b
	}
	var want [][]byte // of those apart
	for _, n := range []int{1, partMax, partMax + 1, 3 * partMax, 1234} {
		for _, own := range []int{0, 1, n / 2, n} { // of it in the frame itself
			m := fill(n, byte(len(want)))
			want = append(want, m)
			o.mu.Lock()
			o.putApart(apartFrame{b: append(make([]byte, frameHeader), m[:own]...), tail: m[own:], credit: 1})
			o.mu.Unlock()
		}
	}
	var wire []byte
	smalls, run := 0, 0
	for {
		if smalls < 1000 {
			if err := o.add(fill(40, 0xf0)); err != nil {
				t.Fatal(err)
			}
			smalls++
		}
		b := o.take()
		if b == nil {
			break
		}
		tail := o.writing.tail
		if run += len(b) + len(tail); len(b)+len(tail) == frameHeader+40 {
			run = 0
		}
		if run > partMax+frameHeader+partHeader {
			t.Fatalf("%d bytes go before a small message that waits", run)
		}
		sealFrame(b, tail)
		wire = append(append(wire, b...), tail...)
		o.done(b)
	}
	if o.bytes != 0 || o.big != 0 || credits != int64(len(want)) {
		t.Errorf("%d bytes, %d of them large, of nothing; %d credits for %d messages", o.bytes, o.big, credits, len(want))
	}
	f := newFrameReader(bytes.NewReader(wire), 1<<20, 500)
	f.parts = true
	var apart [][]byte
	for {
		m, err := f.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(m) == 40 && m[0] == 0xf0 {
			smalls--
			continue
		}
		apart = append(apart, m)
	}
	if smalls != 0 || !slices.EqualFunc(apart, want, bytes.Equal) {
		t.Errorf("%d small messages are missing, and %d of %d others came, or came otherwise", smalls, len(apart), len(want))
	}
}

// TestBadParts: parts that are none of a message end the session, as does all that is malformed; those who may not send any can not.
func TestBadParts(t *testing.T) {
	part := func(mark uint32, body string) []byte {
		b := append(make([]byte, frameHeader), body...)
		binary.BigEndian.PutUint32(b, mark)
		sealFrame(b, nil)
		return b
	}
	first, more := uint32(markPart|markFirst), uint32(markPart)
	good := slices.Concat(part(first, "\x00\x00\x00\x05abc"), part(more, "de"))
	broken := slices.Clone(good)
	broken[len(broken)-1]++
	for name, c := range map[string]struct {
		b     []byte
		parts bool
		want  error
	}{
		"good":         {good, true, nil},
		"of a client":  {good, false, ErrMalformed},
		"no first":     {part(more, "abc"), true, ErrMalformed},
		"two firsts":   {slices.Concat(part(first, "\x00\x00\x00\x05abc"), part(first, "\x00\x00\x00\x05abc")), true, ErrMalformed},
		"too long":     {part(first, "\x00\x10\x00\x01abc"), true, ErrMalformed},
		"over the end": {slices.Concat(part(first, "\x00\x00\x00\x05abc"), part(more, "def")), true, ErrMalformed},
		"empty":        {slices.Concat(part(first, "\x00\x00\x00\x05abc"), part(more, "")), true, ErrMalformed},
		"no length":    {part(first, "\x00\x00"), true, ErrMalformed},
		"checksum":     {broken, true, ErrMalformed},
		"cut":          {good[:len(good)-1], true, io.ErrUnexpectedEOF},
	} {
		f := newFrameReader(bytes.NewReader(c.b), 1<<20, 1<<20)
		f.parts = c.parts
		m, err := f.next()
		if !errors.Is(err, c.want) || c.want == nil && string(m) != "abcde" {
			t.Errorf("%s: %q, %v", name, m, err)
		}
	}
}
