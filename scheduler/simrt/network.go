package simrt

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler"
)

// NetFaults is what the network does to what it carries. Chances are per frame.
type NetFaults struct {
	Drop, Dup float64
	// Slow is the chance that a frame takes up to SlowMax; later ones overtake it, unless FIFO is set.
	Slow    float64
	SlowMax time.Duration
	// FIFO keeps the order of frames between two nodes, as a session does.
	FIFO bool
	// DropHeartbeat is the chance that a node heartbeat is lost.
	DropHeartbeat float64
	// BreakSnapshot is the chance, per chunk, that a snapshot stream breaks.
	BreakSnapshot float64
	// Refuse is the chance that the outbox to a peer is full.
	Refuse float64
	// BytesPerSecond is what one direction between two nodes carries, of snapshots apart; 0: any amount. Frames wait for those before them, and
	// heartbeats do so too, as if there were one buffer for both.
	BytesPerSecond int
}

func pair(a, b engine.NodeID) [2]engine.NodeID { return [2]engine.NodeID{min(a, b), max(a, b)} }

// Reconnect breaks the session between two nodes, with what is on its way, and makes a new one after d.
func (c *Cluster) Reconnect(a, b engine.NodeID, d time.Duration) {
	c.session[pair(a, b)]++
	x, y := c.Node(a), c.Node(b)
	for _, e := range [][2]*Node{{x, y}, {y, x}} {
		if n, o := e[0], e[1]; n.Up {
			inc := o.incarnation
			n.after(c.jitter(netDelay), func() { n.Sched.PeerDisconnected(o.ID, inc) })
		}
	}
	xl, yl := x.life, y.life
	c.after(d+2*netDelay, func() {
		if x.Up && y.Up && x.life == xl && y.life == yl {
			c.connect(x, y, 0)
		}
	})
}

// network is what one life of a node sends through.
type network struct {
	n    *Node
	life uint64
}

func (w network) alive() bool { return w.n.Up && w.n.life == w.life }

// SendRaft implements scheduler.Network.
func (w network) SendRaft(to engine.NodeID, _ int, msgs []byte, bulk bool) bool {
	c := w.n.c
	if c.Net.Refuse > 0 && c.Rand.Float64() < c.Net.Refuse {
		return false
	}
	copies := 1
	if c.Rand.Float64() < c.Net.Drop {
		copies = 0
	} else if c.Rand.Float64() < c.Net.Dup {
		copies = 2
	}
	stream := uint64(0)
	if bulk {
		stream = 2
	}
	for range copies {
		w.send(to, stream, msgs, w.delay(to, stream, netDelay), func(s *scheduler.Scheduler, body []byte) {
			s.RaftFrame(w.n.ID, w.n.incarnation, body)
		})
	}
	return true
}

// SendHeartbeat implements scheduler.Network.
func (w network) SendHeartbeat(to engine.NodeID, body []byte) bool {
	c := w.n.c
	if c.Net.DropHeartbeat > 0 && c.Rand.Float64() < c.Net.DropHeartbeat {
		return true
	}
	w.send(to, 1, body, w.delay(to, 1, netDelay), func(s *scheduler.Scheduler, body []byte) {
		if err := s.Heartbeat(w.n.ID, w.n.incarnation, body); err != nil && c.Failed == nil {
			c.Failed = err
		}
	})
	return true
}

// delay draws how long a frame takes.
func (w network) delay(to engine.NodeID, stream uint64, usual time.Duration) time.Duration {
	c := w.n.c
	d := c.jitter(usual)
	if c.Net.Slow > 0 && c.Rand.Float64() < c.Net.Slow {
		d += time.Duration(c.Rand.Int64N(int64(c.Net.SlowMax) + 1))
	}
	if c.Net.FIFO {
		k := [3]uint64{uint64(w.n.ID), uint64(to), stream}
		at := max(c.now+engine.Instant(d), c.arrival[k]+1)
		c.arrival[k] = at
		d = time.Duration(at - c.now)
	}
	return d
}

