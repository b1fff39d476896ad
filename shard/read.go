package shard

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// Read asks for the items of some keys of one shard, all as of one moment.
type Read struct {
	Shard   engine.ShardID
	Version uint64 // of the descriptor, as the sender knows it
	// StaleMs: 0 reads linearizably, at the leader; else any replica answers that has heard from its leader within so many ms.
	StaleMs uint64
	Keys    [][]byte
}

// AppendRead appends [shard, version, stale, [key …]].
func AppendRead(b []byte, q *Read) []byte {
	b = mp.AppendUint(mp.AppendArray(b, 4), uint64(q.Shard))
	b = mp.AppendUint(mp.AppendUint(b, q.Version), q.StaleMs)
	b = mp.AppendArray(b, len(q.Keys))
	for _, k := range q.Keys {
		b = mp.AppendBin(b, k)
	}
	return b
}

// DecodeRead reads a Read into q, reusing its slice; keys alias b. It checks the limits.
func DecodeRead(b []byte, q *Read) error {
	r := mp.NewReader(b)
	extra := r.ArrayMin(4)
	q.Shard = engine.ShardID(r.Uint())
	q.Version, q.StaleMs = r.Uint(), r.Uint()
	q.Keys = q.Keys[:0]
	n := r.Array()
	if n > ReadKeysMax {
		return &TooLargeError{What: "number of keys", Size: uint64(n), Max: ReadKeysMax}
	}
	for ; n > 0 && r.Err() == nil; n-- {
		q.Keys = append(q.Keys, r.Bin())
	}
	r.Skip(extra)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("%w: %w", &InvalidError{What: "malformed read"}, err)
	}
	if len(q.Keys) == 0 {
		return invalid("a read without keys")
	}
	for _, k := range q.Keys {
		if err := checkItem(k, nil); err != nil {
			return err
		}
	}
	return nil
}

// Entry is an item as a client sees it.
type Entry struct {
	Key     []byte
	Value   []byte
	Version uint64 // 0: there is no such key
	Expire  int64  // unix ms, 0 never
}

// Exists tells whether the key exists.
func (e *Entry) Exists() bool { return e.Version != 0 }

// The answer to a Read is an array with one element per key, in the order of the request: nil, or [version, expire, value].
// It may be shorter than the request when it would exceed AnswerBytesMax: ask for the rest again.

// AppendAnswerHeader starts the answer to a Read with n entries.
func AppendAnswerHeader(b []byte, n int) []byte { return mp.AppendArray(b, n) }

// AppendAnswerEntry appends an entry of the answer to a Read. A version of 0 says that there is none.
func AppendAnswerEntry(b []byte, version uint64, expire int64, value []byte) []byte {
	if version == 0 {
		return mp.AppendNil(b)
	}
	b = mp.AppendUint(mp.AppendArray(b, 3), version)
	return mp.AppendBin(mp.AppendInt(b, expire), value)
}

// DecodeAnswer reads the answer to a Read of keys, and appends an Entry per key to dst. Values alias b.
func DecodeAnswer(b []byte, keys [][]byte, dst []Entry) ([]Entry, error) {
	r := mp.NewReader(b)
	n := r.Array()
	if n > len(keys) {
		r.Fail("more entries than keys")
	}
	for i := 0; i < n && r.Err() == nil; i++ {
		e := Entry{Key: keys[i]}
		if !r.Nil() {
			extra := r.ArrayMin(3)
			e.Version, e.Expire, e.Value = r.Uint(), r.Int(), r.Bin()
			r.Skip(extra)
		}
		dst = append(dst, e)
	}
	return dst, r.Finish()
}

// Scan asks for the items of a range of one shard, in order, page by page.
type Scan struct {
	Shard   engine.ShardID
	Version uint64
	StaleMs uint64 // as in Read
	// The range is [Start, End); an empty End is plus infinity. A forward scan is answered by the shard that owns Start, a reverse
	// scan by the one that owns what is just below End.
	Start    []byte
	End      []byte
	Limit    int // items; 0 is ScanLimitMax
	BytesMax int // bytes of keys and values; 0 is AnswerBytesMax
	Reverse  bool
	KeysOnly bool
}

