package raftlog

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

func testRun() Run {
	run := Run{Term: 3, First: 5, Count: 3, Special: true}
	run.Body = AppendEntry(run.Body, engine.EntryBlank, nil)
	run.Body = AppendEntry(run.Body, engine.EntryNormal, []byte("hello"))
	run.Body = AppendEntry(run.Body, engine.EntryNormal, bytes.Repeat([]byte("x"), 300))
	return run
}

// allRecords encodes one of each kind.
func allRecords() []byte {
	k := Key{Shard: 300, Replica: 2}
	id := engine.LogID{Term: 3, Index: 7}
	v := engine.Vote{Term: 9, Peer: engine.Peer{Node: 1, Replica: 2}, Committed: true}
	b := appendRun(appendKey(nil, recAppend, k), k, testRun())
	b = appendRun(appendKey(b, recAppendSpecial, k), k, testRun())
	b = appendVote(appendKey(b, recVote, k), v)
	b = appendLogID(appendKey(b, recCommitted, k), id)
	b = append(appendKey(b, recTruncate, k), 7)
	b = appendLogID(appendKey(b, recPurge, k), id)
	b = appendLogID(appendKey(b, recPurgeAll, k), id)
	b = appendLogID(appendVote(appendKey(b, recInit, k), v), id)
	b = appendKey(b, recDrop, k)
	b = appendLogID(appendLogID(appendVote(appendKey(b, recRewrite, k), v), id), engine.LogID{Term: 1, Index: 4})
	return appendRun(append(b, 1, 1), k, testRun())
}

func TestRecordsRoundTrip(t *testing.T) {
	b := allRecords()
	r := recordReader{b: b}
	var rec record
	for kind := byte(recAppend); kind <= recRewrite; kind++ {
		if !r.next(&rec) || rec.kind != kind || rec.key != (Key{Shard: 300, Replica: 2}) {
			t.Fatalf("kind %d read as %+v, %v", kind, rec, r.err)
		}
		for _, run := range rec.runs {
			want := testRun()
			if run.term != 3 || run.first != 5 || run.count != 3 || !bytes.Equal(b[run.off:run.off+run.size], want.Body) {
				t.Fatalf("kind %d: run %+v", kind, run)
			}
		}
	}
	if r.next(&rec) || r.err != nil {
		t.Fatal(r.err)
	}
}

func FuzzRecords(f *testing.F) {
	all := allRecords()
	f.Add(all)
	for i := 0; i < len(all); i += 7 {
		f.Add(all[:i])
		bad := bytes.Clone(all)
		bad[i] ^= 0xff
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := newReplay()
		r := recordReader{b: b}
		for r.next(&p.rec) {
			for _, run := range p.rec.runs {
				if int(run.off)+int(run.size) > len(b) || run.count == 0 {
					t.Fatalf("run out of bounds: %+v of %d bytes", run, len(b))
				}
			}
			if p.apply(&p.rec, 1, 0) != nil {
				break
			}
		}
		_ = p.check()
		for _, rep := range p.replicas {
			rep.termRuns()
		}
	})
}

func FuzzFrame(f *testing.F) {
	frame := append(make([]byte, frameHeaderSize), allRecords()...)
	h := frameHeader{length: uint32(len(frame) - frameHeaderSize), seq: 5}
	h.put(frame, 77)
	f.Add(frame)
	f.Add(frame[:len(frame)-1])
	f.Add(make([]byte, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, records, ok := readFrame(b, 77); ok && (int(h.length) != len(records) || len(records) > len(b)) {
			t.Fatal("frame out of bounds")
		}
		if sh, err := readSegmentHeader(b); err == nil && !bytes.Equal(sh.append(nil), b[:segmentHeaderSize]) {
			t.Fatal("segment header does not round-trip")
		}
	})
}

func FuzzEntries(f *testing.F) {
	f.Add(testRun().Body)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, _, err := CountEntries(b)
		if err != nil {
			return
		}
		var again []byte
		for it := NewIter(b); it.Next(); {
			again = AppendEntry(again, it.Kind, it.Payload)
		}
		if c, _, err := CountEntries(again); c != n || err != nil {
			t.Fatal("entries do not round-trip")
		}
		if skipEntries(b, n) != len(b) {
			t.Fatal("skipEntries ends elsewhere")
		}
	})
}

func TestEntrySize(t *testing.T) {
	for _, n := range []int{0, 1, 126, 127, 128, 16382, 16383, 16384, 1 << 21} {
		if got := len(AppendEntry(nil, 0, make([]byte, n))); got != EntrySize(n) {
			t.Errorf("an entry of %d takes %d, EntrySize says %d", n, got, EntrySize(n))
		}
	}
}

func TestMembershipRoundTrip(t *testing.T) {
	for _, m := range []engine.Membership{
		{},
		{Voters: [][]engine.Peer{{{Node: 1, Replica: 2}}}},
		{Voters: [][]engine.Peer{{{Node: 1, Replica: 2}, {Node: 3, Replica: 400}}, {{Node: 5, Replica: 6}}}, Learners: []engine.Peer{{Node: 1 << 40, Replica: 9}}},
	} {
		r := mp.NewReader(AppendMembership(nil, &m))
		if got := ReadMembership(&r); r.Finish() != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v read as %+v, %v", m, got, r.Err())
		}
	}
}

func FuzzMembership(f *testing.F) {
	m := engine.Membership{Voters: [][]engine.Peer{{{Node: 1, Replica: 2}}, {{Node: 3, Replica: 4}}}}
	f.Add(AppendMembership(nil, &m))
	f.Add([]byte{0x92, 0xdd, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := mp.NewReader(b)
		ReadMembership(&r)
	})
}
