package shard

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

func testDescriptor() Descriptor {
	return Descriptor{Shard: 7, Start: []byte("b"), End: []byte("m"), Version: 3, ConfVersion: 5, Replicas: []ReplicaDesc{
		{Replica: 1, Node: 11, Role: RoleVoter}, {Replica: 2, Node: 12, Role: RoleVoter}, {Replica: 3, Node: 13, Role: RoleVoter}}}
}

func TestDescriptorRoundTrip(t *testing.T) {
	for _, d := range []Descriptor{testDescriptor(), {}, {Shard: 1, Version: 1, ConfVersion: 1}} {
		b := AppendDescriptor(nil, &d)
		got, err := DecodeDescriptor(b)
		if err != nil || !reflect.DeepEqual(got, d) {
			t.Fatalf("got %v, %v; want %v", got, err, d)
		}
		for i := range b {
			if _, err := DecodeDescriptor(b[:i]); !errors.Is(err, mp.ErrMalformed) {
				t.Fatalf("cut at %d: %v", i, err)
			}
		}
		grown := append(bytes.Clone(b), 1)
		grown[0]++
		if got, err := DecodeDescriptor(grown); err != nil || !reflect.DeepEqual(got, d) {
			t.Fatalf("with a new field: %v, %v", got, err)
		}
	}
}

// Version counts before ConfVersion, for a split or merge takes ConfVersion from elsewhere, or leaves it; ProvesDead asks for Version alone
// (FAULTS R11).
func TestDescriptorNewer(t *testing.T) {
	at := func(version, conf uint64) *Descriptor {
		return &Descriptor{Shard: 7, Version: version, ConfVersion: conf}
	}
	for _, c := range []struct {
		d, o         *Descriptor
		newer, older bool
	}{
		{at(2, 1), at(1, 5), true, false},
		{at(2, 2), at(2, 1), true, false},
		{at(2, 2), at(2, 2), false, false},
		{at(3, 1), at(2, 1), true, false},
	} {
		if c.d.Newer(c.o) != c.newer || c.o.Newer(c.d) != c.older {
			t.Errorf("%v and %v: newer %v, the other way %v", c.d, c.o, c.d.Newer(c.o), c.o.Newer(c.d))
		}
	}
	left := func(version, conf uint64) *Descriptor {
		d := at(version, conf)
		d.Shard, d.Start, d.End = 6, []byte("a"), []byte("c")
		return d
	}
	right := func(version, conf uint64) *Descriptor {
		d := at(version, conf)
		d.Start, d.End = []byte("b"), []byte("c")
		return d
	}
	for _, c := range []struct {
		d, x *Descriptor
		dead bool
	}{
		{left(3, 1), right(2, 9), true},
		{left(2, 9), right(2, 1), false}, // of the same split: the right one was born of what d was
		{left(2, 9), right(3, 1), false},
		{right(3, 1), left(2, 1), false}, // it begins outside
	} {
		if got := c.d.ProvesDead(c.x); got != c.dead {
			t.Errorf("%v proves %v dead: %v", c.d, c.x, got)
		}
	}
}

// A descriptor of more replicas than there may be is refused before they are read.
func TestDescriptorReplicasAreBounded(t *testing.T) {
	d := testDescriptor()
	for n := range DescriptorReplicasMax + 1 {
		d.Replicas = append(d.Replicas[:n], ReplicaDesc{Replica: engine.ReplicaID(n + 1), Node: engine.NodeID(n + 1), Role: RoleVoter})
		_, err := DecodeDescriptor(AppendDescriptor(nil, &d))
		if (err == nil) != (n < DescriptorReplicasMax) {
			t.Fatalf("%d replicas: %v", n+1, err)
		}
	}
}

