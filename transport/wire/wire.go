package wire

import (
	"errors"
	"fmt"
	"math"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// ErrMalformed is wrapped by every error of this package.
var ErrMalformed = errors.New("malformed message")

// Kind tells which message of package engine it is.
type Kind uint8

// The kinds. They are on the wire: never renumber them.
const (
	KindVoteRequest       Kind = 1
	KindVoteResponse      Kind = 2
	KindAppendRequest     Kind = 3
	KindAppendResponse    Kind = 4
	KindHeartbeat         Kind = 5
	KindHeartbeatResponse Kind = 6
	KindSnapshotResponse  Kind = 7
	KindTimeoutNow        Kind = 8
	KindMergeOrder        Kind = 9
)

var kindNames = [...]string{"unknown", "vote request", "vote response", "append request", "append response", "heartbeat",
	"heartbeat response", "snapshot response", "timeout now", "merge order"}

// String names the kind for logs.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return kindNames[0]
}

// Header is what every message starts with.
type Header struct {
	Shard engine.ShardID
	From  engine.ReplicaID
	To    engine.ReplicaID
}

// Run is a run of consecutive entries of one term with their bodies, as the raft log keeps it.
type Run struct {
	Term    uint64
	First   uint64 // index of the first entry
	Count   int
	Special bool // some entry is not EntryNormal
	Body    []byte
}

// Last is the index of the last entry of the run.
func (r *Run) Last() uint64 { return r.First + uint64(r.Count) - 1 }

// entryBytesMin is the smallest size of an entry in a body: a length and a kind.
const entryBytesMin = 2

// HeaderBytesMax and RunBytesMax bound what an append request takes beside its bodies.
const (
	HeaderBytesMax = 160
	RunBytesMax    = 40
)

// AppendRequestBytesMax bounds the encoded size of an append request with these runs.
func AppendRequestBytesMax(runs []Run) int {
	n := HeaderBytesMax + RunBytesMax*len(runs)
	for i := range runs {
		n += len(runs[i].Body)
	}
	return n
}

// start begins a message of at most max bytes behind its bin header, with so many fields after the common ones.
func start(b []byte, kind Kind, h Header, fields, max int) []byte {
	b = mp.AppendBinHeader(b, max)
	b = mp.AppendArray(b, 4+fields)
	b = append(b, byte(kind)) // a positive fixint
	b = mp.AppendUint(b, uint64(h.Shard))
	b = mp.AppendUint(b, uint64(h.From))
	return mp.AppendUint(b, uint64(h.To))
}

// finish writes the true length into the bin header that start has written at off.
func finish(b []byte, off int) []byte {
	switch b[off] {
	case 0xc4:
		b[off+1] = byte(len(b) - off - 2)
	case 0xc5:
		n := len(b) - off - 3
		b[off+1], b[off+2] = byte(n>>8), byte(n)
	default:
		n := len(b) - off - 5
		b[off+1], b[off+2], b[off+3], b[off+4] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	}
	return b
}

func appendLogID(b []byte, id engine.LogID) []byte {
	return mp.AppendUint(mp.AppendUint(b, id.Term), id.Index)
}

// appendVote leaves out Committed, which is a flag.
func appendVote(b []byte, v *engine.Vote) []byte {
	b = mp.AppendUint(b, v.Term)
	b = mp.AppendUint(b, uint64(v.Peer.Node))
	return mp.AppendUint(b, uint64(v.Peer.Replica))
}

func flags(bits ...bool) (f byte) {
	for i, on := range bits {
		if on {
			f |= 1 << i
		}
	}
	return f
}

// The number of fields of each kind behind the common four.
const (
	fieldsVoteRequest       = 1 + 3 + 2 + 3
	fieldsVoteResponse      = 1 + 3 + 3
	fieldsAppendRequest     = 1 + 3 + 2 + 2 + 3 + 1
	fieldsAppendResponse    = 1 + 3 + 3 + 2 + 2 + 1
	fieldsHeartbeat         = 1 + 3 + 2 + 2 + 2
	fieldsHeartbeatResponse = 1 + 3 + 3 + 2
	fieldsSnapshotResponse  = 1 + 3 + 1 + 2
	fieldsTimeoutNow        = 1 + 3
	fieldsMergeOrder        = 7
)

