// Package raftlog is the raft log of a node: one append-only log for all of its shards, with one write and one sync for everything
// that all lanes have submitted.
//
// # Parts
//
//	lane ── Append, SaveVote, … ──► open batch ── Submit ──► queue ── Flush ──► one frame: 1 Append + 1 fdatasync
//	  ▲ index, cache (no lock)                    (mutex)      │
//	  └───────────── Flushed(Completion: where each batch lies) ◄┘
//
// A Lane owns the index of its replicas (what is live, and where), a bounded cache of recent bodies, and the batch that is being
// filled. A body is copied once, into the batch, and aliased by the cache. Nothing is allocated per entry or per replica in steady
// state. The writer takes all batches that wait, makes one frame of them, writes and syncs it, and posts a Completion per lane.
// There is one lock, held for moments at the hand-over, never during I/O. The package runs no goroutine, except, with
// Options.Background, one that allocates the next segment, for which the log waits before it uses it or closes.
//
// A position is (batch, offset in the batch). Where a batch lies is learnt from its completion and kept per batch until its segment
// is freed. Recovery counts as one batch per segment. Entries that have left the cache are read by Locate (in the lane) and
// ColdRead.Read (anywhere); each body has a checksum of its own for that.
//
// Frames are written in whole blocks (vfs.File.Append), past the page cache where the file system lets it: what lies before a frame in its first block is
// written again as it is, and what lies behind it in its last one becomes zeros. So the log takes no memory but its own cache, and entries that have
// left that are read from the disk.
//
// The writer's loop: wait for Pending; Flush; post completions; Maintain. After a second without work, and at shutdown: Seal.
//
// # Byte layout
//
// All integers of fixed size are little-endian; uv is an unsigned varint.
//
//	segment  NNNNNNNNNN.seg (number, ten digits), or NNNNNNNNNN.spare: allocated, without a life
//	  0     "KILOLOG1"
//	  8     number, salt, firstSeq, prev, prevEnd, oldest, size   7 × u64
//	  64    CRC32C of the bytes 0..63
//	  4096  frames, each at a multiple of 8
//
//	frame
//	  0   magic u32 = 0x6d6c6b9e
//	  4   length of the records u32
//	  8   sequence u64
//	  16  oldest u64: the oldest segment that is needed once this frame is durable
//	  24  flags u32: 1 = seal
//	  28  CRC32C of the bytes 0..27 and the records, seeded with (salt, segment number, offset of the frame)
//	  32  records
//
//	record   kind u8, shard uv, replica uv, and then
//	  1 append            run: term, first, count, size uv; CRC32C u32 of the body, seeded with (shard, replica, term, first); body
//	  2 append special    the same; some entry of the run is not an EntryNormal
//	  3 vote              vote: term, node, replica uv; committed u8
//	  4 committed         log id: term, index uv
//	  5 truncate          first uv: forget the entries from there on
//	  6 purge             log id: forget the entries up to there
//	  7 purge all         log id: the same, and all entries behind it
//	  8 init              vote, log id (purged and committed): replaces all that was known of the replica
//	  9 drop              forget the replica
//	  10 rewrite          vote, committed, purged, n uv, n × (special u8, run): replaces all that was known (rule Log6)
//
//	body     entries: uv(len(payload)+1), kind u8, payload
//
// A header fits into one sector, and a sector is written as a whole or not at all: that is the one thing assumed of the disk beside
// an honest sync.
//
// # The life of a segment
//
//	.spare ──header written, synced──► renamed to .seg, directory synced ──► frames ──► full; the next one's header names its end
//	   ▲                                                                                                      │
//	   └── renamed to .spare, directory synced ◄── freed: a durable frame has said that it is not needed ◄────┘
//
// A life has a random salt and a number. Files keep their blocks, so that a sync overwrites and changes no metadata. A batch that is
// larger than a segment gets a segment of its own size, which is removed instead of used again. At half of a segment the next one is
// allocated, if no freed one waits; and the larger one that a rewrite needs is, before there is a batch that needs it.
//
// Freed files wait to be used again: two for ever, and more while the log uses them and the disk has room, which are removed, one each
// second, when they were not used for half a minute, and all at once when they take more than an eighth of what is free. So a busy log writes zeros
// only while it grows.
//
// # Freeing (rule Log5)
//
// Live are a replica's entries, its newest vote, newest committed and newest purge. Each lane tells the oldest segment that it needs,
// its floor: computed when a segment was filled or Pinned was called, and published when everything that the index held then is
// durable (so a copy is never freed before the newer one is on the disk). The least floor goes into the next frame; only when that frame is
// durable are older segments freed, one by one, oldest first, each with a sync of the directory. So a frame proves which segments
// must still be there, and a missing one is noticed. Replicas that Open has found and nobody has adopted pin everything.
//
// What pins the oldest segment is listed by Lane.Pinned; the runtime purges it behind a checkpoint or calls Rewrite, and submits. An
// idle replica's rewrite is some 30 bytes, so tens of thousands of them are a few frames.
//
// # Recovery
//
//  1. Sync every segment and the directory (rule Log1).
//  2. Read the headers. A .seg file got its name after its header was synced, so a bad header is corruption. Numbers are without gap.
//  3. Read the frames in order. In every segment but the newest they must end exactly where the next header says, with the
//     sequence that it says: any other frame there is corruption.
//  4. In the newest, the frames end at the first that is not valid. It was torn by the crash, and is cut off, unless it is
//     known to have been synced: its sequence is at or below Options.SyncedHint, or a valid frame of the same life lies behind it, which
//     was written only after the sync (one write is in flight at a time). That is corruption (rule Log3). A seal is such a later
//     frame, written when the log is idle.
//  5. The segments must reach back to the oldest that the last frame needs.
//  6. Rebuild the indexes. Records about entries in freed segments are tolerated, gaps among what is there are not.
//  7. Write the last frame again, as it is, and sync: after a failed sync the page cache may hold it as clean although it is not on
//     the disk.
//  8. Go on in a new segment, whose header says where the last one ended; if that has no frame, in the same file with a new salt. So
//     nothing that lies behind a cut is ever looked at again.
//
// # Crash cases
//
//   - in the write of a frame: it is not valid, and cut. A frame that was written whole but not synced counts: it was submitted, and is
//     synced by step 1 before anybody acts on it.
//   - between the sync of a new header and its name: the file is still a spare; the segment before is the newest.
//   - in the allocation of a spare: a file of the wrong size, removed.
//   - between the frame that frees a segment and its new name: the segment is read once more, changes nothing, and is freed.
//   - in recovery: it changes nothing before step 7, and that is a segment start like any other.
//
// # Failures
//
// A failed write or sync poisons the log: every later call fails, and the process must end, for nothing is known any more about
// what is on the disk. ErrNoSpace is different: nothing was written, and Flush may be called again; Maintain reports it while half a
// segment is left. A full disk does not keep Open from succeeding.
//
// # Limits
//
//   - If the very last acknowledged frame rots while the process is down without a seal (kill -9 within the last second) and no later
//     checkpoint has noted its sequence, it looks like a torn one and is cut. No log without a second copy of its end can know better.
//   - The loss of the newest segment file as a whole is noticed by SyncedHint only.
//   - A frame is at most 1 GiB, a segment number 32 bits.
//   - Rewrite refuses a replica with more than Options.RewriteBytesMax. One with more than a quarter of a segment, and any while there is no
//     space, it refuses for as long as no room for it is allocated: a batch that finds none would hold up all others.
//   - A body in the cache aliases what the caller gave; if that is part of a larger buffer, the buffer stays too.
//   - Each start that follows at least one written frame begins a new segment.
//
// It may import engine (types), store, store/vfs and internal/mp.
package raftlog
