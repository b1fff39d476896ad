package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/raftlog"
)

// logState is what a lane's part of the log should hold: the naive version.
type logState map[raftlog.Key]logReplica

type logReplica struct {
	vote      engine.Vote
	committed engine.LogID
	purged    engine.LogID
	entries   []logEntry // from purged.Index+1 on
}

type logEntry struct {
	term uint64
	body string
}

func (r *logReplica) last() engine.LogID {
	if n := len(r.entries); n > 0 {
		return engine.LogID{Term: r.entries[n-1].term, Index: r.purged.Index + uint64(n)}
	}
	return r.purged
}

// clone copies s. Entries are shared, but clipped, so that neither side's appends are seen by the other.
func (s logState) clone() logState {
	out := maps.Clone(s)
	for k, r := range out {
		r.entries = slices.Clip(r.entries)
		out[k] = r
	}
	return out
}

// compare tells how what was recovered of the keys of s, and of others for which mine is true, differs from s.
func (s logState) compare(rec *raftlog.Recovery, mine func(raftlog.Key) bool) error {
	for k := range rec.Replicas {
		if _, ok := s[k]; mine(k) && !ok {
			return fmt.Errorf("replica %v was recovered, and should not exist", k)
		}
	}
	for k, want := range s {
		got := rec.Replicas[k]
		if got == nil {
			return fmt.Errorf("replica %v was not recovered", k)
		}
		if got.Vote != want.vote || got.Committed != want.committed || got.Purged != want.purged || got.Last != want.last() {
			return fmt.Errorf("replica %v: got vote %+v committed %v purged %v last %v, want %+v %v %v %v", k,
				got.Vote, got.Committed, got.Purged, got.Last, want.vote, want.committed, want.purged, want.last())
		}
		runs, err := got.Read(want.purged.Index+1, math.MaxInt64)
		if err != nil {
			return err
		}
		if err := want.compareRuns(want.purged.Index+1, runs); err != nil {
			return fmt.Errorf("replica %v: %w", k, err)
		}
	}
	return nil
}

// compareRuns checks that runs hold all the entries from first to the last one.
func (r *logReplica) compareRuns(first uint64, runs []raftlog.Run) error {
	index := first
	for _, run := range runs {
		n := 0
		for it := raftlog.NewIter(run.Body); it.Next(); n++ {
			i := int(index - r.purged.Index - 1)
			if i >= len(r.entries) {
				return fmt.Errorf("entry %d is too many", index)
			}
			if want := r.entries[i]; want.term != run.Term || want.body != string(raftlog.AppendEntry(nil, it.Kind, it.Payload)) || run.First+uint64(n) != index {
				return fmt.Errorf("entry %d differs", index)
			}
			index++
		}
		if n != run.Count {
			return fmt.Errorf("run at %d has %d entries instead of %d", run.First, n, run.Count)
		}
	}
	if index != r.last().Index+1 {
		return fmt.Errorf("entries end at %d instead of %d", index-1, r.last().Index)
	}
	return nil
}

// LogDriver drives a log with a random workload on several lanes, and knows what it must hold. It is meant for crash tests: at any
// moment CheckRecovery tells whether a recovery of the disk at that moment is right.
type LogDriver struct {
	Log   *raftlog.Log
	Rand  *rand.Rand
	lanes []*driverLane
	// Steps counts by name what was done, so that a test can see that it did what it was for.
	Steps map[string]int
}

type driverLane struct {
	lane      *raftlog.Lane
	id, lanes int
	now       logState
	// states[i] is the state after batch base+i; the first one is acknowledged. base is set by the first batch behind it.
	states  []logState
	base    uint64
	replica engine.ReplicaID
}

func (d *driverLane) owns(k raftlog.Key) bool { return int(k.Shard)%d.lanes == d.id }

// NewLogDriver returns a driver of a new log.
func NewLogDriver(r *rand.Rand, lanes int) *LogDriver {
	d := &LogDriver{Rand: r, Steps: map[string]int{}}
	for id := range lanes {
		d.lanes = append(d.lanes, &driverLane{id: id, lanes: lanes, now: logState{}, states: []logState{{}}, replica: 1})
	}
	return d
}

