// Package engine is Raft as a pure state machine: events in, commands out. It does no I/O, reads no clock, starts no
// goroutine, takes no lock, and holds no payload: of an entry it knows term, index and kind. It imports the standard
// library only.
//
//	            now, Event                         []Command, in order
//	runtime ──────────────────► Engine.Handle ──────────────────────────► runtime
//	    ▲                                                                    │
//	    └── Flushed, Applied, SnapshotInstalled, messages of peers, Tick ◄───┘
//
// # Guarantees
//
//   - The same Config, Recovered, events and instants give the same commands.
//   - A command may run as soon as it is seen. What must wait for a disk is held back inside the engine: a granted vote until it is
//     durable, the answer to an append until log and vote are, the request for votes until the own one is.
//   - At most one leader per term, in a term that this life has won (rule Engine1). What is committed stays.
//   - At most one Apply is outstanding, of entries that are committed and durable here. InstallSnapshot may overtake it:
//     a later Applied of the overtaken entries is ignored.
//   - A leader announces as committed at most what it has itself applied (rule Engine4).
//   - Handle allocates nothing from Write to Applied in steady state; a sleeping engine of three voters takes less than 1 KiB.
//
// # Invariants
//
//	purged <= applied <= committed <= last,   applied <= flushed <= last,   committed <= verified on a follower
//
// An I/O is named by (vote, last log id) and completed in the order of submission; see io.go.
//
// # Roles
//
//	uninitialised ──snapshot──► learner ──membership──► follower ──timeout──► pre-candidate ──► candidate ──► leader
//	                                                       ▲                        │               │           │
//	                                                       └── higher vote, a leader, lost quorum, resignation ──┘
//
// # Reading the source
//
// raft.go (state, dispatch), io.go (flushes and held answers), election.go and vote.go, leader.go (office, commit, leases), progress.go
// (replication), append.go (a follower's log, commit and apply), read.go, membership.go, snapshot.go, transfer.go, quiesce.go
// (sleep), grant.go (promises), purge.go; quorum.go and termruns.go are the arithmetic. testdata holds traces to read.
//
// # What a runtime must do
//
//   - Drop messages whose To is not this replica; answer a Heartbeat probe to a replica that it does not have with one that is
//     Resigned, From the replica asked and with the probe's Vote.
//   - Keep Links so that GrantEpoch moves on every break of the echoes, and PromiseEpoch when a promise had run out (rule Engine2).
//   - End every InstallSnapshot with SnapshotInstalled, and every ReplicateSnapshot with SnapshotResponse or SnapshotFailed.
//   - Never lose a storage command silently: fail-stop instead.
package engine
