package state

import (
	"github.com/kiloraft/kiloraft/engine"
)

// ReadJob is a read of one replica's data as of its last checkpoint: of several keys, or of one page of a range. What the
// overlays hold is not in it: look into them before (keys), or merge them in afterwards (MergePage).
//
// The store compares Key, Extents and Applied with the replica's record, in the transaction that reads the data, and fails
// the job with ErrMoved if they differ (rule State1). When the job comes back, the lane that sent it checks that they still
// describe the shard: a checkpoint may have been committed, and its frozen overlay released, in between.
//
// A job may be used again; its results then share the memory of the earlier ones.
type ReadJob struct {
	Key     Key
	Extents []Extent
	Applied engine.LogID

	// Keys asks for these keys; if it is nil, the job reads a page of the range from Start up to, not including, End (empty:
	// plus infinity). The page ends after Limit items or when it holds Bytes bytes, with one item at least; 0 is no limit.
	Keys       [][]byte
	Start, End []byte
	Limit      int
	Bytes      int
	Reverse    bool

	// Done is called by Readers, on one of their goroutines, when the job is finished.
	Done func(*ReadJob)
	// User is the caller's.
	User any

	// Results, copies: Points in the order of Keys, or Page. If Err is set nothing else counts.
	Err    error
	Points []Point
	Page   Page

	buf []byte
}

// Point is the answer for one key.
type Point struct {
	Item
	Found bool
}

// Page is a part of a range, in the order asked for.
type Page struct {
	Items []KV
	// More tells that the page ends before the range does. It is then complete from the start of the range up to, not
	// including, CompleteTo, which is the start of the next page; or, reversed, from CompleteTo on, which is the end of the
	// next page.
	More       bool
	CompleteTo []byte
}

// Readers is a pool of goroutines that run read jobs.
type Readers struct{}

// NewReaders starts n goroutines that read from s. Close ends them.
func NewReaders(s Store, n int) *Readers { return &Readers{} }

// Submit queues the job and returns; it never blocks. Done is called when it has been run, with ErrClosed if the pool was
// closed before.
func (r *Readers) Submit(job *ReadJob) {}

// Close runs no further job, waits for those that run, and for the goroutines.
func (r *Readers) Close() {}
