// Package sim looks for the ways in which the data plane loses data: one seed makes a cluster of real lanes, engines, state machines and
// raft logs (package simrt) with its faults, clients and operations, and the same seed makes the same run, exactly.
//
// What must hold is checked in three places. After every event of an engine (check.go): one leader per term, votes and cursors never
// go back, not even over a crash, what is applied at an index is the same everywhere and for ever. From the outside (history.go): each
// key is linearizable, by porcupine; two keys that are always written together are always read together; a counter moved exactly as often
// as was acknowledged. At the end (settle.go) the faults stop: every shard must find a leader, every client its answer, and all
// replicas the same state, in bounded time.
//
// It may import what cmd may. It is used by tests only.
package sim
