package shard

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// in makes a write of a session.
func in(s SessionID, seq, lowest uint64, ops ...Op) Write {
	return Write{Session: s, Seq: seq, Lowest: lowest, Ops: ops}
}

func addOp(key string, n int64) Op { return Op{Kind: OpAdd, Key: []byte(key), Delta: n} }

func (r *replica) write(w Write) Answer { return r.apply(entryOf(testStamp, w)) }

func expiredBy(ans Answer) *SessionExpiredError {
	var e *SessionExpiredError
	errors.As(ans.Refused, &e)
	return e
}

// A retry is answered from the table and not applied, whatever the outcome was, also after a restart.
func TestRetryIsAnsweredAndNotApplied(t *testing.T) {
	s := NewSessionID(testStamp, 1)
	writes := []Write{
		in(s, 1, 1, addOp("c", 5)),
		in(s, 2, 1, addOp("c", 1), addOp("d", 2), addOp("e", 3)),
		in(s, 3, 1, Op{Kind: OpPut, Key: []byte("f"), Value: []byte("x")}),
		in(s, 4, 1, addOp("f", 1)),
		{Session: s, Seq: 5, Lowest: 1, Conditions: []Condition{{Kind: ConditionAbsent, Key: []byte("f")}}, Ops: []Op{addOp("g", 1)}},
		in(s, 6, 1, Op{Kind: OpDeleteRange, Key: []byte("c"), End: []byte("f"), Limit: 2}),
	}
	r := newReplica(t, bornDescriptor(), 1)
	var first []Answer
	for _, w := range writes {
		first = append(first, r.write(w))
	}
	if first[3].Outcome != OutcomeNotInteger || first[4].Outcome != OutcomeConditionFailed || !first[5].More {
		t.Fatalf("%+v", first)
	}
	for range 2 {
		content, counter := r.content(), r.m.Writes()
		for i, w := range writes {
			w.Version, w.Lowest = 0, 1
			again := r.write(w)
			want := first[i]
			want.Replayed, want.Next = true, nil
			if fmt.Sprint(again) != fmt.Sprint(want) {
				t.Errorf("write %d: first %+v, then %+v", i, first[i], again)
			}
		}
		if r.content() != content || r.m.Writes() != counter {
			t.Fatal("a retry was applied")
		}
		r.checkpoint()
		r.open()
	}
}

func TestWriteWithoutSessionLeavesNoRow(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	r.write(Write{Ops: []Op{addOp("c", 1)}})
	if ans := r.write(Write{Ops: []Op{addOp("c", 1)}}); ans.Values[0] != 2 {
		t.Errorf("%+v", ans)
	}
	if s, rows := r.m.Sessions(); s+rows != 0 || r.m.SessionsExpireAt() != 0 {
		t.Errorf("%d sessions, %d rows", s, rows)
	}
}

// A client restored from a copy uses its numbers again (rule Cluster1).
func TestFingerprintMismatch(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	s := NewSessionID(testStamp, 1)
	r.write(in(s, 1, 1, addOp("c", 1)))
	if e := expiredBy(r.write(in(s, 1, 1, addOp("c", 2)))); e == nil || !e.Reused {
		t.Errorf("%+v", e)
	}
	if r.m.Writes() != 1 {
		t.Error("applied")
	}
}

// Lowest evicts; what arrives from below it is a stray copy and is refused.
func TestLowestEvicts(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	s := NewSessionID(testStamp, 1)
	for seq := uint64(1); seq <= 10; seq++ {
		r.write(in(s, seq, max(4, seq)-3, addOp("c", 1)))
	}
	if _, rows := r.m.Sessions(); rows != 4 {
		t.Errorf("%d rows", rows)
	}
	if e := expiredBy(r.write(in(s, 6, 6, addOp("c", 1)))); e == nil || e.Reused {
		t.Errorf("stray copy: %+v", e)
	}
	if ans := r.write(in(s, 7, 7, addOp("c", 1))); !ans.Replayed || ans.Values[0] != 7 {
		t.Errorf("%+v", ans)
	}
	// Out of order, with gaps: other shards have the rest.
	r.write(in(s, 30, 7, addOp("c", 1)))
	r.write(in(s, 20, 7, addOp("c", 1)))
	if ans := r.write(in(s, 20, 7, addOp("c", 1))); !ans.Replayed || ans.Values[0] != 12 {
		t.Errorf("%+v", ans)
	}
	if w := r.m.Writes(); w != 12 {
		t.Errorf("%d writes", w)
	}
}

