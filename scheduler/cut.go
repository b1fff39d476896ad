package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store/state"
)

// Cut is the content of a shard at one applied entry, read page by page off the lane: for a backup. It holds the shard's cut as a snapshot
// does, and is abandoned as one is (rule State3): Next fails then. It may be used by many goroutines. It must be closed.
type Cut struct {
	s    *Scheduler
	ctx  context.Context
	stop context.CancelFunc

	lane     *Lane
	r        *replica
	gen      uint64
	record   state.Record
	throttle bool

	mu     sync.Mutex
	src    *state.Snapshot // guarded by mu; nil once closed
	whole  bool            // guarded by mu: all was read
	closed bool            // guarded by mu
}

// cutsMax is how many cuts for backups a node has at a time: fewer than snapshots, so that the repair of shards never waits for a backup.
func (s *Scheduler) cutsMax() int { return max(1, s.cfg.SnapshotsMax/2) }

// Cut cuts a shard that this node has a replica of. The content has everything that the replica had applied when Cut was called: a cut
// that stands already is not joined if it is older. Who wants all acknowledged writes must read linearizably from this replica first.
func (s *Scheduler) Cut(ctx context.Context, id engine.ShardID) (*Cut, error) {
	if s.stopped.Load() {
		return nil, ErrStopped
	}
	if !acquire(&s.snaps.cuts, s.cutsMax()) {
		return nil, &shard.UnavailableError{RetryAfter: 100 * time.Millisecond,
			Reason: fmt.Sprintf("node %d reads %d shards for backups already, its limit", s.cfg.Node, s.cutsMax())}
	}
	c := &Cut{s: s, lane: s.laneOf(id)}
	c.ctx, c.stop = context.WithTimeout(s.ctx, snapshotTimeout)
	ch := make(chan error, 1)
	c.lane.box.putCall(func(l *Lane) { l.cutFor(c, id, func(err error) { ch <- err }) })
	var err error
	select {
	case err = <-ch:
	case <-ctx.Done():
		go func() { // ends with the lane's answer or the scheduler
			select {
			case err := <-ch:
				if c.settle(err); err == nil {
					c.Close()
				}
			case <-s.run.stop:
			}
		}()
		return nil, ctx.Err()
	case <-s.run.stop:
		c.stop()
		return nil, ErrStopped
	}
	if c.settle(err); err != nil {
		return nil, err
	}
	context.AfterFunc(c.ctx, c.Close)
	return c, nil
}

// settle gives back what a failed Cut has taken.
func (c *Cut) settle(err error) {
	if err != nil {
		c.stop()
		c.s.snaps.cuts.Add(-1)
	}
}

// cutFor makes the cut of c, when the shard is settled.
func (l *Lane) cutFor(c *Cut, id engine.ShardID, done func(error)) {
	r := l.byShard[id]
	if r == nil || r.machine == nil || r.removed {
		done(fmt.Errorf("shard %d: %w", id, shard.ErrShardNotFound))
		return
	}
	older := r.ckpt.cut != nil && r.ckpt.cut.change.Record.Applied != r.machine.Applied()
	if older || !l.hold(r) {
		if !l.settling(r) {
			done(&shard.UnavailableError{Reason: fmt.Sprintf("shard %d cannot be cut now", id)})
			return
		}
		l.whenSettled(r, func(l *Lane) {
			if c.ctx.Err() != nil {
				done(c.ctx.Err())
				return
			}
			l.cutFor(c, id, done)
		})
		return
	}
	l.step(r.key.Shard, "backup: cut")
	c.r, c.gen, c.record = r, r.ckpt.gen, r.ckpt.cut.change.Record
	c.src = l.s.state.OpenSnapshot(r.ckpt.cut.base, r.ckpt.cut.change.Record, frozenOf(r)...)
	c.throttle = r.ckpt.failed == 0
	r.ckpt.cut.streams = append(r.ckpt.cut.streams, c.stop)
	done(nil)
}

// Record is the record of the cut: what was applied, and the descriptor. It must not be changed.
func (c *Cut) Record() *state.Record { return &c.record }

// Next appends the next items to buf as state.AppendKV does, about budget bytes, and io.EOF behind the last one. The content that was read
// until then is returned, too. Any other error says that the cut was abandoned.
func (c *Cut) Next(ctx context.Context, buf []byte, budget int) ([]byte, state.Content, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ctx.Err() != nil {
		return buf, state.Content{}, &shard.UnavailableError{Reason: fmt.Sprintf("the backup of shard %d was abandoned, its writes need the room", c.record.Shard)}
	}
	before := len(buf)
	var err error
	for err == nil && len(buf)-before < budget {
		buf, err = c.src.NextItems(buf)
	}
	if errors.Is(err, io.EOF) {
		c.whole = true
	} else if err != nil {
		return buf, state.Content{}, &shard.UnavailableError{Reason: fmt.Sprintf("backup of shard %d: %v", c.record.Shard, err)}
	}
	content := c.src.Content()
	if rate := c.s.cfg.SnapshotBytesPerSec; rate > 0 && c.throttle {
		select {
		case <-time.After(time.Duration(len(buf)-before) * time.Second / time.Duration(rate)):
		case <-ctx.Done():
			return buf, content, ctx.Err()
		case <-c.ctx.Done():
		}
	}
	return buf, content, err
}

// Close lets the shard's cut go. It may be called again.
func (c *Cut) Close() {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed, c.src = true, nil
	c.s.snaps.cuts.Add(-1)
	whole := c.whole
	c.lane.box.putCall(func(l *Lane) {
		if c.r.ckpt.failed++; whole {
			c.r.ckpt.failed, c.r.ckpt.abandoned = 0, 0
		}
		l.letGo(c.r, c.gen)
	})
}
