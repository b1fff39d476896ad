package shard

import (
	"errors"
	"fmt"
	"time"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
)

// The errors a shard, a node or a client answers with. Match them with errors.Is; those with a type beside them carry more,
// to be had with errors.As.
var (
	// ErrNotLeader: this replica does not lead its shard. The request had no effect. See NotLeaderError.
	ErrNotLeader = errors.New("not the leader")
	// ErrShardMoved: a key of the request is not in this shard (any more). See MovedError.
	ErrShardMoved = errors.New("shard moved")
	// ErrShardNotFound: this node has no replica of the shard. The request had no effect.
	ErrShardNotFound = errors.New("no replica of the shard on this node")
	// ErrUnavailable: nobody can serve the request now; retry later. It had no effect. See UnavailableError.
	ErrUnavailable = errors.New("unavailable")
	// ErrOverloaded: a bound on work in flight was reached. The request had no effect; retry later.
	ErrOverloaded = errors.New("overloaded")
	// ErrSessionExpired: the session of the write is too old, its window was left, or it was used for another write. This
	// attempt had no effect; what an earlier attempt did is not known. See SessionExpiredError.
	ErrSessionExpired = errors.New("session expired")
	// ErrAmbiguous: it is not known whether the write happened.
	ErrAmbiguous = errors.New("outcome unknown")
	// ErrCrossShard: the keys of an atomic request are not all in one shard. It had no effect.
	ErrCrossShard = errors.New("keys are in different shards")
	// ErrInvalid: the request makes no sense and never will. See InvalidError.
	ErrInvalid = errors.New("invalid request")
	// ErrTooLarge: a key, a value or the request is over its limit. See TooLargeError.
	ErrTooLarge = errors.New("too large")
	// ErrKeyTooLarge: as ErrTooLarge, which it also matches, of a key.
	ErrKeyTooLarge = fmt.Errorf("key %w", ErrTooLarge)
	// ErrValueTooLarge: as ErrTooLarge, which it also matches, of a value.
	ErrValueTooLarge = fmt.Errorf("value %w", ErrTooLarge)
	// ErrStale: this replica has not heard from its leader for longer than the read's bound.
	ErrStale = errors.New("staler than allowed")
	// ErrNotInitialized: the node belongs to no cluster yet.
	ErrNotInitialized = errors.New("cluster not initialized")
	// ErrNotInteger: an add met a value that is not a decimal integer of 64 bits, or the sum is none. Nothing was changed.
	ErrNotInteger = errors.New("value is not an integer, or the sum overflows")
	// ErrConditionFailed: a condition of the write did not hold. Nothing was changed. See ConditionError.
	ErrConditionFailed = errors.New("condition failed")
	// ErrNotFound: what was asked for does not exist.
	ErrNotFound = errors.New("not found")
	// ErrDenied: the caller is not known, or may not do this. The request had no effect.
	ErrDenied = errors.New("access denied")
	// ErrVoid: a step of a split or merge names versions that the shard does not have. It had no effect, and never will. See VoidError.
	ErrVoid = errors.New("void")
	// ErrInternal: the node met an error of its own; its log has more.
	ErrInternal = errors.New("internal error")
)

// NotLeaderError names the leader as far as the replica knows it.
type NotLeaderError struct {
	Leader engine.NodeID // 0: unknown
	Addr   string        // may be empty even if Leader is known
}

// Error implements error.
func (e *NotLeaderError) Error() string {
	if e.Leader == 0 {
		return "not the leader; leader unknown"
	}
	return fmt.Sprintf("not the leader; leader is node %d %s", e.Leader, e.Addr)
}

// Is matches ErrNotLeader.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// MovedError carries the descriptors that the sender lacks.
type MovedError struct {
	Descriptors []Descriptor
	// NotApplied: the shard owns the first key of the write and vouches that the write was not applied and never will be under
	// this sequence number, so it may be cut anew (rule Cluster1). Without it an earlier attempt may have been applied
	// before the key moved: retry under the same sequence number at the new owner.
	NotApplied bool
}

// Error implements error.
func (e *MovedError) Error() string {
	return fmt.Sprintf("shard moved: %d newer descriptors", len(e.Descriptors))
}

// Is matches ErrShardMoved.
func (e *MovedError) Is(target error) bool { return target == ErrShardMoved }

// VoidError says what was void, and what the shard is instead (rule Cluster6).
type VoidError struct {
	What string
	Now  Descriptor
}

// Error implements error.
func (e *VoidError) Error() string {
	return fmt.Sprintf("%s is void: shard %d is at version %d.%d", e.What, e.Now.Shard, e.Now.Version, e.Now.ConfVersion)
}

// Is matches ErrVoid.
func (e *VoidError) Is(target error) bool { return target == ErrVoid }

// UnavailableError says when to try again, and why.
type UnavailableError struct {
	RetryAfter time.Duration
	Reason     string
}

