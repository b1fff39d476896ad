package api

import (
	"maps"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/shard"
)

// fields starts an array of n scalar or array fields.
func fields(b []byte, n int) []byte { return mp.AppendArray(b, n) }

func appendText(b []byte, s string) []byte {
	return mp.AppendString(b, s[:min(len(s), textBytesMax)])
}

func readText(r *mp.Reader) string {
	s := r.Bin()
	if len(s) > textBytesMax {
		r.Fail("text too long")
		return ""
	}
	return string(s)
}

func readID(r *mp.Reader) (id ID) {
	switch s := r.Bin(); len(s) {
	case len(id):
		copy(id[:], s)
	default:
		r.Fail("id")
	}
	return id
}

func readKey(r *mp.Reader) []byte {
	k := r.Bin()
	if len(k) > shard.KeyBytesMax+1 {
		r.Fail("key too long")
		return nil
	}
	if len(k) == 0 {
		return nil
	}
	return slices.Clone(k)
}

// list reads an array of at most max elements.
func list[T any](r *mp.Reader, max int, read func(*mp.Reader) T) []T {
	n := r.Array()
	if n > max {
		r.Fail("list too long")
		return nil
	}
	var out []T
	for ; n > 0 && r.Err() == nil; n-- {
		out = append(out, read(r))
	}
	return out
}

func appendList[T any](b []byte, l []T, app func([]byte, *T) []byte) []byte {
	b = mp.AppendArray(b, len(l))
	for i := range l {
		b = app(b, &l[i])
	}
	return b
}

func appendUints[T ~uint64](b []byte, l []T) []byte {
	return appendList(b, l, func(b []byte, v *T) []byte { return mp.AppendUint(b, uint64(*v)) })
}

func readUint[T ~uint64](r *mp.Reader) T { return T(r.Uint()) }

func appendTexts(b []byte, l []string) []byte {
	return appendList(b, l, func(b []byte, s *string) []byte { return appendText(b, *s) })
}

func appendLabels(b []byte, m map[string]string) []byte {
	b = mp.AppendArray(b, 2*len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b = appendText(appendText(b, k), m[k])
	}
	return b
}

func readLabels(r *mp.Reader) map[string]string {
	n := r.Array()
	if n%2 != 0 || n > 2*LabelsMax {
		r.Fail("labels")
		return nil
	}
	if n == 0 {
		return nil
	}
	m := map[string]string{}
	for ; n > 0 && r.Err() == nil; n -= 2 {
		k := readText(r)
		m[k] = readText(r)
	}
	return m
}

func (a *NodeAddr) append(b []byte) []byte {
	return appendText(mp.AppendUint(fields(b, 2), uint64(a.Node)), a.Addr)
}

func readNodeAddr(r *mp.Reader) (a NodeAddr) {
	extra := r.ArrayMin(2)
	a.Node, a.Addr = engine.NodeID(r.Uint()), readText(r)
	r.Skip(extra)
	return a
}

// Append implements Body.
func (q *MapRequest) Append(b []byte) []byte {
	return mp.AppendUint(mp.AppendBin(fields(b, 2), q.From), q.Limit)
}

func (q *MapRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(2)
	q.From, q.Limit = readKey(r), r.Uint()
	r.Skip(extra)
}

// Append implements Body.
func (p *MapPage) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendBin(fields(b, 8), p.ClusterID[:]), uint64(p.Node))
	b = shard.AppendDescriptor(b, &p.Meta)
	b = appendList(b, p.Nodes, func(b []byte, a *NodeAddr) []byte { return a.append(b) })
	b = appendList(b, p.Descriptors, shard.AppendDescriptor)
	b = appendUints(b, p.Leaders)
	return mp.AppendBin(mp.AppendBool(b, p.More), p.Next)
}

