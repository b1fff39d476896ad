// Package node puts one process of a cluster together: the raft log and the state, the scheduler, the transport, the client's
// router, the making of a cluster, and the HTTP endpoints. It can be embedded: Open starts a node, Close ends it gracefully.
//
//	waiting ──Reserve──► reserved ──Start──► started ──► serving
//	   ▲                    │
//	   └── a member of the reservation has started in another cluster
//
// A node that belongs to no cluster waits and serves nothing but what makes one (rule Cluster7). What it is, and how far it
// has come, are facts in the state's store; each step is durable before it is answered.
//
// What embeds a node asks the cluster through Client, or, for many requests at a time from one goroutine, through a Pipe.
//
// Guarantees
//   - One process at a time uses a data directory, and a directory never changes its cluster or its node id.
//   - `cluster init` may be run at any node, at several at once, and again after any crash: one cluster comes of it.
//   - The number of goroutines and connections does not depend on the number of shards.
//   - A failed write or sync of log or state ends the node (Config.Fatal); it is never retried.
//
// It may import everything but cmd.
package node
