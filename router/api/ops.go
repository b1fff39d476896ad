package api

import (
	"math"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// The methods of operations. Any node serves them.
const (
	// MethodOpStart (OpRequest → OpsPage with one operation): start an operation; refused if a shard or node of it is in another
	// one, which the error names.
	MethodOpStart Method = 48
	// MethodOps (OpsRequest → OpsPage): the newest operations, or one.
	MethodOps Method = 49
	// MethodOpCancel (OpsRequest with ID → OpsPage): ask an operation to stop. It ends in a state that makes sense, see its State.
	MethodOpCancel Method = 50
	// MethodNodeSet (NodeSetRequest → empty): undrain or remove a node.
	MethodNodeSet Method = 51
	// MethodPlan (PlanRequest → Plan): what a rebalance would do.
	MethodPlan Method = 52
	// MethodStatus (empty → Status): what is wrong, in words.
	MethodStatus Method = 53
)

// Bounds of these bodies.
const (
	opBytesMax  = 4 << 20
	OpsPageMax  = 1000
	planMax     = 1 << 20
	problemsMax = 1000
)

// OpRequest carries a placement.Op, encoded, of which what the caller wants is filled in.
type OpRequest struct{ Op []byte }

// OpsRequest names one operation, or asks for the newest Limit; Running: only for those that are not over.
type OpsRequest struct {
	ID      uint64
	Limit   uint64
	Running bool
}

// OpsPage lists encoded placement.Op, newest first.
type OpsPage struct{ Ops [][]byte }

// NodeAction is what MethodNodeSet does. Sent: never renumber.
type NodeAction uint8

// The actions.
const (
	NodeUndrain NodeAction = 1
	NodeRemove  NodeAction = 2
)

// NodeSetRequest changes a node's state. Force removes a node that is down with replicas on it.
type NodeSetRequest struct {
	Node   engine.NodeID
	Action NodeAction
	Force  bool
}

// PlanRequest says what to level: replicas, leaders, size, load; empty means all.
type PlanRequest struct{ By []string }

// Plan is what a rebalance would do.
type Plan struct {
	Moves  []PlanMove
	Bytes  uint64
	Before [4]Spread // replicas, leaders, bytes, load, per node
	After  [4]Spread
	Stuck  []string
}

// PlanMove is a move of a replica, or with Leader a transfer.
type PlanMove struct {
	Shard    engine.ShardID
	From, To engine.NodeID
	Leader   bool
	Bytes    uint64
	Why      string
}

// Spread tells how even something is.
type Spread struct{ Min, Max, Mean float64 }

// Status is the health of a cluster at a glance, as the node that answers sees it. Its JSON is what `cluster status -o json` and the console tell.
type Status struct {
	ClusterID string `json:"cluster_id"`
	Nodes     struct {
		Total int `json:"total"` // without those that were removed
		Up    int `json:"up"`
	} `json:"nodes"`
	Shards struct { // user shards
		Total           int `json:"total"`
		WithLeader      int `json:"with_leader"`
		UnderReplicated int `json:"under_replicated"`
		Unavailable     int `json:"unavailable"`
	} `json:"shards"`
	Replicas   int `json:"replicas"` // of user shards
	Operations struct {
		Running int `json:"running"`
	} `json:"operations"`
	Problems []string `json:"problems"` // in words
	// Want is how many replicas each shard should have; 0: not known.
	Want int `json:"-"`
}

// counts are the numbers of the record, in their order in it.
func (s *Status) counts() []*int {
	return []*int{&s.Nodes.Total, &s.Nodes.Up, &s.Shards.Total, &s.Shards.WithLeader, &s.Shards.UnderReplicated, &s.Shards.Unavailable, &s.Replicas}
}

// Append implements Body.
func (q *OpRequest) Append(b []byte) []byte { return mp.AppendBin(fields(b, 1), q.Op) }

func (q *OpRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	q.Op = readBlob(r)
	r.Skip(extra)
}

func readBlob(r *mp.Reader) []byte {
	b := r.Bin()
	if len(b) > opBytesMax {
		r.Fail("operation too large")
		return nil
	}
	if len(b) == 0 {
		return nil
	}
	return append([]byte(nil), b...)
}

// Append implements Body.
func (q *OpsRequest) Append(b []byte) []byte {
	return mp.AppendBool(mp.AppendUint(mp.AppendUint(fields(b, 3), q.ID), q.Limit), q.Running)
}

func (q *OpsRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(3)
	q.ID, q.Limit, q.Running = r.Uint(), r.Uint(), r.Bool()
	r.Skip(extra)
}

// Append implements Body.
func (p *OpsPage) Append(b []byte) []byte {
	return appendList(fields(b, 1), p.Ops, func(b []byte, o *[]byte) []byte { return mp.AppendBin(b, *o) })
}

func (p *OpsPage) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	p.Ops = list(r, OpsPageMax, readBlob)
	r.Skip(extra)
}

