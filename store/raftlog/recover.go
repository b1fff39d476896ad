package raftlog

import (
	"cmp"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// Recovery is what Open found.
type Recovery struct {
	// Replicas holds all replicas of which the log knows anything.
	Replicas map[Key]*ReplicaLog
	// LastSequence is the sequence of the last frame.
	LastSequence uint64
}

// ReplicaLog is what the log knew of a replica when it was opened. Whether its entries are kept is for the runtime to judge
// against the record of the replica (rule Log7).
type ReplicaLog struct {
	Key       Key
	Vote      engine.Vote
	Committed engine.LogID
	Purged    engine.LogID
	Last      engine.LogID // Purged if there are no entries
	Runs      []engine.TermRun

	refs []coldRef
}

// Special is an entry that is not an EntryNormal.
type Special struct {
	LogID   engine.LogID
	Kind    engine.EntryKind
	Payload []byte
}

// Specials reads the special entries (memberships, barriers, blanks) in order. It is for the time between Open and the first Flush.
func (r *ReplicaLog) Specials() ([]Special, error) {
	var out []Special
	for _, ref := range r.refs {
		if !ref.run.Special {
			continue
		}
		run, err := ref.read(r.Key)
		if err != nil {
			return nil, err
		}
		index := run.First
		for it := NewIter(run.Body); it.Next(); index++ {
			if it.Kind != engine.EntryNormal && index > r.Purged.Index {
				out = append(out, Special{engine.LogID{Term: run.Term, Index: index}, it.Kind, it.Payload})
			}
		}
	}
	return out, nil
}

// Read reads the entries first..last. It is for the time between Open and the first Flush; later use Lane.Locate.
func (r *ReplicaLog) Read(first, last uint64) ([]Run, error) {
	c := ColdRead{key: r.Key, first: max(first, r.Purged.Index+1), last: last}
	for _, ref := range r.refs {
		if ref.run.Last() >= c.first && ref.run.First <= last {
			c.refs = append(c.refs, ref)
		}
	}
	return c.Read()
}

// Chains tells whether the log's entries go on from applied (rule Log7).
func (r *ReplicaLog) Chains(applied engine.LogID) bool {
	if r.Purged == applied {
		return true
	}
	for _, run := range r.Runs {
		if applied.Index >= run.First && applied.Index <= run.Last {
			return run.Term == applied.Term
		}
	}
	return false
}

// errReplay: a record does not fit to those before it.
var errReplay = errors.New("record does not fit")

// replay rebuilds the indexes. Batch i+1 stands for the i-th segment that was read, so positions are offsets in the file.
type replay struct {
	replicas map[Key]*replica
	cache    cache // empty: bodies are not kept
	rec      record
}

func newReplay() *replay { return &replay{replicas: map[Key]*replica{}, cache: newCache(0)} }

func (p *replay) visit(batch uint64, off int64, records []byte) error {
	r := recordReader{b: records}
	for r.next(&p.rec) {
		if err := p.apply(&p.rec, batch, uint32(off+frameHeaderSize)); err != nil {
			return err
		}
	}
	return r.err
}

func (p *replay) apply(rec *record, batch uint64, base uint32) error {
	r := p.replicas[rec.key]
	if rec.kind == recDrop {
		delete(p.replicas, rec.key)
		return nil
	}
	if r == nil {
		r = &replica{key: rec.key}
		p.replicas[rec.key] = r
	}
	switch rec.kind {
	case recAppend, recAppendSpecial:
		return r.replayRuns(rec.runs, batch, base)
	case recVote:
		r.vote, r.voteAt = rec.vote, batch
	case recCommitted:
		r.committed, r.committedAt = rec.id, batch
	case recTruncate:
		r.truncate(rec.first, &p.cache)
	case recPurge, recPurgeAll:
		if rec.kind == recPurgeAll {
			r.reset(&p.cache)
		}
		r.purge(rec.id.Index, &p.cache)
		r.purged, r.purgedAt = rec.id, batch
	case recInit, recRewrite:
		r.reset(&p.cache)
		r.vote, r.committed, r.purged = rec.vote, rec.id, rec.id
		if rec.kind == recRewrite {
			r.committed = rec.committed
		}
		r.voteAt, r.committedAt, r.purgedAt = batch, batch, batch
		return r.replayRuns(rec.runs, batch, base)
	}
	return nil
}

func (r *replica) replayRuns(runs []runPos, batch uint64, base uint32) error {
	for _, run := range runs {
		// The entries before may lie in a segment that was freed: they are dead by a record further on. Within what is
		// there, nothing may be missing.
		if live := r.live(); len(live) > 0 && run.first != r.last().Index+1 {
			return fmt.Errorf("%w: entries from %d on of replica %v, which ends at %d", errReplay, run.first, r.key, r.last().Index)
		}
		ref := runRef{term: run.term, first: run.first, count: run.count, batch: batch, off: base + run.off, size: run.size}
		if run.special {
			ref.flags = flagSpecial
		}
		r.push(ref)
	}
	return nil
}

// check looks at each replica once everything was read: its entries must follow what was purged.
func (p *replay) check() error {
	for k, r := range p.replicas {
		if live := r.live(); len(live) > 0 && (live[0].first > r.purged.Index+1 || live[0].last() <= r.purged.Index) {
			return &CorruptError{Shards: []engine.ShardID{k.Shard},
				Reason: fmt.Sprintf("entries of replica %v begin at %d, but were purged up to %d only", k, live[0].first, r.purged.Index)}
		}
	}
	return nil
}

func (o *Options) defaults() error {
	o.SegmentBytes = cmp.Or(o.SegmentBytes, SegmentBytesDefault)
	o.CacheBytes = cmp.Or(o.CacheBytes, 32<<20)
	o.RewriteBytesMax = cmp.Or(o.RewriteBytesMax, rewriteBytesMaxDefault)
	if o.SegmentBytes < 2*segmentStart || o.SegmentBytes > frameBytesMax {
		return fmt.Errorf("raft log segments of %d bytes: must be %d to %d", o.SegmentBytes, 2*segmentStart, frameBytesMax)
	}
	o.SegmentBytes = alignBlock(o.SegmentBytes)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Salt == nil {
		o.Salt = func() uint64 {
			var b [8]byte
			_, _ = crand.Read(b[:]) // never fails
			return binary.LittleEndian.Uint64(b[:])
		}
	}
	return nil
}

// Open opens the log in dir, or makes one. What it returns is durable (rule Log1). It refuses what no crash can have left with
// an ErrCorrupt that says where (rule Log3).
func Open(fs vfs.FS, dir string, opt Options) (*Log, *Recovery, error) {
	if err := opt.defaults(); err != nil {
		return nil, nil, err
	}
	if err := fs.MkdirAll(dir); err != nil {
		return nil, nil, err
	}
	names, err := fs.List(dir)
	if err != nil {
		return nil, nil, err
	}
	sc, err := openSegments(fs, dir, names)
	if err != nil {
		return nil, nil, err
	}
	l := &Log{fs: fs, dir: dir, opt: opt, lanes: map[int]*Lane{}, pending: make(chan struct{}, 1)}
	rec, err := l.recover(sc)
	if err == nil {
		err = l.begin(sc, names)
	}
	if err != nil {
		sc.close()
		for _, s := range l.spares {
			_ = s.file.Close()
		}
		return nil, nil, err
	}
	return l, rec, nil
}

// recover reads the log and builds the indexes. It changes nothing on the disk but what confirm does.
func (l *Log) recover(sc *scanned) (*Recovery, error) {
	// Log1: what a killed process has left in the page cache is made durable before it is believed.
	for _, seg := range sc.segs {
		if err := seg.file.Datasync(); err != nil {
			return nil, err
		}
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return nil, err
	}
	if len(sc.segs) == 0 && (l.opt.MustExist || l.opt.SyncedHint > 0) {
		return nil, &CorruptError{File: l.dir, Sequence: l.opt.SyncedHint, Reason: "there are no segments, but there has been a log: the votes and " +
			"acknowledgements in it are lost. Put it back as it was, or replace this node by a new one with an empty data directory"}
	}
	p := newReplay()
	base := uint64(0)
	if len(sc.segs) > 0 {
		base = sc.segs[0].number
	}
	err := sc.scan(l.opt.SyncedHint, func(seg *segment, off int64, _ frameHeader, records []byte) error {
		return p.visit(seg.number-base+1, off, records)
	})
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return nil, err
	}
	if err := sc.confirm(); err != nil {
		return nil, err
	}
	sc.buf, sc.last = nil, nil
	l.recovered = p.replicas
	l.unadopted.Store(int64(len(p.replicas)))
	for _, seg := range sc.segs {
		l.base = append(l.base, place{seg: uint32(seg.number)})
	}
	rec := &Recovery{Replicas: make(map[Key]*ReplicaLog, len(p.replicas)), LastSequence: sc.lastSeq}
	for k, r := range p.replicas {
		rec.Replicas[k] = r.report(sc.segs)
	}
	return rec, nil
}

