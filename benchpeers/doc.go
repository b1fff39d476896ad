// Command benchpeers runs kiloraft, dragonboat v4 and etcd side by side on this machine and prints what each does and the ratios.
//
// It is a module of its own: what the peers need stays out of kiloraft's go.mod. This program is driver and node process in one
// (`benchpeers node …`): a node process embeds a node of a peer and runs its clients, which ask it without a network hop. Clients of kiloraft
// and dragonboat use the shards that their node leads, at the leader; those of kiloraft go through node.Pipe. Peer kiloraft-tcp is the built
// binary instead, run as `serve`, `cluster init` and `bench`, with a client process and a hop over TCP.
//
// Each round starts each peer anew, one at a time, three processes in empty directories, runs all loads on it, and kills it: no peer pays for
// another one's idle CPU, and slow minutes of the machine hit all of them. A ratio is taken within a round; what is printed is the median of
// the rounds, with the smallest and the greatest. A peer that does not come up, or fails a load, has the error in its row; the others go on.
//
// What is not equal, and in whose favour:
//   - dragonboat's state machine is a Go map in memory, without any disk; kiloraft and etcd keep a state on disk.
//   - dragonboat's and etcd's clients are a goroutine per request in flight; kiloraft's are one per node.
//   - etcd is one Raft group whatever the number of shards, and gets at most 1,024 requests in flight (it refuses more), at its leader.
//   - kiloraft and dragonboat run with GOGC=400, etcd and kiloraft-tcp with their defaults.
//   - All sync every write on a quorum, on one disk. None protects writes from being applied twice (kiloraft-tcp does).
//
// With BENCHPEERS_PROFILE=DIR each node process writes a CPU profile of each load to DIR.
//
// It needs Linux (/proc).
package main
