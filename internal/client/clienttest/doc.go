// Package clienttest is a cluster in memory for tests of everything that stands on package client: the commands, the bulk
// loader, the benchmark. It keeps the promises of the interfaces and nothing of Raft.
package clienttest
