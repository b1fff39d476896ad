package prefetch

import "unsafe"

// Of asks for all of what p points to. Nil asks for nothing of use, and is allowed.
func Of[T any](p *T) { bytes(unsafe.Pointer(p), unsafe.Sizeof(*p)) }

// Slice asks for the first n elements of s, or for all if it has fewer.
func Slice[T any](s []T, n int) {
	var t T
	if n = min(n, len(s)); n > 0 {
		bytes(unsafe.Pointer(unsafe.SliceData(s)), uintptr(n)*unsafe.Sizeof(t))
	}
}
