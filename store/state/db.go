package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a DB. The zero value is good.
type Options struct {
	// MapBytes is the size of the memory map from the start; it grows by a GiB at a time, while the readers are paused (rule
	// State2). Default 1 GiB.
	MapBytes int
	// GrowBytes is the step in which the file is preallocated. Default 16 MiB.
	GrowBytes int
	// ReserveBytes is the free space that a write leaves on the file system: below it Write returns ErrNoSpace. Default 64 MiB.
	ReserveBytes int64
	// LockTimeout bounds the wait for another process that has the file open. Default 1 s.
	LockTimeout time.Duration
	Logger      *slog.Logger
	// Failed is told of the first failed write or sync, after which nothing is written any more: the process must end, whoever
	// wrote (rule State6). It is called while the DB is locked, and must not call it.
	Failed func(error)
	// Fault, for tests, is called before each commit; an error fails it.
	Fault func() error
	// FreeBytes, for tests, replaces the question to the file system.
	FreeBytes func() (int64, error)
}

func (o *Options) defaults() {
	if o.MapBytes == 0 {
		o.MapBytes = 1 << 30
	}
	if o.GrowBytes == 0 {
		o.GrowBytes = 16 << 20
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 64 << 20
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = lockTimeoutDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// DB is a Store, on a bbolt file or in memory.
type DB struct {
	kv  backend
	log *slog.Logger
	bad func(error) // Options.Failed

	writes, jobs, moved    atomic.Uint64
	garbageN, liveTabletsN atomic.Int64
	failed                 atomic.Pointer[error] // first failed write (rule State6); never cleared

	// mu serializes the writing methods and guards what is below.
	mu        sync.Mutex
	buf       txBuffer
	items     itemCodec
	loaded    bool
	live      liveTablets
	unlinked  map[TabletID]*unlinked // tablets made by ingests of this process that no record names yet
	dead      []TabletID             // tablets that no record will name, to be removed when there is space
	tabletsAt TabletID               // next id, and
	tabletsTo TabletID               // the end of the block of ids that was durably taken
}

// unlinked is a tablet under construction. What it holds lies from first to last.
type unlinked struct {
	finished    bool
	first, last []byte
	any         bool
}

// Open opens or creates the store in the bbolt file at path.
func Open(path string, opt Options) (*DB, error) {
	opt.defaults()
	kv, err := openBolt(path, opt)
	if err != nil {
		return nil, err
	}
	db := newDB(kv, opt)
	if err := db.checkFormat(); err != nil {
		return nil, errors.Join(fmt.Errorf("open state %s: %w", path, err), kv.close())
	}
	return db, nil
}

// NewMem returns an empty store in memory. Its writes are durable at once: Clone is what a crash leaves.
func NewMem(opt Options) *DB {
	opt.defaults()
	return newDB(newMemKV(&opt), opt)
}

func newDB(kv backend, opt Options) *DB {
	return &DB{kv: kv, log: opt.Logger, bad: opt.Failed, unlinked: make(map[TabletID]*unlinked)}
}

// Clone returns a copy of a store made by NewMem, as if it had been opened again after a crash at this moment.
func (db *DB) Clone(opt Options) *DB {
	opt.defaults()
	return newDB(db.kv.(*memKV).clone(&opt), opt)
}

// Close waits for transactions and closes the store. Readers and ingests are closed before it.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.kv.close()
}

// Stats returns sizes and counters.
func (db *DB) Stats() Stats {
	s := Stats{
		GarbageRanges: int(db.garbageN.Load()), Tablets: int(db.liveTabletsN.Load()),
		Writes: db.writes.Load(), Jobs: db.jobs.Load(), Moved: db.moved.Load(),
	}
	db.kv.stats(&s)
	return s
}

// update runs a write transaction. db.mu is held. The first failure of the disk is kept and refuses all that come later.
func (db *DB) update(n need, fn func(kvTx) error) error {
	if e := db.failed.Load(); e != nil {
		return fmt.Errorf("%w: %w", ErrFailed, *e)
	}
	db.buf.begin()
	err := db.kv.update(n, fn)
	var failed *failedError
	switch {
	case err == nil:
		db.writes.Add(1)
	case errors.As(err, &failed):
		db.failed.Store(&err)
		db.log.Error("the state can not be written any more", "err", err)
		if db.bad != nil {
			db.bad(fmt.Errorf("%w: %w", ErrFailed, err))
		}
		return fmt.Errorf("%w: %w", ErrFailed, err)
	}
	return err
}

// Names in the node bucket: this package's own, and the prefix of its user's.
const (
	nodeFormat  = "i/format"
	nodeSynced  = "i/synced"
	nodeTablets = "i/tablets"
	nodeUser    = "u/"
)

func getFact(tx kvTx, name string) ([]byte, error) {
	key := []byte(name)
	b := tx.space(spaceNode).Get(key)
	if b == nil {
		return nil, nil
	}
	return unseal(spaceNode, key, b)
}

func putFact(tx kvTx, name string, value []byte) error {
	key := []byte(name)
	return tx.space(spaceNode).Put(key, seal(spaceNode, key, value))
}

func getNumber(tx kvTx, name string) (uint64, error) {
	b, err := getFact(tx, name)
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, &CorruptError{Key: []byte(name), What: "number"}
	}
	return binary.BigEndian.Uint64(b), nil
}

