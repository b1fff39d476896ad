package wire

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

const node = engine.NodeID(77)

// gen makes random messages; big draws from all of uint64 so that every integer width occurs.
type gen struct{ *rand.Rand }

func newGen(t testing.TB) gen {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return gen{rand.New(rand.NewPCG(seed, 1))}
}

func (g gen) num() uint64 { return g.Uint64() >> g.IntN(64) }
func (g gen) yes() bool   { return g.IntN(2) == 0 }
func (g gen) id() engine.LogID {
	return engine.LogID{Term: g.num(), Index: g.num()}
}
func (g gen) vote() engine.Vote {
	return engine.Vote{Term: g.num(), Committed: g.yes(),
		Peer: engine.Peer{Node: engine.NodeID(g.num()), Replica: engine.ReplicaID(g.num())}}
}
func (g gen) header() Header {
	return Header{Shard: engine.ShardID(g.num()), From: engine.ReplicaID(g.num()), To: engine.ReplicaID(g.num())}
}
func (g gen) instant() engine.Instant { return engine.Instant(g.num() >> 1) }

func (g gen) append() (engine.AppendRequest, []Run) {
	m := engine.AppendRequest{Vote: g.vote(), Commit: g.id(), Stream: g.num(), Seq: g.num(), SentAt: g.instant()}
	m.Vote.Term |= 1 << 20
	m.Prev = engine.LogID{Term: 1 + g.Uint64N(1<<19), Index: g.num() >> 2}
	last := m.Prev
	var runs []Run
	for range g.IntN(5) {
		r := Run{Term: min(last.Term+g.Uint64N(2), m.Vote.Term), First: last.Index + 1, Count: 1 + g.IntN(300), Special: g.yes()}
		r.Body = make([]byte, r.Count*2+g.IntN(70000)>>g.IntN(17))
		for i := range r.Body {
			r.Body[i] = byte(g.Uint32())
		}
		runs = append(runs, r)
		last = engine.LogID{Term: r.Term, Index: r.Last()}
	}
	return m, runs
}

// one appends a random message of the kind and returns what decoding must yield.
func (g gen) one(b []byte, kind Kind, h Header) ([]byte, any, []Run) {
	from := engine.Peer{Node: node, Replica: h.From}
	switch kind {
	case KindVoteRequest:
		m := &engine.VoteRequest{From: from, Pre: g.yes(), Vote: g.vote(), LastLog: g.id(), TransferOf: g.vote()}
		return AppendVoteRequest(b, h, m), m, nil
	case KindVoteResponse:
		m := &engine.VoteResponse{From: from, Pre: g.yes(), Granted: g.yes(), Request: g.vote(), Vote: g.vote(), LiveLeader: g.yes()}
		return AppendVoteResponse(b, h, m), m, nil
	case KindAppendRequest:
		m, runs := g.append()
		m.From = from
		return AppendAppendRequest(b, h, &m, runs), &m, runs
	case KindAppendResponse:
		m := &engine.AppendResponse{From: from, Vote: g.vote(), Stream: g.num(), Seq: g.num(), SentAt: g.instant(), Success: g.yes(),
			Match: g.id(), Hint: g.id(), Uninitialised: g.yes(), Waiting: g.yes(), Promise: engine.Duration(g.num() >> 1)}
		return AppendAppendResponse(b, h, m), m, nil
	case KindHeartbeat:
		m := &engine.Heartbeat{From: from, Vote: g.vote(), Commit: g.id(), Round: g.num(), SentAt: -g.instant(), Quiesce: g.yes(),
			Last: g.id(), Probe: g.yes(), Resigned: g.yes()}
		return AppendHeartbeat(b, h, m), m, nil
	case KindHeartbeatResponse:
		m := &engine.HeartbeatResponse{From: from, Vote: g.vote(), Round: g.num(), SentAt: g.instant(), Promise: engine.Duration(g.num() >> 1),
			Quiesced: g.yes(), Last: g.id(), Behind: g.yes()}
		return AppendHeartbeatResponse(b, h, m), m, nil
	case KindSnapshotResponse:
		m := &engine.SnapshotResponse{From: from, Vote: g.vote(), Stream: g.num(), Accepted: g.yes(), Match: g.id()}
		return AppendSnapshotResponse(b, h, m), m, nil
	}
	m := &engine.TimeoutNow{From: from, Vote: g.vote()}
	return AppendTimeoutNow(b, h, m), m, nil
}

