package state

import "encoding/binary"

// What DB needs below it: ordered buckets with transactions. There are two: a bbolt file, and memory.

// space names a bucket that is not a tablet.
type space byte

const (
	spaceNode    space = 'n' // node-local facts, and this package's own counters
	spaceRecords space = 'r' // shard, replica -> record without its Meta
	spaceMeta    space = 'm' // shard, replica -> Meta
	spaceGarbage space = 'g' // tablet, start -> end of a garbage extent
)

type kvCursor interface {
	First() (key, value []byte)
	Last() (key, value []byte)
	Seek(at []byte) (key, value []byte)
	Next() (key, value []byte)
	Prev() (key, value []byte)
}

// kvBucket is valid within its transaction, as is all that it returns. What is put must stay as it is until the commit.
type kvBucket interface {
	Get(key []byte) []byte
	Put(key, value []byte) error
	Delete(key []byte) error
	Cursor() kvCursor
}

type kvTx interface {
	space(s space) kvBucket
	tablet(t TabletID) (kvBucket, bool)
	createTablet(t TabletID) (kvBucket, error)
	deleteTablet(t TabletID) error
	tablets(fn func(TabletID) error) error
}

// need is what a write transaction may change at most, for the reserve of space and the size of the map.
type need struct {
	keys   int  // keys written or deleted
	bytes  int  // bytes of keys and values written
	dense  bool // keys are neighbours: pages are filled, not touched here and there
	urgent bool // may use the reserve
}

type backend interface {
	view(fn func(kvTx) error) error
	// update runs fn in a write transaction and commits it if fn returns nil. An error of the commit, or of the medium, is a
	// failedError; any other leaves everything as it was.
	update(n need, fn func(kvTx) error) error
	stats(s *Stats)
	close() error
}

// failedError says that a write or sync failed, so that nobody knows what is durable (rule State6).
type failedError struct{ err error }

func (e *failedError) Error() string { return "state write failed: " + e.err.Error() }
func (e *failedError) Unwrap() error { return e.err }

// bufferBytes is the size of the blocks in which a transaction's values are encoded.
const bufferBytes = 256 << 10

// txBuffer holds what was put until the commit. It is used again by the next transaction.
type txBuffer struct {
	block []byte
}

// begin drops what the last transaction encoded.
func (b *txBuffer) begin() {
	if cap(b.block) > 4*bufferBytes {
		b.block = nil
	}
	b.block = b.block[:0]
}

// take returns room for n bytes: an empty slice of that capacity that nobody else gets before the next begin.
func (b *txBuffer) take(n int) []byte {
	if cap(b.block)-len(b.block) < n {
		b.block = make([]byte, 0, max(n, bufferBytes))
	}
	at := len(b.block)
	b.block = b.block[:at+n]
	return b.block[at : at : at+n]
}

func tabletKey(t TabletID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t)) }

func recordKey(k Key) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(k.Shard))
	return binary.BigEndian.AppendUint64(b, uint64(k.Replica))
}
