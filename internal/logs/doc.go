// Package logs is where the lines of a process go: to a writer as text or JSON, at a level that can be changed while it runs, and into
// a bounded memory of the last lines, for debug bundles.
//
// Guarantees: memory is bounded (RecentBytesMax and messagesMax); lines with the same message are limited to Burst in Window, and how many
// were left out is logged. Debug lines are not limited: whoever turns them on wants them. Messages are constant and attributes vary, so
// that the message is the key of the limit; the keys of attributes are the same everywhere (docs/operations.md), which a test checks.
//
// It may import the standard library only.
package logs
