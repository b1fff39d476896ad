// Package transport carries what nodes and clients say to each other: one TCP connection and one yamux session per pair of
// nodes, however many shards they share, and one per client.
//
// # Streams
//
//	            ┌ heartbeats   SendHeartbeat      both ways      never behind anything else (rule Live6)
//	            ├ raft frames  SendRaft           both ways      concatenated messages of package wire
//	TCP ─ yamux ┼ requests     Call, Go ► answers dialler asks
//	            ├ requests     Call, Go ► answers listener asks
//	            └ snapshots    OpenSnapshot       one stream each, acknowledged by the receiving application
//
// Each long-lived stream has an outbox. While a frame is being written the next one grows, so frames get big under load and
// nothing waits when there is none; one frame is one Write (up to Limits.WriteBytesMax, lest a heartbeat wait for it). Big messages between peers
// go in parts of that size, a frame each, and small ones between them: a value of 8 MiB is 10 to 50 ms on its way where two cores have other work.
// Every outbox, every table of requests and every frame is bounded in bytes, by a field of Limits, and so is what all clients hold together
// (package budget). Of requests that are answered at once a client has few in flight until it is known how big its answers are.
// Big answers to clients, and big frames of theirs, have credits of which there are so many: hosts have them in turn.
//
// # Guarantees
//
//   - Messages of one stream arrive in order, but for those that others may overtake, and undamaged, or the session ends. Nothing is resent on the next one: who sends
//     raft messages is told by PeerDisconnected, or by false from SendRaft, that some were lost.
//   - Between two nodes at most one session is in use at a time. A Handler sees PeerConnected, calls, PeerDisconnected; then
//     the next session, if any (rules Cluster8 and Cluster9).
//   - Each call's done function is called exactly once; an answer never reaches another question.
//   - A snapshot is complete only if the receiver's Finish(nil) reached the sender's Finish.
//   - Close, and the end of any session, never wait for the network: the socket is closed first.
//
// # Who ends a session
//
// A write error, a write longer than WriteTimeout, a malformed frame, silence longer than SilenceMax (a peer to which nothing
// is to be said gets an empty heartbeat every PingInterval), a client that does not take its answers, or pauses within
// a big frame that others wait for, another session that won. The reason is logged, and counted in Metrics. A dial loop per peer with an address makes a new one, after a random
// pause that grows with failures. Whether a silent peer is *dead* is not judged here: that is for the node's heartbeats (Live1).
//
// # Invariants
//
//   - Transport.wg counts every goroutine; session.run owns those of its session and ends after all of them.
//   - session.kill never blocks and may be called under any lock; everything that takes time happens in run.
//   - No Handler method and no done function is called while a lock of this package is held.
//   - A Transport's mu is never taken by senders: they read byNode and peer.live.
//
// The format is in docs/wire.md. The package imports engine (for NodeID), internal/budget, internal/door and internal/mp.
package transport
