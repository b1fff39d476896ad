// Package resp is the Redis front door: it speaks RESP2 and RESP3 and turns Redis commands into reads and writes of the cluster.
// Any node answers for any key: what belongs to other nodes goes through the node's own client, which finds the leader and names
// its writes, so that a retry is not applied twice (rules Cluster1, Cluster2).
//
//	reader ──parse──► request ──keys free?──► start ──► router ──► done ──┐
//	   ▲                 │ no                                             │
//	   │                 └─ waits for earlier requests on its keys ◄──────┤
//	   └── stops at a bound                                               ▼
//	                                     socket ◄── replies in order ── writer
//
// Each connection has two goroutines, the reader and the writer. Requests of one connection are in flight at the same time, in
// whichever shards; what touches a key that an earlier request of the connection writes waits for that one, so a pipeline behaves
// as if its commands ran one after the other. Replies leave in the order of the requests.
//
// Commands exist once, as functions on a view of their keys: read, evaluate, write on condition that no version has changed, and
// again from the start if one has. EXEC evaluates several of them on one view. Beside that, frequent commands have a direct form
// of a single read or write. What is atomic is so within one shard; MGET, MSET, DEL, UNLINK, EXISTS and TOUCH with keys in several
// shards do a part in each, and everything else answers CROSSSLOT.
//
// Bounds: connections, bytes and arguments of a request, requests in flight and their bytes, bytes of replies in the making (over it the
// command fails) and of those that were not read (rule Cluster3: such a client is closed), scan cursors; and what all connections hold together (package budget). A parser takes memory as bytes arrive, not as they are announced.
//
// It may import router, shard, engine and internal packages.
package resp
