package shard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// SessionID names a client's session. Its first eight bytes are the time it was issued (unix ms, big endian), so ids sort by
// age; the rest is random. The zero id is no session: such a write is not protected against being applied twice.
type SessionID [16]byte

// NewSessionID makes an id from a time in unix ms and 8 random bytes.
func NewSessionID(issuedMs int64, random uint64) SessionID {
	var id SessionID
	binary.BigEndian.PutUint64(id[:8], uint64(max(issuedMs, 1)))
	binary.BigEndian.PutUint64(id[8:], random)
	return id
}

// Issued returns when the id was issued, in unix ms.
func (id SessionID) Issued() int64 { return int64(binary.BigEndian.Uint64(id[:8])) }

// IsZero tells whether this is no session.
func (id SessionID) IsZero() bool { return id == SessionID{} }

// OpKind tells what an Op does. Stored in entries: never renumber.
type OpKind uint8

// The operations.
const (
	// OpPut sets Key to Value.
	OpPut OpKind = 1
	// OpDelete removes Key; a key that does not exist is no error.
	OpDelete OpKind = 2
	// OpDeleteRange removes the first Limit keys of [Key, End), expired ones included. It stands alone in its Write, without
	// conditions.
	OpDeleteRange OpKind = 3
	// OpAdd adds Delta to the decimal integer at Key, in the form in which an add writes it (no +, no leading zeros); an absent key
	// counts as 0. The key stands in no other operation of
	// the Write. Expiry of the key stays as it is.
	OpAdd OpKind = 4
)

// Op is one operation of a Write.
type Op struct {
	Kind  OpKind
	Key   []byte
	Value []byte // OpPut
	// Expire (OpPut) is when the key ends: > 0 at this unix ms, < 0 so many ms after the leader's stamp of the write, 0 never.
	Expire int64
	End    []byte // OpDeleteRange; empty is the end of the shard
	Limit  uint64 // OpDeleteRange; 0 is DeleteRangeMax
	Delta  int64  // OpAdd
}

// ConditionKind tells what a Condition asks. Stored in entries: never renumber.
type ConditionKind uint8

// The conditions.
const (
	ConditionExists  ConditionKind = 1
	ConditionAbsent  ConditionKind = 2
	ConditionVersion ConditionKind = 3 // the key's version is Version; 0: it is absent
	ConditionValue   ConditionKind = 4 // the key exists with exactly Value
)

// Condition must hold for a Write to be applied.
type Condition struct {
	Kind    ConditionKind
	Key     []byte
	Version uint64
	Value   []byte
}

// Write is a mini-transaction within one shard: if all conditions hold, all operations are applied, in order, as one entry.
type Write struct {
	Shard   engine.ShardID
	Version uint64 // of the descriptor, as the sender knows it
	// Session and Seq name the write for de-duplication. Lowest is the lowest sequence of the session that is unanswered:
	// what is below is never sent again and may be forgotten (rule Cluster2).
	Session    SessionID
	Seq        uint64
	Lowest     uint64
	Conditions []Condition
	Ops        []Op

	// Fingerprint is set by DecodeWrite and AppendWrite: a hash of conditions and operations as encoded, 0 without a session. It does not cover
	// what is in front of them, for that changes when a retry finds another shard.
	Fingerprint uint64
}

// FirstKey returns the key whose owner de-duplicates the write (rule Cluster1): that of the first operation.
func (w *Write) FirstKey() []byte {
	if len(w.Ops) == 0 {
		return nil
	}
	return w.Ops[0].Key
}

// Conditional tells whether applying the write needs the current value of a key.
func (w *Write) Conditional() bool {
	if len(w.Conditions) > 0 {
		return true
	}
	for i := range w.Ops {
		if w.Ops[i].Kind == OpAdd || w.Ops[i].Kind == OpDeleteRange {
			return true
		}
	}
	return false
}

