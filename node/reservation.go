package node

import (
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/placement"
	"github.com/kiloraft/kiloraft/shard"
)

// metaReplicasMax is how many replicas the meta shard of a new cluster gets, if there are so many nodes.
const metaReplicasMax = 3

// nodesMax bounds the nodes of a reservation or a Hello.
const nodesMax = 1024

// reservation is what the members of a cluster agree on before it exists (rule Cluster7). It is named by its Cluster, which is random.
// It is immutable.
type reservation struct {
	Cluster  id128
	CreateMS int64
	Shards   int
	Replicas int
	Members  []member // in ascending order of identity
}

// member is a node of a reservation.
type member struct {
	Node        engine.NodeID
	MetaReplica engine.ReplicaID // its replica of the meta shard, 0 if it has none
	info        nodeInfo
}

// nodeInfo is how a node describes itself to others.
type nodeInfo struct {
	Identity id128
	Addr     string
	HTTP     string
	Name     string
	Labels   map[string]string
	// Started is the cluster that it is a member of, as Node; zero if there is none. Reserved is the cluster that it holds a reservation of.
	Started  id128
	Node     engine.NodeID
	Reserved id128
}

// newReservation makes one of these nodes. Ids of nodes go by name and then identity, so that people find n1 as node 1.
func newReservation(infos []nodeInfo, shards, replicas int, nowMS int64) *reservation {
	infos = slices.Clone(infos)
	slices.SortFunc(infos, func(a, b nodeInfo) int {
		if a.Name != b.Name {
			if a.Name < b.Name {
				return -1
			}
			return 1
		}
		return compareID(a.Identity, b.Identity)
	})
	r := &reservation{CreateMS: nowMS, Shards: shards, Replicas: replicas}
	_, _ = rand.Read(r.Cluster[:])
	for i, info := range infos {
		m := member{Node: engine.NodeID(i + 1), info: info}
		if i < metaReplicasMax {
			m.MetaReplica = engine.ReplicaID(i + 1)
		}
		m.info.Started, m.info.Reserved, m.info.Node = id128{}, id128{}, 0
		r.Members = append(r.Members, m)
	}
	slices.SortFunc(r.Members, func(a, b member) int { return compareID(a.info.Identity, b.info.Identity) })
	return r
}

// find returns the member with this identity.
func (r *reservation) find(identity id128) (member, bool) {
	for _, m := range r.Members {
		if m.info.Identity == identity {
			return m, true
		}
	}
	return member{}, false
}

// metaDescriptor returns the first descriptor of the meta shard.
func (r *reservation) metaDescriptor() *shard.Descriptor {
	d := &shard.Descriptor{Shard: shard.MetaShardID, Version: 1, ConfVersion: 1}
	for _, m := range r.Members {
		if m.MetaReplica != 0 {
			d.Replicas = append(d.Replicas, shard.ReplicaDesc{Replica: m.MetaReplica, Node: m.Node, Role: shard.RoleVoter})
		}
	}
	slices.SortFunc(d.Replicas, func(a, b shard.ReplicaDesc) int { return int(a.Replica) - int(b.Replica) })
	return d
}

func (r *reservation) nodeIDs() []engine.NodeID {
	ids := make([]engine.NodeID, 0, len(r.Members))
	for _, m := range r.Members {
		ids = append(ids, m.Node)
	}
	slices.Sort(ids)
	return ids
}

func (r *reservation) append(b []byte) []byte {
	b = mp.AppendArray(b, 5)
	b = mp.AppendBin(b, r.Cluster[:])
	b = mp.AppendInt(b, r.CreateMS)
	b = mp.AppendUint(b, uint64(r.Shards))
	b = mp.AppendUint(b, uint64(r.Replicas))
	b = mp.AppendArray(b, len(r.Members))
	for _, m := range r.Members {
		b = mp.AppendUint(mp.AppendArray(b, 3), uint64(m.Node))
		b = m.info.append(mp.AppendUint(b, uint64(m.MetaReplica)))
	}
	return b
}

