package shard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
)

// splitOf makes a split of d into children from id 100 on.
func splitOf(d *Descriptor, keys ...string) *Split {
	s := &Split{Version: d.Version, ConfVersion: d.ConfVersion}
	for i, k := range keys {
		c := SplitChild{Shard: engine.ShardID(100 + i), Start: []byte(k)}
		for _, r := range d.Replicas {
			c.Replicas = append(c.Replicas, SplitReplica{Node: r.Node, Replica: engine.ReplicaID(1000*i) + 500 - r.Replica})
		}
		s.Children = append(s.Children, c)
	}
	return s
}

// split applies a split entry.
func (r *replica) split(s *Split) (*Birth, Answer) {
	r.t.Helper()
	var ans Answer
	id := engine.LogID{Term: 1, Index: r.m.Applied().Index + 1}
	b, err := r.m.ApplySplit(id, AppendSplitEntry(nil, testStamp, s), &ans)
	r.must(err)
	return b, ans
}

func TestSplitRoundTrip(t *testing.T) {
	d := bornDescriptor()
	s := splitOf(d, "b", "c\x00\xff", "x")
	kind, stamp, body, err := SplitEntry(AppendSplitEntry(nil, 77, s))
	if err != nil || kind != CommandSplit || stamp != 77 {
		t.Fatal(kind, stamp, err)
	}
	old := body // without a leader, as all were before there was one
	s.Leader = 3
	for _, body := range [][]byte{old, AppendSplit(nil, s)} {
		got, err := DecodeSplit(body)
		if err != nil {
			t.Fatal(err)
		}
		if s.Leader = got.Leader; !reflect.DeepEqual(got, s) {
			t.Fatalf("%+v", got)
		}
		for i := range body {
			if _, err := DecodeSplit(body[:i]); err == nil {
				t.Fatalf("cut at %d is accepted", i)
			}
		}
	}
	if s.Leader != 3 {
		t.Errorf("leader %d", s.Leader)
	}
}

func TestSplitVoid(t *testing.T) {
	d := bornDescriptor()
	for name, change := range map[string]func(s *Split){
		"version":       func(s *Split) { s.Version++ },
		"conf version":  func(s *Split) { s.ConfVersion-- },
		"no child":      func(s *Split) { s.Children = nil },
		"start":         func(s *Split) { s.Children[0].Start = d.Start },
		"end":           func(s *Split) { s.Children[1].Start = d.End },
		"outside":       func(s *Split) { s.Children[1].Start = append([]byte{}, 0xff, 0xff, 0xff) },
		"empty":         func(s *Split) { s.Children[0].Start = nil },
		"order":         func(s *Split) { s.Children[0].Start, s.Children[1].Start = s.Children[1].Start, s.Children[0].Start },
		"same key":      func(s *Split) { s.Children[1].Start = s.Children[0].Start },
		"same shard":    func(s *Split) { s.Children[1].Shard = s.Children[0].Shard },
		"itself":        func(s *Split) { s.Children[1].Shard = d.Shard },
		"meta":          func(s *Split) { s.Children[1].Shard = MetaShardID },
		"a node less":   func(s *Split) { s.Children[1].Replicas = s.Children[1].Replicas[1:] },
		"unknown node":  func(s *Split) { s.Children[1].Replicas[0].Node = 99 },
		"node twice":    func(s *Split) { s.Children[1].Replicas[0].Node = s.Children[1].Replicas[1].Node },
		"replica twice": func(s *Split) { s.Children[1].Replicas[0].Replica = s.Children[1].Replicas[1].Replica },
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t, d, d.Replicas[0].Replica)
			s := splitOf(d, "c", "d")
			if err := r.m.CheckSplit(s); err != nil {
				t.Fatal(err)
			}
			change(s)
			before, desc := r.m.Record(), r.m.Desc()
			b, ans := r.split(s)
			if b != nil || ans.Refused == nil || r.m.Desc() != desc || r.m.Freezing() {
				t.Fatalf("it is not void: %v", ans.Refused)
			}
			after := r.m.Record()
			if after.Applied.Index != before.Applied.Index+1 || !reflect.DeepEqual(after.Extents, before.Extents) {
				t.Fatalf("%+v", after)
			}
		})
	}
	r := newReplica(t, d, d.Replicas[0].Replica)
	ms := MembershipOf(d)
	joint := &engine.Membership{Voters: [][]engine.Peer{ms.Voters[0], ms.Voters[0][:1]}}
	r.must(r.m.ApplyMembership(engine.LogID{Term: 1, Index: 2}, joint))
	s := splitOf(r.m.Desc(), "c")
	if b, ans := r.split(s); b != nil || !errors.Is(ans.Refused, ErrVoid) {
		t.Fatalf("a split of a joint config: %v", ans.Refused)
	}
}

