// Package scheduler is the runtime: it drives all the engines of a node on one disk, one network and one clock.
//
// A shard belongs to one lane for its life on the node. A lane owns its engines and state machines and works in turns: it
// takes its whole mailbox, reads the clock, feeds every event, runs the commands that come out (RunCommand, in
// runcommand.go, is the one place where a command meets disk, network or state machine), hands one batch to the raft log,
// one outbox per peer to the network, and answers the clients.
//
//	clients ──► mailbox ─┐                        ┌─► log writer (one per node): one write and one sync for all lanes
//	peers ────► mailbox ─┼─► Turn: engines ───────┼─► outbox per peer: one frame for all shards
//	log writer ► mailbox ┘       state machines   └─► answers
//
// A turn is synchronous and takes clock, network, log and state as values or interfaces. The goroutines around it (one per
// lane, one for the log writer, one for heartbeats, one for checkpoints, and a few bounded helpers) are in run.go alone; package
// simrt drives the same lanes, writer, heartbeats and checkpoints with no goroutine at all.
//
// Guarantees: a write is answered as done only after a quorum has it durable and the state machine has applied it; a read
// is served only under a lease or a confirmed read index (rule Engine4); a lane never waits for a disk or a peer; an idle shard
// costs memory only. A failed log or state write ends the process through Config.Fatal and is never retried.
//
// Split (split.go) and Merge (merge.go) reshape replicas. Children and right neighbours may belong to other lanes: what crosses over
// is immutable (a plan, a frozen overlay, a cut), and goes through the mailbox. While the transaction of a split or merge is under way
// nothing else touches what the store holds of its replicas.
//
// Ownership: everything in a Lane and in its replicas is touched by the goroutine in Turn only. Others reach a lane
// through its mailbox. The number of goroutines does not depend on the number of shards.
//
// It may import shard, store, transport (wire) and engine.
package scheduler
