// Package raftlog is the raft log of a node: one append-only log for all of its shards.
package raftlog