// AppendWrite appends [shard, version, session, seq, lowest, [condition …], [op …]] and sets w.Fingerprint.
func AppendWrite(b []byte, w *Write) []byte {
	b = slices.Grow(b, w.sizeMax())
	b = mp.AppendArray(b, 7)
	b = mp.AppendUint(b, uint64(w.Shard))
	b = mp.AppendUint(b, w.Version)
	if w.Session.IsZero() {
		b = mp.AppendBin(b, nil)
	} else {
		b = mp.AppendBin(b, w.Session[:])
	}
	b = mp.AppendUint(b, w.Seq)
	b = mp.AppendUint(b, w.Lowest)
	body := len(b)
	b = mp.AppendArray(b, len(w.Conditions))
	for i := range w.Conditions {
		b = appendCondition(b, &w.Conditions[i])
	}
	b = mp.AppendArray(b, len(w.Ops))
	for i := range w.Ops {
		b = appendOp(b, &w.Ops[i])
	}
	w.Fingerprint = 0
	if !w.Session.IsZero() {
		w.Fingerprint = xxhash.Sum64(b[body:])
	}
	return b
}

// sizeMax is what AppendWrite appends at most: the fields of fixed size take less than so much.
func (w *Write) sizeMax() int {
	const head, each = 72, 32
	n := head + each*(len(w.Conditions)+len(w.Ops))
	for i := range w.Conditions {
		n += len(w.Conditions[i].Key) + len(w.Conditions[i].Value)
	}
	for i := range w.Ops {
		n += len(w.Ops[i].Key) + len(w.Ops[i].End) + len(w.Ops[i].Value)
	}
	return n
}

func appendCondition(b []byte, c *Condition) []byte {
	b = mp.AppendUint(mp.AppendArray(b, 3), uint64(c.Kind))
	b = mp.AppendBin(b, c.Key)
	switch c.Kind {
	case ConditionVersion:
		return mp.AppendUint(b, c.Version)
	case ConditionValue:
		return mp.AppendBin(b, c.Value)
	}
	return mp.AppendNil(b)
}

func appendOp(b []byte, o *Op) []byte {
	switch o.Kind {
	case OpPut:
		b = mp.AppendBin(mp.AppendUint(mp.AppendArray(b, 4), uint64(o.Kind)), o.Key)
		return mp.AppendInt(mp.AppendBin(b, o.Value), o.Expire)
	case OpDeleteRange:
		b = mp.AppendBin(mp.AppendUint(mp.AppendArray(b, 4), uint64(o.Kind)), o.Key)
		return mp.AppendUint(mp.AppendBin(b, o.End), o.Limit)
	case OpAdd:
		b = mp.AppendBin(mp.AppendUint(mp.AppendArray(b, 3), uint64(o.Kind)), o.Key)
		return mp.AppendInt(b, o.Delta)
	}
	return mp.AppendBin(mp.AppendUint(mp.AppendArray(b, 2), uint64(o.Kind)), o.Key)
}

// DecodeWrite reads a Write that fills all of b into w, reusing its slices. Keys and values alias b. It checks the form only, and
// strictly: a field that this version does not know would be applied differently by those that do. Limits are Validate's.
func DecodeWrite(b []byte, w *Write) error {
	if decodePut(b, w) {
		return nil
	}
	r := mp.NewReader(b)
	decodeWrite(&r, b, w)
	if err := r.Finish(); err != nil {
		return fmt.Errorf("%w: %w", &InvalidError{What: "malformed write"}, err)
	}
	return nil
}

func decodeWrite(r *mp.Reader, b []byte, w *Write) {
	r.ArrayOf(7)
	w.Shard = engine.ShardID(r.Uint())
	w.Version = r.Uint()
	w.Session = readSessionID(r)
	w.Seq = r.Uint()
	w.Lowest = r.Uint()
	body := r.Offset()
	w.Conditions, w.Ops = w.Conditions[:0], w.Ops[:0]
	for n := boundedArray(r, WriteOpsMax); n > 0 && r.Err() == nil; n-- {
		w.Conditions = append(w.Conditions, readCondition(r))
	}
	for n := boundedArray(r, WriteOpsMax); n > 0 && r.Err() == nil; n-- {
		w.Ops = append(w.Ops, readOp(r))
	}
	if len(w.Ops) > 0 && w.Ops[0].Kind == OpDeleteRange && len(w.Ops)+len(w.Conditions) > 1 {
		r.Fail("a delete-range that does not stand alone")
	}
	w.Fingerprint = 0
	if r.Err() == nil && !w.Session.IsZero() {
		w.Fingerprint = xxhash.Sum64(b[body:r.Offset()])
	}
}

