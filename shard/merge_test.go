package shard

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/store/state"
)

// mergeStepAt applies a merge step.
func (r *replica) mergeStepAt(kind CommandKind, s MergeStep) (Answer, *MergeStep) {
	r.t.Helper()
	var ans Answer
	needs, err := r.m.ApplyMergeStep(engine.LogID{Term: 1, Index: r.m.Applied().Index + 1}, AppendMergeEntry(nil, kind, testStamp, &s), &ans)
	r.must(err)
	return ans, needs
}

// TestMergeSteps walks through the states, and tries every command in every state: what is not expected is void.
func TestMergeSteps(t *testing.T) {
	d := bornDescriptor()
	all := []CommandKind{CommandPrepareMerge, CommandFreeze, CommandUnfreeze, CommandMerge, CommandAbortMerge, CommandEndMerge}
	for _, c := range []struct {
		path  []CommandKind
		legal []CommandKind
	}{
		{nil, []CommandKind{CommandPrepareMerge, CommandFreeze, CommandUnfreeze}},
		{[]CommandKind{CommandPrepareMerge}, []CommandKind{CommandMerge, CommandAbortMerge}},
		{[]CommandKind{CommandPrepareMerge, CommandAbortMerge}, []CommandKind{CommandEndMerge}},
		{[]CommandKind{CommandPrepareMerge, CommandAbortMerge, CommandEndMerge}, []CommandKind{CommandPrepareMerge, CommandFreeze, CommandUnfreeze}},
		{[]CommandKind{CommandFreeze}, []CommandKind{CommandUnfreeze}},
		{[]CommandKind{CommandFreeze, CommandUnfreeze}, []CommandKind{CommandPrepareMerge, CommandFreeze, CommandUnfreeze}},
	} {
		for _, kind := range all {
			r := newReplica(t, d, d.Replicas[0].Replica)
			step := func() MergeStep {
				return MergeStep{Version: r.m.Desc().Version, ConfVersion: r.m.Desc().ConfVersion, Other: 50, OtherVersion: 4, OtherConfVersion: 2}
			}
			for _, k := range c.path {
				if ans, _ := r.mergeStepAt(k, step()); ans.Refused != nil {
					t.Fatalf("%v: %d: %v", c.path, k, ans.Refused)
				}
			}
			legal := false
			for _, k := range c.legal {
				legal = legal || k == kind
			}
			// While the shard is in a merge a step must be of that one, and a Merge must name the versions that were prepared.
			merging := r.m.Merge().Role != MergeNone
			for name, change := range map[string]struct {
				f    func(*MergeStep)
				void bool
			}{
				"":                  {func(*MergeStep) {}, false},
				"another version":   {func(s *MergeStep) { s.Version-- }, true},
				"another conf":      {func(s *MergeStep) { s.ConfVersion++ }, true},
				"another shard":     {func(s *MergeStep) { s.Other++ }, merging},
				"a right version":   {func(s *MergeStep) { s.OtherVersion++ }, kind == CommandMerge},
				"a right conf":      {func(s *MergeStep) { s.OtherConfVersion++ }, kind == CommandMerge},
				"the shard itself":  {func(s *MergeStep) { s.Other = d.Shard }, true},
				"the meta shard":    {func(s *MergeStep) { s.Other = MetaShardID }, true},
				"both conf swapped": {func(s *MergeStep) { s.ConfVersion, s.OtherConfVersion = s.OtherConfVersion, s.ConfVersion }, true},
			} {
				s := step()
				change.f(&s)
				if err := r.m.CheckMerge(kind, &s); (err == nil) != (legal && !change.void) {
					t.Errorf("after %v: %d with %s: %v", c.path, kind, name, err)
				}
			}
			joint := *r.m.desc
			joint.Replicas = slices.Clone(joint.Replicas)
			joint.Replicas[0].Role = RoleOutgoing
			plain := r.m.desc
			r.m.setDesc(&joint)
			s := step()
			if err := r.m.CheckMerge(kind, &s); (err == nil) != (legal && kind != CommandPrepareMerge && kind != CommandFreeze) {
				t.Errorf("after %v: %d while the membership is joint: %v", c.path, kind, err)
			}
			r.m.setDesc(plain)
			// It survives a restart.
			r.checkpoint()
			before := r.m.Merge()
			r.open()
			if r.m.Merge() != before {
				t.Errorf("after %v: %+v became %+v", c.path, before, r.m.Merge())
			}
			s = step()
			desc := r.m.Desc()
			ans, needs := r.mergeStepAt(kind, s)
			if legal == (ans.Refused != nil) || (needs != nil) != (legal && kind == CommandMerge) {
				t.Errorf("after %v: %d: %v", c.path, kind, ans.Refused)
			}
			if !legal && (!errors.Is(ans.Refused, ErrVoid) || r.m.Desc() != desc || r.m.Merge() != before) {
				t.Errorf("after %v: %d is not void: %v", c.path, kind, ans.Refused)
			}
			// What raises Version makes void whatever was proposed before and comes later.
			want := desc.Version
			if legal && (kind == CommandPrepareMerge || kind == CommandUnfreeze || kind == CommandAbortMerge) {
				want++
			}
			if got := r.m.Desc().Version; got != want {
				t.Errorf("after %v: %d takes version %d to %d", c.path, kind, desc.Version, got)
			}
		}
	}
}

