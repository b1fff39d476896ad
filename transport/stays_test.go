package transport

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
)

// meeting is a Transport whose sessions with node 2 are made by hand, one end of each.
type meeting struct {
	t   *testing.T
	tr  *Transport
	r   *recorder
	ids uint64
}

// Identities of node 2; that of node 1 is between the two.
var lowerID, higherID = ID{1}, ID{9}

func newMeeting(t *testing.T, h *recorder, attests bool) *meeting {
	t.Helper()
	cfg := newNet().config(1)
	cfg.Identity = ID{5}
	cfg.Attesting = func(engine.NodeID, uint64) bool { return attests }
	tr, err := New(cfg, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return &meeting{t: t, tr: tr, r: h}
}

// session makes an end of a session that is not registered.
func (m *meeting) session(dialled bool, incarnation uint64, other ID) *session {
	m.ids++
	x, y := newPair(fmt.Sprint("s", m.ids))
	m.t.Cleanup(func() { x.Close(); y.Close() })
	s := newSession(m.tr.core, newConn(x, m.tr.core.clock), m.r)
	s.id, s.dialled = m.ids, dialled
	s.info = PeerInfo{ClusterID: cluster, Node: 2, Identity: other, Incarnations: []uint64{incarnation}}
	return s
}

func (m *meeting) register(s *session) {
	m.t.Helper()
	if ref := m.tr.register(s, 0); ref != nil {
		m.t.Fatal(ref)
	}
}

func reasonOf(r *Refused) Reason {
	if r == nil {
		return 0
	}
	return r.Reason
}

// TestWhichSessionStays: when a second session with a node is about to begin, one rule says on both sides which one stays (rules Cluster8 and Cluster9, FAULTS
// N7, N15). One that is refused leaves the first alone, one that is taken ends it.
func TestWhichSessionStays(t *testing.T) {
	const same, later = 100, 101 // incarnations of the peer
	for _, c := range []struct {
		what          string
		here          bool // the first was dialled by this side,
		again         bool // and the second
		other         ID
		incarnation   uint64
		attests, drop bool
		want          Reason
	}{
		{"both dialled by this side", true, true, higherID, same, true, false, ReasonConnected},
		{"both dialled by the other, which has lost the first", false, false, higherID, same, true, false, 0},
		{"they cross, and the other one's stays", true, false, lowerID, same, true, false, 0},
		{"they cross, and this one's stays", true, false, higherID, same, true, false, ReasonConnected},
		{"they cross the other way, and this one's stays", false, true, higherID, same, true, false, 0},
		{"they cross the other way, and the other one's stays", false, true, lowerID, same, true, false, ReasonConnected},
		{"they cross, but the first was given up for it", true, false, higherID, same, true, true, 0},
		{"another process while the first is alive", true, false, lowerID, later, true, false, ReasonAlive},
		{"another process, and nobody attests the first", true, false, higherID, later, false, false, 0},
	} {
		m := newMeeting(t, newRecorder(), c.attests)
		m.tr.SetPeer(2, "")
		first, second := m.session(c.here, same, c.other), m.session(c.again, c.incarnation, c.other)
		m.register(first)
		dropped := uint64(0)
		if c.drop {
			dropped = first.id
		}
		if got := m.tr.register(second, dropped); reasonOf(got) != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
		m.tr.mu.Lock()
		cur := m.tr.peers[2].cur
		m.tr.mu.Unlock()
		if c.want != 0 {
			if !first.alive() || cur != first {
				t.Errorf("%s: the second was refused, and the first has ended", c.what)
			}
			continue
		}
		until(t, "the end of the first", func() bool { return !first.alive() })
		if cur != second {
			t.Errorf("%s: the second is not the one", c.what)
		}
	}
}

// TestGreeting: what the listener says to a hello while there is a session (rules Cluster8 and Cluster9).
func TestGreeting(t *testing.T) {
	const same, later = 100, 101
	for _, c := range []struct {
		what        string
		here        bool // the session was dialled by this side
		other       ID
		incarnation uint64
		attests     bool
		held        bool // the dialler says that it holds the session
		want        Reason
		gone        bool // the session is given up
	}{
		{"it holds the session", false, higherID, same, true, true, ReasonConnected, false},
		{"it holds this one's, which stays", true, higherID, same, true, true, ReasonConnected, false},
		{"it holds this one's, which its own will replace", true, lowerID, same, true, true, 0, false},
		{"it has lost the session", false, higherID, same, true, false, 0, true},
		{"it has lost this one's session", true, higherID, same, true, false, 0, true},
		{"it is another process, and the first is alive", false, higherID, later, true, false, ReasonAlive, false},
		{"it is another process, and nobody attests the first", false, higherID, later, false, false, 0, true},
	} {
		m := newMeeting(t, newRecorder(), c.attests)
		m.tr.SetPeer(2, "")
		s := m.session(c.here, same, c.other)
		m.register(s)
		h := &hello{node: 2, identity: c.other}
		if c.held {
			h.held = s.id
		}
		dropped, ref := m.tr.greet(h, c.incarnation)
		if reasonOf(ref) != c.want || c.gone == s.alive() || c.gone != (dropped == s.id) {
			t.Errorf("%s: %v, gave up %d, alive %v", c.what, ref, dropped, s.alive())
		}
		if !c.gone {
			continue
		}
		// Its confirmation may come after all, if it was dialled from here and on its way.
		again := m.session(c.here, same, c.other)
		again.id = s.id
		if ref := m.tr.register(again, 0); reasonOf(ref) != ReasonConnected {
			t.Errorf("%s: what was given up comes back: %v", c.what, ref)
		}
	}
	m := newMeeting(t, newRecorder(), true)
	if _, ref := m.tr.greet(&hello{node: 2}, same); ref != nil {
		t.Errorf("a node that is new: %v", ref)
	}
}

// TestHelloSaysWhatIsHeld: a node that dials while it has a session says which, or the listener would give that up.
func TestHelloSaysWhatIsHeld(t *testing.T) {
	m := newMeeting(t, newRecorder(), true)
	m.tr.SetPeer(2, "")
	m.register(m.session(true, 100, higherID))
	x, y := newPair("dialled")
	m.tr.cfg.Dial = func(context.Context, string) (net.Conn, error) { return x, nil }
	m.tr.mu.Lock()
	p, want := m.tr.peers[2], m.tr.peers[2].cur.id
	m.tr.mu.Unlock()
	go func() { // ends when y is closed
		_ = m.tr.dialPeer(t.Context(), p, "dialled")
	}()
	b, err := readHandshake(newConn(y, m.tr.core.clock), kindHello)
	var h hello
	if err == nil {
		err = h.decode(b)
	}
	if err != nil || h.held != want {
		t.Errorf("it says that it holds session %d, and holds %d: %v", h.held, want, err)
	}
	y.Close()
}

// TestLateEndOfTheReplaced: a session that was replaced ends after its successor has begun, and takes nothing from that.
func TestLateEndOfTheReplaced(t *testing.T) {
	h := newRecorder()
	m := newMeeting(t, h, true)
	m.tr.SetPeer(2, "")
	first, second := m.session(true, 100, higherID), m.session(true, 100, higherID)
	m.register(first)
	until(t, "the first", func() bool { return m.tr.Connected(2) })
	ended := make(chan struct{})
	end := first.end
	first.end = func() { end(); <-ended } // its goroutine has the lock to take after this
	if ref := m.tr.register(second, first.id); ref != nil {
		t.Fatal(ref)
	}
	m.tr.mu.Lock()
	close(ended)
	p := m.tr.peers[2]
	for limit := time.Now().Add(20 * time.Second); p.live.Load() != second && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	m.tr.mu.Unlock()
	until(t, "the end of the first", func() bool {
		m.tr.mu.Lock()
		defer m.tr.mu.Unlock()
		_, there := m.tr.sessions[first]
		return !there
	})
	if !m.tr.Connected(2) {
		t.Error("the session that replaced another was forgotten with it")
	}
}

// TestFlappingLinkIsDialledSeldom: a session that ends at once does not begin the pauses between dials anew, one that has lasted does (FAULTS N8).
func TestFlappingLinkIsDialledSeldom(t *testing.T) {
	l := quick()
	l.defaults()
	for session, want := range map[time.Duration]int{0: 7, l.BackoffMax: 7, l.BackoffMax + 1: 0, time.Hour: 0} {
		if n := failuresAfter(&l, 7, session); n != want {
			t.Errorf("after a session of %v %d failures count, want %d", session, n, want)
		}
	}
}

// TestBackoff: the pauses between dials grow, are bounded, and are not the same on two nodes.
func TestBackoff(t *testing.T) {
	l := quick()
	l.defaults()
	for failures := range 70 {
		most := l.BackoffMax
		if failures < 5 {
			most = min(most, l.BackoffMin<<failures)
		}
		seen, longest := map[time.Duration]bool{}, time.Duration(0)
		for range 200 {
			d := backoff(&l, failures)
			if d <= 0 || d > most {
				t.Fatalf("%d failures: a pause of %v, at most %v", failures, d, most)
			}
			seen[d], longest = true, max(longest, d)
		}
		if len(seen) < 100 || longest < most/2 {
			t.Errorf("%d failures: %d different pauses of 200, the longest %v of %v", failures, len(seen), longest, most)
		}
	}
}