// boundedArray reads the header of an array of at most max elements.
func boundedArray(r *mp.Reader, max int) int {
	n := r.Array()
	if n > max {
		r.Fail("array over its limit")
		return 0
	}
	return n
}

func readSessionID(r *mp.Reader) (id SessionID) {
	switch s := r.Bin(); len(s) {
	case 0:
	case len(id):
		copy(id[:], s)
	default:
		r.Fail("session id")
	}
	return id
}

func readCondition(r *mp.Reader) Condition {
	r.ArrayOf(3)
	c := Condition{Kind: ConditionKind(readKind(r)), Key: r.Bin()}
	switch c.Kind {
	case ConditionExists, ConditionAbsent:
		if !r.Nil() {
			r.Fail("condition argument")
		}
	case ConditionVersion:
		c.Version = r.Uint()
	case ConditionValue:
		c.Value = r.Bin()
	default:
		r.Fail("unknown condition")
	}
	return c
}

func readOp(r *mp.Reader) Op {
	n := r.Array()
	o := Op{Kind: OpKind(readKind(r)), Key: r.Bin()}
	want := 2
	switch o.Kind {
	case OpPut:
		want, o.Value, o.Expire = 4, r.Bin(), r.Int()
	case OpDelete:
	case OpDeleteRange:
		want, o.End, o.Limit = 4, r.Bin(), r.Uint()
	case OpAdd:
		want, o.Delta = 3, r.Int()
	default:
		r.Fail("unknown operation")
	}
	if n != want {
		r.Fail("length of an operation")
	}
	return o
}

func readKind(r *mp.Reader) uint8 {
	k := r.Uint()
	if k > 255 {
		r.Fail("kind")
	}
	return uint8(k)
}

// Validate checks a Write against the limits. A leader calls it before it proposes; Apply does not.
func (w *Write) Validate() error {
	if len(w.Ops) == 0 {
		return invalid("a write without operations")
	}
	if len(w.Ops) > WriteOpsMax {
		return &TooLargeError{What: "number of operations", Size: uint64(len(w.Ops)), Max: WriteOpsMax}
	}
	if len(w.Conditions) > WriteOpsMax {
		return &TooLargeError{What: "number of conditions", Size: uint64(len(w.Conditions)), Max: WriteOpsMax}
	}
	if !w.Session.IsZero() && (w.Seq == 0 || w.Lowest == 0 || w.Lowest > w.Seq) {
		return invalid("sequence %d with lowest unanswered %d", w.Seq, w.Lowest)
	}
	size := 64
	for i := range w.Conditions {
		c := &w.Conditions[i]
		if err := checkItem(c.Key, c.Value); err != nil {
			return err
		}
		size += len(c.Key) + len(c.Value) + 16
	}
	for i := range w.Ops {
		if err := w.checkOp(&w.Ops[i]); err != nil {
			return err
		}
		size += len(w.Ops[i].Key) + len(w.Ops[i].Value) + len(w.Ops[i].End) + 24
	}
	if size > WriteBytesMax {
		return &TooLargeError{What: "write", Size: uint64(size), Max: WriteBytesMax}
	}
	return w.checkAdds()
}

func (w *Write) checkOp(o *Op) error {
	if o.Kind != OpDeleteRange {
		return checkItem(o.Key, o.Value)
	}
	if err := CheckBounds(o.Key, o.End); err != nil {
		return err
	}
	switch {
	case len(w.Ops)+len(w.Conditions) > 1:
		return invalid("a delete-range stands alone in its write")
	case len(o.End) > 0 && bytes.Compare(o.Key, o.End) > 0:
		return invalid("delete-range ends before it starts")
	case o.Limit > DeleteRangeMax:
		return &TooLargeError{What: "limit of a delete-range", Size: o.Limit, Max: DeleteRangeMax}
	}
	return nil
}

