package raftlog

import "github.com/kiloraft/kiloraft/engine"

// Lane is a scheduler lane's part of the log. All methods must be called by the lane's owner only.
type Lane struct{}

// Adopt takes over a replica that Open has found. Each must be adopted by exactly one lane (and then dropped, if it is not
// wanted) before segments can be freed.
func (a *Lane) Adopt(k Key) {}

// Append appends entries. They must follow the last one without gap. run.Body is kept in the cache and must never be modified.
func (a *Lane) Append(k Key, run Run) {}

// Truncate forgets the entries from first on.
func (a *Lane) Truncate(k Key, first uint64) {}

// SaveVote saves a vote.
func (a *Lane) SaveVote(k Key, v engine.Vote) {}

// SaveCommitted saves a hint.
func (a *Lane) SaveCommitted(k Key, id engine.LogID) {}

// Purge forgets the entries up to id. An id beyond the last entry, or one whose entry has another term, drops all entries.
func (a *Lane) Purge(k Key, id engine.LogID) {}

// Init makes a replica, or replaces all that is known of it: no entries, applied = purged = committed.
func (a *Lane) Init(k Key, vote engine.Vote, purged engine.LogID) {}

// Drop forgets a replica.
func (a *Lane) Drop(k Key) {}

// Rewrite copies all that is live of k to the end of the log (rule Log6). ErrCold: bodies must be read first with LocateAll and
// given as cold. ErrTooBig: checkpoint and purge instead.
func (a *Lane) Rewrite(k Key, cold []Run) error { return errTODO }

// Pinned appends to buf up to limit replicas that keep the oldest segment from being freed.
func (a *Lane) Pinned(buf []Key, limit int) []Key { return buf }

// Submit hands everything added since the last Submit to the writer and returns its batch number; 0 if there was nothing.
func (a *Lane) Submit() (batch uint64) { return 0 }

// Flushed takes a completion of this lane.
func (a *Lane) Flushed(c Completion) {}

// Entries appends to runs the entries first..last, or as many from first on as fit into maxBytes (at least one). It fails with
// ErrCold if the first of them is not cached, or ErrPurged.
func (a *Lane) Entries(k Key, first, last uint64, maxBytes int, runs []Run) ([]Run, error) {
	return runs, errTODO
}

// ColdRead is a read of entries from segments. It is a value that may be moved to another goroutine.
type ColdRead struct{}

// Locate prepares to read what Entries has refused with ErrCold.
func (a *Lane) Locate(k Key, first, last uint64, maxBytes int) (ColdRead, error) {
	return ColdRead{}, errTODO
}

// LocateAll prepares to read what Rewrite needs.
func (a *Lane) LocateAll(k Key) (ColdRead, error) { return ColdRead{}, errTODO }

// Read reads and verifies. It may be called by any goroutine. ErrMoved: locate again.
func (c ColdRead) Read() ([]Run, error) { return nil, errTODO }

// Stats tells what the log holds of k.
func (a *Lane) Stats(k Key) Stats { return Stats{} }