func (p *MapPage) read(r *mp.Reader) {
	extra := r.ArrayMin(8)
	p.ClusterID, p.Node = readID(r), engine.NodeID(r.Uint())
	p.Meta = shard.ReadDescriptor(r)
	p.Nodes = list(r, NodesMax, readNodeAddr)
	p.Descriptors = list(r, MapPageMax, shard.ReadDescriptor)
	p.Leaders = list(r, MapPageMax, readUint[engine.NodeID])
	p.More, p.Next = r.Bool(), readKey(r)
	r.Skip(extra)
}

// Append implements Body.
func (n *NodeInfo) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendBin(fields(b, 15), n.ClusterID[:]), uint64(n.Node))
	b = mp.AppendBin(b, n.Identity[:])
	b = appendText(appendText(appendText(b, n.Name), n.Addr), n.HTTP)
	b = appendText(appendText(b, n.Redis), n.Version)
	b = mp.AppendInt(mp.AppendUint(b, uint64(n.State)), n.Started)
	b = mp.AppendUint(mp.AppendUint(b, n.Replicas), n.Leaders)
	b = appendTexts(appendLabels(b, n.Labels), n.Joins)
	return mp.AppendBool(b, n.Reserved)
}

func (n *NodeInfo) read(r *mp.Reader) {
	extra := r.ArrayMin(15)
	n.ClusterID, n.Node, n.Identity = readID(r), engine.NodeID(r.Uint()), readID(r)
	n.Name, n.Addr, n.HTTP, n.Redis, n.Version = readText(r), readText(r), readText(r), readText(r), readText(r)
	n.State, n.Started = NodeState(r.Uint()), r.Int()
	n.Replicas, n.Leaders = r.Uint(), r.Uint()
	n.Labels, n.Joins = readLabels(r), list(r, addressesMax, readText)
	n.Reserved = r.Bool()
	r.Skip(extra)
}

// Append implements Body.
func (p *NodesPage) Append(b []byte) []byte {
	return appendList(fields(b, 1), p.Nodes, func(b []byte, n *NodeInfo) []byte { return n.Append(b) })
}

func (p *NodesPage) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	p.Nodes = list(r, NodesMax, func(r *mp.Reader) (n NodeInfo) { n.read(r); return n })
	r.Skip(extra)
}

// Append implements Body.
func (q *ReplicasRequest) Append(b []byte) []byte {
	return appendUints(mp.AppendUint(mp.AppendUint(fields(b, 3), uint64(q.From)), q.Limit), q.Shards)
}

func (q *ReplicasRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(3)
	q.From, q.Limit, q.Shards = engine.ShardID(r.Uint()), r.Uint(), list(r, ListOfShardsMax, readUint[engine.ShardID])
	r.Skip(extra)
}

// Append implements Body.
func (p *ReplicasPage) Append(b []byte) []byte {
	b = appendList(fields(b, 3), p.Replicas, func(b []byte, s *ReplicaStatus) []byte { return s.append(b) })
	return mp.AppendUint(mp.AppendBool(b, p.More), uint64(p.Next))
}

func (p *ReplicasPage) read(r *mp.Reader) {
	extra := r.ArrayMin(3)
	p.Replicas = list(r, ReplicasPageMax, readReplicaStatus)
	p.More, p.Next = r.Bool(), engine.ShardID(r.Uint())
	r.Skip(extra)
}

func (s *ReplicaStatus) append(b []byte) []byte {
	b = fields(b, 15)
	for _, v := range [...]uint64{uint64(s.Shard), uint64(s.Replica), uint64(s.Role), uint64(s.Leader), s.Term, s.Last, s.Committed,
		s.Applied, s.Persisted, s.Version, s.ConfVersion, s.Keys, s.Bytes} {
		b = mp.AppendUint(b, v)
	}
	return appendText(mp.AppendBool(b, s.Quiesced), s.Problem)
}

