package sim

import (
	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/scheduler/simrt"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/raftlog"
	"github.com/kiloraft/kiloraft/store/vfs"
)

// durable is what the disk of a node holds of the raft log, whatever the node believes: each record as it was written, from
// when the disk has synced it.
type durable map[store.Key]*durableLog

type durableLog struct {
	vote   engine.Vote
	purged engine.LogID
	runs   []engine.TermRun
}

// write is a record that is on its way to the disk.
type write struct {
	kind  string
	key   store.Key
	vote  engine.Vote
	id    engine.LogID
	first uint64
	runs  []engine.TermRun
}

// watch makes the disk of a life of a node tell what it holds.
func (s *sim) watch(n *simrt.Node, fs vfs.FS) vfs.FS {
	return &watchedFS{FS: fs, s: s, d: s.durableOf(n.ID), writing: map[string][]write{}}
}

func (s *sim) durableOf(id engine.NodeID) durable {
	d := s.durable[id]
	if d == nil {
		d = durable{}
		s.durable[id] = d
	}
	return d
}

type watchedFS struct {
	vfs.FS
	s       *sim
	d       durable
	writing map[string][]write // by file
}

type watchedFile struct {
	vfs.File
	fs   *watchedFS
	name string
}

// Create implements vfs.FS.
func (w *watchedFS) Create(name string) (vfs.File, error) { return w.wrap(name)(w.FS.Create(name)) }

// Open implements vfs.FS.
func (w *watchedFS) Open(name string) (vfs.File, error) { return w.wrap(name)(w.FS.Open(name)) }

func (w *watchedFS) wrap(name string) func(vfs.File, error) (vfs.File, error) {
	return func(f vfs.File, err error) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		return &watchedFile{f, w, name}, nil
	}
}

// WriteAt implements io.WriterAt.
func (f *watchedFile) WriteAt(p []byte, off int64) (int, error) { return f.put(f.File.WriteAt, p, off) }

// Append implements vfs.File.
func (f *watchedFile) Append(p []byte, off int64) (int, error) { return f.put(f.File.Append, p, off) }

func (f *watchedFile) put(do func([]byte, int64) (int, error), p []byte, off int64) (int, error) {
	n, err := do(p, off)
	if err == nil {
		derr := raftlog.DumpFrame(p, func(r *raftlog.Record) error {
			w := write{kind: r.Kind, key: r.Key, vote: r.Vote, id: r.LogID, first: r.First}
			for _, run := range r.Runs {
				w.runs = append(w.runs, engine.TermRun{Term: run.Term, First: run.First, Last: run.Last()})
			}
			f.fs.writing[f.name] = append(f.fs.writing[f.name], w)
			return nil
		})
		if derr != nil {
			f.fs.s.fail("%s: writes a frame that cannot be read: %w", f.name, derr)
		}
	}
	return n, err
}

// Datasync implements vfs.File.
func (f *watchedFile) Datasync() error {
	err := f.File.Datasync()
	if err == nil {
		for i := range f.fs.writing[f.name] {
			f.fs.d.take(&f.fs.writing[f.name][i])
		}
		f.fs.writing[f.name] = f.fs.writing[f.name][:0]
	}
	return err
}

// take takes over a record that was synced.
func (d durable) take(w *write) {
	l := d[w.key]
	if w.kind == "drop" {
		delete(d, w.key)
		return
	}
	if l == nil {
		l = &durableLog{}
		d[w.key] = l
	}
	switch w.kind {
	case "append":
		l.truncate(w.runs[0].First)
		l.append(w.runs)
	case "vote":
		l.vote = w.vote
	case "truncate":
		l.truncate(w.first)
	case "purge", "purge-all":
		if w.kind == "purge-all" {
			l.runs = nil
		}
		l.purged = w.id
		for len(l.runs) > 0 && l.runs[0].Last <= w.id.Index {
			l.runs = l.runs[1:]
		}
	case "init", "rewrite":
		l.vote, l.purged, l.runs = w.vote, w.id, nil
		l.append(w.runs)
	}
}

func (l *durableLog) append(runs []engine.TermRun) {
	for _, r := range runs {
		if n := len(l.runs); n > 0 && l.runs[n-1].Term == r.Term && l.runs[n-1].Last+1 == r.First {
			l.runs[n-1].Last = r.Last
		} else {
			l.runs = append(l.runs, r)
		}
	}
}

func (l *durableLog) truncate(first uint64) {
	for n := len(l.runs); n > 0 && l.runs[n-1].Last >= first; n = len(l.runs) {
		if l.runs[n-1].First < first {
			l.runs[n-1].Last = first - 1
			return
		}
		l.runs = l.runs[:n-1]
	}
}

// holds tells whether an entry is durable: it is there, or its effect is.
func (l *durableLog) holds(id engine.LogID) bool {
	if l == nil {
		return false
	}
	if id.Index <= l.purged.Index {
		return true
	}
	for i := len(l.runs) - 1; i >= 0; i-- {
		if r := &l.runs[i]; r.First <= id.Index && id.Index <= r.Last {
			return r.Term == id.Term
		}
	}
	return false
}

// onRecovered is told what the log of a node held at its start: all of it is synced by then (rule Log1), and at least what was synced before.
func (s *sim) onRecovered(n *simrt.Node, rec *raftlog.Recovery) {
	d := s.durableOf(n.ID)
	for k, l := range d {
		if r := rec.Replicas[k]; r == nil && (l.vote.Term > 0 || len(l.runs) > 0) {
			if s.check.gone[place{n.ID, k}] {
				continue // its end was on the way
			}
			s.fail("node %d: the log has lost replica %d of shard %d, of which %+v was synced", n.ID, k.Replica, k.Shard, *l)
		} else if r != nil && !keeps(r.Vote, l.vote) {
			s.fail("node %d, shard %d: recovered vote %+v, synced was %+v", n.ID, k.Shard, r.Vote, l.vote)
		}
	}
	clear(d)
	for k, r := range rec.Replicas {
		l := &durableLog{vote: r.Vote, purged: r.Purged}
		l.append(r.Runs)
		d[k] = l
	}
}

// durableOnQuorum tells whether an entry is durable on a quorum of each set of voters. A shard's state holds what it has applied.
func (s *sim) durableOnQuorum(id engine.ShardID, m *engine.Membership, at engine.LogID) bool {
	for _, set := range m.Voters {
		n := 0
		for _, p := range set {
			if s.durable[p.Node][store.Key{Shard: id, Replica: p.Replica}].holds(at) {
				n++
			}
		}
		if n <= len(set)/2 {
			return false
		}
	}
	return true
}
