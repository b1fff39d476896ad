package demo

import (
	"bytes"
	"io"
	"net"
	"sync"
	"time"
)

// Fault is what happens to the bytes that one node sends to another.
type Fault string

// The faults of a link. No fault is "".
const (
	Cut  Fault = "cut"  // no connection at all, in either direction
	Lost Fault = "lost" // bytes vanish, and the sender sees nothing of it
	Slow Fault = "slow" // each read is late
)

// slowBy is how late a read is on a slow link.
const slowBy = 60 * time.Millisecond

// Links is a TCP proxy in front of each node: nodes reach each other at the addresses here, so that the link of any two can be hurt. Who dials
// is read from the handshake, which names the dialler's address; clients name none of these, and nobody hurts them. Its methods may be called from
// any goroutine.
type Links struct {
	addrs []string // of the proxies, by node
	ends  []net.Listener
	wg    sync.WaitGroup

	mu     sync.Mutex
	fault  map[[2]int]Fault    // guarded by mu: from one node to another
	conns  map[net.Conn][2]int // guarded by mu: of the side that has dialled who has dialled whom, see noLink
	closed bool                // guarded by mu
	done   Damage              // guarded by mu
}

// noLink is the link of a connection that is none between two nodes, or not known to be, or the second half of one.
var noLink = [2]int{-1, -1}

// Damage is what faults have done: one that has done nothing proves nothing.
type Damage struct {
	LostBytes int
	SlowBytes int
	CutConns  int // ended, and refused
}

// StartLinks listens at the addresses at, for the nodes that listen at the addresses behind.
func StartLinks(at, behind []string) (*Links, error) {
	l := &Links{addrs: at, fault: map[[2]int]Fault{}, conns: map[net.Conn][2]int{}}
	for _, a := range at {
		end, err := net.Listen("tcp", a)
		if err != nil {
			l.Close()
			return nil, err
		}
		l.ends = append(l.ends, end)
	}
	for i, end := range l.ends {
		l.wg.Go(func() { l.accept(end, i, behind[i]) })
	}
	return l, nil
}

// Close ends all connections and the goroutines that carry them.
func (l *Links) Close() {
	for _, end := range l.ends {
		end.Close()
	}
	l.mu.Lock()
	l.closed = true
	l.sever()
	l.mu.Unlock()
	l.wg.Wait()
}

// Hurt sets what happens to the bytes from node a to node b, and severs what is connected if that is Cut.
func (l *Links) Hurt(a, b int, how Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault[[2]int{a, b}] = how
	if how == Cut {
		for _, link := range l.conns {
			if link == [2]int{a, b} || link == [2]int{b, a} {
				l.done.CutConns++
			}
		}
		l.sever()
	}
}

// Partition cuts the links between nodes of different sides and heals all others. Nodes that no side names are a side together.
func (l *Links) Partition(sides [][]int) {
	side := make([]int, len(l.addrs)) // 0: of no side
	for s, nodes := range sides {
		for _, n := range nodes {
			side[n] = s + 1
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = map[[2]int]Fault{}
	for a := range side {
		for b := range side {
			if side[a] != side[b] {
				l.fault[[2]int{a, b}] = Cut
			}
		}
	}
	l.sever()
}

// Heal ends all faults. Connections end too: what was lost is gone, and a stream with a hole ends, as it would by a reset.
func (l *Links) Heal() { l.Partition(nil) }

// Damage tells what the faults have done since it was last asked for.
func (l *Links) Damage() Damage {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := l.done
	l.done = Damage{}
	return done
}

// sever ends all connections; mu is held.
func (l *Links) sever() {
	for c := range l.conns {
		c.Close()
	}
}

// how tells what happens to bytes from a to b, and counts them.
func (l *Links) how(a, b, bytes int) Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	how := l.fault[[2]int{a, b}]
	switch how {
	case Lost:
		l.done.LostBytes += bytes
	case Slow:
		l.done.SlowBytes += bytes
	}
	return how
}

// keep has the connections ended with the links; false if those are closed, or the link of the nodes is cut.
func (l *Links) keep(from, to int, conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fault[[2]int{from, to}] == Cut {
		l.done.CutConns++
		return false
	}
	if l.closed {
		return false
	}
	link := noLink
	if from >= 0 {
		link = [2]int{from, to}
	}
	for _, c := range conns {
		l.conns[c] = link
		link = noLink
	}
	return true
}

func (l *Links) drop(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}

func (l *Links) accept(end net.Listener, to int, target string) {
	for {
		in, err := end.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.carry(in, to, target) })
	}
}

// carry joins a connection with the node that it is for.
func (l *Links) carry(in net.Conn, to int, target string) {
	defer in.Close()
	defer l.drop(in)
	from := -1 // a node that waits for its cluster, or a client
	if !l.keep(from, to, in) {
		return
	}
	first := make([]byte, 4096)
	k, err := in.Read(first)
	if err != nil {
		return
	}
	for i, a := range l.addrs {
		if i != to && bytes.Contains(first[:k], []byte(a)) {
			from = i
		}
	}
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	defer l.drop(out)
	if !l.keep(from, to, in, out) {
		return
	}
	l.wg.Go(func() { l.pump(in, out, to, from, nil) })
	l.pump(out, in, from, to, first[:k])
}

// pump moves bytes from node a to node b.
func (l *Links) pump(dst io.WriteCloser, src io.ReadCloser, a, b int, first []byte) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		switch l.how(a, b, len(first)) {
		case Lost:
		case Slow:
			time.Sleep(slowBy)
			fallthrough
		default:
			if _, err := dst.Write(first); err != nil {
				return
			}
		}
		k, err := src.Read(buf)
		if err != nil {
			return
		}
		first = buf[:k]
	}
}