func decodeReservation(b []byte) (reservation, error) {
	r := mp.NewReader(b)
	res := readReservation(&r)
	if err := r.Finish(); err != nil {
		return reservation{}, fmt.Errorf("reservation: %w", err)
	}
	return res, nil
}

func readReservation(r *mp.Reader) reservation {
	var res reservation
	more := r.ArrayMin(5)
	readID(r, &res.Cluster)
	res.CreateMS = r.Int()
	res.Shards, res.Replicas = int(r.Uint()), int(r.Uint())
	n := r.Array()
	if n == 0 || n > nodesMax {
		r.Fail("number of members")
	}
	for i := 0; i < n && r.Err() == nil; i++ {
		extra := r.ArrayMin(3)
		m := member{Node: engine.NodeID(r.Uint()), MetaReplica: engine.ReplicaID(r.Uint()), info: readNodeInfo(r)}
		r.Skip(extra)
		res.Members = append(res.Members, m)
	}
	r.Skip(more)
	if r.Err() != nil {
		return reservation{}
	}
	return res
}

func (n *nodeInfo) append(b []byte) []byte {
	b = mp.AppendBin(mp.AppendArray(b, 8), n.Identity[:])
	b = mp.AppendString(mp.AppendString(mp.AppendString(b, n.Addr), n.HTTP), n.Name)
	b = placement.AppendLabels(b, n.Labels)
	b = mp.AppendBin(b, n.Started[:])
	b = mp.AppendUint(b, uint64(n.Node))
	return mp.AppendBin(b, n.Reserved[:])
}

func readNodeInfo(r *mp.Reader) nodeInfo {
	var n nodeInfo
	more := r.ArrayMin(8)
	readID(r, &n.Identity)
	n.Addr, n.HTTP, n.Name = placement.ReadText(r), placement.ReadText(r), placement.ReadText(r)
	n.Labels = placement.ReadLabels(r)
	readID(r, &n.Started)
	n.Node = engine.NodeID(r.Uint())
	readID(r, &n.Reserved)
	r.Skip(more)
	return n
}

// hello is what waiting nodes tell each other: who they are, and whom they know.
type hello struct {
	Self  nodeInfo
	Known []nodeInfo
}

func (h *hello) append(b []byte) []byte {
	b = h.Self.append(mp.AppendArray(b, 2))
	b = mp.AppendArray(b, len(h.Known))
	for i := range h.Known {
		b = h.Known[i].append(b)
	}
	return b
}

func decodeHello(b []byte) (hello, error) {
	r := mp.NewReader(b)
	more := r.ArrayMin(2)
	h := hello{Self: readNodeInfo(&r)}
	n := r.Array()
	if n > nodesMax {
		r.Fail("number of nodes")
	}
	for i := 0; i < n && r.Err() == nil; i++ {
		h.Known = append(h.Known, readNodeInfo(&r))
	}
	r.Skip(more)
	return h, r.Finish()
}

// held is the answer to Reserve and Start: what the node holds now.
type held struct {
	Started     id128        // zero: it has not started
	Reservation *reservation // nil: none
}

func (h *held) append(b []byte) []byte {
	b = mp.AppendBin(mp.AppendArray(b, 2), h.Started[:])
	if h.Reservation == nil {
		return mp.AppendBin(b, nil)
	}
	return mp.AppendBin(b, h.Reservation.append(nil))
}

func decodeHeld(b []byte) (held, error) {
	r := mp.NewReader(b)
	var h held
	more := r.ArrayMin(2)
	readID(&r, &h.Started)
	body := r.Bin()
	r.Skip(more)
	if err := r.Finish(); err != nil || len(body) == 0 {
		return h, err
	}
	res, err := decodeReservation(body)
	h.Reservation = &res
	return h, err
}

func readID(r *mp.Reader, id *id128) { placement.ReadID(r, id) }
