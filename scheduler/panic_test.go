package scheduler

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/state"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// panicky panics in the lane, as a bug in a shard's code would.
type panicky struct {
	Probe
	had atomic.Bool
}

func (p *panicky) Command(store.Key, *engine.Engine, *engine.Command) {
	if p.had.CompareAndSwap(false, true) {
		panic("a bug")
	}
}

func (*panicky) Fed(store.Key, *engine.Engine, engine.Event) {}

// TestPanicInLane: the process is told to end, with lane and shard, and the other goroutines can still be stopped (FAULTS P12).
func TestPanicInLane(t *testing.T) {
	defer goleak.VerifyNone(t)
	log, rec, err := raftlog.Open(vfs.NewMem(), "log", raftlog.Options{SegmentBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	fatal := make(chan error, 1)
	db := state.NewMem(state.Options{})
	s, err := New(Config{Node: 1, Incarnation: 1, Lanes: 1, Fatal: func(err error) { fatal <- err }},
		Deps{Log: log, Recovery: rec, State: db, Network: noNet{}, Probe: &panicky{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := testDescriptor(7, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = s.CreateReplica(ctx, d, 1, CreateOptions{Campaign: true}) }()
	if err := <-fatal; !strings.Contains(err.Error(), "lane 0") || !strings.Contains(err.Error(), "a bug") {
		t.Error(err)
	}
	cancel()
	if err := s.Stop(ctx); err != nil {
		t.Log(err)
	}
	_ = log.Close()
	_ = db.Close()
}
