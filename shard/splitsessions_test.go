package shard

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
)

// TestSplitSharesSessions: children that share the sessions of their parent are as those that are read from their records, answer the same
// retries, refuse the same stray copies, and change nothing for each other.
func TestSplitSharesSessions(t *testing.T) {
	m := machineWithSessions(t, 60)
	b, parts := splitInto(t, m, 8)
	parts = append([]*Machine{m}, parts...)
	metas := make([][]byte, len(parts))
	for i, p := range parts {
		metas[i] = p.Record().Meta
		if i == 0 {
			continue
		}
		rec := b.Children[i-1].Record
		read, err := Open(m.env, &rec)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(metas[i], rec.Meta) || !bytes.Equal(read.Record().Meta, rec.Meta) {
			t.Errorf("%v is not what its record says", p.desc)
		}
	}
	write := func(i, seq uint64) *Write {
		key := sessionKey(i, seq)
		w := in(NewSessionID(testStamp, i), seq+5, 3, Op{Kind: OpPut, Key: key, Value: key})
		AppendWrite(nil, &w) // makes the fingerprint
		return &w
	}
	for i := range uint64(60) {
		for seq := range uint64(3) {
			w := write(i, seq)
			for _, p := range parts {
				want := verdictNew // who does not own the key refuses it for that
				if p.desc.Contains(w.FirstKey()) {
					want = verdictReplay
				}
				if v, _ := p.sessions.check(w, testStamp); v != want {
					t.Fatalf("%v, session %d, write %d: verdict %d, want %d", p.desc, i, seq, v, want)
				}
			}
		}
		stray := in(NewSessionID(testStamp, i), 2, 1, Op{Kind: OpPut, Key: sessionKey(i, 9), Value: nil})
		AppendWrite(nil, &stray)
		for _, p := range parts {
			if v, _ := p.sessions.check(&stray, testStamp); v != verdictExpired {
				t.Fatalf("%v, session %d: a stray copy has verdict %d", p.desc, i, v)
			}
		}
	}
	// One child writes in all sessions, forgets them, and makes others in their place.
	one := parts[3]
	for i := range uint64(60) {
		w := in(NewSessionID(testStamp, i), 100, 50, Op{Kind: OpPut, Key: one.desc.Start, Value: nil})
		AppendWrite(nil, &w)
		one.sessions.record(&w, &Result{Outcome: OutcomeApplied})
	}
	for range 30 {
		one.sessions.evictOldest(nil)
		w := in(NewSessionID(testStamp+1, uint64(len(one.sessions.list))), 1, 1, Op{Kind: OpPut, Key: one.desc.Start, Value: nil})
		AppendWrite(nil, &w)
		one.sessions.record(&w, &Result{Outcome: OutcomeApplied})
	}
	two := parts[4] // which forgets sessions that it has not written in
	for i := range uint64(60) {
		two.sessions.evictOldest(nil)
		w := in(NewSessionID(testStamp+2, i), 1, 1, Op{Kind: OpPut, Key: two.desc.Start, Value: nil})
		AppendWrite(nil, &w)
		two.sessions.record(&w, &Result{Outcome: OutcomeApplied})
	}
	for i, p := range parts {
		if p != one && p != two && !bytes.Equal(metas[i], p.Record().Meta) {
			t.Errorf("%v was changed by what others have written", p.desc)
		}
	}
}

// BenchmarkSplitSessions is a split into 1,000 of a shard to which 1,000 sessions write.
func BenchmarkSplitSessions(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		m := machineWithSessions(b, 1000)
		b.StartTimer()
		splitInto(b, m, 1000)
	}
}

// splitInto splits m into equal parts, and makes the children.
func splitInto(t testing.TB, m *Machine, parts int) (*Birth, []*Machine) {
	t.Helper()
	s := &Split{Version: m.desc.Version, ConfVersion: m.desc.ConfVersion}
	for i := 1; i < parts; i++ {
		c := SplitChild{Shard: engine.ShardID(1000 + i), Start: binary.BigEndian.AppendUint64(nil, uint64(i)*(^uint64(0)/uint64(parts)))}
		for j, r := range m.desc.Replicas {
			c.Replicas = append(c.Replicas, SplitReplica{Node: r.Node, Replica: engine.ReplicaID(10000 + 10*i + j)})
		}
		s.Children = append(s.Children, c)
	}
	var ans Answer
	at := m.applied
	at.Index++
	b, err := m.ApplySplit(at, AppendSplitEntry(nil, 0, s), &ans)
	if err != nil || b == nil {
		t.Fatal(err, ans.Refused)
	}
	var list []*Machine
	for i := range b.Children {
		list = append(list, OpenChild(m.env, &b.Children[i], b))
	}
	return b, list
}

func sessionKey(session, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, (session*3+seq)*0x9e3779b97f4a7c15)
}

// machineWithSessions is a replica of the whole key space to which so many sessions have written, a few times each.
func machineWithSessions(t testing.TB, n int) *Machine {
	t.Helper()
	d := bornDescriptor()
	d.Start, d.End = nil, nil
	r := newReplica(t, d, d.Replicas[0].Replica)
	for i := range n {
		id := NewSessionID(testStamp, uint64(i))
		for seq := range uint64(3) {
			key := sessionKey(uint64(i), seq)
			if ans := r.write(in(id, seq+5, 3, Op{Kind: OpPut, Key: key, Value: key})); ans.Refused != nil {
				t.Fatal(ans.Refused)
			}
		}
	}
	return r.m
}
