// Package engine is Raft as a pure state machine: events in, commands out. It does no I/O, reads no clock, starts no
// goroutine, takes no lock, and holds no payload: of an entry it knows term, index and kind. It imports the standard
// library only.
package engine