// decode decodes whatever kind m is, into a fresh struct.
func decode(m *Message) (any, []Run, error) {
	switch m.Kind {
	case KindVoteRequest:
		v := new(engine.VoteRequest)
		return v, nil, m.VoteRequest(node, v)
	case KindVoteResponse:
		v := new(engine.VoteResponse)
		return v, nil, m.VoteResponse(node, v)
	case KindAppendRequest:
		v := new(engine.AppendRequest)
		runs, err := m.AppendRequest(node, v, nil)
		return v, runs, err
	case KindAppendResponse:
		v := new(engine.AppendResponse)
		return v, nil, m.AppendResponse(node, v)
	case KindHeartbeat:
		v := new(engine.Heartbeat)
		return v, nil, m.Heartbeat(node, v)
	case KindHeartbeatResponse:
		v := new(engine.HeartbeatResponse)
		return v, nil, m.HeartbeatResponse(node, v)
	case KindSnapshotResponse:
		v := new(engine.SnapshotResponse)
		return v, nil, m.SnapshotResponse(node, v)
	case KindTimeoutNow:
		v := new(engine.TimeoutNow)
		return v, nil, m.TimeoutNow(node, v)
	}
	return nil, nil, nil
}

func TestRoundTrip(t *testing.T) {
	g := newGen(t)
	type want struct {
		kind Kind
		h    Header
		m    any
		runs []Run
	}
	for range 50 {
		var frame []byte
		var wants []want
		for range 40 {
			w := want{kind: Kind(1 + g.IntN(8)), h: g.header()}
			frame, w.m, w.runs = g.one(frame, w.kind, w.h)
			wants = append(wants, w)
		}
		r := NewReader(frame)
		var m Message
		for i, w := range wants {
			if !r.Next(&m) || m.Kind != w.kind || m.Header != w.h {
				t.Fatalf("message %d: %v %+v, want %v %+v: %v", i, m.Kind, m.Header, w.kind, w.h, r.Err())
			}
			var again Message
			if err := ParseMessage(m.Bytes(), &again); err != nil || again.Header != m.Header || again.Kind != m.Kind {
				t.Fatalf("message %d parsed again: %v", i, err)
			}
			got, runs, err := decode(&m)
			if err != nil {
				t.Fatal(err)
			}
			checkSame(t, got, runs, w.m, w.runs)
		}
		if r.Next(&m) || r.Err() != nil {
			t.Fatalf("more than was written: %v", r.Err())
		}
	}
}