// smallMax bounds every message without entries: the longest have 4+12 integers of nine bytes.
const smallMax = 200

// AppendVoteRequest appends m. Its From is that of the header.
func AppendVoteRequest(b []byte, h Header, m *engine.VoteRequest) []byte {
	off := len(b)
	b = start(b, KindVoteRequest, h, fieldsVoteRequest, smallMax)
	b = append(b, flags(m.Pre, m.Vote.Committed, m.TransferOf.Committed))
	b = appendVote(b, &m.Vote)
	b = appendLogID(b, m.LastLog)
	b = appendVote(b, &m.TransferOf)
	return finish(b, off)
}

// AppendVoteResponse appends m.
func AppendVoteResponse(b []byte, h Header, m *engine.VoteResponse) []byte {
	off := len(b)
	b = start(b, KindVoteResponse, h, fieldsVoteResponse, smallMax)
	b = append(b, flags(m.Pre, m.Granted, m.LiveLeader, m.Request.Committed, m.Vote.Committed))
	b = appendVote(b, &m.Request)
	b = appendVote(b, &m.Vote)
	return finish(b, off)
}

// AppendAppendRequest appends m with these runs, which must follow m.Prev without gap. The Runs, Memberships and Barriers of
// m are not looked at: the receiver derives them from the runs.
func AppendAppendRequest(b []byte, h Header, m *engine.AppendRequest, runs []Run) []byte {
	off := len(b)
	b = start(b, KindAppendRequest, h, fieldsAppendRequest, AppendRequestBytesMax(runs))
	b = append(b, flags(m.Vote.Committed))
	b = appendVote(b, &m.Vote)
	b = appendLogID(b, m.Prev)
	b = appendLogID(b, m.Commit)
	b = mp.AppendUint(b, m.Stream)
	b = mp.AppendUint(b, m.Seq)
	b = mp.AppendInt(b, int64(m.SentAt))
	b = mp.AppendArray(b, len(runs))
	for i := range runs {
		r := &runs[i]
		b = append(b, 0x95) // an array of five
		b = mp.AppendUint(b, r.Term)
		b = mp.AppendUint(b, r.First)
		b = mp.AppendUint(b, uint64(r.Count))
		b = mp.AppendBool(b, r.Special)
		b = mp.AppendBin(b, r.Body)
	}
	return finish(b, off)
}

// AppendAppendResponse appends m.
func AppendAppendResponse(b []byte, h Header, m *engine.AppendResponse) []byte {
	off := len(b)
	b = start(b, KindAppendResponse, h, fieldsAppendResponse, smallMax)
	b = append(b, flags(m.Vote.Committed, m.Success, m.Uninitialised, m.Waiting))
	b = appendVote(b, &m.Vote)
	b = mp.AppendUint(b, m.Stream)
	b = mp.AppendUint(b, m.Seq)
	b = mp.AppendInt(b, int64(m.SentAt))
	b = appendLogID(b, m.Match)
	b = appendLogID(b, m.Hint)
	b = mp.AppendInt(b, int64(m.Promise))
	return finish(b, off)
}

// AppendHeartbeat appends m.
func AppendHeartbeat(b []byte, h Header, m *engine.Heartbeat) []byte {
	off := len(b)
	b = start(b, KindHeartbeat, h, fieldsHeartbeat, smallMax)
	b = append(b, flags(m.Vote.Committed, m.Quiesce, m.Probe, m.Resigned))
	b = appendVote(b, &m.Vote)
	b = appendLogID(b, m.Commit)
	b = mp.AppendUint(b, m.Round)
	b = mp.AppendInt(b, int64(m.SentAt))
	b = appendLogID(b, m.Last)
	return finish(b, off)
}

// AppendHeartbeatResponse appends m.
func AppendHeartbeatResponse(b []byte, h Header, m *engine.HeartbeatResponse) []byte {
	off := len(b)
	b = start(b, KindHeartbeatResponse, h, fieldsHeartbeatResponse, smallMax)
	b = append(b, flags(m.Vote.Committed, m.Quiesced, m.Behind))
	b = appendVote(b, &m.Vote)
	b = mp.AppendUint(b, m.Round)
	b = mp.AppendInt(b, int64(m.SentAt))
	b = mp.AppendInt(b, int64(m.Promise))
	b = appendLogID(b, m.Last)
	return finish(b, off)
}

