package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// snapshots counts what is under way, against Config.SnapshotsMax.
type snapshots struct {
	out, in atomic.Int64
	cuts    atomic.Int64 // for backups, against cutsMax

	mu      sync.Mutex
	sending map[*outgoing]struct{}
}

// outgoing is a snapshot that is being sent.
type outgoing struct {
	shard engine.ShardID
	to    engine.NodeID
	sent  atomic.Uint64 // bytes of the stream
}

func (s *snapshots) begin(o *outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending == nil {
		s.sending = map[*outgoing]struct{}{}
	}
	s.sending[o] = struct{}{}
}

func (s *snapshots) end(o *outgoing) {
	s.mu.Lock()
	delete(s.sending, o)
	s.mu.Unlock()
	s.out.Add(-1)
}

// sent returns how many bytes of the snapshots of a shard that are under way were sent.
func (s *snapshots) sent(id engine.ShardID) (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for o := range s.sending {
		if o.shard == id {
			n += o.sent.Load()
		}
	}
	return n
}

// taken says in words who has the slots of this node.
func (s *snapshots) taken(node engine.NodeID, max int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := make([]string, 0, len(s.sending))
	for o := range s.sending {
		by = append(by, fmt.Sprintf("shard %d to node %d", o.shard, o.to))
	}
	slices.Sort(by)
	if len(by) > 4 {
		by = append(by[:4], "…")
	}
	return fmt.Sprintf("waits for a snapshot slot on node %d, %d of %d are taken, by %s", node, len(s.sending), max, strings.Join(by, ", "))
}

func acquire(n *atomic.Int64, max int) bool {
	if n.Add(1) > int64(max) {
		n.Add(-1)
		return false
	}
	return true
}

// snapshotHeader is what a snapshot stream starts with: a msgpack array of these fields; newer versions add behind them. What the
// snapshot covers is in the record that its first chunk holds.
type snapshotHeader struct {
	shard    engine.ShardID
	from, to engine.ReplicaID
	vote     engine.Vote
	stream   uint64
}

const snapshotHeaderFields = 8

func (h *snapshotHeader) append(b []byte) []byte {
	b = mp.AppendArray(b, snapshotHeaderFields)
	b = mp.AppendUint(b, uint64(h.shard))
	b = mp.AppendUint(b, uint64(h.from))
	b = mp.AppendUint(b, uint64(h.to))
	b = mp.AppendUint(b, h.vote.Term)
	b = mp.AppendUint(b, uint64(h.vote.Peer.Node))
	b = mp.AppendUint(b, uint64(h.vote.Peer.Replica))
	b = mp.AppendBool(b, h.vote.Committed)
	return mp.AppendUint(b, h.stream)
}

func (h *snapshotHeader) decode(b []byte) error {
	r := mp.NewReader(b)
	extra := r.ArrayMin(snapshotHeaderFields)
	h.shard = engine.ShardID(r.Uint())
	h.from, h.to = engine.ReplicaID(r.Uint()), engine.ReplicaID(r.Uint())
	h.vote.Term = r.Uint()
	h.vote.Peer = engine.Peer{Node: engine.NodeID(r.Uint()), Replica: engine.ReplicaID(r.Uint())}
	h.vote.Committed = r.Bool()
	h.stream = r.Uint()
	r.Skip(extra)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("snapshot header: %w", err)
	}
	return nil
}

