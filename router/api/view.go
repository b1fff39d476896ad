package api

import "github.com/kiloraft/kiloraft/shard"

// NodeView is a node as people and scripts see it: what `kiloraft node ls -o json` prints, and what the console is told.
type NodeView struct {
	ID       uint64            `json:"id"`
	Name     string            `json:"name"`
	Address  string            `json:"address"`
	HTTP     string            `json:"http"`
	State    string            `json:"state"` // up suspect down draining removed
	Replicas int               `json:"replicas"`
	Leaders  int               `json:"leaders"`
	Labels   map[string]string `json:"labels"`
}

// View shows the node.
func (n *NodeInfo) View() NodeView {
	v := NodeView{ID: uint64(n.Node), Name: n.Name, Address: n.Addr, HTTP: n.HTTP, State: n.State.String(), Replicas: int(n.Replicas),
		Leaders: int(n.Leaders), Labels: n.Labels}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return v
}

// ReplicaView is one copy of a shard.
type ReplicaView struct {
	Node    uint64 `json:"node"`
	Replica uint64 `json:"replica"`
	Role    string `json:"role"` // voter or learner
}

// ReplicaViews shows the replicas that a descriptor names.
func ReplicaViews(d *shard.Descriptor) []ReplicaView {
	out := make([]ReplicaView, 0, len(d.Replicas))
	for _, r := range d.Replicas {
		role := "voter"
		if r.Role != shard.RoleVoter {
			role = "learner"
		}
		out = append(out, ReplicaView{Node: uint64(r.Node), Replica: uint64(r.Replica), Role: role})
	}
	return out
}

// ShardView is a shard as people and scripts see it: what `kiloraft shard ls -o json` prints, and what the console is told.
type ShardView struct {
	ID          uint64        `json:"id"`
	Start       string        `json:"start"` // unprintable bytes as \xNN, as the others
	End         string        `json:"end"`
	Version     uint64        `json:"version"`
	ConfVersion uint64        `json:"conf_version"`
	Leader      uint64        `json:"leader"` // node, 0: none known
	Replicas    []ReplicaView `json:"replicas"`
	Keys        uint64        `json:"keys"`
	Bytes       uint64        `json:"bytes"`
	Load        *LoadView     `json:"load,omitempty"` // of one shard that was asked for, if its leader told
}

// LoadView is what is asked of a shard per second.
type LoadView struct {
	Reads      uint64 `json:"reads_per_s"`
	Writes     uint64 `json:"writes_per_s"`
	Bytes      uint64 `json:"bytes_per_s"`
	HotKey     string `json:"hot_key,omitempty"`
	HotPercent uint64 `json:"hot_percent,omitempty"`
}