// TestSplitMachine splits a machine with content in the store, in the overlay and in the table, and compares parent and children with what
// the parent held; then again after the checkpoint and a restart.
func TestSplitMachine(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	d := bornDescriptor()
	r := newReplica(t, d, d.Replicas[0].Replica)
	sess := NewSessionID(testStamp, 1)
	model := map[string]string{}
	seqOf := map[string]uint64{}
	for i := range 400 {
		k := fmt.Sprintf("%c%d", 'b'+rng.IntN(8), rng.IntN(20))
		if !d.Contains([]byte(k)) {
			continue
		}
		v := fmt.Sprint(i)
		ans := r.write(in(sess, uint64(i), 0, Op{Kind: OpPut, Key: []byte(k), Value: []byte(v)}))
		if ans.Refused != nil {
			t.Fatal(ans.Refused)
		}
		model[k], seqOf[k] = v, uint64(i)
		if rng.IntN(60) == 0 {
			r.checkpoint()
		}
	}
	counter := r.m.Writes()
	b, ans := r.split(splitOf(d, "c", "c5", "e"))
	if b == nil {
		t.Fatal(ans.Refused)
	}
	parts := []*replica{r}
	for i := range b.Children {
		m := OpenChild(r.env, &b.Children[i], b)
		parts = append(parts, &replica{t: t, env: r.env, db: r.db, m: m})
	}
	check := func() {
		t.Helper()
		seen := 0
		at := d.Start
		for _, p := range parts {
			pd := p.m.Desc()
			if !bytes.Equal(pd.Start, at) || pd.Version != 2 || p.m.Writes() != counter || p.m.Time() != r.m.Time() {
				t.Fatalf("%v starts not at %q, counter %d", pd, at, p.m.Writes())
			}
			at = pd.End
			for _, e := range p.scan(Scan{Shard: pd.Shard, Version: 2, Start: pd.Start, End: pd.End}) {
				if model[string(e.Key)] != string(e.Value) || !pd.Contains(e.Key) {
					t.Fatalf("%v: %q holds %q", pd, e.Key, e.Value)
				}
				seen++
			}
		}
		if seen != len(model) || !bytes.Equal(at, d.End) {
			t.Fatalf("%d keys of %d", seen, len(model))
		}
	}
	check()
	// Retries are answered by the new owner, refused by the others.
	for k, seq := range seqOf {
		w := in(sess, seq, 0, Op{Kind: OpPut, Key: []byte(k), Value: []byte(model[k])})
		AppendWrite(nil, &w)
		for _, p := range parts {
			v, _ := p.m.sessions.check(&w, testStamp)
			if owner := p.m.Desc().Contains([]byte(k)); owner && v != verdictReplay {
				t.Fatalf("%q: row %d is lost", k, seq)
			} else if owner == (p.m.CheckWrite(&w) != nil) {
				t.Fatalf("%q at %v", k, p.m.Desc())
			}
		}
	}
	var moved *MovedError
	if err := r.m.CheckRead(&Read{Version: 2, Keys: [][]byte{[]byte("d1")}}); !errors.As(err, &moved) || len(moved.Descriptors) != 2 ||
		moved.Descriptors[1].Shard != 101 {
		t.Fatalf("%v", err)
	}
	changes := []state.Change{b.Parent}
	for i := range b.Children {
		changes = append(changes, state.Change{Record: b.Children[i].Record})
	}
	r.must(r.db.Write(changes, 0))
	for _, p := range parts {
		p.m.Release()
	}
	check()
	recs, err := r.db.Records()
	r.must(err)
	for i := range recs {
		p := parts[i]
		live := p.m.Record()
		if p.m, err = Open(r.env, &recs[i]); err != nil {
			t.Fatal(err)
		}
		if reopened := p.m.Record(); !bytes.Equal(live.Meta, reopened.Meta) || live.Applied != reopened.Applied {
			t.Fatalf("replica %v is another one after a restart", live.Key)
		}
	}
	check()
}