func TestWindow(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	s := NewSessionID(testStamp, 1)
	if ans := r.write(in(s, SessionWindow, 1, addOp("c", 1))); ans.Refused != nil {
		t.Errorf("%+v", ans)
	}
	if e := expiredBy(r.write(in(s, SessionWindow+1, 1, addOp("c", 1)))); e == nil {
		t.Error("beyond the window")
	}
}

// Ids older than shard time - H are forgotten and refused, applying nothing (rule Cluster2); also those from the far future,
// which would never be forgotten.
func TestHorizon(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	s := NewSessionID(testStamp, 1)
	r.write(in(s, 1, 1, addOp("c", 1)))
	at := r.m.SessionsExpireAt()
	if at != testStamp+horizonMs+1 {
		t.Fatalf("expires at %d", at)
	}
	if ans := r.apply(entryOf(at-1, in(s, 1, 1, addOp("c", 1)))); !ans.Replayed {
		t.Errorf("%+v", ans)
	}
	r.apply(AppendTimeEntry(nil, at))
	if n, rows := r.m.Sessions(); n+rows != 0 || r.m.sessions.list != nil {
		t.Errorf("%d sessions, %d rows, table %v", n, rows, r.m.sessions.list)
	}
	if e := expiredBy(r.write(in(s, 1, 1, addOp("c", 1)))); e == nil || e.ShardTime != at {
		t.Errorf("%+v", e)
	}
	// The entry's own stamp counts: the shard's time stood still while it slept.
	young := NewSessionID(at, 2)
	r.apply(entryOf(at, in(young, 1, 1, addOp("c", 1))))
	if e := expiredBy(r.apply(entryOf(at+horizonMs+1, in(young, 2, 1, addOp("c", 1))))); e == nil {
		t.Error("expired by its own stamp, and applied")
	}
	future := NewSessionID(at+3*horizonMs, 1)
	if e := expiredBy(r.write(in(future, 1, 1, addOp("c", 1)))); e == nil {
		t.Error("session from the future")
	}
	if r.m.Writes() != 2 {
		t.Errorf("%d writes", r.m.Writes())
	}
}

// Over its bounds the table forgets the oldest session, and from then on refuses it and whoever is as old and unknown: a retry must not
// be taken for a first attempt.
func TestBoundsForgetOldest(t *testing.T) {
	var tab sessions
	record := func(id SessionID, seq, lowest uint64) {
		w := in(id, seq, lowest, addOp("c", 1))
		if v, _ := tab.check(&w, testStamp); v != verdictNew {
			t.Fatalf("session %x: verdict %d", id, v)
		}
		tab.record(&w, &Result{})
	}
	id := func(i int) SessionID { return NewSessionID(testStamp+int64(i), 7) }
	for i := 1; i <= SessionsMax+10; i++ {
		record(id(i), 1, 1)
	}
	if len(tab.list) != SessionsMax || tab.rows != SessionsMax || tab.floor != id(10) {
		t.Fatalf("%d sessions, %d rows, floor %x", len(tab.list), tab.rows, tab.floor)
	}
	for i, want := range map[int]verdict{5: verdictExpired, 10: verdictExpired, 11: verdictReplay, SessionsMax + 11: verdictNew} {
		w := in(id(i), 1, 1, addOp("c", 1))
		if v, _ := tab.check(&w, testStamp); v != want {
			t.Errorf("session %d: verdict %d, want %d", i, v, want)
		}
	}
	tab = sessions{}
	for s := range 9 {
		for seq := uint64(1); seq <= SessionWindow; seq++ {
			record(id(100-s), seq, 1) // the newest write is in the oldest session, which stays
		}
	}
	if tab.rows > SessionRowsMax || tab.rows < SessionRowsMax-SessionWindow || len(tab.list) != 8 || tab.list[0].id != id(92) {
		t.Errorf("%d sessions, %d rows", len(tab.list), tab.rows)
	}
	r := mp.NewReader(appendSessions(nil, &tab))
	if got := readSessions(&r); r.Finish() != nil || !reflect.DeepEqual(appendSessions(nil, &got), appendSessions(nil, &tab)) {
		t.Error("the table does not round-trip")
	}
}