// TestFrozen checks that a frozen shard takes and serves nothing.
func TestFrozen(t *testing.T) {
	d := bornDescriptor()
	r := newReplica(t, d, d.Replicas[0].Replica)
	put := Write{Ops: []Op{{Kind: OpPut, Key: []byte("c"), Value: []byte("1")}}}
	r.write(put)
	r.mergeStepAt(CommandFreeze, MergeStep{Version: 1, ConfVersion: 1, Other: 50})
	before := r.m.appendMeta(nil, nil)
	if ans := r.write(put); !errors.Is(ans.Refused, ErrUnavailable) {
		t.Errorf("a write: %v", ans.Refused)
	}
	if ans := r.apply(AppendTimeEntry(nil, testStamp+1e9)); !errors.Is(ans.Refused, ErrUnavailable) {
		t.Errorf("a time entry: %v", ans.Refused)
	}
	var ans Answer
	next := func() engine.LogID { return engine.LogID{Term: 1, Index: r.m.Applied().Index + 1} }
	if b, err := r.m.ApplySplit(next(), AppendSplitEntry(nil, testStamp+1e9, splitOf(r.m.Desc(), "d")), &ans); b != nil || err != nil || ans.Refused == nil {
		t.Errorf("a split: %v, %v", ans.Refused, err)
	}
	again := AppendMergeEntry(nil, CommandFreeze, testStamp+1e9, &MergeStep{Version: 1, ConfVersion: 1, Other: 50})
	if _, err := r.m.ApplyMergeStep(next(), again, &ans); err != nil || ans.Refused == nil {
		t.Errorf("another freeze: %v, %v", ans.Refused, err)
	}
	if after := r.m.appendMeta(nil, nil); !reflect.DeepEqual(before, after) {
		t.Error("it has changed")
	}
	for _, err := range []error{r.m.CheckWrite(&put), r.m.CheckRead(&Read{Keys: [][]byte{[]byte("c")}}), r.m.CheckScan(&Scan{Start: []byte("b")})} {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	}
}

// neighbours are the two parts of a new shard, split at "e", which are in the store.
func neighbours(t *testing.T) (born *Descriptor, left, right *replica) {
	d := bornDescriptor()
	l := newReplica(t, d, d.Replicas[0].Replica)
	b, ans := l.split(splitOf(d, "e"))
	if b == nil {
		t.Fatal(ans.Refused)
	}
	r := &replica{t: t, env: l.env, db: l.db, m: OpenChild(l.env, &b.Children[0], b)}
	l.must(l.db.Write([]state.Change{b.Parent, {Record: b.Children[0].Record}}, 0))
	l.m.Release()
	r.m.Release()
	return d, l, r
}

// TestMergeMachine splits a shard, writes to both parts and merges them again: all content is there, retries of what either part has applied are
// answered by the whole, and versions and time do not go back.
func TestMergeMachine(t *testing.T) {
	d, l, r := neighbours(t)
	sess := NewSessionID(testStamp, 1)
	writes := []Write{in(sess, 1, 1, addOp("c", 5)), in(sess, 2, 1, addOp("f", 7)), in(sess, 3, 1, addOp("f", 1))}
	for i, to := range []*replica{l, r, r} {
		if ans := to.write(writes[i]); ans.Refused != nil {
			t.Fatal(ans.Refused)
		}
	}
	for range 3 { // the version of the whole is above both, also if the right one's is the higher
		if ans, _ := r.mergeStepAt(CommandUnfreeze, MergeStep{Version: r.m.Desc().Version, ConfVersion: 1, Other: d.Shard}); ans.Refused != nil {
			t.Fatal(ans.Refused)
		}
	}
	counter := r.m.Writes()
	if l.m.Writes() >= counter {
		t.Fatal("the left one has written more: the test tests less")
	}
	ld, rd := l.m.Desc(), r.m.Desc()
	step := MergeStep{Version: ld.Version, ConfVersion: ld.ConfVersion, Other: rd.Shard, OtherVersion: rd.Version, OtherConfVersion: rd.ConfVersion}
	if ans, _ := l.mergeStepAt(CommandPrepareMerge, step); ans.Refused != nil {
		t.Fatal(ans.Refused)
	}
	if ans, _ := r.mergeStepAt(CommandFreeze, MergeStep{Version: rd.Version, ConfVersion: rd.ConfVersion, Other: ld.Shard}); ans.Refused != nil {
		t.Fatal(ans.Refused)
	}
	step.Version, step.Freeze = l.m.Desc().Version, r.m.Applied()
	id := engine.LogID{Term: 1, Index: l.m.Applied().Index + 1}
	payload := AppendMergeEntry(nil, CommandMerge, testStamp, &step)
	var out Answer
	if needs, err := l.m.ApplyMergeStep(id, payload, &out); err != nil || needs == nil {
		t.Fatal(needs, err)
	}
	r.freeze()
	a, err := l.m.Absorb(id, payload, r.frozn)
	l.must(err)
	l.must(l.db.Write(a.Changes, 0))
	l.m.Absorbed(a, &out)
	for _, life := range []string{"merged", "restarted"} {
		if got := l.m.Writes(); got != counter {
			t.Errorf("%s: write counter %d, the right one had %d", life, got, counter)
		}
		if nd := l.m.Desc(); nd.Version <= max(step.Version, rd.Version) || !bytes.Equal(nd.End, d.End) {
			t.Errorf("%s: %v", life, nd)
		}
		for i := range writes {
			AppendWrite(nil, &writes[i])
			if v, _ := l.m.sessions.check(&writes[i], testStamp); v != verdictReplay {
				t.Errorf("%s: a retry of write %d: %v", life, i+1, v)
			}
		}
		if got := len(l.scan(Scan{Shard: 7, Version: l.m.Desc().Version, Start: d.Start, End: d.End})); got != 2 {
			t.Errorf("%s: %d keys", life, got)
		}
		l.open()
	}
}