// Append implements Body.
func (q *NodeSetRequest) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendUint(fields(b, 3), uint64(q.Node)), uint64(q.Action))
	return mp.AppendBool(b, q.Force)
}

func (q *NodeSetRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(3)
	q.Node, q.Action, q.Force = engine.NodeID(r.Uint()), NodeAction(r.Uint()), r.Bool()
	r.Skip(extra)
}

// Append implements Body.
func (q *PlanRequest) Append(b []byte) []byte { return appendTexts(fields(b, 1), q.By) }

func (q *PlanRequest) read(r *mp.Reader) {
	extra := r.ArrayMin(1)
	q.By = list(r, addressesMax, readText)
	r.Skip(extra)
}

// Append implements Body.
func (p *Plan) Append(b []byte) []byte {
	b = appendList(fields(b, 5), p.Moves, func(b []byte, m *PlanMove) []byte {
		b = mp.AppendUint(mp.AppendUint(mp.AppendUint(fields(b, 6), uint64(m.Shard)), uint64(m.From)), uint64(m.To))
		return appendText(mp.AppendUint(mp.AppendBool(b, m.Leader), m.Bytes), m.Why)
	})
	b = mp.AppendUint(b, p.Bytes)
	b = appendSpreads(appendSpreads(b, &p.Before), &p.After)
	return appendTexts(b, p.Stuck)
}

func appendSpreads(b []byte, l *[4]Spread) []byte {
	b = mp.AppendArray(b, 12)
	for _, s := range l {
		for _, v := range [...]float64{s.Min, s.Max, s.Mean} {
			b = mp.AppendUint(b, math.Float64bits(v))
		}
	}
	return b
}

func readSpreads(r *mp.Reader) (l [4]Spread) {
	extra := r.ArrayMin(12)
	for i := range l {
		for _, v := range [...]*float64{&l[i].Min, &l[i].Max, &l[i].Mean} {
			*v = math.Float64frombits(r.Uint())
		}
	}
	r.Skip(extra)
	return l
}

func (p *Plan) read(r *mp.Reader) {
	extra := r.ArrayMin(5)
	p.Moves = list(r, planMax, func(r *mp.Reader) (m PlanMove) {
		extra := r.ArrayMin(6)
		m.Shard, m.From, m.To = engine.ShardID(r.Uint()), engine.NodeID(r.Uint()), engine.NodeID(r.Uint())
		m.Leader, m.Bytes, m.Why = r.Bool(), r.Uint(), readText(r)
		r.Skip(extra)
		return m
	})
	p.Bytes = r.Uint()
	p.Before, p.After = readSpreads(r), readSpreads(r)
	p.Stuck = list(r, problemsMax, readText)
	r.Skip(extra)
}

// Append implements Body.
func (s *Status) Append(b []byte) []byte {
	b = mp.AppendUint(mp.AppendUint(appendTexts(fields(b, 4+len(s.counts())), s.Problems), uint64(s.Operations.Running)), uint64(s.Want))
	b = mp.AppendString(b, s.ClusterID)
	for _, n := range s.counts() {
		b = mp.AppendUint(b, uint64(*n))
	}
	return b
}

func (s *Status) read(r *mp.Reader) {
	extra := r.ArrayMin(2)
	s.Problems, s.Operations.Running = list(r, problemsMax, readText), int(r.Uint())
	if extra > 0 {
		s.Want, extra = int(r.Uint()), extra-1
	}
	if counts := s.counts(); extra > len(counts) { // absent in what older nodes send: the ClusterID is empty then
		s.ClusterID, extra = readText(r), extra-1-len(counts)
		for _, n := range counts {
			*n = int(r.Uint())
		}
	}
	r.Skip(extra)
}
