package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
)

// memFacts is a factStore in memory; it survives the "crash" of its node.
type memFacts struct {
	mu sync.Mutex
	m  map[string][]byte
}

func (s *memFacts) NodeGet(key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[key], nil
}

func (s *memFacts) NodePut(key string, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string][]byte{}
	}
	s.m[key] = value
	return nil
}

// bootNet is a network of boot state machines.
type bootNet struct {
	mu    sync.Mutex
	nodes map[string]*boot
	disks map[string]*memFacts
	ran   map[string]int // calls of started
}

func newBootNet(n int) *bootNet {
	net := &bootNet{nodes: map[string]*boot{}, disks: map[string]*memFacts{}, ran: map[string]int{}}
	for i := range n {
		addr := fmt.Sprintf("h:%d", i+1)
		net.disks[addr] = &memFacts{}
		net.restart(addr, "h:1")
	}
	return net
}

func (net *bootNet) restart(addr string, join ...string) *boot {
	f, err := loadFacts(net.disks[addr])
	if err != nil {
		panic(err)
	}
	self := func() nodeInfo { return nodeInfo{Addr: addr, Name: "n" + addr[2:]} }
	b := newBoot(f, self, join, net, slog.New(slog.DiscardHandler))
	b.started = func(startedFact, *reservation) error {
		net.mu.Lock()
		defer net.mu.Unlock()
		net.ran[addr]++
		return nil
	}
	net.mu.Lock()
	net.nodes[addr] = b
	net.mu.Unlock()
	return b
}

func (net *bootNet) at(addr string) (*boot, error) {
	net.mu.Lock()
	defer net.mu.Unlock()
	if b := net.nodes[addr]; b != nil {
		return b, nil
	}
	return nil, errors.New("connection refused")
}

// The calls go through the codecs.
func (net *bootNet) Hello(_ context.Context, addr string, h *hello) (hello, error) {
	b, err := net.at(addr)
	if err != nil {
		return hello{}, err
	}
	in, err := decodeHello(h.append(nil))
	if err != nil {
		return hello{}, err
	}
	out := b.onHello(&in)
	return decodeHello(out.append(nil))
}

func (net *bootNet) Reserve(_ context.Context, addr string, r *reservation) (held, error) {
	b, err := net.at(addr)
	if err != nil {
		return held{}, err
	}
	return net.held(r, b.onReserve)
}

func (net *bootNet) Start(_ context.Context, addr string, r *reservation) (held, error) {
	b, err := net.at(addr)
	if err != nil {
		return held{}, err
	}
	return net.held(r, b.onStart)
}

func (net *bootNet) held(r *reservation, f func(*reservation) (held, error)) (held, error) {
	in, err := decodeReservation(r.append(nil))
	if err != nil {
		return held{}, err
	}
	h, err := f(&in)
	if err != nil {
		return held{}, err
	}
	return decodeHeld(h.append(nil))
}

func (net *bootNet) gossip() {
	for range 3 {
		for _, b := range net.nodes {
			b.exchange(context.Background())
		}
	}
}

// clusters returns which cluster each node has started in.
func (net *bootNet) clusters() map[id128][]string {
	out := map[id128][]string{}
	for addr, b := range net.nodes {
		if s, _ := b.facts.membership(); s != nil {
			out[s.Cluster] = append(out[s.Cluster], addr)
		}
	}
	return out
}

var testInit = InitOptions{Shards: 10, Replicas: 3, GatherMax: time.Millisecond}