// AppendScan appends [shard, version, stale, start, end, limit, bytesMax, reverse, keysOnly].
func AppendScan(b []byte, q *Scan) []byte {
	b = mp.AppendUint(mp.AppendArray(b, 9), uint64(q.Shard))
	b = mp.AppendUint(mp.AppendUint(b, q.Version), q.StaleMs)
	b = mp.AppendBin(mp.AppendBin(b, q.Start), q.End)
	b = mp.AppendUint(mp.AppendUint(b, uint64(max(q.Limit, 0))), uint64(max(q.BytesMax, 0)))
	return mp.AppendBool(mp.AppendBool(b, q.Reverse), q.KeysOnly)
}

// DecodeScan reads a Scan into q; its keys alias b. Limits are capped, not refused.
func DecodeScan(b []byte, q *Scan) error {
	r := mp.NewReader(b)
	extra := r.ArrayMin(9)
	*q = Scan{Shard: engine.ShardID(r.Uint()), Version: r.Uint(), StaleMs: r.Uint(), Start: r.Bin(), End: r.Bin()}
	limit, size := r.Uint(), r.Uint()
	q.Reverse, q.KeysOnly = r.Bool(), r.Bool()
	r.Skip(extra)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("%w: %w", &InvalidError{What: "malformed scan"}, err)
	}
	if limit == 0 || limit > ScanLimitMax {
		limit = ScanLimitMax
	}
	if size == 0 || size > AnswerBytesMax {
		size = AnswerBytesMax
	}
	q.Limit, q.BytesMax = int(limit), int(size)
	if err := CheckBounds(q.Start, q.End); err != nil {
		return err
	}
	if len(q.End) > 0 && bytes.Compare(q.Start, q.End) > 0 {
		return invalid("scan ends before it starts")
	}
	return nil
}

// CheckBounds checks the sizes of the bounds of a range. A bound may be a byte longer than a key: a scan or a delete-range goes on
// just behind the last key that it has seen, and that may be a longest one.
func CheckBounds(start, end []byte) error {
	if size := max(len(start), len(end)); size > KeyBytesMax+1 {
		return &TooLargeError{What: "bound of a range", Size: uint64(size), Max: KeyBytesMax + 1}
	}
	return nil
}

// Page is the answer to a Scan (rule Cluster4).
type Page struct {
	Entries []Entry
	// Done: the whole of the requested range is in this page. Else the page is complete for [Start, CompleteTo), or in reverse
	// for [CompleteTo, End), and the next scan goes on there.
	Done       bool
	CompleteTo []byte
}

// AppendPage appends [done, completeTo, [key, version, expire, value, …]].
func AppendPage(b []byte, p *Page) []byte {
	size := 32 + len(p.CompleteTo)
	for i := range p.Entries {
		size += len(p.Entries[i].Key) + len(p.Entries[i].Value) + 32
	}
	b = slices.Grow(b, size) // once: it may be megabytes
	b = mp.AppendBin(mp.AppendBool(mp.AppendArray(b, 3), p.Done), p.CompleteTo)
	b = mp.AppendArray(b, 4*len(p.Entries))
	for i := range p.Entries {
		e := &p.Entries[i]
		b = mp.AppendUint(mp.AppendBin(b, e.Key), e.Version)
		b = mp.AppendBin(mp.AppendInt(b, e.Expire), e.Value)
	}
	return b
}

// DecodePage reads a Page into p, reusing its slice; keys and values alias b.
func DecodePage(b []byte, p *Page) error {
	r := mp.NewReader(b)
	extra := r.ArrayMin(3)
	p.Done, p.CompleteTo = r.Bool(), r.Bin()
	n := r.Array()
	if n%4 != 0 || n > 4*ScanLimitMax {
		r.Fail("length of a page")
	}
	p.Entries = p.Entries[:0]
	for ; n > 0 && r.Err() == nil; n -= 4 {
		e := Entry{Key: r.Bin(), Version: r.Uint(), Expire: r.Int()}
		e.Value = r.Bin()
		p.Entries = append(p.Entries, e)
	}
	r.Skip(extra)
	return r.Finish()
}
