// Package mp writes and reads MessagePack in flat buffers: appending without an encoder object, and reading with every
// length checked against the bytes that are left, so that nothing untrusted can ask for memory or panic.
//
// It exists because the library's decoder believes slice lengths (its issue 401) and because the hot paths append to buffers
// they already own. What it writes, github.com/vmihailenco/msgpack/v5 reads, and the other way round; a test holds it to that.
// It imports the standard library only.
package mp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrMalformed is wrapped by every error of a Reader.
var ErrMalformed = errors.New("malformed msgpack")

// AppendNil appends nil.
func AppendNil(b []byte) []byte { return append(b, 0xc0) }

// AppendBool appends a boolean.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 0xc3)
	}
	return append(b, 0xc2)
}

// AppendUint appends v in its shortest form.
func AppendUint(b []byte, v uint64) []byte {
	switch {
	case v < 0x80:
		return append(b, byte(v))
	case v <= math.MaxUint8:
		return append(b, 0xcc, byte(v))
	case v <= math.MaxUint16:
		return append(b, 0xcd, byte(v>>8), byte(v))
	case v <= math.MaxUint32:
		return append(b, 0xce, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xcf), v)
}

// AppendInt appends v in its shortest form.
func AppendInt(b []byte, v int64) []byte {
	if v >= 0 {
		return AppendUint(b, uint64(v))
	}
	switch {
	case v >= -32:
		return append(b, byte(v))
	case v >= math.MinInt8:
		return append(b, 0xd0, byte(v))
	case v >= math.MinInt16:
		return append(b, 0xd1, byte(v>>8), byte(v))
	case v >= math.MinInt32:
		return append(b, 0xd2, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
}

// AppendBinHeader appends the header of a bin of n bytes; the caller appends the bytes.
func AppendBinHeader(b []byte, n int) []byte {
	switch {
	case n <= math.MaxUint8:
		return append(b, 0xc4, byte(n))
	case n <= math.MaxUint16:
		return append(b, 0xc5, byte(n>>8), byte(n))
	}
	return append(b, 0xc6, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// AppendBin appends a bin.
func AppendBin(b, v []byte) []byte { return append(AppendBinHeader(b, len(v)), v...) }

// AppendString appends a str.
func AppendString(b []byte, s string) []byte {
	n := len(s)
	switch {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n <= math.MaxUint8:
		b = append(b, 0xd9, byte(n))
	case n <= math.MaxUint16:
		b = append(b, 0xda, byte(n>>8), byte(n))
	default:
		b = append(b, 0xdb, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	return append(b, s...)
}

// AppendArray appends the header of an array of n elements.
func AppendArray(b []byte, n int) []byte {
	switch {
	case n < 16:
		return append(b, 0x90|byte(n))
	case n <= math.MaxUint16:
		return append(b, 0xdc, byte(n>>8), byte(n))
	}
	return append(b, 0xdd, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// Reader reads from a buffer. The first error sticks and every later read returns a zero value, so that a caller checks
// Err once at the end; loops must be bounded by Array, which never returns more than the bytes that are left.
type Reader struct {
	b   []byte
	off int
	err error
}

// NewReader returns a Reader of b. It does not copy: what Bin returns aliases b.
func NewReader(b []byte) Reader { return Reader{b: b} }

// Reset makes r read b from its start.
func (r *Reader) Reset(b []byte) { *r = Reader{b: b} }

// Err returns the first error, which wraps ErrMalformed.
func (r *Reader) Err() error { return r.err }

// Len returns how many bytes are left.
func (r *Reader) Len() int { return len(r.b) - r.off }

// Offset returns how many bytes were read.
func (r *Reader) Offset() int { return r.off }

// Rest returns the bytes that are left.
func (r *Reader) Rest() []byte { return r.b[r.off:] }

// Fail records an error found by the caller, if there is none yet.
func (r *Reader) Fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s at byte %d of %d", ErrMalformed, what, r.off, len(r.b))
		r.off = len(r.b)
	}
}

// Finish returns the first error, or one if bytes are left over.
func (r *Reader) Finish() error {
	if r.err == nil && r.Len() > 0 {
		r.Fail("trailing bytes")
	}
	return r.err
}

func (r *Reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b)-r.off {
		r.Fail("length past the end")
		return nil
	}
	v := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return v
}

func (r *Reader) code() (byte, bool) {
	if r.err != nil || r.off >= len(r.b) {
		r.Fail("unexpected end")
		return 0, false
	}
	c := r.b[r.off]
	r.off++
	return c, true
}

func (r *Reader) big(n int) uint64 {
	switch b := r.take(n); len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Uint reads an unsigned integer.
func (r *Reader) Uint() uint64 {
	if r.off < len(r.b) && r.b[r.off] < 0x80 { // most are small; behind an error nothing is left
		r.off++
		return uint64(r.b[r.off-1])
	}
	return r.longUint()
}

func (r *Reader) longUint() uint64 {
	c, ok := r.code()
	if !ok {
		return 0
	}
	switch {
	case c < 0x80:
		return uint64(c)
	case c >= 0xcc && c <= 0xcf:
		return r.big(1 << (c - 0xcc))
	case c >= 0xd0 && c <= 0xd3:
		if v := r.signed(c); v >= 0 {
			return uint64(v)
		}
	}
	r.Fail("not an unsigned integer")
	return 0
}

func (r *Reader) signed(c byte) int64 {
	n := 1 << (c - 0xd0)
	shift := 64 - 8*n
	return int64(r.big(n)<<shift) >> shift
}

// Int reads a signed integer.
func (r *Reader) Int() int64 {
	if r.off < len(r.b) && r.b[r.off] < 0x80 {
		r.off++
		return int64(r.b[r.off-1])
	}
	return r.longInt()
}

func (r *Reader) longInt() int64 {
	c, ok := r.code()
	if !ok {
		return 0
	}
	switch {
	case c < 0x80:
		return int64(c)
	case c >= 0xe0:
		return int64(int8(c))
	case c >= 0xcc && c <= 0xcf:
		if v := r.big(1 << (c - 0xcc)); v <= math.MaxInt64 {
			return int64(v)
		}
	case c >= 0xd0 && c <= 0xd3:
		return r.signed(c)
	}
	r.Fail("not an integer")
	return 0
}

// Bool reads a boolean.
func (r *Reader) Bool() bool {
	switch c, _ := r.code(); c {
	case 0xc3:
		return true
	case 0xc2:
		return false
	}
	r.Fail("not a boolean")
	return false
}

// Nil tells whether the next value is nil, and skips it if so.
func (r *Reader) Nil() bool {
	if r.err == nil && r.off < len(r.b) && r.b[r.off] == 0xc0 {
		r.off++
		return true
	}
	return false
}

// Bin reads a bin or str without copying.
func (r *Reader) Bin() []byte {
	c, ok := r.code()
	if !ok {
		return nil
	}
	switch {
	case c >= 0xc4 && c <= 0xc6:
		return r.take(r.length(1 << (c - 0xc4)))
	case c >= 0xa0 && c <= 0xbf:
		return r.take(int(c & 0x1f))
	case c >= 0xd9 && c <= 0xdb:
		return r.take(r.length(1 << (c - 0xd9)))
	}
	r.Fail("not bytes")
	return nil
}

func (r *Reader) length(n int) int {
	v := r.big(n)
	if v > uint64(r.Len()) {
		return -1
	}
	return int(v)
}

// String reads a str or bin and copies it.
func (r *Reader) String() string { return string(r.Bin()) }

// Array reads the header of an array. Each element takes at least a byte, so a length over what is left is an error.
func (r *Reader) Array() int {
	c, ok := r.code()
	if !ok {
		return 0
	}
	n := -1
	switch {
	case c >= 0x90 && c <= 0x9f:
		n = int(c & 0x0f)
	case c == 0xdc:
		n = r.length(2)
	case c == 0xdd:
		n = r.length(4)
	}
	if n < 0 || n > r.Len() {
		r.Fail("not an array that fits")
		return 0
	}
	return n
}

// ArrayOf reads the header of an array that must have n elements.
func (r *Reader) ArrayOf(n int) {
	if got := r.Array(); got != n {
		r.Fail(fmt.Sprintf("array of %d where %d was expected", got, n))
	}
}

// ArrayMin reads the header of an array of at least n elements and returns how many more there are: fields that a newer
// version has added, to be skipped with Skip.
func (r *Reader) ArrayMin(n int) int {
	got := r.Array()
	if got < n {
		r.Fail(fmt.Sprintf("array of %d where at least %d were expected", got, n))
		return 0
	}
	return got - n
}

// Skip skips n scalar values (integers, booleans, nil, bytes); newer versions may only add such fields.
func (r *Reader) Skip(n int) {
	for ; n > 0 && r.err == nil; n-- {
		if r.off >= len(r.b) {
			r.Fail("unexpected end")
			return
		}
		switch c := r.b[r.off]; {
		case c == 0xc0 || c == 0xc2 || c == 0xc3:
			r.off++
		case c < 0x80 || c >= 0xe0 || c >= 0xcc && c <= 0xd3:
			r.Int64orUint64()
		default:
			r.Bin()
		}
	}
}

// Int64orUint64 reads any integer and returns its low 64 bits.
func (r *Reader) Int64orUint64() uint64 {
	if r.err == nil && r.off < len(r.b) && (r.b[r.off] >= 0xe0 || r.b[r.off] >= 0xd0 && r.b[r.off] <= 0xd3) {
		return uint64(r.Int())
	}
	return r.Uint()
}
