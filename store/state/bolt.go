package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/kiloraft/kiloraft/internal/fault"
)

// tabletsName is the bucket whose sub-buckets are the tablets. The other buckets are named by their space.
var tabletsName = []byte{'t'}

// boltKV is the backend on a bbolt file.
type boltKV struct {
	db       *bolt.DB
	file     *os.File // bbolt's own
	opt      Options
	pageSize int64

	// pause is held for reading by every reader, and for writing by a transaction that may grow the map (rule State2):
	// bbolt would make it wait for the readers that are there, and later readers wait for it.
	pause sync.RWMutex

	// Owned by the writer, that is by whoever is in update; atomic for stats.
	mapped atomic.Int64 // size of the map, at least
	size   atomic.Int64 // size of the file
	used   atomic.Int64 // up to the highest page ever used
	pauses atomic.Uint64
}

func openBolt(path string, opt Options) (*boltKV, error) {
	b := &boltKV{opt: opt}
	db, err := boltOpen(path, &bolt.Options{
		Timeout:         opt.LockTimeout,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: opt.MapBytes,
		NoStatistics:    true,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, perm)
			b.file = f
			return f, err
		},
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	b.db = db
	b.pageSize = int64(db.Info().PageSize)
	if err := b.prepare(path); err != nil {
		return nil, errors.Join(fmt.Errorf("open state %s: %w", path, err), db.Close())
	}
	return b, nil
}

// boltOpen opens a file of bbolt, which reads its freelist at once, damaged or not. A file over which it panicked stays locked by this process.
func boltOpen(path string, opt *bolt.Options) (db *bolt.DB, err error) {
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return bolt.Open(path, 0o600, opt)
}

