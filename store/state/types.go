package state

import (
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
)

// The names that the raft log and the state share, for the convenience of callers.
type (
	// Key names a replica of a shard.
	Key = store.Key
	// TabletID names a tablet.
	TabletID = store.TabletID
	// Extent is a key range in a tablet.
	Extent = store.Extent
)

// Item is what a user key holds.
type Item struct {
	Version uint64
	Expire  int64 // Unix milliseconds of shard time (rule State8); 0: never
	Value   []byte
}

// KV is a user key with what it holds.
type KV struct {
	Key []byte
	Item
}

// Record is the durable description of one replica: everything that a checkpoint writes beside the data, in the same
// transaction.
type Record struct {
	Key
	// Applied is the last entry whose effect is in the data. A record is replaced only by one that applied at least as much.
	Applied engine.LogID
	// Membership is the newest one applied, Previous the one before it.
	Membership engine.MembershipAt
	Previous   engine.MembershipAt
	// Extents are sorted by Start and do not overlap. Empty for a tombstone.
	Extents []Extent
	// Meta is the blob of the package shard: descriptor, de-duplication table, counters, times. This package does not look
	// at it.
	Meta []byte
	// Tombstone says that the replica was removed. Neither it nor an older replica of the shard is ever written again.
	Tombstone bool
}

// Change is one replica's part of a Write: its new record, and what its overlay adds to the data.
//
// What the records of one Write held before and hold no longer becomes garbage, in the same transaction, unless another
// record of the same Write took it over (a split's child, a merge's absorber). A record may add extents only that another
// record of the same Write held, or that lie in a tablet which nobody owns yet (made by this change, or by an Ingest).
type Change struct {
	Record Record
	// Overlay is frozen, or nil. Its entries go to the record's new extents; a key that is in none of them goes where the
	// record held it before, if somebody in this Write owns that place now (split, merge), else it is dropped.
	Overlay *Overlay
	// NewTablet makes the tablets that the record's extents name. It is an error if one exists.
	NewTablet bool
	// DropExtents is what becomes garbage; it is found without being told (see above), and checked if it is given.
	DropExtents []Extent
}

// Store keeps what is applied. DB implements it, on a bbolt file (Open) or in memory (NewMem).
//
// Write, NodePut, AllocTablet, CollectGarbage and the methods of an Ingest are serialized inside and may block for a disk
// sync: they are for the checkpointer, never for a lane. The reading methods may be called from any goroutine.
type Store interface {
	// Records returns all records, tombstones included, sorted by key. The first call checks the partition of every tablet
	// (rule State4) and removes tablets that nothing names.
	Records() ([]Record, error)
	// Write applies the changes in one transaction, and remembers syncedSeq, the highest sequence of the raft log that is
	// known to be synced (rule Log3), if it is higher than before. After it returned nil everything is durable.
	Write(changes []Change, syncedSeq uint64) error
	// SyncedSeq returns the highest sequence given to a Write.
	SyncedSeq() (uint64, error)
	// NodeGet returns a copy of a node-local fact, nil if there is none.
	NodeGet(key string) ([]byte, error)
	// NodePut durably stores a node-local fact.
	NodePut(key string, value []byte) error
	// AllocTablet returns a tablet id that was never returned before, in any life of the store.
	AllocTablet() (TabletID, error)
	// RunJob runs a read job in the calling goroutine; it does not call Done. It may wait for a disk: see Readers.
	RunJob(job *ReadJob)
	// RunJobs runs several jobs in one transaction.
	RunJobs(jobs []*ReadJob)
	// OpenSnapshot starts reading a snapshot of the replica: rec as in the store, and its frozen overlays, newest first. The
	// receiver is told cut: the record as it would be if the overlays had been checkpointed.
	OpenSnapshot(rec, cut Record, frozen ...*Overlay) *Snapshot
	// NewIngest starts filling a fresh tablet with the chunks of a snapshot.
	NewIngest(tablet TabletID) (*Ingest, error)
	// Checksum returns the checksum of the replica's content: rec as in the store, and its frozen overlays, newest first.
	Checksum(rec Record, frozen ...*Overlay) (Content, error)
	// SplitKeys returns up to parts-1 keys that cut the replica's content into parts of about the same size: rec as in the store, and
	// samples of its overlays. It may wait for a disk.
	SplitKeys(rec Record, parts int, overlays []Sample) ([][]byte, error)
	// CollectGarbage removes about budget keys of garbage in one transaction, and tells whether more is left.
	CollectGarbage(budget int) (more bool, err error)
	// Stats returns sizes and counters.
	Stats() Stats
	// Close waits for transactions and closes the store.
	Close() error
}

// Content describes what a replica holds: two replicas of a shard that applied the same entries have the same Content.
type Content struct {
	Items    uint64
	Bytes    uint64 // keys and values
	Checksum uint64 // over key, version, expiry and value of every item, in order
}

// Stats are sizes and counters of a store.
type Stats struct {
	FileBytes     int64  // size of the file, preallocated part included
	UsedBytes     int64  // up to the highest page ever used
	MapBytes      int64  // size of the memory map, at least
	GarbageRanges int    // garbage extents not collected yet
	Tablets       int    // tablets with live extents
	Writes        uint64 // committed write transactions
	Jobs          uint64 // read jobs
	Moved         uint64 // read jobs that ended in ErrMoved
	Pauses        uint64 // writes during which the readers were paused (rule State2)
}

// Errors. They are wrapped with what they concern; use errors.Is.
var (
	// ErrMoved: the replica's record is not the one that the job named (rule State1), or a snapshot's replica was
	// checkpointed, changed or removed while it was read (rule State3).
	ErrMoved = errors.New("replica moved on")
	// ErrTombstoned: a change would bring back a replica that was removed.
	ErrTombstoned = errors.New("replica was removed")
	// ErrStale: a change would take a record back to an older applied entry.
	ErrStale = errors.New("record is older than the stored one")
	// ErrExtents: extents overlap, are out of order, or belong to somebody else (rule State4).
	ErrExtents = errors.New("extents do not fit")
	// ErrCorrupt: stored bytes do not match their checksum or their format (rule State5). See CorruptError.
	ErrCorrupt = errors.New("state is corrupt")
	// ErrNoSpace: there is too little free space to begin the transaction; nothing was written (rule State6).
	ErrNoSpace = errors.New("no space left for the state")
	// ErrFailed: an earlier write or sync failed, and nothing may be written any more (rule State6): the process must end.
	ErrFailed = errors.New("state failed earlier")
	// ErrClosed: the store or the reader pool was closed.
	ErrClosed = errors.New("state is closed")
	// ErrLocked: another process has the file open.
	ErrLocked = errors.New("state file is locked by another process")
	// ErrBadChunk: a chunk of a snapshot is malformed, out of order, or does not match its checksum.
	ErrBadChunk = errors.New("bad snapshot chunk")
)

// CorruptError says where stored bytes are wrong. It is an ErrCorrupt.
type CorruptError struct {
	Tablet TabletID // 0 if it is not an item
	Key    []byte   // user key of the item, else the key in the bucket
	What   string
}

// Error describes the place.
func (e *CorruptError) Error() string {
	if e.Tablet == 0 {
		return fmt.Sprintf("%v: %s at key %q", ErrCorrupt, e.What, e.Key)
	}
	return fmt.Sprintf("%v: %s in tablet %d at key %q", ErrCorrupt, e.What, e.Tablet, e.Key)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
