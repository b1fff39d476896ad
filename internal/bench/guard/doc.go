// Command guard keeps the cost of two builds comparable: `guard run` writes a small JSON with the Go benchmarks of each layer and short
// loads on a cluster of three processes, every value several times; `guard compare OLD NEW` prints ratios of medians.
//
// A value is a regression only if its median is worse by more than a tenth and every new measurement is worse than every old one; allocations
// without the tenth. Two runs of one binary on a machine whose load changed between them had times apart by that rule, too: so a record
// has the load average at its start, and if others used the machine only counts (allocations, bytes, syncs) are judged. compare exits 1 if there is
// a regression. No test asserts a time; this is for a human who looks, or a job on a quiet machine.
//
// `guard sustained` writes to random keys for minutes and shows over time what might grow or fall: throughput, memory, log, state, bytes written to
// the disk per byte of value; then seconds with a checkpoint against those without, and the time from kill -9 of all nodes to leaders of all shards.
//
// `guard limits` measures writes all over the shards beside one that gets all it can take, and what is done when twice the peak is offered.
//
// It imports internal/demo, for the processes.
package main
