package recovery

import (
	"encoding/hex"
	"fmt"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/escape"
	"github.com/kiloraft/kiloraft/shard"
)

// Format is the version of reports and plans.
const Format = 1

// Report says what one survivor holds. It is JSON, so that it can be carried to where the plan is made.
type Report struct {
	Format     int         `json:"format"`
	Cluster    string      `json:"cluster"`
	Node       uint64      `json:"node"`
	Identity   string      `json:"identity"`
	Known      []uint64    `json:"known_nodes"`
	Lost       []uint64    `json:"lost,omitempty"`       // given up by an earlier recovery
	Recovering string      `json:"recovering,omitempty"` // plan of a recovery that was not finished here
	Replicas   []Replica   `json:"replicas"`
	Tombstones []Tombstone `json:"tombstones,omitempty"`
	Meta       *Meta       `json:"meta,omitempty"`
}

// Tombstone is a replica that was removed here, and with it all earlier ones of its shard.
type Tombstone struct {
	Shard   uint64 `json:"shard"`
	Replica uint64 `json:"replica"`
}

// Replica is one replica of a survivor as it will be once all that is in its log is applied.
type Replica struct {
	Shard         uint64 `json:"shard"`
	Replica       uint64 `json:"replica"`
	Uninitialised bool   `json:"uninitialised,omitempty"` // it has a vote at most
	Applied       Pos    `json:"applied"`                 // durably in the state
	Committed     Pos    `json:"committed"`               // what it is known to be, at least
	Purged        Pos    `json:"purged"`
	Last          Pos    `json:"last"`
	Runs          []Run  `json:"runs,omitempty"` // of the log's entries
	Vote          Vote   `json:"vote"`
	// Voters are the sets of the newest membership in the log, two while it is joint.
	Voters     [][]Peer   `json:"voters,omitempty"`
	Descriptor Descriptor `json:"descriptor"`
	Frozen     uint64     `json:"frozen,omitempty"`   // frozen, to be absorbed by this shard
	Absorbed   uint64     `json:"absorbed,omitempty"` // a Merge in the log of this shard absorbs it
	Born       *Birth     `json:"born,omitempty"`     // it is in the log of its parent only
}

// Birth says where the split that makes a replica is.
type Birth struct {
	Parent    uint64 `json:"parent"`
	Index     uint64 `json:"index"`
	Committed bool   `json:"committed"`
}

// Pos is the place of a log entry.
type Pos struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
}

func toPos(id engine.LogID) Pos { return Pos{id.Term, id.Index} }
func (p Pos) id() engine.LogID  { return engine.LogID{Term: p.Term, Index: p.Index} }
func (p Pos) String() string    { return fmt.Sprintf("%d/%d", p.Term, p.Index) }
func (p Pos) compare(o Pos) int { return compareLog(p.id(), o.id()) }
func compareLog(a, b engine.LogID) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}

// Run is a run of entries of one term.
type Run struct {
	Term  uint64 `json:"term"`
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Vote is a replica's vote.
type Vote struct {
	Term      uint64 `json:"term"`
	Node      uint64 `json:"node"`
	Replica   uint64 `json:"replica"`
	Committed bool   `json:"won"`
}

func toVote(v engine.Vote) Vote {
	return Vote{v.Term, uint64(v.Peer.Node), uint64(v.Peer.Replica), v.Committed}
}

// Peer names a replica.
type Peer struct {
	Node    uint64 `json:"node"`
	Replica uint64 `json:"replica"`
}

func (p Peer) peer() engine.Peer {
	return engine.Peer{Node: engine.NodeID(p.Node), Replica: engine.ReplicaID(p.Replica)}
}

// Key is a key of the store; as text, unprintable bytes are \xNN.
type Key []byte

// MarshalText writes the key as the command line does.
func (k Key) MarshalText() ([]byte, error) { return []byte(escape.String(k)), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *Key) UnmarshalText(b []byte) error {
	v, err := escape.Unescape(string(b))
	if *k = v; len(v) == 0 {
		*k = nil
	}
	return err
}

// Descriptor is a shard's descriptor.
type Descriptor struct {
	Start       Key      `json:"start"`
	End         Key      `json:"end"`
	Version     uint64   `json:"version"`
	ConfVersion uint64   `json:"conf_version"`
	Replicas    []Member `json:"replicas"`
}

// Member is a replica in a descriptor.
type Member struct {
	Node    uint64 `json:"node"`
	Replica uint64 `json:"replica"`
	Role    string `json:"role"`
}

func toDescriptor(d *shard.Descriptor) Descriptor {
	out := Descriptor{Start: d.Start, End: d.End, Version: d.Version, ConfVersion: d.ConfVersion, Replicas: []Member{}}
	for _, r := range d.Replicas {
		out.Replicas = append(out.Replicas, Member{uint64(r.Node), uint64(r.Replica), r.Role.String()})
	}
	return out
}

// Meta is what a survivor's replica of the meta shard holds once all that is in its log is applied.
type Meta struct {
	Nodes  []NodeInfo        `json:"nodes"`
	Alloc  map[string]uint64 `json:"alloc"` // the next free ids
	Shards []ShardInfo       `json:"shards"`
}

// NodeInfo is a node as the meta shard knows it.
type NodeInfo struct {
	ID      uint64 `json:"id"`
	Name    string `json:"name"`
	Addr    string `json:"address"`
	Removed bool   `json:"removed,omitempty"`
}

// ShardInfo is a shard as the meta shard knows it.
type ShardInfo struct {
	Shard uint64 `json:"shard"`
	Descriptor
}

func hexID(id [16]byte) string { return hex.EncodeToString(id[:]) }