// sendSnapshot starts to send a snapshot: it is cut when a slot is free and the node alive, in the lane, and streamed by a task (rule State3).
func (l *Lane) sendSnapshot(r *replica, to engine.Peer, vote engine.Vote, stream uint64) {
	if r.machine == nil {
		return
	}
	if !l.s.live.up(to.Node) { // to try would cost a cut, and the slot that another follower needs
		l.snapshotOver(r, to, stream, fmt.Errorf("waits for node %d, which is not alive", to.Node), false)
		return
	}
	if !acquire(&l.s.snaps.out, l.s.cfg.SnapshotsMax) {
		l.snapshotOver(r, to, stream, errors.New(l.s.snaps.taken(l.s.cfg.Node, l.s.cfg.SnapshotsMax)), false)
		return
	}
	if !l.hold(r) {
		// A checkpoint or the like is being written: the cut is made after it.
		l.s.snaps.out.Add(-1)
		l.whenSettled(r, func(l *Lane) {
			if !r.removed && r.eng.StreamLive(to, stream) {
				l.sendSnapshot(r, to, vote, stream)
			}
		})
		return
	}
	l.step(r.key.Shard, "snapshot: cut")
	gen := r.ckpt.gen
	h := snapshotHeader{shard: r.key.Shard, from: r.key.Replica, to: to.Replica, vote: vote, stream: stream}
	src := l.s.state.OpenSnapshot(r.ckpt.cut.base, r.ckpt.cut.change.Record, frozenOf(r)...)
	node := to.Node
	ctx, cancel := context.WithTimeout(l.s.ctx, snapshotTimeout)
	r.ckpt.cut.streams = append(r.ckpt.cut.streams, cancel)
	throttle := r.ckpt.failed == 0
	o := &outgoing{shard: r.key.Shard, to: node}
	l.s.snaps.begin(o)
	l.s.spawn(func() {
		began := l.s.clock.Now()
		err := l.s.streamSnapshot(ctx, node, &h, src, throttle, &o.sent)
		cancel()
		if err == nil {
			l.s.metrics.SnapshotSend.Observe(int64(l.s.clock.Now() - began))
		}
		l.s.snaps.end(o)
		l.box.putCall(func(l *Lane) {
			if r.ckpt.failed++; err == nil {
				r.ckpt.failed, r.ckpt.abandoned = 0, 0
			}
			l.letGo(r, gen)
			l.snapshotOver(r, to, stream, err, true)
		})
	})
}

// frozenOf returns the frozen overlay of r, which was cut, for the store's functions, which take them as a list.
func frozenOf(r *replica) []*state.Overlay {
	if r.ckpt.cut.change.Overlay == nil {
		return nil
	}
	return []*state.Overlay{r.ckpt.cut.change.Overlay}
}

// snapshotOver notes how the sending of a snapshot ended. That it was installed is said by the follower's SnapshotResponse.
func (l *Lane) snapshotOver(r *replica, to engine.Peer, stream uint64, err error, tried bool) {
	r.snapNote = nil
	if err != nil {
		note := err.Error()
		if tried {
			note = fmt.Sprintf("the last snapshot to node %d failed: %v", to.Node, err)
		}
		r.snapNote = &note
	}
	if err == nil {
		l.s.metrics.SnapshotsSent.Add(1)
		// The answer may be lost, or the follower may have found no use for it: then it is sent again.
		l.later(2*l.s.cfg.ElectionTimeoutMin, func(l *Lane) {
			if !r.removed && r.eng.StreamLive(to, stream) {
				l.feed(r, &engine.SnapshotFailed{To: to, Stream: stream})
			}
		})
		return
	}
	if tried {
		l.s.metrics.SnapshotsFailed.Add(1)
		l.unsent++
		if l.unsentAt == 0 || l.now-l.unsentAt > engine.Instant(unsentEvery) {
			l.s.logger.Warn("snapshot not sent", "shard", uint64(r.key.Shard), "node", uint64(to.Node), "err", err, "count", l.unsent)
			l.unsent, l.unsentAt = 0, l.now
		}
	}
	failed := func(l *Lane) {
		if !r.removed {
			l.feed(r, &engine.SnapshotFailed{To: to, Stream: stream})
		}
	}
	if tried { // the engine tries again at its next heartbeat: first it is the turn of those who wait for the slot
		l.later(l.s.cfg.ElectionTimeoutMin, failed)
		return
	}
	l.box.putCall(failed)
}

// unsentEvery is how often a lane logs that snapshots were not sent: to a node that is in trouble they may be many.
const unsentEvery = engine.Duration(10e9)

// snapshotTimeout bounds the sending of one snapshot: over it it is abandoned (rule State3).
const snapshotTimeout = 10 * time.Minute

