package demo

import "syscall"

// childAttributes put a node into a process group of its own, so that ^C reaches the demo alone, which then stops the nodes in order; and
// have the kernel kill the node when the demo dies.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
