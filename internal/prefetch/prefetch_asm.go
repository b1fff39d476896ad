//go:build amd64 || arm64

package prefetch

import "unsafe"

// bytes asks for the lines in which size bytes at p lie, and at least for one. In one call, for a call costs more than a line.
//
//go:noescape
func bytes(p unsafe.Pointer, size uintptr)
