package shard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/kiloraft/kiloraft/engine"
	"github.com/kiloraft/kiloraft/internal/mp"
	"github.com/kiloraft/kiloraft/store"
	"github.com/kiloraft/kiloraft/store/state"
)

// Errors of a Machine that are not answers to clients.
var (
	// ErrCold: the entry needs values that are in neither overlay. Nothing was changed: Collect names them, and Apply takes
	// them as a finished read job.
	ErrCold = errors.New("value is not in memory")
	// ErrOutOfOrder: entries must be applied one by one.
	ErrOutOfOrder = errors.New("entry applied out of order")
	// ErrBadRecord: a record's Meta cannot be read.
	ErrBadRecord = errors.New("unreadable replica record")
)

// Env is what the machines of one lane share: memory for overlays and for decoding. It belongs to the lane.
type Env struct {
	Arena state.Arena
	write Write
	page  state.Page
	items []lookup
	out   Page
	num   [24]byte
}

// Machine is the state machine of one replica.
//
// The content of the shard at Applied is: the live overlay, over the frozen one, over what the store holds as of Persisted.
//
// What applying a write looks at stands first: with thousands of shards it is in none of the CPU's caches, and each line is waited for.
type Machine struct {
	env     *Env
	desc    *Descriptor // replaced by setDesc, never changed
	applied engine.LogID
	stopped *error         // nil, or why nothing is applied any more: an entry could not be understood
	merge   *MergeState    // nil: none; replaced, never changed
	live    *state.Overlay // nil: empty
	counter uint64         // of writes that were applied: the Version of keys (rule State7)
	time    int64          // the shard's time, unix ms: the highest stamp of an applied entry (rule State8)
	// within: keys of eight bytes and more whose first eight are at or behind the first of these, and before the other, are in the shard's
	// range; of others its bounds tell.
	within   [2]uint64
	estimate estimate

	frozen   *state.Overlay // nil: empty, or nothing is frozen
	sessions sessions
	key      store.Key
	// The store holds what was applied up to persisted (rule State1), unless base says otherwise: between a split and its checkpoint.
	persisted engine.LogID
	base      *Base

	membership engine.MembershipAt
	previous   *engine.MembershipAt // nil: none, or it is not known
	extents    []state.Extent

	frozenAt engine.LogID
	freezing bool // between Freeze and Release
	// shared: the frozen overlay is that of a split, so several machines lie upon it and none may give its memory back.
	// borrowed: it is the parent's.
	shared, borrowed bool
	left             *[]*Descriptor // see gone; replaced, never changed
}

// gone are the shards that splits in this life have made, in order: hints for those who come for their keys.
func (m *Machine) gone() []*Descriptor {
	if m.left == nil {
		return nil
	}
	return *m.left
}

func (m *Machine) setGone(list []*Descriptor) {
	if m.left = nil; len(list) > 0 {
		m.left = &list
	}
}

// metaFormat is the first element of Meta.
const metaFormat = 1

// Open makes a machine from a replica's record as the store holds it.
func Open(env *Env, rec *state.Record) (*Machine, error) {
	if rec.Tombstone {
		return nil, fmt.Errorf("%w: replica %v was removed", ErrBadRecord, rec.Key)
	}
	m := &Machine{env: env, key: rec.Key, applied: rec.Applied,
		persisted:  rec.Applied,
		membership: rec.Membership, extents: rec.Extents}
	if was := rec.Previous; was.Membership != nil {
		m.previous = &was
	}
	r := mp.NewReader(rec.Meta)
	merging := r.Array() == 7
	if f := r.Uint(); f != metaFormat && r.Err() == nil {
		return nil, fmt.Errorf("%w: replica %v: format %d, this binary knows %d", ErrBadRecord, rec.Key, f, metaFormat)
	}
	desc := ReadDescriptor(&r)
	shareBounds(&desc, m.extents)
	m.setDesc(&desc)
	m.counter = r.Uint()
	m.time = r.Int()
	m.sessions = readSessions(&r)
	m.estimate = readEstimate(&r)
	if merging {
		m.setMerge(readMergeState(&r))
	}
	if err := r.Finish(); err != nil {
		return nil, fmt.Errorf("%w: replica %v: %w", ErrBadRecord, rec.Key, err)
	}
	if desc.Shard != rec.Shard {
		return nil, fmt.Errorf("%w: replica %v holds the descriptor of shard %d", ErrBadRecord, rec.Key, desc.Shard)
	}
	return m, nil
}

// shareBounds lets a new descriptor have the bounds of the extents in memory, which are the same as a rule.
func shareBounds(d *Descriptor, extents []state.Extent) {
	if len(extents) == 0 {
		return
	}
	if first := &extents[0]; bytes.Equal(first.Start, d.Start) {
		d.Start = first.Start
	}
	if last := &extents[len(extents)-1]; bytes.Equal(last.End, d.End) {
		d.End = last.End
	}
}