// The same holds of a range whose end has left: its retry is answered by the owner of its first key.
func TestMovedRangeIsAnsweredByItsStart(t *testing.T) {
	wide := *bornDescriptor()
	wide.End = nil
	r := newReplica(t, &wide, 1)
	done := in(NewSessionID(testStamp, 1), 1, 1, Op{Kind: OpDeleteRange, Key: []byte("c"), End: []byte("z"), Limit: 3})
	r.write(done)
	narrow := *r.m.desc
	narrow.End = []byte("m")
	r.m.setDesc(&narrow)
	if err := r.m.CheckWrite(&done); err != nil {
		t.Fatalf("a retry must be proposed: %v", err)
	}
	if ans := r.write(done); !ans.Replayed || ans.Refused != nil {
		t.Errorf("%+v", ans)
	}
	fresh := in(NewSessionID(testStamp, 2), 1, 1, Op{Kind: OpDeleteRange, Key: []byte("c"), End: []byte("z"), Limit: 3})
	var moved *MovedError
	if ans := r.write(fresh); !errors.As(ans.Refused, &moved) || !moved.NotApplied {
		t.Errorf("%+v", ans)
	}
}

// Only the owner of the first key knows of earlier attempts; and once it has refused a write because other keys have left, it must go
// on refusing it, even if they come back (rule Cluster1).
func TestMovedWriteIsRememberedAsRefused(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	s := NewSessionID(testStamp, 1)
	w := in(s, 1, 1, addOp("c", 1), addOp("z", 1))
	if err := r.m.CheckWrite(&w); err != nil {
		t.Fatalf("must be proposed, so that it is remembered: %v", err)
	}
	bare := w
	bare.Session = SessionID{}
	if err := r.m.CheckWrite(&bare); !errors.Is(err, ErrShardMoved) {
		t.Fatal(err)
	}
	for range 2 {
		var moved *MovedError
		if ans := r.write(w); !errors.As(ans.Refused, &moved) || !moved.NotApplied || len(moved.Descriptors) != 1 {
			t.Fatalf("%+v", ans)
		}
		wide := *r.m.desc // as after a merge
		wide.End = nil
		r.m.setDesc(&wide)
	}
	if r.m.Writes() != 0 {
		t.Error("applied")
	}
	// What was applied before the other keys left is answered from the table.
	w = in(s, 2, 1, addOp("c", 1), addOp("z", 1))
	r.write(w)
	narrow := *r.m.desc
	narrow.End = []byte("m")
	r.m.setDesc(&narrow)
	if ans := r.write(w); !ans.Replayed || ans.Refused != nil {
		t.Errorf("%+v", ans)
	}
}

// Steady state: unconditional puts in a session allocate nothing, and the table stays small.
func TestApplyAllocatesNothing(t *testing.T) {
	r := newReplica(t, bornDescriptor(), 1)
	s := NewSessionID(testStamp, 1)
	const n = 1000
	var payloads [][]byte
	for i := uint64(1); i <= 3*n; i++ {
		key := fmt.Appendf(nil, "c%03d", i%100)
		payloads = append(payloads, entryOf(testStamp+int64(i), in(s, i, max(1, i-min(i-1, 60)), Op{Kind: OpPut, Key: key, Value: key})))
	}
	var ans Answer
	next := 0
	step := func() {
		id := engine.LogID{Term: 1, Index: r.m.Applied().Index + 1}
		if err := r.m.Apply(id, payloads[next], nil, &ans); err != nil || ans.Refused != nil {
			t.Fatal(err, ans)
		}
		next++
	}
	for range n {
		step()
	}
	if got := testing.AllocsPerRun(n, step); got > 0 {
		t.Errorf("%v allocations per put", got)
	}
	if _, rows := r.m.Sessions(); rows > 61 {
		t.Errorf("%d rows", rows)
	}
	if room := cap(r.m.sessions.list[0].buf); room > 4*61 {
		t.Errorf("room for %d rows", room)
	}
}

func BenchmarkApplyPut(b *testing.B) {
	for _, session := range []bool{false, true} {
		b.Run(fmt.Sprintf("session=%v", session), func(b *testing.B) {
			r := newReplica(b, bornDescriptor(), 1)
			s := NewSessionID(testStamp, 1)
			value := bytes.Repeat([]byte("v"), 128)
			var ans Answer
			var body, p []byte
			b.ReportAllocs()
			for i := uint64(1); b.Loop(); i++ {
				w := Write{Shard: 7, Ops: []Op{{Kind: OpPut, Key: []byte("c0000000"), Value: value}}}
				if session {
					w.Session, w.Seq, w.Lowest = s, i, max(1, i-min(i-1, 60))
				}
				body = AppendWrite(body[:0], &w)
				p = AppendWriteEntry(p[:0], testStamp, body)
				if err := r.m.Apply(engine.LogID{Term: 1, Index: i + 1}, p, nil, &ans); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
