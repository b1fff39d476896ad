// Package state keeps what is applied: for each shard an Overlay in memory, and behind the overlays a Store, which is a bbolt
// file (Open) or memory (NewMem).
//
// # Design
//
// The raft log is the write-ahead log of the state, so applying an entry does not touch the disk: it changes the overlay of
// its shard. A checkpoint freezes overlays and writes them, each with its replica's record, in one transaction (Store.Write).
// After a crash the log is replayed from the applied entry in the record.
//
//	Put, Delete ─► live overlay ─ Freeze ─► frozen overlay ─ Write ─► tablet in the file
//	                    ▲                        ▲                        ▲
//	Get, scan ──────────┴── the lane asks ───────┴──── Readers ask ───────┘
//
// Overlays belong to lanes and know no lock. The file belongs to whoever calls Write, one at a time, and to short reading
// transactions. The two meet in frozen overlays, which nobody changes.
//
// # Layout
//
// User keys lie in tablets: buckets with ids that are local to the node and never reused. The data of a replica is a list of
// extents, each a range of keys in a tablet; almost always there is one. A split leaves the data where it is and divides
// the extent; a merge joins two lists; a snapshot fills a fresh tablet, which one transaction links. docs/state.md has the
// bytes.
//
// # Guarantees
//
//   - A Write is all or nothing, and durable when it returns.
//   - Every key of a tablet lies in exactly one live or garbage extent (rule State4): Write refuses what would break that,
//     and the first use after Open checks it. What a record gives up becomes garbage in the same transaction, unless
//     another record of that transaction took it.
//   - A replica that has a tombstone is never written again, and neither is an older one of its shard.
//   - Reads verify the replica's record in their own transaction (rule State1), and each item's checksum (rule State5). A
//     fault of the memory map or a panic of bbolt over a damaged page becomes an ErrCorrupt.
//   - The map grows only while readers are paused (rule State2); space is allocated before a transaction (rule State6).
//   - After a failed write or sync nothing is written any more (rule State6).
//
// # Crash cases
//
//   - Within a transaction: bbolt has the old meta page, and the transaction never was.
//   - Between the meta page and its sync, or after a sync that failed: the system's memory may have the page and the disk not. Open writes the newest one
//     again and syncs it, before anything is built on it.
//   - Between transactions of an Ingest, or before its link: no record names the tablet. The first use after Open removes it.
//   - Between a tombstone and the end of its garbage collection: the garbage extent is durable, and collection goes on.
//   - After file preallocation: the file is longer than what bbolt uses of it; that part is used later.
//   - Between a Write and the log record that follows from it: rule Log7, the caller's business.
//
// # Limits
//
// Keys are not empty and at most 32 KiB (bbolt's limit; users get less). A Write is one transaction, however large: the
// caller bounds it. A range in the store is read in pages, each as of its own transaction: pages of one scan see one
// state only while the record stays the same, which each page checks.
//
// bbolt's pages have no checksums. An item that has changed is found by its own, and records that are missing by the start. Items that are missing because their
// page says that it has fewer are found by Verify, and by a comparison of replicas, but not by a read.
//
// It may import engine and store for their types, internal/mp, bbolt, compress/s2 and xxhash.
package state
