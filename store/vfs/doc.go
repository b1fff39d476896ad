// Package vfs is the file system that the raft log sees: the operating system's (OS), one in memory with the crash
// semantics of a disk (Mem), and a wrapper that injects errors by predicate (Inject).
//
// The surface is what an append-only log of preallocated segments needs, and no more. What a File promises is what a
// disk promises: a write is readable at once and durable only after Datasync; a directory entry (created, renamed,
// removed) is durable only after SyncDir; a write of one aligned sector of 512 bytes is there or not, a longer one may
// be there in parts.
//
// It imports the standard library, golang.org/x/sys and internal/fault only.
package vfs
