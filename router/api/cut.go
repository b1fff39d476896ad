package api

import (
	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// MethodCut (CutRequest → CutPage): the content of a shard at one applied entry, page by page, for a backup. The first request cuts; it is
// served by the leader, and the cut has all writes that were acknowledged before it was asked for. Who stops to ask loses the cut
// after 15 s.
const MethodCut Method = 22

// CutRequest asks for the first page of a shard (Cut 0), the next page of a cut, or its end (Close).
type CutRequest struct {
	Shard   engine.ShardID
	Version uint64 // of the descriptor, as the sender knows it
	Key     []byte // one of the shard's, as the sender knows it
	Cut     uint64
	Page    uint64 // first is 1; a page can be asked for again until the next one was
	Close   bool
}

// CutPage is a page of a cut. The first one has no items, but says what was cut.
type CutPage struct {
	Cut     uint64
	Record  []byte // of the first page: state.AppendRecord
	Items   []byte // state.AppendKV of each
	Last    bool
	Count   uint64 // the content so far; with Last, all of it
	Bytes   uint64
	Sum     uint64
	Cluster ID
}

// Append implements Body.
func (q *CutRequest) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendUint(fields(b, 6), uint64(q.Shard)), q.Version)
	b = mp.AppendUint(mp.AppendUint(mp.AppendBin(b, q.Key), q.Cut), q.Page)
	return mp.AppendBool(b, q.Close)
}

func (q *CutRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(6)
	q.Shard, q.Version = engine.ShardID(r.Uint()), r.Uint()
	q.Key = append([]byte(nil), r.Bin()...)
	q.Cut, q.Page, q.Close = r.Uint(), r.Uint(), r.Bool()
	r.Skip(extra)
}

// Append implements Body.
func (p *CutPage) Append(b []byte) []byte {
	b = mp.AppendBin(mp.AppendBin(mp.AppendUint(fields(b, 8), p.Cut), p.Record), p.Items)
	b = mp.AppendUint(mp.AppendUint(mp.AppendBool(b, p.Last), p.Count), p.Bytes)
	return mp.AppendBin(mp.AppendUint(b, p.Sum), p.Cluster[:])
}

func (p *CutPage) read(r *mp.Reader) {
	extra := r.ArrayMin(8)
	p.Cut = r.Uint()
	p.Record = append([]byte(nil), r.Bin()...)
	p.Items = append([]byte(nil), r.Bin()...)
	p.Last, p.Count, p.Bytes, p.Sum = r.Bool(), r.Uint(), r.Uint(), r.Uint()
	if id := r.Bin(); len(id) == len(p.Cluster) {
		copy(p.Cluster[:], id)
	} else {
		r.Fail("cluster id")
	}
	r.Skip(extra)
}