func readReplicaStatus(r *mp.Reader) (s ReplicaStatus) {
	extra := r.ArrayMin(15)
	s.Shard, s.Replica, s.Role, s.Leader = engine.ShardID(r.Uint()), engine.ReplicaID(r.Uint()), engine.Role(r.Uint()), engine.NodeID(r.Uint())
	for _, v := range [...]*uint64{&s.Term, &s.Last, &s.Committed, &s.Applied, &s.Persisted, &s.Version, &s.ConfVersion, &s.Keys, &s.Bytes} {
		*v = r.Uint()
	}
	s.Quiesced, s.Problem = r.Bool(), readText(r)
	r.Skip(extra)
	return s
}

// Append implements Body.
func (q *ShardsRequest) Append(b []byte) []byte {
	b = appendUints(mp.AppendUint(mp.AppendBin(fields(b, 4), q.From), q.Limit), q.Shards)
	return mp.AppendBool(b, q.Meta)
}

func (q *ShardsRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(4)
	q.From, q.Limit, q.Shards = readKey(r), r.Uint(), list(r, ListOfShardsMax, readUint[engine.ShardID])
	q.Meta = r.Bool()
	r.Skip(extra)
}

// Append implements Body.
func (p *ShardsPage) Append(b []byte) []byte {
	b = appendList(fields(b, 3), p.Shards, func(b []byte, s *ShardInfo) []byte { return s.append(b) })
	return mp.AppendBin(mp.AppendBool(b, p.More), p.Next)
}

func (p *ShardsPage) read(r *mp.Reader) {
	extra := r.ArrayMin(3)
	p.Shards = list(r, MapPageMax+1, readShardInfo)
	p.More, p.Next = r.Bool(), readKey(r)
	r.Skip(extra)
}

func (s *ShardInfo) append(b []byte) []byte {
	n := 4
	if s.Rates != nil {
		n = 9
	}
	b = mp.AppendUint(shard.AppendDescriptor(fields(b, n), &s.Descriptor), uint64(s.Leader))
	b = mp.AppendUint(mp.AppendUint(b, s.Keys), s.Bytes)
	if x := s.Rates; x != nil {
		b = mp.AppendUint(mp.AppendUint(mp.AppendUint(b, x.Reads), x.Writes), x.Bytes)
		b = mp.AppendUint(mp.AppendBin(b, x.HotKey), x.HotPercent)
	}
	return b
}

func readShardInfo(r *mp.Reader) (s ShardInfo) {
	extra := r.ArrayMin(4)
	s.Descriptor = shard.ReadDescriptor(r)
	s.Leader, s.Keys, s.Bytes = engine.NodeID(r.Uint()), r.Uint(), r.Uint()
	if extra >= 5 {
		s.Rates = &Rates{Reads: r.Uint(), Writes: r.Uint(), Bytes: r.Uint(), HotKey: readKey(r), HotPercent: r.Uint()}
		extra -= 5
	}
	r.Skip(extra)
	return s
}

// Append implements Body.
func (q *TransferRequest) Append(b []byte) []byte {
	return mp.AppendUint(mp.AppendUint(fields(b, 2), uint64(q.Shard)), uint64(q.To))
}

func (q *TransferRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(2)
	q.Shard, q.To = engine.ShardID(r.Uint()), engine.NodeID(r.Uint())
	r.Skip(extra)
}

// Append implements Body.
func (q *ChecksumRequest) Append(b []byte) []byte {
	return mp.AppendUint(fields(b, 1), uint64(q.Shard))
}

func (q *ChecksumRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	q.Shard = engine.ShardID(r.Uint())
	r.Skip(extra)
}

// Append implements Body.
func (c *Checksum) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendUint(fields(b, 5), c.Applied.Term), c.Applied.Index)
	return mp.AppendUint(mp.AppendUint(mp.AppendUint(b, c.Items), c.Bytes), c.Checksum)
}

func (c *Checksum) read(r *mp.Reader) {
	extra := r.ArrayMin(5)
	c.Applied = engine.LogID{Term: r.Uint(), Index: r.Uint()}
	c.Items, c.Bytes, c.Checksum = r.Uint(), r.Uint(), r.Uint()
	r.Skip(extra)
}

