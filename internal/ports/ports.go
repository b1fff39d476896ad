// Package ports finds addresses of this machine for processes that are stopped and started again on the same address: demo clusters and tests.
//
// A port that the system chooses is one of those from which it also serves outgoing connections of all processes. Any of them may take it while its
// owner is stopped, and the owner then cannot listen. So these ports are below that range.
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
	tries  = 1_000
)

var (
	mu    sync.Mutex
	given = map[int]bool{}
)

// Listen listens on a port of 127.0.0.1 that was never given by this process before.
func Listen() (net.Listener, error) {
	below := outgoing()
	if below < first+fewest {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	var err error
	for range tries {
		port := first + rand.IntN(below-first)
		if !claim(port) {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("no port between %d and %d could be had in %d tries; the last one: %w", first, below, tries, err)
}

func claim(port int) bool {
	mu.Lock()
	defer mu.Unlock()
	if given[port] {
		return false
	}
	given[port] = true
	return true
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
