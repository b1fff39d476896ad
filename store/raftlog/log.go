package raftlog

import (
	"errors"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/vfs"
)

var errTODO = errors.New("not implemented")

// Log is the raft log of a node.
type Log struct{ pending chan struct{} }

// Recovery is what Open found.
type Recovery struct {
	// Replicas holds all replicas of which the log knows anything.
	Replicas map[Key]*ReplicaLog
	// LastSequence is the sequence of the last frame.
	LastSequence uint64
}

// ReplicaLog is what the log knew of a replica when it was opened.
type ReplicaLog struct {
	Key       Key
	Vote      engine.Vote
	Committed engine.LogID
	Purged    engine.LogID
	Last      engine.LogID
	Runs      []engine.TermRun
}

// Special is an entry that is not an EntryNormal.
type Special struct {
	LogID   engine.LogID
	Kind    engine.EntryKind
	Payload []byte
}

// Specials reads the special entries (memberships, barriers, blanks) in order. For the time between Open and Adopt.
func (r *ReplicaLog) Specials() ([]Special, error) { return nil, errTODO }

// Open opens the log in dir, or makes one.
func Open(fs vfs.FS, dir string, opt Options) (*Log, *Recovery, error) { return nil, nil, errTODO }

// Lane returns the lane of this number; all methods of it must be called by its owner only.
func (l *Log) Lane(id int) *Lane { return nil }

// Flush writes everything submitted, with one write and one sync. Called by one goroutine in a loop. The returned slice is
// reused by the next call.
func (l *Log) Flush() ([]Completion, error) { return nil, errTODO }

// Maintain does what is better done between flushes: it prepares the next segment and frees old ones.
func (l *Log) Maintain() error { return errTODO }

// Pending receives a token when something was submitted.
func (l *Log) Pending() <-chan struct{} { return l.pending }

// Synced is the highest sequence known to be durable.
func (l *Log) Synced() uint64 { return 0 }

// Seal writes a seal if the last frame is not one (rule Log3): when the log was idle for a second, and at shutdown.
func (l *Log) Seal() error { return errTODO }

// Close seals and closes the log.
func (l *Log) Close() error { return errTODO }