// CheckRecovery tells how rec differs from everything that the log may hold: all acknowledged batches, and of those that were
// submitted behind them a prefix.
func (d *LogDriver) CheckRecovery(rec *raftlog.Recovery) error {
	for _, l := range d.lanes {
		if _, err := l.match(rec); err != nil {
			return err
		}
	}
	return nil
}

func (d *driverLane) match(rec *raftlog.Recovery) (int, error) {
	var errs []error
	for i, s := range d.states {
		err := s.compare(rec, d.owns)
		if err == nil {
			return i, nil
		}
		errs = append(errs, fmt.Errorf("lane %d, %d batches past the acknowledged: %w", d.id, i, err))
	}
	return 0, errors.Join(errs...)
}

// Attach goes on with a log that was just opened, after checking what it recovered.
func (d *LogDriver) Attach(log *raftlog.Log, rec *raftlog.Recovery) error {
	d.Log = log
	for _, l := range d.lanes {
		i, err := l.match(rec)
		if err != nil {
			return err
		}
		l.now = l.states[i].clone()
		l.lane = log.Lane(l.id)
		l.states, l.base = []logState{l.states[i]}, 0
		for _, k := range l.keys() {
			l.lane.Adopt(k)
		}
	}
	return nil
}

func (d *driverLane) keys() []raftlog.Key {
	return slices.SortedFunc(maps.Keys(d.now), raftlog.Key.Compare)
}

// Step does one random thing. The error is the log's.
func (d *LogDriver) Step() error {
	l := d.lanes[d.Rand.IntN(len(d.lanes))]
	keys := l.keys()
	if len(keys) < 3 {
		d.count("init")
		l.init(d.Rand)
		return nil
	}
	k := keys[d.Rand.IntN(len(keys))]
	switch n := d.Rand.IntN(100); {
	case n < 45:
		d.count("append")
		l.append(d.Rand, k)
	case n < 60:
		return d.Flush()
	case n < 64:
		return d.rewrite(l, k)
	case n < 66:
		d.count("maintain")
		return d.Log.Maintain()
	case n < 67:
		d.count("seal")
		return d.Log.Seal()
	case n < 68:
		return d.Unpin()
	default:
		d.count(l.small(d.Rand, k, n))
	}
	return nil
}

func (d *LogDriver) count(step string) { d.Steps[step]++ }

func (d *driverLane) init(r *rand.Rand) {
	k := raftlog.Key{Shard: engine.ShardID(d.id + d.lanes*(1+r.IntN(5))), Replica: d.replica}
	d.replica++
	vote := engine.Vote{Term: r.Uint64N(3), Peer: engine.Peer{Node: 1, Replica: k.Replica}}
	purged := engine.LogID{Term: 1, Index: 1 + r.Uint64N(5)}
	d.lane.Init(k, vote, purged)
	d.now[k] = logReplica{vote: vote, committed: purged, purged: purged}
}

func (d *driverLane) append(r *rand.Rand, k raftlog.Key) {
	rep := d.now[k]
	last := rep.last()
	run := raftlog.Run{Term: last.Term + r.Uint64N(2), First: last.Index + 1, Count: 1 + r.IntN(4)}
	for range run.Count {
		payload := make([]byte, r.IntN(200))
		if r.IntN(10) == 0 {
			payload = make([]byte, r.IntN(3000))
		}
		for i := range payload {
			payload[i] = byte(r.Uint32())
		}
		kind := engine.EntryKind(0)
		if r.IntN(5) == 0 {
			kind, run.Special = engine.EntryBarrier, true
		}
		start := len(run.Body)
		run.Body = raftlog.AppendEntry(run.Body, kind, payload)
		rep.entries = append(rep.entries, logEntry{run.Term, string(run.Body[start:])})
	}
	d.lane.Append(k, run)
	d.now[k] = rep
}