// confirm writes the last frame again, as it is, and syncs it. Its sync may have failed before the process was started again: then
// the page cache holds it as clean, and to sync the file says that all is well and writes nothing (rule Log1). It can be the last one
// only, for one write is in flight at a time.
func (sc *scanned) confirm() error {
	if sc.last == nil {
		return nil
	}
	seg := sc.segs[len(sc.segs)-1]
	if _, err := seg.file.WriteAt(sc.last, sc.lastAt); err != nil {
		return fmt.Errorf("write %s again: %w", seg.path, err)
	}
	return seg.file.Datasync()
}

func (r *replica) report(segs []*segment) *ReplicaLog {
	out := &ReplicaLog{Key: r.key, Vote: r.vote, Committed: r.committed, Purged: r.purged, Last: r.last(), Runs: r.termRuns()}
	for i := range r.live() {
		ref := &r.live()[i]
		out.refs = append(out.refs, coldRef{run: ref.header(), seg: segs[ref.batch-1], off: int64(ref.off), size: ref.size})
	}
	return out
}

// begin makes the log ready to be written. It always goes on in a segment that has no frame yet, whose header says where the one
// before ends (rule Log3): so nothing that a crash has left behind that end can ever count.
func (l *Log) begin(sc *scanned, names []string) error {
	l.seq, l.tail = sc.lastSeq, sc.tail
	l.synced.Store(sc.lastSeq)
	l.oldest.Store(sc.oldest)
	segs := sc.segs
	l.segments.Store(&segs)
	if last := l.last(); last != nil {
		l.active.Store(last.number)
	}
	if err := l.collectSpares(names); err != nil {
		return err
	}
	if last := l.last(); last != nil && l.seq+1 == last.firstSeq && last.size >= uint64(l.opt.SegmentBytes) {
		// No valid frame in it: give it a new life in place, so that a process that restarts in a loop uses no more space.
		last.salt = l.opt.Salt()
		last.oldest = sc.oldest
		if err := l.writeHeader(last); err != nil {
			return err
		}
		l.tail = segmentStart
		l.left.Store(int64(last.size) - l.tail)
	} else if err := l.startSegment(0); errors.Is(err, ErrNoSpace) {
		// A full disk must not keep the node from starting: it can still read, send snapshots and free space.
		l.needSegment = true
		l.metrics.OutOfSpace.Store(true)
		l.opt.Logger.Error("no space for a raft log segment", "dir", l.dir, "err", err)
	} else if err != nil {
		return err
	}
	return l.freeSegments()
}

// collectSpares finds the allocated files that wait for use, and removes those that are not of the right size.
func (l *Log) collectSpares(names []string) error {
	for _, name := range names {
		number, ok := parseName(name, spareSuffix)
		if !ok {
			continue
		}
		l.spareNumber.Store(max(l.spareNumber.Load(), number))
		path := filepath.Join(l.dir, name)
		f, err := l.fs.Open(path)
		if err != nil {
			return err
		}
		size, err := f.Size()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		// Allocate makes the file long before it is written: only a file that was freed or wholly allocated is known to be full,
		// and a hole costs no more than a slower first sync.
		if size != l.opt.SegmentBytes || len(l.spares) >= sparesMin {
			if err := errors.Join(f.Close(), l.fs.Remove(path)); err != nil {
				return err
			}
			continue
		}
		l.addSpare(spare{file: f, path: path, size: size})
	}
	return nil
}
