package node

import "github.com/kiloraft/kiloraft/engine"

// shardSet is a set of shards: a bit for each, 64 to an entry, for their ids are close together.
type shardSet map[engine.ShardID]uint64

func (s shardSet) has(id engine.ShardID) bool { return s[id>>6]&(1<<(id&63)) != 0 }

func (s shardSet) add(id engine.ShardID) { s[id>>6] |= 1 << (id & 63) }