// TestAbsorbRefuses: a cut of the right shard that is not the one which the Merge names stops the left replica, before anything is changed.
func TestAbsorbRefuses(t *testing.T) {
	_, l, r := neighbours(t)
	ld, rd := l.m.Desc(), r.m.Desc()
	s := MergeStep{Version: ld.Version, ConfVersion: ld.ConfVersion, Other: rd.Shard, OtherVersion: rd.Version, OtherConfVersion: rd.ConfVersion}
	l.mergeStepAt(CommandPrepareMerge, s)
	l.checkpoint()
	r.mergeStepAt(CommandFreeze, MergeStep{Version: rd.Version, ConfVersion: rd.ConfVersion, Other: ld.Shard})
	s.Version, s.Freeze = l.m.Desc().Version, r.m.Applied()
	r.freeze()
	id := engine.LogID{Term: 1, Index: l.m.Applied().Index + 1}
	payload := AppendMergeEntry(nil, CommandMerge, testStamp, &s)
	for name, change := range map[string]func(*Machine){
		"":                        func(*Machine) {},
		"not frozen":              func(m *Machine) { m.merge = nil },
		"frozen for another":      func(m *Machine) { m.merge.Other++ },
		"frozen at another entry": func(m *Machine) { m.merge.Freeze.Index++ },
		"no neighbour":            func(m *Machine) { m.desc.Start = []byte("f") },
		"another version":         func(m *Machine) { m.desc.Version++ },
	} {
		l.open()
		right := *r.frozn
		m, err := Open(nil, &right.Record)
		l.must(err)
		change(m)
		right.Record = m.Record()
		a, err := l.m.Absorb(id, payload, &right)
		if name == "" {
			if err != nil || a == nil || l.m.Stopped() != nil {
				t.Errorf("the right one: %v", err)
			}
			continue
		}
		if !errors.Is(err, ErrBadRecord) || a != nil || l.m.Stopped() == nil || l.m.Freezing() {
			t.Errorf("%s: %v, stopped %v", name, err, l.m.Stopped())
		}
	}
}

// TestUniteSessions splits a table at random keys and unites it again: every row is still answered; what one part has forgotten is refused.
func TestUniteSessions(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	var table sessions
	var writes []Write
	for s := range 5 {
		id := NewSessionID(testStamp, uint64(s))
		for seq := range uint64(50) {
			w := in(id, seq, 0, addOp(string(rune('b'+rng.IntN(8)))+"x", 1))
			AppendWrite(nil, &w)
			table.record(&w, &Result{Outcome: OutcomeApplied, Values: []int64{int64(seq)}})
			writes = append(writes, w)
		}
	}
	parts := table.partition([][]byte{[]byte("d"), []byte("f")})
	left := uniteSessions(&parts[0], &parts[1])
	whole := uniteSessions(&left, &parts[2])
	if whole.rows != table.rows || len(whole.list) != len(table.list) {
		t.Fatalf("%d rows of %d", whole.rows, table.rows)
	}
	for i := range writes {
		if v, _ := whole.check(&writes[i], testStamp); v != verdictReplay {
			t.Fatalf("row %d: %v", i, v)
		}
	}
	for i, forgets := range []string{"left", "right"} {
		parts := table.partition([][]byte{[]byte("d"), []byte("f")})
		parts[i].evictOldest(nil)
		whole := uniteSessions(&parts[0], &parts[1])
		if v, _ := whole.check(&writes[0], testStamp); v != verdictExpired {
			t.Errorf("a session that the %s part has forgotten: %v", forgets, v)
		}
		if whole.list[0].id == writes[0].Session {
			t.Errorf("a session that the %s part has forgotten is in the table", forgets)
		}
		if v, _ := whole.check(&writes[60], testStamp); v == verdictExpired {
			t.Errorf("another session is gone too")
		}
	}
}