// Error implements error.
func (e *UnavailableError) Error() string {
	if e.Reason == "" {
		return "unavailable"
	}
	return "unavailable: " + e.Reason
}

// Is matches ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// SessionExpiredError carries the shard's time, so that a client whose clock is wrong can issue its next session by it.
type SessionExpiredError struct {
	ShardTime int64 // unix ms
	// Reused: the sequence number was used for a different write, as by a client restored from a copy.
	Reused bool
}

// Error implements error.
func (e *SessionExpiredError) Error() string {
	if e.Reused {
		return "session expired: its sequence number was used for another write"
	}
	return "session expired"
}

// Is matches ErrSessionExpired.
func (e *SessionExpiredError) Is(target error) bool { return target == ErrSessionExpired }

// InvalidError says what is wrong.
type InvalidError struct{ What string }

// Error implements error.
func (e *InvalidError) Error() string { return "invalid request: " + e.What }

// Is matches ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

func invalid(format string, a ...any) error { return &InvalidError{What: fmt.Sprintf(format, a...)} }

// TooLargeError says what is over which limit.
type TooLargeError struct {
	What string // "key", "value", "request", …
	Size uint64
	Max  uint64
}

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s too large: %d, the limit is %d", e.What, e.Size, e.Max)
}

// Is matches ErrTooLarge, and ErrKeyTooLarge or ErrValueTooLarge if that is what it is about.
func (e *TooLargeError) Is(target error) bool {
	return target == ErrTooLarge || target == ErrKeyTooLarge && e.What == "key" || target == ErrValueTooLarge && e.What == "value"
}

// ConditionError tells which condition did not hold, and what was found.
type ConditionError struct {
	Index   int    // of the condition
	Exists  bool   // whether the key existed
	Version uint64 // of the key, 0 if it did not exist
}

// Error implements error.
func (e *ConditionError) Error() string { return fmt.Sprintf("condition %d failed", e.Index) }

// Is matches ErrConditionFailed.
func (e *ConditionError) Is(target error) bool { return target == ErrConditionFailed }

// Status is the status of an RPC answer: OK, or which error its body describes. Sent: never renumber.
type Status uint16

// The statuses.
const (
	StatusOK Status = iota
	StatusNotLeader
	StatusShardMoved
	StatusShardNotFound
	StatusUnavailable
	StatusOverloaded
	StatusSessionExpired
	StatusAmbiguous
	StatusCrossShard
	StatusInvalid
	StatusTooLarge
	StatusStale
	StatusNotInitialized
	StatusNotInteger
	StatusConditionFailed
	StatusNotFound
	StatusInternal

	StatusVoid   Status = 32
	StatusDenied Status = 33
)

// plain maps the statuses whose body is a message only.
var plain = map[Status]error{
	StatusShardNotFound: ErrShardNotFound, StatusOverloaded: ErrOverloaded, StatusAmbiguous: ErrAmbiguous,
	StatusCrossShard: ErrCrossShard, StatusStale: ErrStale, StatusNotInitialized: ErrNotInitialized,
	StatusNotInteger: ErrNotInteger, StatusNotFound: ErrNotFound, StatusInternal: ErrInternal,
	StatusDenied: ErrDenied,
}

// plainOrder is the order in which an error is compared with the sentinels of plain.
var plainOrder = []Status{StatusShardNotFound, StatusOverloaded, StatusAmbiguous, StatusCrossShard, StatusStale,
	StatusNotInitialized, StatusNotInteger, StatusNotFound, StatusDenied, StatusInternal}

// errorTextBytesMax bounds a message sent to a peer.
const errorTextBytesMax = 1 << 10

func appendText(b []byte, s string) []byte {
	return mp.AppendString(b, s[:min(len(s), errorTextBytesMax)])
}

