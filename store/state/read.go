package state

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
)

// pageBytesMax bounds a page for which the job names no bound of bytes.
const pageBytesMax = 4 << 20

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

	// Keys asks for these keys, or the first of them: Points ends with the one whose value brings it to Bytes (0 is no limit). If it is nil, the job reads a page of the range from Start up to, not including, End (empty:
	// plus infinity). The page ends after Limit items or when it holds Bytes bytes, with one item at least; 0 is no limit of
	// items, and 4 MiB.
	Keys       [][]byte
	Start, End []byte
	Limit      int
	Bytes      int
	Reverse    bool
	// KeysOnly leaves the values of a page out, and out of Bytes.
	KeysOnly bool
	// ValueMax, if not nil, is how much of the value of each of Keys is wanted; of longer ones the rest is left out.
	ValueMax []int

	// Done is called by Readers, on one of their goroutines, when the job is finished.
	Done func(*ReadJob)
	// User is the caller's.
	User any

	// Results, copies: Points in the order of Keys, or Page. If Err is set nothing else counts.
	Err    error
	Points []Point
	Page   Page

	buf   []byte
	items itemCodec
}

// Point is the answer for one key.
type Point struct {
	Item
	Found bool
	Cut   bool // the value is longer than was wanted, and the rest is left out
}

// Page is a part of a range, in the order asked for.
type Page struct {
	Items []KV
	// More tells that the page ends before the range does. It is then complete from the start of the range up to, not
	// including, CompleteTo, which is the start of the next page; or, reversed, from CompleteTo on, which is the end of the
	// next page.
	More       bool
	CompleteTo []byte

	bound []byte // memory of CompleteTo
}

// reset empties the page and keeps its memory.
func (p *Page) reset() {
	clear(p.Items)
	*p = Page{Items: p.Items[:0], bound: p.bound}
}

// endAt says that the page ends with the item at key.
func (p *Page) endAt(key []byte, reverse bool) {
	p.bound = append(p.bound[:0], key...)
	if !reverse {
		p.bound = append(p.bound, 0)
	}
	p.CompleteTo, p.More = p.bound, true
}

// RunJob runs the job in the calling goroutine. It does not call Done.
func (db *DB) RunJob(job *ReadJob) { db.RunJobs([]*ReadJob{job}) }

// RunJobs runs the jobs in one transaction, which begins now (rule State1). It does not call Done.
func (db *DB) RunJobs(jobs []*ReadJob) {
	next := 0
	for next < len(jobs) { // again behind a job that panicked over a damaged page
		err := db.kv.view(func(tx kvTx) error {
			for ; next < len(jobs); next++ {
				jobs[next].run(tx)
				db.count(jobs[next])
			}
			return nil
		})
		if next < len(jobs) {
			if err == nil {
				err = ErrClosed
			}
			jobs[next].Err = err
			next++
		}
	}
}

func (db *DB) count(job *ReadJob) {
	db.jobs.Add(1)
	if errors.Is(job.Err, ErrMoved) {
		db.moved.Add(1)
	}
}

func (j *ReadJob) run(tx kvTx) {
	j.Err = nil
	j.buf = j.buf[:0]
	clear(j.Points)
	j.Points = j.Points[:0]
	j.Page.reset()
	if j.Err = j.verify(tx); j.Err != nil {
		return
	}
	if j.Keys != nil {
		j.Err = j.points(tx)
	} else {
		j.Err = j.page(tx)
	}
}

// verify compares what the job names with the record (rule State1).
func (j *ReadJob) verify(tx kvTx) error {
	key := recordKey(j.Key)
	stored := tx.space(spaceRecords).Get(key)
	if stored == nil {
		return fmt.Errorf("read of replica %v: %w: no record", j.Key, ErrMoved)
	}
	same, err := matches(key, stored, j.Applied, j.Extents)
	if err == nil && !same {
		err = ErrMoved
	}
	if err != nil {
		return fmt.Errorf("read of replica %v: %w", j.Key, err)
	}
	return nil
}

