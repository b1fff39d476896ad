package shard

import (
	"math"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/kiloraft/kiloraft/internal/mp"
)

// estimate guesses how many keys a shard holds and how large they are, without ever reading an old value: a put may be a new
// key or an overwrite. It is a function of the applied operations, so all replicas guess the same.
//
// Puts minus deletes is exact if nothing is overwritten; a HyperLogLog sketch of all keys ever put bounds it from above.
// Overwriting and deleting in turn makes it too high; a key that expires still counts.
type estimate struct {
	live   int64  // puts minus deletes, at least 0
	puts   uint64 // and
	bytes  uint64 // their keys and values, for the mean size
	sketch *[sketchSize]uint8
}

const sketchSize = 256 // 6.5 % standard error

func (e *estimate) put(key []byte, size int) {
	if e.sketch == nil {
		e.sketch = new([sketchSize]uint8)
	}
	h := xxhash.Sum64(key)
	rank := uint8(bits.LeadingZeros64(h<<8|1<<7) + 1)
	if at := &e.sketch[h>>56]; rank > *at {
		*at = rank
	}
	e.live++
	e.puts++
	e.bytes += uint64(len(key) + size)
}

func (e *estimate) delete() { e.live = max(e.live-1, 0) }

// guess returns the number of keys and the bytes of keys and values.
func (e *estimate) guess() (keys, size uint64) {
	if e.puts == 0 {
		return 0, 0
	}
	keys = uint64(e.live)
	if d := e.distinct(); float64(keys) > 1.2*d { // beyond three standard errors: there were overwrites
		keys = uint64(d)
	}
	return keys, uint64(float64(e.bytes) / float64(e.puts) * float64(keys))
}

func (e *estimate) distinct() float64 {
	sum, zeros := 0.0, 0
	for _, r := range e.sketch {
		sum += math.Float64frombits(uint64(1023-int(r)) << 52) // 2^-r
		if r == 0 {
			zeros++
		}
	}
	const m = sketchSize
	guess := 0.7213 / (1 + 1.079/m) * m * m / sum
	if guess <= 2.5*m && zeros > 0 {
		guess = m * math.Log(m/float64(zeros))
	}
	return math.Ceil(guess)
}

// appendEstimate appends [live, puts, bytes, sketch].
func appendEstimate(b []byte, e *estimate) []byte {
	b = mp.AppendInt(mp.AppendArray(b, 4), e.live)
	b = mp.AppendUint(mp.AppendUint(b, e.puts), e.bytes)
	if e.sketch == nil {
		return mp.AppendBin(b, nil)
	}
	return mp.AppendBin(b, e.sketch[:])
}

func readEstimate(r *mp.Reader) (e estimate) {
	r.ArrayOf(4)
	e.live, e.puts, e.bytes = r.Int(), r.Uint(), r.Uint()
	switch s := r.Bin(); {
	case len(s) == sketchSize:
		e.sketch = (*[sketchSize]uint8)(append([]byte(nil), s...))
	case len(s) > 0 || e.puts > 0:
		r.Fail("sketch")
	}
	return e
}
