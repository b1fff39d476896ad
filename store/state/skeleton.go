package state

import (
	"errors"
	"log/slog"
)

var errTodo = errors.New("not implemented")

// Options of a DB. The zero value is good.
type Options struct {
	// MapBytes is the size of the memory map from the start; it grows by a GiB at a time, while the readers are paused (rule
	// State2). Default 1 GiB.
	MapBytes int
	// GrowBytes is the step in which the file is preallocated. Default 16 MiB.
	GrowBytes int
	// ReserveBytes is the free space that a write leaves on the file system: below it Write returns ErrNoSpace. Default 64 MiB.
	ReserveBytes int64
	Logger       *slog.Logger
	// Fault, for tests, is called before each commit; an error fails it.
	Fault func() error
	// FreeBytes, for tests, replaces the question to the file system.
	FreeBytes func() (int64, error)
}

// DB is a Store.
type DB struct{}

// Open opens or creates the store in the bbolt file at path.
func Open(path string, opt Options) (*DB, error) { return nil, errTodo }

// NewMem returns an empty store in memory. Writes are durable at once: Clone it to get what a crash would leave.
func NewMem(opt Options) *DB { return &DB{} }

// Snapshot reads a replica's content as a stream of chunks.
type Snapshot struct{}

// Next appends the next chunk to buf. It returns io.EOF behind the last one, and ErrMoved if the replica changed.
func (s *Snapshot) Next(buf []byte) ([]byte, error) { return nil, errTodo }

// Ingest fills a tablet from the chunks of a snapshot.
type Ingest struct{}

// Chunk takes the next chunk.
func (in *Ingest) Chunk(b []byte) error { return errTodo }

// Record returns the snapshot's record, without extents, once the first chunk was taken.
func (in *Ingest) Record() (Record, bool) { return Record{}, false }

// Finish checks that the stream is complete and what was written; the tablet may then be linked by a Write.
func (in *Ingest) Finish() (Content, error) { return Content{}, errTodo }

// Abort removes the tablet.
func (in *Ingest) Abort() error { return errTodo }

// MergeOptions say which part of a range MergePage makes.
type MergeOptions struct {
	Start, End []byte
	Limit      int
	Bytes      int
	Reverse    bool
	Now        int64 // items that expire at or before it are left out; 0: none
}

// MergePage makes the page of a range from what the store returned for it (base) and the overlays, newest first (nil ones
// are skipped). dst is reused, and aliases base and the overlays.
func MergePage(dst *Page, base *Page, opt MergeOptions, overlays ...*Overlay) {}

func (db *DB) Records() ([]Record, error)                            { return nil, errTodo }
func (db *DB) Write(changes []Change, syncedSeq uint64) error        { return errTodo }
func (db *DB) SyncedSeq() (uint64, error)                            { return 0, errTodo }
func (db *DB) NodeGet(key string) ([]byte, error)                    { return nil, errTodo }
func (db *DB) NodePut(key string, value []byte) error                { return errTodo }
func (db *DB) AllocTablet() (TabletID, error)                        { return 0, errTodo }
func (db *DB) RunJob(job *ReadJob)                                   {}
func (db *DB) OpenSnapshot(rec Record, frozen ...*Overlay) *Snapshot { return nil }
func (db *DB) NewIngest(tablet TabletID) (*Ingest, error)            { return nil, errTodo }
func (db *DB) Checksum(rec Record, fr ...*Overlay) (Content, error)  { return Content{}, errTodo }
func (db *DB) CollectGarbage(budget int) (more bool, err error)      { return false, errTodo }
func (db *DB) Stats() Stats                                          { return Stats{} }
func (db *DB) Close() error                                          { return errTodo }

var _ Store = (*DB)(nil)