func (d *driverLane) small(r *rand.Rand, k raftlog.Key, n int) string {
	rep := d.now[k]
	defer func() {
		if _, ok := d.now[k]; ok {
			d.now[k] = rep
		}
	}()
	live := len(rep.entries)
	switch {
	case n < 76:
		rep.vote = engine.Vote{Term: rep.vote.Term + 1, Peer: engine.Peer{Node: engine.NodeID(r.IntN(3)), Replica: 1}, Committed: r.IntN(2) == 0}
		d.lane.SaveVote(k, rep.vote)
		return "vote"
	case n < 81:
		rep.committed = rep.last()
		d.lane.SaveCommitted(k, rep.committed)
		return "committed"
	case n < 88 && live > 0:
		at := r.IntN(live)
		d.lane.Truncate(k, rep.purged.Index+1+uint64(at))
		rep.entries = rep.entries[:at:at]
		return "truncate"
	case n < 96 && live > 0:
		at := 1 + r.IntN(live)
		id := engine.LogID{Term: rep.entries[at-1].term, Index: rep.purged.Index + uint64(at)}
		d.lane.Purge(k, id)
		rep.purged, rep.entries = id, rep.entries[at:]
		return "purge"
	case n < 97 && live > 0: // a snapshot whose last entry is another one than ours
		at := 1 + r.IntN(live)
		id := engine.LogID{Term: rep.last().Term + 1, Index: rep.purged.Index + uint64(at)}
		d.lane.Purge(k, id)
		rep.purged, rep.entries = id, nil
		return "purge-conflict"
	case n < 98:
		id := engine.LogID{Term: rep.last().Term, Index: rep.last().Index + 1 + r.Uint64N(5)}
		d.lane.Purge(k, id)
		rep.purged, rep.entries = id, nil
		return "purge-beyond"
	}
	d.lane.Drop(k)
	delete(d.now, k)
	return "drop"
}

func (d *LogDriver) rewrite(l *driverLane, k raftlog.Key) error {
	d.count("rewrite")
	err := l.lane.Rewrite(k, nil)
	if errors.Is(err, raftlog.ErrCold) {
		d.count("rewrite-cold")
		c, err := l.lane.LocateAll(k)
		if err != nil {
			return err
		}
		runs, err := c.Read()
		if err != nil {
			return err
		}
		return l.lane.Rewrite(k, runs)
	}
	if errors.Is(err, raftlog.ErrNoSpace) { // it waits for a segment
		d.count("rewrite-waits")
		return nil
	}
	return err
}

// Unpin does what a runtime does under log pressure: it rewrites what pins the oldest segment (rule Log5).
func (d *LogDriver) Unpin() error {
	d.count("unpin")
	for _, l := range d.lanes {
		for _, k := range l.lane.Pinned(nil, 100) {
			if err := d.rewrite(l, k); err != nil {
				return err
			}
		}
	}
	if err := d.Flush(); err != nil {
		return err
	}
	for _, l := range d.lanes {
		l.lane.Pinned(nil, 0)
	}
	return d.Log.Maintain()
}

// Flush submits and flushes until nothing is left.
func (d *LogDriver) Flush() error {
	d.count("flush")
	for _, l := range d.lanes {
		if d.Rand.IntN(4) > 0 {
			l.submit()
		}
	}
	for {
		done, err := d.Log.Flush()
		if err != nil || len(done) == 0 {
			return err
		}
		for _, c := range done {
			d.lanes[c.Lane].acknowledge(c)
		}
	}
}

func (d *driverLane) submit() {
	batch := d.lane.Submit()
	if batch == 0 {
		return
	}
	if len(d.states) == 1 {
		d.base = batch - 1
	}
	d.states = append(d.states, d.now.clone())
}

func (d *driverLane) acknowledge(c raftlog.Completion) {
	d.lane.Flushed(c)
	n := int(c.Batch - d.base)
	d.states = d.states[n:]
	d.base = c.Batch
}

// CheckReads reads everything through the lanes, cached or cold, and compares.
func (d *LogDriver) CheckReads() error {
	for _, l := range d.lanes {
		for _, k := range l.keys() {
			rep := l.now[k]
			if len(rep.entries) == 0 {
				continue
			}
			first := rep.purged.Index + 1 + d.Rand.Uint64N(uint64(len(rep.entries)))
			runs, err := l.lane.Entries(k, first, rep.last().Index, math.MaxInt, nil)
			d.count("read")
			for err == nil && (len(runs) == 0 || runs[len(runs)-1].Last() < rep.last().Index) || errors.Is(err, raftlog.ErrCold) {
				d.count("read-cold")
				var c raftlog.ColdRead
				if c, err = l.lane.Locate(k, first, rep.last().Index, math.MaxInt); err == nil {
					runs, err = c.Read()
				}
			}
			if err == nil {
				err = rep.compareRuns(first, runs)
			}
			if err != nil {
				return fmt.Errorf("replica %v from %d: %w", k, first, err)
			}
		}
	}
	return nil
}