// checkAdds makes sure that the result of an add does not depend on the other operations, so that all results are known before
// the first change.
func (w *Write) checkAdds() error {
	adds := 0
	for i := range w.Ops {
		if w.Ops[i].Kind != OpAdd {
			continue
		}
		if adds++; adds > WriteAddsMax {
			return &TooLargeError{What: "number of adds", Size: uint64(adds), Max: WriteAddsMax}
		}
		for j := range w.Ops {
			if j != i && bytes.Equal(w.Ops[i].Key, w.Ops[j].Key) {
				return invalid("an add and another operation on the same key in one write")
			}
		}
	}
	return nil
}

// checkItem checks the sizes of a key and its value.
func checkItem(key, value []byte) error {
	switch {
	case len(key) == 0:
		return invalid("empty key")
	case len(key) > KeyBytesMax:
		return &TooLargeError{What: "key", Size: uint64(len(key)), Max: KeyBytesMax}
	case len(value) > ValueBytesMax:
		return &TooLargeError{What: "value", Size: uint64(len(value)), Max: ValueBytesMax}
	}
	return nil
}

// Outcome tells what became of a Write. Stored in the de-duplication table: never renumber.
type Outcome uint8

// The outcomes.
const (
	OutcomeApplied Outcome = 0
	// OutcomeConditionFailed: condition Failed did not hold; nothing changed.
	OutcomeConditionFailed Outcome = 1
	// OutcomeNotInteger: operation Failed is an add to what is no integer, or the sum overflows; nothing changed.
	OutcomeNotInteger Outcome = 2
	// OutcomeMoved: some key was outside the shard; nothing changed, and never will under this sequence (rule Cluster1). Answered
	// as ErrShardMoved.
	OutcomeMoved Outcome = 3
)

// Result is the answer to a Write. A retry gets the same, but for Next.
type Result struct {
	Outcome Outcome
	// Version is the version of all keys written; for a failed condition that of its key, 0 if it is absent.
	Version uint64
	Failed  int
	// Values holds, for each add its sum, for a delete-range the number of keys removed.
	Values []int64
	// More: a delete-range removed as many as its limit allows, so there may be more: go on at Next, or from its start again
	// if Next is empty.
	More bool
	Next []byte
	// Replayed: the write had been applied before; this is the answer to a retry.
	Replayed bool
}

// Reset empties the result, keeping its memory.
func (res *Result) Reset() {
	*res = Result{Values: res.Values[:0], Next: res.Next[:0]}
}

// Err returns the result as an error: nil if the write was applied.
func (res *Result) Err() error {
	switch res.Outcome {
	case OutcomeApplied:
		return nil
	case OutcomeConditionFailed:
		return &ConditionError{Index: res.Failed, Exists: res.Version != 0, Version: res.Version}
	case OutcomeNotInteger:
		return ErrNotInteger
	case OutcomeMoved:
		return &MovedError{NotApplied: true}
	}
	return fmt.Errorf("%w: unknown outcome %d", ErrInternal, res.Outcome)
}

// AppendResult appends [outcome, version, failed, [value …], more, next, replayed].
func AppendResult(b []byte, res *Result) []byte {
	b = mp.AppendUint(mp.AppendArray(b, 7), uint64(res.Outcome))
	b = mp.AppendUint(b, res.Version)
	b = mp.AppendUint(b, uint64(res.Failed))
	b = mp.AppendArray(b, len(res.Values))
	for _, v := range res.Values {
		b = mp.AppendInt(b, v)
	}
	b = mp.AppendBool(b, res.More)
	b = mp.AppendBin(b, res.Next)
	return mp.AppendBool(b, res.Replayed)
}

// DecodeResult reads a Result into res, reusing its memory and copying what it keeps.
func DecodeResult(b []byte, res *Result) error {
	res.Reset()
	r := mp.NewReader(b)
	extra := r.ArrayMin(7)
	res.Outcome = Outcome(readKind(&r))
	res.Version = r.Uint()
	res.Failed = int(min(r.Uint(), WriteOpsMax))
	for n := boundedArray(&r, WriteOpsMax); n > 0 && r.Err() == nil; n-- {
		res.Values = append(res.Values, r.Int())
	}
	res.More = r.Bool()
	res.Next = append(res.Next, r.Bin()...)
	res.Replayed = r.Bool()
	r.Skip(extra)
	return r.Finish()
}
