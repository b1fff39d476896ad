// Command benchpeers runs kiloraft, dragonboat v4 and etcd side by side on this machine and prints what each does and the ratios.
//
// It is a module of its own: what the peers need stays out of kiloraft's go.mod. kiloraft is not linked in, it is the built
// binary, run as `serve`, `cluster init` and `bench`. For the others this program is driver and node process in one (`benchpeers node …`).
//
// Each round starts each peer anew, one at a time, three processes in empty directories, runs all loads on it, and kills it: no peer pays for
// another one's idle CPU, and slow minutes of the machine hit all of them. A ratio is taken within a round; what is printed is the median of
// the rounds, with the smallest and the greatest. A peer that does not come up, or fails a load, has the error in its row; the others go on.
//
// What is not equal, and in whose favour:
//   - dragonboat's clients run inside its node processes and propose at the leader; kiloraft and etcd have a client process and
//     a hop over TCP. Its node CPU therefore includes the clients.
//   - dragonboat's state machine is a Go map in memory, without any disk; kiloraft and etcd keep a state on disk.
//   - etcd is one Raft group whatever the number of shards, and gets at most 1,024 requests in flight (it refuses more).
//   - All sync every write on a quorum, on one disk.
//
// It needs Linux (/proc).
package main