func (j *ReadJob) points(tx kvTx) error {
	var (
		tablet TabletID
		cursor kvCursor
	)
	for i, key := range j.Keys {
		e, ok := find(j.Extents, key)
		if !ok {
			j.Points = append(j.Points, Point{})
			continue
		}
		if cursor == nil || e.Tablet != tablet {
			b, ok := tx.tablet(e.Tablet)
			if !ok {
				return fmt.Errorf("%w: tablet %d does not exist", ErrCorrupt, e.Tablet)
			}
			cursor, tablet = b.Cursor(), e.Tablet
		}
		k, v := cursor.Seek(key)
		if k == nil || !bytes.Equal(k, key) {
			j.Points = append(j.Points, Point{})
			continue
		}
		it, err := j.items.read(tablet, k, v)
		if err != nil {
			return err
		}
		cut := j.ValueMax != nil && len(it.Value) > j.ValueMax[i]
		if cut {
			it.Value = it.Value[:j.ValueMax[i]]
		}
		it.Value = j.copy(it.Value)
		j.Points = append(j.Points, Point{Item: it, Found: true, Cut: cut})
		if j.Bytes > 0 && len(j.buf) >= j.Bytes {
			return nil
		}
	}
	return nil
}

// copy takes b out of the memory map.
func (j *ReadJob) copy(b []byte) []byte {
	at := len(j.buf)
	j.buf = append(j.buf, b...) // if it moves, what was copied before stays where it was
	return j.buf[at:len(j.buf):len(j.buf)]
}

func (j *ReadJob) page(tx kvTx) error {
	for i := range j.Extents {
		e := j.Extents[i]
		if j.Reverse {
			e = j.Extents[len(j.Extents)-1-i]
		}
		if bytes.Compare(e.Start, j.Start) < 0 {
			e.Start = j.Start
		}
		if compareEnds(j.End, e.End) < 0 {
			e.End = j.End
		}
		if len(e.End) > 0 && bytes.Compare(e.Start, e.End) >= 0 {
			continue
		}
		full, err := j.pageOf(tx, e)
		if err != nil || full {
			return err
		}
	}
	return nil
}

// pageOf adds the items of e, and tells whether the page is full.
func (j *ReadJob) pageOf(tx kvTx, e Extent) (full bool, err error) {
	b, ok := tx.tablet(e.Tablet)
	if !ok {
		return false, fmt.Errorf("%w: tablet %d does not exist", ErrCorrupt, e.Tablet)
	}
	limit := j.Bytes
	if limit <= 0 {
		limit = pageBytesMax
	}
	c := b.Cursor()
	var last []byte
	for k, v := begin(c, e, j.Reverse); k != nil && e.Contains(k); k, v = advance(c, j.Reverse) {
		// Whole items in the wrong place have good checksums: damage to the structure of bbolt's pages.
		if order := bytes.Compare(k, last); last != nil && (order == 0 || order < 0 != j.Reverse) {
			return false, corruptItem(e.Tablet, k, "key out of order")
		}
		last = k
		it, err := j.items.read(e.Tablet, k, v)
		if err != nil {
			return false, err
		}
		if j.KeysOnly {
			it.Value = nil
		}
		it.Value = j.copy(it.Value)
		j.Page.Items = append(j.Page.Items, KV{Key: j.copy(k), Item: it})
		if len(j.Page.Items) == j.Limit || len(j.buf) >= limit {
			j.Page.endAt(k, j.Reverse)
			return true, nil
		}
	}
	return false, nil
}

// begin moves the cursor to the first key of e in the order asked for.
func begin(c kvCursor, e Extent, reverse bool) (key, value []byte) {
	if !reverse {
		return seek(c, e.Start)
	}
	if len(e.End) == 0 {
		return c.Last()
	}
	if k, _ := c.Seek(e.End); k == nil {
		return c.Last()
	}
	return c.Prev()
}

func advance(c kvCursor, reverse bool) (key, value []byte) {
	if reverse {
		return c.Prev()
	}
	return c.Next()
}
