// Package transport carries what nodes and clients say to each other: one TCP connection and one yamux session per pair of
// nodes, however many shards they share.
package transport
