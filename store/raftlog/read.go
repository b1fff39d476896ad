package raftlog

import (
	"encoding/binary"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
)

// Entries appends to runs the entries first..last, or as many from first on as fit into maxBytes (at least one entry). It fails
// with ErrCold if the first of them is not cached, or with ErrPurged. Bodies are aliased and must not be modified.
func (a *Lane) Entries(k Key, first, last uint64, maxBytes int, runs []Run) ([]Run, error) {
	r := a.lookup(k)
	if r == nil || first <= r.purged.Index || first > r.last().Index {
		return runs, ErrPurged
	}
	if r.tail.count > 0 && first >= r.tail.first {
		body := a.cache.get(r.tail.cached)
		if body == nil {
			return runs, ErrCold
		}
		return append(runs, fitBytes(r.tail.part(body, first, last), maxBytes)), nil
	}
	live := len(r.live())
	bytes := 0
	for i := r.find(first); i < live; i++ {
		ref := r.run(i)
		if ref.first > last {
			break
		}
		body := a.cache.get(ref.cached)
		if body == nil {
			if bytes == 0 {
				return runs, ErrCold
			}
			break
		}
		run := ref.part(body, first, last)
		if bytes+len(run.Body) > maxBytes {
			if run = fitBytes(run, maxBytes-bytes); bytes > 0 && bytes+len(run.Body) > maxBytes {
				break
			}
			return append(runs, run), nil
		}
		bytes += len(run.Body)
		runs = append(runs, run)
	}
	return runs, nil
}

// part returns the entries first..last of the run with this body, as many as are in it.
func (r *runRef) part(body []byte, first, last uint64) Run {
	run := r.header()
	run.Body = body
	if r.first < first || r.last() > last {
		run = CutRun(run, first, last)
	}
	return run
}

// ColdRead is a read of entries from segments. It is a value that may be moved to another goroutine.
type ColdRead struct {
	key         Key
	first, last uint64
	refs        []coldRef
}

type coldRef struct {
	run  Run // Body is set if it was cached
	seg  *segment
	off  int64
	size uint32
}

// Locate prepares to read what Entries has refused with ErrCold. What is read are the runs from first on that begin within maxBytes.
func (a *Lane) Locate(k Key, first, last uint64, maxBytes int) (ColdRead, error) {
	r := a.lookup(k)
	if r == nil || first <= r.purged.Index || first > r.last().Index {
		return ColdRead{}, ErrPurged
	}
	c := ColdRead{key: k, first: first, last: last}
	live := r.live()
	bytes := 0
	for i := r.find(first); i < len(live) && live[i].first <= last && (bytes < maxBytes || len(c.refs) == 0); i++ {
		ref, err := a.locate(&live[i])
		if err != nil {
			return ColdRead{}, err
		}
		c.refs = append(c.refs, ref)
		bytes += int(live[i].size)
	}
	return c, nil
}

func (a *Lane) locate(ref *runRef) (coldRef, error) {
	out := coldRef{run: ref.header(), size: ref.size}
	if out.run.Body = a.cache.get(ref.cached); out.run.Body != nil {
		return out, nil
	}
	p := a.place(ref.batch)
	out.off = int64(p.off) + int64(ref.off)
	if out.seg = a.log.segment(uint64(p.seg)); out.seg == nil {
		return out, fmt.Errorf("%w: segment %d is not there", ErrCorrupt, p.seg)
	}
	return out, nil
}

// LocateAll prepares to read what Rewrite needs.
func (a *Lane) LocateAll(k Key) (ColdRead, error) {
	r := a.lookup(k)
	if r == nil || len(r.live()) == 0 {
		return ColdRead{}, nil
	}
	return a.Locate(k, r.purged.Index+1, r.last().Index, int(r.bytes)+1)
}

