//go:build linux || darwin

package node

import "syscall"

// diskSpace returns what an unprivileged process may still write to the file system of dir, and its size, in bytes.
func diskSpace(dir string) (free, size uint64) {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 0, 0
	}
	return uint64(st.Bavail) * uint64(st.Bsize), uint64(st.Blocks) * uint64(st.Bsize)
}
