//go:build !linux

package transport

func limitUnsent(uintptr, int) {}
