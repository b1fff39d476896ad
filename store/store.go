// Package store holds the small types that the raft log and the state share. The log itself is store/raftlog, the state is
// store/state, and the two do not import each other: what they both name is named here.
//
// It may import engine, for its types, and nothing else of the project.
package store

import (
	"bytes"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
)

// Key names one replica of one shard on this node (rule Log4): a replica that was removed and comes back as another one
// has another Key, and inherits neither entries nor votes.
type Key struct {
	Shard   engine.ShardID
	Replica engine.ReplicaID
}

// String returns the key as shard/replica, as in messages and the command line.
func (k Key) String() string { return fmt.Sprintf("%d/%d", k.Shard, k.Replica) }

// Compare orders keys by shard, then by replica.
func (k Key) Compare(o Key) int {
	switch {
	case k.Shard < o.Shard:
		return -1
	case k.Shard > o.Shard:
		return 1
	case k.Replica < o.Replica:
		return -1
	case k.Replica > o.Replica:
		return 1
	}
	return 0
}

// TabletID names a tablet: a bucket of the state with a node-local id that is never reused.
type TabletID uint64

// Extent says that the user keys from Start up to, not including, End lie in Tablet. An empty End means plus infinity.
type Extent struct {
	Start  []byte
	End    []byte
	Tablet TabletID
}

// Contains tells whether key lies in the extent.
func (e Extent) Contains(key []byte) bool {
	return bytes.Compare(key, e.Start) >= 0 && (len(e.End) == 0 || bytes.Compare(key, e.End) < 0)
}