// Append implements Body.
func (q *InitRequest) Append(b []byte) []byte {
	return mp.AppendUint(mp.AppendUint(fields(b, 2), q.Shards), q.Replicas)
}

func (q *InitRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(2)
	q.Shards, q.Replicas = r.Uint(), r.Uint()
	if q.Shards > InitShardsMax || q.Replicas > MembersMax {
		r.Fail("number of shards or replicas")
	}
	r.Skip(extra)
}

// Append implements Body.
func (a *InitAnswer) Append(b []byte) []byte {
	b = mp.AppendBool(mp.AppendBin(fields(b, 4), a.ClusterID[:]), a.Already)
	return mp.AppendUint(mp.AppendUint(b, a.Nodes), a.Shards)
}

func (a *InitAnswer) read(r *mp.Reader) {
	extra := r.ArrayMin(4)
	a.ClusterID, a.Already, a.Nodes, a.Shards = readID(r), r.Bool(), r.Uint(), r.Uint()
	r.Skip(extra)
}

// Append implements Body.
func (v *Reservation) Append(b []byte) []byte {
	b = mp.AppendBin(fields(b, 6), v.ClusterID[:])
	b = appendList(b, v.Members, func(b []byte, m *Member) []byte {
		return appendText(mp.AppendUint(mp.AppendBin(fields(b, 3), m.Identity[:]), uint64(m.Node)), m.Addr)
	})
	b = shard.AppendDescriptor(b, &v.Meta)
	return mp.AppendBool(mp.AppendUint(mp.AppendUint(b, v.Shards), v.Replicas), v.Started)
}

func (v *Reservation) read(r *mp.Reader) {
	extra := r.ArrayMin(6)
	v.ClusterID = readID(r)
	v.Members = list(r, MembersMax, func(r *mp.Reader) (m Member) {
		extra := r.ArrayMin(3)
		m.Identity, m.Node, m.Addr = readID(r), engine.NodeID(r.Uint()), readText(r)
		r.Skip(extra)
		return m
	})
	v.Meta = shard.ReadDescriptor(r)
	v.Shards, v.Replicas, v.Started = r.Uint(), r.Uint(), r.Bool()
	r.Skip(extra)
}

// Append implements Body.
func (q *JoinRequest) Append(b []byte) []byte {
	b = appendText(appendText(mp.AppendBin(fields(b, 6), q.Identity[:]), q.Addr), q.HTTP)
	return appendLabels(appendText(appendText(b, q.Redis), q.Name), q.Labels)
}

func (q *JoinRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(6)
	q.Identity, q.Addr, q.HTTP, q.Redis, q.Name = readID(r), readText(r), readText(r), readText(r), readText(r)
	q.Labels = readLabels(r)
	r.Skip(extra)
}

// Append implements Body.
func (a *JoinAnswer) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendBin(fields(b, 4), a.ClusterID[:]), uint64(a.Node))
	b = shard.AppendDescriptor(b, &a.Meta)
	return appendList(b, a.Nodes, func(b []byte, n *NodeAddr) []byte { return n.append(b) })
}

func (a *JoinAnswer) read(r *mp.Reader) {
	extra := r.ArrayMin(4)
	a.ClusterID, a.Node = readID(r), engine.NodeID(r.Uint())
	a.Meta, a.Nodes = shard.ReadDescriptor(r), list(r, NodesMax, readNodeAddr)
	r.Skip(extra)
}

// Append implements Body.
func (q *CreateRequest) Append(b []byte) []byte {
	return appendUints(appendList(fields(b, 2), q.Descriptors, shard.AppendDescriptor), q.Leaders)
}

func (q *CreateRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(2)
	q.Descriptors = list(r, CreateMax, shard.ReadDescriptor)
	q.Leaders = list(r, CreateMax, readUint[engine.NodeID])
	r.Skip(extra)
}
