package transport

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// countWrites counts the writes that reach the network.
type countWrites struct {
	*memConn
	n *int
}

func (c countWrites) Write(b []byte) (int, error) { *c.n++; return c.memConn.Write(b) }

// Header and body of a yamux frame leave in one write, whatever their sizes, and arrive as they were.
func TestOneWritePerFrame(t *testing.T) {
	x, y := newPair("pair")
	writes := 0
	a := newConn(countWrites{x, &writes}, clock{time.Now()})
	b := newConn(y, clock{time.Now()})
	a.muxed, b.muxed = true, true
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive, cfg.LogOutput = false, io.Discard
	client, err := yamux.Client(a, cfg)
	if err != nil {
		t.Fatal(err)
	}
	server, err := yamux.Server(b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	st, err := client.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	other, err := server.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	var sent []byte
	before := writes
	for _, n := range []int{1, 11, 12, 13, 1000, 12, joinMax, joinMax + 1, 12} {
		p := make([]byte, n) // zeros look most like a header
		p[n-1] = byte(rand.Uint32())
		if _, err := st.Write(p); err != nil {
			t.Fatal(err)
		}
		sent = append(sent, p...)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(other, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatal("not what was sent", err)
	}
	client.Close()
	server.Close()
	if n := writes - before; n > 10 { // nine, and one more for the body that is not copied
		t.Errorf("%d writes for 9 frames", n)
	}
	if a.out.Load() != b.in.Load() || a.out.Load() == 0 {
		t.Errorf("%d bytes out, %d in", a.out.Load(), b.in.Load())
	}
}

// muxReader finds the bytes of streams, however the input is cut.
func TestMuxReader(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		var input []byte
		want := 0
		for range r.IntN(20) {
			kind, n := byte(r.IntN(4)), r.IntN(50)*r.IntN(50)
			head := make([]byte, yamuxHeader)
			head[1] = kind
			binary.BigEndian.PutUint32(head[8:], uint32(n))
			input = append(input, head...)
			if kind == 0 {
				input = append(input, make([]byte, n)...)
				want += n
			}
		}
		var m muxReader
		got := 0
		for len(input) > 0 {
			n := min(len(input), 1+r.IntN(40)*r.IntN(40))
			got += m.bodies(input[:n])
			input = input[n:]
		}
		if got != want || m.have != 0 || m.left != 0 {
			t.Fatalf("%d bytes of streams, want %d", got, want)
		}
	}
}
