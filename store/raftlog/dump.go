package raftlog

import (
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// Record is one record of the log, as `debug log` shows it.
type Record struct {
	Segment  uint64
	File     string
	Offset   int64 // of its frame
	Sequence uint64
	// Kind is one of "segment", "seal", "append", "vote", "committed", "truncate", "purge", "purge-all", "init", "drop", "rewrite".
	Kind      string
	Key       Key
	Vote      engine.Vote
	LogID     engine.LogID // committed, purge, init, rewrite: the purged one
	Committed engine.LogID // rewrite
	First     uint64       // truncate
	Runs      []Run        // append, rewrite. Bodies are valid during the call only
}

var kindNames = [...]string{recAppend: "append", recAppendSpecial: "append", recVote: "vote", recCommitted: "committed",
	recTruncate: "truncate", recPurge: "purge", recPurgeAll: "purge-all", recInit: "init", recDrop: "drop", recRewrite: "rewrite"}

// Dump calls fn for every record of the log in dir, which no process may have open for writing. It changes nothing. It stops with
// an ErrCorrupt at the first place where Open would refuse.
func Dump(fs vfs.FS, dir string, fn func(*Record) error) error {
	_, err := walk(fs, dir, 0, func(seg *segment, off int64, h frameHeader, records []byte) error {
		out := Record{Segment: seg.number, File: seg.name(), Offset: off, Sequence: h.seq}
		if h.flags&flagSeal != 0 {
			out.Kind = "seal"
			return fn(&out)
		}
		return out.each(records, fn)
	})
	return err
}

// DumpFrame calls fn for every record of the frame at the start of b. It is no frame, or a part of one: then fn is not called. The
// checksum is not checked, for only the segment knows its seed: b is what is about to be written.
func DumpFrame(b []byte, fn func(*Record) error) error {
	h, ok := peekFrame(b)
	if !ok || h.flags&flagSeal != 0 {
		return nil
	}
	out := Record{Sequence: h.seq}
	return out.each(b[frameHeaderSize:frameHeaderSize+int(h.length)], fn)
}

// each calls fn for every record of a frame.
func (out *Record) each(records []byte, fn func(*Record) error) error {
	r := recordReader{b: records}
	var rec record
	for r.next(&rec) {
		out.Kind, out.Key, out.Vote, out.LogID = kindNames[rec.kind], rec.key, rec.vote, rec.id
		out.Committed, out.First, out.Runs = rec.committed, rec.first, out.Runs[:0]
		for _, run := range rec.runs {
			out.Runs = append(out.Runs, Run{Term: run.term, First: run.first, Count: int(run.count), Special: run.special,
				Body: records[run.off : run.off+run.size]})
		}
		if err := fn(out); err != nil {
			return err
		}
	}
	return r.err
}

// Report is what Verify found.
type Report struct {
	Segments     int
	Oldest       uint64 // the oldest segment that is needed
	LastSequence uint64
	File         string // the newest segment, and where its frames end
	End          int64
	Sealed       bool // the last frame is a seal: nothing was cut off or is in doubt
	Replicas     int
	Entries      uint64
	Bytes        int64
}

// Verify checks all that Open checks, and each body besides. It changes nothing.
func Verify(fs vfs.FS, dir string, syncedHint uint64) (Report, error) {
	p := newReplay()
	sc, err := walk(fs, dir, syncedHint, func(seg *segment, off int64, _ frameHeader, records []byte) error {
		r := recordReader{b: records}
		for r.next(&p.rec) {
			if err := p.apply(&p.rec, seg.number, uint32(off+frameHeaderSize)); err != nil {
				return err
			}
			for _, run := range p.rec.runs {
				n, _, err := CountEntries(records[run.off : run.off+run.size])
				if err != nil || n != int(run.count) {
					return fmt.Errorf("%w: a run of %d entries has %d: %v", ErrMalformed, run.count, n, err)
				}
			}
		}
		return r.err
	})
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return Report{}, err
	}
	out := Report{Segments: len(sc.segs), Oldest: sc.oldest, LastSequence: sc.lastSeq, End: sc.tail, Sealed: sc.sealed, Replicas: len(p.replicas)}
	if n := len(sc.segs); n > 0 {
		out.File = sc.segs[n-1].name()
	}
	for _, r := range p.replicas {
		for _, run := range r.live() {
			out.Entries += run.last() + 1 - max(run.first, r.purged.Index+1)
		}
		out.Bytes += r.bytes
	}
	return out, nil
}

func walk(fs vfs.FS, dir string, hint uint64, visit visitor) (*scanned, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	sc, err := openSegments(fs, dir, names)
	if err != nil {
		return nil, err
	}
	defer sc.close()
	return sc, sc.scan(hint, visit)
}

// Inspect reads the log in dir, which no process may have open for writing, and hands fn what it knows of its replicas. It changes
// nothing, and refuses what Open would. The entries can be read (Read, Specials) until fn returns.
func Inspect(fs vfs.FS, dir string, syncedHint uint64, fn func(map[Key]*ReplicaLog) error) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	sc, err := openSegments(fs, dir, names)
	if err != nil {
		return err
	}
	defer sc.close()
	if len(sc.segs) == 0 {
		return &CorruptError{File: dir, Reason: "there are no segments"}
	}
	p, base := newReplay(), sc.segs[0].number
	err = sc.scan(syncedHint, func(seg *segment, off int64, _ frameHeader, records []byte) error {
		return p.visit(seg.number-base+1, off, records)
	})
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return err
	}
	out := make(map[Key]*ReplicaLog, len(p.replicas))
	for k, r := range p.replicas {
		out[k] = r.report(sc.segs)
	}
	return fn(out)
}
