package transport

import (
	"errors"
	"testing"
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
