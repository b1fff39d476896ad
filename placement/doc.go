// Package placement is the control plane's knowledge: what the meta shard holds and under which keys, how ids are allocated,
// and where the shards of a new cluster go. It is pure: it reads no clock, sends nothing, and returns values that its
// caller writes to the meta shard as conditional writes.
//
// Guarantees
//   - Keys and records are formats: a field is only ever added at the end of a record, and unknown ones are skipped.
//   - Ids of nodes, shards and replicas are never given out twice: an allocation is a conditional write of a counter.
//   - The next step of an operation (Op.Next) follows from its record and from what the shard's leader says, and from nothing else: a
//     driver may die anywhere, and two at once are harmless.
//   - The balancer (MakePlan) is a function of a snapshot. A balanced cluster gives an empty plan; every move goes from a fuller to an
//     emptier node, so that plans come to an end.
//   - The initial plan is a function of its arguments alone, so any node can finish what another began (rule Cluster7), and no
//     two nodes differ by more than one in leaders, or in replicas, for the shards of one plan.
//
// The meta shard never splits or merges (rule Cluster10). Its keys are system keys, no part of the user key space:
//
//	cluster            ClusterRecord
//	alloc/<what>       the next free id: node, shard, replica, op
//	node/<id>          NodeRecord
//	shard/<id>         ShardRecord
//	setting/<name>     reserved
//	dead/<id>          [shard, absorber, its version]: dead-shard records (rules Split5, Cluster5), kept for ever
//	auto/<id>          empty: an automatic split has made the shard, so it may be merged away by itself
//	problem/<name>     Problem: what is wrong, and since when
//	op/<id>            Op: operations (rule Cluster6); the newest finished ones are kept
//	lock/shard/<id>    the operation that a shard is in, lock/node/<id> a node, lock/rebalance the cluster
//
// Ids in keys are 16 hexadecimal digits, so that keys sort as ids do.
//
// It may import router, shard, engine (for its types) and internal packages.
package placement
