//go:build !linux

package sysfail

import "syscall"

// Do is for Linux only.
func Do(syscall.Errno, func(), ...Call) error { return ErrUnsupported }