func checkSame(t *testing.T, got any, runs []Run, want any, wantRuns []Run) {
	t.Helper()
	if a, ok := got.(*engine.AppendRequest); ok {
		checkTermRuns(t, a.Runs, wantRuns)
		a.Runs, a.Memberships, a.Barriers = nil, nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
	if len(runs) != len(wantRuns) {
		t.Fatalf("%d runs, want %d", len(runs), len(wantRuns))
	}
	for i := range runs {
		if !bytes.Equal(runs[i].Body, wantRuns[i].Body) {
			t.Fatalf("run %d: another body", i)
		}
		g, w := runs[i], wantRuns[i]
		g.Body, w.Body = nil, nil
		if !reflect.DeepEqual(g, w) {
			t.Fatalf("run %d: %+v, want %+v", i, g, w)
		}
	}
}

func checkTermRuns(t *testing.T, rows []engine.TermRun, runs []Run) {
	t.Helper()
	i := 0
	for k, row := range rows {
		if k > 0 && rows[k-1].Term == row.Term {
			t.Fatalf("two rows of term %d", row.Term)
		}
		next := row.First
		for ; i < len(runs) && runs[i].Term == row.Term; i++ {
			if runs[i].First != next {
				t.Fatalf("row %+v does not match its runs", row)
			}
			next = runs[i].Last() + 1
		}
		if next != row.Last+1 {
			t.Fatalf("row %+v ends at %d", row, next-1)
		}
	}
	if i != len(runs) {
		t.Fatalf("rows cover %d of %d runs", i, len(runs))
	}
}

// What we write, the library parses.
func TestLibraryReadsIt(t *testing.T) {
	g := newGen(t)
	for kind := KindVoteRequest; kind <= KindTimeoutNow; kind++ {
		for range 50 {
			h := g.header()
			b, _, runs := g.one(nil, kind, h)
			dec := msgpack.NewDecoder(bytes.NewReader(b))
			body, err := dec.DecodeBytes()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := dec.PeekCode(); err == nil {
				t.Fatal("bytes behind the bin")
			}
			var fields []any
			if err := msgpack.Unmarshal(body, &fields); err != nil {
				t.Fatalf("%v: %v", kind, err)
			}
			dec = msgpack.NewDecoder(bytes.NewReader(body))
			n, _ := dec.DecodeArrayLen()
			k, _ := dec.DecodeUint64()
			shard, _ := dec.DecodeUint64()
			from, _ := dec.DecodeUint64()
			to, err := dec.DecodeUint64()
			if err != nil || n != len(fields) || Kind(k) != kind || (Header{engine.ShardID(shard), engine.ReplicaID(from), engine.ReplicaID(to)}) != h {
				t.Fatalf("%v: the library reads another header: %v", kind, err)
			}
			if kind == KindAppendRequest {
				if rows := fields[n-1].([]any); len(rows) != len(runs) {
					t.Fatalf("the library reads %d runs of %d", len(rows), len(runs))
				}
			}
		}
	}
}

// A newer version adds fields at the end; an older one has fewer.
func TestMoreAndFewerFields(t *testing.T) {
	g := newGen(t)
	for kind := KindVoteRequest; kind <= KindTimeoutNow; kind++ {
		h := g.header()
		b, want, runs := g.one(nil, kind, h)
		r := NewReader(b)
		var m Message
		r.Next(&m)
		inner := m.Bytes()
		ir := mp.NewReader(inner)
		n := ir.Array()
		more := mp.AppendArray(nil, n+2)
		more = append(more, ir.Rest()...)
		more = mp.AppendBin(mp.AppendInt(more, -5), []byte("new"))
		if err := ParseMessage(more, &m); err != nil {
			t.Fatal(err)
		}
		got, gotRuns, err := decode(&m)
		if err != nil {
			t.Fatalf("%v with more fields: %v", kind, err)
		}
		checkSame(t, got, gotRuns, want, runs)
		fewer := append(mp.AppendArray(nil, n-1), ir.Rest()...)
		if err := ParseMessage(fewer, &m); err != nil {
			t.Fatal(err)
		}
		if _, _, err := decode(&m); !errors.Is(err, ErrMalformed) {
			t.Fatalf("%v with a field missing: %v", kind, err)
		}
	}
}

func TestUnknownKindIsSkipped(t *testing.T) {
	unknown := mp.AppendArray(nil, 5)
	for _, v := range []uint64{99, 1, 2, 3, 4} {
		unknown = mp.AppendUint(unknown, v)
	}
	frame := mp.AppendBin(nil, unknown)
	frame = AppendTimeoutNow(frame, Header{1, 2, 3}, &engine.TimeoutNow{})
	r := NewReader(frame)
	var m Message
	if !r.Next(&m) || m.Kind != 99 || m.Shard != 1 {
		t.Fatalf("%v %+v", r.Err(), m)
	}
	if !r.Next(&m) || m.Kind != KindTimeoutNow || m.To != 3 {
		t.Fatalf("%v %+v", r.Err(), m)
	}
}

// Runs that an honest leader never sends.
func TestImpossibleRuns(t *testing.T) {
	base := engine.AppendRequest{Vote: engine.Vote{Term: 5}, Prev: engine.LogID{Term: 3, Index: 10}}
	body := make([]byte, 20)
	for name, runs := range map[string][]Run{
		"gap":              {{Term: 3, First: 12, Count: 1, Body: body}},
		"overlap":          {{Term: 3, First: 10, Count: 1, Body: body}},
		"gap within":       {{Term: 3, First: 11, Count: 2, Body: body}, {Term: 3, First: 14, Count: 1, Body: body}},
		"falling term":     {{Term: 2, First: 11, Count: 1, Body: body}},
		"future term":      {{Term: 6, First: 11, Count: 1, Body: body}},
		"none":             {{Term: 3, First: 11, Count: 0, Body: body}},
		"too many entries": {{Term: 3, First: 11, Count: 11, Body: body}},
		"huge count":       {{Term: 3, First: 11, Count: math.MaxInt, Body: body}},
		"empty body":       {{Term: 3, First: 11, Count: 1}},
	} {
		t.Run(name, func(t *testing.T) { wantRefused(t, &base, runs) })
	}
	edge := base
	edge.Prev.Index = math.MaxUint64
	wantRefused(t, &edge, []Run{{Term: 3, First: 0, Count: 1, Body: body}})
	edge.Prev.Index = math.MaxUint64 - 1
	wantRefused(t, &edge, []Run{{Term: 3, First: math.MaxUint64, Count: 2, Body: body}})
}

func wantRefused(t *testing.T, a *engine.AppendRequest, runs []Run) {
	t.Helper()
	r := NewReader(AppendAppendRequest(nil, Header{}, a, runs))
	var m Message
	r.Next(&m)
	var out engine.AppendRequest
	got, err := m.AppendRequest(node, &out, nil)
	if !errors.Is(err, ErrMalformed) || len(got) != 0 || len(out.Runs) != 0 {
		t.Fatalf("got %v, %v", got, err)
	}
}

func TestWrongKind(t *testing.T) {
	r := NewReader(AppendTimeoutNow(nil, Header{}, &engine.TimeoutNow{}))
	var m Message
	r.Next(&m)
	if err := m.Heartbeat(node, new(engine.Heartbeat)); !errors.Is(err, ErrMalformed) {
		t.Fatal(err)
	}
}

func TestAppendRequestBytesMax(t *testing.T) {
	big := engine.Vote{Term: math.MaxUint64, Peer: engine.Peer{Node: math.MaxUint64, Replica: math.MaxUint64}}
	id := engine.LogID{Term: math.MaxUint64, Index: math.MaxUint64}
	m := engine.AppendRequest{Vote: big, Prev: id, Commit: id, Stream: math.MaxUint64, Seq: math.MaxUint64, SentAt: math.MaxInt64}
	h := Header{math.MaxUint64, math.MaxUint64, math.MaxUint64}
	for _, bodyBytes := range []int{0, 10, 90, 96, 255, 65000, 65376, 65535, 70000} {
		for _, n := range []int{0, 1, 2, 100} {
			runs := make([]Run, n)
			for i := range runs {
				runs[i] = Run{Term: math.MaxUint64, First: math.MaxUint64, Count: math.MaxInt, Body: make([]byte, bodyBytes)}
			}
			b := AppendAppendRequest(nil, h, &m, runs)
			if len(b) > AppendRequestBytesMax(runs) {
				t.Fatalf("%d runs of %d bytes take %d bytes, more than %d", n, bodyBytes, len(b), AppendRequestBytesMax(runs))
			}
			r := mp.NewReader(b)
			if r.Bin(); r.Finish() != nil {
				t.Fatal(r.Err())
			}
		}
	}
	for kind, b := range [][]byte{
		AppendVoteRequest(nil, h, &engine.VoteRequest{Vote: big, LastLog: id, TransferOf: big}),
		AppendAppendResponse(nil, h, &engine.AppendResponse{Vote: big, Stream: math.MaxUint64, Seq: math.MaxUint64, SentAt: math.MaxInt64, Match: id, Hint: id, Promise: math.MaxInt64}),
		AppendHeartbeat(nil, h, &engine.Heartbeat{Vote: big, Commit: id, Round: math.MaxUint64, SentAt: math.MinInt64, Last: id}),
	} {
		if len(b) > smallMax {
			t.Fatalf("%d: %d bytes", kind, len(b))
		}
	}
}

func hotMessages() (engine.AppendRequest, []Run, engine.AppendResponse, engine.Heartbeat) {
	vote := engine.Vote{Term: 9, Peer: engine.Peer{Node: 2, Replica: 3}, Committed: true}
	a := engine.AppendRequest{Vote: vote, Prev: engine.LogID{Term: 9, Index: 123456}, Commit: engine.LogID{Term: 9, Index: 123450}, Stream: 3, Seq: 99, SentAt: 1 << 50}
	runs := []Run{{Term: 9, First: 123457, Count: 1, Body: make([]byte, 160)}}
	p := engine.AppendResponse{Vote: vote, Stream: 3, Seq: 99, SentAt: 1 << 50, Success: true, Match: engine.LogID{Term: 9, Index: 123457}, Promise: 1e9}
	hb := engine.Heartbeat{Vote: vote, Commit: engine.LogID{Term: 9, Index: 123457}, Round: 4, SentAt: 1 << 50}
	return a, runs, p, hb
}

func TestNoAllocations(t *testing.T) {
	a, runs, p, hb := hotMessages()
	h := Header{Shard: 812, From: 3, To: 4}
	buf := make([]byte, 0, 4096)
	var m Message
	var inA engine.AppendRequest
	var inP engine.AppendResponse
	var inH engine.Heartbeat
	var inRuns []Run
	if n := testing.AllocsPerRun(100, func() {
		buf = AppendAppendRequest(buf[:0], h, &a, runs)
		buf = AppendAppendResponse(buf, h, &p)
		buf = AppendHeartbeat(buf, h, &hb)
		r := NewReader(buf)
		r.Next(&m)
		inRuns, _ = m.AppendRequest(node, &inA, inRuns)
		r.Next(&m)
		_ = m.AppendResponse(node, &inP)
		r.Next(&m)
		_ = m.Heartbeat(node, &inH)
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
	if len(inRuns) != 1 || inP.Match.Index != 123457 || inH.Round != 4 {
		t.Fatal("not what was written")
	}
}

// A frame never makes its reader allocate more than a small multiple of its size.
func TestBoundedAllocation(t *testing.T) {
	base := engine.AppendRequest{Vote: engine.Vote{Term: 1}, Prev: engine.LogID{Term: 1, Index: 1}}
	var runs []Run
	for i := range 20000 {
		runs = append(runs, Run{Term: 1, First: uint64(2 + i), Count: 1, Body: []byte{1, 0}})
	}
	b := AppendAppendRequest(nil, Header{}, &base, runs)
	res := testing.Benchmark(func(tb *testing.B) {
		for tb.Loop() {
			r := NewReader(b)
			var m Message
			r.Next(&m)
			if _, _, err := decode(&m); err != nil {
				tb.Fatal(err)
			}
		}
	})
	if got := res.AllocedBytesPerOp(); got > int64(60*len(b)) {
		t.Fatalf("%d bytes made the decoder allocate %d", len(b), got)
	}
}

func FuzzFrame(f *testing.F) {
	g := gen{rand.New(rand.NewPCG(1, 2))}
	for kind := KindVoteRequest; kind <= KindTimeoutNow; kind++ {
		b, _, _ := g.one(nil, kind, g.header())
		f.Add(b)
		if len(b) > 20 {
			f.Add(b[:len(b)-3])
			b[9] ^= 0xff
			f.Add(b)
		}
	}
	f.Add([]byte{0xc6, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0xc4, 5, 0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(b)
		var m Message
		for r.Next(&m) {
			got, runs, err := decode(&m)
			a, ok := got.(*engine.AppendRequest)
			if err != nil || !ok {
				continue
			}
			// What decodes, encodes to something that decodes to the same.
			b2 := AppendAppendRequest(nil, m.Header, a, runs)
			r2 := NewReader(b2)
			var m2 Message
			if !r2.Next(&m2) {
				t.Fatal(r2.Err())
			}
			got2, runs2, err := decode(&m2)
			if err != nil || !reflect.DeepEqual(got, got2) || len(runs) != len(runs2) {
				t.Fatalf("%+v\n%+v\n%v", got, got2, err)
			}
		}
	})
}

func BenchmarkAppendRequest(b *testing.B) {
	a, runs, _, _ := hotMessages()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendAppendRequest(buf[:0], Header{812, 3, 4}, &a, runs)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkDecodeAppendRequest(b *testing.B) {
	a, runs, _, _ := hotMessages()
	buf := AppendAppendRequest(nil, Header{812, 3, 4}, &a, runs)
	var m Message
	var in engine.AppendRequest
	var inRuns []Run
	b.ReportAllocs()
	for b.Loop() {
		r := NewReader(buf)
		r.Next(&m)
		inRuns, _ = m.AppendRequest(node, &in, inRuns)
	}
}

func BenchmarkSkip(b *testing.B) {
	a, runs, _, _ := hotMessages()
	buf := AppendAppendRequest(nil, Header{812, 3, 4}, &a, runs)
	var m Message
	for b.Loop() {
		r := NewReader(buf)
		r.Next(&m)
	}
}
