package simrt

import (
	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// localClock is the clock of one node.
type localClock struct{ *clockState }

type clockState struct {
	c      *Cluster
	base   engine.Instant // of the cluster, when the clock was last set
	local  engine.Instant // of the node then
	rate   float64
	wallMs int64
}

// Now implements scheduler.Clock.
func (k localClock) Now() engine.Instant {
	return k.local + engine.Instant(float64(k.c.now-k.base)*k.rate)
}

// Wall implements scheduler.Clock.
func (k localClock) Wall() int64 { return 1_700_000_000_000 + int64(k.c.now)/1e6 + k.wallMs }

// startClock starts the monotonic clock of a new life.
func (n *Node) startClock() {
	old := n.clock
	n.clock = localClock{&clockState{c: n.c, base: n.c.now, local: n.c.now, rate: 1}}
	if old.clockState != nil {
		n.clock.rate, n.clock.wallMs = old.rate, old.wallMs
	}
	if n.c.Opt.Skew {
		n.clock.local = engine.Instant(1e9 + n.c.Rand.Int64N(1e12))
	}
}

// SetClock makes the node's monotonic clock run at this rate from now on, and its wall clock be off by so much.
func (n *Node) SetClock(rate float64, wallMs int64) {
	if n.Lives == 0 {
		return
	}
	now := n.clock.Now()
	*n.clock.clockState = clockState{c: n.c, base: n.c.now, local: now, rate: rate, wallMs: wallMs}
}

// Clock returns the node's clock.
func (n *Node) Clock() engine.Instant { return n.clock.Now() }

func (n *Node) wipe() {
	n.disk, n.db = vfs.NewMem(), state.NewMem(n.stateOptions())
}