// EncodeError appends the body that describes err, and returns its status. An error that is none of this package's is
// StatusInternal with its message.
func EncodeError(b []byte, err error) (Status, []byte) {
	var (
		notLeader *NotLeaderError
		moved     *MovedError
		unavail   *UnavailableError
		expired   *SessionExpiredError
		bad       *InvalidError
		large     *TooLargeError
		cond      *ConditionError
		void      *VoidError
	)
	switch {
	case err == nil:
		return StatusOK, b
	case err == ErrOverloaded: // a node that says so has no time for the questions below
		return StatusOverloaded, appendText(mp.AppendArray(b, 1), "")
	case errors.As(err, &notLeader):
		b = mp.AppendUint(mp.AppendArray(b, 2), uint64(notLeader.Leader))
		return StatusNotLeader, appendText(b, notLeader.Addr)
	case errors.As(err, &moved):
		ds := moved.Descriptors[:min(len(moved.Descriptors), MovedDescriptorsMax)]
		b = mp.AppendBool(mp.AppendArray(b, 2), moved.NotApplied)
		b = mp.AppendArray(b, len(ds))
		for i := range ds {
			b = AppendDescriptor(b, &ds[i])
		}
		return StatusShardMoved, b
	case errors.As(err, &void):
		return StatusVoid, AppendDescriptor(appendText(mp.AppendArray(b, 2), void.What), &void.Now)
	case errors.As(err, &unavail):
		b = mp.AppendInt(mp.AppendArray(b, 2), int64(unavail.RetryAfter/time.Millisecond))
		return StatusUnavailable, appendText(b, unavail.Reason)
	case errors.As(err, &expired):
		b = mp.AppendInt(mp.AppendArray(b, 2), expired.ShardTime)
		return StatusSessionExpired, mp.AppendBool(b, expired.Reused)
	case errors.As(err, &bad):
		return StatusInvalid, appendText(mp.AppendArray(b, 1), bad.What)
	case errors.As(err, &large):
		b = appendText(mp.AppendArray(b, 3), large.What)
		return StatusTooLarge, mp.AppendUint(mp.AppendUint(b, large.Size), large.Max)
	case errors.As(err, &cond):
		b = mp.AppendInt(mp.AppendArray(b, 3), int64(cond.Index))
		return StatusConditionFailed, mp.AppendUint(mp.AppendBool(b, cond.Exists), cond.Version)
	}
	return encodePlain(b, err)
}

func encodePlain(b []byte, err error) (Status, []byte) {
	switch {
	case errors.Is(err, ErrNotLeader):
		return EncodeError(b, &NotLeaderError{})
	case errors.Is(err, ErrShardMoved):
		return EncodeError(b, &MovedError{})
	case errors.Is(err, ErrUnavailable):
		return EncodeError(b, &UnavailableError{Reason: err.Error()})
	case errors.Is(err, ErrSessionExpired):
		return EncodeError(b, &SessionExpiredError{})
	case errors.Is(err, ErrInvalid):
		return EncodeError(b, &InvalidError{What: err.Error()})
	case errors.Is(err, ErrTooLarge):
		return EncodeError(b, &TooLargeError{What: "request"})
	case errors.Is(err, ErrConditionFailed):
		return EncodeError(b, &ConditionError{})
	}
	for _, s := range plainOrder {
		if errors.Is(err, plain[s]) {
			text := ""
			if err != plain[s] {
				text = err.Error()
			}
			return s, appendText(mp.AppendArray(b, 1), text)
		}
	}
	return StatusInternal, appendText(mp.AppendArray(b, 1), err.Error())
}

// textError is a sentinel with the message of another node.
type textError struct {
	text string
	is   error
}

func (e *textError) Error() string { return e.text }
func (e *textError) Unwrap() error { return e.is }

// DecodeError returns the error that an answer describes: nil for StatusOK. A body that cannot be read, and a status that this
// version does not know, are ErrInternal.
func DecodeError(s Status, body []byte) error {
	if s == StatusOK {
		return nil
	}
	r := mp.NewReader(body)
	err := decodeError(s, &r)
	if r.Err() != nil {
		return fmt.Errorf("%w: unreadable answer with status %d: %w", ErrInternal, s, r.Err())
	}
	return err
}

func decodeError(s Status, r *mp.Reader) error {
	switch s {
	case StatusNotLeader:
		r.ArrayMin(2)
		return &NotLeaderError{Leader: engine.NodeID(r.Uint()), Addr: r.String()}
	case StatusShardMoved:
		r.ArrayMin(2)
		e := &MovedError{NotApplied: r.Bool()}
		n := r.Array()
		if n > MovedDescriptorsMax {
			r.Fail("too many descriptors")
		}
		for ; n > 0 && r.Err() == nil; n-- {
			e.Descriptors = append(e.Descriptors, ReadDescriptor(r))
		}
		return e
	case StatusVoid:
		r.ArrayMin(2)
		return &VoidError{What: r.String(), Now: ReadDescriptor(r)}
	case StatusUnavailable:
		r.ArrayMin(2)
		ms := r.Int()
		return &UnavailableError{RetryAfter: time.Duration(max(0, min(ms, 60_000))) * time.Millisecond, Reason: r.String()}
	case StatusSessionExpired:
		r.ArrayMin(2)
		return &SessionExpiredError{ShardTime: r.Int(), Reused: r.Bool()}
	case StatusInvalid:
		r.ArrayMin(1)
		return &InvalidError{What: r.String()}
	case StatusTooLarge:
		r.ArrayMin(3)
		return &TooLargeError{What: r.String(), Size: r.Uint(), Max: r.Uint()}
	case StatusConditionFailed:
		r.ArrayMin(3)
		return &ConditionError{Index: int(r.Int()), Exists: r.Bool(), Version: r.Uint()}
	}
	r.ArrayMin(1)
	text := r.String()
	is, known := plain[s]
	switch {
	case !known:
		return fmt.Errorf("%w: unknown status %d: %s", ErrInternal, s, text)
	case text == "":
		return is
	}
	return &textError{text: text, is: is}
}
