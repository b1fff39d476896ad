// Package load moves many keys in and out of a cluster: files with a line per key (tsv, jsonl) and directory trees (dir).
//
// Guarantees: export is sorted by key, and importing what was exported gives the same store. Two lines with the same key are
// applied in the order of the file, although many lines are in flight: a key belongs to one worker. What cannot be imported
// (a line without a tab, a value over the limit) or exported (in dir, a key that is no clean relative path) is reported and
// skipped, and the rest goes on; an unavailable cluster ends the run. An export into a directory writes nothing outside it,
// whatever the keys are and whatever links the directory holds (os.Root). Memory is bounded by bytes, not only by items.
//
//	reader ──records──► route by hash of key ──► workers (one request each) ──► cluster
//	   └── bytes in flight ≤ bytesInFlightMax ◄────────────┘
//
// It imports internal/client and internal/escape.
package load
