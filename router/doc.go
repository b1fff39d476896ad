// Package router finds the shard of a key and the leader of the shard, and is the Go client of a kiloraft cluster.
//
//	c, err := router.Dial(ctx, []string{"127.0.0.1:7100"}, router.Config{})
//	version, err := c.Put(ctx, []byte("k"), []byte("v"))
//	for entry, err := range c.Scan(ctx, []byte("a"), []byte("b")) { … }
//
// # Guarantees
//
//   - Reads are linearizable, unless WithStale allows otherwise. A Scan is linearizable within each page, and reads every key of
//     its range once, whatever splits or merges happen meanwhile (rule Cluster4).
//   - A write is applied exactly once if its call returns nil, and not at all if it returns an error that is not ErrAmbiguous:
//     every attempt carries the same session and sequence number (rules Cluster1, Cluster2). When the outcome cannot be
//     learnt before the context ends, the error is ErrAmbiguous, never silence.
//   - A write is cut anew, with new sequence numbers, only after the owner of its first key has vouched that it was not applied.
//   - Attempts go on, with full jitter, until the context ends. Nothing retries without a pause but a redirect that names a
//     new place, and of those only a few in a row.
//
// # Parts
//
// Map is the range map: descriptors by key, overlaps trimmed by Version (rule Split5), with hints of who leads. Client does
// requests; its core is asynchronous (GoWrite, GoRead, GoScan), so that thousands in flight cost no goroutine each, and the
// typed methods wait for it. Sender is how requests reach nodes: Pool dials them (the remote client); inside a node, the node
// hands requests for itself to its own scheduler and others to its peer sessions.
//
// Client and Map are safe for concurrent use. Callbacks run on the goroutine that brought the answer and must not block.
//
// It may import shard, transport, engine (for its types) and internal packages.
package router