// streamSnapshot sends one snapshot, off the lane.
func (s *Scheduler) streamSnapshot(ctx context.Context, node engine.NodeID, h *snapshotHeader, src *state.Snapshot, throttle bool, sent *atomic.Uint64) (err error) {
	w, err := s.net.OpenSnapshot(ctx, node, h.append(nil))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.Abort(err.Error())
		}
	}()
	var buf []byte
	for {
		buf, err = src.Next(buf[:0])
		if errors.Is(err, io.EOF) {
			return w.Finish(ctx)
		}
		if err != nil {
			return err
		}
		if err := w.Write(ctx, buf); err != nil {
			return err
		}
		sent.Add(uint64(len(buf)))
		if rate := s.cfg.SnapshotBytesPerSec; rate > 0 && throttle && s.run.started {
			select {
			case <-time.After(time.Duration(len(buf)) * time.Second / time.Duration(rate)):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// snapshotIn is a snapshot that has arrived in a fresh tablet and waits to be linked.
type snapshotIn struct {
	token  uint64
	from   engine.Peer
	header snapshotHeader
	ingest *state.Ingest
	record state.Record
}

// Snapshot takes a snapshot that a peer sends into a fresh tablet, and hands it to its shard; it returns when that is done, or when it
// was refused. It is called on a goroutine of its own.
func (s *Scheduler) Snapshot(from engine.NodeID, incarnation uint64, header []byte, r SnapshotReader) {
	began := s.clock.Now()
	err := s.takeSnapshot(from, incarnation, header, r)
	if err == nil {
		s.metrics.SnapshotReceive.Observe(int64(s.clock.Now() - began))
	} else {
		s.metrics.SnapshotsFailed.Add(1)
		s.logger.Warn("snapshot refused", "node", uint64(from), "err", err)
	}
	_ = r.Finish(err) // the sender learns of the installation by the engine's answer
}

func (s *Scheduler) takeSnapshot(from engine.NodeID, incarnation uint64, header []byte, r SnapshotReader) error {
	var h snapshotHeader
	if err := h.decode(header); err != nil {
		return err
	}
	if s.stopped.Load() {
		return ErrStopped
	}
	if !acquire(&s.snaps.in, s.cfg.SnapshotsMax) {
		return fmt.Errorf("node %d takes %d snapshots already, its limit", s.cfg.Node, s.cfg.SnapshotsMax)
	}
	defer s.snaps.in.Add(-1)
	l := s.laneOf(h.shard)
	key := store.Key{Shard: h.shard, Replica: h.to}
	ctx, cancel := context.WithTimeout(s.ctx, snapshotTimeout)
	defer cancel()
	tablet, err := s.state.AllocTablet()
	if err != nil {
		return err
	}
	in, err := s.state.NewIngest(tablet)
	if err != nil {
		return err
	}
	if err := fill(ctx, in, r); err != nil {
		_ = in.Abort()
		return err
	}
	rec, ok := in.Record()
	if !ok {
		_ = in.Abort()
		return errors.New("snapshot without a record")
	}
	snap := &snapshotIn{from: engine.Peer{Node: from, Replica: h.from}, header: h, ingest: in, record: rec}
	l.box.putCall(func(l *Lane) {
		if !l.snapshotArrived(key, incarnation, snap) {
			l.abortIngest(in)
		}
	})
	s.metrics.SnapshotsReceived.Add(1)
	return nil
}

// fill moves all chunks into the tablet.
func fill(ctx context.Context, in *state.Ingest, r SnapshotReader) error {
	for {
		chunk, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			_, err = in.Finish()
			return err
		}
		if err != nil {
			return err
		}
		if err := in.Chunk(chunk); err != nil {
			return err
		}
	}
}

// snapshotArrived offers a snapshot to the engine. False: it is not wanted.
func (l *Lane) snapshotArrived(key store.Key, incarnation uint64, snap *snapshotIn) bool {
	if !l.s.live.current(snap.from.Node, incarnation) {
		return false
	}
	r := l.byShard[key.Shard]
	if r == nil {
		if l.tombAbove(key) || l.orphaned(key.Shard) {
			return false
		}
		r = l.newUninitialised(key)
	}
	if r == nil || r.key != key || r.snapIn != nil || l.replaying(r) {
		return false
	}
	desc, err := shard.DescriptorOf(&snap.record)
	if err != nil || desc.Shard != key.Shard {
		l.s.logger.Warn("unreadable snapshot", "shard", uint64(key.Shard), "err", err)
		return false
	}
	snap.record.Key = key
	snap.record.Extents = []state.Extent{{Start: desc.Start, End: desc.End, Tablet: snap.ingest.Tablet()}}
	l.token++
	snap.token = l.token
	r.snapIn = snap
	l.feed(r, &engine.SnapshotReceived{Token: snap.token, From: snap.from, Vote: snap.header.vote, Stream: snap.header.stream,
		Meta: engine.SnapshotMeta{Last: snap.record.Applied, Membership: snap.record.Membership}})
	return true
}

func (l *Lane) abortIngest(in *state.Ingest) {
	l.s.spawn(func() {
		if err := in.Abort(); err != nil && !errors.Is(err, state.ErrClosed) {
			l.s.logger.Warn("removing a tablet", "err", err)
		}
	})
}

func (l *Lane) rejectSnapshot(r *replica, token uint64) {
	if r.snapIn != nil && r.snapIn.token == token {
		l.abortIngest(r.snapIn.ingest)
		r.snapIn = nil
	}
}

// installSnapshot links the snapshot in: first the state's transaction, off the lane, then the log records that the engine orders when
// it hears of it (rule Log7). Nothing is applied and no cut is made until then.
func (l *Lane) installSnapshot(r *replica, c *engine.Command) {
	snap := r.snapIn
	if snap == nil || snap.token != c.Token {
		return
	}
	l.linkSnapshot(r, snap, *c.Snapshot)
}

func (l *Lane) linkSnapshot(r *replica, snap *snapshotIn, meta engine.SnapshotMeta) {
	if r.removed || r.snapIn != snap {
		return
	}
	if l.settling(r) {
		l.expedite(r) // what it streams itself, as the leader it was, nobody wants any more
		l.whenSettled(r, func(l *Lane) { l.linkSnapshot(r, snap, meta) })
		return
	}
	if l.burying(r.key.Shard) {
		l.later(createRetry, func(l *Lane) { l.linkSnapshot(r, snap, meta) })
		return
	}
	if r.machine != nil && r.machine.Applied().Index >= snap.record.Applied.Index { // it came too late (rule Log7)
		l.abortIngest(snap.ingest)
		l.snapshotLinked(r, snap, meta, false)
		return
	}
	r.linking = true
	r.apply.gen++ // what is read for an apply in progress is void
	r.apply.parked = r.apply.active
	l.cancelMerge(r)
	desc, err := shard.DescriptorOf(&snap.record)
	if err != nil {
		l.s.fatal(fmt.Errorf("shard %d: snapshot: %w", r.key.Shard, err)) // it was read before
		return
	}
	l.s.takeCovered(0, desc, nil, func(dead []state.Change) { l.s.writeLink(r, snap, meta, dead) })
}

// writeLink writes the transaction of a link: the snapshot's record, and the tombstones of those that its shard has absorbed.
func (s *Scheduler) writeLink(r *replica, snap *snapshotIn, meta engine.SnapshotMeta, dead []state.Change) {
	l := r.lane
	changes := append([]state.Change{{Record: snap.record}}, dead...)
	l.s.spawn(func() {
		l.s.step(r.key.Shard, "snapshot: link")
		err := l.s.state.Write(changes, l.s.log.Synced())
		switch {
		case err == nil:
			l.s.step(r.key.Shard, "snapshot: linked")
			s.dropCovered(dead)
		case errors.Is(err, state.ErrNoSpace), errors.Is(err, state.ErrStale), errors.Is(err, state.ErrTombstoned):
			l.s.logger.Warn("snapshot not linked", "shard", uint64(r.key.Shard), "err", err)
			_ = snap.ingest.Abort()
			s.leaveCovered(dead, err)
		case errors.Is(err, state.ErrClosed):
			return
		default:
			l.s.fatal(fmt.Errorf("shard %d: linking a snapshot: %w", r.key.Shard, err))
			return
		}
		l.box.putCall(func(l *Lane) { l.snapshotLinked(r, snap, meta, err == nil) })
	})
}

// snapshotLinked takes over the state of a snapshot that is durable now, and tells the engine.
func (l *Lane) snapshotLinked(r *replica, snap *snapshotIn, meta engine.SnapshotMeta, linked bool) {
	r.linking = false
	r.snapIn = nil
	if r.removed {
		return
	}
	if linked {
		m, err := shard.Open(l.env, &snap.record)
		if err != nil {
			l.s.fatal(fmt.Errorf("shard %d: snapshot: %w", r.key.Shard, err)) // its record was read before
			return
		}
		if r.machine != nil {
			r.machine.Close()
		}
		r.machine = m
		r.wantSnapshot, r.stopped = false, false // it may be from behind the entry that was not understood
		l.noteMerging(r)
		r.apply.active, r.apply.done, r.apply.parked, r.apply.job = false, false, false, nil
		r.run = nil
		if l.s.probe != nil {
			l.s.probe.Linked(r.key, snap.record.Applied)
		}
		l.settleSnapshot(r, snap.record.Applied)
	}
	l.feed(r, &engine.SnapshotInstalled{Token: snap.token, Meta: meta, Superseded: !linked})
	r.refreshPeers()
	l.announce(r)
	l.runAfter(r)
}
