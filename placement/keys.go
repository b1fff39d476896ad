package placement

import (
	"fmt"
	"strconv"

	"github.com/kiloraft/kiloraft/engine"
)

// The prefixes of the meta shard's keys.
const (
	PrefixAlloc   = "alloc/"
	PrefixNode    = "node/"
	PrefixShard   = "shard/"
	PrefixSetting = "setting/"
	PrefixDead    = "dead/"
	PrefixOp      = "op/"
	PrefixAuto    = "auto/"
	PrefixStamp   = "stamp/"
)

// ClusterKey holds the ClusterRecord. The cluster exists from the commit of this key on (rule Cluster7).
func ClusterKey() []byte { return []byte("cluster") }

// Alloc names a counter of ids.
type Alloc string

// The counters.
const (
	AllocNode    Alloc = "node"
	AllocShard   Alloc = "shard"
	AllocReplica Alloc = "replica"
)

// AllocKey holds the next free id of a counter.
func AllocKey(what Alloc) []byte { return []byte(PrefixAlloc + string(what)) }

// NodeKey holds the NodeRecord of a node.
func NodeKey(id engine.NodeID) []byte { return idKey(PrefixNode, uint64(id)) }

// ShardKey holds the ShardRecord of a shard.
func ShardKey(id engine.ShardID) []byte { return idKey(PrefixShard, uint64(id)) }

// DeadKey holds the dead-shard record of a shard.
func DeadKey(id engine.ShardID) []byte { return idKey(PrefixDead, uint64(id)) }

// AutoKey is there for a shard that an automatic split has made: it may be merged away by itself.
func AutoKey(id engine.ShardID) []byte { return idKey(PrefixAuto, uint64(id)) }

// stampWidth is how many ids of shards share a stamp.
const stampWidth = 1024

// StampKey is written with each change of the record of a shard, so that its version tells whether one of stampWidth records has changed
// without reading them.
func StampKey(id engine.ShardID) []byte { return idKey(PrefixStamp, uint64(id)/stampWidth) }

// Stamped returns the first and the last shard of a stamp.
func Stamped(key []byte) (first, last engine.ShardID, err error) {
	n, err := KeyID(PrefixStamp, key)
	first = engine.ShardID(n * stampWidth)
	return first, first + stampWidth - 1, err
}

// SettingKey holds a setting.
func SettingKey(name string) []byte { return []byte(PrefixSetting + name) }

// OpKey holds an operation.
func OpKey(id uint64) []byte { return idKey(PrefixOp, id) }

// PrefixEnd returns the first key behind all keys with the prefix.
func PrefixEnd(prefix string) []byte {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}

func idKey(prefix string, id uint64) []byte { return fmt.Appendf(nil, "%s%016x", prefix, id) }

// KeyID returns the id in a key that was made with the prefix.
func KeyID(prefix string, key []byte) (uint64, error) {
	if len(key) != len(prefix)+16 || string(key[:len(prefix)]) != prefix {
		return 0, fmt.Errorf("placement: %q is no key of %s<id>", key, prefix)
	}
	id, err := strconv.ParseUint(string(key[len(prefix):]), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("placement: %q is no key of %s<id>: %w", key, prefix, err)
	}
	return id, nil
}
