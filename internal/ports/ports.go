// Package ports finds addresses of this machine for processes that are stopped and started again on the same address: demo clusters and tests.
//
// A port that the system chooses is one of those from which it also serves outgoing connections of all processes. Any of them may take it while its
// owner is stopped, and the owner then cannot listen. So these ports are below that range, and each process has blocks of them for itself: it
// listens on the first port of a block for as long as it lives, and gives the others.
//
// It imports the standard library.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

const (
	first = 10_000
	// end is where outgoing connections begin if the system does not say: Linux has 32768, all others begin later.
	end = 32_768
	// fewest is how many ports there must be below the range for this to make sense.
	fewest = 5_000
	// block is how many ports a process takes at a time.
	block = 64
)

var (
	mu   sync.Mutex
	mine []net.Listener // on the first port of each block of this process; guarded by mu
	rest []int          // ports of these that were not given yet; guarded by mu
)

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// Listen listens on a port of 127.0.0.1 that this process has never given before and no other that uses this package will.
func Listen() (net.Listener, error) {
	mu.Lock()
	defer mu.Unlock()
	below := outgoing()
	if below < first+fewest {
		return listen(0)
	}
	for {
		if len(rest) == 0 && !take(below) {
			return nil, fmt.Errorf("no %d free ports in a row between %d and %d", block, first, below)
		}
		port := rest[0]
		rest = rest[1:]
		if l, err := listen(port); err == nil {
			return l, nil
		} // somebody else is there
	}
}

// take takes a block. mu is held.
func take(below int) bool {
	blocks := (below - first) / block
	at := rand.IntN(blocks)
	for range blocks {
		port := first + at*block
		if l, err := listen(port); err == nil {
			mine = append(mine, l)
			for p := port + 1; p < port+block; p++ {
				rest = append(rest, p)
			}
			return true
		}
		at = (at + 1) % blocks
	}
	return false
}

// outgoing returns the lowest port of outgoing connections.
func outgoing() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return end
	}
	var lowest, highest int
	if _, err := fmt.Sscan(string(b), &lowest, &highest); err != nil {
		return end
	}
	return lowest
}

// Free returns n addresses of 127.0.0.1 on which nobody listens now.
func Free(n int) ([]string, error) {
	addrs := make([]string, 0, n)
	for range n {
		l, err := Listen()
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, l.Addr().String())
		l.Close()
	}
	return addrs, nil
}