func TestDescriptorRange(t *testing.T) {
	d := testDescriptor()
	for key, want := range map[string]bool{"": false, "a": false, "b": true, "lz": true, "m": false, "z": false} {
		if d.Contains([]byte(key)) != want {
			t.Errorf("contains %q: %v", key, !want)
		}
	}
	all := Descriptor{}
	for _, c := range []struct {
		d          *Descriptor
		start, end string
		want       bool
	}{{&d, "b", "m", true}, {&d, "b", "", false}, {&d, "a", "m", false}, {&d, "c", "n", false}, {&all, "", "", true}, {&all, "x", "y", true}} {
		if got := c.d.ContainsRange([]byte(c.start), []byte(c.end)); got != c.want {
			t.Errorf("%v contains [%q, %q): %v", c.d, c.start, c.end, got)
		}
	}
	if right := (&Descriptor{Start: []byte("m")}); d.Overlaps(right) || right.Overlaps(&d) || !all.Overlaps(&d) || !d.Overlaps(&all) {
		t.Error("overlaps")
	}
}

func TestDescriptorValidate(t *testing.T) {
	d := testDescriptor()
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Descriptor){
		"no id":        func(d *Descriptor) { d.Shard = 0 },
		"no version":   func(d *Descriptor) { d.Version = 0 },
		"empty range":  func(d *Descriptor) { d.End = d.Start },
		"long bound":   func(d *Descriptor) { d.End = bytes.Repeat([]byte("z"), KeyBytesMax+1) },
		"bad role":     func(d *Descriptor) { d.Replicas[0].Role = 9 },
		"same node":    func(d *Descriptor) { d.Replicas[0].Node = 12 },
		"same replica": func(d *Descriptor) { d.Replicas[0].Replica = 2 },
	} {
		d := testDescriptor()
		spoil(&d)
		if err := d.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMembershipConversion(t *testing.T) {
	p := func(n int) engine.Peer { return engine.Peer{Node: engine.NodeID(n + 10), Replica: engine.ReplicaID(n)} }
	for _, m := range []engine.Membership{
		{Voters: [][]engine.Peer{{p(1), p(2), p(3)}}},
		{Voters: [][]engine.Peer{{p(1)}}, Learners: []engine.Peer{p(2)}},
		{Voters: [][]engine.Peer{{p(1), p(2), p(3)}, {p(1), p(2), p(4)}}, Learners: []engine.Peer{p(5)}},
		{Voters: [][]engine.Peer{{p(1), p(2), p(3)}, {p(1), p(2), p(4)}}, Learners: []engine.Peer{p(3)}},
	} {
		d := Descriptor{Replicas: ReplicasOf(&m)}
		if got := MembershipOf(&d); !reflect.DeepEqual(*got, m) {
			t.Errorf("%+v came back as %+v", m, *got)
		}
	}
}

func fullWrite() Write {
	return Write{Shard: 7, Version: 3, Session: NewSessionID(1234, 5), Seq: 9, Lowest: 2,
		Conditions: []Condition{{Kind: ConditionExists, Key: []byte("a")}, {Kind: ConditionAbsent, Key: []byte("b")},
			{Kind: ConditionVersion, Key: []byte("c"), Version: 77}, {Kind: ConditionValue, Key: []byte("d"), Value: []byte("v")}},
		Ops: []Op{{Kind: OpPut, Key: []byte("k"), Value: []byte("value"), Expire: -5}, {Kind: OpDelete, Key: []byte("l")},
			{Kind: OpAdd, Key: []byte("m"), Delta: -3}}}
}

func TestWriteRoundTrip(t *testing.T) {
	rangeWrite := Write{Shard: 1, Ops: []Op{{Kind: OpDeleteRange, Key: []byte("a"), End: []byte("c"), Limit: 9}}}
	for _, w := range []Write{fullWrite(), rangeWrite} {
		b := AppendWrite(nil, &w)
		got := fullWrite() // reused
		if err := DecodeWrite(b, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Conditions) == 0 {
			got.Conditions = nil
		}
		if !reflect.DeepEqual(got, w) {
			t.Fatalf("got %+v\nwant %+v", got, w)
		}
		for i := range b {
			if err := DecodeWrite(b[:i], &got); !errors.Is(err, ErrInvalid) {
				t.Fatalf("cut at %d: %v", i, err)
			}
		}
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
	}
}

// The fingerprint must survive that a retry goes to another shard, and nothing else.
func TestFingerprintCoversTheContent(t *testing.T) {
	a, b, c := fullWrite(), fullWrite(), fullWrite()
	b.Shard, b.Version, b.Lowest = 99, 98, 5
	c.Ops[0].Value = []byte("other")
	AppendWrite(nil, &a)
	AppendWrite(nil, &b)
	AppendWrite(nil, &c)
	if a.Fingerprint != b.Fingerprint || a.Fingerprint == c.Fingerprint || a.Fingerprint == 0 {
		t.Fatalf("%x %x %x", a.Fingerprint, b.Fingerprint, c.Fingerprint)
	}
}

func TestWriteLimits(t *testing.T) {
	key := func(n int) []byte { return bytes.Repeat([]byte("k"), n) }
	put := func(k, v []byte) []Op { return []Op{{Kind: OpPut, Key: k, Value: v}} }
	many := func(n int, kind OpKind) (ops []Op) {
		for i := range n {
			ops = append(ops, Op{Kind: kind, Key: fmt.Appendf(nil, "%d", i)})
		}
		return ops
	}
	big := func(n int) (ops []Op) {
		v := make([]byte, ValueBytesMax)
		for i := range n {
			ops = append(ops, Op{Kind: OpPut, Key: fmt.Appendf(nil, "%d", i), Value: v})
		}
		return ops
	}
	for _, c := range []struct {
		name string
		w    Write
		want error
	}{
		{"longest key and value", Write{Ops: put(key(KeyBytesMax), make([]byte, ValueBytesMax))}, nil},
		{"no operations", Write{}, ErrInvalid},
		{"empty key", Write{Ops: put(nil, nil)}, ErrInvalid},
		{"key too long", Write{Ops: put(key(KeyBytesMax+1), nil)}, ErrKeyTooLarge},
		{"value too long", Write{Ops: put(key(1), make([]byte, ValueBytesMax+1))}, ErrValueTooLarge},
		{"condition key", Write{Ops: put(key(1), nil), Conditions: []Condition{{Kind: ConditionExists, Key: key(KeyBytesMax + 1)}}}, ErrKeyTooLarge},
		{"all values together", Write{Ops: big(2)}, ErrTooLarge},
		{"most operations", Write{Ops: many(WriteOpsMax, OpDelete)}, nil},
		{"too many operations", Write{Ops: many(WriteOpsMax+1, OpDelete)}, ErrTooLarge},
		{"most adds", Write{Ops: many(WriteAddsMax, OpAdd)}, nil},
		{"too many adds", Write{Ops: many(WriteAddsMax+1, OpAdd)}, ErrTooLarge},
		{"add twice", Write{Ops: append(many(2, OpAdd), many(1, OpAdd)...)}, ErrInvalid},
		{"add and put", Write{Ops: append(many(2, OpAdd), put([]byte("1"), nil)...)}, ErrInvalid},
		{"delete-range and more", Write{Ops: append(many(1, OpDeleteRange), many(1, OpAdd)...)}, ErrInvalid},
		{"delete-range limit", Write{Ops: []Op{{Kind: OpDeleteRange, Limit: DeleteRangeMax + 1}}}, ErrTooLarge},
		{"delete-range of all", Write{Ops: []Op{{Kind: OpDeleteRange}}}, nil},
		{"delete-range backwards", Write{Ops: []Op{{Kind: OpDeleteRange, Key: key(2), End: key(1)}}}, ErrInvalid},
		{"sequence 0", Write{Session: NewSessionID(1, 1), Ops: put(key(1), nil)}, ErrInvalid},
		{"lowest above", Write{Session: NewSessionID(1, 1), Seq: 1, Lowest: 2, Ops: put(key(1), nil)}, ErrInvalid},
	} {
		err := c.w.Validate()
		if c.want == nil && err != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if status, body := EncodeError(nil, err); c.want != nil && !errors.Is(DecodeError(status, body), c.want) {
			t.Errorf("%s: decoded as %v", c.name, DecodeError(status, body))
		}
		if b := AppendWrite(nil, &c.w); c.want == nil && len(b) > WriteBytesMax {
			t.Errorf("%s: a valid write of %d bytes", c.name, len(b))
		}
	}
}

// Applied differently by those who know a field and those who do not: a write must be understood completely.
func TestWriteIsStrict(t *testing.T) {
	w := Write{Shard: 1, Ops: []Op{{Kind: OpPut, Key: []byte("k")}}}
	b := AppendWrite(nil, &w)
	grown := append(bytes.Clone(b), 0)
	grown[0]++
	kind := bytes.Clone(b)
	kind[len(kind)-7] = 9
	for name, b := range map[string][]byte{"extra field": grown, "unknown operation": kind, "trailing": append(bytes.Clone(b), 0)} {
		if err := DecodeWrite(b, &w); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResultRoundTrip(t *testing.T) {
	for _, want := range []Result{{}, {Outcome: OutcomeNotInteger, Version: math.MaxUint64, Failed: 3, Values: []int64{1, -2}, More: true,
		Next: []byte("n"), Replayed: true}} {
		got := Result{Values: make([]int64, 5)}
		if err := DecodeResult(AppendResult(nil, &want), &got); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("got %+v want %+v", got, want)
		}
	}
}

func TestReadAndScanRoundTrip(t *testing.T) {
	q := Read{Shard: 3, Version: 4, StaleMs: 5, Keys: [][]byte{[]byte("a"), []byte("b"), []byte("c")}}
	var got Read
	if err := DecodeRead(AppendRead(nil, &q), &got); err != nil || !reflect.DeepEqual(got, q) {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, bad := range []Read{{}, {Keys: [][]byte{nil}}, {Keys: [][]byte{make([]byte, KeyBytesMax+1)}}, {Keys: make([][]byte, ReadKeysMax+1)}} {
		if err := DecodeRead(AppendRead(nil, &bad), &got); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d keys: %v", len(bad.Keys), err)
		}
	}
	b := AppendAnswerHeader(nil, 2)
	b = AppendAnswerEntry(b, 7, 8, []byte("value"))
	b = AppendAnswerEntry(b, 0, 0, nil)
	es, err := DecodeAnswer(b, q.Keys, nil)
	if want := []Entry{{[]byte("a"), []byte("value"), 7, 8}, {Key: []byte("b")}}; err != nil || !reflect.DeepEqual(es, want) {
		t.Fatalf("%+v, %v", es, err)
	}
	s := Scan{Shard: 1, Version: 2, StaleMs: 3, Start: []byte("a"), End: []byte("z"), Limit: 4, BytesMax: 5, Reverse: true, KeysOnly: true}
	var gs Scan
	if err := DecodeScan(AppendScan(nil, &s), &gs); err != nil || !reflect.DeepEqual(gs, s) {
		t.Fatalf("%+v, %v", gs, err)
	}
	s = Scan{Limit: 1 << 40}
	if err := DecodeScan(AppendScan(nil, &s), &gs); err != nil || gs.Limit != ScanLimitMax || gs.BytesMax != AnswerBytesMax {
		t.Fatalf("%+v, %v", gs, err)
	}
	s = Scan{Start: []byte("b"), End: []byte("a")}
	if err := DecodeScan(AppendScan(nil, &s), &gs); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
	p := Page{Entries: []Entry{{[]byte("a"), []byte("1"), 2, 3}, {[]byte("b"), []byte{}, 4, -5}}, CompleteTo: []byte("b\x00")}
	var gp Page
	if err := DecodePage(AppendPage(nil, &p), &gp); err != nil || !reflect.DeepEqual(gp, p) {
		t.Fatalf("%+v, %v", gp, err)
	}
}

func TestErrorsRoundTrip(t *testing.T) {
	d := testDescriptor()
	for _, c := range []struct{ err, is error }{
		{&NotLeaderError{Leader: 3, Addr: "h:1"}, ErrNotLeader},
		{&MovedError{Descriptors: []Descriptor{d}, NotApplied: true}, ErrShardMoved},
		{&UnavailableError{RetryAfter: 20 * time.Millisecond, Reason: "no leader"}, ErrUnavailable},
		{&SessionExpiredError{ShardTime: 99, Reused: true}, ErrSessionExpired},
		{&InvalidError{What: "x"}, ErrInvalid},
		{&TooLargeError{What: "key", Size: 9, Max: 8}, ErrKeyTooLarge},
		{&TooLargeError{What: "value", Size: 9, Max: 8}, ErrTooLarge},
		{&VoidError{What: "split of version 1.1", Now: d}, ErrVoid},
		{&ConditionError{Index: 2, Exists: true, Version: 8}, ErrConditionFailed},
		{ErrShardNotFound, ErrShardNotFound}, {ErrOverloaded, ErrOverloaded}, {ErrAmbiguous, ErrAmbiguous}, {ErrCrossShard, ErrCrossShard},
		{ErrStale, ErrStale}, {ErrNotInitialized, ErrNotInitialized}, {ErrNotInteger, ErrNotInteger}, {ErrNotFound, ErrNotFound},
	} {
		status, body := EncodeError([]byte("prefix"), c.err)
		got := DecodeError(status, body[len("prefix"):])
		if !reflect.DeepEqual(got, c.err) || !errors.Is(got, c.is) {
			t.Errorf("%v came back as %v", c.err, got)
		}
		wrapped := fmt.Errorf("shard 7: %w", c.err)
		status, body = EncodeError(nil, wrapped)
		if got := DecodeError(status, body); !errors.Is(got, c.is) {
			t.Errorf("%v came back as %v", wrapped, got)
		}
		for i := range body {
			if err := DecodeError(status, body[:i]); err == nil {
				t.Errorf("%v cut at %d is no error", c.err, i)
			}
		}
	}
	for _, sentinel := range []error{ErrNotLeader, ErrShardMoved, ErrUnavailable, ErrSessionExpired, ErrInvalid, ErrTooLarge, ErrConditionFailed} {
		status, body := EncodeError(nil, fmt.Errorf("x: %w", sentinel))
		if got := DecodeError(status, body); !errors.Is(got, sentinel) {
			t.Errorf("%v came back as %v", sentinel, got)
		}
	}
	status, body := EncodeError(nil, errors.New(strings.Repeat("x", 1<<20)))
	if err := DecodeError(status, body); status != StatusInternal || !errors.Is(err, ErrInternal) || len(body) > 2<<10 {
		t.Errorf("status %d, %d bytes", status, len(body))
	}
	if err := DecodeError(999, body); !errors.Is(err, ErrInternal) {
		t.Error(err)
	}
	if status, _ := EncodeError(nil, nil); status != StatusOK || DecodeError(StatusOK, nil) != nil {
		t.Error("no error")
	}
}

func FuzzDecode(f *testing.F) {
	w := fullWrite()
	f.Add(AppendWrite(nil, &w))
	f.Add(AppendWrite(nil, &Write{Shard: 1, Ops: []Op{{Kind: OpPut, Key: []byte("k"), Value: []byte("v")}}}))
	d := testDescriptor()
	f.Add(AppendDescriptor(nil, &d))
	f.Add(AppendScan(nil, &Scan{Start: []byte("a")}))
	f.Add(AppendPage(nil, &Page{Entries: []Entry{{Key: []byte("k"), Version: 1}}}))
	_, body := EncodeError(nil, &MovedError{Descriptors: []Descriptor{d}})
	f.Add(body)
	f.Fuzz(func(t *testing.T, b []byte) {
		checkPut(t, b)
		var w, again Write
		if DecodeWrite(b, &w) == nil {
			if err := DecodeWrite(AppendWrite(nil, &w), &again); err != nil || fmt.Sprint(again.Ops) != fmt.Sprint(w.Ops) {
				t.Fatalf("%v: %+v and %+v", err, w, again)
			}
		}
		var q Read
		_ = DecodeRead(b, &q)
		var s Scan
		_ = DecodeScan(b, &s)
		var p Page
		_ = DecodePage(b, &p)
		var res Result
		_ = DecodeResult(b, &res)
		_, _ = DecodeAnswer(b, [][]byte{nil, nil}, nil)
		_, _ = DecodeDescriptor(b)
		_, _ = DecodeSplit(b)
		for status := StatusOK + 1; status <= StatusInternal+1; status++ {
			if DecodeError(status, b) == nil {
				t.Fatalf("status %d is no error", status)
			}
		}
		r := mp.NewReader(b)
		readSessions(&r)
		_, _, _, _ = SplitEntry(b)
	})
}