func putNumber(tx kvTx, name string, n uint64) error {
	return putFact(tx, name, binary.BigEndian.AppendUint64(nil, n))
}

func (db *DB) checkFormat() error {
	var format uint64
	err := db.kv.view(func(tx kvTx) (err error) {
		if err := errors.Join(checkFacts(tx)...); err != nil {
			return err
		}
		format, err = getNumber(tx, nodeFormat)
		return err
	})
	switch {
	case err != nil:
		return err
	case format == formatVersion:
		return nil
	case format != 0:
		if err := readable(format); err != nil {
			return err
		}
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.update(need{keys: 1, bytes: 64}, func(tx kvTx) error { return putNumber(tx, nodeFormat, formatVersion) })
}

// checkFacts finds the facts that are damaged. One whose name is would else be taken for one that was never there.
func checkFacts(tx kvTx) (found []error) {
	c := tx.space(spaceNode).Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if _, err := unseal(spaceNode, k, v); err != nil {
			found = append(found, err)
		}
	}
	return found
}

// readable tells whether this program reads files of a format.
func readable(format uint64) error {
	switch {
	case format > formatVersion:
		return fmt.Errorf("format %d is not supported: a newer version of kiloraft wrote it, this one writes %d; start that one again", format, formatVersion)
	case format < formatMin:
		return fmt.Errorf("format %d is not supported: this version of kiloraft reads %d and newer", format, formatMin)
	}
	return nil
}

// SyncedSeq returns the highest sequence of the raft log given to a Write (rule Log3).
func (db *DB) SyncedSeq() (seq uint64, err error) {
	err = db.kv.view(func(tx kvTx) (err error) {
		seq, err = getNumber(tx, nodeSynced)
		return err
	})
	return seq, err
}

// NodeGet returns a copy of a node-local fact, nil if there is none.
func (db *DB) NodeGet(key string) (value []byte, err error) {
	err = db.kv.view(func(tx kvTx) error {
		b, err := getFact(tx, nodeUser+key)
		if b != nil {
			value = append([]byte{}, b...)
		}
		return err
	})
	return value, err
}

// NodePut durably stores a node-local fact.
func (db *DB) NodePut(key string, value []byte) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.update(need{keys: 1, bytes: len(key) + len(value), urgent: true}, func(tx kvTx) error {
		return putFact(tx, nodeUser+key, value)
	})
}

// tabletBlock is how many tablet ids are durably taken at a time.
const tabletBlock = 1024

// AllocTablet returns a tablet id that was never returned before. Most calls only count.
func (db *DB) AllocTablet() (TabletID, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.tabletsAt == db.tabletsTo {
		var from uint64
		err := db.update(need{keys: 1, bytes: 64}, func(tx kvTx) (err error) {
			if from, err = getNumber(tx, nodeTablets); err != nil {
				return err
			}
			from = max(from, 1) // 0 is no tablet
			return putNumber(tx, nodeTablets, from+tabletBlock)
		})
		if err != nil {
			return 0, err
		}
		db.tabletsAt, db.tabletsTo = TabletID(from), TabletID(from+tabletBlock)
	}
	t := db.tabletsAt
	db.tabletsAt++
	return t, nil
}

var _ Store = (*DB)(nil)
