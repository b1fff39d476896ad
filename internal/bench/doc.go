// Package bench measures a cluster from outside: closed loop (N requests always in flight) and open loop (a given rate).
//
// What its numbers mean. In an open loop request i is due at start + i/rate, and its latency counts from there, whether or not a
// worker was free: a cluster that stalls for a second is charged for every request that should have run in it (no
// coordinated omission). Requests that were due but never sent are counted apart. In a closed loop latency counts from sending, and a stall
// is one slow request per worker: it tells throughput, not what users feel. Generator and cluster share the machine unless the generator
// runs elsewhere.
//
// Keys are spread evenly over the chosen shards: key i lies in shard i mod n. It imports internal/client and hdrhistogram.
package bench