// appendMeta appends [format, descriptor, counter, time, sessions, estimate], and the merge if there is one. table is the sessions as encoded;
// nil: they are encoded here.
func (m *Machine) appendMeta(b, table []byte) []byte {
	n := 6
	merge := m.Merge()
	if merge.Role != MergeNone {
		n++
	}
	b = mp.AppendUint(mp.AppendArray(b, n), metaFormat)
	b = AppendDescriptor(b, m.desc)
	b = mp.AppendInt(mp.AppendUint(b, m.counter), m.time)
	if table != nil {
		b = append(b, table...)
	} else {
		b = appendSessions(b, &m.sessions)
	}
	b = appendEstimate(b, &m.estimate)
	if merge.Role != MergeNone {
		b = appendMergeState(b, &merge)
	}
	return b
}

// bornAt is the entry that every shard is born with, applied and purged (rule Split3).
var bornAt = engine.LogID{Term: 1, Index: 1}

// NewReplicaRecord returns the record with which a shard is born on a node: applied = purged = LogID{1, 1} (rule Split3), empty
// data in a new tablet. A replica is made from a descriptor only while that is the shard's first (rule Split6).
func NewReplicaRecord(desc *Descriptor, replica engine.ReplicaID, tablet state.TabletID) (state.Record, error) {
	if err := desc.Validate(); err != nil {
		return state.Record{}, err
	}
	if desc.Version != 1 || desc.ConfVersion != 1 {
		return state.Record{}, invalid("%v has moved on: its replicas are filled by snapshot or split", desc)
	}
	if _, ok := desc.Replica(replica); !ok {
		return state.Record{}, invalid("%v does not name replica %d", desc, replica)
	}
	m := Machine{key: store.Key{Shard: desc.Shard, Replica: replica}, applied: bornAt,
		membership: engine.MembershipAt{LogID: bornAt, Membership: MembershipOf(desc)},
		extents:    []state.Extent{{Start: bytes.Clone(desc.Start), End: bytes.Clone(desc.End), Tablet: tablet}}}
	m.setDesc(desc.Clone())
	return m.Record(), nil
}

// TombstoneRecord returns the record that keeps a removed replica from coming back.
func TombstoneRecord(key store.Key, applied engine.LogID) state.Record {
	return state.Record{Key: key, Applied: applied, Tombstone: true}
}

// DescriptorOf returns the descriptor in a record, as for offline inspection.
func DescriptorOf(rec *state.Record) (*Descriptor, error) {
	m, err := Open(nil, rec)
	if err != nil {
		return nil, err
	}
	return m.desc, nil
}

// Key returns the name of the replica.
func (m *Machine) Key() store.Key { return m.key }

// Desc returns the applied descriptor. It is never changed, but replaced.
func (m *Machine) Desc() *Descriptor { return m.desc }

// setDesc replaces the descriptor.
func (m *Machine) setDesc(d *Descriptor) {
	m.desc = d
	first, behind := prefix64(d.Start), uint64(math.MaxUint64)
	if len(d.End) > 0 {
		behind = prefix64(d.End)
	}
	if len(d.Start) > 8 && first < behind { // who begins like Start may be before it
		first++
	}
	m.within = [2]uint64{first, behind}
}

// contains tells whether key is in the shard's range, as Contains of the descriptor does, without a look at the bounds if it can help it.
func (m *Machine) contains(key []byte) bool {
	if len(key) >= 8 {
		if p := binary.BigEndian.Uint64(key); m.within[0] <= p && p < m.within[1] {
			return true
		}
	}
	return m.desc.Contains(key)
}

// prefix64 is the first eight bytes of key as a number, with zeros behind a shorter one.
func prefix64(key []byte) uint64 {
	var b [8]byte
	copy(b[:], key)
	return binary.BigEndian.Uint64(b[:])
}

// Applied returns the last applied entry.
func (m *Machine) Applied() engine.LogID { return m.applied }

// Persisted returns the applied entry of the record that the store holds.
func (m *Machine) Persisted() engine.LogID { return m.below().Applied }

// Membership returns the newest applied membership.
func (m *Machine) Membership() engine.MembershipAt { return m.membership }

// Previous returns the membership that was in force before that; its Membership is nil if there was none, or it is not known.
func (m *Machine) Previous() engine.MembershipAt {
	if m.previous == nil {
		return engine.MembershipAt{}
	}
	return *m.previous
}

// Extents returns where the data lies.
func (m *Machine) Extents() []state.Extent { return m.extents }

// Time returns the shard's time in unix ms (rule State8).
func (m *Machine) Time() int64 { return m.time }

// Writes returns the write counter (rule State7).
func (m *Machine) Writes() uint64 { return m.counter }

// Estimate guesses the number of keys and the bytes of keys and values.
func (m *Machine) Estimate() (keys, size uint64) { return m.estimate.guess() }

// Sessions returns how many sessions and rows the de-duplication table holds.
func (m *Machine) Sessions() (sessions, rows int) { return len(m.sessions.list), m.sessions.rows }

// SessionsExpireAt returns the shard time at which the oldest session is forgotten; 0 if there is none. An idle shard's time
// stands still: a time entry proposed then lets it drop its table.
func (m *Machine) SessionsExpireAt() int64 {
	issued, ok := m.sessions.oldest()
	if !ok {
		return 0
	}
	return issued + horizonMs + 1
}