func (w network) send(to engine.NodeID, _ uint64, b []byte, d time.Duration, deliver func(*scheduler.Scheduler, []byte)) bool {
	c := w.n.c
	dst := c.Node(to)
	link := [2]engine.NodeID{w.n.ID, to}
	if !w.alive() || !dst.Up || c.cut[link] {
		return false
	}
	d += c.queue(link, len(b))
	body := slices.Clone(b)
	session := c.session[pair(w.n.ID, to)]
	dst.after(d, func() {
		// What is on its way when a process ends or a session breaks is lost.
		if w.alive() && session == c.session[pair(w.n.ID, to)] && !c.cut[link] {
			deliver(dst.Sched, body)
			dst.pump()
		}
	})
	return true
}

// queue puts bytes on a link, and tells how much later they arrive for what is on it already.
func (c *Cluster) queue(link [2]engine.NodeID, n int) time.Duration {
	c.sent[link] += n
	if c.Net.BytesPerSecond == 0 {
		return 0
	}
	took := engine.Instant(n) * engine.Instant(time.Second) / engine.Instant(c.Net.BytesPerSecond)
	c.busy[link] = max(c.busy[link], c.now) + took
	return time.Duration(c.busy[link] - c.now)
}

var errNoConnection = errors.New("no connection")

// OpenSnapshot implements scheduler.Network.
func (w network) OpenSnapshot(_ context.Context, to engine.NodeID, header []byte) (scheduler.SnapshotWriter, error) {
	c := w.n.c
	dst := c.Node(to)
	if !w.alive() || !dst.Up || c.cut[[2]engine.NodeID{w.n.ID, to}] {
		return nil, errNoConnection
	}
	s := &snapStream{w: w, dst: dst, dstLife: dst.life, session: c.session[pair(w.n.ID, to)]}
	from, inc := w.n.ID, w.n.incarnation
	head := slices.Clone(header)
	dst.spawn(c.jitter(netDelay), func() { dst.Sched.Snapshot(from, inc, head, (*snapReader)(s)) })
	return s, nil
}

// snapStream is a snapshot on its way: its writer is a task of one node, its reader a task of the other.
type snapStream struct {
	w       network
	dst     *Node
	dstLife uint64
	session uint64
	chunks  [][]byte
	done    bool // the writer has finished
	taken   bool // the reader has
	err     error
}

// snapWindow is how many chunks are not acknowledged at most.
const snapWindow = 4

func (s *snapStream) check() error {
	c := s.w.n.c
	if s.err == nil && (!s.w.alive() || !s.dst.Up || s.dst.life != s.dstLife || c.session[pair(s.w.n.ID, s.dst.ID)] != s.session ||
		c.cut[[2]engine.NodeID{s.w.n.ID, s.dst.ID}]) {
		s.err = errNoConnection
	}
	return s.err
}

func (s *snapStream) Write(_ context.Context, chunk []byte) error {
	c := s.w.n.c
	if c.Net.BreakSnapshot > 0 && c.Rand.Float64() < c.Net.BreakSnapshot {
		s.err = errNoConnection
	}
	for s.check() == nil && len(s.chunks) >= snapWindow {
		if !c.sleep(netDelay) {
			s.err = errNoConnection
		}
	}
	if s.err != nil {
		return s.err
	}
	s.chunks = append(s.chunks, slices.Clone(chunk))
	c.sleep(c.jitter(netDelay))
	return s.check()
}

func (s *snapStream) Finish(context.Context) error {
	s.done = true
	for s.check() == nil && !s.taken {
		if !s.w.n.c.sleep(netDelay) {
			s.err = errNoConnection
		}
	}
	return s.err
}

func (s *snapStream) Abort(string) {
	if s.err == nil {
		s.err = errNoConnection
	}
}

type snapReader snapStream

func (r *snapReader) Next(context.Context) ([]byte, error) {
	s := (*snapStream)(r)
	for len(s.chunks) == 0 {
		if s.check() != nil {
			return nil, s.err
		}
		if s.done {
			return nil, io.EOF
		}
		if !s.w.n.c.sleep(netDelay) {
			return nil, errNoConnection
		}
	}
	b := s.chunks[0]
	s.chunks = s.chunks[1:]
	return b, nil
}

func (r *snapReader) Finish(err error) error {
	s := (*snapStream)(r)
	s.taken = true
	if err != nil && s.err == nil {
		s.err = err
	}
	return nil
}