func (b *boltKV) prepare(path string) error {
	// bbolt syncs the file, not the directory; nor did, maybe, a process that was killed when it had made the file.
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err = errors.Join(d.Sync(), d.Close()); err != nil {
		return err
	}
	info, err := b.file.Stat()
	if err != nil {
		return err
	}
	b.size.Store(info.Size())
	b.mapped.Store(mapSize(max(info.Size(), int64(b.opt.MapBytes))))
	var complete bool
	err = b.view(func(tx kvTx) error {
		t := tx.(*boltTx)
		b.used.Store(t.tx.Size())
		complete = t.tx.Bucket(tabletsName) != nil
		return confirmMeta(b.file, b.pageSize, t.tx.ID())
	})
	if err != nil || complete {
		return err
	}
	return b.update(need{keys: 8}, func(tx kvTx) error {
		t := tx.(*boltTx).tx
		for _, name := range [][]byte{{byte(spaceNode)}, {byte(spaceRecords)}, {byte(spaceMeta)}, {byte(spaceGarbage)}, tabletsName} {
			if _, err := t.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// metaFile is what confirmMeta needs of the file.
type metaFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// confirmMeta makes the meta page of the newest transaction durable, before anything is built on what it says. Whoever wrote it may have been killed
// before its sync, or stopped because that failed: then only the system's memory may have it, even as a page that needs no writing any more, so it is
// written again as it is. A failure of power would take the transaction away, and with it what the log was purged for meanwhile.
// What the page refers to was synced before it was written.
func confirmMeta(f metaFile, pageSize int64, tx int) error {
	page, at := make([]byte, pageSize), int64(tx%2)*pageSize
	if _, err := f.ReadAt(page, at); err != nil {
		return fmt.Errorf("meta page of transaction %d: %w", tx, err)
	}
	if _, err := f.WriteAt(page, at); err != nil {
		return fmt.Errorf("meta page of transaction %d: %w", tx, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("meta page of transaction %d: %w", tx, err)
	}
	return nil
}

// mapSize is the size that bbolt gives to a map that must hold n bytes: a power of two up to a GiB, then whole GiB.
func mapSize(n int64) int64 {
	const gib = 1 << 30
	for s := int64(32 << 10); s <= gib; s *= 2 {
		if n <= s {
			return s
		}
	}
	return (n + gib - 1) / gib * gib
}

// guard turns a panic of bbolt over a damaged page, or a fault of the memory map, into an error. It must be deferred.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: reading the state panicked: %v\n%s", ErrCorrupt, p, debug.Stack())
	}
}

func (b *boltKV) view(fn func(kvTx) error) (err error) {
	b.pause.RLock()
	defer b.pause.RUnlock()
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	err = b.db.View(func(tx *bolt.Tx) error { return fn(&boltTx{tx: tx, kv: b}) })
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

func (b *boltKV) update(n need, fn func(kvTx) error) error {
	high := b.highest(n)
	full := b.reserve(high, n.urgent)
	if full != nil {
		if !errors.Is(full, ErrNoSpace) {
			return full
		}
		defer b.keepWithin(n.urgent)()
	}
	if high+b.pageSize >= b.mapped.Load() { // the map may grow: rule State2
		b.pause.Lock()
		defer b.pause.Unlock()
		b.pauses.Add(1)
	}
	own, err := b.transact(fn)
	switch {
	case err == nil || own:
		return err
	case full != nil && errors.Is(err, berrors.ErrMaxSizeReached): // before anything was written
		return full
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return ErrClosed
	}
	return &failedError{err}
}

// keepWithin has bbolt give a transaction up that does not fit into what the file has, free pages among it: whether it does can not be
// told before, for bbolt wants them side by side. What it returns ends that.
func (b *boltKV) keepWithin(urgent bool) (end func()) {
	limit := b.size.Load()
	if !urgent {
		limit -= urgentBytes
	}
	step := b.db.AllocSize // which bbolt takes into account as if it would grow the file by itself
	b.db.MaxSize, b.db.AllocSize = int(max(limit, 1)), 0
	return func() { b.db.MaxSize, b.db.AllocSize = 0, step }
}

// transact tells whether an error is fn's own, found before anything was given to the disk.
func (b *boltKV) transact(fn func(kvTx) error) (own bool, err error) {
	defer guard(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	tx, err := b.db.Begin(true)
	if err != nil {
		return false, err
	}
	committed := false
	defer func() {
		if !committed {
			_ = tx.Rollback() // after a failed commit it is closed already
		}
	}()
	if err := fn(&boltTx{tx: tx, kv: b}); err != nil {
		return true, err
	}
	if b.opt.Fault != nil {
		if err := b.opt.Fault(); err != nil {
			return false, err
		}
	}
	high := tx.Size()
	fault.Delay(fault.DiskSync)
	if err := tx.Commit(); err != nil {
		return false, err
	}
	committed = true
	b.after(high)
	return false, nil
}

// after notes what the commit did to file and map. The highest page may be a little above what Size said before it.
func (b *boltKV) after(high int64) {
	_ = b.db.View(func(tx *bolt.Tx) error {
		high = max(high, tx.Size())
		return nil
	})
	b.used.Store(high)
	if info, err := b.file.Stat(); err == nil {
		b.size.Store(max(b.size.Load(), info.Size()))
	}
	if high+b.pageSize >= b.mapped.Load() {
		b.mapped.Store(mapSize(high + b.pageSize))
	}
}

// highest bounds how far the transaction can push the highest used page, if no free page were found: each key touches a
// leaf and a branch at most, but not more pages than there are; and what is written fills half of each page at worst.
func (b *boltKV) highest(n need) int64 {
	used := b.used.Load()
	touched := int64(2 * n.keys)
	if n.dense {
		touched = int64(n.keys/8 + 16)
	}
	pages := min(touched, used/b.pageSize) + int64(2*n.bytes)/b.pageSize + int64(n.keys*64)/b.pageSize
	freelist := used / b.pageSize * 8 / b.pageSize
	return used + (pages+freelist+64)*b.pageSize
}

// urgentBytes is what of the file the other transactions leave to the urgent ones, which make room, or without which a node does not
// start: others than the state may have taken the last byte of the disk.
const urgentBytes = 1 << 20

// reserve makes the file reach up to high, with real blocks where the file system can do that, so that the transaction does
// not run out of space half way (rule State6). Blocks come in steps, and a new size is synced before it is used.
func (b *boltKV) reserve(high int64, urgent bool) error {
	size := b.size.Load()
	if !urgent {
		high += urgentBytes
	}
	if high <= size {
		return nil
	}
	free, err := b.free()
	if err != nil {
		return fmt.Errorf("free space of the state: %w", err)
	}
	if !urgent {
		free -= b.opt.ReserveBytes
	}
	want := (high + int64(b.opt.GrowBytes) - 1) / int64(b.opt.GrowBytes) * int64(b.opt.GrowBytes)
	if want-size > free {
		want = high
	}
	if want-size > free {
		return fmt.Errorf("%w: %d bytes wanted, %d free beside the reserve", ErrNoSpace, want-size, free)
	}
	if err := allocate(b.file, size, want); err != nil {
		if isNoSpace(err) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return &failedError{err}
	}
	if err := b.file.Sync(); err != nil {
		return &failedError{err}
	}
	b.size.Store(want)
	return nil
}

func (b *boltKV) free() (int64, error) {
	if b.opt.FreeBytes != nil {
		return b.opt.FreeBytes()
	}
	return freeBytes(b.file)
}

func (b *boltKV) stats(s *Stats) {
	s.FileBytes, s.UsedBytes, s.MapBytes, s.Pauses = b.size.Load(), b.used.Load(), b.mapped.Load(), b.pauses.Load()
}

func (b *boltKV) close() error { return b.db.Close() }

// boltTx is a bbolt transaction as a kvTx.
type boltTx struct {
	tx   *bolt.Tx
	kv   *boltKV
	tabs *bolt.Bucket
}

// boltBucket is a bbolt bucket as a kvBucket.
type boltBucket struct {
	*bolt.Bucket
	kv *boltKV // nil: of a file that is opened for reading only
}

func (b boltBucket) Cursor() kvCursor { return b.Bucket.Cursor() }

func (t *boltTx) space(s space) kvBucket { return boltBucket{t.tx.Bucket([]byte{byte(s)}), t.kv} }

func (t *boltTx) all() *bolt.Bucket {
	if t.tabs == nil {
		t.tabs = t.tx.Bucket(tabletsName)
	}
	return t.tabs
}

func (t *boltTx) tablet(id TabletID) (kvBucket, bool) {
	var k [8]byte
	binary.BigEndian.PutUint64(k[:], uint64(id))
	b := t.all().Bucket(k[:])
	if b == nil {
		return nil, false
	}
	return boltBucket{b, t.kv}, true
}

func (t *boltTx) createTablet(id TabletID) (kvBucket, error) {
	b, err := t.all().CreateBucket(tabletKey(id))
	if err != nil {
		return nil, err
	}
	return boltBucket{b, t.kv}, nil
}

func (t *boltTx) deleteTablet(id TabletID) error { return t.all().DeleteBucket(tabletKey(id)) }

func (t *boltTx) tablets(fn func(TabletID) error) error {
	return t.all().ForEachBucket(func(k []byte) error {
		if len(k) != 8 {
			return &CorruptError{Key: k, What: "name of a tablet"}
		}
		return fn(TabletID(binary.BigEndian.Uint64(k)))
	})
}

// lockTimeoutDefault bounds the wait for another process that is just ending.
const lockTimeoutDefault = time.Second
