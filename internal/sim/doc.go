// Package sim looks for the ways in which the data plane loses data: one seed makes a cluster of real lanes, engines, state machines and
// raft logs (package simrt) with its faults, clients and operations, and the same seed makes the same run, exactly.
//
// The clients work on groups: ranges of keys that are one shard each at first, and are split, merged and moved under them (moves.go). The
// directory (directory.go) stands for the meta shard.
//
// What must hold is checked in four places. After every event of an engine (check.go): one leader per term, who has all that was committed
// before; votes and cursors never go back, not even over a crash; what is committed, applied and answered at an index is the same
// everywhere and for ever; what is committed, and what others are told of votes, is durable, as the simulated disk has it
// (durable.go); who was removed stays so. At every descriptor that is applied (directory.go): versions grow, one version is one descriptor, ranges
// tile. From the outside (history.go): each key is linearizable, by porcupine; two keys that are always written together are always
// read together; a counter moved exactly as often as was acknowledged; a write that was refused has no effect; a scan has no gap and
// nothing twice. At the end (settle.go) the faults stop: every shard must find a leader, every client its answer, all replicas the same
// state, and whoever is no member any more its end, in bounded time.
//
// It may import what cmd may. It is used by tests only.
package sim
