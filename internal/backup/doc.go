// Package backup copies the content of a running cluster into a store (a directory, or a bucket of an S3-compatible service), checks such
// copies, and writes them into a cluster of any size and shard layout. docs/backup.md has the format.
//
// A backup is a manifest, which names segments, which name chunks. The segments tile the key space: each was read from one cut of one shard,
// so it holds the shard's state at one applied entry, of a moment between the begin and the end of the backup; what was acknowledged before
// the begin is in it. There is no moment that is the same for all shards. If a shard splits, merges or moves meanwhile, the rest of the range
// is read from whoever owns it then.
//
// Chunks are named by the SHA-256 of their content and cut at keys that their hash chooses: what did not change since an earlier backup in the
// same store is not stored again, and an interrupted backup, begun again, does not store twice what it had stored. The manifest is written
// last: without it there is no backup.
//
// Restore writes through the router, like any client. It is idempotent, and its journal says what is done.
//
// It imports router, router/api, shard, store/state, engine and internal/load (for its Progress).
package backup
