package raftlog

import (
	"errors"
	"log/slog"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store"
)

// Key names a replica (rule Log4).
type Key = store.Key

// Run is a run of consecutive entries of one term. Body is the concatenation of the encoded entries (see AppendEntry); term
// and index are not in it, so that it travels unchanged from the leader's proposal to the followers' logs.
type Run struct {
	Term    uint64
	First   uint64 // index of the first entry
	Count   int
	Special bool // some entry is not an EntryNormal
	Body    []byte
}

// Last is the index of the last entry.
func (r Run) Last() uint64 { return r.First + uint64(r.Count) - 1 }

// Stats tells what the log holds of a replica: the entries First..Last (none if Last < First), Bytes of bodies.
type Stats struct {
	First uint64
	Last  engine.LogID // the last entry, or the purged log id if there is none
	Bytes int64
}

// SegmentBytesDefault is the size of a segment file, if nobody says otherwise.
const SegmentBytesDefault = 64 << 20

// Options configure a Log. The zero value of a field means its default.
type Options struct {
	// SegmentBytes is the size of a segment file. Default SegmentBytesDefault.
	SegmentBytes int64
	// CacheBytes bounds the recent bodies that each lane keeps in memory. Bodies that are not flushed yet are kept beyond
	// it. Default 32 MiB.
	CacheBytes int64
	// RewriteBytesMax is the most that Rewrite copies for one replica: it is one frame, and passes through memory. Default 256 MiB.
	RewriteBytesMax int64
	// SyncedHint is the highest sequence that is known from elsewhere to have been synced (rule Log3). A log that ends before it
	// is refused.
	SyncedHint uint64
	// MustExist refuses a directory without segments: the caller knows that there has been a log (rule Log3).
	MustExist bool
	// Background lets the log prepare the next segment in a goroutine of its own, which Close waits for. Without it, it
	// is prepared by Maintain or by the Flush that needs it.
	Background bool
	Logger     *slog.Logger
	// FreeBytes tells what is free on the disk, for more freed segments to be kept than two. Default: that is not known.
	FreeBytes func() int64
	// Now is used for metrics, and to judge which of these have waited for too long. Default time.Now.
	Now func() time.Time
	// Salt makes the salts of segments; tests may make it deterministic. Default: crypto/rand.
	Salt func() uint64
}

// Errors. All are wrapped with what was being done.
var (
	// ErrCorrupt: the log holds something that it cannot hold after any crash (rule Log3). The message says file, offset and shards.
	ErrCorrupt = errors.New("raft log is corrupt")
	// ErrCold: the entries are in the log but not in the cache: use Locate.
	ErrCold = errors.New("entries are not cached")
	// ErrPurged: the entries are not in the log any more, or not yet.
	ErrPurged = errors.New("entries are not in the log")
	// ErrMoved: the segment was freed while it was read: locate the entries again.
	ErrMoved = errors.New("entries have moved")
	// ErrTooBig: the replica is too big to be rewritten: checkpoint and purge it (rule Log6).
	ErrTooBig = errors.New("replica is too big to rewrite")
	// ErrNoSpace: no new segment could be allocated, or a rewrite has no room yet. Nothing was written or lost; Flush, or Rewrite, may be
	// called again.
	ErrNoSpace = errors.New("no space in the raft log")
	// ErrPoisoned: a write or sync has failed earlier; nothing is known about the end of the log any more and the process
	// must end (DESIGN 4, fail-stop).
	ErrPoisoned = errors.New("raft log has failed")
	// ErrMalformed: bytes are not what an encoder of this package makes.
	ErrMalformed = errors.New("malformed raft log data")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("raft log is closed")
)

// Completion tells that all batches of a lane up to Batch are durable. The runtime hands it to the lane, which calls
// Lane.Flushed with it before anything else; it also tells the lane where its batches lie.
type Completion struct {
	Lane  int
	Batch uint64
	first uint64 // batch of places[0]
	// places are the positions of the batches first..Batch.
	places []place
}

// place is where a batch lies: its records start at Off in segment Seg.
type place struct {
	seg uint32
	off uint32
}
