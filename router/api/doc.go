// Package api fixes what travels between clients and nodes: the numbers of the methods, and the bodies of those that are not in
// package shard. Both sides and the forwarding between nodes use it.
//
// Hot bodies (Read, Write, Scan and their answers) are package shard's. The others are small structs, encoded as MessagePack
// arrays by hand over internal/mp, with every length bounded; a newer version may append scalars to any of them.
//
// It may import engine, shard and internal/mp.
package api