// Dirty tells whether something was applied that is in no checkpoint yet.
func (m *Machine) Dirty() bool { return m.applied != m.Persisted() }

// LiveBytes and FrozenBytes return the memory that the overlays hold; LiveKeys the keys of the live one.
func (m *Machine) LiveBytes() int { return overlayBytes(m.live) }

// FrozenBytes returns the memory that the frozen overlay holds.
func (m *Machine) FrozenBytes() int {
	if m.borrowed {
		return 0
	}
	return overlayBytes(m.frozen)
}

// LiveKeys returns the number of keys and tombstones in the live overlay.
func (m *Machine) LiveKeys() int {
	if m.live == nil {
		return 0
	}
	return m.live.Len()
}

func overlayBytes(o *state.Overlay) int {
	if o == nil {
		return 0
	}
	return o.Bytes()
}

// Stopped returns why the machine applies nothing any more, nil if it does.
func (m *Machine) Stopped() error {
	if m.stopped == nil {
		return nil
	}
	return *m.stopped
}

// Record returns the replica's record as of Applied. It shares nothing that changes.
func (m *Machine) Record() state.Record { return m.record(nil) }

func (m *Machine) record(table []byte) state.Record {
	size := 160 + len(table)
	if m.estimate.sketch != nil {
		size += len(m.estimate.sketch)
	}
	return state.Record{Key: m.key, Applied: m.applied, Membership: m.membership, Previous: m.Previous(),
		Extents: m.extents, Meta: m.appendMeta(make([]byte, 0, size), table)}
}

// Freeze cuts a checkpoint or snapshot: what was applied until now is frozen, with its record, and new entries go to a
// fresh overlay. Writing the change makes it durable; then Release. It returns false while an earlier cut is not released.
//
// If nothing was applied since the last checkpoint the change holds the same record again.
func (m *Machine) Freeze() (state.Change, bool) {
	if m.freezing {
		return state.Change{}, false
	}
	m.freezing, m.frozenAt = true, m.applied
	m.frozen, m.live = m.live, nil
	if m.frozen != nil {
		m.frozen.Freeze()
	}
	return state.Change{Record: m.Record(), Overlay: m.frozen}, true
}

// Samples samples about max keys of each overlay.
func (m *Machine) Samples(max int) (list []state.Sample) {
	for _, o := range []*state.Overlay{m.frozen, m.live} {
		if o != nil {
			list = o.Samples(list, max)
		}
	}
	return list
}

// Freezing tells whether a cut was made and not released.
func (m *Machine) Freezing() bool { return m.freezing }

// Frozen returns the frozen overlay: nil if there is none or nothing was in it.
func (m *Machine) Frozen() *state.Overlay { return m.frozen }

// Release ends a cut after its change was committed: reads find it in the store from now on. Nobody may read the frozen
// overlay any more. (There is no way to give a cut up: what was frozen must be written before it can be forgotten.)
func (m *Machine) Release() {
	if !m.freezing {
		return
	}
	m.persisted, m.base = m.frozenAt, nil
	m.freezing = false
	if m.frozen != nil && !m.shared {
		m.frozen.Release()
	}
	m.frozen, m.shared, m.borrowed = nil, false, false
}

// Share says that somebody may go on reading the frozen overlay after Release: its memory is left to the garbage collector.
func (m *Machine) Share() { m.shared = true }

// Close gives the overlays' memory back, as when the replica is removed or replaced by a snapshot. Nobody may read them.
func (m *Machine) Close() {
	if m.live != nil {
		m.live.Release()
	}
	if m.frozen != nil && !m.shared {
		m.frozen.Release()
	}
	m.live, m.frozen = nil, nil
}

// FillJob names this replica, as the store holds it, in a read job.
func (m *Machine) FillJob(job *state.ReadJob) {
	b := m.below()
	job.Key, job.Extents, job.Applied = b.Key, b.Extents, b.Applied
}

// below is what the store holds below the overlays.
func (m *Machine) below() Base {
	if m.base != nil {
		return *m.base
	}
	return Base{Key: m.key, Extents: m.extents, Applied: m.persisted}
}

// Valid tells whether a job that has come back was read from what the overlays lie upon now (rule State1). If not, read
// again.
func (m *Machine) Valid(job *state.ReadJob) bool { return job.Err == nil && m.Current(job) }

// Current tells whether a job names what the overlays lie upon now. If it has come back moved nevertheless, the store is ahead: the cut was
// committed, and is about to be released.
func (m *Machine) Current(job *state.ReadJob) bool {
	b := m.below()
	return job.Key == b.Key && job.Applied == b.Applied &&
		(len(job.Extents) == len(b.Extents) && (len(job.Extents) == 0 || &job.Extents[0] == &b.Extents[0]) ||
			slices.EqualFunc(job.Extents, b.Extents, equalExtents))
}

func equalExtents(a, b state.Extent) bool {
	return a.Tablet == b.Tablet && bytes.Equal(a.Start, b.Start) && bytes.Equal(a.End, b.End)
}
