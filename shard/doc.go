// Package shard is one replica's descriptor and its deterministic key-value state machine: everything about a shard that is
// not Raft, and nothing that is.
//
// # What is here
//
//   - Descriptor: who a shard is, which keys it owns and which replicas serve it, with Version (moved by split and merge) and
//     ConfVersion (moved by membership).
//   - The bodies of requests and answers (Write, Result, Read, Scan, Page) and the errors a shard answers with, each with its
//     codec. A Write is encoded once, by the client: the same bytes are the body of the RPC and, behind the leader's stamp, the
//     payload of the entry.
//   - Machine: applies entries to overlays of package state, keeps the table that makes retries harmless (rules Cluster1 and
//     Cluster2), the write counter (State7) and the shard's time (State8).
//   - Split and the steps of a merge: what they decide, and what becomes of descriptor, extents, table and counters. When their
//     transactions are written is the scheduler's (Birth, Absorption).
//
// # Guarantees
//
//   - Two machines that were fed the same entries from the same record hold the same content and produce the same Record, no
//     matter when each of them was checkpointed, restarted, or had to read cold keys. Apply reads no clock, no random
//     number, and depends on no map order.
//   - Apply changes everything or nothing: an entry that needs a cold key returns ErrCold with nothing changed.
//   - An entry of an unknown kind is never skipped: the machine refuses it and every later one (ErrUnknownCommand), for a
//     replica that skips what its peers apply is silently different from then on.
//
// # Versions of descriptors
//
// A request names the Version its sender knows. What decides is the range: a key outside of it answers ErrShardMoved with the
// descriptors that the sender lacks. A request with an older Version whose keys are all here is served, for this shard is their
// owner; one with a newer Version is ErrUnavailable, for this replica is behind. The range is checked when a write is
// proposed, and again when it is applied.
//
// # Threads
//
// A Machine belongs to one lane and is not safe for concurrent use. Everything else here is values and functions.
//
// It may import engine, store and internal/mp.
package shard
