// Package simrt is the second runtime: it drives the lanes, log writers, heartbeats and checkpointers of several nodes in one
// goroutine on simulated time, with a simulated network and the raft log on a memory disk that can crash. The same seed makes the
// same run. It is for tests; it drives exactly the code that the goroutines of package scheduler drive.
//
// Time moves from event to event: a turn, a flush, the arrival of a frame, a task that had to wait for a disk. Between events
// nothing runs.
//
// It may import scheduler and what that imports.
package simrt