// Read reads the entries and verifies their checksums. It may be called by any goroutine. ErrMoved: locate again.
func (c ColdRead) Read() ([]Run, error) {
	runs := make([]Run, 0, len(c.refs))
	for _, ref := range c.refs {
		run, err := ref.read(c.key)
		if err != nil {
			return nil, err
		}
		if run = CutRun(run, c.first, c.last); run.Count > 0 {
			runs = append(runs, run)
		}
	}
	return runs, nil
}

func (c *coldRef) read(k Key) (Run, error) {
	run := c.run
	if run.Body != nil {
		return run, nil
	}
	buf := make([]byte, runCRCSize+int(c.size))
	_, err := c.seg.file.ReadAt(buf, c.off-runCRCSize)
	if c.seg.freed.Load() {
		return run, ErrMoved
	}
	if err != nil {
		return run, fmt.Errorf("read entries %d..%d of replica %v from %s at %d: %w", run.First, run.Last(), k, c.seg.name(), c.off, err)
	}
	body := buf[runCRCSize:]
	if runCRC(k, run.Term, run.First, body) != binary.LittleEndian.Uint32(buf) {
		return run, &CorruptError{File: c.seg.name(), Offset: c.off, Shards: []engine.ShardID{k.Shard},
			Reason: fmt.Sprintf("entries %d..%d of replica %v fail their checksum", run.First, run.Last(), k)}
	}
	end := skipEntries(body, run.Count)
	run.Body = body[:end:end]
	return run, nil
}

// Rewrite copies all that is live of k to the end of the log, as one record (rule Log6). ErrCold: bodies must be read first with
// LocateAll, and are given as cold. ErrTooBig: only a checkpoint and a purge help. ErrNoSpace: not now, but maybe after the next
// Maintain. An idle replica costs some 30 bytes.
func (a *Lane) Rewrite(k Key, cold []Run) error {
	r := a.lookup(k)
	if r == nil {
		return nil
	}
	if r.bytes > a.log.opt.RewriteBytesMax {
		return fmt.Errorf("%w: replica %v has %d bytes, the most is %d", ErrTooBig, k, r.bytes, a.log.opt.RewriteBytesMax)
	}
	size := rewriteOverhead + r.bytes + int64(len(r.live()))*runOverhead
	if !a.claim(size) {
		return fmt.Errorf("%w for a rewrite of replica %v, %d bytes", ErrNoSpace, k, size)
	}
	runs := make([]Run, 0, len(r.live()))
	for i := range r.live() {
		ref := &r.live()[i]
		run := ref.header()
		if run.Body = a.cache.get(ref.cached); run.Body == nil {
			if run.Body = findBody(cold, run, r.purged.Index+1); run.Body == nil {
				a.unclaim(size)
				return ErrCold
			}
			first := max(run.First, r.purged.Index+1)
			run.First, run.Count = first, int(run.Last()-first+1)
		}
		runs = append(runs, CutRun(run, r.purged.Index+1, run.Last()))
	}
	a.open()
	a.buf = appendKey(a.buf, recRewrite, k)
	a.buf = appendLogID(appendLogID(appendVote(a.buf, r.vote), r.committed), r.purged)
	a.buf = binary.AppendUvarint(a.buf, uint64(len(runs)))
	r.reset(&a.cache)
	for _, run := range runs {
		special := byte(0)
		if run.Special {
			special = 1
		}
		a.buf = appendRun(append(a.buf, special), k, run)
		a.push(r, run)
	}
	r.voteAt, r.committedAt, r.purgedAt = a.next, a.next, a.next
	return nil
}

// What a rewrite writes beside the bodies, at most, and for each run.
const (
	rewriteOverhead = 128
	runOverhead     = 48
)

// findBody finds the body of the live part of run, from floor on, among runs that were read cold.
func findBody(cold []Run, run Run, floor uint64) []byte {
	first := max(run.First, floor)
	for _, c := range cold {
		if c.Term == run.Term && c.First <= first && c.Last() >= run.Last() && c.Count > 0 {
			return CutRun(c, first, run.Last()).Body
		}
	}
	return nil
}