// AppendSnapshotResponse appends m.
func AppendSnapshotResponse(b []byte, h Header, m *engine.SnapshotResponse) []byte {
	off := len(b)
	b = start(b, KindSnapshotResponse, h, fieldsSnapshotResponse, smallMax)
	b = append(b, flags(m.Vote.Committed, m.Accepted))
	b = appendVote(b, &m.Vote)
	b = mp.AppendUint(b, m.Stream)
	b = appendLogID(b, m.Match)
	return finish(b, off)
}

// AppendTimeoutNow appends m.
func AppendTimeoutNow(b []byte, h Header, m *engine.TimeoutNow) []byte {
	off := len(b)
	b = start(b, KindTimeoutNow, h, fieldsTimeoutNow, smallMax)
	b = append(b, flags(m.Vote.Committed))
	b = appendVote(b, &m.Vote)
	return finish(b, off)
}

// MergeOrder is what the leader of one shard of a merge tells that of the other, and the answer to it. It is none of the engine's.
type MergeOrder struct {
	Result  uint8          // OrderGiven, or the answer
	Command uint8          // what is to be proposed: a command of package shard
	Other   engine.ShardID // whose leader sends it
	// Version and ConfVersion of the shard that is to be frozen.
	Version     uint64
	ConfVersion uint64
	Freeze      engine.LogID // OrderFrozen: every replica has it
}

// The results of a MergeOrder. They are on the wire: never renumber them.
const (
	OrderGiven  = 0 // an order
	OrderFrozen = 1
	OrderVoid   = 2 // the shard is at later versions, or in another merge
)

// AppendMergeOrder appends m.
func AppendMergeOrder(b []byte, h Header, m *MergeOrder) []byte {
	off := len(b)
	b = start(b, KindMergeOrder, h, fieldsMergeOrder, smallMax)
	b = append(b, m.Result&0x7f, m.Command&0x7f)
	b = mp.AppendUint(mp.AppendUint(mp.AppendUint(b, uint64(m.Other)), m.Version), m.ConfVersion)
	b = appendLogID(b, m.Freeze)
	return finish(b, off)
}

// MergeOrder decodes into out.
func (m *Message) MergeOrder(out *MergeOrder) error {
	m.begin(KindMergeOrder, fieldsMergeOrder)
	*out = MergeOrder{Result: uint8(m.r.Uint()), Command: uint8(m.r.Uint()), Other: engine.ShardID(m.r.Uint()), Version: m.r.Uint(),
		ConfVersion: m.r.Uint()}
	out.Freeze = m.logID()
	return m.err()
}

// Reader walks over the messages of a frame body.
type Reader struct {
	r mp.Reader
}

// NewReader returns a Reader of body, which the messages alias.
func NewReader(body []byte) Reader { return Reader{r: mp.NewReader(body)} }

// Reset makes r read body from its start.
func (r *Reader) Reset(body []byte) { r.r.Reset(body) }

// Next reads the header of the next message into m. It returns false at the end, and at the first error, which Err returns.
// A message of a kind that this version does not know is returned like any other: skip it.
func (r *Reader) Next(m *Message) bool {
	if r.r.Err() != nil || r.r.Len() == 0 {
		return false
	}
	body := r.r.Bin()
	if r.r.Err() != nil {
		return false
	}
	m.r.Reset(body)
	m.body = body
	m.fields = m.r.ArrayMin(4)
	kind := m.r.Uint()
	m.Shard = engine.ShardID(m.r.Uint())
	m.From = engine.ReplicaID(m.r.Uint())
	m.To = engine.ReplicaID(m.r.Uint())
	if err := m.r.Err(); err != nil {
		r.r.Fail("message header: " + err.Error())
		return false
	}
	m.Kind = Kind(min(kind, math.MaxUint8))
	return true
}

