package prefetch

import (
	"testing"
	"unsafe"
)

// TestNoFault: asking for what is not there, or must not be read, does nothing. A page that is not mapped ends the process if it is read.
func TestNoFault(t *testing.T) {
	for _, at := range []uintptr{0, 1, 63, 4095, 1 << 20, 1<<47 - 1, 1 << 47, 1 << 63, ^uintptr(0) - 4096, ^uintptr(0)} {
		for _, size := range []uintptr{0, 1, 64, 65, 4096} {
			ask(at, size)
		}
	}
	Of[[1000]byte](nil)
	Slice[int](nil, 3)
	Slice([]struct{}{{}, {}}, 2)
}

// ask asks for an address that no pointer may have: the checks that the race detector turns on refuse to make one.
//
//go:nocheckptr
func ask(at, size uintptr) { bytes(*(*unsafe.Pointer)(unsafe.Pointer(&at)), size) }

// TestNoEffect: what was asked for is as it was.
func TestNoEffect(t *testing.T) {
	b := make([]byte, 1000)
	for i := range b {
		b[i] = byte(i)
	}
	for from := range b {
		Slice(b[from:], len(b))
		Slice(b[from:], -1)
	}
	for i := range b {
		if b[i] != byte(i) {
			t.Fatalf("byte %d is %d", i, b[i])
		}
	}
}

// BenchmarkSlice: how long it takes to ask for n lines that are near.
func BenchmarkSlice(b *testing.B) {
	s := make([][64]byte, 8)
	for _, lines := range []int{1, 8} {
		b.Run(map[int]string{1: "1 line", 8: "8 lines"}[lines], func(b *testing.B) {
			for range b.N {
				Slice(s, lines)
			}
		})
	}
}