// TestRowParts compares the assignment of rows with the keys that they may be of.
func TestRowParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20000 {
		k := make([]byte, 1+rng.IntN(20))
		for i := range k {
			k[i] = []byte{0, 1, 'a', 0xfe, 0xff}[rng.IntN(5)]
		}
		var starts [][]byte
		for range 1 + rng.IntN(4) {
			s := bytes.Clone(k[:rng.IntN(len(k)+1)])
			for range rng.IntN(3) {
				s = append(s, []byte{0, 1, 0xff}[rng.IntN(3)])
			}
			if len(s) > 0 && (len(starts) == 0 || bytes.Compare(starts[len(starts)-1], s) < 0) {
				starts = append(starts, s)
			}
		}
		want := 0
		for want < len(starts) && bytes.Compare(starts[want], k) <= 0 {
			want++
		}
		first, last := rowParts(&row{prefix: prefixOf(k)}, starts)
		if want < first || want > last {
			t.Fatalf("key %q, starts %q: part %d, assigned to %d to %d", k, starts, want, first, last)
		}
		if len(k) < 16 && k[len(k)-1] != 0 && first != last {
			same := true // an ambiguous row needs a boundary that begins with the key
			for _, s := range starts {
				same = same && !bytes.HasPrefix(s, k)
			}
			if same {
				t.Fatalf("key %q, starts %q: assigned to %d to %d", k, starts, first, last)
			}
		}
	}
}

// The meta shard never splits or merges (rule Cluster10).
func TestMetaShardStaysWhole(t *testing.T) {
	d := *bornDescriptor()
	d.Shard = MetaShardID
	r := newReplica(t, &d, 1)
	sp := &Split{Version: d.Version, ConfVersion: d.ConfVersion, Children: []SplitChild{{Shard: 50, Start: []byte("b")}}}
	for i, x := range d.Replicas {
		sp.Children[0].Replicas = append(sp.Children[0].Replicas, SplitReplica{Node: x.Node, Replica: engine.ReplicaID(900 + i)})
	}
	sp.Children[0].Start = append(bytes.Clone(d.Start), 'x')
	other := d
	other.Shard = MetaShardID + 1
	if err := newReplica(t, &other, 1).m.CheckSplit(sp); err != nil {
		t.Fatalf("of another shard: %v", err)
	}
	if err := r.m.CheckSplit(sp); !errors.Is(err, ErrInvalid) {
		t.Errorf("split: %v", err)
	}
	step := MergeStep{Version: d.Version, ConfVersion: d.ConfVersion, Other: 50, OtherVersion: 1, OtherConfVersion: 1}
	for _, kind := range []CommandKind{CommandPrepareMerge, CommandFreeze} {
		if err := r.m.CheckMerge(kind, &step); !errors.Is(err, ErrInvalid) {
			t.Errorf("merge step %d: %v", kind, err)
		}
	}
}