func TestInitStartsAll(t *testing.T) {
	net := newBootNet(3)
	net.gossip()
	r, err := net.nodes["h:2"].run(context.Background(), InitOptions{Shards: 10, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	if got := net.clusters()[r.Cluster]; len(got) != 3 {
		t.Fatalf("started: %v", got)
	}
	for _, m := range r.Members {
		if want := fmt.Sprintf("n%d", m.Node); m.info.Name != want || m.MetaReplica == 0 {
			t.Errorf("node %d is %s with meta replica %d", m.Node, m.info.Name, m.MetaReplica)
		}
	}
}

func TestInitTooFewNodes(t *testing.T) {
	net := newBootNet(2)
	if _, err := net.nodes["h:1"].run(context.Background(), testInit); err == nil {
		t.Fatal("no error")
	}
	if c := net.clusters(); len(c) != 0 {
		t.Fatal(c)
	}
}

// Several inits at once, with different views of who waits, make one cluster of whoever is in the winning reservation.
func TestInitConcurrent(t *testing.T) {
	for round := range 50 {
		net := newBootNet(5)
		net.gossip()
		// Node 5 does not know node 4, so its reservation is another set.
		net.nodes["h:5"].known = map[id128]nodeInfo{}
		for _, a := range []string{"h:1", "h:2"} {
			n := net.nodes[a].info()
			net.nodes["h:5"].known[n.Identity] = n
		}
		var wg sync.WaitGroup
		for _, b := range net.nodes {
			wg.Add(1)
			go func() {
				defer wg.Done()
				_, _ = b.run(context.Background(), testInit)
			}()
		}
		wg.Wait()
		net.gossip() // those left out give up dead reservations
		c := net.clusters()
		if len(c) != 1 {
			t.Fatalf("round %d: %d clusters: %v", round, len(c), c)
		}
		for addr, b := range net.nodes {
			if s, r := b.facts.membership(); s == nil && r != nil {
				t.Errorf("round %d: %s is stuck with a reservation", round, addr)
			}
		}
	}
}

// A crash of the driver between any two steps, followed by an init at any node, completes the same cluster.
func TestInitCrashBetweenSteps(t *testing.T) {
	crash := errors.New("crash")
	for _, step := range []string{"reserved 0", "reserved 1", "reserved 2", "started 0", "started 1", "started 2"} {
		for _, again := range []string{"h:1", "h:2", "h:3"} {
			net := newBootNet(3)
			net.gossip()
			net.nodes["h:1"].fault = func(s string) error {
				if s == step {
					return crash
				}
				return nil
			}
			if _, err := net.nodes["h:1"].run(context.Background(), testInit); !errors.Is(err, crash) {
				t.Fatalf("%s: %v", step, err)
			}
			for addr := range net.disks {
				net.restart(addr, "h:1", "h:2", "h:3")
			}
			r, err := net.nodes[again].run(context.Background(), testInit)
			if err != nil {
				t.Fatalf("%s, again at %s: %v", step, again, err)
			}
			if got := net.clusters(); len(got) != 1 || len(got[r.Cluster]) != 3 {
				t.Fatalf("%s, again at %s: %v", step, again, got)
			}
		}
	}
}

// A node that waited and was then started anew in an empty directory is another one at the same address. The old one can never take part.
func TestInitWithoutThoseWhoAreGone(t *testing.T) {
	net := newBootNet(4)
	net.gossip()
	b := net.nodes["h:1"]
	old := net.nodes["h:2"].facts.identity
	net.disks["h:2"] = &memFacts{}
	net.restart("h:2", "h:1")
	delete(net.nodes, "h:4") // it waited, and is gone
	for id := range b.spoke {
		b.spoke[id] = b.spoke[id].Add(-2 * spokeMax)
	}
	net.gossip()
	r, err := b.candidate(t.Context(), InitOptions{Shards: 1, Replicas: 3, GatherMax: time.Millisecond})
	if err != nil || len(r.Members) != 3 {
		t.Fatal(r, err)
	}
	if _, ok := r.find(old); ok {
		t.Error("a member that is no more")
	}
}

func TestInitTwoNodesOneAddress(t *testing.T) {
	net := newBootNet(3)
	self := net.nodes["h:3"].self
	net.nodes["h:3"].self = func() nodeInfo { n := self(); n.Addr = "h:1"; return n } // a copied --advertise
	net.nodes["h:1"].join = []string{"h:1", "h:2", "h:3"}
	net.gossip()
	_, err := net.nodes["h:1"].candidate(t.Context(), InitOptions{Shards: 1, Replicas: 3, GatherMax: time.Millisecond})
	if !errors.Is(err, shard.ErrInvalid) || !strings.Contains(fmt.Sprint(err), "--advertise") {
		t.Error(err)
	}
}

func TestReservationNeverOverwritten(t *testing.T) {
	net := newBootNet(3)
	net.gossip()
	b := net.nodes["h:1"]
	r1 := newReservation(b.waiting(time.Time{}), 1, 3, 0)
	r2 := newReservation(b.waiting(time.Time{}), 1, 3, 0)
	if h, err := b.onReserve(r1); err != nil || h.Reservation.Cluster != r1.Cluster {
		t.Fatal(h, err)
	}
	if h, err := b.onReserve(r2); err != nil || h.Reservation.Cluster != r1.Cluster {
		t.Fatal(h, err)
	}
	if h, err := b.onStart(r2); err != nil || h.Started != (id128{}) {
		t.Fatal("started what it had not reserved", h, err)
	}
	b = net.restart("h:1")
	if _, r := b.facts.membership(); r == nil || r.Cluster != r1.Cluster {
		t.Fatal("the reservation is lost")
	}
}

func TestFacts(t *testing.T) {
	disk := &memFacts{}
	a, err := loadFacts(disk)
	if err != nil {
		t.Fatal(err)
	}
	for range 70 {
		b, err := loadFacts(disk)
		if err != nil || b.identity != a.identity {
			t.Fatal("identity changed", err)
		}
		if err := b.show(); err != nil {
			t.Fatal(err)
		}
		a = b
	}
	if len(a.incarnations) != incarnationsMax {
		t.Errorf("%d incarnations", len(a.incarnations))
	}
	if err := a.start(startedFact{id128{1}, 1}); err != nil {
		t.Fatal(err)
	}
	if err := a.start(startedFact{id128{2}, 1}); !errors.Is(err, ErrOtherCluster) {
		t.Fatal("changed its cluster", err)
	}
	if err := a.sawPeer(2, peerFact{Incarnation: 7, Addr: "h:2"}); err != nil {
		t.Fatal(err)
	}
	b, err := loadFacts(disk)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := b.peer(2); b.started == nil || err != nil || p.Addr != "h:2" || p.Incarnation != 7 {
		t.Errorf("%+v %v %v", b, p, err)
	}
}

// Starts that fail before anybody hears of them must not make the peers forget this node: they would refuse it for good (rule Cluster9).
func TestFailingStartsKeepTheIncarnation(t *testing.T) {
	disk := &memFacts{}
	a, err := loadFacts(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.show(); err != nil {
		t.Fatal(err)
	}
	known := a.incarnations[0]
	var last uint64
	for range 2 * incarnationsMax {
		b, err := loadFacts(disk)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(b.incarnations); n != 2 || b.incarnations[0] != known || b.incarnations[1] == last {
			t.Fatalf("%x: the peers know %x", b.incarnations, known)
		}
		last = b.incarnations[1]
	}
	for range 2 { // and one that was shown stays
		b, err := loadFacts(disk)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.show(); err != nil {
			t.Fatal(err)
		}
		a = b
	}
	if len(a.incarnations) != 3 || a.incarnations[0] != known {
		t.Errorf("%x after two shown starts", a.incarnations)
	}
}

// A peer that is down while this node starts more often than it remembers must find the start that it knows when it is back.
func TestManyStartsKeepWhatPeersKnow(t *testing.T) {
	disk := &memFacts{}
	start := func() *facts {
		f, err := loadFacts(disk)
		if err == nil {
			err = f.show()
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	meet := func(f *facts, id engine.NodeID) uint64 {
		if err := f.metBy(id); err != nil {
			t.Fatal(err)
		}
		return f.incarnations[len(f.incarnations)-1]
	}
	two := meet(start(), 2)
	for range 10 {
		start()
	}
	three := meet(start(), 3)
	var f *facts
	for range 10 * incarnationsMax {
		f = start()
		meet(f, 4)
	}
	if len(f.incarnations) != incarnationsMax || !slices.Contains(f.incarnations, two) || !slices.Contains(f.incarnations, three) {
		t.Errorf("%d starts are left, of two: %v, of three: %v", len(f.incarnations), slices.Contains(f.incarnations, two), slices.Contains(f.incarnations, three))
	}
	// With more peers than there is room for, each of which knows another start, the newest half stays, known or not.
	for id := range engine.NodeID(3 * incarnationsMax) {
		meet(start(), 10+id)
	}
	before := start().incarnations
	if f = start(); len(f.incarnations) != incarnationsMax || !slices.Equal(f.incarnations[incarnationsMax/2:incarnationsMax-1], before[incarnationsMax/2+1:]) {
		t.Errorf("of %x %x is left", before, f.incarnations)
	}
}

// What comes from the network is refused when cut, and never panics.
func TestBootCodecsCut(t *testing.T) {
	net := newBootNet(3)
	net.gossip()
	b := net.nodes["h:1"]
	r := newReservation(b.waiting(time.Time{}), 1, 3, 0)
	h, a := b.hello(), held{Reservation: r}
	for name, c := range map[string]struct {
		body   []byte
		decode func([]byte) error
	}{
		"reservation": {r.append(nil), func(b []byte) error { _, err := decodeReservation(b); return err }},
		"hello":       {h.append(nil), func(b []byte) error { _, err := decodeHello(b); return err }},
		"held":        {a.append(nil), func(b []byte) error { _, err := decodeHeld(b); return err }},
		"sync":        {(&syncRequest{1, 2, 0}).append(nil), func(b []byte) error { _, err := decodeSync(b); return err }},
	} {
		if err := c.decode(c.body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for i := range c.body {
			if c.decode(c.body[:i]) == nil {
				t.Errorf("%s cut at %d: no error", name, i)
			}
			flipped := append([]byte(nil), c.body...)
			flipped[i] ^= 0xff
			_ = c.decode(flipped) // anything but a panic
		}
	}
}