// Err returns the first error of Next.
func (r *Reader) Err() error {
	if err := r.r.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// Message is one message of a frame: its header, and its fields yet to be decoded, once, by the method of its kind.
type Message struct {
	Header
	Kind Kind

	r      mp.Reader // behind the common fields
	body   []byte
	fields int // how many are left
}

// Bytes returns the message without its bin header; ParseMessage reads it again. It aliases the frame.
func (m *Message) Bytes() []byte { return m.body }

// ParseMessage reads what Bytes has returned.
func ParseMessage(b []byte, m *Message) error {
	m.r.Reset(b)
	m.body = b
	m.fields = m.r.ArrayMin(4)
	m.Kind = Kind(min(m.r.Uint(), math.MaxUint8))
	m.Shard = engine.ShardID(m.r.Uint())
	m.From = engine.ReplicaID(m.r.Uint())
	m.To = engine.ReplicaID(m.r.Uint())
	if err := m.r.Err(); err != nil {
		return fmt.Errorf("%w: header: %w", ErrMalformed, err)
	}
	return nil
}

func (m *Message) begin(kind Kind, fields int) {
	if m.Kind != kind {
		m.r.Fail("message of another kind")
	}
	if m.fields < fields {
		m.r.Fail("fields are missing")
	}
}

func (m *Message) err() error {
	// Fields that a newer version has added are not even looked at: the bin says where the message ends.
	if err := m.r.Err(); err != nil {
		return fmt.Errorf("%w: %v of shard %d: %w", ErrMalformed, m.Kind, m.Shard, err)
	}
	return nil
}

func (m *Message) from(node engine.NodeID) engine.Peer {
	return engine.Peer{Node: node, Replica: m.From}
}

func (m *Message) logID() engine.LogID { return engine.LogID{Term: m.r.Uint(), Index: m.r.Uint()} }

func (m *Message) vote(committed bool) engine.Vote {
	v := engine.Vote{Term: m.r.Uint(), Committed: committed}
	v.Peer.Node = engine.NodeID(m.r.Uint())
	v.Peer.Replica = engine.ReplicaID(m.r.Uint())
	return v
}

// VoteRequest decodes into out. As in all these methods, node is the sender, known from the session.
func (m *Message) VoteRequest(node engine.NodeID, out *engine.VoteRequest) error {
	m.begin(KindVoteRequest, fieldsVoteRequest)
	f := m.r.Uint()
	*out = engine.VoteRequest{From: m.from(node), Pre: f&1 != 0}
	out.Vote = m.vote(f&2 != 0)
	out.LastLog = m.logID()
	out.TransferOf = m.vote(f&4 != 0)
	return m.err()
}

// VoteResponse decodes into out.
func (m *Message) VoteResponse(node engine.NodeID, out *engine.VoteResponse) error {
	m.begin(KindVoteResponse, fieldsVoteResponse)
	f := m.r.Uint()
	*out = engine.VoteResponse{From: m.from(node), Pre: f&1 != 0, Granted: f&2 != 0, LiveLeader: f&4 != 0}
	out.Request = m.vote(f&8 != 0)
	out.Vote = m.vote(f&16 != 0)
	return m.err()
}

// AppendRequest decodes into out and runs, and returns the runs. Both keep the capacity of their slices; bodies alias the
// frame. out.Runs has one row per term. Memberships and Barriers are left empty: the caller reads them from the bodies of
// runs that are special. The runs are checked: without gap behind Prev, terms that never fall and never pass the leader's,
// no more entries than the body can hold.
func (m *Message) AppendRequest(node engine.NodeID, out *engine.AppendRequest, runs []Run) ([]Run, error) {
	m.begin(KindAppendRequest, fieldsAppendRequest)
	rows := out.Runs[:0]
	*out = engine.AppendRequest{From: m.from(node), Memberships: out.Memberships[:0], Barriers: out.Barriers[:0]}
	f := m.r.Uint()
	out.Vote = m.vote(f&1 != 0)
	out.Prev = m.logID()
	out.Commit = m.logID()
	out.Stream = m.r.Uint()
	out.Seq = m.r.Uint()
	out.SentAt = engine.Instant(m.r.Int())
	runs = runs[:0]
	last := out.Prev
	for n := m.r.Array(); n > 0 && m.r.Err() == nil; n-- {
		run := m.run(last, out.Vote.Term)
		if m.r.Err() != nil {
			break
		}
		if k := len(rows); k > 0 && rows[k-1].Term == run.Term {
			rows[k-1].Last = run.Last()
		} else {
			rows = append(rows, engine.TermRun{Term: run.Term, First: run.First, Last: run.Last()})
		}
		runs = append(runs, run)
		last = engine.LogID{Term: run.Term, Index: run.Last()}
	}
	out.Runs = rows
	if err := m.err(); err != nil {
		out.Runs = rows[:0]
		return runs[:0], err
	}
	return runs, nil
}

// run reads one run, which must follow prev.
func (m *Message) run(prev engine.LogID, termMax uint64) Run {
	extra := m.r.ArrayMin(5)
	run := Run{Term: m.r.Uint(), First: m.r.Uint()}
	count := m.r.Uint()
	run.Special = m.r.Bool()
	run.Body = m.r.Bin()
	m.r.Skip(extra)
	switch {
	case run.First != prev.Index+1 || prev.Index == math.MaxUint64:
		m.r.Fail("a run that does not follow")
	case run.Term < prev.Term || run.Term > termMax:
		m.r.Fail("a run of an impossible term")
	case count == 0 || count > uint64(len(run.Body)/entryBytesMin):
		m.r.Fail("a run of more entries than its body holds, or of none")
	case count > math.MaxUint64-prev.Index:
		m.r.Fail("a run past the last index")
	}
	run.Count = int(min(count, math.MaxInt))
	return run
}

// AppendResponse decodes into out.
func (m *Message) AppendResponse(node engine.NodeID, out *engine.AppendResponse) error {
	m.begin(KindAppendResponse, fieldsAppendResponse)
	f := m.r.Uint()
	*out = engine.AppendResponse{From: m.from(node), Success: f&2 != 0, Uninitialised: f&4 != 0, Waiting: f&8 != 0}
	out.Vote = m.vote(f&1 != 0)
	out.Stream = m.r.Uint()
	out.Seq = m.r.Uint()
	out.SentAt = engine.Instant(m.r.Int())
	out.Match = m.logID()
	out.Hint = m.logID()
	out.Promise = engine.Duration(m.r.Int())
	return m.err()
}

// Heartbeat decodes into out.
func (m *Message) Heartbeat(node engine.NodeID, out *engine.Heartbeat) error {
	m.begin(KindHeartbeat, fieldsHeartbeat)
	f := m.r.Uint()
	*out = engine.Heartbeat{From: m.from(node), Quiesce: f&2 != 0, Probe: f&4 != 0, Resigned: f&8 != 0}
	out.Vote = m.vote(f&1 != 0)
	out.Commit = m.logID()
	out.Round = m.r.Uint()
	out.SentAt = engine.Instant(m.r.Int())
	out.Last = m.logID()
	return m.err()
}

// HeartbeatResponse decodes into out.
func (m *Message) HeartbeatResponse(node engine.NodeID, out *engine.HeartbeatResponse) error {
	m.begin(KindHeartbeatResponse, fieldsHeartbeatResponse)
	f := m.r.Uint()
	*out = engine.HeartbeatResponse{From: m.from(node), Quiesced: f&2 != 0, Behind: f&4 != 0}
	out.Vote = m.vote(f&1 != 0)
	out.Round = m.r.Uint()
	out.SentAt = engine.Instant(m.r.Int())
	out.Promise = engine.Duration(m.r.Int())
	out.Last = m.logID()
	return m.err()
}

// SnapshotResponse decodes into out.
func (m *Message) SnapshotResponse(node engine.NodeID, out *engine.SnapshotResponse) error {
	m.begin(KindSnapshotResponse, fieldsSnapshotResponse)
	f := m.r.Uint()
	*out = engine.SnapshotResponse{From: m.from(node), Accepted: f&2 != 0}
	out.Vote = m.vote(f&1 != 0)
	out.Stream = m.r.Uint()
	out.Match = m.logID()
	return m.err()
}

// TimeoutNow decodes into out.
func (m *Message) TimeoutNow(node engine.NodeID, out *engine.TimeoutNow) error {
	m.begin(KindTimeoutNow, fieldsTimeoutNow)
	f := m.r.Uint()
	*out = engine.TimeoutNow{From: m.from(node)}
	out.Vote = m.vote(f&1 != 0)
	return m.err()
}
