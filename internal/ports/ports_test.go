package ports

import (
	"net"
	"testing"
)

// No outgoing connection can take a port that was given, none is given twice, and the blocks that they are of cannot be taken by another process.
func TestPorts(t *testing.T) {
	below := outgoing()
	if below < first+fewest {
		t.Skipf("outgoing connections have all ports from %d", below)
	}
	addrs, err := Free(200)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, a := range addrs {
		tcp, err := net.ResolveTCPAddr("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		if seen[a] || tcp.Port < first || tcp.Port >= below {
			t.Errorf("%s: given before %v; want %d to %d", a, seen[a], first, below-1)
		}
		seen[a] = true
	}
	l, err := net.Listen("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	mu.Lock()
	defer mu.Unlock()
	for a := range seen {
		tcp, _ := net.ResolveTCPAddr("tcp", a)
		if l, err := listen(tcp.Port - (tcp.Port-first)%block); err == nil {
			l.Close()
			t.Errorf("the block of %s is anybody's", a)
		}
	}
}
