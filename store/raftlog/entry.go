package raftlog

import (
	"encoding/binary"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
)

// AppendEntry appends one encoded entry to a body: uvarint(len(payload)+1), kind, payload.
func AppendEntry(body []byte, kind engine.EntryKind, payload []byte) []byte {
	body = binary.AppendUvarint(body, uint64(len(payload))+1)
	body = append(body, byte(kind))
	return append(body, payload...)
}

// EntrySize is the number of bytes that AppendEntry appends for a payload of n bytes.
func EntrySize(n int) int {
	size := n + 2
	for v := uint64(n) + 1; v >= 0x80; v >>= 7 {
		size++
	}
	return size
}

// Iter iterates over the entries of a body. Use:
//
//	for it := NewIter(body); it.Next(); { … it.Kind, it.Payload … }
//
// and check Err, if the body is not trusted.
type Iter struct {
	// Kind and Payload are those of the current entry. Payload aliases the body.
	Kind    engine.EntryKind
	Payload []byte

	rest []byte
	err  error
}

// NewIter returns an Iter before the first entry of body.
func NewIter(body []byte) Iter { return Iter{rest: body} }

// Next moves to the next entry and tells whether there is one.
func (it *Iter) Next() bool {
	if len(it.rest) == 0 || it.err != nil {
		return false
	}
	n, w := binary.Uvarint(it.rest)
	if w <= 0 || n == 0 || n > uint64(len(it.rest)-w) {
		it.err = fmt.Errorf("%w: entry of %d bytes where %d are left", ErrMalformed, n, len(it.rest))
		it.rest = nil
		return false
	}
	it.Kind = engine.EntryKind(it.rest[w])
	it.Payload = it.rest[w+1 : w+int(n) : w+int(n)]
	it.rest = it.rest[w+int(n):]
	return true
}

// Err returns the error that ended the iteration, if any. It wraps ErrMalformed.
func (it *Iter) Err() error { return it.err }

// CountEntries checks an untrusted body and returns the number of its entries and whether one is not an EntryNormal.
func CountEntries(body []byte) (count int, special bool, err error) {
	it := NewIter(body)
	for it.Next() {
		count++
		special = special || it.Kind != engine.EntryNormal
	}
	return count, special, it.Err()
}

// skipEntries returns the offset behind the first n entries of a trusted body.
func skipEntries(body []byte, n int) int {
	off := 0
	for ; n > 0 && off < len(body); n-- {
		size, w := binary.Uvarint(body[off:])
		if w <= 0 || size > uint64(len(body)-off-w) {
			return len(body)
		}
		off += w + int(size)
	}
	return off
}

// CutRun returns the part of run with the entries first..last, as far as it has them. The body is aliased.
func CutRun(run Run, first, last uint64) Run {
	if first > run.First {
		n := min(int(first-run.First), run.Count)
		run.Body = run.Body[skipEntries(run.Body, n):]
		run.First += uint64(n)
		run.Count -= n
	}
	if run.Count > 0 && last < run.Last() {
		n := 0
		if last >= run.First {
			n = int(last - run.First + 1)
		}
		end := skipEntries(run.Body, n)
		run.Body = run.Body[:end:end]
		run.Count = n
	}
	return run
}

// fitBytes cuts run to the entries that fit into n bytes, but keeps at least one.
func fitBytes(run Run, n int) Run {
	if len(run.Body) <= n {
		return run
	}
	count, off := 0, 0
	for count < run.Count {
		next := off + skipEntries(run.Body[off:], 1)
		if next > n && count > 0 {
			break
		}
		off = next
		count++
	}
	run.Count, run.Body = count, run.Body[:off:off]
	return run
}
